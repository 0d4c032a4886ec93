"""Both sides in turns, two new processes a round; what was done is kept, and gone on with."""

import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
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
EPOCHS = 12
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


def _as_asked(answer: dict[str, Any], task: dict[str, Any]) -> dict[str, Any] | str:
    """A worker's answer; or why a technique that was asked for did not run."""
    for technique, value in task["options"].items():
        if value is True and answer["actual"].get(technique) == "False":
            said: list[str] = [note for note in answer["notes"] if technique in note]
            return (said or [f"{technique} did not run"])[-1]
    return answer


class WorkerError(RuntimeError):
    """A worker ended without an answer; the message is the last that it said."""


class Worker:
    """A worker under way, which trains an epoch whenever it is told to; a context manager.

    Args:
        command: what runs it.
        folder: where.
        env: its environment variables.
    """

    def __init__(self, command: Sequence[str], folder: Path, env: dict[str, str]) -> None:
        self.errors = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115
        self.process = subprocess.Popen(
            command,
            cwd=folder,
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            errors="replace",
        )

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()  # it has ended, or is of no use any more
        self.process.communicate()
        self.errors.close()

    def go(self) -> None:
        """Let it train an epoch, and wait for its end; raises as :meth:`answer`."""
        assert self.process.stdin
        with suppress(OSError):  # what ended it is found below
            print("go", file=self.process.stdin, flush=True)
        self.answer()

    def answer(self) -> dict[str, Any]:
        """Wait for its next line of JSON.

        Raises:
            WorkerError: it ended before.
        """
        assert self.process.stdout
        for line in self.process.stdout:
            if line.startswith("{"):
                found: dict[str, Any] = json.loads(line)
                return found
        status = self.process.wait()
        self.errors.seek(0)
        lines = [line for line in self.errors if line.strip()]
        said = (lines or [f"it ended with status {status}"])[-1]
        raise WorkerError(said.strip()[:300])


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
                if name not in self.failed and not self._done(turn, name):
                    self._take(turn, name)
        result = self._result(before)
        if not result["benchmarks"]:
            raise InputError(next(iter(self.failed.values())))
        shutil.rmtree(self.folder, ignore_errors=True)
        return result

    def _done(self, turn: int, name: str) -> bool:
        return any((run["turn"], run["name"]) == (turn, name) for run in self.runs)

    def _take(self, turn: int, name: str) -> None:
        """Let both sides train; keep what they gave."""
        with Watch() as watch:
            answers = self._race((0, 1) if turn % 2 == 0 else (1, 0), self.tasks[name])
        for side, answer in zip(self.sides, answers, strict=True):
            if isinstance(answer, str):
                self.failed[name] = f"{side.name} cannot run {name}: {answer}"
                say(self.failed[name])
                return
        place = {"turn": turn, "name": name, "busy": watch.busy, **watch.found}
        runs: list[dict[str, Any]] = []
        for which, answer in enumerate(answers):
            assert isinstance(answer, dict)
            runs.append({**place, "side": which, **answer})
        self.runs += runs
        with self.log.open("a") as file:
            file.write("".join(json.dumps(run) + "\n" for run in runs))
        each = " and ".join(f"{1e3 * verdict.epoch_seconds(run):.0f}" for run in runs)
        ratio = verdict.ratio_of(*runs)
        say(
            f"round {turn} of {self.rounds}, {name}: {each} ms an epoch, {ratio:.3f}"
            + "; busy" * watch.busy
        )

    def _race(self, order: Sequence[int], task: dict[str, Any]) -> list[dict[str, Any] | str]:
        """Start one side after the other; then they take turns, an epoch each.

        So a drift of the machine hits both alike. Each is alone until its first epoch is done.

        Returns:
            Of A and B: what a worker gave, or why it gave nothing.
        """
        found: list[dict[str, Any] | str] = ["it was not tried", "it was not tried"]
        with ExitStack() as stack:
            workers: dict[int, Worker] = {}
            which = order[0]
            try:
                for which in order:
                    workers[which] = stack.enter_context(self._started(which, task))
                    workers[which].answer()
                for epoch in range(1, EPOCHS):
                    for which in order if epoch % 2 else order[::-1]:
                        workers[which].go()
                for which in order:
                    found[which] = _as_asked(workers[which].answer(), task)
            except WorkerError as error:
                return [str(error) if i == which else {} for i in (0, 1)]
        return found

    def _started(self, which: int, task: dict[str, Any]) -> Worker:
        return self._worker(which, json.dumps({**task, "begun": time.time()}))

    def _worker(self, which: int, argument: str) -> Worker:
        side = self.sides[which]
        env = side.env(self.folder / f"kernels-{which}")
        return Worker([str(side.python), self.worker.name, argument], self.folder, env)

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
        side, made_of = self.sides[which], dict[str, Any]()
        mine = [run for run in self.runs if run["side"] == which]
        with suppress(WorkerError), self._worker(which, "environment") as worker:
            made_of = worker.answer()
        others = [run["others"] for run in mine if run["others"] is not None]
        return {
            "name": side.name,
            "commit": side.commit,
            "torch": mine[0]["torch"] if mine else None,
            "cores_busy_with_others": max(others, default=None),
            **made_of,
        }
