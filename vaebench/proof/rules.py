"""The levels of equality: what two trainings may differ by, and how that is told.

A rule gives what was compared, the difference, and the most that is let pass. Gradients are judged
beside float64: compiled code rounds in another order than eager code, and is often nearer the
truth, so it may differ from eager as long as it errs no more than twice as much.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

# What is let pass beside twice (L2: three times) what eager errs: of the size of gradients, as
# whose root mean square; of a single one's own size, and of the largest that any parameter has.
GRAD = {"L1": (1e-4, 1e-6), "L2": (1e-2, 1e-4)}
# Relative: of the ELBO, and of the loss in float64.
ELBO = {"L0": 1e-10, "L1": 1e-5, "L2": 2e-3, "L3": 1e-3}
KL = 1e-2  # relative, of L3
MOVED = 2e-3  # of what a step changed of a parameter, beside twice what eager errs
LATER = 2e-2  # the same after several steps
COSINE = 0.01  # one minus it, between gradients of L2
STEPS = 50  # of L3, at least
# Gradients as small as so many of eager's own errors have no sure sign, and Adam steps by the sign.
UNSURE = 8
# Relative: the least that float32 is taken to err by, where eager happens to err less.
LEAST = 2.0**-20

# What was compared, the difference, the bar.
Found = tuple[str, float, float]


class Outcome(NamedTuple):
    """What a step left: ELBO or loss, gradients and parameters in the model's order, buffers."""

    value: float
    grads: Sequence[Tensor | None]
    params: Sequence[Tensor]
    buffers: Mapping[str, Tensor]


class Moves(NamedTuple):
    """Names of the parameters, and what they were before the step."""

    names: Sequence[str]
    before: Sequence[Tensor]


def rmse(a: Tensor, truth: Tensor) -> float:
    """Root of the mean squared difference, in float64."""
    difference = a.detach().double() - truth.detach().double()
    return float(difference.square().mean().sqrt()) if a.numel() else 0.0


def _rms(t: Tensor) -> float:
    return float(t.detach().double().square().mean().sqrt()) if t.numel() else 0.0


def _largest(t: Tensor) -> float:
    return float(t.detach().abs().max()) if t.numel() else 0.0


def _largest_of(tensors: Sequence[Tensor | None]) -> float:
    """The largest root mean square of some."""
    return max((_rms(t) for t in tensors if t is not None), default=0.0)


def _beside(level: str, grad: Tensor, largest: float) -> float:
    """What a gradient may err by beside what eager's does."""
    of_own, of_largest = GRAD[level]
    return of_own * _rms(grad) + of_largest * largest


def exactly(names: Sequence[str], got: Outcome, want: Outcome) -> Iterator[Found]:
    """L0: two computations in float64."""
    yield "elbo", abs(got.value - want.value), ELBO["L0"] * abs(want.value)
    size = math.sqrt(sum(float(g.square().sum()) for g in want.grads if g is not None))
    for name, a, b in zip(names, got.grads, want.grads, strict=True):
        if a is not None and b is not None:
            # A bias before batch norm has no gradient but the rounding of all others.
            bar = ELBO["L0"] * float(b.norm()) + 1e-3 * ELBO["L0"] * size
            yield f"grad {name}", float((a - b).norm()), bar


def one_step(
    moves: Moves, got: Outcome, plains: Sequence[Outcome], truth: Outcome, value: str = "elbo"
) -> Iterator[Found]:
    """L1: a float32 step.

    Args:
        moves: the parameters before it.
        got: what is judged.
        plains: eager float32's, in each layout of memory that eager code may have.
        truth: eager float64's.
        value: what the outcomes' value is called.
    """
    yield value, abs(got.value - plains[0].value), ELBO["L1"] * abs(plains[0].value)
    largest = _largest_of(truth.grads)
    for i, name in enumerate(moves.names):
        true, grads = truth.grads[i], [plain.grads[i] for plain in plains]
        param, before = truth.params[i], moves.before[i]
        moved = param.double() - before.double()
        bar = 2 * max(rmse(plain.params[i], param) for plain in plains)
        bar += MOVED * _rms(moved)
        mine = got.grads[i]
        if true is not None and mine is not None:
            erred = max([rmse(g, true) for g in grads if g is not None] + [LEAST * _rms(true)])
            yield f"grad {name}", rmse(mine, true), 2 * erred + _beside("L1", true, largest)
            unsure = (true != 0) & (true.abs() <= UNSURE * erred)
            bar += 2 * _largest(moved) * math.sqrt(float(unsure.double().mean()))
        yield f"param {name}", rmse(got.params[i], param), bar
    yield from _buffers(got, plains, truth)


def _buffers(got: Outcome, plains: Sequence[Outcome], truth: Outcome) -> Iterator[Found]:
    for name, true in truth.buffers.items():
        mine = got.buffers[name]
        if not true.is_floating_point():
            yield f"buffer {name}", float((mine != true).sum()), 0.0
            continue
        errors = [_largest(plain.buffers[name].double() - true) for plain in plains]
        bar = 2 * max(errors) + 1e-6 + 1e-5 * _largest(true)
        yield f"buffer {name}", _largest(mine.double() - true), bar


def one_rounded_step(
    names: Sequence[str], got: Outcome, plain: Outcome, truth: Outcome
) -> Iterator[Found]:
    """L2: a step whose products have factors of few bits, beside eager autocast's and float64's."""
    size, erred = abs(truth.value), abs(plain.value - truth.value)
    largest = _largest_of(truth.grads)
    bar = min(ELBO["L2"] * size, 3 * erred + ELBO["L2"] / 10 * size)
    yield "elbo", abs(got.value - truth.value), bar
    for i, name in enumerate(names):
        mine, plains, true = got.grads[i], plain.grads[i], truth.grads[i]
        if mine is None or plains is None or true is None:
            continue
        bar = 3 * rmse(plains, true) + _beside("L2", true, largest)
        yield f"grad {name}", rmse(mine, true), bar
        # A bias before batch norm has a gradient of zero, and rounding has any direction.
        if _rms(true) > 1e-6 * largest:
            bar = max(COSINE, 2 * turned(plains, true))
            yield f"direction of grad {name}", turned(mine, true), bar


def turned(a: Tensor, b: Tensor) -> float:
    """One minus the cosine between them."""
    return 1 - float(F.cosine_similarity(a.double().flatten(), b.double().flatten(), dim=0))


def trajectory(epoch: int, got: tuple[float, float], want: tuple[float, float]) -> Iterator[Found]:
    """L3: (recon, kl) of an epoch, summed over images, beside eager float32's."""
    elbo = want[0] - want[1]
    off = [abs(a - b) for a, b in zip(got, want, strict=True)]
    where = f"of epoch {epoch}"
    yield f"elbo {where}", abs(got[0] - got[1] - elbo), ELBO["L3"] * abs(elbo)
    yield f"recon {where}", off[0], ELBO["L3"] * abs(want[0])
    yield f"kl {where}", off[1], KL * abs(want[1]) + ELBO["L3"] / 10 * abs(elbo)


def params_after(
    steps: int,
    moves: Moves,
    got: Sequence[Tensor],
    plain: Sequence[Tensor],
    truth: Sequence[Tensor],
) -> Iterator[Found]:
    """The parameters after several steps, beside float64's."""
    each = zip(moves.names, moves.before, got, plain, truth, strict=True)
    for name, before, mine, eager, true in each:
        bar = 4 * rmse(eager, true) + LATER * _rms(true.double() - before.double())
        yield f"param {name} after {steps} steps", rmse(mine, true), bar


def losses(got: Sequence[float], want: Sequence[float], *, level: str) -> Iterator[Found]:
    """The loss of each step of a trajectory, beside eager's."""
    for i, (a, b) in enumerate(zip(got, want, strict=True)):
        yield f"loss of step {i + 1}", abs(a - b), ELBO[level] * abs(b)


def float64(t: Tensor) -> Tensor:
    """Floating numbers as float64, others as they are."""
    return t.double() if t.is_floating_point() else t


def copies(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Their values, apart."""
    return [t.detach().clone() for t in tensors]


def values(buffers: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Their values by name, apart."""
    with torch.no_grad():
        return {name: t.detach().clone() for name, t in buffers.items()}
