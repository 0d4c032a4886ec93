"""What the figures of a comparison allow one to say."""

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.harness import TOLERANCE, differ
from benchmarks.statistics import paired_ratio, summary

# Of the ratio's interval. Fifteen comparisons of a thing with itself find a difference once in ten
# times at most.
LEVEL = 0.99
# Of the runs: if more were disturbed, the figures are marked.
DISTURBED = 0.2

Run = Mapping[str, Any]


def epoch_seconds(run: Run) -> float:
    """The median of a run's epochs but the first, in seconds."""
    seconds: Sequence[float] = run["epoch_seconds"]
    return statistics.median(seconds[1:])


def ratio_of(first: Run, second: Run) -> float:
    """B's time over A's in a round: the median over epochs that followed one another."""
    pairs = zip(first["epoch_seconds"][1:], second["epoch_seconds"][1:], strict=True)
    return float(statistics.median(b / a for a, b in pairs))


def judged(name: str, first: Sequence[Run], second: Sequence[Run]) -> dict[str, Any]:
    """Judge one benchmark by its runs, A's and B's, pair by pair.

    The first of each, for which every kernel had to be built, tells how long that takes, and
    nothing else.

    Returns:
        ``ratio``: B's time over A's, with its interval; ``verdict``: faster, slower, or no
        difference found; ``resolution``: relative, the least difference that these figures could
        have shown; ``equal``: None if both trained to the same ELBO, else how they differ.
    """
    cold = [runs[0]["first_epoch_after"] for runs in (first, second)]
    first, second = first[1:], second[1:]
    seconds = [[epoch_seconds(run) for run in runs] for runs in (first, second)]
    ratios = [ratio_of(*pair) for pair in zip(first, second, strict=True)]
    ratio = paired_ratio(ratios, [1.0] * len(ratios), LEVEL)
    bf16 = "bf16" in (run["actual"].get("amp") for run in (first[0], second[0]))
    elbos = [run["elbo"] for run in (first[-1], second[-1])]
    verdict = "slower" if ratio.low > 1 else "faster" if ratio.high < 1 else "no difference found"
    return {
        "name": name,
        "epoch_seconds": [dataclasses.asdict(summary(each)) for each in seconds],
        "pairs": [list(pair) for pair in zip(*seconds, strict=True)],
        "ratios": ratios,
        "ratio": dataclasses.asdict(ratio),
        "verdict": verdict,
        "resolution": max(ratio.high / ratio.median, ratio.median / ratio.low) - 1,
        "elbo": elbos,
        "equal": differ(elbos[1], elbos[0], TOLERANCE["bf16" if bf16 else "float32"]),
        "peak_bytes": [
            statistics.median(r["peak_bytes"] for r in runs) for runs in (first, second)
        ],
        "cold_seconds": cold,
        "warm_seconds": [
            statistics.median(r["first_epoch_after"] for r in runs) for runs in (first, second)
        ],
        "busy": _disturbed([*first, *second]),
    }


def _disturbed(runs: Sequence[Run]) -> bool:
    return sum(bool(run["busy"]) for run in runs) > DISTURBED * len(runs)


def in_words(row: Mapping[str, Any]) -> str:
    """A line for a benchmark that was compared."""
    ratio = row["ratio"]
    words = (
        f"{row['name']:<14} {ratio['median']:6.3f} ({ratio['low']:.3f} to {ratio['high']:.3f}; "
        f"n = {ratio['n']})  {row['verdict']}"
    )
    if row["verdict"] == "no difference found":
        words += f"; {row['resolution']:.1%} could have been"
    words += f"; ELBO {'equal' if row['equal'] is None else 'NOT equal: ' + row['equal']}"
    return words + "; BUSY MACHINE" * bool(row["busy"])


def fails(row: Mapping[str, Any], above: float) -> bool:
    """Whether a benchmark got slower by more than a factor, and surely slower."""
    return row["verdict"] == "slower" and bool(row["ratio"]["median"] > above)
