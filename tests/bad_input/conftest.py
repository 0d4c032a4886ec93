"""What the cases spoil, whole: data, a run folder, a process of one's own."""

import logging
import signal
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import vaebench
from tests.bad_input.refusal import RECIPE, pixels, small_vae
from vaebench.data.download import DownloadError
from vaebench.runs.folder import RunFolder


@pytest.fixture(scope="module", autouse=True)
def _warm() -> None:
    """Load what is loaded when first used: no case is to be blamed for it."""
    vaebench.fit(small_vae(), pixels(), batch_size=8, epochs=1, device="cpu")


def offline(*_: object) -> None:
    raise DownloadError("no network")


@pytest.fixture
def as_a_program(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """An empty working directory with no network; what main() sets for a process is put back."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("VAEBENCH_DATA", raising=False)
    monkeypatch.setattr("vaebench.data.load.fetch_mnist", offline)
    threads, handler = torch.get_num_threads(), signal.getsignal(signal.SIGTERM)
    loggers = [logging.getLogger(n) for n in ("vaebench", "torch.utils.cpp_extension")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():  # puts warnings.showwarning back
        yield tmp_path
    torch.set_num_threads(threads)
    signal.signal(signal.SIGTERM, handler)
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


@pytest.fixture(scope="module")
def npz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """17 + 3 images as a user's own file."""
    path = tmp_path_factory.mktemp("data") / "small.npz"
    images = pixels(20).numpy()
    np.savez(path, x_train=images[:17], x_test=images[17:])
    return path


@pytest.fixture(scope="module")
def sound_run(tmp_path_factory: pytest.TempPathFactory, npz: Path) -> dict[str, bytes]:
    """The files of a finished run."""
    path = tmp_path_factory.mktemp("runs") / "run"
    with RunFolder(path) as folder:
        folder.write_config({"workload": "mlp", "data": str(npz), "data_dir": None}, RECIPE)
        names = ("train_elbo", "test_elbo", "recon", "kl", "seconds", "images_per_second")
        folder.add_metrics({"epoch": 1, **dict.fromkeys(names, 1.0)})
        folder.write_model(small_vae().state_dict())
        folder.write_result({"dataset": "small.npz"})
    return {p.name: p.read_bytes() for p in path.iterdir()}


@pytest.fixture
def run_folder(tmp_path: Path, sound_run: dict[str, bytes]) -> Path:
    path = tmp_path / "run"
    path.mkdir()
    for name, content in sound_run.items():
        (path / name).write_bytes(content)
    return path
