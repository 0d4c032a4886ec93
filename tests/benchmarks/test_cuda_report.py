"""The GPU's report: every part runs, here on the CPU with a tape for graphs; nothing is lost."""

import argparse
import dataclasses
import importlib
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from tests.fast.tape import TapeCapture
from tests.tiers import first
from vaebench.fast import build as builder
from vaebench.fast import graph
from vaebench.fast.graph import GraphEngine
from vaebench.fast.register import TECHNIQUES
from vaebench.training import follow

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
Load = Callable[[str], ModuleType]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Load:
    """Load a module of the suite as its commands do: from the top of the checkout."""
    monkeypatch.syspath_prepend(ROOT)
    return lambda name: importlib.import_module(f"benchmarks.{name}")


@pytest.fixture
def report(load: Load, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Give the report's module, with graphs on the CPU and without what compiles."""
    monkeypatch.setattr(graph, "capture_for", lambda device: TapeCapture())
    monkeypatch.setattr(GraphEngine, "pays", True)
    kept = [t for t in TECHNIQUES if t.name in ("graph", "triton")]
    here = [dataclasses.replace(t, devices=("cpu",), needs=None) for t in kept]
    # Triton stands for what must be asked for, and is not to be had here.
    here = [dataclasses.replace(t, default=t.name == "graph") for t in here]
    for module in (load("rungs"), builder):
        monkeypatch.setattr(module, "TECHNIQUES", here)
    return load("cuda_report")


def setting(report: ModuleType, **more: Any) -> Any:
    size = report.SIZES["small"]
    data = report.load_data("strokes", size.images, size.tests)
    return report.Setting(CPU, size, data, "strokes", **more)


def part(report: ModuleType, seconds: float = 100) -> Any:
    return report.Part(time.perf_counter() + seconds)


class InProcess:
    """A contender without a process of its own."""

    off = 0.0

    def __init__(
        self, name: str, device: str, data: str, images: int, count: int, limit: float
    ) -> None:
        strokes = importlib.import_module("benchmarks.harness").load_data(data, images)
        peers = importlib.import_module("benchmarks.peers")
        name = "eager, resident" if name.startswith("vaebench") or name == "jax" else name
        contender = peers.make(name, strokes.train.images, count, torch.device(device))
        self.count, self.closed = count, False
        self.restore, self.epoch = contender.restore, contender.epoch
        self.restore()
        self.elbo = self.epoch() + self.off

    def ready(self) -> "InProcess":
        return self

    def __enter__(self) -> "InProcess":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.closed = True


def words(tmp_path: Path, **more: Any) -> argparse.Namespace:
    settings = {"size": "small", "limit": 4500.0, "out": tmp_path / "cuda.json"}
    return argparse.Namespace(**{**settings, **more})


@pytest.mark.slow
def test_every_part_runs(
    report: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "MAIN", ("vaebench", "pytorch/examples", "eager, resident"))
    started: list[InProcess] = []

    def start(*given: Any, **more: Any) -> InProcess:
        started.append(InProcess(*given, **more))
        return started[-1]

    monkeypatch.setattr(report.race_peers, "__defaults__", (start,))
    report.measure(words(tmp_path), setting(report))
    found = json.loads((tmp_path / "cuda.json").read_text())
    assert found["complete"]
    parts = found["parts"]
    assert list(parts) == ["build", "rungs", "whole", "peers", "batches"]
    assert not [part["error"] for part in parts.values() if part["error"]]
    built = {row["name"]: row for row in parts["build"]["rows"]}
    refused = {name: row["refused"] for name, row in built.items()}
    assert "ran without triton" in refused.pop("triton")
    assert refused == {"resident": None, "graph": None}
    assert set(built["graph"]["microseconds"]) == {"1", "4"}
    assert [row["name"] for row in parts["rungs"]["rows"]] == ["resident", "graph"]
    assert parts["rungs"]["rows"][1]["gain"]["n"] == 2
    assert len(parts["whole"]["rows"]) == 4
    elbos = {(row["name"], row["seed"]): row["test_elbo"] for row in parts["whole"]["rows"]}
    assert elbos["resident", 1] == elbos["graph", 1] != elbos["resident", 0]
    assert [row["refused"] for row in parts["peers"]["rows"]] == [None, None]
    assert len(started) == 3  # vaebench's own serves both
    assert all(process.closed for process in started)
    tried = {(row["name"], row["batch_size"]) for row in parts["batches"]["rows"]}
    assert tried == {(n, b) for n in ("resident", "graph") for b in (64, 32, 300)}
    assert parts["batches"]["pays"][0]["name"] == "graph"
    assert found["goals"]["train_seconds"] > 0
    assert set(found["goals"]["times_faster_than"]) == {
        "pytorch/examples", "eager, resident", "danielwang7/MNIST-VAE",
    }  # fmt: skip


def test_the_fastest_in_float32_stands_for_vaebench(
    load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = load("cuda_report")
    seconds = {"resident": 1.0, "amp=bf16": 0.1, "tf32": 0.2, "triton": 0.4, "compile": 0.3}

    def take_turns(works: Any, *_: Any, **__: Any) -> dict[str, list[float]]:
        return {name: [seconds[name]] for name in works}

    monkeypatch.setattr(report, "take_turns", take_turns)
    monkeypatch.setattr(report, "numbers", lambda *_: (torch.zeros(300), torch.zeros(300)))
    monkeypatch.setattr(report, "restorer_of", lambda engine: None)
    size = report.SIZES["small"]
    data = report.load_data("strokes", size.images, size.tests)
    cuda = report.Setting(torch.device("cuda"), size, data)
    assert cuda.home == "triton"
    for names, home in (
        (["resident", "amp=bf16", "tf32"], "resident"),
        (["resident", "tf32", "triton"], "triton"),
        (list(seconds), "compile"),
    ):
        cuda.engines = dict.fromkeys(names, SimpleNamespace(epoch=print, training=print))
        report.time_rungs(report.Part(math.inf), cuda)
        assert cuda.home == home


def test_without_time_everything_is_listed_as_left_out(report: ModuleType, tmp_path: Path) -> None:
    every = setting(report)
    report.measure(words(tmp_path, limit=0.0), every)
    found = json.loads((tmp_path / "cuda.json").read_text())
    assert found["complete"]
    assert found["parts"]["build"]["skipped"] == every.names
    assert not any(part["rows"] for part in found["parts"].values())
    assert found["goals"]["train_seconds"] is None


@pytest.mark.slow
def test_a_rung_that_disagrees_is_not_timed(
    report: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = builder.make_engine

    def twice_the_rate(problem: Any, fast: Any, group: None) -> Any:
        built = honest(problem, fast, group)
        built.engine.optimizer.lr.mul_(2 if fast.graph else 1)
        return built

    monkeypatch.setattr(follow, "make_engine", twice_the_rate)
    both, build = setting(report, names=["resident", "graph"]), part(report)
    report.build_all(build, both)
    assert list(both.engines) == ["resident"]
    assert build.found["rows"][1]["refused"].startswith("ELBO ")


def test_what_breaks_leaves_the_rest(load: Load, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "out.json"
    made = load("bounded").Report(path, {"kind": "made up"}, limit=100.0)

    def work(name: str) -> dict[str, Any]:
        if name == "two":
            raise ValueError("a line\nand another")
        return {"name": name}

    def breaks(part: Any) -> None:
        part.each(["one", "two", "three"], 1, work)
        assert len(json.loads(path.read_text())["parts"]["first"]["rows"]) == 3
        raise MemoryError

    made.run("first", 0.5, breaks)
    made.run("second", 1.0, lambda part, more: part.add({"name": more}), "four")
    found = json.loads(path.read_text())
    assert found["kind"] == "made up"
    assert not found["complete"]
    assert found["parts"]["first"]["error"] == "MemoryError"
    assert found["parts"]["first"]["rows"] == [
        {"name": "one"}, {"name": "two", "refused": "failed: a line"}, {"name": "three"},
    ]  # fmt: skip
    assert found["parts"]["second"]["rows"] == [{"name": "four"}]


def test_parts_share_the_time(load: Load, tmp_path: Path) -> None:
    bounded = load("bounded")
    made = bounded.Report(tmp_path / "out.json", {}, limit=100.0)
    left: list[float] = []
    made.run("half", 0.5, lambda part: left.append(part.left))
    made.start -= 60  # a minute later
    made.run("half of the rest", 0.5, lambda part: left.append(part.left))
    made.start -= 60
    made.run("none", 1.0, lambda part: left.append(part.left))
    assert left == pytest.approx([50, 20, 0], abs=0.5)
    short = bounded.Part(time.perf_counter() + 5)
    short.each(["this"], 4, lambda name: {"name": name})
    short.each(["that"], 6, lambda name: {"name": name}, lambda name: f"{name} one")
    assert short.found["rows"] == [{"name": "this"}]
    assert short.found["skipped"] == ["that one"]


@pytest.mark.slow
def test_a_peer_that_disagrees_or_dies_is_not_timed(report: ModuleType) -> None:
    class Dying(InProcess):
        def ready(self) -> InProcess:
            raise RuntimeError("ended with status -9")

    def start(name: str, *given: Any, **more: Any) -> InProcess:
        if name == "torch.compile(model)":
            return Dying("eager, resident", *given, **more)
        started = InProcess(name, *given, **more)
        started.elbo += 5.0 if name == "eager, resident" else 0.0
        return started

    race = part(report)
    report.race_peers(race, setting(report), start)
    refused = {row["name"]: row["refused"] for row in race.found["rows"]}
    assert refused["eager, resident"].startswith("ELBO ")
    assert refused["torch.compile(model)"] == "failed: ended with status -9"
    assert refused["pytorch/examples"] is None


def rate(name: str, batch: int, value: float) -> dict[str, Any]:
    return {"name": name, "batch_size": batch, "refused": None, "images_per_second": value}


def test_where_a_technique_stops_paying(load: Load) -> None:
    rows = [
        *(rate("resident", b, 100.0) for b in (32, 128, 512, 2048)),
        *(rate("graph", b, v) for b, v in ((2048, 200), (128, 110), (32, 300), (512, 104))),
        *(rate("compile", b, 104.0) for b in (32, 128)),
        *(rate("tf32", b, 120.0) for b in (32, 128)),
        {"name": "amp at 32", "refused": "failed: no memory"},
    ]
    below = {"resident": "reference", "graph": "resident", "compile": "resident", "tf32": "compile"}
    pays = load("cuda_report").pays(rows, below)
    assert {row["name"]: (row["until"], row["not_at"]) for row in pays} == {
        "graph": (128, 512),
        "compile": (None, 32),
        "tf32": (128, None),
    }


def test_ratios_are_of_the_same_turns(load: Load) -> None:
    seconds = {"resident": [4.0, 8.0, 6.0], "graph": [1.0, 2.0, 1.5]}
    steady = load("cuda_report").steady
    found = steady("graph", "resident", seconds, images=300, steps=3)
    assert found["ratio"]["median"] == found["gain"]["median"] == found["ratio"]["low"] == 4.0
    assert found["microseconds_per_step"] == pytest.approx(5e5)
    assert found["images_per_second"]["median"] == 200
    assert steady("resident", "reference", seconds, 300, 3)["gain"] is None


def test_goals_are_medians_of_what_there_is(load: Load) -> None:
    goals = load("cuda_report").goals
    taken = [("resident", 3.0), *(("graph", s) for s in (0.3, 0.5, 0.4))]
    whole: list[dict[str, Any]] = [
        {"name": name, "refused": None, "train_seconds": seconds} for name, seconds in taken
    ]
    whole.append({"name": "amp", "refused": "failed: so it was"})
    peers = [{"name": "jax", "refused": None, "ratio": {"median": 2.5}},
             {"name": "pytorch/examples", "refused": "failed: so it was"}]  # fmt: skip
    found = goals({"whole": {"rows": whole}, "peers": {"rows": peers}})
    assert (found["train_seconds"], found["by"]) == (0.4, "graph")
    assert found["times_faster_than"]["jax"] == 2.5
    assert found["times_faster_than"]["pytorch/examples"] is None
    assert goals({})["by"] is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
@pytest.mark.parametrize(
    ("line", "said"), first(1, [((), "torch sees no CUDA device"), (("--device=cpu",), "--out")])
)
def test_without_cuda_it_says_so_in_a_line(line: tuple[str, ...], said: str) -> None:
    """And leaves the result of a machine with CUDA as it was."""
    stored = ROOT / "benchmarks/results/cuda.json"
    before = stored.stat().st_mtime_ns
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.cuda_report", *line],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert stored.stat().st_mtime_ns == before


@pytest.mark.slow
def test_each_of_many_is_trained_as_if_alone(
    load: Load, strokes: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, rungs, harness = load("cuda_seeds"), load("rungs"), load("harness")
    monkeypatch.setattr(module, "STEPS", 3)
    stack = module.Stack(3, strokes)
    stack.forward, stack.replay = module.losses, stack.steps
    order, noise = module.numbers(torch.Generator().manual_seed(0), 3, len(strokes))
    stack.epoch(order, noise)
    for seed in range(3):
        model = harness.new_model(seed)
        engine, _, _ = rungs.build_rung(rungs.find("resident", "cpu"), model, strokes, CPU)
        sums = engine.epoch(order[seed], noise[seed])
        assert stack.totals[0, seed].item() == pytest.approx(float(sums.recon), rel=1e-5)
        assert stack.totals[1, seed].item() == pytest.approx(float(sums.kl), rel=1e-4)
