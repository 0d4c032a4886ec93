"""Kill a training again and again, go on with it each time, and compare with one left in peace.

    python scripts/kill.py --kills 100

SIGKILL, which no process can catch. A part of the kills comes at a random time of the start-up, a
part at a random time of the training, a part within milliseconds of a file's being written, and a
part within milliseconds of the last one's. What each one hit is told by what it left in the run
folder. In the end ``model.safetensors`` must be the same, byte for byte, as that of a training
never interrupted, ``metrics.jsonl`` the same but for its times, without a gap or a double, and no
other file may be there.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

from vaebench.data.strokes import make_strokes

TIMES = ("seconds", "images_per_second")  # of an epoch's record: all else must be equal
AIMS = {"start-up": 0.15, "training": 0.45, "writing": 0.3, "the end": 0.1}
POLL = 0.0002
PATIENCE = 300.0


class Wrong(Exception):
    """A promise was broken; the message says which."""


class Rig:
    """One set of options, an uninterrupted training with them, and how long its parts took."""

    def __init__(self, folder: Path, seed: int, epochs: int, compile: bool) -> None:
        self.folder, self.epochs, self.random = folder, epochs, random.Random(seed)
        images = make_strokes(400, seed=3)[0].numpy()
        np.savez(folder / "small.npz", x_train=images[:330], x_test=images[330:])
        self.options = (
            f"--data {folder / 'small.npz'} --device cpu --threads 1 --hidden-dim 64 "
            f"--latent-dim 6 --batch-size 64 --epochs {epochs}"
        ).split() + ["--compile"] * compile
        self.want = folder / "in-peace"
        start = time.monotonic()
        process = self.start(self.want)
        self.wait_for_training(process, self.want, None)
        self.start_up = time.monotonic() - start
        self.finish(process)
        self.training = time.monotonic() - start - self.start_up

    def start(self, run: Path) -> "subprocess.Popen[str]":
        """Begin the run, or go on with it if there is anything to go on with."""
        begun = (run / "config.json").exists()
        words = ["--resume", str(run)] if begun else ["--out", str(run), *self.options]
        return subprocess.Popen(
            [sys.executable, "-m", "vaebench.train", *words],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def finish(self, process: "subprocess.Popen[str]") -> None:
        """Wait for the end of a run that nobody killed."""
        _, errors = process.communicate(timeout=PATIENCE)
        # "Is complete": it was killed after its last word, and there was nothing left to do.
        if process.returncode != 0 or (errors and "is complete" not in errors):
            raise Wrong(f"a run ended with status {process.returncode} and said: {errors}")

    def wait_for_training(
        self, process: "subprocess.Popen[str]", run: Path, before: int | None
    ) -> None:
        """Wait until the run has written its settings: from then on it builds and trains."""
        while process.poll() is None and written(run / "config.json") == before:
            time.sleep(POLL)

    def kill(self, process: "subprocess.Popen[str]", run: Path, before: int | None) -> bool:
        """Kill at a random moment; False if the run was over before."""
        (aim,) = self.random.choices(list(AIMS), list(AIMS.values()))
        if aim == "start-up":
            delay = self.random.uniform(0, self.start_up)
        else:
            self.wait_for_training(process, run, before)
            delay = self.random.uniform(0, self.training)
        with_patience = time.monotonic() + delay
        while process.poll() is None and time.monotonic() < with_patience:
            time.sleep(POLL)
        if aim == "writing":
            while process.poll() is None and not any(run.glob(".vaebench-*.tmp")):
                pass
            time.sleep(self.random.uniform(0, 0.004))
        if aim == "the end":
            while process.poll() is None and not (run / "result.json").exists():
                pass
            time.sleep(self.random.uniform(0, 0.004))
        process.kill()
        _, errors = process.communicate(timeout=PATIENCE)
        if process.returncode == 0:
            return False
        if process.returncode != -9 or (errors and "is complete" not in errors):
            raise Wrong(f"a run ended with status {process.returncode} and said: {errors}")
        return True

    def compare(self, run: Path) -> None:
        """Hold a finished run against the uninterrupted one."""
        if (run / "model.safetensors").read_bytes() != (
            self.want / "model.safetensors"
        ).read_bytes():
            raise Wrong(f"{run / 'model.safetensors'} differs from the uninterrupted run's")
        got, want = records(run), records(self.want)
        if [record["epoch"] for record in got] != list(range(1, self.epochs + 1)):
            raise Wrong(f"{run / 'metrics.jsonl'} has a gap or a double")
        if [untimed(r) for r in got] != [untimed(r) for r in want]:
            raise Wrong(f"{run / 'metrics.jsonl'} differs from the uninterrupted run's")
        names = [{p.name for p in folder.iterdir()} for folder in (run, self.want)]
        if names[0] != names[1]:
            raise Wrong(f"{run} holds other files than the uninterrupted run: {sorted(names[0])}")


def written(path: Path) -> int | None:
    """When a file was last written, in nanoseconds; None if there is none."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return None


def records(run: Path) -> list[dict[str, float]]:
    """The lines of ``metrics.jsonl``."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def untimed(record: dict[str, float]) -> dict[str, float]:
    """A record without what is never the same twice."""
    return {name: value for name, value in record.items() if name not in TIMES}


def checkpoints(run: Path) -> list[Path]:
    """The run's checkpoints, oldest first."""
    return sorted(run.glob("checkpoint-*.safetensors"))


def epochs_kept(run: Path) -> int:
    """How many epochs the newest checkpoint holds."""
    return max((int(p.stem.split("-")[1]) for p in checkpoints(run)), default=0)


def phase(run: Path, config_before: int | None, newest_before: int | None) -> str:
    """Tell from what a killed process left what it was doing."""
    if written(run / "config.json") == config_before:
        return "start-up"
    if (run / "result.json").exists():
        return "after the result"
    halves = sorted(p.name for p in run.glob(".vaebench-*.tmp"))
    if halves:
        return "writing " + halves[0].removeprefix(".vaebench-").split("-")[0].split(".")[0]
    newest = checkpoints(run)[-1:]
    if not newest or written(newest[0]) == newest_before:
        return "building, or the first epoch since"
    if len(checkpoints(run)) > 2:
        return "after a checkpoint, before the oldest was removed"
    metrics = run / "metrics.jsonl"
    text = metrics.read_text() if metrics.exists() else ""  # none yet after the first checkpoint
    if text.count("\n") < epochs_kept(run) or not text.endswith("\n"):
        return "between checkpoint and metrics"
    if (written(run / "model.safetensors") or 0) < (written(newest[0]) or 0):
        return "between metrics and model"
    return "training or evaluating" if epochs_kept(run) else "building, or the first epoch since"


def torment(rig: Rig, run: Path, enough: Callable[[], bool], hits: Counter[str]) -> None:
    """Kill one run until it gets through or it is enough; then let it end, and compare."""
    while True:
        kept = epochs_kept(run)
        before = written(run / "config.json")
        newest = written(checkpoints(run)[-1]) if kept else None
        process = rig.start(run)
        if enough():
            rig.finish(process)
            break
        if not rig.kill(process, run, before):
            break
        hits[phase(run, before, newest)] += 1
        if epochs_kept(run) < kept:
            raise Wrong(f"{run} had {kept} epochs, and after a kill {epochs_kept(run)}")
    rig.compare(run)


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100, metavar="N")
    parser.add_argument(
        "--minutes", type=float, default=60.0, help="after which no more are killed", metavar="F"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the moments", metavar="N")
    parser.add_argument("--epochs", type=int, default=60, help="of each training", metavar="N")
    parser.add_argument("--compile", action="store_true", help="kill compiled trainings")
    given = parser.parse_args()
    os.environ.pop("VAEBENCH_DATA", None)
    hits: Counter[str] = Counter()
    end = time.monotonic() + 60 * given.minutes

    def enough() -> bool:
        return bool(hits.total() >= given.kills or time.monotonic() > end)

    with tempfile.TemporaryDirectory(prefix="vaebench-kill-") as folder:
        rig = Rig(Path(folder), given.seed, given.epochs, given.compile)
        print(f"in peace: {rig.start_up:.1f} s of start-up, {rig.training:.1f} s of training")
        runs = 0
        try:
            while not enough():
                runs += 1
                torment(rig, Path(folder) / f"run-{runs}", enough, hits)
        except Wrong as error:
            print(f"after {hits.total()} kills: {error}", file=sys.stderr)
            return 1
    if not hits:
        print("there was no time for a single kill: allow more --minutes", file=sys.stderr)
        return 1
    for name, count in hits.most_common():
        print(f"{count:5d}  {name}")
    print(
        f"{hits.total()} kills, {runs} trainings of {given.epochs} epochs brought to their end: "
        "each model.safetensors is the uninterrupted one's, byte for byte, and no metrics.jsonl "
        "has a gap or a double"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
