"""The suite runs, its statistics are right, and it refuses what it should."""

import importlib
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from vaebench import InputError, TrainConfig
from vaebench.config import without
from vaebench.data.strokes import make_strokes
from vaebench.fast.build import make_engine
from vaebench.fast.register import TECHNIQUES
from vaebench.training import follow

ROOT = Path(__file__).resolve().parents[2]
Load = Callable[[str], ModuleType]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Load:
    """Load a module of the suite as its commands do: from the top of the checkout."""
    monkeypatch.syspath_prepend(ROOT)
    return lambda name: importlib.import_module(f"benchmarks.{name}")


def run_suite(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the suite small, on the strokes, with a compiler cache of its own."""
    # pytest-benchmark, in a process of several that share tests, would measure nothing.
    own = {name: value for name, value in os.environ.items() if "PYTEST_XDIST" not in name}
    environment = {
        **own,
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


@pytest.mark.slow
def test_the_suite_runs(tmp_path: Path) -> None:
    done = run_suite(tmp_path, "--benchmark-disable")
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
    assert "SKIPPED" not in done.stdout or "CUDA" in done.stdout or "jax" in done.stdout


@pytest.mark.slow
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


def test_two_one_sided_tests(load: Load) -> None:
    differences = [0.02, -0.04, 0.06, 0.00, 0.01, -0.02, 0.03, -0.01, 0.05, 0.00]
    equivalence = load("statistics").equivalence
    found = equivalence(differences, 0.1)
    assert found.mean == pytest.approx(0.01)
    error = found.sd / math.sqrt(10)
    assert found.high - found.mean == pytest.approx(2.262157 * error, rel=1e-5)  # from a table
    assert found.p < 1e-4
    assert found.equivalent
    # Where the 90 % interval just touches the margin, p is 5 %.
    edge = equivalence(differences, found.mean + 1.833113 * error)
    assert edge.p == pytest.approx(0.05, abs=1e-4)
    assert not equivalence(differences, 0.01).equivalent
    assert not equivalence([d + 0.2 for d in differences], 0.1).equivalent
    alike = equivalence([0.05] * 3, 0.1)
    assert (alike.low, alike.high, alike.p) == (0.05, 0.05, 0.0)


def test_stored_equality_is_what_its_pairs_say(load: Load) -> None:
    stored = json.loads((ROOT / "benchmarks/results/equality.json").read_text())
    pairs = [pair["fast"] - pair["reference"] for pair in stored["pairs"]]
    found = load("statistics").equivalence(pairs, stored["difference"]["margin"])
    assert vars(found) == pytest.approx(stored["difference"], rel=1e-12, abs=1e-12)


def test_rank_intervals(load: Load) -> None:
    paired_ratio = load("statistics").paired_ratio
    ones = [1.0] * 9
    six = paired_ratio([1, 2, 3, 4, 5, 60], ones[:6])
    assert (six.median, six.low, six.high, six.n) == (3.5, 1, 60, 6)
    assert six.level == pytest.approx(1 - 2 / 64)
    nine = paired_ratio([9, 8, 7, 6, 5, 4, 3, 2, 1], ones)
    assert (nine.median, nine.low, nine.high) == (5, 2, 8)
    assert nine.level == pytest.approx(1 - 2 * 10 / 512)
    assert paired_ratio([2.0], [4.0]).level == 0


def test_noise_is_marked(load: Load) -> None:
    summary = load("statistics").summary
    assert summary([10, 10, 10, 10.5]).noise == "ok"
    assert summary([9, 10, 10, 10.8, 11]).noise == "ok"
    assert summary([9, 9.2, 10, 11, 12]).noise == "noisy"
    assert summary([6, 8, 10, 12, 14]).noise == "not quoted"
    assert summary([1, 2, 3, 4]).q1 == 1.75


def test_fitted_exponents(load: Load) -> None:
    assert load("statistics").exponent([1, 10, 100], [3, 30, 300]) == pytest.approx(1)
    assert load("statistics").exponent([1, 2, 4], [8, 4, 2]) == pytest.approx(-1)


def test_compiling_breaks_even(load: Load) -> None:
    break_even = load("statistics").break_even
    assert break_even(15, 6, 3) == 5
    assert break_even(-1, 6, 3) == 0
    assert break_even(15, 3, 3) is None


# Turns.


def test_turns_alternate_and_the_first_does_not_count(load: Load) -> None:
    called: list[str] = []
    works = {name: lambda name=name: called.append(name) for name in "ab"}
    harness, cpu = load("harness"), torch.device("cpu")
    around = {"b": harness.prepared(lambda: called.append("-"))}
    found = harness.take_turns(works, cpu, 3, around=around)
    assert "".join(called) == "a-b" + "-ba" + "a-b" + "-ba"
    assert {name: len(seconds) for name, seconds in found.items()} == {"a": 3, "b": 3}
    found = harness.take_turns(works, cpu, 9, budget=-1)  # one counts, however little time
    assert [len(seconds) for seconds in found.values()] == [1, 1]


def test_the_ladder_is_climbed_up_and_down(load: Load) -> None:
    assert load("harness").up_and_down(["a", "b", "c"], 3) == [
        (0, "a"), (0, "b"), (0, "c"), (1, "c"), (1, "b"), (1, "a"), (2, "a"), (2, "b"), (2, "c"),
    ]  # fmt: skip


def test_a_restored_engine_trains_alike(load: Load) -> None:
    harness, cpu = load("harness"), torch.device("cpu")
    images, _ = make_strokes(60, 0)
    order, noise = harness.numbers(60, 60, cpu)
    for engine in ("reference", "fast"):
        config = harness.DEFAULT.replace(batch_size=32, engine=engine)
        built, _, _ = harness.build(harness.new_model(), images, config, cpu)
        restore = harness.restorer_of(built)
        first = harness.elbo(built.epoch(order, noise))
        assert harness.elbo(built.epoch(order, noise)) != first
        restore()
        assert harness.elbo(built.epoch(order, noise)) == first


# The rungs.


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_the_ladder_is_the_register(load: Load, kind: str) -> None:
    rungs = load("rungs").ladder(kind)
    here = [t for t in TECHNIQUES if kind in t.devices]
    assert set(rungs) == {"reference", "resident", *(t.name for t in here)}
    names = list(rungs)
    fields = set(TrainConfig().options())
    for name, rung in rungs.items():
        assert rung.builds_on is None or names.index(rung.builds_on) < names.index(name)
        assert set(rung.switches) <= fields
    for technique in here:
        assert rungs[technique.name].switches[technique.name]
        if technique.needs:
            assert rungs[technique.name].switches[technique.needs]
    assert load("rungs").top(kind) == {"cpu": "native", "cuda": "triton"}[kind]


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
@pytest.mark.parametrize("gone", [t.name for t in TECHNIQUES])
def test_the_ladder_stands_without_any_one_technique(
    load: Load, monkeypatch: pytest.MonkeyPatch, gone: str, kind: str
) -> None:
    rungs = load("rungs")
    monkeypatch.setattr(rungs, "TECHNIQUES", [t for t in TECHNIQUES if t.name != gone])
    ladder = rungs.ladder(kind)
    assert gone not in ladder
    assert all(gone not in rung.switches for rung in ladder.values())
    assert rungs.top(kind) in ladder
    assert rungs.find("plain", kind).name == "plain"


def test_rungs_are_joined_and_given_values(load: Load) -> None:
    find = load("rungs").find
    both = find("triton+tf32", "cuda").switches
    assert both["triton"] is True
    assert both["tf32"] is True
    assert both["amp"] is None
    assert find("amp=bf16", "cpu").switches == {**find("amp", "cpu").switches, "amp": "bf16"}
    off = find("compile+graph=off", "cuda")
    assert (off.switches["compile"], off.switches["graph"]) == (True, False)
    for name in ("nonsense", "reference+amp", "triton"):
        with pytest.raises(InputError, match=f"no rung '{re.escape(name)}' on cpu"):
            find(name, "cpu")


# The ladder.


def trained(rung: str, rate: float) -> dict[str, Any]:
    return {
        "rung": rung, "refused": None, "images_per_second": rate, "test_elbo": -105.0,
        "peak_memory_bytes": 10, "device_memory_bytes": None, "flops_per_image": 3e6,
        "peak_flops": 3e11, "actual": {}, "notes": [],
    }  # fmt: skip


def test_rows_pair_the_repeats_and_give_a_verdict(load: Load) -> None:
    rates = {"reference": (100, 200), "resident": (150, 300), "flush_denormal": (140, 290),
             "compile": (141, 280)}  # fmt: skip
    runs = [trained(name, rate) for i in range(2) for name, both in rates.items()
            for rate in (both[i],)]  # fmt: skip
    runs.append({"rung": "products", "refused": "it has nothing to do here"})
    rows = {row["rung"]: row for row in load("ladder").rows(runs, "cpu")}
    assert rows["resident"]["ratio"]["median"] == 1.5
    assert rows["resident"]["verdict"] == "helps"
    assert rows["flush_denormal"]["verdict"] == "hurts"
    assert rows["compile"]["verdict"] == "no difference detected"
    assert rows["compile"]["builds_on"] == "flush_denormal"  # products were not trained
    assert rows["resident"]["images_per_second"]["noise"] == "not quoted"
    assert rows["reference"]["peak_share"] == pytest.approx(150 * 3e6 / 3e11)


def test_a_rung_that_disagrees_is_refused(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    rungs = load("rungs")
    images, _ = make_strokes(200, 0)
    given = images, torch.device("cpu"), load("harness").DEFAULT.replace(batch_size=32), 3
    resident = rungs.find("resident", "cpu")
    assert rungs.refusal(resident, *given) is None

    def twice_the_rate(*words: Any) -> Any:
        built = make_engine(*words)
        built.engine.optimizer.lr.mul_(2)
        return built

    monkeypatch.setattr(follow, "make_engine", twice_the_rate)
    reason = rungs.refusal(resident, *given)
    assert reason.startswith("ELBO ")
    runs = [trained("reference", 100), {"rung": "resident", "refused": reason}]
    rows = load("ladder").rows(runs, "cpu")
    assert rows[1]["refused"] == reason
    assert "images_per_second" not in rows[1]


def test_a_rung_that_fell_back_is_refused(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    rungs, config = load("rungs"), load("harness").DEFAULT.replace(batch_size=32)
    images, _ = make_strokes(100, 0)
    monkeypatch.setattr(
        follow,
        "make_engine",
        lambda problem, fast, group: make_engine(problem, without(fast, "compile"), group),
    )
    compiled = rungs.find("compile", "cpu")
    reason = rungs.refusal(compiled, images, torch.device("cpu"), config, steps=2)
    assert "it ran without compile" in reason


# What a run of the suite says at its end.


def test_only_what_is_wrong_fails_and_the_last_line_says_why(tmp_path: Path) -> None:
    (tmp_path / "bench_x.py").write_text(
        "from benchmarks.rungs import RungError\n"
        "def test_slow(measure):\n    raise RungError('it lost its race')\n"
        "def test_wrong(measure):\n    assert False, 'ELBO -1, not -2'\n"
    )
    line: list[str | Path] = [sys.executable, "-m", "pytest", "-p", "benchmarks.conftest", "-q"]
    line += ["-p", "no:cacheprovider", "-c", ROOT / "pyproject.toml", f"--rootdir={tmp_path}"]
    done = subprocess.run(
        [*line, tmp_path / "bench_x.py"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "1 failed, 1 skipped" in done.stdout
    assert "not timed: it lost its race" in done.stdout
    last = done.stdout.strip().splitlines()[-1]
    assert last.startswith("failed: ")
    assert "bench_x.py::test_wrong: AssertionError: ELBO -1, not -2" in last


# Equality of whole trainings.


@pytest.mark.slow
def test_equality_resumes_and_refuses_other_settings(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    equality = load("equality")
    # What is tested is the command, not the compiler.
    monkeypatch.setattr(equality, "top", lambda kind: "resident")
    line = ["--data=strokes", "--images=150", "--epochs=1", f"--runs={tmp_path / 'runs.json'}"]
    line += [f"--out={tmp_path / 'equality.json'}"]
    equality.main([*line, "--seeds=2"])
    first = json.loads((tmp_path / "runs.json").read_text())["runs"]
    assert len(first) == 4
    equality.main([*line, "--seeds=3"])
    runs = json.loads((tmp_path / "runs.json").read_text())["runs"]
    assert runs[:4] == first
    assert [(run["seed"], run["arm"]) for run in runs[4:]] == [(2, "reference"), (2, "fast")]
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
