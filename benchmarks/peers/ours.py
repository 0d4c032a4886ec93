"""vaebench itself, on a rung of the ladder; without one, as plain ``--compile`` runs it."""

import torch
from torch import Tensor

from benchmarks.harness import elbo, new_model, numbers, pixels, restorer_of
from benchmarks.rungs import build_rung, find, top
from vaebench.config import recipe


class Ours:
    """See :class:`benchmarks.peers.Contender`."""

    def __init__(
        self, images: Tensor, count: int, device: torch.device, rung: str, workload: str
    ) -> None:
        config = recipe(workload)
        model = new_model(config=config, image_shape=tuple(images.shape[1:]))
        images, chosen = pixels(images, config), find(rung, device.type)
        self.engine, _, _ = build_rung(chosen, model, images, device, config)
        self.restore = restorer_of(self.engine)
        self.order, self.noise = numbers(len(images), count, device, config)

    def epoch(self) -> float:
        """Train."""
        return elbo(self.engine.epoch(self.order, self.noise))


def make(
    images: Tensor,
    count: int,
    device: torch.device,
    rung: str | None = None,
    workload: str = "mlp",
) -> Ours:
    """Build it."""
    return Ours(images, count, device, rung or top(device.type), workload)
