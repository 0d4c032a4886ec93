"""A technique is one file, or one folder, and one line: without both all else goes on working."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from vaebench.data.strokes import make_strokes
from vaebench.fast.register import TECHNIQUES, Technique

ROOT = Path(__file__).parents[2]
# What the equivalence tests need of the tree.
COPIED = (
    "pyproject.toml",
    "vaebench",
    *(f"tests/{name}.py" for name in ("__init__", "conftest", "engines")),
    *(f"tests/fast/{name}.py" for name in ("__init__", "tape", "test_equivalence")),
)
# The one with the most that hangs on it; the others take minutes.
FIRST = ("compile",)
EACH = [
    pytest.param(t, id=t.name, marks=[] if t.name in FIRST else pytest.mark.slow)
    for t in TECHNIQUES
]


def _copy_without(technique: Technique, folder: Path) -> None:
    """Copy the tree, and delete a technique's module and its line in the register."""
    for name in COPIED:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, target)
    module = folder / Path(*technique.module.split("."))
    if module.is_dir():
        shutil.rmtree(module)
    else:
        module.with_suffix(".py").unlink()
    register = folder / "vaebench" / "fast" / "register.py"
    line = rf'^ +Technique\("{technique.name}",.*\n'
    text, lines = re.subn(line, "", register.read_text(), flags=re.MULTILINE)
    assert lines == 1
    register.write_text(text)


def _python(folder: Path, *args: object) -> str:
    """Run Python on the copy, with this process's caches; give what it prints."""
    done = subprocess.run(
        [sys.executable, *map(str, args)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("technique", EACH)
def test_a_technique_goes_with_its_file_and_its_line(
    technique: Technique, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    copy = tmp_path / "copy"
    _copy_without(technique, copy)

    options = _python(copy, "-m", "vaebench.train", "--help")
    flags = set(re.findall(r"--(?:no-)?([a-z][a-z0-9-]*)", options))
    gone = {t.flag for t in TECHNIQUES if technique.name in (t.name, t.needs)}
    assert {f"--{flag}" for flag in flags} >= {t.flag for t in TECHNIQUES} - gone
    assert not {f"--{flag}" for flag in flags} & gone

    images = make_strokes(300, seed=3)[0].numpy()
    np.savez(tmp_path / "small.npz", x_train=images[:250], x_test=images[250:])
    fast = [flag for flag in ("--compile", "--amp") if flag not in gone]
    small = "--epochs 1 --hidden-dim 16 --latent-dim 2 --batch-size 64 --device cpu".split()
    told = ["--data", tmp_path / "small.npz", "--out", tmp_path / "run"]
    _python(copy, "-m", "vaebench.train", *fast, *small, *told)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["test_elbo"] < 0
    assert technique.name not in result["actual"]

    cache = request.config.cache
    assert cache is not None
    told = ["-o", f"cache_dir={cache.mkdir('of-copies')}"]
    chosen = ["tests/fast/test_equivalence.py", "-k", "is_equal and mlp and strokes and cpu"]
    report = _python(copy, "-m", "pytest", "-q", *told, *chosen)
    passed = re.search(r"(\d+) passed", report)
    assert passed, report
    assert int(passed[1]) >= 2, report  # the plain step, and a technique
