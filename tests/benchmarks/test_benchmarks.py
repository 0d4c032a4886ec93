"""The suite runs, its statistics are right, and it refuses what it should."""

import importlib
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from vaebench import InputError
from vaebench.data.strokes import make_strokes

ROOT = Path(__file__).resolve().parents[2]
Load = Callable[[str], ModuleType]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Load:
    """Load a module of the suite as its commands do: from the top of the checkout."""
    monkeypatch.syspath_prepend(ROOT)
    return lambda name: importlib.import_module(f"benchmarks.{name}")


def run_suite(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the suite small, on the strokes, with a compiler cache of its own."""
    environment = {
        **os.environ,
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "compiler-cache"),
        "TORCHINDUCTOR_COMPILE_THREADS": "1",
    }
    line = [sys.executable, "-m", "pytest", "benchmarks", "-q", "-p", "no:cacheprovider"]
    return subprocess.run(
        [*line, "--bench-size=small", "--bench-data=strokes", *words],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )


def test_the_suite_runs(tmp_path: Path) -> None:
    done = run_suite(tmp_path, "--benchmark-disable")
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
    assert "SKIPPED" not in done.stdout or "CUDA" in done.stdout or "jax" in done.stdout


def test_comparing_across_machines_is_refused(tmp_path: Path) -> None:
    words = ("-k", "encode and cpu", f"--benchmark-storage=file://{tmp_path}")
    done = run_suite(tmp_path, *words, "--benchmark-save=here")
    assert done.returncode == 0, done.stdout + done.stderr
    (stored,) = tmp_path.rglob("*_here.json")
    told = json.loads(stored.read_text())
    assert {"cpu", "threads", "torch", "data", "commit", "flush_denormal"} <= set(
        told["machine_info"]
    )
    assert told["benchmarks"][0]["extra_info"]["noise"] in ("ok", "noisy", "not quoted")
    same = run_suite(tmp_path, *words, "--benchmark-compare")
    assert same.returncode == 0, same.stdout + same.stderr
    told["machine_info"]["cpu"] = "another"
    stored.write_text(json.dumps(told))
    other = run_suite(tmp_path, *words, "--benchmark-compare")
    assert other.returncode == pytest.ExitCode.USAGE_ERROR
    assert "cpu is " in other.stdout + other.stderr
    assert "'another' there" in other.stdout + other.stderr


# Statistics, against tables and against numbers worked out by hand.


@pytest.mark.parametrize(
    ("p", "freedom", "t"),
    [(0.975, 1, 12.7062), (0.975, 2, 4.30265), (0.975, 9, 2.262157), (0.95, 9, 1.833113),
     (0.95, 10, 1.812461), (0.975, 30, 2.042272)],
)  # fmt: skip
def test_students_t(load: Load, p: float, freedom: int, t: float) -> None:
    intervals = load("intervals")
    assert intervals.t_quantile(p, freedom) == pytest.approx(t, rel=1e-5)
    assert intervals.t_cdf(t, freedom) == pytest.approx(p, abs=1e-6)
    assert intervals.t_cdf(-t, freedom) == pytest.approx(1 - p, abs=1e-6)


def test_two_one_sided_tests(load: Load) -> None:
    differences = [0.02, -0.04, 0.06, 0.00, 0.01, -0.02, 0.03, -0.01, 0.05, 0.00]
    found = load("intervals").equivalence(differences, 0.1)
    assert found.mean == pytest.approx(0.01)
    error = found.sd / math.sqrt(10)
    assert found.high - found.mean == pytest.approx(2.262157 * error, rel=1e-5)
    assert found.p < 1e-4
    assert found.equivalent
    # Where the 90 % interval just touches the margin, p is 5 %.
    edge = load("intervals").equivalence(differences, found.mean + 1.833113 * error)
    assert edge.p == pytest.approx(0.05, abs=1e-4)
    assert not load("intervals").equivalence(differences, 0.01).equivalent
    assert not load("intervals").equivalence([d + 0.2 for d in differences], 0.1).equivalent


def test_rank_intervals(load: Load) -> None:
    paired_ratio = load("intervals").paired_ratio
    ones = [1.0] * 9
    six = paired_ratio([1, 2, 3, 4, 5, 60], ones[:6])
    assert (six.median, six.low, six.high, six.n) == (3.5, 1, 60, 6)
    assert six.level == pytest.approx(1 - 2 / 64)
    nine = paired_ratio([9, 8, 7, 6, 5, 4, 3, 2, 1], ones)
    assert (nine.median, nine.low, nine.high) == (5, 2, 8)
    assert nine.level == pytest.approx(1 - 2 * 10 / 512)
    assert paired_ratio([2.0], [4.0]).level == 0


def test_noise_is_marked(load: Load) -> None:
    intervals = load("intervals")
    assert intervals.summary([10, 10, 10, 10.5]).noise == "ok"
    assert intervals.summary([9, 10, 10, 10.8, 11]).noise == "ok"
    assert intervals.summary([9, 9.2, 10, 11, 12]).noise == "noisy"
    assert intervals.summary([6, 8, 10, 12, 14]).noise == "not quoted"
    assert intervals.summary([1, 2, 3, 4]).q1 == 1.75


def test_fitted_exponents(load: Load) -> None:
    assert load("intervals").exponent([1, 10, 100], [3, 30, 300]) == pytest.approx(1)
    assert load("intervals").exponent([1, 2, 4], [8, 4, 2]) == pytest.approx(-1)


# The ladder.


def test_the_ladder_is_climbed_up_and_down(load: Load) -> None:
    assert load("ladder").schedule(["a", "b", "c"], 3) == [
        (0, "a"), (0, "b"), (0, "c"), (1, "c"), (1, "b"), (1, "a"), (2, "a"), (2, "b"), (2, "c"),
    ]  # fmt: skip


def trained(rung: str, rate: float) -> dict[str, Any]:
    return {
        "rung": rung, "refused": None, "images_per_second": rate, "test_elbo": -105.0,
        "peak_memory_bytes": 10, "device_memory_bytes": None, "flops_per_image": 3e6,
        "peak_flops": 3e11, "actual": {}, "notes": [],
    }  # fmt: skip


def test_rows_pair_the_repeats_and_give_a_verdict(load: Load) -> None:
    rates = {"reference": (100, 200), "resident": (150, 300), "flush_denormal": (140, 290),
             "graph": (141, 280)}  # fmt: skip
    runs = [trained(name, rate) for i in range(2) for name, both in rates.items()
            for rate in (both[i],)]  # fmt: skip
    rows = {row["rung"]: row for row in load("ladder").rows(runs, torch.device("cpu"))}
    assert rows["resident"]["ratio"]["median"] == 1.5
    assert rows["resident"]["verdict"] == "helps"
    assert rows["flush_denormal"]["verdict"] == "hurts"
    assert rows["graph"]["verdict"] == "no difference detected"
    assert rows["resident"]["images_per_second"]["noise"] == "not quoted"
    assert rows["reference"]["peak_share"] == pytest.approx(150 * 3e6 / 3e11)


def test_a_rung_that_disagrees_is_refused(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    rungs, ladder = load("rungs"), load("ladder")
    images, _ = make_strokes(200, 0)
    cpu = torch.device("cpu")
    assert rungs.refusal(rungs.RUNGS["resident"], images, 32, cpu, steps=3) is None
    honest = rungs.make_engine

    def twice_the_rate(*words: Any, **more: Any) -> Any:
        built = honest(*words, **more)
        built.engine.optimizer.lr.mul_(2)
        return built

    monkeypatch.setattr(rungs, "make_engine", twice_the_rate)
    reason = rungs.refusal(rungs.RUNGS["resident"], images, 32, cpu, steps=3)
    assert reason.startswith("ELBO ")
    rows = ladder.rows([trained("reference", 100), {"rung": "resident", "refused": reason}], cpu)
    assert rows[1]["refused"] == reason
    assert "images_per_second" not in rows[1]


def test_a_rung_that_fell_back_is_refused(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    rungs = load("rungs")
    images, _ = make_strokes(100, 0)
    honest = rungs.make_engine
    monkeypatch.setattr(
        rungs, "make_engine", lambda *words, **more: honest(*words, **{**more, "compile": False})
    )
    reason = rungs.refusal(rungs.RUNGS["compile"], images, 32, torch.device("cpu"), steps=2)
    assert "was not compiled" in reason


# Equality of whole trainings.


def test_equality_resumes_and_refuses_other_settings(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    equality = load("equality")
    # What is tested is the command, not the compiler.
    eager = {"reference": equality.ARMS["reference"], "fast": {}}
    monkeypatch.setattr(equality, "ARMS", eager)
    honest = equality.fit

    def fit(*words: Any, **more: Any) -> Any:
        history = honest(*words, **more)
        history.actual["compile"] = history.actual["engine"] == "fast"
        return history

    monkeypatch.setattr(equality, "fit", fit)
    line = ["--data=strokes", "--images=150", "--epochs=1", f"--runs={tmp_path / 'runs.jsonl'}"]
    line += [f"--out={tmp_path / 'equality.json'}"]
    equality.main([*line, "--seeds=2"])
    first = (tmp_path / "runs.jsonl").read_text()
    assert first.count("\n") == 4
    # A crash in the middle of a line: what is whole is kept, the rest is done again.
    (tmp_path / "runs.jsonl").write_text(first + '{"seed": 2, "ar')
    equality.main([*line, "--seeds=3"])
    lines = (tmp_path / "runs.jsonl").read_text().splitlines()
    assert lines[:4] == first.splitlines()
    assert [(json.loads(text)["seed"], json.loads(text)["arm"]) for text in lines[4:]] == [
        (2, "reference"), (2, "fast"),
    ]  # fmt: skip
    stored = json.loads((tmp_path / "equality.json").read_text())
    assert stored["difference"]["n"] == 3
    assert abs(stored["difference"]["mean"]) < 0.05
    with pytest.raises(InputError, match="name another file"):
        equality.main([*line, "--seeds=3", "--epochs=2"])


def test_whole_commands_break_even(load: Load) -> None:
    def command(name: str, seconds: float, train: float) -> dict[str, Any]:
        return {"name": name, "seconds": {"median": seconds}, "parts": {"train": train, "eval": 1}}

    rows = [command("fast", 44, 40), command("compile, cold", 46, 30)]
    paid_after = load("whole").paid_after
    assert paid_after(rows, "compile, cold", 10) == pytest.approx(12)
    assert paid_after(rows, "compile, warm", 10) is None
    assert paid_after([rows[0], command("compile, cold", 60, 41)], "compile, cold", 10) is None


def test_compiling_breaks_even(load: Load) -> None:
    break_even = load("intervals").break_even
    assert break_even(15, 6, 3) == 5
    assert break_even(-1, 6, 3) == 0
    assert break_even(15, 3, 3) is None
