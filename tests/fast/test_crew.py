"""How many threads train: found out by the steps of the training itself."""

from collections.abc import Callable

import pytest
import torch

from tests.fast.natives import images_of, native_of, numbers_of
from vaebench import VAE
from vaebench.fast import crew
from vaebench.fast.crew import TRIAL, Crew
from vaebench.objective import Objective


class Machine:
    """Its clock goes on by what a step takes on so many threads."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, step: Callable[[int], float]) -> None:
        self.now, self.step = 0.0, step
        self.done: list[tuple[int, int, int]] = []
        monkeypatch.setattr("vaebench.fast.crew.time.perf_counter", lambda: self.now)

    def work(self, first: int, count: int, threads: int) -> None:
        self.done.append((first, count, threads))
        self.now += count * self.step(threads)

    def by(self, threads: int) -> int:
        """Steps by so many."""
        return sum(count for _, count, size in self.done if size == threads)


@pytest.mark.parametrize("best", [1, 2, 4, 8])
def test_the_fastest_goes_on(best: int, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, lambda threads: 1e-3 * (1 + abs(threads - best)))
    found = Crew(8)
    for _ in range(20):
        found.run(500, machine.work)
    assert found.size == best
    assert machine.by(best) > 9800
    # Every step is done, in order, in every epoch.
    ends = [first + count for first, count, _ in machine.done]
    assert [first for first, _, _ in machine.done[1:]] == [end % 500 for end in ends[:-1]]
    assert (found.remark() is None) is (best == 8)


def test_trials_cost_little(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = {8: 1e-3, 4: 1.1e-3, 2: 3e-3, 1: 9e-3}
    machine = Machine(monkeypatch, steps.__getitem__)
    found = Crew(8)
    found.run(100, machine.work)
    before, machine.done = machine.now, []
    for _ in range(200):
        found.run(500, machine.work)
    assert machine.now - before < 1.006 * 100_000 * steps[8]
    assert all(machine.by(size) >= TRIAL for size in steps)  # and are made all the same


def test_a_machine_that_changes_is_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = {2: 1e-3, 1: 1.8e-3}
    machine = Machine(monkeypatch, lambda threads: steps[threads])
    found = Crew(2)
    for two, best in ((2.4e-3, 1), (1e-3, 2), (2.4e-3, 1)):
        found.run(3000, machine.work)
        steps[2] = two
        for _ in range(10):
            found.run(3000, machine.work)
        assert found.size == best


def test_long_steps_are_no_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for half a second to be told that four threads are faster than one."""
    machine = Machine(monkeypatch, lambda threads: 0.2 / threads)
    found = Crew(4)
    for _ in range(5):
        found.run(100, machine.work)
    assert machine.by(4) == 500


def test_few_steps_are_no_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, lambda threads: 1e-3 * threads)
    found = Crew(4)
    for _ in range(100):
        found.run(TRIAL - 1, machine.work)
    assert machine.by(4) == 100 * (TRIAL - 1)


def test_training_does_not_depend_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same bits, however many threads took turns."""
    images = images_of(300, (8, 8), 0.3, torch.uint8)
    found, threads = [], torch.get_num_threads()
    monkeypatch.setattr(crew, "APART", 0)  # tries again and again
    try:
        for most in (1, 4):
            torch.set_num_threads(most)
            torch.manual_seed(4)
            model = VAE((8, 8), (20,), 3)
            engine = native_of(model, images, Objective(), 16)
            took: set[int] = set()
            learn = engine.crew.learn
            monkeypatch.setattr(
                engine.crew, "learn", lambda *a, learn=learn, took=took: (took.add(a[0]), learn(*a))
            )
            sums = engine.epoch(*numbers_of(engine, 1000))
            found.append([sums.recon, sums.kl, *model.parameters()])
            assert (len(took) > 1) is (most > 1)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
