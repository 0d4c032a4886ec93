"""The record: seconds from a process's start to a good VAE: ``python -m benchmarks.record``.

There are two tracks, see :mod:`benchmarks.tracks`; ``benchmarks/RECORDS.md`` has the rules. Fresh
processes, a seed each, run a whole command; the model that each has written is loaded and evaluated
here, so that no run is taken at its word.
"""

import argparse
import dataclasses
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from scipy import stats

from benchmarks.harness import ROOT, described, has_jax, load_data, say, store
from benchmarks.statistics import summary
from benchmarks.tracks import TRACKS
from vaebench import InputError
from vaebench.config import WORKLOADS
from vaebench.system.device import resolve_device
from vaebench.system.info import fingerprint

SCHEMA = 2
LEVEL = 0.01  # of the test's p
RUN = ("-m", "vaebench.train", "--compile", "--amp")
PEERS: dict[str, tuple[str, ...]] = {
    "default recipe": RUN,
    "pytorch/examples": ("-m", "benchmarks.peers.pytorch_examples"),
}
JAX = ("-m", "benchmarks.peers.jax_command", "--workload", "record")
Run = dict[str, Any]


def run_once(words: argparse.Namespace, seed: int, folder: Path, *, cold: bool = False) -> Run:
    """Run the command as a user would, and judge what it wrote.

    Returns:
        ``seconds``, wall, of the process; ``parts`` of them; ``score``, of the loaded model;
        ``test_elbo``, as the run told it; ``epochs`` and ``steady``, images/s.
    """
    kernels = Path(tempfile.mkdtemp(dir=folder)) if cold else folder / "kernels"
    out = Path(tempfile.mkdtemp(dir=folder)) / "run"
    line = [sys.executable, "-m", "vaebench.train", "--workload", words.workload]
    line += ["--compile", "--amp", "--quiet", "--seed", str(seed), "--data", words.data]
    line += ["--out", str(out), *words.options]
    env = {**os.environ, "XDG_CACHE_HOME": str(kernels)}
    env["TORCHINDUCTOR_CACHE_DIR"] = str(kernels / "inductor")
    begun = time.perf_counter()
    subprocess.run(line, cwd=ROOT, env=env, check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - begun
    told = json.loads((out / "result.json").read_text(encoding="utf-8"))
    return {
        "seed": seed,
        "seconds": seconds,
        "parts": told["seconds"],
        "score": TRACKS[words.track].judge(out, words.data, seed, words.samples),
        "test_elbo": told["test_elbo"],
        "epochs": told["epochs"],
        "steady": told["images_per_second"],
        "actual": told["actual"],
    }


def judged(scores: Sequence[float], bar: float) -> dict[str, Any]:
    """Test that the mean over seeds is at least ``bar``: Student's t, one-sided."""
    found = stats.ttest_1samp(scores, bar, alternative="greater")
    interval = stats.ttest_1samp(scores, bar).confidence_interval(0.95)
    return {
        "bar": bar,
        "n": len(scores),
        "mean": sum(scores) / len(scores),
        "low": float(interval.low),
        "high": float(interval.high),
        "p": float(found.pvalue),
        "reached": bool(found.pvalue < LEVEL),
    }


def kept(words: argparse.Namespace, run: Callable[..., Run]) -> Callable[..., Run]:
    """Let what ``run`` finds be written to ``--keep``, and what is there be read instead."""
    about = {
        "recipe": json.loads(json.dumps({**WORKLOADS[words.workload].settings})),
        **{name: getattr(words, name) for name in ("options", "samples", "data")},
        "machine": fingerprint(resolve_device("auto")),
    }

    def read_or_run(
        words: argparse.Namespace, seed: int, folder: Path, *, cold: bool = False
    ) -> Run:
        path = words.keep / f"{'cold' if cold else 'warm'}-{seed}.json"
        if path.exists():
            told = json.loads(path.read_text(encoding="utf-8"))
            if told["about"] != about:
                raise InputError(
                    f"{path} is of another recipe or machine: name another folder by --keep"
                )
            found: Run = told["run"]
        else:
            found = run(words, seed, folder, cold=cold)
            store(path, {"about": about, "run": found})
        return found

    return read_or_run


def measure(words: argparse.Namespace, run: Callable[..., Run] = run_once) -> dict[str, Any]:
    """Run all seeds, warm, and some of them cold; give the result to store."""
    track = TRACKS[words.track]
    track.check(words.workload)
    judge = kept(words, run) if words.keep else run
    with tempfile.TemporaryDirectory(prefix="vaebench-record-") as name:
        folder = Path(name)
        # Off the record: it builds the kernels, as many epochs would.
        short = {**vars(words), "options": [*words.options, "--epochs", "1"], "samples": 1}
        run(argparse.Namespace(**short), 0, folder)
        warm = []
        for seed in range(words.runs):
            warm.append(judge(words, seed, folder))
            say(f"seed {seed}: {warm[-1]['seconds']:.2f} s, {warm[-1]['score']:.2f} nats")
        cold = [judge(words, seed, folder, cold=True) for seed in range(words.cold)]
    stored = {"seed", "seconds", "score", "test_elbo"}
    return {
        "kind": "record",
        "track": words.track,
        "schema": SCHEMA,
        **described("auto", load_data(words.data, 1, 1).name, _command(words)),
        "date": time.strftime("%Y-%m-%d"),
        "who": words.who,
        "what": words.what,
        "recipe": {**WORKLOADS[words.workload].settings},
        "options": words.options,
        "epochs": warm[0]["epochs"],
        "samples": words.samples,
        "score": judged([each["score"] for each in warm], track.bar),
        "warm": dataclasses.asdict(summary([each["seconds"] for each in warm])),
        "cold": dataclasses.asdict(summary([each["seconds"] for each in cold])) if cold else None,
        "parts": {
            part: summary([each["parts"][part] for each in warm]).median
            for part in warm[0]["parts"]
        },
        "steady": dataclasses.asdict(summary([each["steady"] for each in warm])),
        "actual": warm[0]["actual"],
        "runs": [{key: each[key] for key in sorted(stored)} for each in warm],
    }


def _command(words: argparse.Namespace) -> str:
    track = TRACKS[words.track]
    parts = ["python -m benchmarks.record"]
    parts += ["--track", words.track] if words.track != "elbo" else []
    parts += ["--runs", str(words.runs)]
    parts += ["--workload", words.workload] if words.workload != track.workload else []
    parts += ["--samples", str(words.samples)] if words.samples != track.samples else []
    return " ".join([*parts, *(["--", *words.options] if words.options else [])])


# How the test ELBO rises.

_EPOCH = re.compile(r"epoch +\d+.*test (?:ELBO +)?(-?[\d.]+)")


def curve(line: Sequence[str]) -> list[tuple[float, float]]:
    """Seconds since the start, and test ELBO, of each epoch that a command tells of."""
    return list(_told([sys.executable, "-u", *line]))


def _told(line: Sequence[str]) -> Iterator[tuple[float, float]]:
    begun = time.perf_counter()
    with subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        for said in process.stdout:
            if found := _EPOCH.search(said):
                yield time.perf_counter() - begun, -abs(float(found[1]))
    if process.returncode:
        raise RuntimeError(f"{' '.join(line)} ended with status {process.returncode}")


def curves(words: argparse.Namespace) -> dict[str, list[tuple[float, float]]]:
    """That of the record; and in its first track of the default recipe and of peers."""
    mine = (*RUN, "--workload", words.workload, *words.options)
    lines: dict[str, tuple[str, ...]] = {"record": mine}
    if words.track == "elbo":
        lines |= {**PEERS, **({"JAX, the record's recipe": JAX} if has_jax() else {})}
    found = {}
    with tempfile.TemporaryDirectory(prefix="vaebench-record-") as folder:
        for i, (name, line) in enumerate(lines.items()):
            out = ["--out", f"{folder}/{i}"] if "vaebench.train" in line else []
            found[name] = curve([*line, "--data", words.data, *out])
            say(f"{name}: {found[name][-1][1]:.2f} nats after {found[name][-1][0]:.1f} s")
    return found


def parse(argv: list[str]) -> argparse.Namespace:
    """Read the command line; what follows ``--`` goes to ``vaebench.train``."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.record", description=__doc__)
    parser.add_argument("--track", choices=TRACKS, default="elbo", help="which record")
    parser.add_argument("--runs", type=int, help="seeds, a warm process each (default: as ruled)")
    parser.add_argument("--cold", type=int, default=3, help="processes that build all kernels")
    parser.add_argument("--workload", help="the recipe (default: the track's own)")
    parser.add_argument("--samples", type=int, help="z per test image (default: as ruled)")
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--what", default="", help="what is new, in a few words")
    parser.add_argument("--who", default="", help="whose it is")
    parser.add_argument(
        "--keep",
        type=Path,
        help="folder for what each run gave: begun again, it goes on from there",
    )
    parser.add_argument("--curves", action="store_true", help="how the test ELBO rises, too")
    parser.add_argument("--out", type=Path, help="write the result as JSON")
    parser.add_argument("options", nargs="*", help="after --: more options of vaebench.train")
    words = parser.parse_args(argv)
    track = TRACKS[words.track]
    given = {"runs": track.fewest, "workload": track.workload, "samples": track.samples}
    for name, default in given.items():
        if getattr(words, name) is None:
            setattr(words, name, default)
    return words


def in_words(result: dict[str, Any]) -> str:
    """A line for whoever ran it."""
    score, warm, track = result["score"], result["warm"], TRACKS[result["track"]]
    verdict = "reached" if score["reached"] else "NOT reached"
    few = f"; {track.fewest} runs make a record" if score["n"] < track.fewest else ""
    what = "test ELBO" if track.score == "elbo" else "test log-likelihood"
    cold = f", {result['cold']['median']:.1f} s cold" if result["cold"] else ""
    return (
        f"{warm['median']:.2f} s warm{cold}, of which {result['parts']['train']:.2f} training; "
        f"{what} {score['mean']:.3f} ({score['low']:.3f} to {score['high']:.3f}, "
        f"n = {score['n']}): {score['bar']} {verdict}, p = {score['p']:.2g}{few}"
    )


def main(argv: list[str]) -> int:
    """Run the command; give its exit status."""
    words = parse(argv)
    if words.runs < 2:
        say(f"--runs is {words.runs}: a mean has an error from 2 runs on")
        return 2
    try:
        result = measure(words)
    except InputError as error:
        say(str(error))
        return 2
    except subprocess.CalledProcessError as error:  # which has said why
        say(f"a run ended with status {error.returncode}: {' '.join(map(str, error.cmd))}")
        return 1
    if words.curves:
        result["curves"] = curves(words)
    if words.out:
        store(words.out, result)
    print(in_words(result))
    return 0 if result["score"]["reached"] else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
