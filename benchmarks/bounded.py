"""Parts of a measurement that is bounded in time: what one leaves is on disk before the next.

A part appends rows as it goes, and asks before each piece of work whether there is time for it. One
that fails, or is cut off, leaves what it had; the others run all the same.
"""

import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

Row = dict[str, Any]


class Part:
    """What a part has found, and until when it may go on.

    Args:
        name: of the part.
        until: a reading of ``time.perf_counter``.
        changed: called after every row.
    """

    def __init__(self, name: str, until: float, changed: Callable[[], None]) -> None:
        self.name, self.until, self.changed = name, until, changed
        self.found: dict[str, Any] = {"seconds": 0.0, "error": None, "rows": [], "skipped": []}

    @property
    def left(self) -> float:
        """Seconds that it has left, at least 0."""
        return max(0.0, self.until - time.perf_counter())

    def has(self, seconds: float, what: str) -> bool:
        """Whether there are so many seconds left; if not, note what is left out for it."""
        if self.left >= seconds:
            return True
        self.found["skipped"].append(what)
        return False

    def add(self, row: Row) -> None:
        """Keep a row."""
        self.found["rows"].append(row)
        self.changed()

    def fail(self, what: str, error: Exception) -> None:
        """Keep what one piece of work failed by; the part goes on."""
        traceback.print_exception(error)
        self.add({"name": what, "refused": f"failed: {said(error)}"})


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

    def run(self, name: str, share: float, work: Callable[[Part], None]) -> None:
        """Run a part for at most ``share`` of what is left of the time."""
        begun = time.perf_counter()
        left = max(0.0, self.start + self.limit - begun)
        part = Part(name, begun + share * left, self.write)
        self.result["parts"][name] = part.found
        print(f"{name}: up to {part.left:.0f} s", file=sys.stderr, flush=True)
        try:
            work(part)
        except Exception as error:  # whatever it is: the other parts may still run
            traceback.print_exception(error)
            part.found["error"] = said(error)
        part.found["seconds"] = time.perf_counter() - begun
        self.write()

    def write(self) -> None:
        """Write all there is, whole: a reader sees the state before or after."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        new = self.path.with_name(self.path.name + ".new")
        new.write_text(json.dumps(self.result, indent=1) + "\n", encoding="utf-8")
        os.replace(new, self.path)


def said(error: BaseException) -> str:
    """An error's first line, or its kind if it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
