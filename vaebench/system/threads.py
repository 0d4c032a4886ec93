"""CPUs that this process may use."""

import contextlib
import math
import os
from pathlib import Path


def available_cpus() -> int:
    """Count the CPUs this process may use: its affinity, cut by the cgroup's quota.

    A container on a large host sees all of the host's cores, and more threads than quota make
    every parallel region wait for the scheduler.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, math.ceil(min(allowed or 1, _cgroup_quota())))


def waited_seconds() -> float:
    """Seconds that threads of this process were ready to run while others ran; 0 if not told."""
    waited = 0
    for path in Path("/proc/self/task").glob("*/schedstat"):
        with contextlib.suppress(OSError, ValueError, IndexError):  # one that has just ended
            waited += int(path.read_text().split()[1])
    return waited / 1e9


def _cgroup_quota() -> float:
    """CPUs' worth of time the cgroup (version 2, else 1) grants; infinity where it sets none."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return math.inf if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        pass
    try:
        base = Path("/sys/fs/cgroup/cpu")
        quota_us = int((base / "cpu.cfs_quota_us").read_text())
        period_us = int((base / "cpu.cfs_period_us").read_text())
        return quota_us / period_us if quota_us > 0 else math.inf
    except (OSError, ValueError):
        return math.inf
