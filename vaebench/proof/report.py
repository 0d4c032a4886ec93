"""What a proof found: a comparison a line, and all of them in a table, in JSON, or as an error."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

SCHEMA = 1
# What each level means, for whoever reads a table.
LEVELS = {
    "L0": "loss and gradients in float64, beside the reference's textbook formulas",
    "L1": "one step in float32: ELBO, gradients, updated parameters, buffers",
    "L2": "one step with products rounded more than float32's",
    "L3": "50 steps and more in float32, with a short last batch each epoch",
}


@dataclass(frozen=True)
class Check:
    """One comparison.

    Args:
        case: what was tried, such as ``"compile+native"``.
        level: ``"L0"`` to ``"L3"``; see ``LEVELS``.
        what: the number or tensor compared, such as ``"grad encoder.0.weight"``.
        difference: how far it is off, in its own units.
        bar: the most that is let pass.
    """

    case: str
    level: str
    what: str
    difference: float
    bar: float

    @property
    def passed(self) -> bool:
        """Whether the difference is within the bar; one that is not a number is not."""
        return self.difference <= self.bar

    @property
    def share(self) -> float:
        """The difference as a share of the bar."""
        if math.isnan(self.difference):
            return math.inf
        if self.difference and not self.bar:
            return math.inf
        return self.difference / self.bar if self.bar else 0.0

    def __str__(self) -> str:
        """Say it in a line."""
        return (
            f"{self.case}, {self.level}: {self.what} is off by {self.difference:.2g}, where "
            f"{self.bar:.2g} is let pass"
        )


@dataclass(frozen=True)
class Report:
    """All that was compared.

    Args:
        subject: model and data, in words.
        checks: every comparison.
        left_out: what was not compared, by case, and why.
        seconds: how long it took.
        machine: hardware and versions.
    """

    subject: str
    checks: Sequence[Check]
    left_out: Mapping[str, str]
    seconds: float
    machine: Mapping[str, Any]

    @property
    def failures(self) -> list[Check]:
        """The comparisons that did not pass."""
        return [check for check in self.checks if not check.passed]

    @property
    def passed(self) -> bool:
        """Whether anything was compared, and all of it passed."""
        return bool(self.checks) and not self.failures

    def require(self) -> None:
        """Raise AssertionError, naming the first comparison that failed, if one did."""
        failures = self.failures
        if failures:
            more = f"; {len(failures) - 1} more of {len(self.checks)} comparisons fail"
            raise AssertionError(f"{failures[0]}{more if len(failures) > 1 else ''}")
        if not self.checks:
            raise AssertionError("nothing was compared")

    def table(self) -> str:
        """A line for each case and level, with what came nearest to its bar; then the verdict."""
        groups: dict[tuple[str, str], list[Check]] = {}
        for check in self.checks:
            groups.setdefault((check.case, check.level), []).append(check)
        return "\n".join([HEADING, *map(row, groups.values()), self.verdict()])

    def verdict(self) -> str:
        """What was left out, what the levels mean, and whether all is equal."""
        lines = [f"{case:<{WIDTH}}  not compared: {why}" for case, why in self.left_out.items()]
        levels = sorted({check.level for check in self.checks})
        lines += ["", *(f"{level}: {LEVELS[level]}" for level in levels), str(self.subject)]
        failures = self.failures
        found = "equal" if self.passed else f"NOT EQUAL: {failures[0] if failures else 'nothing'}"
        return "\n".join([*lines, f"{found} ({len(self.checks)} comparisons)"])

    def as_json(self) -> dict[str, Any]:
        """The same for machines; what is not finite is a string, as JSON has no number for it."""
        checks = [dataclasses.asdict(check) | {"passed": check.passed} for check in self.checks]
        for entry in checks:
            for name in ("difference", "bar"):
                if not math.isfinite(entry[name]):
                    entry[name] = str(entry[name])
        return {
            "schema": SCHEMA,
            "passed": self.passed,
            "subject": self.subject,
            "checks": checks,
            "left_out": dict(self.left_out),
            "seconds": self.seconds,
            "machine": dict(self.machine),
        }


WIDTH = 34
ROW = f"{{:<{WIDTH}}}  {{:<5}}  {{:>8}}  {{:>12}}  {{}}"
HEADING = ROW.format("techniques", "level", "compared", "of the bar", "nearest to its bar")


def row(checks: Sequence[Check]) -> str:
    """The table's line for one case at one level."""
    worst = max(checks, key=lambda check: check.share)
    case = worst.case if len(worst.case) <= WIDTH else worst.case[: WIDTH - 3] + "..."
    share = f"{worst.share:.2g}" if worst.passed else f"{worst.share:.2g} FAILS"
    return ROW.format(case, worst.level, len(checks), share, worst.what)
