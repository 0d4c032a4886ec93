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

import gc
import math
import time
from functools import partial

import torch
from torch import Tensor

from vaebench.engine import Sums
from vaebench.fast.capture import WARM_UPS, Capture, CaptureError, Chunk, Work, capture_for, discard
from vaebench.fast.draft import Draft, Offer
from vaebench.fast.step import StepEngine
from vaebench.system.timing import race

# Steps per replay that are tried, and beside them a whole epoch if recording it takes less than so
# many seconds: its nodes are tens of thousands.
STEPS, EPOCH_SECONDS = (1, 4, 16, 64), 1.0
# Of the race between them: steps timed in one go, turns, and seconds after which it ends.
TIMED, TURNS, BUDGET = 64, 6, 0.5
# A longer graph is taken if it is faster than a shorter one by more than this.
WORTHWHILE = 1.02


def offer(draft: Draft) -> Offer | str:
    """Offer the steps of the engine below, recorded and replayed many at once."""
    capture = capture_for(draft.problem.device)
    alone = draft.group is None and draft.problem.resident and draft.problem.steady
    if capture is None or not alone:
        return ""
    if draft.problem.given is not None:
        return "a caller's optimiser may do what a graph cannot repeat; trained step by step"
    if told := draft.problem.told:
        return f"a step does more than compute ({told[0]}), which no graph repeats; left out"
    replayed = GraphEngine(draft.engine, capture)
    try:
        replayed.warm_up()
    except CaptureError as error:
        return f"{error}; trained without"
    draft.notes.append(replayed.note())
    if not replayed.pays:
        return ""
    actual = {"graph": replayed.steps_at_once}
    return Offer(replayed, draft.plan, actual, whole=draft.whole, race=None)


class GraphEngine(StepEngine):
    """Runs the step of another engine, eager, compiled or hand-written, by replaying graphs.

    It trains the same model with the same optimiser, and the bits are the same.

    Args:
        plain: the engine whose step is recorded.
        capture: what records.
    """

    holds_tensors = True

    def __init__(self, plain: StepEngine, capture: Capture) -> None:
        super().__init__(plain.problem, plain.step, plain.optimizer, plain.contexts)
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
        with self.unchanged(), self.training():
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
        runs[0] = (partial(discard, self.plain, order, noise), steps)
        calls = {key: run for key, (run, _) in runs.items()}
        seconds = race(calls, self.device, turns=TURNS, budget=BUDGET)
        best = {key: took / runs[key][1] for key, took in seconds.items()}
        self.plain_seconds = best.pop(0)
        self.seconds = best
        shortest = min(best.values())
        chosen = min(k for k, s in best.items() if s <= WORTHWHILE * shortest)
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
    def trial_sizes(self) -> list[int]:
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

    def run(self, order: Tensor, noise: Tensor) -> Sums:
        """Train on the images at ``order``; see :meth:`vaebench.engine.Engine.epoch`."""
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
