"""Whether compiling pays: compiled and eager steps take turns, and the shortest of each counts.

Large products leave a compiler little to save, and its own cost comes first. So the engine is
chosen by measurement, and the user is told after how many epochs the compiling is paid for.
"""

import math
import time
from typing import NamedTuple

import torch

from vaebench.fast.step import StepEngine
from vaebench.system.device import synchronize

ROUNDS, BUDGET = 8, 0.4  # seconds, if a step takes less than half of that
# Eager is taken if it is faster by more than two runs of the same code may differ.
MARGIN = 1.1


class Verdict(NamedTuple):
    """Seconds of a compiled and of an eager step, and how many steps an epoch has."""

    compiled: float
    eager: float
    steps: int

    @property
    def compiled_wins(self) -> bool:
        """Whether to train compiled."""
        return self.compiled <= MARGIN * self.eager

    def note(self, seconds: float) -> str:
        """Say it in a line; ``seconds`` is what compiling took."""
        if not self.compiled_wins:
            return (
                f"--compile: a compiled step took {self.compiled / self.eager:.2f}x an eager "
                "step's time here; trained eagerly"
            )
        saved = (self.eager - self.compiled) * self.steps
        after = f"after {seconds / saved:.1f} epochs" if saved > 0 else "never"
        return (
            f"--compile: took {seconds:.1f} s, saves {max(saved, 0):.2f} s an epoch (a step takes "
            f"{self.compiled / self.eager:.2f}x an eager one's time): it pays {after}"
        )


def race(compiled: StepEngine, eager: StepEngine) -> Verdict:
    """Time both engines' steps, which train one model; leave no trace in it."""
    size = min(compiled.batch_size, len(compiled.images))
    order = torch.arange(size, device=compiled.device)
    noise = compiled.no_noise(size)
    best = {compiled: math.inf, eager: math.inf}
    with compiled.unchanged():
        end = time.perf_counter() + BUDGET
        for turn in range(ROUNDS + 1):
            for engine in best:
                synchronize(engine.device)
                start = time.perf_counter()
                engine.epoch(order, noise)
                synchronize(engine.device)
                if turn > 0 or time.perf_counter() - start > BUDGET / 2:
                    best[engine] = min(best[engine], time.perf_counter() - start)
            if math.inf not in best.values() and time.perf_counter() > end:
                break
    steps = math.ceil(len(compiled.images) / compiled.batch_size)
    return Verdict(best[compiled], best[eager], steps)
