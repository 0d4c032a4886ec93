"""Shared by the tests of the fast path: a race that the candidate wins."""

from collections.abc import Iterator

import pytest

from vaebench.fast import admit, products
from vaebench.fast.products import Choice, Shape
from vaebench.fast.products.layers import Manner


@pytest.fixture
def no_race(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the candidate win wherever it is tried: on a busy machine it may not."""
    monkeypatch.setattr(admit.Verdict, "wins", property(lambda _: True))


@pytest.fixture(scope="module")
def kernels_win() -> Iterator[None]:
    """Let native convolutions, and every candidate, win, whatever the machine does meanwhile."""

    def won(shape: Shape) -> Choice:
        return Choice(Manner(contiguous=shape.contiguous), {"library": 2.0, "native": 1.0})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(products, "choose", won)
        patch.setattr(admit.Verdict, "wins", property(lambda _: True))
        yield
