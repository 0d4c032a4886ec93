"""Commands and their environment: exit status 2, one line on stderr, nothing left on disk."""

import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.bad_input.refusal import COUNT, FLOAT, HELP, INT, PATIENCE, REAL, SEED
from vaebench.cli.train import main
from vaebench.runs.folder import MODEL, RESULT

COMMANDS: list[tuple[str, str]] = [
    *((f"--epochs {v}", COUNT) for v in ("0", "-1", "-0")),
    *((f"--epochs {v}", INT) for v in ("1.5", "1e3", "ten", "''", "nan", "inf", "0x10", "3,")),
    ("--epochs 99999999999999999999", "at most 1000000000"),
    (f"--epochs {'9' * 5000}", INT),
    ("--epochs", "expected one argument"),
    *((f"--batch-size {v}", COUNT) for v in ("0", "-128")),
    *((f"--batch-size {v}", INT) for v in ("128.0", "many", "''", "1e2", "inf")),
    *((f"--batch-size {v}", "more than the 17 images") for v in ("18", "100000000000000000000")),
    ("--batch-size 4 4", "unrecognized arguments: 4"),
    *((f"--lr {v}", REAL) for v in ("0", "-1", "nan", "inf", "1e400", "1e300", "1e-300")),
    *((f"--lr {v}", FLOAT) for v in ("fast", "''", "1e", "1e-3f", "0,001", "1/1000")),
    *((f"--latent-dim {v}", COUNT) for v in ("0", "-20")),
    *((f"--latent-dim {v}", "at most 1048576") for v in ("1048577", "1000000000000000000000")),
    *((f"--latent-dim {v}", INT) for v in ("2.0", "two", "''")),
    *((f"--hidden-dim {v}", COUNT) for v in ("0", "-1", "400 0", "0 400")),
    *((f"--hidden-dim {v}", "at most 1048576") for v in ("400 99999999999", "1048577")),
    *((f"--hidden-dim {v}", INT) for v in ("400,400", "4e2", "''", "(400,)", "wide")),
    ("--hidden-dim", "expected at least one argument"),
    ("--hidden-dim 1048576 1048576 1048576", "GB free: make --hidden-dim"),
    ("--latent-dim 1048576 --hidden-dim 1048576", "GB free: make --hidden-dim"),
    *((f"--activation {v}", "choose from") for v in ("gelu", "''", "RELU", "0")),
    *((f"--likelihood {v}", "choose from") for v in ("laplace", "''", "Bernoulli")),
    *((f"--workload {v}", "choose from") for v in ("gan", "''", "MLP")),
    *((f"--engine {v}", "choose from") for v in ("warp", "''", "Fast")),
    *((f"--sigma {v} --likelihood gaussian", REAL) for v in ("0", "-1", "nan", "inf", "1e-200")),
    *((f"--sigma {v} --likelihood gaussian", FLOAT) for v in ("x", "''")),
    ("--sigma 0.5", "add --likelihood gaussian"),
    ("--sigma 0.5 --likelihood bernoulli", "add --likelihood gaussian"),
    *((f"--beta {v}", REAL) for v in ("-1", "nan", "inf", "1e300", "1e-300")),
    *((f"--{name}=-inf", REAL) for name in ("lr", "beta")),
    *((f"--{name} -inf", "expected one argument") for name in ("lr", "beta")),
    *((f"--beta {v}", FLOAT) for v in ("x", "''")),
    *((f"--seed {v}", SEED) for v in ("-1", "9223372036854775808", "1" + "0" * 40)),
    *((f"--seed {v}", INT) for v in ("1.5", "''", "random", "None")),
    *((f"--device {v}", "auto, cpu, cuda") for v in ("abacus", "meta", "mps", "cuda:-1")),
    *((f"--{name} ''", "not empty") for name in ("device", "data")),
    *((f"--device {v}", "auto, cpu, cuda") for v in ("cuda:x", "CPU", "cpu:1", "cpu,cuda")),
    *((f"--device {v}", "torch sees") for v in ("cuda:77", "cuda:127")),
    *((f"--threads {v}", COUNT) for v in ("0", "-2")),
    *((f"--threads {v}", "at most 1024") for v in ("1025", "1000000000")),
    *((f"--threads {v}", INT) for v in ("all", "1.0", "''")),
    *((f"--amp {v}", "loss scaler") for v in ("fp16", "float16", "half")),
    *((f"--amp {v}", "choose from auto, bf16") for v in ("fp8", "''", "True", "BF16")),
    ("--engine reference --compile", "is plain eager float32: drop --"),
    ("--engine reference --amp", "is plain eager float32: drop --"),
    ("--engine reference --amp bf16 --compile", "is plain eager float32: drop --"),
    *(
        (f"--data {v}", "auto, mnist, mnist5k, strokes")
        for v in ("nowhere.npy", "MNIST", "s3://x/y")
    ),
    *((f"--data {v}", "data file") for v in ("/dev/zero", "/dev/null")),
    (f"--data {shlex.quote(__file__)}", "neither .npy, .npz nor IDX"),
    (f"--data {shlex.quote(str(Path(__file__).parent))}", "train-images-idx3-ubyte"),
    ("--data mnist --data-dir nowhere", "name their folder by --data-dir"),
    ("--data mnist --data-dir ''", "not empty"),
    (f"--data mnist --data-dir {shlex.quote(__file__)}", "is not a folder"),
    ("--data auto --data-dir /dev/null", "is not a folder"),
    *((f"--out {v}", "choose another folder") for v in ("/proc/run", "/dev/null/x", "x" * 300)),
    (f"--out {shlex.quote(__file__)}", "choose another folder"),
    ("--out ''", "not empty"),
    (f"--out {shlex.quote(str(Path(__file__).parent))}", "choose a new folder"),
    *((flag, HELP) for flag in ("--bananas", "--epoch 3", "--batch_size 4", "--latent 2", "-e 3")),
    *((flag, HELP) for flag in ("--no-epochs", "--no-lr", "--Epochs 3", "---epochs 3", "epochs=3")),
    *((flag, HELP) for flag in ("train", "--quiet=yes", "--compile=1", "--no-plot=0", "-- --lr 1")),
]
RAW_COMMANDS: dict[str, tuple[list[str], str]] = {
    "a flag with a line break": (["--ba\nnanas"], "unrecognized arguments"),
    "a word with control characters": (["\x1b[31m\r\0"], "unrecognized arguments"),
    "a word that is no text": (["\ud800"], "unrecognized arguments"),
    "a word of a megabyte": (["x" * 10**6], "unrecognized arguments"),
    "a choice with a line break": (["--engine", "fast\n"], "choose from"),
    "a number with a line break": (["--lr", "1\n2"], FLOAT),
    "out with a null": (["--out", "a\0b"], "choose another folder"),
    "out with a line break": (["--out", "/proc/a\nb"], "choose another folder"),
    "out that is no text": (["--out", "\ud800"], "choose another folder"),
    "data with a null": (["--data", "a\0b"], "auto, mnist, mnist5k, strokes"),
    "data of a megabyte": (["--data", "y" * 10**6], "auto, mnist, mnist5k, strokes"),
    "device with a line break": (["--device", "cp\nu"], "auto, cpu, cuda"),
}


def refused_command(
    argv: list[str], said: str, npz: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = time.monotonic()
    sound = ["--data", str(npz), "--device", "cpu", "--batch-size", "8", "--epochs", "1"]
    status = main([*sound, *argv])
    assert time.monotonic() - start < PATIENCE
    captured = capsys.readouterr()
    assert status == 2
    assert captured.err.startswith("vaebench: ")
    assert captured.err.endswith("\n")
    assert captured.err[:-1].isprintable()  # one line
    assert len(captured.err) < 2000
    assert said in captured.err
    assert captured.out == ""
    assert list(place.iterdir()) == []


@pytest.mark.parametrize(("words", "said"), COMMANDS, ids=[words[:60] for words, _ in COMMANDS])
def test_commands(
    words: str, said: str, npz: Path, as_a_program: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused_command(shlex.split(words), said, npz, as_a_program, capsys)


@pytest.mark.parametrize("name", RAW_COMMANDS)
def test_raw_commands(
    name: str, npz: Path, as_a_program: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused_command(*RAW_COMMANDS[name], npz, as_a_program, capsys)


def test_the_command_that_these_are_spoilt_copies_of_runs(
    npz: Path, as_a_program: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--data", str(npz), "--device", "cpu", "--batch-size", "8", "--epochs", "1"]
    assert main([*words, "--hidden-dim", "5", "--out", "run"]) == 0
    assert (as_a_program / "run" / MODEL).exists()


# The environment

DATA_FOLDERS = [
    ("mnist", "nowhere", "nowhere"),
    ("mnist", "/dev/null", "is not a folder"),
    ("auto", "/dev/null", "is not a folder"),
    ("mnist", __file__ + "/x", "name their folder"),
]


@pytest.mark.parametrize(("data", "folder", "said"), DATA_FOLDERS)
def test_data_folders(
    data: str, folder: str, said: str, npz: Path, as_a_program: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("VAEBENCH_DATA", folder)
    refused_command(["--data", data], said, npz, as_a_program, capsys)


def run(words: list[str], place: Path, **env: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "vaebench.train", *words],
        capture_output=True, text=True, timeout=60, cwd=place, env={**os.environ, **env},
    )  # fmt: skip


def test_no_device_is_shown(tmp_path: Path) -> None:
    done = run(["--data", "strokes", "--device", "cuda"], tmp_path, CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 2
    assert done.stderr.startswith("vaebench: ")
    assert done.stderr.count("\n") == 1
    assert "no CUDA device" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_odd_thread_settings_do_no_harm(npz: Path, tmp_path: Path) -> None:
    """OpenMP says by itself what it makes of its variables; the training sets its own number."""
    words = ["--data", str(npz), "--device", "cpu", "--batch-size", "8", "--epochs", "1"]
    words += ["--hidden-dim", "5", "--threads", "2", "--out", "run", "--quiet"]
    done = run(words, tmp_path, OMP_NUM_THREADS="many")
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
    assert json.loads((tmp_path / "run" / RESULT).read_text())["machine"]["threads"] == 2
