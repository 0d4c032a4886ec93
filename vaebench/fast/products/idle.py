"""Taps of a convolution that meet nothing but padding, left out of updates.

On images of a few pixels most taps of a kernel are such: five out of nine where 2x2 pixels become
one. Their gradient is zero in every step, and so is all that Adam remembers of them, so that an
update changes nothing there; yet it reads and writes that memory as any other. Whether the gradient
really is zero is looked at in each step, which takes a fifth of what is saved: a weight may be used
elsewhere, too.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from torch import Tensor

from vaebench.fast.layout import in_memory_order
from vaebench.fast.optimizer import OptimizerState, Update, rule_of, updates_by
from vaebench.fast.products.choice import Shape
from vaebench.fast.products.operators import all_zero

Range = tuple[int, int]  # from, to


class IdleTaps(NamedTuple):
    """A weight and what is remembered of it, and where its live and its idle taps lie in memory."""

    tensors: list[Tensor]
    live: list[Range]
    idle: list[Range]

    @classmethod
    def of(cls, tensors: list[Tensor], shape: Shape) -> "IdleTaps | None":
        """Those of a layer's weight (small, large, height, width), if it has any."""
        is_live = live_taps(shape)
        if all(is_live):
            return None
        size = tensors[0].shape[0] * tensors[0].shape[1]
        ranges = [
            [(size * first, size * past) for first, past in _runs(is_live, wanted)]
            for wanted in (True, False)
        ]
        return cls(tensors, *ranges)

    def at_rest(self) -> bool:
        """Whether nothing is remembered of the idle taps."""
        return all(_zero(t, self.idle) for t in in_memory_order(self.tensors[1:]))


class WithoutIdle:
    """Updates that leave idle taps out; entered while weights lie tap by tap.

    Args:
        optimizer: whose rule it is.
        weights: what may be left out.
    """

    def __init__(self, optimizer: OptimizerState, weights: Sequence[IdleTaps]) -> None:
        self.rule = rule_of(optimizer.settings)
        self.weights = list(weights)
        self.resting: dict[int, IdleTaps] = {}  # by their weight's address

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        """Leave them out in the block."""
        at_rest = [w for w in self.weights if w.at_rest()]
        self.resting = {w.tensors[0].data_ptr(): w for w in at_rest}
        with updates_by(self.update):
            yield

    def update(self, update: Update) -> None:
        """Update as the rule does; a weight that a gradient reaches there is whole from then on."""
        params, grads, (m, v) = update.params, update.grads, update.kinds
        parts: tuple[list[Tensor], ...] = ([], [], [], [], [])
        for tensors in zip(params, grads, m, v, update.steps, strict=True):
            *shaped, step = tensors
            weight = self.resting.get(shaped[0].data_ptr())
            if weight and not _zero(shaped[1], weight.idle):
                del self.resting[shaped[0].data_ptr()]
                weight = None
            for place in weight.live if weight else [None]:
                for part, tensor in zip(parts, shaped, strict=False):
                    part.append(tensor if place is None else tensor.view(-1)[slice(*place)])
                parts[-1].append(step)
        params, grads, m, v, steps = parts
        self.rule(Update(params, grads, [*m, *v], steps, update.lr, update.numbers))


def live_taps(shape: Shape) -> list[bool]:
    """Whether each tap meets a pixel anywhere, row by row of the kernel."""
    axes = []
    for axis in range(2):
        kernel, stride, padding = (
            pair[axis] for pair in (shape.kernel, shape.stride, shape.padding)
        )
        here = shape.x[2 + axis]
        if shape.transposed:
            here = (here - 1) * stride - 2 * padding + kernel + shape.output_padding[axis]
        count = (here + 2 * padding - kernel) // stride + 1  # of the small image
        met = [
            range(tap - padding, tap - padding + stride * count, stride) for tap in range(kernel)
        ]
        axes.append([any(0 <= pixel < here for pixel in pixels) for pixels in met])
    return [row and column for row in axes[0] for column in axes[1]]


def _runs(flags: list[bool], wanted: bool) -> list[Range]:
    """Where flags are as wanted, neighbours together."""
    runs: list[Range] = []
    for place, flag in enumerate(flags):
        if flag is not wanted:
            continue
        if runs and runs[-1][1] == place:
            runs[-1] = (runs[-1][0], place + 1)
        else:
            runs.append((place, place + 1))
    return runs


def _zero(tensor: Tensor, ranges: list[Range]) -> bool:
    """Whether a contiguous tensor is zero there."""
    flat = tensor.view(-1)
    return all(all_zero(flat[first:past]) for first, past in ranges)
