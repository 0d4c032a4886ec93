"""Does an engine do here what the plain one does? Tried before it is used.

A graph or a hand-written kernel may be right on the machines it was tested on and wrong on the one
at hand: another driver, another library, a model that keeps state where no graph sees it. So both
engines train the same few batches from the same state, and what they leave must agree, but for
rounding. How much that may be is measured: as far as the plain engine's own results move when the
images of each batch stand in the opposite order, which changes nothing but the rounding of sums.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from vaebench.fast.step import StepEngine

# Rounding of another kind may weigh more than that of another order, by so much.
FACTOR = 8.0
# Relative to a tensor's own size.
ROUNDING = 1e-6


class Tolerance(NamedTuple):
    """What is let pass where order happens to make no difference.

    ``changes``: a share of what training changed. ``sums``: relative, of the sums.
    """

    changes: float
    sums: float


FLOAT32 = Tolerance(1e-3, 1e-5)
# Where both engines round factors to 10 bits, but not alike. Small gradients, such as a bias has,
# then differ in sign, and Adam makes whole steps of them: 0.3 of a change was seen. What is plainly
# wrong, as a tensor left as it was, is off by 1 of its change or more.
ROUNDED = Tolerance(0.5, 5e-3)


class Outcome(NamedTuple):
    """Recon and kl summed, and every tensor that training changes."""

    sums: tuple[float, float]
    tensors: list[Tensor]


def disagreement(
    engine: StepEngine, plain: StepEngine, pieces: list[int], tolerance: Tolerance = FLOAT32
) -> str | None:
    """Train with both, leaving no trace; None if they agree, else in words how they differ.

    Args:
        engine: what is tried.
        plain: trains the same model with the same optimiser, and is trusted.
        pieces: numbers of images to hand over, one call each.
        tolerance: larger where products are rounded more than float32's.
    """
    order, noise = _numbers(plain, sum(pieces))
    got = _outcome(engine, order, noise, pieces)
    want = _outcome(plain, order, noise, pieces)
    same = all(torch.equal(a, b) for a, b in zip(got.tensors, want.tensors, strict=True))
    if same and _near(got.sums, want.sums, (0, 0), tolerance.sums):
        return None
    if not all(map(math.isfinite, want.sums)):
        return None  # it diverges at once, which training will tell; the trial can tell nothing
    other = _outcome(plain, *_reversed(order, noise, pieces, plain.batch_size), pieces)
    spread = [abs(a - b) for a, b in zip(want.sums, other.sums, strict=True)]
    if not _near(got.sums, want.sums, spread, tolerance.sums):
        return f"recon and kl add up to {_shown(got.sums)}, not {_shown(want.sums)}"
    start = [t.detach() for t in _changed(plain)]
    for mine, right, moved, before in zip(
        got.tensors, want.tensors, other.tensors, start, strict=True
    ):
        allowed = FACTOR * _norm(right - moved) + tolerance.changes * _norm(right - before)
        error = _norm(mine - right)
        if not error <= allowed + ROUNDING * _norm(right):  # not a number: neither
            return (
                f"a tensor of shape {tuple(right.shape)} is off by {error:.2g}, where training "
                f"changed it by {_norm(right - before):.2g}"
            )
    return None


def _numbers(engine: StepEngine, images: int) -> tuple[Tensor, Tensor]:
    """An order of so many images, random, and their noise."""
    generator = torch.Generator(engine.device).manual_seed(0)
    n = len(engine.images)
    order = torch.cat(
        [
            torch.randperm(n, generator=generator, device=engine.device)
            for _ in range(-(-images // n))
        ]
    )
    return order[:images], engine.no_noise(images).normal_(generator=generator)


def _outcome(engine: StepEngine, order: Tensor, noise: Tensor, pieces: list[int]) -> Outcome:
    devices = [engine.device] if engine.device.type == "cuda" else []
    # A model's own random numbers (dropout) are the same in every trial.
    with engine.unchanged(), torch.random.fork_rng(devices):
        found = [
            engine.epoch(*part)
            for part in zip(order.split(pieces), noise.split(pieces), strict=True)
        ]
        recon = sum(float(sums.recon) for sums in found)
        kl = sum(float(sums.kl) for sums in found)
        return Outcome((recon, kl), [t.detach().clone() for t in _changed(engine)])


def _changed(engine: StepEngine) -> list[Tensor]:
    return [*engine.optimizer.tensors(), *engine.model.buffers()]


def _reversed(
    order: Tensor, noise: Tensor, pieces: list[int], batch_size: int
) -> tuple[Tensor, Tensor]:
    """The same batches, each with its images the other way round."""
    both = []
    for numbers in (order, noise):
        batches = [b for piece in numbers.split(pieces) for b in piece.split(batch_size)]
        both.append(torch.cat([batch.flip(0) for batch in batches]))
    return both[0], both[1]


def _near(
    got: tuple[float, float], want: tuple[float, float], spread: Sequence[float], share: float
) -> bool:
    return all(
        abs(a - b) <= FACTOR * s + share * abs(b) and math.isfinite(a)
        for a, b, s in zip(got, want, spread, strict=True)
    )


def _norm(t: Tensor) -> float:
    return float(t.detach().double().norm())


def _shown(sums: tuple[float, float]) -> str:
    return f"{sums[0]:.6g} and {sums[1]:.6g}"
