"""The grid of sizes: what is fitted to it, and a small one run."""

import importlib
import json
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def scaling(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The command's module, loaded as from the top of the checkout."""
    monkeypatch.syspath_prepend(ROOT)
    return importlib.import_module("benchmarks.scaling")


def test_a_law_is_found(scaling: ModuleType) -> None:
    values = [8, 64, 512, 4096]
    assert scaling.fitted(values, [2 + 0.5 * v for v in values], (0, 1)) == pytest.approx([2, 0.5])
    squares = [1 + 3 * v**2 for v in values]
    assert scaling.fitted(values, squares, (0, 1, 2)) == pytest.approx([1, 0, 3], abs=1e-6)
    # What falls is no cost: never below 0.
    assert min(scaling.fitted(values, [9 - 0.002 * v for v in values], (0, 1))) == 0


@pytest.mark.slow
def test_a_grid_runs(
    scaling: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    small = scaling.AXES["latent"]._replace(values=(2, 8))
    monkeypatch.setattr(scaling, "AXES", {"latent": small})
    out = tmp_path / "scaling.json"
    words = ["--axes", "latent", "--device", "cpu", "--data", "strokes", "--out", str(out)]
    code = scaling.main([*words, "--turns", "3", "--budget", "0.1"])
    rows = json.loads(out.read_text())["rows"]
    assert [row["value"] for row in rows] == [2, 8]
    assert all("native" in row["engine"] for row in rows)
    assert code == int(any(row["ratio"]["high"] < 1 for row in rows))
    printed = capsys.readouterr()
    text = printed.out + printed.err
    assert "latent: plain" in text
    assert "ms a step, off by" in text
