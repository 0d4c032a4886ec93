"""How many threads train: fewer may be faster, since in a short step they mostly wait.

A kernel that gives the same bits on any number of threads may change it while it trains, and find
out by its own steps. All threads that are allowed, half of them, and so on to one take turns; then
the fastest goes on. The others are tried again, the sooner the less a trial costs: a machine is not
always as it was when training began. Two processors of a virtual machine may be one core, or not,
from one second to the next.
"""

import time
from collections.abc import Callable

TRIAL = 8  # steps
# Of the time, at most: what trials of slower numbers may cost together.
SHARE = 0.005
# A trial is forgotten so many times its own duration, at least, before the next.
APART = 20
# What another number must be faster by.
WORTH = 1.05
# Seconds of a step in which waiting is nothing: no other number is tried.
LONG = 0.01

# (first step, how many, threads): does them.
Work = Callable[[int, int, int], None]


class Crew:
    """Chooses the number of threads, while it works.

    Args:
        most: how many there may be.
    """

    def __init__(self, most: int) -> None:
        self.most = self.size = most
        self.others = {most >> k for k in range(1, most.bit_length())}
        self.rates: dict[int, float] = {}  # steps per second, when last seen
        self.clock = 0.0  # seconds of work
        self.due: dict[int, float] = {}  # when each is to be tried again

    @property
    def sizes(self) -> list[int]:
        """All that may be tried."""
        return sorted({self.most, *self.others}, reverse=True)

    def run(self, steps: int, work: Work) -> None:
        """Do so many steps; few are done as ever."""
        done = 0
        while done < steps:
            size, count = self._next(steps - done)
            begun = time.perf_counter()
            work(done, count, size)
            self.learn(size, count, time.perf_counter() - begun)
            done += count

    def _next(self, left: int) -> tuple[int, int]:
        """Whose turn it is, and for how many steps."""
        if left < TRIAL or self.most == 1:
            return self.size, left
        if self.size not in self.rates:
            return self.size, TRIAL
        if self.rate * LONG < 1:
            return self.size, left
        due = {s: self.due.get(s, 0.0) for s in self.sizes if s != self.size}
        soonest = min(due, key=due.__getitem__)
        if due[soonest] <= self.clock:
            return soonest, TRIAL
        return self.size, min(left, max(TRIAL, int((due[soonest] - self.clock) * self.rate)))

    @property
    def rate(self) -> float:
        """Steps per second of the number that goes on."""
        return self.rates[self.size]

    def learn(self, size: int, steps: int, seconds: float) -> None:
        """Take note of how long so many steps took."""
        self.clock += seconds
        if steps < TRIAL or not seconds:
            return
        self.rates[size] = steps / seconds
        if size == self.size:
            # Grown slower than another was: that is the next.
            faster = (s for s, rate in self.rates.items() if rate > WORTH * self.rate)
            self.due |= {s: min(self.due[s], self.clock) for s in faster if s in self.due}
            return
        lost = max(0.0, seconds - steps / self.rate)
        self.due[size] = self.clock + max(lost * len(self.others) / SHARE, APART * seconds)
        if self.rates[size] > WORTH * self.rate:
            self.due[self.size] = self.due.pop(size)
            self.size = size

    def remark(self) -> str | None:
        """Say so if fewer than all are at work."""
        if self.size == self.most:
            return None
        known = self.rates[self.most] / self.rate
        return (
            f"--native: {self.size} of {self.most} threads trained, since more waited for each "
            f"other (all of them: {known:.2f} of the rate)"
        )
