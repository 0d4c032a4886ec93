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
from types import ModuleType
from typing import Any

import pytest
import torch

from tests.fast.tape import TapeCapture
from vaebench.fast import build, graph
from vaebench.fast.graph import GraphEngine
from vaebench.fast.register import TECHNIQUES

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
    module = load("cuda_report")
    here = [
        dataclasses.replace(t, devices=("cpu",)) if t.name == "graph" else t for t in TECHNIQUES
    ]
    monkeypatch.setattr(build, "TECHNIQUES", here)
    monkeypatch.setattr(graph, "capture_for", lambda device: TapeCapture())
    monkeypatch.setattr(GraphEngine, "pays", True)
    kept = {n: t for n, t in module.TECHNIQUES.items() if not t.words.get("compile")}
    monkeypatch.setattr(module, "TECHNIQUES", kept)
    return module


class InProcess:
    """A contender without a process of its own."""

    def __init__(self, module: ModuleType, task: dict[str, Any], off: float = 0.0) -> None:
        strokes = module.load_data("strokes", task["images"]).train.images
        name = "eager, resident" if task["peer"] == "vaebench" else task["peer"]
        peers = importlib.import_module("benchmarks.peers")
        self.contender = peers.make(name, strokes, task["count"], CPU)
        self.off, self.closed = off, False
        self.answers: list[dict[str, Any]] = []
        self.tell("epoch")
        self.tell("restore")
        self.answers.pop()

    def tell(self, word: str) -> None:
        found = getattr(self.contender, word)()
        self.answers.append({"elbo": None if found is None else found + self.off})

    def answer(self) -> dict[str, Any]:
        return self.answers.pop(0)

    def close(self) -> None:
        self.closed = True


def words(tmp_path: Path, **more: Any) -> argparse.Namespace:
    settings = {"size": "small", "data": "strokes", "limit": 450.0, "out": tmp_path / "cuda.json"}
    return argparse.Namespace(**{**settings, **more})


def test_every_part_runs(
    report: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "PEERS", ("vaebench", "pytorch/examples", "eager, resident"))
    started: list[InProcess] = []

    def start(task: dict[str, Any], part: Any) -> InProcess:
        started.append(InProcess(report, task))
        return started[-1]

    report.measure(words(tmp_path), CPU, start)
    found = json.loads((tmp_path / "cuda.json").read_text())
    assert found["complete"]
    parts = found["parts"]
    assert list(parts) == ["build", "rungs", "sweep", "whole", "peers", "batches"]
    assert not [part["error"] for part in parts.values() if part["error"]]
    refused = {row["name"]: row["refused"] for row in parts["build"]["rows"]}
    written = ("triton", "triton, tf32", "persistent", "persistent, tf32")
    assert None not in [refused.pop(name) for name in written]
    assert refused == {"eager": None, "eager, graph": None}
    assert [row["name"] for row in parts["rungs"]["rows"]] == ["eager", "eager, graph"]
    assert parts["rungs"]["rows"][1]["gain"]["n"] == 2
    (swept,) = parts["sweep"]["rows"]
    assert set(swept["microseconds"]) == {"1", "4"}
    assert len(parts["whole"]["rows"]) == 4
    elbos = {(row["name"], row["seed"]): row["test_elbo"] for row in parts["whole"]["rows"]}
    assert elbos["eager", 1] == elbos["eager, graph", 1] != elbos["eager", 0]
    assert [row["refused"] for row in parts["peers"]["rows"]] == [None, None]
    assert len(started) == 3  # vaebench's own serves both
    assert all(process.closed for process in started)
    tried = {(row["name"], row["batch_size"]) for row in parts["batches"]["rows"]}
    assert tried == {(n, b) for n in ("eager", "eager, graph") for b in (64, 32, 300)}
    assert parts["batches"]["pays"][0]["name"] == "eager, graph"
    assert found["goals"]["train_seconds"] > 0
    assert set(found["goals"]["times_faster_than"]) == {"pytorch/examples", "eager, resident"}


def test_the_fastest_in_float32_stands_for_vaebench(
    report: ModuleType, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = {"eager": 1.0, "bf16": 0.1, "compile, graph": 0.5, "triton": 0.4, "persistent": 0.3}
    monkeypatch.setattr(report, "timed", lambda _, name, *__: seconds[name])
    monkeypatch.setattr(report, "restorer", lambda _: lambda: None)
    monkeypatch.setattr(report, "steady", lambda name, *_: {"name": name})
    setting = report.Setting(CPU, report.SIZES["small"], report.load_data("strokes", 300, 100))
    part = load("bounded").Part("rungs", math.inf, lambda: None)
    for names, home in (
        (["eager", "bf16"], "vaebench"),
        (["eager", "compile, graph", "bf16", "triton"], "vaebench --triton"),
        (list(seconds), "vaebench --persistent"),
    ):
        setting.engines, setting.home = dict.fromkeys(names), "vaebench"
        report.time_rungs(part, setting)
        assert setting.home == home


def test_without_time_everything_is_listed_as_left_out(report: ModuleType, tmp_path: Path) -> None:
    report.measure(words(tmp_path, limit=0.0), CPU)
    found = json.loads((tmp_path / "cuda.json").read_text())
    assert found["complete"]
    assert found["parts"]["build"]["skipped"] == list(report.TECHNIQUES)
    assert not any(part["rows"] for name, part in found["parts"].items() if name != "peers")
    assert found["goals"]["train_seconds"] is None


def test_a_technique_that_disagrees_is_not_timed(
    report: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = report.make_engine

    def twice_the_rate(*given: Any, **more: Any) -> Any:
        built = honest(*given, **more)
        built.engine.optimizer.lr.mul_(2 if more["graph"] else 1)
        return built

    monkeypatch.setattr(report, "make_engine", twice_the_rate)
    small = report.SIZES["small"]
    setting = report.Setting(CPU, small, report.load_data("strokes", small.images, small.tests))
    part = report.Part("build", time.perf_counter() + 100, lambda: None)
    report.build_all(part, setting)
    assert list(setting.engines) == ["eager"]
    assert "from the reference's" in part.found["rows"][1]["refused"]


def test_what_breaks_leaves_the_rest(load: Load, tmp_path: Path) -> None:
    bounded = load("bounded")
    path = tmp_path / "deep" / "out.json"
    made = bounded.Report(path, {"kind": "made up"}, limit=100.0)

    def breaks(part: Any) -> None:
        part.add({"name": "one"})
        assert json.loads(path.read_text())["parts"]["first"]["rows"] == [{"name": "one"}]
        part.fail("two", ValueError("a line\nand another"))
        raise MemoryError

    made.run("first", 0.5, breaks)
    made.run("second", 1.0, lambda part: part.add({"name": "three"}))
    found = json.loads(path.read_text())
    assert found["kind"] == "made up"
    assert not found["complete"]
    assert found["parts"]["first"]["error"] == "MemoryError"
    assert found["parts"]["first"]["rows"][1] == {"name": "two", "refused": "failed: a line"}
    assert found["parts"]["second"]["rows"] == [{"name": "three"}]


@pytest.mark.parametrize(
    ("name", "images", "said"),
    [
        ("eager", 300, None),
        ("triton", 300, "ran with another graph, triton"),
        ("eager", 0, "ended with status 1"),
    ],
)
def test_a_technique_is_tried_in_a_process_of_its_own(
    load: Load, name: str, images: int, said: str | None
) -> None:
    module = load("cuda_report")
    size = dataclasses.replace(module.SIZES["small"], images=images)
    setting = module.Setting(CPU, size, None, "strokes")
    part = load("bounded").Part("build", time.perf_counter() + 100, lambda: None)
    found = module.tried_apart(name, part, setting)
    assert (found is None) if said is None else said in found
    if said is None:  # one that does not end in time is ended
        part.until = time.perf_counter()
        assert "ended with status -9" in module.tried_apart(name, part, setting)


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
    part = bounded.Part("x", time.perf_counter() + 5, lambda: None)
    assert part.has(4, "this")
    assert not part.has(6, "that")
    assert part.found["skipped"] == ["that"]


def test_a_peer_that_disagrees_or_dies_is_not_timed(report: ModuleType) -> None:
    setting = report.Setting(CPU, report.SIZES["small"], report.load_data("strokes", 300, 10))
    part = report.Part("peers", time.perf_counter() + 100, lambda: None)

    def start(task: dict[str, Any], part: Any) -> InProcess:
        if task["peer"] == "torch.compile(model)":
            raise RuntimeError("ended with status -9")
        name = "eager, resident" if task["peer"] == "jax" else task["peer"]
        off = 5.0 if task["peer"] == "eager, resident" else 0.0
        return InProcess(report, {**task, "peer": name}, off)

    report.race_peers(part, setting, "strokes", start)
    refused = {row["name"]: row["refused"] for row in part.found["rows"]}
    assert "its ELBO is" in refused["eager, resident"]
    assert refused["torch.compile(model)"] == "failed: ended with status -9"
    assert refused["pytorch/examples"] is None


def rate(name: str, batch: int, value: float) -> dict[str, Any]:
    return {"name": name, "batch_size": batch, "refused": None, "images_per_second": value}


def test_where_a_technique_stops_paying(load: Load) -> None:
    rows = [
        *(rate("eager", b, 100.0) for b in (32, 128, 512, 2048)),
        *(rate("eager, graph", b, v) for b, v in ((2048, 200), (128, 110), (32, 300), (512, 104))),
        *(rate("compile", b, 104.0) for b in (32, 128)),
        *(rate("compile, graph", b, 120.0) for b in (32, 128)),
        {"name": "bf16 at 32", "refused": "failed: no memory"},
    ]
    found = {row["name"]: (row["until"], row["not_at"]) for row in load("cuda_report").pays(rows)}
    assert found == {
        "eager, graph": (128, 512),
        "compile": (None, 32),
        "compile, graph": (128, None),
    }


def test_ratios_are_of_the_same_turns(load: Load) -> None:
    seconds = {"eager": [4.0, 8.0, 6.0], "eager, graph": [1.0, 2.0, 1.5]}
    found = load("cuda_report").steady("eager, graph", seconds, images=300, steps=3)
    assert found["ratio"]["median"] == found["gain"]["median"] == found["ratio"]["low"] == 4.0
    assert found["microseconds_per_step"] == pytest.approx(5e5)
    assert found["images_per_second"]["median"] == 200
    assert load("cuda_report").steady("eager", seconds, 300, 3)["gain"] is None


def test_goals_are_medians_of_what_there_is(load: Load) -> None:
    goals = load("cuda_report").goals
    taken = [("eager", 3.0), *(("eager, graph", s) for s in (0.3, 0.5, 0.4))]
    whole: list[dict[str, Any]] = [
        {"name": name, "refused": None, "train_seconds": seconds} for name, seconds in taken
    ]
    whole.append({"name": "bf16", "refused": "failed: so it was"})
    peers = [{"name": "jax", "refused": None, "ratio": {"median": 2.5}},
             {"name": "pytorch/examples", "refused": "failed: so it was"}]  # fmt: skip
    found = goals({"whole": {"rows": whole}, "peers": {"rows": peers}})
    assert (found["train_seconds"], found["by"]) == (0.4, "eager, graph")
    assert found["times_faster_than"]["jax"] == 2.5
    assert found["times_faster_than"]["pytorch/examples"] is None
    assert goals({})["by"] is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
@pytest.mark.parametrize(
    ("line", "said"), [((), "torch sees no CUDA device"), (("--device=cpu",), "--out")]
)
def test_without_cuda_it_says_so_in_a_line(line: tuple[str, ...], said: str) -> None:
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
    assert not (ROOT / "benchmarks/results/cuda.json").exists()
