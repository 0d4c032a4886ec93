"""``python -m vaebench.train`` as a person meets it: a process, its output, its files."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import vaebench
from tests.tiers import first
from vaebench.cli.summary import describe
from vaebench.cli.train import parse
from vaebench.config import OPTIONS, TrainConfig
from vaebench.data.strokes import make_strokes
from vaebench.errors import InputError

SMALL = ["--epochs", "2", "--hidden-dim", "48", "--latent-dim", "6", "--batch-size", "64"]


@pytest.fixture(scope="module")
def npz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """900 + 100 strokes as a user's own file."""
    images = make_strokes(1000, seed=3)[0].numpy()
    path = tmp_path_factory.mktemp("data") / "small.npz"
    np.savez(path, x_train=images[:900], x_test=images[900:])
    return path


def _run(*args: object, **words: Any) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "vaebench.train", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, **words)


def test_the_whole_way(npz: Path, tmp_path: Path) -> None:
    out = tmp_path / "runs" / "one"
    args = ["--compile", "--amp", "--data", npz, "--device", "cpu", "--out", out, *SMALL]
    done = _run(*args)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # not a terminal: no bar; and nothing to warn of
    assert "epoch   2" in done.stdout
    assert "test ELBO" in done.stdout.splitlines()[2]
    assert sorted(p.name for p in out.iterdir()) == [
        "checkpoint-000001.safetensors",
        "checkpoint-000002.safetensors",
        "config.json",
        "metrics.jsonl",
        "model.safetensors",
        "result.json",
    ]
    metrics = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [m["epoch"] for m in metrics] == [1, 2]
    assert set(metrics[0]) == {
        "epoch",
        "train_elbo",
        "test_elbo",
        "recon",
        "kl",
        "seconds",
        "images_per_second",
        "validation_elbo",
    }
    result = json.loads((out / "result.json").read_text())
    assert result["dataset"] == "small.npz"
    assert result["test_elbo"] == metrics[1]["test_elbo"]
    assert result["requested"]["compile"] is result["actual"]["compile"] is True
    assert result["requested"]["amp"] == "auto"
    assert result["actual"]["amp"] in ("bf16", "float32")
    reasons = ("--amp: a bf16 matrix product runs at", "--amp: this cpu has no bfloat16")
    assert any(note.startswith(reasons) for note in result["notes"])
    parts = [v for k, v in result["seconds"].items() if k != "total"]
    assert 0 < sum(parts) <= result["seconds"]["total"]
    assert 0 < result["peak_share"] < 1

    model = vaebench.load(out)
    again = vaebench.evaluate(model, torch.from_numpy(np.load(npz)["x_test"]))
    assert again.elbo == pytest.approx(result["test_elbo"], rel=1e-5)
    assert not model.training


@pytest.mark.slow
def test_strokes_stand_in_and_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No data on disk and no network: every host is a closed port of this machine."""
    env = {k: v for k, v in os.environ.items() if k != "VAEBENCH_DATA"}
    closed = "http://127.0.0.1:9"
    env |= {"http_proxy": closed, "https_proxy": closed, "no_proxy": ""}
    done = _run("--epochs", 1, "--hidden-dim", 16, "--out", "run", cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    assert "strokes stand in" in done.stderr
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["dataset"] == "strokes"
    assert "whose ELBO is not MNIST's" in result["notice"]
    assert result["requested"]["data"] == "auto"
    assert result["actual"]["data"] == "strokes"
    assert not (tmp_path / "data").exists()


BAD = {
    "unknown flag": ["--bananas"],
    "a flag cut short": ["--epoch", "3"],
    "batch size 0": ["--batch-size", "0"],
    "batch size larger than the data": ["--batch-size", "901"],
    "batch size no number": ["--batch-size", "many"],
    "epochs 0": ["--epochs", "0"],
    "latent size 0": ["--latent-dim", "0"],
    "hidden width -1": ["--hidden-dim", "-1"],
    "learning rate nan": ["--lr", "nan"],
    "seed -1": ["--seed", "-1"],
    "threads 0": ["--threads", "0"],
    "fp16": ["--amp", "fp16"],
    "unknown workload": ["--workload", "gan"],
    "unknown likelihood": ["--likelihood", "laplace"],
    "no such CUDA device": ["--device", "cuda:77"],
    "no such device": ["--device", "abacus"],
    "reference compiled": ["--engine", "reference", "--compile"],
    "missing data file": ["--data", "nowhere.npy"],
    "unwritable out": ["--out", "/proc/run"],
    "out is a file": ["--out", __file__],
    "out is not empty": ["--out", str(Path(__file__).parent)],
}


@pytest.mark.parametrize("args", BAD.values(), ids=BAD)
def test_bad_input(
    args: list[str],
    npz: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One line on stderr, status 2, nothing left behind. In this process, for speed."""
    from vaebench.cli.train import main

    monkeypatch.chdir(tmp_path)
    threads, handler = torch.get_num_threads(), signal.getsignal(signal.SIGTERM)
    try:
        status = main(["--data", str(npz), "--device", "cpu", *args])
    finally:
        torch.set_num_threads(threads)
        signal.signal(signal.SIGTERM, handler)
    captured = capsys.readouterr()
    assert status == 2
    assert captured.err.startswith("vaebench: ")
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    assert list(tmp_path.iterdir()) == []


def test_bad_input_in_a_process(tmp_path: Path) -> None:
    done = _run("--latent-dim", "0", "--out", "run", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "--latent-dim is 0" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_damaged_mnist_is_named(tmp_path: Path) -> None:
    for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (tmp_path / f"{name}-ubyte").write_bytes(b"\0\0\x08\x01\0\0\0\x01\x07")
    done = _run("--data", "mnist", "--data-dir", tmp_path, "--out", tmp_path / "run")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "train-images-idx3-ubyte" in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "number", first(1, [signal.SIGINT, signal.SIGTERM]), ids=["SIGINT", "SIGTERM"]
)
def test_interrupt_keeps_what_was_trained(number: int, npz: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    args = ["--data", npz, "--device", "cpu", "--out", out, *SMALL, "--epochs", "100000"]
    command = [sys.executable, "-m", "vaebench.train", *map(str, args)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        give_up = time.monotonic() + 240
        while not (out / "model.safetensors").exists() and time.monotonic() < give_up:
            time.sleep(0.05)
        process.send_signal(number)
        output, errors = process.communicate(timeout=240)
    assert process.returncode == 130
    assert errors.count("\n") == 1
    assert "interrupted after epoch" in errors
    epochs = json.loads((out / "result.json").read_text())["epochs"]
    assert len((out / "metrics.jsonl").read_text().splitlines()) == epochs < 100000
    assert vaebench.load(out).latent_dim == 6
    assert "epoch   1" in output


@pytest.mark.slow
def test_plot(npz: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = _run("--data", npz, "--device", "cpu", "--out", out, *SMALL, "--plot")
    assert done.returncode == 0, done.stderr
    drawn = [Path(line.split(": ")[1]) for line in done.stdout.splitlines() if "picture:" in line]
    assert {"manifold.png", "curves.png"} <= {p.name for p in drawn}
    assert all(p.stat().st_size > 1000 for p in drawn)


def test_quiet(npz: Path, tmp_path: Path) -> None:
    args = ["--data", npz, "--device", "cpu", "--out", tmp_path / "r", *SMALL, "--quiet"]
    done = _run(*args, "--engine", "reference", "--threads", 1)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    result = json.loads((tmp_path / "r" / "result.json").read_text())
    assert result["actual"]["engine"] == "reference"
    assert result["machine"]["threads"] == 1


def test_help_needs_no_torch() -> None:
    code = (
        "import sys, vaebench.train\n"
        "try: vaebench.train.main(['--help'])\n"
        "except SystemExit: pass\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name in OPTIONS:
        assert f"--{name.replace('_', '-')}" in done.stdout


def test_arguments_become_the_config() -> None:
    assert parse([]) == TrainConfig.of(likelihood="bernoulli")
    words = "--amp --hidden-dim 500 300 --no-flush-denormal --lr 3e-4 --device cpu"
    config = parse(words.split())
    given = {"amp": "auto", "hidden_dim": (500, 300), "flush_denormal": False, "lr": 3e-4}
    assert config == TrainConfig.of(**given, device="cpu", likelihood="bernoulli")
    assert parse(["--amp", "bf16"]).fast.amp == "bf16"
    with pytest.raises(InputError, match="--help lists the options"):
        parse(["--lr"])


def test_summary_says_what_was_asked_for_and_what_ran() -> None:
    mode = {"engine": "fast", "compile": True, "amp": "auto", "device": "auto", "data": "auto"}
    result = {
        "workload": "mlp",
        "conditional": False,
        "dataset": "strokes",
        "epochs": 3,
        "test_elbo": -98.765,
        "train_elbo": -97.0,
        "best": None,
        "test_images": 10000,
        "eval_samples": 1,
        "meaning": "score of grey pixels, no likelihood",
        "images_per_second": 54321.0,
        "peak_share": 0.5,
        "peak_flops": 3e11,
        "seconds": {"total": 9.0, "startup": 3.0, "compile": 2.0, "train": 1.5, "eval": 0.5},
        "requested": mode,
        "actual": mode | {"compile": False, "amp": "float32", "device": "cpu"},
        "notes": ["--compile: no compiler"],
    }
    text = describe(result)
    assert "-98.77 nats per image" in text
    assert "54,321 images/s; its dense arithmetic, done or left out, at 50% of torch's" in text
    assert "float32 peak here of 300 GFLOP/s" in text
    assert "other 2.0" in text
    assert "asked for: fast engine, compiled, amp auto, on auto, auto" in text
    assert "ran:       fast engine, eager, amp float32, on cpu, auto" in text
    assert "--compile: no compiler" in text
    text = describe({**result, "peak_share": math.nan})
    assert "54,321 images/s; its arithmetic could not be counted\n" in text
