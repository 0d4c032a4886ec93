"""What does a trained model's use cost: encode, decode, sample, evaluate?

Eager float32, a thousand images at a time; ``evaluate`` runs over the whole test set, one z each.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from benchmarks.conftest import Measure, Size
from benchmarks.harness import DEFAULT, new_model
from vaebench import Dataset, evaluate
from vaebench.data.images import to_unit
from vaebench.models.networks import Network

COUNT = 1000


def uses(model: Network, data: Dataset, device: torch.device) -> dict[str, Callable[[], Any]]:
    """Give each use as a function of nothing."""
    x = to_unit(data.test.images[:COUNT].to(device))
    latent = DEFAULT.network.latent_dim
    z = torch.randn(len(x), latent, generator=torch.Generator().manual_seed(3)).to(device)
    test_images = data.test.images.to(device)
    return {
        "encode": lambda: model.encode(x),
        "decode": lambda: model.pixels(model.decode(z)),
        "sample": lambda: model.sample(len(x)),
        "evaluate": lambda: evaluate(model, test_images),
    }


@pytest.mark.benchmark(group="inference")
@pytest.mark.parametrize("use", ["encode", "decode", "sample", "evaluate"])
def test_inference(
    measure: Measure, device: torch.device, use: str, data: Dataset, size: Size
) -> None:
    run = uses(new_model().eval().to(device), data, device)[use]
    images = len(data.test) if use == "evaluate" else min(COUNT, len(data.test))
    with torch.no_grad():
        run()
        measure(run, rounds=3 * size.rounds, images=images, use=use, device=device.type)
