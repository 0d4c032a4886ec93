"""Anybody's modules: one that trains has a row, one that fails a line, and the rest go on."""

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from vaebench import InputError

ROOT = Path(__file__).parents[2]
TINY = """
import torch
from torch import nn

print("to be kept out of the answer")

class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(784 + 10, 16), nn.Linear(3 + 10, 784)
        self.mu, self.logvar = nn.Linear(16, 3), nn.Linear(16, 3)

    def hidden(self, x, y):
        return torch.tanh(self.first(torch.cat((x.flatten(1), y), 1)))

    def halves(self, x, y):
        h = self.hidden(x, y)
        return self.mu(h), self.logvar(h)

    def decode(self, z, y):
        return torch.sigmoid(self.last(torch.cat((z, y), 1)))
"""


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The command's module, loaded as from the top of the checkout."""
    monkeypatch.syspath_prepend(ROOT)
    return importlib.import_module("benchmarks.modules")


def _file(folder: Path, *entries: dict[str, Any]) -> Path:
    (folder / "theirs").mkdir()
    (folder / "theirs/tiny.py").write_text(TINY)
    spec = folder / "spec.json"
    spec.write_text(json.dumps(entries))
    return spec


@pytest.mark.slow
def test_one_trains_and_one_fails(
    modules: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = {
        "name": "theirs `Tiny`", "folder": "theirs", "code": "import tiny; model = tiny.Tiny()",
        "adapt": "vaebench.adapt(model, encode='halves')", "lines": 1, "labels": "one-hot",
        "batch": 32, "images": 80,
    }  # fmt: skip
    gone = {**tiny, "name": "gone", "code": "from tiny import Gone"}
    spec = _file(tmp_path, tiny, gone, {**gone, "name": "another"})
    out = tmp_path / "out.json"
    words = ["--only", "Tiny", "gone", "--turns", "2", "--data", "strokes", "--device", "cpu"]
    assert modules.main([str(spec), *words, "--out", str(out)]) == 1
    result = json.loads(out.read_text())
    assert (result["kind"], result["data"]) == ("modules", "strokes")
    row, failed = result["rows"]
    assert (row["refused"], row["steps"], row["lines"]) == (None, 9, 1)
    assert {"compile"} <= set(row["engine"])
    assert len(row["elbos"]["fast"]) == len(row["elbos"]["reference"]) == 3
    assert row["off"] < 1e-3
    assert row["loop_off"] < 1e-3  # the loop does the same arithmetic
    assert row["ratio"]["n"] == 2
    assert 0 < row["ratio"]["low"] <= row["ratio"]["median"]
    assert failed["refused"].startswith("ImportError: cannot import name 'Gone'")
    shown = capsys.readouterr().out.splitlines()
    assert shown[2].startswith("| theirs `Tiny` | 1 | ")
    assert shown[3:] == ["", f"gone: {failed['refused']}"]


@pytest.mark.slow
def test_one_that_takes_too_long_is_ended(modules: ModuleType, tmp_path: Path) -> None:
    spec = _file(tmp_path, {"name": "slow", "code": "import time; time.sleep(600)"})
    out = tmp_path / "out.json"
    assert modules.main([str(spec), "--data", "strokes", "--limit", "8", "--out", str(out)]) == 1
    (row,) = json.loads(out.read_text())["rows"]
    assert row["refused"].endswith("its limit is 8 s")


def test_a_fault_is_one_line(modules: ModuleType) -> None:
    module = {"name": "wrong", "code": "raise ValueError('one\\ntwo')", "images": 4}
    row = modules.measured({"module": module, "data": "strokes", "device": "cpu"})
    assert row == {"name": "wrong", "refused": "ValueError: one"}


def test_images_are_given_the_shape_asked_for(modules: ModuleType) -> None:
    images = torch.arange(2 * 28 * 28).reshape(2, 28, 28).remainder(251).byte()
    assert torch.equal(modules.shaped(images, (28, 28)), images)
    assert torch.equal(modules.shaped(images, (784,)), images.flatten(1))
    bordered = modules.shaped(images, (3, 32, 32))
    assert bordered.shape == (2, 3, 32, 32)
    assert torch.equal(bordered[:, 2, 2:30, 2:30], images)
    assert bordered[:, :, :2].sum() == 0
    large = modules.shaped(images, (1, 64, 64))
    assert (large.shape, large.dtype) == ((2, 1, 64, 64), torch.uint8)
    assert float(large.float().mean()) == pytest.approx(float(images.float().mean()), rel=0.02)


def test_a_file_that_is_none_is_refused(modules: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="unexpected keyword argument 'colour'"):
        modules.read(_file(tmp_path, {"name": "a", "code": "", "colour": "red"}))
    assert modules.main([str(tmp_path / "absent.json")]) == 2


def test_a_noisy_ratio_is_marked(modules: ModuleType) -> None:
    ratio = {"median": 2.0, "low": 1.5, "high": 2.5}
    said = [modules.times({"ratio": ratio, "noise": n}) for n in ("ok", "noisy", "not quoted")]
    assert said == ["2.00 (1.50 to 2.50)", "2.00 (1.50 to 2.50) (noisy)", "too noisy to quote"]
