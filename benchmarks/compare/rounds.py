"""Both sides in turns, a process each time; what was done is kept, and gone on with."""

import json
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.compare import verdict
from benchmarks.compare.sides import Side, digest, home
from benchmarks.compare.watch import Watch, conditions
from benchmarks.harness import commit, load_data, say
from vaebench import InputError, TrainConfig
from vaebench.config import recipe
from vaebench.fast.register import TECHNIQUES
from vaebench.system.device import resolve_device
from vaebench.system.info import fingerprint
from vaebench.system.threads import available_cpus
from vaebench.workloads import WORKLOADS

WORKER = Path(__file__).with_name("worker.py")
EPOCHS = 6
# Images of an epoch, so that it takes about half a second; others: FEW.
IMAGES, FEW = {"mlp": 20_000, "flax": 20_000, "conv": 800}, 4_000
SCHEMA = 1


def task_of(name: str, images: Path, device: str) -> dict[str, Any]:
    """What a worker does for a benchmark: a workload, and techniques after ``+``.

    Raises:
        InputError: there is no such workload, or technique.
    """
    workload, *techniques = name.split("+")
    known = {t.name for t in TECHNIQUES}
    if workload not in WORKLOADS or not set(techniques) <= known:
        raise InputError(
            f"{name!r} is no benchmark: give a workload ({', '.join(WORKLOADS)}), and techniques "
            "after it, such as mlp+compile"
        )
    config: TrainConfig = recipe(workload)
    network, objective = config.network, config.objective
    options: dict[str, Any] = {
        "epochs": EPOCHS,
        "batch_size": config.optimizer.batch_size,
        "lr": config.optimizer.lr,
        "likelihood": objective.likelihood or "bernoulli",
        "sigma": objective.sigma,
        "seed": 0,
        "device": device,
    }
    options |= {t: "auto" if t == "amp" else True for t in techniques}
    return {
        "images": str(images),
        "model": "ConvVAE" if network.kind == "conv" else "VAE",
        "network": {
            "hidden_dims": network.hidden_dim,
            "latent_dim": network.latent_dim,
            "activation": network.activation,
            "likelihood": options["likelihood"],
        },
        "options": options,
        "threads": available_cpus(),
    }


class Comparison:
    """A comparison of two sides; made again after an interruption, it goes on where it was.

    Args:
        sides: A and B.
        names: the benchmarks.
        rounds: pairs of each, beside the first, which builds kernels.
        data: as for ``python -m vaebench.train``.
        device: where to train.
    """

    def __init__(
        self, sides: Sequence[Side], names: Sequence[str], rounds: int, data: str, device: str
    ) -> None:
        self.sides, self.names, self.rounds, self.device = sides, names, rounds, device
        about = [f"{s.name} {s.python} {s.tree} {s.commit}" for s in sides]
        key = digest(*about, *names, str(rounds), data, device, commit())
        self.folder = home() / "unfinished" / key
        self.log = self.folder / "runs.jsonl"
        self.folder.mkdir(parents=True, exist_ok=True)
        # Beside nothing that could be imported in place of something else.
        self.worker = Path(shutil.copy(WORKER, self.folder))
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        self.runs: list[dict[str, Any]] = [json.loads(line) for line in lines]
        if self.runs:
            say(f"going on after {len(self.runs)} runs that were done before")
        self.failed: dict[str, str] = {}
        loaded = load_data(data)
        self.data = loaded.name
        self.tasks = {}
        for name in names:
            count = IMAGES.get(name.split("+")[0], FEW)
            path = self.folder / f"images-{count}.npy"
            np.save(path, loaded.train.images[:count].numpy())
            self.tasks[name] = task_of(name, path, device)

    def run(self) -> dict[str, Any]:
        """Run all that is left; give the result, and forget what was kept.

        Raises:
            InputError: no benchmark could be run on both sides; says why of the first.
        """
        before = conditions()
        for turn in range(self.rounds + 1):
            for name in self.names:
                for which in (0, 1) if turn % 2 == 0 else (1, 0):
                    if name not in self.failed and not self._done(turn, name, which):
                        self._take(turn, name, which)
        result = self._result(before)
        if not result["benchmarks"]:
            raise InputError(next(iter(self.failed.values())))
        shutil.rmtree(self.folder, ignore_errors=True)
        return result

    def _done(self, turn: int, name: str, which: int) -> bool:
        place = {"turn": turn, "name": name, "side": which}
        return any(place.items() <= run.items() for run in self.runs)

    def _take(self, turn: int, name: str, which: int) -> None:
        """Run one side once; keep what it gave."""
        side = self.sides[which]
        with Watch() as watch:
            answer = self._ask(side, which, {**self.tasks[name], "begun": time.time()})
        if isinstance(answer, str):
            self.failed[name] = f"{side.name} cannot run {name}: {answer}"
            say(self.failed[name])
            return
        run = {"turn": turn, "name": name, "side": which, **answer, **watch.found}
        run["busy"] = watch.busy
        self.runs.append(run)
        with self.log.open("a") as file:
            file.write(json.dumps(run) + "\n")
        say(
            f"round {turn} of {self.rounds}, {name}, {side.name}: "
            f"{1e3 * verdict.step_seconds(run):.0f} ms an epoch" + "; busy" * watch.busy
        )

    def _ask(self, side: Side, which: int, task: dict[str, Any]) -> dict[str, Any] | str:
        """Let a worker train; give its answer, or why there is none."""
        done = self._worker(side, which, json.dumps(task))
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if line.strip()]
            return (lines or [f"it ended with status {done.returncode}"])[-1].strip()[:300]
        answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        for technique, value in task["options"].items():
            if value is True and answer["actual"].get(technique) == "False":
                said: list[str] = [note for note in answer["notes"] if technique in note]
                return (said or [f"{technique} did not run"])[-1]
        return answer

    def _worker(self, side: Side, which: int, argument: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [str(side.python), self.worker.name, argument],
            cwd=self.folder,
            env=side.env(self.folder / f"kernels-{which}"),
            capture_output=True,
            text=True,
            errors="replace",
        )

    def _result(self, before: dict[str, Any]) -> dict[str, Any]:
        found = []
        for name in self.names:
            each = [
                [run for run in self.runs if (run["name"], run["side"]) == (name, which)]
                for which in (0, 1)
            ]
            if name not in self.failed:
                sorted_ = [sorted(runs, key=lambda run: run["turn"]) for runs in each]
                found.append(verdict.judged(name, *sorted_))
        return {
            "kind": "comparison",
            "schema": SCHEMA,
            "machine": fingerprint(resolve_device(self.device)),
            "commit": commit(),
            "data": self.data,
            "sides": [self._about(which) for which in (0, 1)],
            "rounds": self.rounds,
            "epochs": EPOCHS,
            "benchmarks": found,
            "not_compared": self.failed,
            "conditions": {"before": before, "after": conditions()},
        }

    def _about(self, which: int) -> dict[str, Any]:
        side = self.sides[which]
        mine = [run for run in self.runs if run["side"] == which]
        said = self._worker(side, which, "environment")
        made_of = json.loads(said.stdout) if said.returncode == 0 else {}
        others = [run["others"] for run in mine if run["others"] is not None]
        return {
            "name": side.name,
            "commit": side.commit,
            "torch": mine[0]["torch"] if mine else None,
            "cores_busy_with_others": max(others, default=None),
            **made_of,
        }
