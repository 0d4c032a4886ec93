"""The instrument: data, models and engines; the clock; fresh processes; what a record says.

On the clock: what is named, from a synchronised start to a synchronised stop. Off it: loading data,
building and compiling, warming up, and putting back what the round before has trained away.
"""

import contextlib
import importlib.util
import json
import math
import os
import platform
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vaebench import Dataset, InputError, TrainConfig, load_dataset, load_mnist
from vaebench.config import recipe
from vaebench.data.binarize import binarize
from vaebench.data.files import ImageSet
from vaebench.engine import Engine, Sums
from vaebench.models.networks import Network, make_network
from vaebench.models.protocol import likelihood_of
from vaebench.objective import Objective
from vaebench.problem import Problem
from vaebench.system import timing
from vaebench.system.device import resolve_device
from vaebench.system.info import fingerprint
from vaebench.system.random import TRAINING_PIXELS
from vaebench.training.follow import Follower

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks/results"
DEFAULT = recipe("mlp")
BATCH, LEARNING_RATE = DEFAULT.optimizer.batch_size, DEFAULT.optimizer.lr
SAMPLES = 4  # z per test image, where whole trainings are evaluated
# Relative difference of ELBOs between two engines, by the precision that really ran.
TOLERANCE = {"float32": 1e-3, "bf16": 2e-3, "tf32": 2e-3}

Around = Callable[[], AbstractContextManager[object]]

# Data, models, engines.


def load_data(name: str = "auto", images: int | None = None, tests: int | None = None) -> Dataset:
    """MNIST if it is on disk, else the strokes; nothing is downloaded. Cut to so many images."""
    if name != "auto":
        data = load_dataset(name)
    else:
        try:
            data = load_mnist(download=False)
        except InputError:
            if os.environ.get("VAEBENCH_DATA"):  # somebody meant to measure on it
                raise
            data = load_dataset("strokes")
    return Dataset(data.name, _first(data.train, images), _first(data.test, tests))


def _first(part: ImageSet, count: int | None) -> ImageSet:
    labels = None if part.labels is None else part.labels[:count].clone()
    return ImageSet(part.images[:count].clone(), labels)


def new_model(seed: int = 0, config: TrainConfig = DEFAULT, **given: Any) -> Network:
    """Make a workload's network with this seed's weights; ``given`` as of VAE or ConvVAE."""
    network = {
        "kind": config.network.kind,
        "hidden_dims": config.network.hidden_dim,
        "latent_dim": config.network.latent_dim,
        "activation": config.network.activation,
        "likelihood": config.objective.likelihood or "bernoulli",
    }
    torch.manual_seed(seed)
    return make_network({**network, **given})


def pixels(images: Tensor, config: TrainConfig) -> Tensor:
    """The training images as a workload has them."""
    how = config.data.binarize
    return images if how == "none" else binarize(images, how, TRAINING_PIXELS)


def problem_of(
    model: nn.Module,
    images: Tensor,
    config: TrainConfig,
    device: torch.device,
    labels: Tensor | None = None,
) -> Problem:
    """Give what ``fit`` would train."""
    aim = config.objective
    kind = aim.likelihood or likelihood_of(model)
    objective = Objective(kind, aim.sigma, aim.beta, aim.bound, aim.samples)
    return Problem.of(model, images, objective, config.optimizer, device, labels=labels)


def build(
    model: nn.Module,
    images: Tensor,
    config: TrainConfig,
    device: torch.device,
    labels: Tensor | None = None,
) -> tuple[Engine, dict[str, Any], list[str]]:
    """Build the engine that ``fit`` would train with, warmed up.

    The one place where benchmarks build engines. Denormals are the caller's: a switch of threads.

    Returns:
        The engine, what it really is, and why that is not what was asked for.
    """
    built = Follower(problem_of(model, images, config, device, labels), config, None)
    return built.engine, {"engine": config.run.engine, **built.actual}, built.notes


def numbers(
    images: int, count: int, device: torch.device, config: TrainConfig = DEFAULT
) -> tuple[Tensor, Tensor]:
    """Draw the order and noise of ``count`` of the images, the same on every call."""
    generator = torch.Generator().manual_seed(2)
    passes = -(-count // images)
    order = torch.cat([torch.randperm(images, generator=generator) for _ in range(passes)])
    shape = Objective(samples=config.objective.samples).noise_shape(
        count, config.network.latent_dim
    )
    return order[:count].to(device), torch.randn(shape, generator=generator).to(device)


def elbo(sums: Sums) -> float:
    """Training ELBO of a timed part, in nats per image."""
    return (float(sums.recon) - float(sums.kl)) / sums.images


def differ(found: float, expected: float, allowed: float) -> str | None:
    """None if two ELBOs agree to the relative difference allowed, else by how much they do not."""
    gap = abs(found - expected) / abs(expected)
    if gap <= allowed:
        return None
    return f"ELBO {found:.4f}, not {expected:.4f}: {gap:.1e} relative, {allowed:.0e} allowed"


def restorer(model: nn.Module, memory: Callable[[], Mapping[str, Tensor]]) -> Callable[[], None]:
    """Remember a model and its optimiser; give a function that puts both back, in place.

    ``memory`` names the optimiser's tensors as they are now: one not yet there started at zero.
    """
    weights = [*model.parameters(), *model.buffers()]
    before = [w.detach().clone() for w in weights]
    remembered = {name: t.clone() for name, t in memory().items()}

    def restore() -> None:
        with torch.no_grad():
            for weight, value in zip(weights, before, strict=True):
                weight.copy_(value)
            for name, tensor in memory().items():
                tensor.copy_(remembered[name]) if name in remembered else tensor.zero_()

    return restore


def restorer_of(engine: Any) -> Callable[[], None]:
    """Remember the state of an engine and its model; give a function that puts it back."""
    return restorer(engine.model, engine.state)


def memory_of(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Name what one of torch's optimisers remembers."""
    slots = enumerate(optimizer.state.values())
    return {f"{i}.{name}": t for i, slot in slots for name, t in slot.items()}


# The clock.


def clock() -> float:
    """Seconds, read when everything queued on the device is done."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


def seconds_of(work: Callable[[], object]) -> float:
    """Time one call."""
    begun = clock()
    work()
    return clock() - begun


def take_turns(
    works: Mapping[str, Callable[[], object]],
    device: torch.device,
    turns: int,
    *,
    budget: float = math.inf,
    around: Mapping[str, Around] | None = None,
) -> dict[str, list[float]]:
    """Time works in turns; see :func:`vaebench.system.timing.take_turns`.

    Args:
        works: what is timed, by name.
        device: what is waited for.
        turns: how often each, after one turn that warms up and does not count.
        budget: seconds after which no turn is begun, but for the first that counts.
        around: entered around a work, off the clock.

    Returns:
        The seconds of each work, turn by turn.
    """
    found: list[dict[str, float]] = []
    end = time.perf_counter() + budget
    for seconds in timing.take_turns(works, device, around):
        found.append(seconds)
        if len(found) > turns or (len(found) > 1 and time.perf_counter() > end):
            break
    return {name: [seconds[name] for seconds in found[1:]] for name in works}


def prepared(call: Callable[[], object], context: Around = contextlib.nullcontext) -> Around:
    """What enters a context and then makes a call, to be entered around a work."""

    @contextlib.contextmanager
    def around() -> Iterator[None]:
        with context():
            call()
            yield

    return around


def up_and_down(names: list[str], repeats: int) -> list[tuple[int, str]]:
    """Give (repeat, name) in an order of running that a drift does not favour: up, down, up."""
    return [
        (repeat, name)
        for repeat in range(repeats)
        for name in (names if repeat % 2 == 0 else names[::-1])
    ]


# Fresh processes.


class ChildError(RuntimeError):
    """A child process ended without an answer; it said why on standard error."""


class Child:
    """A function in a process of its own; a context manager. See :mod:`benchmarks.child`.

    Args:
        function: ``module:name`` in this folder, of a task that JSON can hold.
        task: what it is given; ``flush``: flush denormals in all of its threads.
        cache: folder in which its compiler keeps its results; None leaves the user's.
        limit: seconds after which it is ended, whatever it does.
    """

    def __init__(
        self,
        function: str,
        task: Mapping[str, Any],
        cache: str | None = None,
        limit: float | None = None,
    ) -> None:
        self.function = function
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.child", function, json.dumps(task)],
            cwd=ROOT,
            env={**os.environ, **({"TORCHINDUCTOR_CACHE_DIR": cache} if cache else {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.timer = threading.Timer(limit or 0, self.process.kill)
        self.timer.daemon = True
        if limit is not None:
            self.timer.start()

    def __enter__(self) -> "Child":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let it end."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()
        self.timer.cancel()

    def tell(self, word: str) -> None:
        """Send a line."""
        assert self.process.stdin
        print(word, file=self.process.stdin, flush=True)

    def answer(self) -> dict[str, Any]:
        """Wait for the next line of JSON.

        Raises:
            ChildError: the child ended without one.
        """
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            status = self.process.wait()
            raise ChildError(f"the process of {self.function} ended with status {status}")
        answer = json.loads(line)
        assert isinstance(answer, dict)
        return answer


def in_fresh_process(
    function: str, task: Mapping[str, Any], cache: str | None = None
) -> dict[str, Any]:
    """Run a function in a process of its own; what is measured owes nothing to what ran before."""
    with Child(function, task, cache) as child:
        return child.answer()


def peak_memory() -> int:
    """Bytes of host memory that this process has held at most."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else peak * 1024


def has_jax() -> bool:
    """Tell whether the extra ``peers`` is installed, without importing it."""
    return importlib.util.find_spec("jax") is not None


# Records.


def commit() -> str:
    """Name the commit that is measured; ``+`` marks code that differs from it."""
    measured = ["--", "vaebench", "benchmarks", ":!benchmarks/results"]
    name = _git("rev-parse", "--short=12", "HEAD")
    if name is None:
        return "unknown"
    return name if _git("diff", "--quiet", "HEAD", *measured) is not None else name + "+"


def _git(*words: str) -> str | None:
    try:
        done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def described(device: str, data: str, command: str) -> dict[str, Any]:
    """What every stored result says about itself."""
    return {
        "machine": fingerprint(resolve_device(device)),
        "commit": commit(),
        "command": command,
        "data": data,
    }


def store(path: Path, result: Mapping[str, Any]) -> None:
    """Write a result whole: a reader sees the file as it was, or as it is."""
    from vaebench.runs.folder import write_json  # not needed where starting up is timed

    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, result)


def say(text: str) -> None:
    """Tell whoever is watching how far a long measurement is."""
    print(text, file=sys.stderr, flush=True)
