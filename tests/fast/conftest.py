"""Shared by the tests of the fast path: a race that the candidate wins."""

import pytest

from vaebench.fast import admit


@pytest.fixture
def no_race(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the candidate win wherever it is tried: on a busy machine it may not."""
    monkeypatch.setattr(admit.Verdict, "wins", property(lambda _: True))
