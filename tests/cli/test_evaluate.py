"""``python -m vaebench.evaluate`` and what it is given: other images, one image, a full disk."""

import json
import math
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from vaebench.cli.evaluate import main
from vaebench.cli.train import main as train
from vaebench.data.strokes import make_strokes
from vaebench.runs.folder import write_json
from vaebench.runs.storage import to_json


@pytest.fixture(autouse=True)
def _as_we_were() -> Iterator[None]:
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)


def _images(seed: int, n: int = 200) -> npt.NDArray[np.uint8]:
    pixels: npt.NDArray[np.uint8] = make_strokes(n, seed=seed)[0].numpy()
    return pixels


def _save(path: Path, images: npt.NDArray[Any]) -> None:
    np.savez(path, x_train=images[:170], x_test=images[170:])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data and a run on them."""
    folder = tmp_path_factory.mktemp("evaluate")
    _save(folder / "x.npz", _images(3))
    words = "--epochs 1 --hidden-dim 16 --latent-dim 2 --device cpu --threads 1 --quiet"
    out = str(folder / "run")
    assert train(["--data", str(folder / "x.npz"), "--out", out, *words.split()]) == 0
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the run, its data at the place that it knows; in a folder of its own."""
    run = Path(shutil.copytree(trained / "run", tmp_path / "run"))
    config = json.loads((run / "config.json").read_text())
    config["data"] = str(tmp_path / "x.npz")
    (run / "config.json").write_text(json.dumps(config))
    shutil.copy(trained / "x.npz", tmp_path / "x.npz")
    monkeypatch.chdir(tmp_path)
    return run


def _evaluate(run: Path, *args: object) -> int:
    return main([str(run), "--samples", "2", "--threads", "1", "--device", "cpu", *map(str, args)])


def _result(run: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((run / "evaluation.json").read_text())
    return result


OTHERS = {
    "all black": lambda images: np.zeros_like(images),
    "one pixel": lambda images: np.concatenate([images[:-1], images[-1:] ^ 1]),
    "another order": lambda images: images[::-1].copy(),
    "fewer": lambda images: images[:-1],
    "as floats": lambda images: (images / 255).astype(np.float32),
}


@pytest.mark.parametrize("change", OTHERS.values(), ids=OTHERS)
def test_the_runs_own_file_holds_other_images(
    change: Any, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _save(run.parent / "x.npz", change(_images(3)))
    assert _evaluate(run) == 2
    said = capsys.readouterr().err
    assert "these are not the images that" in said
    assert "name those with --data" in said
    assert said.count("\n") == 1
    assert not (run / "evaluation.json").exists()


def test_other_images_that_are_named_are_scored_and_it_is_said(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _save(run.parent / "other.npz", _images(4))
    assert _evaluate(run, "--data", run.parent / "other.npz") == 0
    told = capsys.readouterr()
    assert "these are not the images that" in told.err
    assert "the result is for the images named" in told.err
    assert told.err.count("\n") == 1
    assert "on other.npz (not the images that it was trained on)" in told.out
    assert _result(run)["images_of_the_run"] is False


def test_the_same_images_elsewhere_are_the_same(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = (run.parent / "x.npz").rename(run.parent / "moved.npz")
    assert _evaluate(run, "--data", moved) == 0
    told = capsys.readouterr()
    assert told.err == ""
    assert "not the images" not in told.out
    assert _result(run)["images_of_the_run"] is True


def test_a_run_that_kept_no_mark_is_evaluated(run: Path) -> None:
    config = json.loads((run / "config.json").read_text())
    del config["images"]
    (run / "config.json").write_text(json.dumps(config))
    assert _evaluate(run) == 0
    assert _result(run)["images_of_the_run"] is None


def test_one_image_has_no_standard_error(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _evaluate(run, "--images", 1) == 0
    assert "a single image has no standard error" in capsys.readouterr().out

    def refuse(word: str) -> None:
        raise ValueError(f"{word} is not JSON")

    result = json.loads((run / "evaluation.json").read_text(), parse_constant=refuse)
    assert result["standard_error"] is None
    assert result["images"] == 1


def test_a_full_disk_is_one_line(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    assert _evaluate(run) == 3
    said = capsys.readouterr().err
    assert "evaluation.json cannot be written: No space left on device" in said
    assert said.count("\n") == 1


def test_numbers_that_json_has_not_are_null(tmp_path: Path) -> None:
    value = {"a": [1.5, math.nan, {"b": (math.inf, -math.inf, torch.pi)}], "c": "NaN", "d": True}
    want = {"a": [1.5, None, {"b": [None, None, torch.pi]}], "c": "NaN", "d": True}
    assert json.loads(to_json(value)) == want
    write_json(tmp_path / "value.json", value)
    assert json.loads((tmp_path / "value.json").read_text()) == want
