"""Shared by the tests of the fast path: convolutions that win, kernels without squares."""

from collections.abc import Iterator
from typing import Any

import pytest

from vaebench.fast import products
from vaebench.fast.chain import kernel
from vaebench.fast.products import Choice, Shape, operators
from vaebench.fast.products.layers import Manner
from vaebench.system import toolchain


@pytest.fixture(scope="module")
def kernels_win() -> Iterator[None]:
    """Let native convolutions win, whatever the machine does meanwhile."""

    def won(shape: Shape) -> Choice:
        return Choice(Manner(contiguous=shape.contiguous), {"library": 2.0, "native": 1.0})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(products, "choose", won)
        yield


@pytest.fixture
def without_squares(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Build kernels as for a processor that multiplies pairs of bfloat16, not squares of them."""
    monkeypatch.setattr(toolchain, "FLAGS", [*toolchain.FLAGS, "-U__AMX_BF16__"])
    plans: list[Any] = [operators._work, operators._grad_work]  # they live in the library
    caches = [toolchain.load_kernels, kernel.kernel, operators._kernel, *plans]
    for each in caches:
        each.cache_clear()
    yield
    for each in caches:
        each.cache_clear()
