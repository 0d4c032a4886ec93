"""Medians and their noise, paired ratios, equivalence: what the suite says of its figures."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

# Shares of the median, after torch.utils.benchmark: above the first a figure is marked, above the
# second it is not quoted.
NOISY, UNQUOTABLE = 0.10, 0.25


@dataclass(frozen=True)
class Summary:
    """Median and quartiles of n figures, in their unit; ``noise`` is ok, noisy or not quoted."""

    median: float
    q1: float
    q3: float
    n: int
    noise: str


def summary(values: Sequence[float]) -> Summary:
    """Summarise figures; quartiles by linear interpolation between order statistics."""
    q1, median, q3 = (float(q) for q in np.quantile(values, (0.25, 0.5, 0.75)))
    share = (q3 - q1) / median if median else math.inf
    noise = "not quoted" if share > UNQUOTABLE else "noisy" if share > NOISY else "ok"
    return Summary(median, q1, q3, len(values), noise)


@dataclass(frozen=True)
class Ratio:
    """A median ratio and an interval for it that covers with probability ``level``."""

    median: float
    low: float
    high: float
    level: float
    n: int


def paired_ratio(above: Sequence[float], below: Sequence[float], level: float = 0.95) -> Ratio:
    """Median of the ratios of figures taken side by side, with its rank interval.

    The interval lies between two order statistics and holds whatever the figures' distribution,
    so one disturbed pair cannot move it. Fewer than six pairs do not reach 95 %: then it is
    their whole range, and ``level`` says what that covers.
    """
    ratios = sorted(a / b for a, b in zip(above, below, strict=True))
    n = len(ratios)
    # The k-th smallest and k-th largest miss the median with 2 P(Binomial(n, 1/2) < k).
    covers = [1 - 2 * float(stats.binom.cdf(k - 1, n, 0.5)) for k in range(1, n // 2 + 1)] or [0.0]
    k = max([i for i, covered in enumerate(covers) if covered >= level], default=0)
    return Ratio(statistics.median(ratios), ratios[k], ratios[n - 1 - k], covers[k], n)


@dataclass(frozen=True)
class Equivalence:
    """Paired differences: mean, its 95 % interval, and the p-value of the two one-sided tests.

    ``equivalent``: both tests reject at 5 % that the mean lies beyond the margin.
    """

    mean: float
    sd: float
    low: float
    high: float
    margin: float
    p: float
    n: int
    equivalent: bool


def equivalence(differences: Sequence[float], margin: float) -> Equivalence:
    """Test by two one-sided t tests that the mean difference lies within ±``margin``."""
    n = len(differences)
    mean, sd = statistics.mean(differences), statistics.stdev(differences)
    if sd == 0:
        low, high, p = mean, mean, 0.0 if abs(mean) < margin else 1.0
    else:
        above = stats.ttest_1samp(differences, -margin, alternative="greater")
        below = stats.ttest_1samp(differences, margin, alternative="less")
        p = float(max(above.pvalue, below.pvalue))
        low, high = stats.t.interval(0.95, n - 1, mean, sd / math.sqrt(n))
    return Equivalence(mean, sd, float(low), float(high), margin, p, n, p < 0.05)


def exponent(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """Slope of log seconds over log size by least squares: 1 is cost in proportion to size."""
    return statistics.linear_regression(np.log(sizes).tolist(), np.log(seconds).tolist()).slope


def break_even(once: float, plain: float, compiled: float) -> float | None:
    """Epochs after which compiling has paid; None if it never does.

    ``once`` is what it costs beforehand; ``plain`` and ``compiled`` an epoch's time; all seconds.
    """
    return max(0.0, once) / (plain - compiled) if compiled < plain else None
