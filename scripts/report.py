"""Stored results -> the tables of benchmarks/*.md, and plots: ``python scripts/report.py``.

    python scripts/report.py                      write the tables, draw the plots
    python scripts/report.py --check              exit with 1 if tables and results differ
    python scripts/report.py reduce RAW.json OUT  keep of pytest-benchmark's JSON what is needed

It reads JSON files only, ``benchmarks/results/*.json``; a table stands between the markers
``<!-- table:NAME -->`` and ``<!-- /table:NAME -->``. What has no file is "not measured yet".
"""

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

from report_cuda import cuda
from report_tables import (
    compare,
    equality,
    ladder,
    likelihoods,
    peers,
    records,
    releases,
    scaling,
    startup,
)
from report_words import Result, Results

ROOT = Path(__file__).resolve().parent.parent


def read(folder: Path) -> Results:
    """Read all stored results."""
    paths = sorted(folder.glob("*.json"))
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in paths}


def reduce(raw: Result) -> Result:
    """Keep of pytest-benchmark's own JSON the summaries and facts that tables and plots need."""
    machine = dict(raw["machine_info"])
    wanted = ("median", "iqr", "rounds")
    return {
        "kind": "suite",
        "machine": machine,
        "commit": machine.pop("commit"),
        "command": "pytest benchmarks --benchmark-only --benchmark-json=RAW.json",
        "data": machine.pop("data"),
        "size": machine.pop("size"),
        "exponents": raw["exponents"],
        "roof": raw["roof"],
        "benchmarks": [
            {"name": bench["name"], "group": bench["group"]}
            | {key: bench["stats"][key] for key in wanted}
            | bench["extra_info"]
            for bench in raw["benchmarks"]
        ],
    }


TABLES: dict[str, Callable[[Results], str]] = {
    "ladder": ladder,
    "peers": peers,
    "equality": equality,
    "startup": startup,
    "compare": compare,
    "records": records,
    "likelihoods": likelihoods,
    "releases": releases,
    "scaling": scaling,
    "cuda": cuda,
}
MARKED = re.compile(r"(<!-- table:(\w+) -->\n).*?(<!-- /table:\2 -->)", re.S)


def filled(text: str, results: Results) -> str:
    """Give a text with every marked table made anew.

    Raises:
        KeyError: a marker names no table.
    """
    return MARKED.sub(lambda m: m[1] + TABLES[m[2]](results) + "\n" + m[3], text)


def main(argv: list[str]) -> int:
    """Run the command line; give its exit status."""
    parser = argparse.ArgumentParser(prog="scripts/report.py", description=__doc__)
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks/results")
    texts = [ROOT / "benchmarks/README.md", ROOT / "benchmarks/RECORDS.md"]
    parser.add_argument("--readme", type=Path, nargs="+", default=texts)
    parser.add_argument("--check", action="store_true", help="compare only")
    commands = parser.add_subparsers(dest="command")
    reducing = commands.add_parser("reduce", help="shrink pytest-benchmark's JSON")
    reducing.add_argument("raw", type=Path)
    reducing.add_argument("out", type=Path)
    words = parser.parse_args(argv)
    if words.command == "reduce":
        small = reduce(json.loads(words.raw.read_text(encoding="utf-8")))
        words.out.write_text(json.dumps(small, indent=1) + "\n", encoding="utf-8")
        return 0
    results = read(words.results)
    for path in words.readme:
        text = path.read_text(encoding="utf-8")
        if not words.check:
            path.write_text(filled(text, results), encoding="utf-8")
        elif filled(text, results) != text:
            print(f"{path.name} differs: run python scripts/report.py", file=sys.stderr)
            return 1
    if words.check:
        return 0
    from report_plots import draw_all

    for path in draw_all(results, words.results):
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
