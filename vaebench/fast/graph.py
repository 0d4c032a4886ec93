"""Many training steps in one CUDA graph: launched at once, they cost the host next to nothing.

A default step is some twenty to seventy kernels of a microsecond or two each, and launching one
takes longer than running it. A graph is recorded once, K steps unrolled, and replayed. What changes
from replay to replay is read from static buffers: K batches' indices and noise, copied in before
(two copies in K steps, and each step has a fixed slice; a counter on the device, which the
steps would have to gather by, would cost three small kernels in every step). The learning rate
and Adam's step are tensors on the device already, and the sums add up in one. A short last batch
is a graph of one step, and steps left over are replayed in shorter graphs.

How many steps a replay should hold is measured; so is whether graphs pay at all.
"""

import contextlib
import gc
import math
import time
import traceback
import warnings
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from vaebench.engine import Sums
from vaebench.fast.step import StepEngine
from vaebench.system.device import synchronize
from vaebench.system.timing import best_seconds

# Steps per replay that are tried, and beside them a whole epoch if recording it takes less than so
# many seconds: its nodes are tens of thousands.
STEPS, EPOCH_SECONDS = (1, 4, 16, 64), 1.0
# Of the race between them: steps timed in one go, turns, and seconds after which it ends.
TIMED, TURNS, BUDGET = 64, 6, 0.5
# Seconds for timing a step alone, as to compare precisions.
TRIAL = 0.1
# A longer graph is taken if it is faster than a shorter one by more than this.
WORTHWHILE = 1.02
# Steps run on the side stream before recording: libraries then have set up what they set up once.
WARM_UPS = 3

Work = Callable[[], None]


class CaptureError(RuntimeError):
    """The steps cannot be captured here; the message is one line: the reason."""


class Capture(Protocol):
    """Records work on a device so that it can be run again without the host's part in it."""

    def warm_up(self, work: Work) -> None:
        """Run the work where it will be recorded.

        Raises:
            CaptureError: it does what cannot be recorded.
        """

    def record(self, work: Work) -> Work:
        """Record the work, without running it, and give a function that replays it.

        Raises:
            CaptureError: it does what cannot be recorded, such as waiting for the device.
        """


class CudaCapture:
    """Records CUDA graphs. All share one pool of memory: one is replayed after the other.

    The products in them use the workspace that cuBLAS has for the stream they were recorded on,
    and from torch 2.12 on the end of any graph recorded there frees it: the others would write to
    memory that is no longer theirs. So all graphs of a capture end together, with it, and while it
    lives no other records on its stream.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = _free_stream(device)
        self.pool = torch.cuda.graph_pool_handle()
        self.graphs: list[torch.cuda.CUDAGraph] = []
        _captures.add(self)

    def warm_up(self, work: Work) -> None:
        """See :class:`Capture`. On the stream that records: workspaces belong to a stream.

        What waits for the device is found out here, where it does no harm: a recording that is
        broken off leaves torch's allocator believing that it goes on.

        Raises:
            CaptureError: the work waits for the device.
        """
        here = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(here)
        try:
            with torch.cuda.stream(self.stream), _no_waiting():
                work()
        except RuntimeError as error:
            if "synchronizing" not in str(error):
                raise
            _let_go(error)
            raise CaptureError("the step waits for the device, which cannot be captured") from error
        finally:
            here.wait_stream(self.stream)

    def record(self, work: Work) -> Work:
        """See :class:`Capture`."""
        graph = torch.cuda.CUDAGraph()
        self.graphs.append(graph)
        here = torch.cuda.current_stream(self.device)
        try:
            with (
                torch.cuda.device(self.device),
                _no_collection(),
                torch.cuda.graph(graph, pool=self.pool, stream=self.stream),
            ):
                work()
        except RuntimeError as error:
            _let_go(error)
            raise CaptureError(f"CUDA graph capture failed: {_reason(error)}") from error
        finally:
            # Where recording ends in an error, torch leaves its stream the current one.
            torch.cuda.set_stream(here)
        return graph.replay


# Those whose graphs may still be replayed.
_captures: "weakref.WeakSet[CudaCapture]" = weakref.WeakSet()


def _free_stream(device: torch.device) -> torch.cuda.Stream:
    """A stream that no living capture records on, if there is one: torch deals 32 out in turn."""
    taken = [capture.stream for capture in _captures]
    for _ in range(len(taken) + 1):
        stream = torch.cuda.Stream(device)
        if stream not in taken:
            break
    return stream


def capture_for(device: torch.device) -> Capture | None:
    """Give what records on this device; None where there is no such thing."""
    return CudaCapture(device) if device.type == "cuda" else None


@contextlib.contextmanager
def _no_waiting() -> Iterator[None]:
    """Make it an error that the host waits for the device, where torch can tell."""
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():  # torch warns that it cannot always tell
        warnings.simplefilter("ignore")
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Collect no garbage meanwhile: what frees memory of the device would end the recording."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _let_go(error: BaseException | None) -> None:
    """Free what the step held when it failed, while somebody still looks at the error.

    Parts of its backward pass, kept, would make the next step's run on the stream aside.
    """
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__


def _reason(error: BaseException) -> str:
    """One line: what went wrong first, not that the recording therefore could not end."""
    while isinstance(error.__context__, RuntimeError):
        error = error.__context__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


class Chunk:
    """Some steps of one batch size, recorded, and the buffers that a replay reads.

    Args:
        engine: whose step it is.
        totals: (2,) float64, the static sums that the steps add to.
        steps: how many.
        size: images per step.
        capture: what records.
    """

    def __init__(
        self, engine: StepEngine, totals: Tensor, steps: int, size: int, capture: Capture
    ) -> None:
        self.images = steps * size
        self.index = torch.arange(self.images, device=engine.device) % len(engine.images)
        self.noise = engine.no_noise(self.images)
        batches = list(zip(self.index.split(size), self.noise.split(size), strict=True))

        def work() -> None:
            for index, eps in batches:
                engine.step(engine.images, index, eps, totals)

        self.replay = capture.record(work)

    def run(self, order: Tensor, noise: Tensor) -> None:
        """Train on the images at ``order``, as many as the chunk has."""
        self.index.copy_(order)
        self.noise.copy_(noise)
        self.replay()


def step_seconds(plain: StepEngine, capture: Capture | None) -> float:
    """Shortest time of a full step of the engine, replayed where it can be; leave no trace."""
    steps = min(STEPS[-2], len(plain.images) // plain.batch_size)
    order = torch.arange(steps * plain.batch_size, device=plain.device)
    noise = plain.no_noise(len(order))
    with plain.unchanged(), _same_random(plain.device):
        plain.model.train()
        run: Work = partial(_discard, plain, order, noise)
        if capture:
            with contextlib.suppress(CaptureError):  # capturing what will be trained will say so
                for _ in range(WARM_UPS):
                    capture.warm_up(partial(_discard, plain, order[: plain.batch_size], noise))
                totals = torch.zeros(2, dtype=torch.float64, device=plain.device)
                chunk = Chunk(plain, totals, steps, plain.batch_size, capture)
                run = partial(chunk.run, order, noise)
        return best_seconds(run, plain.device, budget=TRIAL) / steps


class GraphEngine(StepEngine):
    """Runs the step of another engine, eager, compiled or hand-written, by replaying graphs.

    It trains the same model with the same optimiser, and the bits are the same.

    Args:
        plain: the engine whose step is recorded.
        capture: what records.
    """

    def __init__(self, plain: StepEngine, capture: Capture) -> None:
        super().__init__(
            plain.model,
            plain.images,
            plain.step,
            plain.optimizer,
            plain.batch_size,
            plain.latent_dim,
            plain.samples,
        )
        self.plain, self.capture = plain, capture
        self.totals = torch.zeros(2, dtype=torch.float64, device=self.device)
        self.chunks: dict[int, Chunk] = {}  # by their steps
        self.short: Chunk | None = None
        self.seconds: dict[int, float] = {}  # a step's, by the steps of a replay
        self.plain_seconds = math.inf

    def warm_up(self) -> None:
        """Record, and choose how many steps a replay holds; leave no trace.

        Raises:
            CaptureError: it cannot be recorded.
        """
        self.plain.warm_up()
        full, short = divmod(len(self.images), self.batch_size)
        if not full:
            raise CaptureError("there are fewer images than a batch has")
        with self.unchanged(), _same_random(self.device):
            self.model.train()
            for size in [self.batch_size, *[short] * (short > 0)]:
                for _ in range(WARM_UPS):
                    self.capture.warm_up(partial(self._step_once, size))
            if short:
                self.short = Chunk(self, self.totals, 1, short, self.capture)
            gc.collect()
            self._choose(full)

    def _step_once(self, size: int) -> None:
        index = torch.arange(size, device=self.device)
        self.step(self.images, index, self.no_noise(size), self.totals)

    def _choose(self, full: int) -> None:
        """Record chunks of several lengths, and keep those up to the fastest.

        A whole epoch, of ``full`` steps, is tried if each longer chunk so far was worth its length;
        but not of several samples: their noise is never handed over for a whole epoch.
        """
        taken = {k: self._record(k) for k in STEPS if k < full}
        if full <= STEPS[-1]:
            self._record(full)
        self._race()
        if full <= STEPS[-1] or self.samples > 1 or self.steps_at_once < STEPS[-1]:
            return
        a_step = max(0.0, (taken[STEPS[-1]] - taken[STEPS[-2]]) / (STEPS[-1] - STEPS[-2]))
        if a_step * full < EPOCH_SECONDS:
            self._record(full)
            self._race()

    def _record(self, steps: int) -> float:
        """Record a chunk; give the seconds that it took."""
        start = time.perf_counter()
        self.chunks[steps] = Chunk(self, self.totals, steps, self.batch_size, self.capture)
        return time.perf_counter() - start

    def _race(self) -> None:
        """Time all chunks and the plain engine in turns; forget chunks longer than the best."""
        runs: dict[int, tuple[Work, int]] = {
            steps: _repeated(chunk, steps) for steps, chunk in self.chunks.items()
        }
        steps = min(TIMED, max(self.chunks))
        order, noise = self.chunks[1].index.repeat(steps), self.chunks[1].noise
        order = order[: steps * self.batch_size]
        noise = noise.repeat(steps, *[1] * (noise.dim() - 1))
        runs[0] = (partial(_discard, self.plain, order, noise), steps)
        best = dict.fromkeys(runs, math.inf)
        end = time.perf_counter() + BUDGET
        for turn in range(TURNS + 1):
            for key, (run, count) in runs.items():
                synchronize(self.device)
                start = time.perf_counter()
                run()
                synchronize(self.device)
                if turn > 0:  # the first turn also moves the graph to the device
                    best[key] = min(best[key], (time.perf_counter() - start) / count)
            if turn > 0 and time.perf_counter() > end:
                break
        self.plain_seconds = best.pop(0)
        self.seconds = best
        least = min(best.values())
        chosen = min(k for k, s in best.items() if s <= WORTHWHILE * least)
        self.chunks = {k: chunk for k, chunk in self.chunks.items() if k <= chosen}

    @property
    def steps_at_once(self) -> int:
        """Steps of the longest replay."""
        return max(self.chunks, default=1)

    @property
    def pays(self) -> bool:
        """Whether replayed steps are faster than the plain engine's."""
        return self.seconds[self.steps_at_once] < self.plain_seconds

    @property
    def pieces(self) -> list[int]:
        """Numbers of images that, handed over one after the other, run every graph.

        All but that of a long epoch run twice: a replay must not depend on what the last one left.
        """
        short = [self.short.images] if self.short else []
        again = [c.images for steps, c in self.chunks.items() if steps <= STEPS[-1]]
        return [*(c.images for c in self.chunks.values()), *short, *again, *short]

    def note(self) -> str:
        """Say in a line what was measured."""
        tried = ", ".join(f"{s / self.plain_seconds:.2f} at {k}" for k, s in self.seconds.items())
        many = f"{self.steps_at_once} step{'s' * (self.steps_at_once > 1)} a replay"
        what = many if self.pays else "not used"
        return f"--graph: {what} (a step's time, of an un-captured one's: {tried} steps)"

    def epoch(self, order: Tensor, noise: Tensor) -> Sums:
        """Train on the images at ``order``; see :meth:`vaebench.engine.Engine.epoch`."""
        self.model.train()
        self.totals.zero_()
        done = 0
        while done < len(order):
            chunk = self._longest(len(order) - done)
            stop = min(done + (chunk.images if chunk else self.batch_size), len(order))
            if chunk:
                chunk.run(order[done:stop], noise[done:stop])
            else:
                self.step(self.images, order[done:stop], noise[done:stop], self.totals)
            done = stop
        totals = self.totals.clone()  # the next call begins by zeroing them
        return Sums(totals[0], totals[1], len(order))

    def _longest(self, images: int) -> Chunk | None:
        """The longest chunk within so many images; None for a batch of a size never recorded."""
        if images < self.batch_size:
            return self.short if self.short and self.short.images == images else None
        return self.chunks[max(k for k in self.chunks if k * self.batch_size <= images)]


def _repeated(chunk: Chunk, steps: int) -> tuple[Work, int]:
    """Work that replays a chunk up to TIMED steps, or once; and the steps it takes."""
    order, noise = chunk.index.clone(), chunk.noise.clone()
    times = max(1, TIMED // steps)

    def work() -> None:
        for _ in range(times):
            chunk.run(order, noise)

    return work, times * steps


def _discard(engine: StepEngine, order: Tensor, noise: Tensor) -> None:
    """Train, and give no sums."""
    engine.epoch(order, noise[: len(order)])


def _same_random(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """Put torch's own random numbers back at the end: a model may draw some."""
    return torch.random.fork_rng([device] if device.type == "cuda" else [])
