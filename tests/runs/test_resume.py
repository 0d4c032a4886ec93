"""``--resume`` goes on to the bits of a run that was not stopped, whatever stopped it."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import vaebench
from tests.runs.test_checkpoints import TIMES
from vaebench.cli.train import main, parse, train
from vaebench.data.strokes import make_strokes
from vaebench.runs.checkpoints import find, read
from vaebench.runs.folder import LOCK, METRICS, MODEL, RunFolder
from vaebench.training.fit import Training
from vaebench.training.follow import Follower


@pytest.fixture(scope="module")
def npz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    images = make_strokes(300, seed=3)[0].numpy()
    path = tmp_path_factory.mktemp("data") / "small.npz"
    np.savez(path, x_train=images[:260], x_test=images[260:])
    return path


@contextlib.contextmanager
def _as_we_were() -> Iterator[None]:
    threads, handler = torch.get_num_threads(), signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        signal.signal(signal.SIGTERM, handler)


def _main(*args: object) -> int:
    with _as_we_were():
        return main([str(arg) for arg in args])


SMALL = "--device cpu --threads 1 --hidden-dim 24 --latent-dim 3 --batch-size 64 --quiet".split()


def _train(npz: Path, out: Path, *args: object) -> int:
    return _main("--data", npz, "--out", out, *SMALL, *args)


@pytest.fixture(scope="module")
def whole(npz: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three epochs."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    assert _train(npz, out, "--epochs", 3) == 0
    return out


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(whole, tmp_path / "run"))


def _equal(run: Path, whole: Path) -> None:
    assert (run / MODEL).read_bytes() == (whole / MODEL).read_bytes()
    lines = [
        [
            {n: v for n, v in json.loads(line).items() if n not in TIMES}
            for line in (folder / METRICS).read_text().splitlines()
        ]
        for folder in (run, whole)
    ]
    assert lines[0] == lines[1]
    assert sorted(p.name for p in run.iterdir()) == sorted(p.name for p in whole.iterdir())


def test_a_longer_run(npz: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert _train(npz, out, "--epochs", 1) == 0
    assert _main("--resume", out, "--epochs", 3) == 0
    _equal(out, whole)
    result = json.loads((out / "result.json").read_text())
    assert result["epochs"] == 3
    assert result["notes"] == ["went on after epoch 1: times are those of the last part alone"]
    assert json.loads((out / "config.json").read_text())["epochs"] == 3


@pytest.mark.parametrize(
    "left",
    ["nothing trained", "metrics and model ahead", "metrics cut", "no result", "metrics lost"],
)
def test_whatever_a_kill_left(left: str, run: Path, whole: Path) -> None:
    names = [p.name for p in find(run)]
    assert names == ["checkpoint-000002.safetensors", "checkpoint-000003.safetensors"]
    if left != "no result":
        (run / names[1]).unlink()
    (run / "result.json").unlink()
    if left == "nothing trained":
        for name in (names[0], METRICS, MODEL):
            (run / name).unlink()
    elif left == "metrics cut":
        (run / METRICS).write_bytes((run / METRICS).read_bytes()[:-30])
    elif left == "metrics lost":
        (run / METRICS).unlink()
    (run / ".vaebench-metrics.jsonl.tmp").write_text("{")
    assert _main("--resume", run) == 0
    if left == "nothing trained":
        assert len(find(run)) == 2
    elif left == "no result":
        assert json.loads((run / "result.json").read_text())["epochs"] == 3
    _equal(run, whole)


def test_options_are_the_runs_own(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for args, said in (
        (["--lr", "0.01"], "--lr 0.01 (its own: 0.001)"),
        (["--hidden-dim", "24", "9", "--compile"], "--hidden-dim 24 9 (its own: 24), --compile"),
        (["--device", "auto"], "--device auto (its own: cpu)"),
        (["--out", "elsewhere"], "--out cannot be given with --resume"),
        (["--epochs", "2"], "epochs is 2, but 3 are trained already"),
        (["--epochs", "0"], "--epochs is 0"),
    ):
        assert _main("--resume", run, *args) == 2
        errors = capsys.readouterr().err
        assert said in errors
        assert errors.count("\n") == 1
    assert _main("--resume", run, "--lr", "0.001", "--seed", "0") == 0
    assert "is complete: its 3 epochs are trained" in capsys.readouterr().err


def test_no_run_and_damaged_settings(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = (run / "config.json").read_text()
    for content, said in (
        (config.replace('"epochs": 3', '"epochs": "many"'), "is damaged: --epochs is 'many'"),
        (config[:-9], "is damaged or unreadable"),
        (config.replace('"lr": 0.001', '"lr": 0.1'), "was written with lr 0.001, not 0.1"),
        (config.replace("260x28x28", "9x28x28"), "these are not the images that"),
    ):
        (run / "config.json").write_text(content)
        (run / "result.json").unlink(missing_ok=True)
        assert _main("--resume", run) == 2
        errors = capsys.readouterr().err
        assert said in errors
        assert errors.count("\n") == 1
    for path in (tmp_path, tmp_path / "nowhere", run / "config.json"):
        assert _main("--resume", path) == 2
        assert "is no run folder" in capsys.readouterr().err


def test_other_images_are_refused_and_a_moved_file_is_not(
    npz: Path, run: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / find(run)[1].name).unlink()
    (run / "result.json").unlink()
    images = make_strokes(300, seed=4)[0].numpy()
    np.savez(tmp_path / "other.npz", x_train=images[:260], x_test=images[260:])
    assert _main("--resume", run, "--data", tmp_path / "other.npz") == 2
    assert "these are not the images" in capsys.readouterr().err
    moved = shutil.copy(npz, tmp_path / "moved.npz")
    assert _main("--resume", run, "--data", moved) == 0
    _equal(run, whole)


def test_interrupted_between_checkpoints(
    npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C after the third of 100,000 epochs, a checkpoint every 1,000: one is written then."""
    from vaebench.cli.train import _Keeper

    keep = _Keeper.keep

    def keep_then_stop(self: _Keeper, state: vaebench.TrainState) -> None:
        keep(self, state)
        if len(state.epochs) == 3:
            os.kill(os.getpid(), signal.SIGINT)

    out = tmp_path / "run"
    monkeypatch.setattr(_Keeper, "keep", keep_then_stop)
    assert _train(npz, out, "--epochs", 100000, "--checkpoint-every", 1000) == 130
    said = capsys.readouterr().err
    assert f"--resume {out} goes on" in said
    lines = (out / METRICS).read_text().splitlines()
    (path,) = find(out)
    assert len(read(path)[0].epochs) == len(lines) >= 3
    more = len(lines) + 2
    assert _main("--resume", out, "--epochs", more) == 0
    assert len((out / METRICS).read_text().splitlines()) == more


def test_interrupted_before_the_first_epoch(
    npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = Training._build

    def interrupted(*args: Any) -> Follower:
        os.kill(os.getpid(), signal.SIGINT)
        return build(*args)

    monkeypatch.setattr(Training, "_build", interrupted)
    config = parse(["--data", str(npz), "--out", str(tmp_path / "run")])
    with pytest.raises(KeyboardInterrupt) as caught, _as_we_were():
        train(config)
    assert type(caught.value) is KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("left", [".vaebench.lock", ".vaebench-result.json.tmp"])
def test_a_finished_run_is_tidied(left: str, run: Path, whole: Path) -> None:
    """What a kill after the last word leaves goes; what is another's stays."""
    (run / left).write_text("")
    (run / "notes.txt").write_text("mine")
    before = {p.name: p.read_bytes() for p in whole.iterdir()}
    assert _main("--resume", run) == 0
    after = {p.name: p.read_bytes() for p in run.iterdir()}
    assert after.pop("notes.txt") == b"mine"
    assert after == before


def test_a_finished_run_that_another_process_still_holds_is_let_be(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with RunFolder(run, resume=True):
        assert _main("--resume", run) == 0
        assert (run / LOCK).exists()
    assert "is complete" in capsys.readouterr().err


def test_killed_after_the_last_word(npz: Path, tmp_path: Path, whole: Path) -> None:
    """Between writing the result and giving the lock back."""
    out = tmp_path / "run"
    code = (
        "import os, signal; from vaebench.runs.folder import RunFolder\n"
        "def die(self): os.kill(os.getpid(), signal.SIGKILL)\n"
        "RunFolder._unlock = die\n"
        "from vaebench.cli.train import main; main()"
    )
    words = ["--data", npz, "--out", out, *SMALL, "--epochs", 3]
    done = subprocess.run([sys.executable, "-c", code, *map(str, words)], timeout=120)
    assert done.returncode == -signal.SIGKILL
    assert (out / LOCK).exists()
    assert _main("--resume", out) == 0
    _equal(out, whole)


@pytest.mark.slow
def test_killed_at_random_moments() -> None:
    """A small number of what ``scripts/kill.py`` does a hundred times."""
    script = Path(__file__).parents[2] / "scripts" / "kill.py"
    done = subprocess.run(
        [sys.executable, script, "--kills", "2", "--epochs", "15"],
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    assert "2 kills" in done.stdout
