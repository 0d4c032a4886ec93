"""The record: what is judged, what is refused, and what is stored."""

import dataclasses
import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from vaebench.cli.train import main
from vaebench.errors import InputError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def record(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The command's module, loaded as from the top of the checkout."""
    monkeypatch.syspath_prepend(ROOT)
    return importlib.import_module("benchmarks.record")


def _run(words: Any, seed: int, folder: Path, *, cold: bool = False) -> dict[str, Any]:
    return {
        "seed": seed, "seconds": 9.0 if cold else 5 + 0.01 * seed, "test_elbo": -105.0,
        "score": -105 - 0.05 * seed,
        "parts": {"train": 3.0, "eval": 0.1, "total": 5.0}, "epochs": 5, "steady": 6e4,
        "actual": {"amp": "bf16"},
    }  # fmt: skip


def test_the_mean_must_surely_be_there(record: ModuleType) -> None:
    near = [-105.4, -105.5, -105.3, -105.5, -105.45, -105.35]
    assert record.judged(near, -105.6)["reached"]
    just = record.judged(near, -105.45)
    assert not just["reached"]  # above it on average, which is not enough
    assert just["mean"] > -105.45
    assert just["low"] < just["mean"] < just["high"]
    assert record.judged(near, -105.0)["p"] > 0.99


def test_what_is_stored(record: ModuleType, tmp_path: Path) -> None:
    words = record.parse(["--runs", "4", "--cold", "2", "--data", "strokes", "--workload", "mlp"])
    result = record.measure(words, _run)
    assert result["warm"]["median"] == pytest.approx(5.015)
    assert result["cold"]["median"] == 9.0
    assert [run["seed"] for run in result["runs"]] == [0, 1, 2, 3]
    assert "20 runs make a record" in record.in_words(result)
    assert "-105.5 reached" in record.in_words(result)
    json.dumps(result, allow_nan=False)


def test_a_record_that_was_stopped_goes_on(record: ModuleType, tmp_path: Path) -> None:
    line = ["--cold", "1", "--data", "strokes", "--keep", str(tmp_path), "--runs"]
    ran: list[int] = []

    def run(words: Any, seed: int, folder: Path, *, cold: bool = False) -> dict[str, Any]:
        ran.append(seed)
        if seed == 3:
            raise KeyboardInterrupt
        return _run(words, seed, folder, cold=cold)

    with pytest.raises(KeyboardInterrupt):
        record.measure(record.parse([*line, "5"]), run)
    assert ran == [0, 0, 1, 2, 3]  # the first is off the record
    ran.clear()
    result = record.measure(record.parse([*line, "3"]), run)
    assert ran == [0, 0]  # off the record, and cold
    assert [each["seed"] for each in result["runs"]] == [0, 1, 2]
    with pytest.raises(InputError, match="of another recipe or machine"):
        record.measure(record.parse([*line, "3", "--samples", "7"]), run)


def test_another_model_is_no_record(record: ModuleType) -> None:
    with pytest.raises(InputError, match="iwae differs from mlp in latent_dim, hidden_dim, binar"):
        record.TRACKS["elbo"].check("iwae")
    with pytest.raises(InputError, match="mlp differs from iwae in binarize"):
        record.TRACKS["likelihood"].check("mlp")
    assert record.main(["--workload", "pythae"]) == 2
    assert record.main(["--runs", "1"]) == 2


def test_a_curve_is_read_off_what_a_command_says(record: ModuleType) -> None:
    said = (
        "print('epoch   1  train ELBO  -164.53 (recon -150.1, kl 14.43)  test ELBO  -127.65  "
        "0.70 s  85,000 images/s'); print('epoch 2: train 121.1'); print('epoch 2: test 115.7')"
    )
    points = record.curve(["-c", said])
    assert [elbo for _, elbo in points] == [-127.65, -115.7]
    assert 0 < points[0][0] <= points[1][0]
    with pytest.raises(RuntimeError, match="ended with status 3"):
        record.curve(["-c", "raise SystemExit(3)"])


@pytest.mark.slow
def test_a_run(record: ModuleType, tmp_path: Path) -> None:
    words = record.parse(["--data", "strokes", "--workload", "mlp", "--", "--epochs", "1"])
    found = record.run_once(words, 1, tmp_path)
    assert found["seconds"] > found["parts"]["train"] > 0
    assert found["epochs"] == 1
    told = sorted(tmp_path.glob("*/run/result.json"))
    assert found["test_elbo"] == json.loads(told[0].read_text())["test_elbo"]
    assert found["score"] == pytest.approx(found["test_elbo"], rel=1e-2)


def test_the_second_track_is_scored_by_importance_weights(
    record: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    line = "--workload iwae --data strokes --epochs 1 --batch-size 200 --quiet --device cpu --out"
    assert main([*line.split(), str(run)]) == 0
    track = record.TRACKS["likelihood"]
    likelihoods = [track.judge(run, "strokes", 0, samples) for samples in (1, 20)]
    assert likelihoods[0] + 1 < likelihoods[1] < 0  # more samples, a higher bound
    with pytest.raises(InputError, match="parameters: this track allows 1,000"):
        dataclasses.replace(track, largest=1000).judge(run, "strokes", 0, 1)


@pytest.mark.slow
def test_a_release_is_a_small_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(ROOT)
    release = importlib.import_module("benchmarks.release")
    monkeypatch.setattr(release, "RUNGS", ("reference", "plain", "plain+compile"))
    out = tmp_path / "release.json"
    words = ["--workloads", "mlp", "--turns", "2", "--data", "strokes", "--images", "600"]
    assert release.main([*words, "--version", "9.9", "--device", "cpu", "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    assert (found["kind"], found["version"], found["turns"]) == ("release", "9.9", 2)
    rows = {row["rung"]: row for row in found["rows"]}
    assert rows["reference"]["ratio"]["median"] == 1
    assert rows["plain+compile"]["refused"] is None
    assert rows["plain+compile"]["images_per_second"]["n"] == 2
    assert "plain: " in capsys.readouterr().err
    assert release.main(["--data", "/nowhere"]) == 2
