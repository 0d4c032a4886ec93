"""Work on a GPU, recorded once and replayed: CUDA graphs, and what can be timed of them."""

import contextlib
import traceback
import warnings
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from vaebench.fast.admit import Verdict
from vaebench.fast.step import StepEngine
from vaebench.system.garbage import no_collection
from vaebench.system.timing import best_seconds

# Steps of one replay, where a step is timed as to compare precisions, and seconds for it.
TIMED_STEPS, TIMED_SECONDS = 16, 0.1
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
                no_collection(),
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
    steps = min(TIMED_STEPS, len(plain.images) // plain.batch_size)
    order = torch.arange(steps * plain.batch_size, device=plain.device)
    noise = plain.no_noise(len(order))
    with plain.unchanged(), plain.training():
        run: Work = partial(discard, plain, order, noise)
        if capture:
            with contextlib.suppress(CaptureError):  # capturing what will be trained will say so
                for _ in range(WARM_UPS):
                    capture.warm_up(partial(discard, plain, order[: plain.batch_size], noise))
                totals = torch.zeros(2, dtype=torch.float64, device=plain.device)
                chunk = Chunk(plain, totals, steps, plain.batch_size, capture)
                run = partial(chunk.run, order, noise)
        return best_seconds(run, plain.device, budget=TIMED_SECONDS) / steps


def race_replayed(device: torch.device) -> Callable[[StepEngine, StepEngine], Verdict]:
    """Give a race of steps as they will be run: replayed, where they can be recorded."""
    capture = capture_for(device)

    def race(candidate: StepEngine, other: StepEngine) -> Verdict:
        steps = -(-len(candidate.images) // candidate.batch_size)
        first, second = (step_seconds(engine, capture) for engine in (candidate, other))
        return Verdict(first, second, steps)

    return race


def discard(engine: StepEngine, order: Tensor, noise: Tensor) -> None:
    """Train, and give no sums."""
    engine.epoch(order, noise[: len(order)])
