"""What else the machine did while something was measured: Linux's own counts."""

import os
import resource
import subprocess
import time
from pathlib import Path
from typing import Any

# Above these a figure is marked: cores that others kept busy, and the share of time stolen by the
# machine below this one.
BUSY_CORES, STOLEN = 0.15, 0.02
_TICK = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100


class Watch:
    """A context that measures what others did while it lasted; see :attr:`found`.

    ``others``: cores that other processes kept busy; ``stolen``: the share of a core's time that
    went to another machine. None where the system does not tell.
    """

    def __enter__(self) -> "Watch":
        self.begun, self.counts, self.own = time.perf_counter(), _counts(), _own_seconds()
        return self

    def __exit__(self, *_: object) -> None:
        seconds, after = time.perf_counter() - self.begun, _counts()
        self.found: dict[str, float | None] = {"others": None, "stolen": None}
        if self.counts and after and seconds > 0:
            busy, stolen = (b - a for a, b in zip(self.counts, after, strict=True))
            own = _own_seconds() - self.own
            self.found = {
                "others": max(0.0, (busy - own) / seconds),
                "stolen": stolen / seconds / (os.cpu_count() or 1),
            }

    @property
    def busy(self) -> bool:
        """Whether what was measured meanwhile is to be marked."""
        others, stolen = self.found["others"] or 0, self.found["stolen"] or 0
        return others > BUSY_CORES or stolen > STOLEN


def _counts() -> tuple[float, float] | None:
    """Seconds that all cores have computed, and that were stolen from them."""
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
        user, nice, system, _, _, irq, softirq, steal = (int(f) / _TICK for f in fields[:8])
    except (OSError, ValueError):
        return None
    return user + nice + system + irq + softirq, steal


def _own_seconds() -> float:
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(each.ru_utime + each.ru_stime for each in used)


def conditions() -> dict[str, Any]:
    """The compiler, the clock's frequency, the limits of this container, and the load."""
    return {
        "compiler": _first_line(os.environ.get("CXX", "g++").split()[0], "--version"),
        "mhz": _frequency(),
        "cgroup_cpu_max": _text("/sys/fs/cgroup/cpu.max"),
        "load": os.getloadavg(),
    }


def _first_line(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    except OSError:
        return None
    return next(iter(done.stdout.splitlines()), None)


def _text(path: str) -> str | None:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None


def _frequency() -> float | None:
    """The mean of the cores' present frequencies, where they are told."""
    lines = (_text("/proc/cpuinfo") or "").splitlines()
    found = [float(line.split(":")[1]) for line in lines if line.startswith("cpu MHz")]
    return sum(found) / len(found) if found else None
