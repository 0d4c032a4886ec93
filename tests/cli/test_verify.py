"""``vaebench verify``, as people run it."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from vaebench.cli import verify
from vaebench.data.strokes import make_strokes
from vaebench.fast.optimizer import Numbers

SMALL = "--device cpu --hidden-dim 16 --latent-dim 2 --batch-size 32 --amp bf16".split()


@pytest.fixture
def npz(tmp_path: Path) -> Path:
    images = make_strokes(500, seed=3)[0].numpy()
    path = tmp_path / "small.npz"
    np.savez(path, x_train=images[:400], x_test=images[400:])
    return path


@pytest.mark.slow
def test_it_says_that_all_is_equal(npz: Path, tmp_path: Path) -> None:
    out = tmp_path / "proof.json"
    command = [
        sys.executable,
        "-m",
        "vaebench",
        "verify",
        *SMALL,
        "--data",
        str(npz),
        "--json",
        str(out),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert lines[0].startswith("techniques")
    assert lines[1].startswith("objective")
    assert lines[-1].startswith("equal (")
    assert json.loads(out.read_text())["passed"] is True


@pytest.mark.slow
def test_what_is_not_equal_is_its_exit_status(
    npz: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = Numbers(eps=1e-8, beta1=0.9, beta2=0.5, weight_decay=0.0, momentum=0.0)
    monkeypatch.setattr(Numbers, "of", lambda settings: wrong)  # one number of the fast path's Adam
    assert verify.main([*SMALL, "--data", str(npz)]) == 1
    assert "NOT EQUAL: plain, L3: elbo" in capsys.readouterr().out


def test_a_bad_option_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert verify.main(["--epochs", "3"]) == 2
    assert "unrecognized arguments: --epochs 3" in capsys.readouterr().err
