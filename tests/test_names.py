"""The tests' names: the same in every process, or pytest-xdist runs none of them."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest


@pytest.mark.slow
def test_names_do_not_depend_on_when_or_by_whom_they_are_collected() -> None:
    """Another second, another order of sets: what two workers may have."""
    own = {name: value for name, value in os.environ.items() if "PYTEST_XDIST" not in name}
    collected = []
    for hashes in ("1", "2"):
        run = subprocess.run(
            [sys.executable, *"-m pytest --all --collect-only -q -n 0 -p no:cacheprovider".split()],
            cwd=Path(__file__).parent.parent,
            env=own | {"PYTHONHASHSEED": hashes},
            capture_output=True,
            text=True,
        )
        collected.append([line for line in run.stdout.splitlines() if "::" in line])
        time.sleep(1)
    assert len(collected[0]) > 3000
    assert collected[0] == collected[1]
