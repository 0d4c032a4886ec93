"""Which of a test's cases run always, and which with ``--all`` alone."""

from collections.abc import Iterable
from typing import Any

import pytest


def first(count: int, cases: Iterable[Any]) -> list[Any]:
    """Mark all cases but the first few as slow: one of a kind is enough for the first tier."""
    return [
        case
        if i < count
        else pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.slow)
        for i, case in enumerate(cases)
    ]
