"""Bad input, wherever it can come in: one line that says what was wrong and what is accepted.

Tables, a door each. On the command line a case is an exit status of 2 and one line on stderr, and
nothing left on disk; in the library it is an InputError. Beside them, what is odd but harmless is
accepted, with the same result. Files of images and archives have their tables in test_data.
"""

import contextlib
import importlib.util
import json
import logging
import math
import os
import shlex
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import vaebench
from tests.tiers import first
from vaebench.cli.train import main, parse
from vaebench.config import OPTIONS, TrainConfig
from vaebench.data.download import DownloadError
from vaebench.data.idx import read_idx
from vaebench.errors import InputError, TrainingError
from vaebench.runs.folder import CONFIG, METRICS, MODEL, RESULT, RunFolder

PATIENCE = 5.0  # seconds for any one case
RECIPE: dict[str, Any] = {"image_shape": (4, 4), "hidden_dims": (5,), "latent_dim": 2}


def pixels(n: int = 20) -> Tensor:
    return torch.randint(0, 256, (n, 4, 4), generator=torch.manual_seed(1)).to(torch.uint8)


def small_vae(**words: Any) -> vaebench.VAE:
    torch.manual_seed(0)
    return vaebench.VAE(**{**RECIPE, **words})


@pytest.fixture(scope="module", autouse=True)
def _warm() -> None:
    """Load what is loaded when first used: no case is to be blamed for it."""
    vaebench.fit(small_vae(), pixels(), batch_size=8, epochs=1, device="cpu")


def refusal(call: Callable[[], object], *words: str) -> None:
    """The call raises one InputError: one printable line that holds the words, in bounded time."""
    start = time.monotonic()
    with pytest.raises(InputError) as caught:
        call()
    message = str(caught.value)
    assert time.monotonic() - start < PATIENCE
    assert message.isprintable()
    assert len(message) < 2000
    for word in words:
        assert word in message


# The command line

COUNT = "whole number of at least 1"
REAL = "finite number"
SEED = "0 .. 2**63 - 1"
INT, FLOAT = "invalid int value", "invalid float value"
HELP = "--help lists the options"

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
    *((f"--data {v}", "auto, mnist, strokes") for v in ("nowhere.npy", "MNIST", "s3://x/y")),
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
    "data with a null": (["--data", "a\0b"], "auto, mnist, strokes"),
    "data of a megabyte": (["--data", "y" * 10**6], "auto, mnist, strokes"),
    "device with a line break": (["--device", "cp\nu"], "auto, cpu, cuda"),
}


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


# TrainConfig, made by a caller of the library

CONFIGS: list[dict[str, Any]] = [
    *({"epochs": v} for v in (0, -3, True, 2.0, "3", None, math.nan, [3], 10**10, 10**5000)),
    *({"batch_size": v} for v in (0, True, 1.5, "128", None, b"128")),
    *({"latent_dim": v} for v in (0, 2.5, "2", None, (20,), 2**21)),
    *(
        {"hidden_dim": v}
        for v in ((), (0,), (400, -1), 400, "400", b"4", None, (4.0,), ((4,),), {4: 4})
    ),
    *({"threads": v} for v in (0, -1, 1.5, "2", True, 10**6)),
    *({"resume": v} for v in (b"run", "", 3, True)),
    *({"lr": v} for v in (0, -1e-3, math.nan, math.inf, "fast", None, True, 1j, 1e-40, [1])),
    *({"sigma": v, "likelihood": "gaussian"} for v in (0.0, -1, math.inf, "1", None, 1e200)),
    *({"beta": v} for v in (-0.5, math.nan, "1", None, 10**400)),
    *({"seed": v} for v in (-1, 2**63, 1.5, "0", None, math.nan, True)),
    *({"activation": v} for v in ("gelu", "", None, 3, ["relu"], torch.relu)),
    *({"likelihood": v} for v in ("laplace", 0, ("bernoulli",))),
    *({"workload": v} for v in ("gan", None, 1, [1])),
    *({"engine": v} for v in ("warp", None, True)),
    *({"amp": v} for v in ("fp16", "fp8", "", 16, True, torch.bfloat16)),
    *({"device": v} for v in ("", None, 0, torch.device("cpu"))),
    *({"data": v} for v in ("", None, 3, Path("x"))),
    *({"out": v} for v in ("", 3, Path("x"))),
    *({"data_dir": v} for v in ("", 3)),
    *({name: "yes"} for name in ("compile", "tf32", "graph", "flush_denormal", "plot", "quiet")),
    *({name: 1} for name in ("compile", "tf32", "graph", "flush_denormal", "plot", "quiet")),
    {"engine": "reference", "amp": "auto"},
    {"engine": "reference", "compile": True},
    {"engine": "reference", "tf32": True},
    {"sigma": 0.5, "likelihood": "bernoulli"},
]


@pytest.mark.parametrize("words", CONFIGS, ids=[str(i) for i in range(len(CONFIGS))])
def test_configs(words: dict[str, Any]) -> None:
    refusal(lambda: TrainConfig.of(**words), "--" + next(iter(words)).replace("_", "-"))


# What fit, evaluate, the loader and the model are handed

NOT_IMAGES: dict[str, tuple[Callable[[], Any], str]] = {
    "None": (lambda: None, "NoneType"),
    "a list": (lambda: [[0.5] * 16] * 20, "list"),
    "a ragged array": (lambda: np.array([[1.0], [1.0, 2.0]], dtype=object), "object"),
    "a text": (lambda: "mnist", "str"),
    "a generator": (lambda: (x for x in pixels()), "generator"),
    "a data loader": (lambda: vaebench.DeviceLoader(pixels(), batch_size=2), "DeviceLoader"),
    "0-d": (lambda: torch.tensor(0.5), "shape ()"),
    "1-d": (lambda: torch.zeros(16), "shape (16,)"),
    "5-d": (lambda: torch.zeros(2, 1, 1, 4, 4), "shape (2, 1, 1, 4, 4)"),
    "no images": (lambda: pixels()[:0], "empty"),
    "no pixels": (lambda: pixels()[:, :0], "empty"),
    "int64": (lambda: pixels().long(), "only uint8 and floats"),
    "int8": (lambda: pixels().to(torch.int8), "only uint8 and floats"),
    "bool": (lambda: pixels() > 99, "multiply by 255"),
    "complex": (lambda: torch.zeros(20, 4, 4, dtype=torch.complex64), "only uint8 and floats"),
    "quantised": (
        lambda: torch.quantize_per_tensor(torch.zeros(20, 4, 4), 0.1, 0, torch.quint8),
        "only uint8 and floats",
    ),
    "sparse": (lambda: torch.eye(16).to_sparse(), "to_dense"),
    "sparse rows": (lambda: torch.eye(16).to_sparse_csr(), "to_dense"),
    "nested": (lambda: torch.nested.nested_tensor([torch.ones(4), torch.ones(3)]), "to_dense"),
    "meta": (lambda: torch.zeros(20, 4, 4, device="meta"), "meta"),
    "NaN": (lambda: torch.full((20, 4, 4), math.nan), "NaN or infinite"),
    "one infinity": (
        lambda: torch.zeros(20, 16).index_fill(0, torch.tensor(3), math.inf),
        "(3, 0)",
    ),
    "a float64 too large": (lambda: np.full((20, 4, 4), 1e300), "NaN or infinite in float32"),
    "above 1": (lambda: torch.full((20, 4, 4), 255.0), "rescale"),
    "below 0": (lambda: torch.full((20, 4, 4), -0.01), "rescale"),
    "masked": (lambda: np.ma.masked_array(pixels().numpy(), mask=False), "masked"),
    "text in an array": (lambda: pixels().numpy().astype(str), "only uint8 and floats"),
    "of another size": (lambda: torch.zeros(20, 5, 4), "does not take images of shape (5, 4)"),
}
# A loader yields what it is given: values and shapes beyond a first dimension are not its affair.
NOT_LOADED = [
    "None", "a list", "a ragged array", "a text", "0-d", "no images", "no pixels", "int64", "bool",
    "complex", "quantised", "sparse", "nested", "meta",
]  # fmt: skip

FIT: list[tuple[dict[str, Any], str]] = [
    *(({"epochs": v}, "epochs is") for v in (0, -1, 2.5, "3", True, math.nan)),
    *(({"batch_size": v}, "batch_size is") for v in (0, -1, 2.5, "8", True, 21, 10**30)),
    *(({"lr": v}, "lr is") for v in (0.0, -1, math.nan, math.inf, "x", True, 1e300, 1e-300)),
    *(({"likelihood": v}, "likelihood is") for v in ("laplace", "", 3, ["bernoulli"])),
    *(({"sigma": v}, "sigma is") for v in (0, -1, math.nan, "x", None, 1e-200)),
    *(({"beta": v}, "beta is") for v in (-1, math.inf, "x", None)),
    *(({"seed": v}, "seed is") for v in (-1, 2**63, 1.5, "x")),
    *(({"device": v}, "auto, cpu, cuda") for v in ("abacus", "", None, 3.5, "meta", b"cpu")),
    *(({"compile": v}, "True or False") for v in ("no", 1)),
    *(({"flush_denormal": v}, "True or False") for v in ("no", 0)),
    *(({"graph": v}, "True or False") for v in ("no", 0)),
    *(({"tf32": v}, "True or False") for v in ("no", 0)),
    ({"engine": "reference", "tf32": True}, "drop tf32"),
    *(({"amp": v}, "amp") for v in ("fp16", "fp8", 16, "")),
    *(({"engine": v}, "fast, reference") for v in ("warp", None, 3)),
    *(({"on_epoch": v}, "function of one EpochRecord") for v in (3, "print")),
    ({"engine": "reference", "compile": True}, "drop compile, or use"),
    ({"engine": "reference", "amp": True}, "drop amp, or use"),
    ({"test_images": torch.zeros(3, 5, 4)}, "make them alike"),
    ({"test_images": torch.zeros(3, 16)}, "make them alike"),
    ({"test_images": torch.full((3, 4, 4), 2.0)}, "test_images holds values"),
]
EVALUATE: list[tuple[dict[str, Any], str]] = [
    *(({"samples": v}, "samples is") for v in (0, -1, 1.5, "x", None, True)),
    *(({"batch_size": v}, "batch_size is") for v in (0, -1, 1.5, "x", None)),
    *(({"seed": v}, "seed is") for v in (-1, 1.5, "x", 2**64)),
    *(({"likelihood": v}, "likelihood is") for v in ("laplace", "", 3)),
    *(({"sigma": v}, "sigma is") for v in (0, math.nan, "x")),
]
LOADER: list[tuple[dict[str, Any], str]] = [
    *(({"batch_size": v}, "batch_size is") for v in (0, -1, 2.5, "x", None, True)),
    *(({"seed": v}, "seed is") for v in (-1, 1.5, "x")),
    *(({"device": v}, "auto, cpu, cuda") for v in ("abacus", 3.5, "meta", "cuda:x")),
    *(({"transform": v}, "transform is") for v in ("crop", 3, [abs, "crop"])),
    *(({"generator": v}, "generator is") for v in (3, "cpu", torch.default_generator.__class__)),
    ({"seed": 1, "generator": torch.Generator()}, "give one of them"),
    *(({"as_tuple": v}, "True or False") for v in ("no", 1)),
    *(({"shuffle": v}, "True or False") for v in ("no", None)),
    *(({"drop_last": v}, "True or False") for v in ("no", 1)),
]
BESIDE: dict[str, tuple[Callable[[], Any], str]] = {
    "too short": (lambda: torch.zeros(19), "as long as"),
    "too long": (lambda: torch.zeros(21, 2), "as long as"),
    "a list": (lambda: [0] * 20, "list"),
    "0-d": (lambda: torch.tensor(3), "without dimensions"),
    "an array of text": (lambda: np.array(["a"] * 20), "give numbers"),
    "masked": (lambda: np.ma.masked_array(np.zeros(20)), "MaskedArray"),
    "sparse": (lambda: torch.eye(20).to_sparse(), "dense"),
}
RECIPES: list[dict[str, Any]] = [
    *({"image_shape": v} for v in ((), (4, 0), (4, -1), 16, "44", (4.0, 4), None, (4, None))),
    *({"hidden_dims": v} for v in ((), (0,), 400, "400", (4.5,), None, (2**21,), [4, "4"])),
    *({"latent_dim": v} for v in (0, -1, 2.0, "2", None, True, 10**12)),
    *({"activation": v} for v in ("gelu", None, ["relu"], nn.ReLU)),
    *({"likelihood": v} for v in ("laplace", None, {1: 2}, "Gaussian")),
]


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch's, of making such tensors
@pytest.mark.parametrize("name", NOT_IMAGES)
def test_images(name: str) -> None:
    make, said = NOT_IMAGES[name]
    model = small_vae()
    refusal(lambda: vaebench.fit(model, make(), batch_size=2, device="cpu"), said)
    refusal(lambda: vaebench.evaluate(model, make()), said)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", NOT_LOADED)
def test_loaded(name: str) -> None:
    make, _ = NOT_IMAGES[name]
    refusal(lambda: vaebench.DeviceLoader(make(), batch_size=2), "images")


@pytest.mark.parametrize(("words", "said"), FIT, ids=[str(i) for i in range(len(FIT))])
def test_fit(words: dict[str, Any], said: str) -> None:
    model = small_vae()
    before = [p.detach().clone() for p in model.parameters()]
    sound = {"device": "cpu", "epochs": 1, "batch_size": 8}
    refusal(lambda: vaebench.fit(model, pixels(), **{**sound, **words}), said)
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize(("words", "said"), EVALUATE, ids=[str(i) for i in range(len(EVALUATE))])
def test_evaluate(words: dict[str, Any], said: str) -> None:
    refusal(lambda: vaebench.evaluate(small_vae(), pixels(), **words), said)


@pytest.mark.parametrize(("words", "said"), LOADER, ids=[str(i) for i in range(len(LOADER))])
def test_loader(words: dict[str, Any], said: str) -> None:
    refusal(lambda: vaebench.DeviceLoader(pixels(), **{"batch_size": 2, **words}), said)


@pytest.mark.parametrize("name", BESIDE)
def test_beside_images(name: str) -> None:
    make, said = BESIDE[name]
    refusal(lambda: vaebench.DeviceLoader(pixels(), make(), batch_size=2), said)


@pytest.mark.parametrize("words", RECIPES, ids=[str(i) for i in range(len(RECIPES))])
def test_recipes(words: dict[str, Any]) -> None:
    refusal(lambda: vaebench.VAE(**words), f"{next(iter(words))} is")


@pytest.mark.parametrize("n", [0, -1, 1.5, "4", None])
def test_samples(n: Any) -> None:
    refusal(lambda: small_vae().sample(n), "n is", COUNT)


# Models of the user's own


class Own(nn.Module):
    """A sound VAE of another make."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(16, 4), nn.Linear(2, 16)

    def encode(self, x: Tensor) -> Any:
        mu, logvar = self.into(x.flatten(1)).chunk(2, 1)
        return mu, logvar

    def decode(self, z: Tensor) -> Any:
        return self.out(z)


def own(encode: Any = None, decode: Any = None, **attributes: Any) -> nn.Module:
    """A VAE with some method or attribute of its own."""
    model = Own()
    for name, value in {"encode": encode, "decode": decode, **attributes}.items():
        if value is not None:
            setattr(model, name, value.__get__(model) if callable(value) else value)
    return model


def frozen() -> nn.Module:
    return Own().requires_grad_(False)


def on_meta() -> nn.Module:
    with torch.device("meta"):
        return Own()


def no_parameters() -> nn.Module:
    model = own(lambda s, x: (x.flatten(1)[:, :2],) * 2, lambda s, z: z.repeat(1, 8))
    del model.into, model.out
    return model


def normalised() -> nn.Module:
    """Batch norm does not train on one image, and a last batch of one is what it is given."""
    model = Own()
    model.into = nn.Sequential(nn.Linear(16, 4), nn.BatchNorm1d(4))  # type: ignore[assignment]
    return model


def _changed(model: Any, z: Tensor) -> Any:
    out = model.out(z)
    kept = out.sigmoid()
    kept += 1  # what the backward pass of sigmoid needs is gone
    return kept


MODELS: dict[str, tuple[Callable[[], Any], str]] = {
    "None": (lambda: None, "torch.nn.Module"),
    "a text": (lambda: "mlp", "torch.nn.Module"),
    "a class": (lambda: Own, "not its class"),
    "a function": (lambda: lambda x: x, "torch.nn.Module"),
    "no encode": (lambda: nn.Linear(16, 2), "no method encode"),
    "no decode": (lambda: own(decode=3), "no method decode"),
    "no parameters": (no_parameters, "no parameters"),
    "all frozen": (frozen, "frozen"),
    "on meta": (on_meta, "meta"),
    "half precision": (lambda: Own().half(), "does not take images"),
    "float64": (lambda: Own().double(), "does not take images"),
    "a single tensor from encode": (
        lambda: own(lambda s, x: s.into(x.flatten(1))),
        "encode gave one tensor of shape",
    ),
    "three tensors from encode": (
        lambda: own(lambda s, x: s.into(x.flatten(1)).split(1, 1)[:3]),
        "decode raised RuntimeError",
    ),
    "None from encode": (lambda: own(lambda s, x: None), "NoneType"),
    "lists from encode": (lambda: own(lambda s, x: ([1.0, 2.0], [0.0, 0.0])), "encode gave a list"),
    "whole numbers from encode": (
        lambda: own(lambda s, x: (torch.ones(len(x), 2, dtype=torch.int64),) * 2),
        "encode gave torch.int64",
    ),
    "no latents": (lambda: own(lambda s, x: (x.flatten(1)[:, :0],) * 2), "(batch, latent)"),
    "mu without a batch": (lambda: own(lambda s, x: (x.flatten()[:2],) * 2), "(batch, latent)"),
    "a batch of another size": (
        lambda: own(lambda s, x: (x.flatten(1)[:, :2].repeat(2, 1),) * 2),
        "(batch, latent)",
    ),
    "logvar of another size": (
        lambda: own(lambda s, x: (x.flatten(1)[:, :2], x.flatten(1)[:, :3])),
        "(batch, latent)",
    ),
    "encode of another sort": (lambda: own(lambda s: None), "does not take images"),
    "encode that fails": (lambda: own(lambda s, x: torch.cat([])), "does not take images"),
    "None from decode": (lambda: own(decode=lambda s, z: None), "decode gave a NoneType"),
    "an array from decode": (
        lambda: own(decode=lambda s, z: s.out(z).detach().numpy()),
        "decode gave a ndarray",
    ),
    "bools from decode": (lambda: own(decode=lambda s, z: s.out(z) > 0), "decode gave torch.bool"),
    "too few pixels": (lambda: own(decode=lambda s, z: s.out(z)[:, :9]), "9 numbers per image"),
    "too many pixels": (lambda: own(decode=lambda s, z: s.out(z).repeat(1, 2)), "32 numbers"),
    "no gradient": (
        lambda: own(lambda s, x: (x.flatten(1)[:, :2],) * 2, lambda s, z: s.out(z).detach()),
        "cannot be trained",
    ),
    "a gradient that was overwritten": (lambda: own(decode=_changed), "cannot be trained"),
    "batch norm on one image": (normalised, "a batch of 1 image"),
    "a likelihood nobody knows": (lambda: own(likelihood="poisson"), "bernoulli, gaussian"),
    "a likelihood that is no text": (lambda: own(likelihood=3), "bernoulli, gaussian"),
}


@pytest.mark.parametrize("name", MODELS)
def test_models(name: str) -> None:
    make, said = MODELS[name]
    # 19 in batches of 6 leave a last batch of one.
    refusal(lambda: vaebench.fit(make(), pixels(19), batch_size=6, device="cpu", epochs=1), said)


def test_a_model_that_was_refused_is_as_it_was() -> None:
    model = normalised().eval()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    refusal(lambda: vaebench.fit(model, pixels(19), batch_size=6, device="cpu"), "1 image")
    assert not model.training
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


# Run folders


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


def config_of(**model: Any) -> Callable[[Path], None]:
    def damage(run: Path) -> None:
        config = json.loads((run / CONFIG).read_text())
        config["model"] |= model
        (run / CONFIG).write_text(json.dumps(config))

    return damage


def content(name: str, new: bytes) -> Callable[[Path], Any]:
    return lambda run: (run / name).write_bytes(new)


def tensors(change: Callable[[dict[str, Tensor]], Any]) -> Callable[[Path], None]:
    def damage(run: Path) -> None:
        found = load_file(run / MODEL)
        change(found)
        save_file(found, run / MODEL)

    return damage


def instead(name: str, make: Callable[[Path], Any]) -> Callable[[Path], None]:
    """Something else than a file under this name."""

    def damage(run: Path) -> None:
        (run / name).unlink()
        make(run / name)

    return damage


def cut(name: str, at: int) -> Callable[[Path], Any]:
    return lambda run: (run / name).write_bytes((run / name).read_bytes()[:at])


NAN = torch.full((2,), math.nan)
RUNS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no config": (lambda run: (run / CONFIG).unlink(), "no run folder"),
    "no model": (lambda run: (run / MODEL).unlink(), "before the first epoch"),
    "config a folder": (instead(CONFIG, Path.mkdir), "not a regular file"),
    "config a pipe": (instead(CONFIG, os.mkfifo), "not a regular file"),
    "config endless": (instead(CONFIG, lambda p: p.symlink_to("/dev/zero")), "not a regular file"),
    "config a link to itself": (instead(CONFIG, lambda p: p.symlink_to(p)), "config.json"),
    "config a link to nothing": (instead(CONFIG, lambda p: p.symlink_to("x")), "no run folder"),
    "config empty": (content(CONFIG, b""), "config.json"),
    "config cut": (cut(CONFIG, 60), "config.json"),
    "config not text": (content(CONFIG, b"\xff\xfe\0"), "config.json"),
    "config of nulls": (content(CONFIG, bytes(500)), "config.json"),
    "config a number": (content(CONFIG, b"3"), "no object"),
    "config a list": (content(CONFIG, b"[{}]"), "no object"),
    "config null": (content(CONFIG, b"null"), "no object"),
    "config nested deeply": (content(CONFIG, b'{"model":' + b"[" * 10**5), "config.json"),
    "config with an endless number": (content(CONFIG, b'{"model":' + b"9" * 9999), "config.json"),
    "config of megabytes": (content(CONFIG, b" " * (10**6 + 1)), "bytes"),
    "config with another quote": (content(CONFIG, b"{'model': {}}"), "config.json"),
    "config of two objects": (content(CONFIG, b"{}{}"), "config.json"),
    "config without a model": (content(CONFIG, b'{"epochs": 3}'), "model"),
    "model null": (content(CONFIG, b'{"model": null}'), "damaged"),
    "model a list": (content(CONFIG, b'{"model": [1]}'), "damaged"),
    "model a text": (content(CONFIG, b'{"model": "mlp"}'), "damaged"),
    "model nameless": (content(CONFIG, b'{"model": {"": 1}}'), "damaged"),
    "an unknown word": (config_of(depth=3), "depth"),
    "latent size a text": (config_of(latent_dim="2"), "latent_dim"),
    "latent size null": (config_of(latent_dim=None), "latent_dim"),
    "latent size a fraction": (config_of(latent_dim=2.0), "latent_dim"),
    "latent size 0": (config_of(latent_dim=0), "latent_dim"),
    "latent size another": (config_of(latent_dim=3), "shape"),
    "latent size absurd": (config_of(latent_dim=10**15), "latent_dim"),
    "latent size vast": (config_of(latent_dim=2**20, hidden_dims=[2**20]), "shape"),
    "images a number": (config_of(image_shape=16), "image_shape"),
    "images of no size": (config_of(image_shape=[]), "image_shape"),
    "images of absurd size": (config_of(image_shape=[10**15, 10**15]), "damaged"),
    "images a text": (config_of(image_shape="44"), "image_shape"),
    "hidden a number": (config_of(hidden_dims=5), "hidden_dims"),
    "hidden nested": (config_of(hidden_dims=[[5]]), "hidden_dims"),
    "one more layer": (config_of(hidden_dims=[5, 5]), "encoder.2"),
    "activation unknown": (config_of(activation="gelu"), "activation"),
    "activation a list": (config_of(activation=["relu"]), "activation"),
    "likelihood unknown": (config_of(likelihood="laplace"), "likelihood"),
    "tensors a folder": (instead(MODEL, Path.mkdir), "not a regular file"),
    "tensors a pipe": (instead(MODEL, os.mkfifo), "not a regular file"),
    "tensors empty": (content(MODEL, b""), "damaged"),
    "tensors cut in the header": (cut(MODEL, 20), "damaged"),
    "tensors cut in the body": (cut(MODEL, -1), "damaged"),
    "tensors with more behind": (
        lambda run: (run / MODEL).write_bytes((run / MODEL).read_bytes() + b"x"),
        "damaged",
    ),
    "tensors with an absurd header": (content(MODEL, b"\xff" * 8 + b"{}"), "damaged"),
    "tensors a pickle": (
        lambda run: torch.save(small_vae().state_dict(), run / MODEL),
        "damaged",
    ),
    "tensors garbage": (content(MODEL, os.urandom(3000)), "damaged"),
    "a tensor missing": (tensors(lambda t: t.pop("mu.bias")), "mu.bias"),
    "a tensor too many": (tensors(lambda t: t.update(extra=torch.zeros(1))), "extra"),
    "a tensor of another name": (tensors(lambda t: t.update(nu=t.pop("mu.bias"))), "nu"),
    "no tensors": (tensors(lambda t: t.clear()), "mu.bias"),
    "a tensor of another shape": (tensors(lambda t: t.update({"mu.bias": torch.ones(3)})), "(3,)"),
    "a tensor laid flat": (tensors(lambda t: t.update({"mu.bias": torch.ones(1, 2)})), "(1, 2)"),
    "a tensor of halves": (tensors(lambda t: t.update({"mu.bias": torch.ones(2).half()})), "16"),
    "a tensor of whole numbers": (
        tensors(lambda t: t.update({"mu.bias": torch.ones(2, dtype=torch.int64)})),
        "int64",
    ),
    "NaN in a tensor": (tensors(lambda t: t.update({"mu.bias": NAN})), "NaN"),
}
PLACES: dict[str, tuple[Any, str]] = {
    "nothing": ("absent", "no run folder"),
    "a file": (__file__, "no run folder"),
    "the empty path": ("", "by its path"),
    "None": (None, "by its path"),
    "a number": (3, "by its path"),
    "a null": ("a\0b", ""),
    "a line break": ("a\nb", "no run folder"),
    "a long name": ("x" * 9999, ""),
    "no text": ("\ud800", ""),
}


@pytest.mark.parametrize("name", RUNS)
def test_runs(name: str, run_folder: Path) -> None:
    damage, said = RUNS[name]
    damage(run_folder)
    refusal(lambda: vaebench.load(run_folder), str(run_folder), said)


@pytest.mark.parametrize("name", PLACES)
def test_places_without_a_run(name: str) -> None:
    place, said = PLACES[name]
    refusal(lambda: vaebench.load(place), said)


# scripts/plot.py


@pytest.fixture(scope="module")
def plot() -> ModuleType:
    path = Path(__file__).parents[2] / "scripts" / "plot.py"
    spec = importlib.util.spec_from_file_location("plot_program", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def metrics(line: str) -> Callable[[Path], Any]:
    return content(METRICS, line.encode())


def untouched(run: Path) -> None:
    """Leave the run folder as it is."""


PLOTS: dict[str, tuple[Callable[[Path], Any], str, str]] = {
    "no run": (untouched, "", "RUN"),
    "a run that is not there": (untouched, "absent", "no run folder"),
    "a kind in the run's place": (untouched, "samples", "no run folder"),
    "an unknown kind": (untouched, "{run} sample", "neither a kind of picture"),
    "an unknown option": (untouched, "{run} --colour red", HELP),
    "an option cut short": (untouched, "{run} --perc 0.1 0.9", HELP),
    **{f"grid {v}": (untouched, f"{{run}} --grid {v}", "2 .. 100") for v in (0, 1, -5, 101)},
    **{f"grid {v}": (untouched, f"{{run}} --grid {v}", INT) for v in ("x", "2.5", "''")},
    **{
        f"percentiles {v}": (untouched, f"{{run}} --percentiles {v}", "0.05 0.95")
        for v in ("0 1", "0.9 0.1", "0.5 0.5", "nan 0.9", "0.1 inf", "-1 0.5")
    },
    "percentiles a text": (untouched, "{run} --percentiles a b", FLOAT),
    "one percentile": (untouched, "{run} --percentiles 0.5", "expected 2"),
    **{f"latent {v}": (untouched, f"{{run}} --latent {v}", "choose") for v in ("median", "''")},
    **{f"seed {v}": (untouched, f"{{run}} --seed {v}", "2**63") for v in ("-1", str(2**63))},
    "seed a text": (untouched, "{run} --seed x", INT),
    "out a file": (untouched, "{run} samples --out {file}", "choose another folder"),
    "out nowhere": (untouched, "{run} samples --out /proc/x", "choose another folder"),
    "out too long": (untouched, "{run} samples --out " + "x" * 300, "choose another folder"),
    "several runs, one picture": (untouched, "{run} {run} samples", "only curves"),
    "config without data": (content(CONFIG, b'{"model": {}}'), "{run}", "data"),
    "data a number": (
        lambda run: (run / CONFIG).write_bytes((run / CONFIG).read_bytes().replace(b'"mlp"', b"5")),
        "{run} curves",
        "workload is 5",
    ),
    "data that has gone": (
        lambda run: (run / CONFIG).write_bytes(
            (run / CONFIG).read_bytes().replace(b"small.npz", b"gone.npz")
        ),
        "{run} latent",
        "gone.npz",
    ),
    "no metrics": (lambda run: (run / METRICS).unlink(), "{run} curves", METRICS),
    "metrics empty": (metrics(""), "{run} curves", "no epoch"),
    "metrics no JSON": (metrics("epoch 1"), "{run} curves", METRICS),
    "metrics cut": (cut(METRICS, 20), "{run} curves", METRICS),
    "metrics a number": (metrics("5"), "{run} curves", "epoch is None"),
    "metrics an empty object": (metrics("{}"), "{run} curves", "epoch is None"),
    "metrics of texts": (metrics('{"epoch": "1"}'), "{run} curves", "epoch is '1'"),
    "metrics nested deeply": (metrics("[" * 10**5), "{run} curves", METRICS),
    "metrics not text": (content(METRICS, b"\xff\xfe"), "{run} curves", METRICS),
    "result no JSON": (content(RESULT, b"x"), "{run} curves", RESULT),
    "result a list": (content(RESULT, b"[]"), "{run} curves", "no object"),
    "dataset a number": (content(RESULT, b'{"dataset": 5}'), "{run} curves", "dataset is 5"),
}


@pytest.mark.parametrize("name", PLOTS)
def test_plots(
    name: str, plot: ModuleType, run_folder: Path, as_a_program: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    damage, words, said = PLOTS[name]
    damage(run_folder)
    before = sorted(as_a_program.iterdir())
    start = time.monotonic()
    status = plot.main([w.format(run=run_folder, file=__file__) for w in shlex.split(words)])
    assert time.monotonic() - start < PATIENCE
    captured = capsys.readouterr()
    assert status == 2
    assert captured.err.startswith("vaebench: ")
    assert captured.err[:-1].isprintable()
    assert said in captured.err
    assert captured.out == ""
    assert sorted(as_a_program.iterdir()) == before


# How many

DOORS: dict[str, list[object]] = {
    "command line": [*(words for words, _ in COMMANDS), *RAW_COMMANDS],
    "environment": list(range(len(DATA_FOLDERS))),
    "config": list(range(len(CONFIGS))),
    "images": list(NOT_IMAGES),
    "fit": list(range(len(FIT))),
    "evaluate": list(range(len(EVALUATE))),
    "loader": [*range(len(LOADER)), *BESIDE],
    "model recipes": list(range(len(RECIPES))),
    "models": list(MODELS),
    "run folders": [*RUNS, *PLACES],
    "pictures": list(PLOTS),
}


def test_there_are_hundreds() -> None:
    for door, cases in DOORS.items():
        assert len(set(cases)) == len(cases), door
    assert sum(map(len, DOORS.values())) >= 400


# Odd, but harmless

TWINS: dict[str, Callable[[Tensor], Any]] = {
    "not contiguous": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    "every other of twice as many": lambda x: x.repeat_interleave(2, 0)[::2],
    "with a gradient": lambda x: x.clone().requires_grad_(),
    "a parameter": lambda x: nn.Parameter(x.clone()),
    "made by something with a gradient": lambda x: x.clone().requires_grad_() * 1,
    "float64": lambda x: x.double(),
    "NumPy": lambda x: x.numpy(),
    "NumPy, big-endian": lambda x: x.numpy().astype(">f4"),
    "NumPy, by columns": lambda x: np.asfortranarray(x.numpy()),
    "NumPy, backwards": lambda x: x.numpy()[::-1].copy()[::-1],
    "NumPy, read-only": lambda x: np.frombuffer(x.numpy().tobytes(), np.float32).reshape(x.shape),
    "uint8": lambda x: (x * 255).round().to(torch.uint8),
}


@pytest.mark.parametrize("name", first(4, TWINS))
def test_twins_give_the_same_bits(name: str) -> None:
    plain = pixels().float() / 255
    results = []
    for images in (plain, TWINS[name](plain)):
        model = small_vae()
        history = vaebench.fit(model, images, batch_size=8, epochs=2, device="cpu")
        results.append((history.epochs[-1].train_elbo, vaebench.evaluate(model, images).elbo))
    assert results[0] == results[1]


def test_numpy_numbers_are_numbers() -> None:
    words: dict[str, Any] = {
        "epochs": np.int64(1),
        "batch_size": np.uint8(8),
        "lr": np.float32(1e-3),
    }
    words |= {"seed": np.int32(5), "beta": np.float64(1), "sigma": 1}
    assert len(vaebench.fit(small_vae(), pixels(), device="cpu", **words).epochs) == 1
    two: Any = np.int64(2)
    assert vaebench.evaluate(small_vae(), pixels(), samples=two).samples == 2


def test_parameters_out_of_reach_stay_as_they_are() -> None:
    """A head that the ELBO does not use: the reference leaves it alone, and so does the fast."""
    histories = []
    for engine in ("fast", "reference"):
        torch.manual_seed(0)
        model = Own()
        model.head = nn.Linear(2, 10)
        before = model.head.weight.detach().clone()
        history = vaebench.fit(model, pixels(), batch_size=8, epochs=2, device="cpu", engine=engine)
        histories.append(history.epochs[-1].train_elbo)
        assert torch.equal(model.head.weight, before)
    assert histories[0] == pytest.approx(histories[1], rel=1e-5)


# Anything at all

FUZZ = settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
FLAGS = sorted(f"--{name.replace('_', '-')}" for name in TrainConfig.__dataclass_fields__)
VALUES = ["0", "1", "-1", "nan", "cpu", "auto", "relu", "bf16", "1e9", "", "--", "gaussian", "mlp"]
ANYTHING = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5),
    st.binary(max_size=5), st.lists(st.integers(-3, 500), max_size=3),
    st.tuples(st.integers(-3, 500)),
)  # fmt: skip


def done_or_refused(work: Callable[[], object], *words: str) -> None:
    """The call ends, or it raises an InputError of one line that holds the words."""
    said = None
    try:
        work()
    except InputError as error:
        said = str(error)
    assert said is None or said.isprintable()
    assert said is None or all(word in said for word in words)


@FUZZ
@given(st.lists(st.one_of(st.sampled_from(FLAGS), st.sampled_from(VALUES), st.text(max_size=8))))
def test_any_arguments_are_a_config_or_refused(words: list[str]) -> None:
    assume(not {"-h", "--help"} & set(words))  # it leaves at once
    done_or_refused(lambda: parse(words))


@FUZZ
@given(st.dictionaries(st.sampled_from(list(OPTIONS)), ANYTHING))
def test_any_values_are_a_config_or_refused(words: dict[str, Any]) -> None:
    # A run folder can hold it.
    done_or_refused(lambda: json.dumps(TrainConfig.of(**words).options()))


def test_widths_are_kept_as_a_tuple() -> None:
    config = TrainConfig.of(hidden_dim=range(3, 5))
    assert config.network.hidden_dim == (3, 4)


@settings(FUZZ, max_examples=40)
@given(
    st.sampled_from(["epochs", "batch_size", "lr", "sigma", "beta", "seed", "likelihood", "amp"]),
    ANYTHING,
)
def test_any_value_trains_or_is_refused(name: str, value: Any) -> None:
    if name == "epochs" and isinstance(value, int):
        value = min(value, 2)
    words = {"batch_size": 20, "epochs": 1, "device": "cpu", name: value}
    with contextlib.suppress(TrainingError):  # a number too large to train with
        done_or_refused(lambda: vaebench.fit(small_vae(), pixels(), **words), name)


@FUZZ
@given(
    st.sampled_from([CONFIG, MODEL]),
    st.lists(st.tuples(st.integers(0, 10**4), st.integers(0, 255)), min_size=1, max_size=4),
    st.integers(0, 10**4),
)
def test_any_damage_to_a_run_is_found_or_harmless(
    sound_run: dict[str, bytes], run_folder: Path, name: str, spoilt: list[tuple[int, int]],
    length: int,
) -> None:  # fmt: skip
    whole = bytearray(sound_run[name])
    for at, value in spoilt:
        whole[at % len(whole)] = value
    for file, sound in sound_run.items():
        (run_folder / file).write_bytes(sound if file != name else bytes(whole)[: length or None])
    done_or_refused(lambda: vaebench.load(run_folder).sample(1), str(run_folder))


@FUZZ
@given(content=st.binary(max_size=200).map(lambda b: b"\0\0" + b))
def test_any_bytes_are_idx_or_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "own").write_bytes(content)
    done_or_refused(lambda: read_idx(tmp_path / "own").numel(), "own")
