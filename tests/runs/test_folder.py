"""Run folders: what is written comes back, and what is damaged is said."""

import json
from pathlib import Path

import pytest
import torch

import vaebench
from vaebench.errors import InputError, ResourceError
from vaebench.runs.folder import CONFIG, MODEL, RunFolder

RECIPE = {
    "image_shape": (5, 6),
    "hidden_dims": (9, 8),
    "latent_dim": 3,
    "activation": "tanh",
    "likelihood": "gaussian",
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    with RunFolder(tmp_path / "run") as folder:
        folder.write_config({"seed": 1}, RECIPE)
        folder.write_model(vaebench.VAE(**RECIPE).state_dict())  # type: ignore[arg-type]
    return tmp_path / "run"


def test_a_model_comes_back(tmp_path: Path) -> None:
    model = vaebench.VAE(**RECIPE)  # type: ignore[arg-type]
    with RunFolder(tmp_path / "run") as folder:
        folder.write_config({}, RECIPE)
        folder.write_model(model.state_dict())
    loaded = vaebench.load(tmp_path / "run")
    x = torch.rand(4, 5, 6)
    assert torch.equal(loaded.decode(loaded.encode(x)[0]), model.decode(model.encode(x)[0]))
    assert loaded.likelihood == "gaussian"
    assert not loaded.training
    assert loaded.sample(2).shape == (2, 5, 6)


def test_keys_are_clean(run: Path) -> None:
    from safetensors.torch import load_file

    assert set(load_file(run / MODEL)) == set(vaebench.VAE(**RECIPE).state_dict())  # type: ignore[arg-type]


def test_nothing_temporary_is_left(run: Path) -> None:
    assert sorted(p.name for p in run.iterdir()) == [CONFIG, MODEL]


def test_a_failed_write_keeps_the_old_file(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (run / MODEL).read_bytes()
    folder = RunFolder.__new__(RunFolder)
    folder.path = run

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(ResourceError, match=r"model\.safetensors cannot be written: No space"):
        folder.write_model(vaebench.VAE(**RECIPE).state_dict())  # type: ignore[arg-type]
    assert (run / MODEL).read_bytes() == before
    assert sorted(p.name for p in run.iterdir()) == [CONFIG, MODEL]


def test_a_folder_is_taken_back_if_nothing_was_trained(tmp_path: Path) -> None:
    with pytest.raises(KeyError), RunFolder(tmp_path / "a" / "b") as folder:
        folder.write_config({}, RECIPE)
        raise KeyError
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(KeyError), RunFolder(tmp_path / "a" / "b") as folder:
        folder.write_model(torch.nn.Linear(1, 1).state_dict())
        raise KeyError
    assert (tmp_path / "a" / "b" / MODEL).exists()


def test_a_folder_in_use_is_refused(run: Path) -> None:
    with pytest.raises(InputError, match="not empty"):
        RunFolder(run)


@pytest.mark.parametrize("content", ["", "[1]", "{", '{"model": {"image_shape": [0]}}', "{}"])
def test_a_damaged_config_is_said(run: Path, content: str) -> None:
    (run / CONFIG).write_text(content)
    with pytest.raises(InputError) as caught:
        vaebench.load(run)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", ["truncated", "garbage", "empty", "of another model"])
def test_a_damaged_model_is_said(run: Path, damage: str) -> None:
    data = (run / MODEL).read_bytes()
    if damage == "of another model":
        config = json.loads((run / CONFIG).read_text())
        config["model"]["latent_dim"] = 4
        (run / CONFIG).write_text(json.dumps(config))
    else:
        bad = {"truncated": data[:-9], "garbage": b"\xff" * 99, "empty": b""}[damage]
        (run / MODEL).write_bytes(bad)
    with pytest.raises(InputError, match="is damaged") as caught:
        vaebench.load(run)
    assert "\n" not in str(caught.value)


def test_what_is_no_run_is_said(tmp_path: Path, run: Path) -> None:
    with pytest.raises(InputError, match="is no run folder"):
        vaebench.load(tmp_path)
    (run / MODEL).unlink()
    with pytest.raises(InputError, match="ended before the first epoch"):
        vaebench.load(run)
