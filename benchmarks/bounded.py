"""Parts of a measurement that is bounded in time: what one leaves is on disk before the next.

A part adds rows as it goes, and asks before each piece of work whether there is time for it. A
piece that fails leaves the others; so does a part that breaks, or is cut off.
"""

import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.harness import say, store

T = TypeVar("T")


class Part:
    """What a part has found, and until which reading of ``time.perf_counter`` it may go on.

    ``changed`` is called after every row.
    """

    def __init__(self, until: float, changed: Callable[[], None] = lambda: None) -> None:
        self.until, self.changed = until, changed
        self.found: dict[str, Any] = {"seconds": 0.0, "error": None, "rows": [], "skipped": []}

    @property
    def left(self) -> float:
        """Seconds that it has left, at least 0."""
        return max(0.0, self.until - time.perf_counter())

    def add(self, row: dict[str, Any]) -> None:
        """Keep a row."""
        self.found["rows"].append(row)
        self.changed()

    def each(
        self,
        items: Iterable[T],
        seconds: float,
        work: Callable[[T], dict[str, Any]],
        name: Callable[[T], str] = str,
    ) -> None:
        """Keep the row that ``work`` makes of each item for which there are so many seconds left.

        What there is no time for is listed as left out; what fails has a row that says by what.
        """
        for item in items:
            if self.left < seconds:
                self.found["skipped"].append(name(item))
                continue
            try:
                self.add(work(item))
            except Exception as error:
                traceback.print_exception(error)
                self.add({"name": name(item), "refused": f"failed: {first_line(error)}"})


class Report:
    """A result that is written after every row.

    Args:
        path: the JSON file.
        about: what stands at its top.
        limit: seconds for all parts together.
    """

    def __init__(self, path: Path, about: dict[str, Any], limit: float) -> None:
        self.path, self.start, self.limit = path, time.perf_counter(), limit
        self.result: dict[str, Any] = {**about, "limit": limit, "complete": False, "parts": {}}

    def run(self, name: str, share: float, work: Callable[..., None], *given: Any) -> None:
        """Run a part for at most ``share`` of what is left of the time: ``work(part, *given)``."""
        begun = time.perf_counter()
        left = max(0.0, self.start + self.limit - begun)
        part = Part(begun + share * left, self.write)
        self.result["parts"][name] = part.found
        say(f"{name}: up to {part.left:.0f} s")
        try:
            work(part, *given)
        except Exception as error:  # whatever it is: the other parts may still run
            traceback.print_exception(error)
            part.found["error"] = first_line(error)
        part.found["seconds"] = time.perf_counter() - begun
        self.write()

    def write(self) -> None:
        """Write all there is."""
        store(self.path, self.result)


def first_line(error: BaseException) -> str:
    """An error's first line, or its kind if it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
