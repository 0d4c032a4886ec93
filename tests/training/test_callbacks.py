"""Callbacks: what they are told, in which thread, what they may do; they change nothing."""

import csv
import sys
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import vaebench
from tests.tiers import first
from vaebench.cli import plot, train
from vaebench.errors import ResourceError
from vaebench.training.callbacks import Block, Running, grid_of

WORDS: dict[str, Any] = {"epochs": 3, "batch_size": 32, "device": "cpu", "seed": 3}


def _vae(latent_dim: int = 3) -> vaebench.VAE:
    torch.manual_seed(0)
    return vaebench.VAE(hidden_dims=(20,), latent_dim=latent_dim)


class Told(vaebench.Callback):
    """Writes down all that it is told, and draws random numbers as it goes."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.blocks: list[Block] = []
        self.threads: set[str] = set()
        self.draws: list[float] = []

    def _note(self, what: str) -> None:
        self.said.append(what)
        self.threads.add(threading.current_thread().name)
        self.draws.append(float(torch.rand(())))

    def on_start(self, training: Running) -> None:
        self._note(f"start after {len(training.history.epochs)}")

    def on_step_block(self, training: Running, block: Block) -> None:
        self._note("block")
        self.blocks.append(block)

    def on_epoch(self, training: Running, record: vaebench.EpochRecord) -> None:
        self._note(f"epoch {record.epoch}")
        assert training.history.epochs[-1] is record
        assert len(training.state().epochs) == record.epoch

    def on_end(self, training: Running) -> None:
        self._note("end")


@pytest.mark.parametrize(
    "options", first(2, [{"engine": "reference"}, {}, {"compile": True}]), ids=str
)
def test_they_are_told_and_change_nothing(options: dict[str, Any], strokes: Tensor) -> None:
    class Dropping(vaebench.VAE):
        """Draws random numbers of its own, which a callback's must not disturb."""

        def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
            mu, logvar = super().encode(x)
            return torch.nn.functional.dropout(mu, 0.1, self.training), logvar

    models = []
    told = Told()
    for on_epoch in (None, told):
        torch.manual_seed(0)
        models.append(Dropping(hidden_dims=(20,), latent_dim=3))
        torch.manual_seed(7)
        history = vaebench.fit(models[-1], strokes[:640], on_epoch=on_epoch, **options, **WORDS)
    for mine, other in zip(*(m.parameters() for m in models), strict=True):
        assert torch.equal(mine, other)
    assert told.said[0] == "start after 0"
    assert told.said[-1] == "end"
    assert [said for said in told.said if "epoch" in said] == ["epoch 1", "epoch 2", "epoch 3"]
    assert told.threads == {threading.current_thread().name}
    torch.manual_seed(7)
    assert told.draws == torch.rand(len(told.draws)).tolist()  # of the caller's own stream
    # Blocks of an epoch weigh alike here, and average to its record.
    assert len(told.blocks) == 60
    assert told.blocks[19].time == 1.0
    for epoch, record in enumerate(history.epochs):
        part = told.blocks[20 * epoch : 20 * epoch + 20]
        assert np.mean([b.elbo for b in part]) == pytest.approx(record.train_elbo, rel=1e-6)
        assert np.mean([b.kl for b in part]) == pytest.approx(record.kl, rel=1e-5)


def test_one_can_stop_it(strokes: Tensor) -> None:
    class Stopping(vaebench.Callback):
        def on_step_block(self, training: Running, block: Block) -> None:
            if block.time > 1.5:
                training.stop("it is good enough")

    told = Told()
    functions: list[int] = []
    callbacks: Any = [Stopping(), [told, lambda record: functions.append(record.epoch)]]
    history = vaebench.fit(_vae(), strokes[:640], on_epoch=callbacks, **WORDS)
    assert history.stopped_early
    assert history.notes[-1] == "stopped after epoch 2: it is good enough"
    assert functions == [1, 2]
    assert told.said[-1] == "end"


def test_an_error_in_one_is_the_callers(strokes: Tensor) -> None:
    class Failing(vaebench.Callback):
        def on_step_block(self, training: Running, block: Block) -> None:
            raise ZeroDivisionError("mine")

    model = _vae()
    with pytest.raises(ZeroDivisionError, match="mine"):
        vaebench.fit(model, strokes[:640], on_epoch=Failing(), **WORDS)
    assert model.training
    vaebench.fit(model, strokes[:640], **WORDS)  # and nothing is left behind


@pytest.mark.parametrize("wrong", [3, vaebench.Callback, [print, "log"]], ids=str)
def test_what_is_none_is_refused(wrong: Any, strokes: Tensor) -> None:
    with pytest.raises(vaebench.InputError, match=r"on_epoch is .*vaebench.Callback or a list"):
        vaebench.fit(_vae(), strokes, on_epoch=wrong, **WORDS)


def test_a_csv_log_also_of_a_training_that_goes_on(strokes: Tensor, tmp_path: Path) -> None:
    log, kept = tmp_path / "log.csv", vaebench.Checkpoints(tmp_path)
    model = _vae()
    words = {**WORDS, "on_epoch": vaebench.CSVLog(log), "test_images": strokes[640:]}
    vaebench.fit(model, strokes[:640], on_state=kept.save, **{**words, "epochs": 2})
    log.write_text("lost")
    history = vaebench.fit(model, strokes[:640], resume=kept.newest(), **words)
    rows = list(csv.DictReader(log.read_text().splitlines()))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert float(rows[2]["test_elbo"]) == history.epochs[2].test_elbo
    assert rows[0]["validation_elbo"] == ""
    with pytest.raises(vaebench.InputError, match="cannot be written"):
        vaebench.fit(_vae(), strokes, on_epoch=vaebench.CSVLog("/nowhere/log.csv"), **WORDS)


def test_tensorboard(strokes: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(vaebench.InputError, match="needs the package tensorboard"):
        vaebench.TensorBoard(tmp_path)
    written: list[tuple[str, float, int]] = []

    class Writer:
        def __init__(self, folder: str) -> None:
            assert folder == str(tmp_path)

        def add_scalar(self, name: str, value: float, step: int) -> None:
            written.append((name, value, step))

        def close(self) -> None:
            written.append(("closed", 0, 0))

    stand_in = ModuleType("torch.utils.tensorboard")
    stand_in.SummaryWriter = Writer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", stand_in)
    history = vaebench.fit(_vae(), strokes[:640], on_epoch=vaebench.TensorBoard(tmp_path), **WORDS)
    assert ("epoch/train_elbo", history.epochs[1].train_elbo, 2) in written
    assert [step for name, _, step in written if name == "step/kl"][:2] == [50, 100]
    assert written[-1] == ("closed", 0, 0)


@pytest.mark.parametrize("latent_dim", [2, 3])
def test_frames_show_the_decoder_after_each_epoch(
    latent_dim: int, strokes: Tensor, tmp_path: Path
) -> None:
    model = _vae(latent_dim)
    frames = vaebench.Frames(tmp_path / "frames", every=2)
    words = {**WORDS, "epochs": 4, "on_epoch": frames}
    vaebench.fit(model, strokes, **words)
    files = sorted(p.name for p in (tmp_path / "frames").iterdir())
    assert files == ["epoch-000002.png", "epoch-000004.png"]
    sheet = np.asarray(Image.open(tmp_path / "frames" / files[-1]), dtype=np.float32) / 255
    assert sheet.shape == (12 * 28, 12 * 28)
    with torch.no_grad():
        want = model.decode(grid_of(latent_dim, 12)).sigmoid().reshape(144, 28, 28)
    for place in (0, 17, 143):
        row, column = divmod(place, 12)
        got = sheet[28 * row : 28 * row + 28, 28 * column : 28 * column + 28]
        assert np.abs(got - want[place].numpy()).max() < 1 / 255
    assert model.training


def test_the_command_makes_a_film(
    strokes: Tensor, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "x.npz", x_train=strokes[:840].numpy(), x_test=strokes[840:].numpy())
    run = tmp_path / "run"
    words = ["--data", str(tmp_path / "x.npz"), "--hidden-dim", "20", "--latent-dim", "2"]
    words += ["--device", "cpu", "--quiet", "--out", str(run), "--epochs", "2"]
    assert train.main([*words, "--film"]) == 0
    assert train.main(["--resume", str(run), "--epochs", "3", "--quiet"]) == 0
    assert plot.main([str(run), "film"]) == 0
    with Image.open(run / "pictures" / "film.gif") as film:
        assert film.n_frames == 3  # type: ignore[attr-defined]
        assert film.size[0] >= 336
    other = tmp_path / "other"
    assert train.main([*words, "--out", str(other)]) == 0
    assert plot.main([str(other), "film"]) == 2
    assert "holds no pictures of its epochs: train with --film" in capsys.readouterr().err
    refused = tmp_path / "refused"
    assert train.main([*words, "--film", "--batch-size", "9999", "--out", str(refused)]) == 2
    assert not refused.exists()
    assert train.main([*words, "--film", "--lr", "1e15", "--out", str(refused)]) == 1
    assert not refused.exists()


def test_a_picture_that_cannot_be_written_is_told_in_a_line(
    strokes: Tensor, tmp_path: Path
) -> None:
    class Removed(vaebench.Frames):
        def on_epoch(self, training: Running, record: vaebench.EpochRecord) -> None:
            self.folder.rmdir()
            super().on_epoch(training, record)

    with pytest.raises(ResourceError, match=r"epoch-000001\.png cannot be written: No such file"):
        vaebench.fit(_vae(), strokes[:640], on_epoch=Removed(tmp_path / "frames"), **WORDS)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(vaebench.InputError, match="cannot be made"):
        vaebench.fit(_vae(), strokes, on_epoch=vaebench.Frames(tmp_path / "file" / "x"), **WORDS)
