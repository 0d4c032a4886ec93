"""Whole commands, from typing them to their last line: ``python -m benchmarks.whole``.

``python -m vaebench.train`` plain, compiled cold (the compiler's cache is an empty folder) and
compiled warm (the folder that the cold run filled), by the reference engine, and the script of
pytorch/examples. Everything is on the clock: interpreter, imports, data, compiling, training, a
test pass per epoch, files written. One command after the other; repeats alternate their order.
"""

import argparse
import dataclasses
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.harness import RESULTS, ROOT, described, load_data, say, store, up_and_down
from benchmarks.statistics import break_even, summary

TRAIN = ("-m", "vaebench.train", "--quiet")
COMMANDS: dict[str, tuple[str, ...]] = {
    "examples": ("-m", "benchmarks.peers.pytorch_examples"),
    "reference": (*TRAIN, "--engine", "reference", "--no-flush-denormal"),
    "fast": TRAIN,
    "compile, cold": (*TRAIN, "--compile"),
    "compile, warm": (*TRAIN, "--compile"),
    "compile, amp, warm": (*TRAIN, "--compile", "--amp"),
}
Run = dict[str, Any]


def run_command(name: str, words: argparse.Namespace, folder: Path) -> Run:
    """Run a command as a user would; give its wall seconds, their parts and the test ELBO."""
    cache = folder / ("cold" if name == "compile, cold" else "warm")
    if name == "compile, cold":
        cache = Path(tempfile.mkdtemp(dir=folder))
    out = Path(tempfile.mkdtemp(dir=folder)) / "run"
    line = [sys.executable, *COMMANDS[name], "--epochs", str(words.epochs), "--data", words.data]
    if name != "examples":
        line += ["--out", str(out)]
    start = time.perf_counter()
    done = subprocess.run(
        line,
        cwd=ROOT,
        env={**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(cache)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    seconds = time.perf_counter() - start
    if name == "examples":
        elbo = -float(re.findall(r"test ([\d.]+)", done.stdout)[-1])
        return {"name": name, "seconds": seconds, "parts": None, "test_elbo": elbo}
    told = json.loads((out / "result.json").read_text(encoding="utf-8"))
    if told["actual"]["compile"] != name.startswith("compile"):
        raise RuntimeError(f"{name} ran as {told['actual']}: {told['notes']}")
    elbo, parts = told["test_elbo"], told["seconds"]
    return {"name": name, "seconds": seconds, "parts": parts, "test_elbo": elbo}


def rows(runs: list[Run]) -> list[dict[str, Any]]:
    """Summarise each command's runs; parts are medians in seconds."""
    found = []
    for name in dict.fromkeys(run["name"] for run in runs):
        mine = [run for run in runs if run["name"] == name]
        parts = mine[0]["parts"]
        medians = parts and {
            part: summary([run["parts"][part] for run in mine]).median for part in parts
        }
        found.append(
            {
                "name": name,
                "seconds": dataclasses.asdict(summary([run["seconds"] for run in mine])),
                "parts": medians,
                "test_elbo": summary([run["test_elbo"] for run in mine]).median,
            }
        )
    return found


def paid_after(rows: list[dict[str, Any]], name: str, epochs: int) -> float | None:
    """Epochs after which a compiled command has caught up with ``fast``; None if it never does."""
    by_name = {row["name"]: row for row in rows}
    if not {name, "fast"} <= set(by_name):
        return None
    plain, compiled = by_name["fast"], by_name[name]
    # What is not training or testing is paid once, however many epochs follow.
    once = [
        row["seconds"]["median"] - row["parts"]["train"] - row["parts"]["eval"]
        for row in (compiled, plain)
    ]
    plain_epoch, compiled_epoch = (row["parts"]["train"] / epochs for row in (plain, compiled))
    return break_even(once[0] - once[1], plain_epoch, compiled_epoch)


def run_all(
    words: argparse.Namespace,
    run: Callable[[str, argparse.Namespace, Path], Run] = run_command,
) -> dict[str, Any]:
    """Run every command so often; give the result to store."""
    runs: list[Run] = []
    with tempfile.TemporaryDirectory(prefix="vaebench-whole-") as name:
        folder = Path(name)
        names = words.commands or list(COMMANDS)
        if any(name.endswith("warm") for name in names):
            fill = argparse.Namespace(**{**vars(words), "epochs": 1})
            run("compile, warm", fill, folder)  # off the record: it fills the cache
        for repeat, command in up_and_down(names, words.repeats):
            runs.append(run(command, words, folder))
            say(f"repeat {repeat + 1}, {command}: {runs[-1]['seconds']:.1f} s")
    found = rows(runs)
    data = load_data(words.data, 1, 1)
    return {
        "kind": "startup",
        **described("auto", data.name, "python -m benchmarks.whole"),
        "epochs": words.epochs,
        "repeats": words.repeats,
        "rows": found,
        "break_even": {
            c: paid_after(found, c, words.epochs) for c in ("compile, cold", "compile, warm")
        },
    }


def main(argv: list[str]) -> None:
    """Run the commands and store the result."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.whole")
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--commands", nargs="+", choices=list(COMMANDS))
    parser.add_argument("--out", type=Path, default=RESULTS / "startup.json")
    words = parser.parse_args(argv)
    store(words.out, run_all(words))


if __name__ == "__main__":
    main(sys.argv[1:])
