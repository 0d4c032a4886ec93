"""When the numbers go wrong: in which step, and back to where they were right."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from vaebench.engine import Engine


class Snapshot:
    """A copy of model and optimiser as an epoch begins: half a millisecond for the default model.

    Args:
        model: the model that ``engine`` trains.
        engine: any engine.
    """

    def __init__(self, model: nn.Module, engine: Engine) -> None:
        self.engine = engine
        self.tensors = [*model.parameters(), *model.buffers()]
        self.copies = [t.detach().clone() for t in self.tensors]
        self.engine_state = {name: t.clone() for name, t in engine.state().items()}

    @torch.no_grad()
    def restore(self) -> None:
        """Go back to it, in place."""
        for tensor, copy in zip(self.tensors, self.copies, strict=True):
            tensor.copy_(copy)
        self.engine.load_state(self.engine_state)

    def first_bad_step(self, batches: Iterable[tuple[Tensor, Tensor]]) -> int | None:
        """Train the epoch once more, a batch at a time, up to a sum that is not finite.

        Afterwards model and optimiser are as they were when the epoch began.

        Returns:
            The step, from 1; or None if it does not happen again, as on a device whose sums are
            not the same twice.
        """
        self.restore()
        found = None
        for step, (order, noise) in enumerate(batches, 1):
            sums = self.engine.epoch(order, noise)
            if not math.isfinite(float(sums.recon) - float(sums.kl)):
                found = step
                break
        self.restore()
        return found


@torch.no_grad()
def is_finite(model: nn.Module) -> bool:
    """Whether every parameter is; waits for the device once."""
    return bool(torch.stack([p.isfinite().all() for p in model.parameters()]).all())
