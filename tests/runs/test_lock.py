"""One process at a time writes a run folder, and a name that is taken gives another."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from vaebench.cli.train import main
from vaebench.data.strokes import make_strokes
from vaebench.errors import InputError
from vaebench.runs.folder import LOCK, RunFolder

BUSY = "another training is writing to"


def test_a_second_training_in_one_folder_is_refused(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "run") as folder:
        for resume in (False, True):
            with pytest.raises(InputError, match=BUSY):
                RunFolder(tmp_path / "run", resume=resume)
        assert (folder.path / LOCK).exists()
    assert list((tmp_path / "run").iterdir()) == []
    with RunFolder(tmp_path / "run"):
        pass


HOLD = """
import sys, time
from vaebench.runs.folder import RunFolder
with RunFolder(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    """A process that writes to ``run``."""
    words = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_another_process_is_seen_and_a_killed_one_holds_nothing(
    holder: "subprocess.Popen[str]", tmp_path: Path
) -> None:
    """And what it left half-written, or just begun, is in nobody's way."""
    with pytest.raises(InputError, match=BUSY):
        RunFolder(tmp_path / "run")
    (tmp_path / "run" / ".vaebench-config.json.tmp").write_text("{")
    holder.kill()
    assert holder.wait() == -signal.SIGKILL
    assert (tmp_path / "run" / LOCK).exists()
    with RunFolder(tmp_path / "run") as folder:
        assert [p.name for p in folder.path.iterdir()] == [LOCK]
    assert list((tmp_path / "run").iterdir()) == []


def test_a_lock_file_taken_away_guards_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its last owner removes it between our opening and our locking it: we take a new one."""
    fcntl = pytest.importorskip("fcntl")
    real = fcntl.flock
    calls: list[int] = []

    def late(descriptor: int, how: int) -> None:
        if not calls:
            (tmp_path / LOCK).unlink()
        calls.append(how)
        real(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with RunFolder(tmp_path):
        assert len(calls) > 1
        assert (tmp_path / LOCK).exists()
        monkeypatch.undo()
        with pytest.raises(InputError, match=BUSY):
            RunFolder(tmp_path)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_a_note(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fcntl = pytest.importorskip("fcntl")

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.warns(UserWarning, match="files cannot be locked here"), RunFolder(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_vanishes_is_left_without_complaint(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "run") as folder:
        (folder.path / LOCK).unlink()
        folder.path.rmdir()


# Names


def test_a_name_that_is_taken_gives_the_next(tmp_path: Path) -> None:
    name = tmp_path / "runs" / "mlp-20260101-120000"
    for number in ("", "-2", "-3"):
        with RunFolder(name, next_free=True) as folder:
            assert folder.path == Path(f"{name}{number}")
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to("nowhere")
    for parent in ("file", "link"):
        with pytest.raises(InputError, match="cannot be written"):
            RunFolder(tmp_path / parent / "run", next_free=True)


def test_the_next_name_is_taken_back_alone(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "a" / "run", next_free=True):
        pass
    for place in (tmp_path / "a", tmp_path / "b"):
        with pytest.raises(KeyError), RunFolder(place / "run", next_free=True):
            raise KeyError
    assert [p.relative_to(tmp_path) for p in sorted(tmp_path.rglob("*"))] == [
        Path("a"),
        Path("a/run"),
    ]


def test_many_at_once_have_a_folder_each(tmp_path: Path) -> None:
    def claim(_: int) -> Path:
        with RunFolder(tmp_path / "run", next_free=True) as folder:
            return folder.path

    with ThreadPoolExecutor(8) as pool:
        paths = list(pool.map(claim, range(40)))
    assert len(set(paths)) == 40


def test_two_runs_begun_in_one_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = make_strokes(120, seed=3)[0].numpy()
    np.savez(tmp_path / "x.npz", x_train=images[:100], x_test=images[100:])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(time, "strftime", lambda _: "20260101-120000")
    words = "--data x.npz --hidden-dim 8 --latent-dim 2 --epochs 1 --device cpu --threads 1 --quiet"
    handler, threads = signal.getsignal(signal.SIGTERM), torch.get_num_threads()
    for seed in ("1", "2"):
        assert main([*words.split(), "--batch-size", "50", "--seed", seed]) == 0
    signal.signal(signal.SIGTERM, handler)
    torch.set_num_threads(threads)
    runs = sorted((tmp_path / "runs").iterdir())
    assert [run.name for run in runs] == ["mlp-20260101-120000", "mlp-20260101-120000-2"]
    assert [json.loads((run / "config.json").read_text())["seed"] for run in runs] == [1, 2]
