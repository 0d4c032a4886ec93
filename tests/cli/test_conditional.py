"""``--conditional``: labels from the data to the network, to its run folder, and back."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import vaebench
from vaebench.cli.evaluate import main as evaluate
from vaebench.cli.train import main as train
from vaebench.data.strokes import make_strokes

SMALL = "--conditional --hidden-dim 16 --latent-dim 2 --batch-size 32 --device cpu --threads 1"


@pytest.fixture(autouse=True)
def _as_we_were() -> Iterator[None]:
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)


def _save(path: Path, n: int = 240, **changed: Any) -> Path:
    """A labelled data set, a quarter of it to test on; a change of None leaves an array out."""
    images, labels = (t.numpy() for t in make_strokes(n, seed=3))
    edge = 3 * n // 4
    arrays = {
        "x_train": images[:edge], "y_train": labels[:edge],
        "x_test": images[edge:], "y_test": labels[edge:],
    } | changed  # fmt: skip
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return path


def _train(*args: object) -> int:
    return train([*SMALL.split(), "--quiet", *map(str, args)])


def _json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text())
    return content


@pytest.fixture(scope="module")
def npz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _save(tmp_path_factory.mktemp("data") / "labelled.npz")


@pytest.fixture(scope="module")
def run(npz: Path) -> Path:
    out = npz.parent / "run"
    assert _train("--data", npz, "--epochs", 2, "--holdout", 20, "--out", out) == 0
    return out


def test_the_run_folder_remembers(run: Path, npz: Path) -> None:
    assert _json(run / "config.json")["conditional"] is True
    assert _json(run / "config.json")["model"]["classes"] == 10
    result = _json(run / "result.json")
    assert result["conditional"] is True
    model = vaebench.load(run)
    assert model.classes == 10
    data = np.load(npz)
    images, labels = (torch.from_numpy(data[name]) for name in ("x_test", "y_test"))
    found = vaebench.evaluate(model, images, labels=labels)
    assert found.elbo == pytest.approx(result["test_elbo"], rel=1e-5)


@pytest.mark.parametrize(("split", "images"), [("test", 60), ("train", 160), ("holdout", 20)])
def test_evaluation_of_every_split(
    run: Path, tmp_path: Path, split: str, images: int, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "evaluation.json"
    given = f"{run} --samples 2 --device cpu --threads 1 --split {split} --out {out}"
    assert evaluate(given.split()) == 0
    result = _json(out)
    assert (result["images"], result["conditional"]) == (images, True)
    assert "mlp given labels on labelled.npz, 2 epochs" in capsys.readouterr().out
    assert evaluate([*given.split(), "--images", "7"]) == 0
    assert _json(out)["images"] == 7


def test_resuming_goes_on_to_the_same_bits(run: Path, npz: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert _train("--data", npz, "--epochs", 1, "--holdout", 20, "--out", out) == 0
    assert train(["--resume", str(out), "--epochs", "2", "--quiet"]) == 0
    one, other = (vaebench.load(folder).state_dict() for folder in (run, out))
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_other_labels_are_noticed(
    npz: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = _save(tmp_path / "labelled.npz")
    assert _train("--data", data, "--epochs", 1, "--out", tmp_path / "run") == 0
    _save(data, y_train=np.zeros(180, np.uint8))
    assert train(["--resume", str(tmp_path / "run"), "--epochs", "2"]) == 2
    assert "these are not the images that" in capsys.readouterr().err
    assert evaluate([str(tmp_path / "run"), "--samples", "1"]) == 2
    assert "these are not the images that" in capsys.readouterr().err
    bare = _save(tmp_path / "bare.npz", y_train=None, y_test=None)
    assert evaluate([str(tmp_path / "run"), "--samples", "1", "--data", str(bare)]) == 2
    assert "was trained on labels, and bare.npz has none" in capsys.readouterr().err


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no labels": ({"y_train": None, "y_test": None}, "the training images of x.npz have none"),
    "none to test on": ({"y_test": None}, "the test images of x.npz have none"),
    "below 0": ({"y_train": np.arange(180) % 9 - 1}, "begin at -1: number the classes from 0"),
    "far too many": ({"y_test": np.full(60, 2**40)}, "must be a whole number of at most 1048576"),
}


@pytest.mark.parametrize("name", BAD)
def test_data_that_will_not_do(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed, said = BAD[name]
    data = _save(tmp_path / "x.npz", **changed)
    assert _train("--data", data, "--out", tmp_path / "run") == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_the_convolutional_workload_and_the_reference_take_labels(
    npz: Path, tmp_path: Path
) -> None:
    small = ("--hidden-dim", 4, 4, 4, 4, 4, "--epochs", 1, "--data", npz)
    for engine in ("fast", "reference"):
        out = tmp_path / engine
        assert _train("--workload", "conv", *small, "--engine", engine, "--out", out) == 0
        assert vaebench.load(out).classes == 10
    elbos = [_json(tmp_path / e / "result.json")["train_elbo"] for e in ("fast", "reference")]
    assert elbos[0] == pytest.approx(elbos[1], rel=1e-4)
