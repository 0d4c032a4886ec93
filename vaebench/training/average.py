"""An exponential moving average of a model's weights, to be evaluated and kept in their place."""

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn


class Average:
    """The average over steps, each of which counts ``decay`` times the one after it.

    It is not drawn to the initial weights: as in Adam (arXiv 1412.6980, section 3), what a sum
    that began at zero lacks is made up for. Buffers of floating numbers, such as batch norm's
    statistics, are averaged too.

    Args:
        model: whose weights; layers may be replaced while it trains, and are averaged from then on.
        decay: in (0, 1).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model, self.decay = model, decay
        self.values: dict[str, Tensor] = {}

    @torch.no_grad()
    def add(self, steps: int, before: int) -> None:
        """Take in the weights after ``steps`` steps more than the ``before`` of all earlier ones.

        Those in between are taken to be the same.
        """
        share = (1 - self.decay**steps) / (1 - self.decay ** (before + steps))
        for name, tensor in _floating(self.model).items():
            value = self.values.get(name)
            if value is None or value.shape != tensor.shape:
                self.values[name] = tensor.detach().clone()
            else:
                value.lerp_(tensor.detach(), share)

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """Let the model have the average in the block."""
        own = {name: tensor.detach().clone() for name, tensor in _floating(self.model).items()}
        self.show()
        try:
            yield
        finally:
            _copy(own, self.model)

    def show(self) -> None:
        """Give the model the average for good."""
        _copy(self.values, self.model)

    def load(self, values: Mapping[str, Tensor]) -> None:
        """Go on from these; what the model has no more is left out."""
        own = _floating(self.model)
        known = {name: t for name, t in values.items() if name in own}
        self.values = {name: t.to(own[name].device, copy=True) for name, t in known.items()}


def _floating(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers of floating numbers, by name, as they are at the moment."""
    both = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {name: t for name, t in both.items() if t.is_floating_point() or t.is_complex()}


@torch.no_grad()
def _copy(values: Mapping[str, Tensor], model: nn.Module) -> None:
    for name, tensor in _floating(model).items():
        if name in values:
            tensor.copy_(values[name])
