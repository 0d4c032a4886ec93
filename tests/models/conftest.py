"""Shared by the tests of models: the images of other people's."""

import pytest
import torch
from torch import Tensor

from tests.models.others import SHAPE


@pytest.fixture
def x() -> Tensor:
    return torch.rand(5, *SHAPE, generator=torch.Generator().manual_seed(0))
