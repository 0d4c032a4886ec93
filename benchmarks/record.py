"""The record: seconds from a process's start to a good VAE: ``python -m benchmarks.record``.

The rules are in ``benchmarks/RECORDS.md``. Fresh processes, a seed each, run a whole command; the
model that each has written is loaded and evaluated here, so that no run is taken at its word.
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
from vaebench import InputError, evaluate, load
from vaebench.config import WORKLOADS, recipe

SCHEMA = 1
BAR, LEVEL, FEWEST = -105.5, 0.01, 20  # nats; of the test's p; runs
# Of the model, which is fixed.
FIXED = ("network", "latent_dim", "hidden_dim", "likelihood", "sigma", "binarize")
# Seeds of the evaluation are none that a training used.
EVALUATION = 10_000
CURVES: dict[str, tuple[str, ...]] = {
    "record": ("-m", "vaebench.train", "--compile", "--amp", "--workload", "record"),
    "default recipe": ("-m", "vaebench.train", "--compile", "--amp"),
    "pytorch/examples": ("-m", "benchmarks.peers.pytorch_examples"),
}
JAX = ("-m", "benchmarks.peers.jax_command", "--workload", "record")
Run = dict[str, Any]


def check(workload: str) -> None:
    """Check that a recipe trains the model that the record is of.

    Raises:
        InputError: it does not; says what differs.
    """
    mine, fixed = recipe(workload).options(), recipe("mlp").options()
    other = [name for name in FIXED if (mine[name] or "bernoulli") != (fixed[name] or "bernoulli")]
    if other:
        raise InputError(
            f"--workload {workload} differs from mlp in {', '.join(other)}: the record is of that "
            "model and objective"
        )


def run_once(words: argparse.Namespace, seed: int, folder: Path, *, cold: bool = False) -> Run:
    """Run the command as a user would, and judge what it wrote.

    Returns:
        ``seconds``, wall, of the process; ``parts`` of them; ``test_elbo``, of the loaded model,
        one z per test image; ``epochs`` and ``steady``, images/s.
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
    test = load_data(words.data).test.images
    return {
        "seed": seed,
        "seconds": seconds,
        "parts": told["seconds"],
        "test_elbo": evaluate(load(out), test, seed=EVALUATION + seed).elbo,
        "epochs": told["epochs"],
        "steady": told["images_per_second"],
        "actual": told["actual"],
    }


def judged(elbos: Sequence[float], bar: float = BAR) -> dict[str, Any]:
    """Test that the mean ELBO over seeds is at least ``bar``: Student's t, one-sided."""
    found = stats.ttest_1samp(elbos, bar, alternative="greater")
    interval = stats.ttest_1samp(elbos, bar).confidence_interval(0.95)
    return {
        "bar": bar,
        "n": len(elbos),
        "mean": sum(elbos) / len(elbos),
        "low": float(interval.low),
        "high": float(interval.high),
        "p": float(found.pvalue),
        "reached": bool(found.pvalue < LEVEL),
    }


def measure(words: argparse.Namespace, run: Callable[..., Run] = run_once) -> dict[str, Any]:
    """Run all seeds, warm, and some of them cold; give the result to store."""
    check(words.workload)
    with tempfile.TemporaryDirectory(prefix="vaebench-record-") as name:
        folder = Path(name)
        run(words, 0, folder)  # off the record: it builds the kernels
        warm = []
        for seed in range(words.runs):
            warm.append(run(words, seed, folder))
            say(f"seed {seed}: {warm[-1]['seconds']:.2f} s, {warm[-1]['test_elbo']:.2f} nats")
        cold = [run(words, seed, folder, cold=True) for seed in range(words.cold)]
    elbos = [each["test_elbo"] for each in warm]
    stored = {"seed", "seconds", "test_elbo"}
    return {
        "kind": "record",
        "schema": SCHEMA,
        **described("auto", load_data(words.data, 1, 1).name, _command(words)),
        "date": time.strftime("%Y-%m-%d"),
        "who": words.who,
        "what": words.what,
        "recipe": {**WORKLOADS[words.workload].settings},
        "options": words.options,
        "epochs": warm[0]["epochs"],
        "elbo": judged(elbos),
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
    parts = ["python -m benchmarks.record --runs", str(words.runs)]
    parts += ["--workload", words.workload] if words.workload != "record" else []
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
    """That of the record, of the default recipe and of peers."""
    found, lines = {}, {**CURVES, **({"JAX, the record's recipe": JAX} if has_jax() else {})}
    with tempfile.TemporaryDirectory(prefix="vaebench-record-") as folder:
        for i, (name, line) in enumerate(lines.items()):
            out = ["--out", f"{folder}/{i}"] if "vaebench.train" in line else []
            found[name] = curve([*line, "--data", words.data, *out])
            say(f"{name}: {found[name][-1][1]:.2f} nats after {found[name][-1][0]:.1f} s")
    return found


def parse(argv: list[str]) -> argparse.Namespace:
    """Read the command line; what follows ``--`` goes to ``vaebench.train``."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.record", description=__doc__)
    parser.add_argument("--runs", type=int, default=FEWEST, help="seeds, a warm process each")
    parser.add_argument("--cold", type=int, default=3, help="processes that build all kernels")
    parser.add_argument("--workload", default="record", help="the recipe")
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--what", default="", help="what is new, in a few words")
    parser.add_argument("--who", default="", help="whose it is")
    parser.add_argument("--curves", action="store_true", help="how the test ELBO rises, too")
    parser.add_argument("--out", type=Path, help="write the result as JSON")
    parser.add_argument("options", nargs="*", help="after --: more options of vaebench.train")
    return parser.parse_args(argv)


def in_words(result: dict[str, Any]) -> str:
    """A line for whoever ran it."""
    elbo, warm = result["elbo"], result["warm"]
    verdict = "reached" if elbo["reached"] else "NOT reached"
    few = f"; {FEWEST} runs make a record" if elbo["n"] < FEWEST else ""
    cold = f", {result['cold']['median']:.1f} s cold" if result["cold"] else ""
    return (
        f"{warm['median']:.2f} s warm{cold}, of which {result['parts']['train']:.2f} training; "
        f"test ELBO {elbo['mean']:.3f} ({elbo['low']:.3f} to {elbo['high']:.3f}, n = {elbo['n']}): "
        f"{elbo['bar']} {verdict}, p = {elbo['p']:.2g}{few}"
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
    if words.curves:
        result["curves"] = curves(words)
    if words.out:
        store(words.out, result)
    print(in_words(result))
    return 0 if result["elbo"]["reached"] else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
