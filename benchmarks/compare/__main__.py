"""``python -m benchmarks.compare A B``: which is faster, by how much, and is the ELBO the same?"""

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Any

from benchmarks.compare.page import page
from benchmarks.compare.rounds import Comparison
from benchmarks.compare.sides import SHOWN, commits_between, side_of
from benchmarks.compare.verdict import fails, in_words
from benchmarks.harness import say, store
from vaebench import InputError

BENCHMARKS = ("mlp", "mlp+compile", "conv")


def parse(argv: list[str]) -> argparse.Namespace:
    """Read the arguments; InputError if one cannot be."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compare",
        description=f"Compare two, each {SHOWN}; joined by + they are one. Both train in turns, a "
        "process each time, so that a machine's drift hits both.",
    )
    parser.add_argument("a", metavar="A", help="the one that is measured against")
    parser.add_argument("b", metavar="B", help="the one in question")
    parser.add_argument(
        "--benchmarks", nargs="+", default=list(BENCHMARKS), metavar="NAME",
        help=f"workloads, and techniques after a + (default: {' '.join(BENCHMARKS)})",
    )  # fmt: skip
    parser.add_argument("--rounds", type=int, default=12, metavar="N", help="(default: 12)")
    parser.add_argument("--data", default="auto", help="auto: MNIST if on disk, else strokes")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the result as JSON")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write it as a page")
    parser.add_argument(
        "--fail-above", type=float, metavar="RATIO",
        help="exit with 1 if B is slower, surely, and by more than this",
    )  # fmt: skip
    parser.add_argument(
        "--bisect", action="store_true", help="find the first commit after A that is as slow as B"
    )
    words = parser.parse_args(argv)
    if words.rounds < 8:
        raise InputError(
            f"--rounds is {words.rounds}: fewer than 8 pairs say nothing at 99 %; give 8 or more"
        )
    return words


def compare(words: argparse.Namespace, a: str, b: str) -> dict[str, Any]:
    """Compare two; give the result."""
    sides = [dataclasses.replace(side_of(text), name=text) for text in (a, b)]
    return Comparison(sides, words.benchmarks, words.rounds, words.data, words.device).run()


def bisect(words: argparse.Namespace) -> str:
    """The first commit after A that is slower than A; InputError if B is not."""
    listed = commits_between(words.a, words.b)

    def is_slower(commit: str) -> bool:
        rows = compare(words, words.a, commit)["benchmarks"]
        for row in rows:
            say(f"{commit[:12]}: {in_words(row)}")
        return any(row["verdict"] == "slower" for row in rows)

    if not is_slower(listed[-1]):
        raise InputError(f"{words.b} is not slower than {words.a} here: there is nothing to find")
    low, high = 0, len(listed) - 1  # the first slow one is from low to high
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if is_slower(listed[middle]) else (middle + 1, high)
    return listed[low]


def main(argv: list[str]) -> int:
    """Run the command line; give its exit status."""
    try:
        words = parse(argv)
        if words.bisect:
            print(f"first slower: {bisect(words)}")
            return 0
        result = compare(words, words.a, words.b)
    except InputError as error:
        print(f"benchmarks.compare: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            "benchmarks.compare: interrupted; the same command goes on from here", file=sys.stderr
        )
        return 130
    result["command"] = " ".join(["python -m benchmarks.compare", words.a, words.b])
    print(f"B ({words.b}) beside A ({words.a}); time of B over time of A:")
    for row in result["benchmarks"]:
        print(in_words(row))
    for why in result["not_compared"].values():
        print(f"not compared: {why}")
    if words.out:
        store(words.out, result)
    if words.html:
        words.html.write_text(page(result), encoding="utf-8")
    slow = words.fail_above is not None and any(
        fails(row, words.fail_above) for row in result["benchmarks"]
    )
    return 1 if slow else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
