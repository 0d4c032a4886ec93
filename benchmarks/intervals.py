"""The statistics of the suite: medians and their noise, paired ratios, two one-sided t tests.

Plain Python, so that each number can be checked by hand. Student's t has a closed form for whole
degrees of freedom, and pairs give no others.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

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
    middle = statistics.median(values)
    q1, q3 = _quantile(values, 0.25), _quantile(values, 0.75)
    return Summary(middle, q1, q3, len(values), noise_mark(q3 - q1, middle))


def noise_mark(iqr: float, median: float) -> str:
    """Say whether a median may be quoted: ``ok``, ``noisy`` or ``not quoted``."""
    share = iqr / median if median else math.inf
    if share > UNQUOTABLE:
        return "not quoted"
    return "noisy" if share > NOISY else "ok"


def _quantile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


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
    k, covered = 1, _coverage(n, 1)
    while 2 * (k + 1) <= n and _coverage(n, k + 1) >= level:
        k, covered = k + 1, _coverage(n, k + 1)
    return Ratio(statistics.median(ratios), ratios[k - 1], ratios[n - k], covered, n)


def _coverage(n: int, k: int) -> float:
    return 1 - 2 * sum(math.comb(n, i) for i in range(k)) / float(2**n)


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
    error = sd / math.sqrt(n)
    half = t_quantile(0.975, n - 1) * error
    if error == 0:
        p = 0.0 if abs(mean) < margin else 1.0
    else:
        # Of the two tests the one at the nearer margin decides.
        p = 1 - t_cdf((margin - abs(mean)) / error, n - 1)
    return Equivalence(mean, sd, mean - half, mean + half, margin, p, n, p < 0.05)


def t_cdf(t: float, freedom: int) -> float:
    """P(T <= t) of Student's t; Abramowitz and Stegun, 26.7.3 and 26.7.4."""
    angle = math.atan(t / math.sqrt(freedom))
    cos2 = math.cos(angle) ** 2
    odd = freedom % 2
    term, total = 1.0, 0.0
    for i in range(freedom // 2):
        total += term
        term *= cos2 * (2 * i + 1 + odd) / (2 * i + 2 + odd)
    if odd:
        between = 2 / math.pi * (angle + math.sin(angle) * math.cos(angle) * total)
    else:
        between = math.sin(angle) * total
    return 0.5 + between / 2


def t_quantile(p: float, freedom: int) -> float:
    """Invert :func:`t_cdf` by bisection, for p above one half."""
    low, high = 0.0, 1.0
    while t_cdf(high, freedom) < p:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if t_cdf(middle, freedom) < p else (low, middle)
    return (low + high) / 2


def exponent(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """Slope of log seconds over log size by least squares: 1 is cost in proportion to size."""
    x, y = [math.log(s) for s in sizes], [math.log(s) for s in seconds]
    return statistics.linear_regression(x, y).slope


def break_even(once: float, plain: float, compiled: float) -> float | None:
    """Epochs after which compiling has paid; None if it never does.

    ``once`` is what it costs beforehand; ``plain`` and ``compiled`` an epoch's time; all seconds.
    """
    return max(0.0, once) / (plain - compiled) if compiled < plain else None
