"""The report: tables and plots from stored JSON, and a README that agrees with it."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
ABOUT: dict[str, Any] = {
    "machine": {"cpu": "Acme 1", "cpu_capability": "AVX9", "threads": 2, "torch": "9.9"},
    "commit": "abc123",
    "command": "python -m made.up",
    "data": "mnist",
}


def spread(median: float, noise: str = "ok") -> dict[str, Any]:
    return {"median": median, "q1": 0.9 * median, "q3": 1.1 * median, "n": 6, "noise": noise}


def ratio(median: float) -> dict[str, Any]:
    return {"median": median, "low": median - 0.1, "high": median + 0.1, "level": 0.96875, "n": 6}


def rung(name: str, below: str | None, rate: float, noise: str = "ok") -> dict[str, Any]:
    return {
        "rung": name, "adds": "something", "builds_on": below, "refused": None,
        "images_per_second": spread(rate, noise), "ratio": ratio(rate / 1000),
        "gain": ratio(rate / 1000) if below else None, "verdict": "helps" if below else "",
        "test_elbo": -105.5, "peak_memory_bytes": 500_000_000, "device_memory_bytes": None,
        "peak_share": 0.5, "actual": {"amp": "float32"},
    }  # fmt: skip


def peer(name: str, times: float, noise: str = "ok") -> dict[str, Any]:
    return {
        "name": f"test_peer[{name}]", "group": "peers", "peer": name, "device": "cpu",
        "images": 20_000, "rounds": 7, "images_per_second": 1000 / times, "noise": noise,
        "ratio": ratio(times), "elbo": -150.0, "median": 1.0, "iqr": 0.1,
    }  # fmt: skip


def step(name: str, batch: int) -> dict[str, Any]:
    return {
        "name": "test_throughput", "group": "step: throughput", "rung": name, "batch": batch,
        "device": "cpu", "noise": "ok", "rounds": 7, "images_per_second": 100.0 * batch,
    }  # fmt: skip


def command(name: str, seconds: float, train: float) -> dict[str, Any]:
    parts = {"startup": 2.0, "compile": seconds - train - 3, "train": train, "eval": 1.0}
    known = None if name == "examples" else parts
    return {"name": name, "seconds": spread(seconds), "parts": known, "test_elbo": -105.6}


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Give a folder of made-up results."""
    refused = {**rung("bf16", "resident", 100), "refused": "ELBO -3 against the reference's -2"}
    rungs = [rung("reference", None, 1000), rung("resident", "reference", 4321, "noisy"), refused]
    suite = {
        "benchmarks": [
            peer("pytorch/examples", 2.5), peer("jax", 1.2, "not quoted"),
            step("resident", 32), step("resident", 128),
        ],
        "roof": {"cpu": 20_000.0}, "exponents": {},
    }  # fmt: skip
    difference = {
        "mean": 0.01, "sd": 0.05, "low": -0.02, "high": 0.04, "margin": 0.1, "p": 0.001, "n": 2,
        "equivalent": True,
    }  # fmt: skip
    files: dict[str, dict[str, Any]] = {
        "ladder": {"rows": rungs, "repeats": 6, "epochs": 3, "images": 60_000, "batch_size": 128,
                   "samples": 4, "peak_flops": 3e11},
        "suite": suite,
        "equality": {"difference": difference, "epochs": 10, "images": 60_000, "samples": 4,
                     "arms": {arm: {"mean": -105.5, "sd": 0.3} for arm in ("reference", "fast")},
                     "pairs": [{"seed": s, "reference": -105.0, "fast": -105.1} for s in (0, 1)]},
        "startup": {"rows": [command("examples", 80, 70), command("compile, cold", 50, 20)],
                    "epochs": 10, "repeats": 3,
                    "break_even": {"compile, cold": 4.25, "compile, warm": None}},
    }  # fmt: skip
    folder = tmp_path / "results"
    folder.mkdir()
    for name, result in files.items():
        (folder / f"{name}.json").write_text(json.dumps({**ABOUT, **result}))
    return folder


@pytest.fixture
def readme(tmp_path: Path) -> Path:
    """Give a README with a marker for every table."""
    path = tmp_path / "README.md"
    names = ("ladder", "peers", "equality", "startup", "cuda")
    path.write_text(
        "before\n"
        + "".join(
            f"<!-- table:{name} -->\nstale figures\n<!-- /table:{name} -->\n" for name in names
        )
        + "after\n"
    )
    return path


def report(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, ROOT / "scripts/report.py", *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
    )


def test_tables_and_plots_come_from_the_stored_results(results: Path, readme: Path) -> None:
    where = ("--results", results, "--readme", readme)
    assert report(*where, "--check").returncode == 1
    done = report(*where)
    assert done.returncode == 0, done.stderr
    assert report(*where, "--check").returncode == 0
    text = readme.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "stale figures" not in text
    assert "| 4,321 (3,889 to 4,753; 6) (noisy) |" in text
    assert "not trained: ELBO -3 against the reference's -2" in text
    assert "| jax | too noisy to quote | 1.20 (1.10 to 1.30) |" in text
    assert "interval -0.020 to +0.040" in text
    assert "p = 0.001, equivalent" in text
    assert "compile, cold: after 4.2 epochs; compile, warm: never" in text
    assert "<!-- table:cuda -->\nNot measured yet.\n<!-- /table:cuda -->" in text
    assert text.count("Acme 1 (AVX9), 2 threads, torch 9.9, data: mnist, commit abc123") == 4
    plots = {path.name: path.read_bytes() for path in results.glob("*.png")}
    assert set(plots) == {
        "ladder.png", "throughput.png", "break-even.png", "peers.png", "equality.png",
    }  # fmt: skip
    assert all(content.startswith(b"\x89PNG") for content in plots.values())


def cuda_result() -> dict[str, Any]:
    def part(rows: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        return {"seconds": 1.0, "error": None, "skipped": [], "rows": rows, **more}

    def built(name: str, graph: int | bool, refused: str | None = None) -> dict[str, Any]:
        return {"name": name, "refused": refused, "actual": {"graph": graph}}

    def steady(name: str, value: float, noise: str = "ok") -> dict[str, Any]:
        return {
            "name": name, "microseconds_per_step": 1e6 / value,
            "images_per_second": spread(value, noise), "ratio": ratio(value / 1000), "gain": None,
        }  # fmt: skip

    def whole(name: str, seconds: float, test_elbo: float) -> dict[str, Any]:
        return {"name": name, "refused": None, "train_seconds": seconds, "test_elbo": test_elbo}

    def at(name: str, batch: int, value: float) -> dict[str, Any]:
        return {"name": name, "batch_size": batch, "refused": None, "images_per_second": value}

    trained = [whole("graph", seconds, -105.5) for seconds in (0.3, 0.5, 0.4)]
    trained.append({"name": "resident", "refused": "failed: so it was"})
    peers: list[dict[str, Any]] = [
        {"name": "jax", "refused": None, "ours": "vaebench --triton", "elbo": -150.0,
         "ratio": ratio(2.5), "images_per_second": spread(5e5)},
        {"name": "torch.compile(model)", "refused": "failed: it ended"},
    ]  # fmt: skip
    pays = [{"name": "graph", "builds_on": "resident", "until": 128, "not_at": 2048}]
    return {
        "machine": {**ABOUT["machine"], "gpu": "Acme GPU"}, "images": 60_000, "batch_size": 128,
        "epochs": 10, "samples": 4, "complete": False,
        "parts": {
            "build": part([built("resident", False), built("graph", 64),
                           built("triton", False, "there is none")]),
            "rungs": part([steady("resident", 1000), steady("graph", 9000, "not quoted")]),
            "whole": part(trained),
            "peers": {**part(peers), "error": "the peers broke"},
            "batches": part([at("resident", 128, 1e6), at("graph", 128, 4e6),
                             at("graph", 2048, 5e6)], pays=pays),
        },
    }  # fmt: skip


def test_the_gpus_report_fills_its_table(results: Path, readme: Path) -> None:
    (results / "cuda.json").write_text(json.dumps({**ABOUT, **cuda_result()}))
    done = report("--results", results, "--readme", readme)
    assert done.returncode == 0, done.stderr
    text = readme.read_text()
    lines = text[text.index("<!-- table:cuda -->") :].splitlines()
    assert (
        "| resident | 1000.0 | 1,000 (900 to 1,100; 6) | 1.00 (0.90 to 1.10) | – | – | – |" in lines
    )
    assert (
        "| graph (64 steps a replay) | too noisy to quote | too noisy to quote | too noisy "
        "to quote | too noisy to quote | 0.400 s | -105.50 (3) |" in lines
    )
    assert "| triton | not timed: there is none | – | – | – | – | – |" in lines
    assert "| jax | `vaebench --triton` | 500,000 | 2.50 (2.40 to 2.60) | -150.00 |" in lines
    assert "| torch.compile(model) | not timed: failed: it ended | – | – | – |" in lines
    assert "| graph | 4,000,000 | 5,000,000 | up to 128, not at 2,048 |" in lines
    assert "| resident | 1,000,000 | – | – |" in lines
    (told,) = [line for line in lines if "Machine: " in line]
    assert "Not all of it: peers: the peers broke; it was cut off. Machine: Acme GPU" in told


def test_a_gpus_report_cut_off_at_once_still_makes_a_table(results: Path, readme: Path) -> None:
    (results / "cuda.json").write_text(json.dumps({**ABOUT, **cuda_result(), "parts": {}}))
    assert report("--results", results, "--readme", readme).returncode == 0
    assert "it was cut off. Machine" in readme.read_text()


def test_a_result_that_changes_makes_the_check_fail(results: Path, readme: Path) -> None:
    where = ("--results", results, "--readme", readme)
    report(*where)
    path = results / "equality.json"
    path.write_text(path.read_text().replace('"p": 0.001', '"p": 0.2'))
    done = report(*where, "--check")
    assert done.returncode == 1
    assert "run python scripts/report.py" in done.stderr


def test_peers_measured_again_stand_beside_the_first_time(results: Path, readme: Path) -> None:
    again = json.loads((results / "suite.json").read_text())
    again["benchmarks"][0]["ratio"] = ratio(2.6)
    (results / "suite-again.json").write_text(json.dumps(again))
    report("--results", results, "--readme", readme)
    assert "| 2.50 (2.40 to 2.60) | 2.60 (2.50 to 2.70) | -150.00 |" in readme.read_text()


def test_reduce_keeps_figures_and_facts_but_not_the_raw_data(tmp_path: Path) -> None:
    stats = {"median": 1.5, "iqr": 0.1, "rounds": 7, "data": [1.5] * 7, "mean": 1.6}
    raw = {
        "machine_info": {**ABOUT["machine"], "commit": "abc", "data": "mnist", "size": "default"},
        "exponents": {"images (cpu)": 1.01},
        "roof": {"cpu": 5.0},
        "benchmarks": [
            {"name": "test_x", "group": "g", "stats": stats, "extra_info": {"noise": "ok"}}
        ],
    }
    (tmp_path / "raw.json").write_text(json.dumps(raw))
    assert report("reduce", tmp_path / "raw.json", tmp_path / "small.json").returncode == 0
    small = json.loads((tmp_path / "small.json").read_text())
    assert small["benchmarks"] == [
        {"name": "test_x", "group": "g", "median": 1.5, "iqr": 0.1, "rounds": 7, "noise": "ok"}
    ]
    assert small["machine"] == ABOUT["machine"]
    assert (small["commit"], small["data"], small["size"]) == ("abc", "mnist", "default")


def test_the_readme_agrees_with_the_stored_results() -> None:
    done = report("--check")
    assert done.returncode == 0, done.stderr
