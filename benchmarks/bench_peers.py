"""How does vaebench compare with what one would otherwise use?

Every contender runs in a process of its own. Before each timed round of a peer, vaebench trains
the same images: the ratio is taken round by round, so that what the machine does besides hits
both sides. A peer whose ELBO is not vaebench's is not timed.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.conftest import Measure, Size, clock
from benchmarks.intervals import paired_ratio, summary
from benchmarks.peers import AGREES, PEERS
from benchmarks.processes import Child, has_jax

# A small run leaves out those that compile what another case compiles.
LONG = ("vaebench", "vaebench --amp", "torch.compile(model)")
CASES = [pytest.param(p, marks=pytest.mark.full) if p in LONG else p for p in PEERS]

Pairs = tuple[Child, float]


class Ours:
    """vaebench's own process on each device, kept for all peers; ends with the module."""

    def __init__(self, task: dict[str, Any]) -> None:
        self.task = task
        self.running: dict[str, Pairs] = {}

    def on(self, device: str) -> Pairs:
        """Give the process, warmed up, and its warm-up epoch's ELBO."""
        if device not in self.running:
            self.running[device] = start("vaebench", device, self.task)
        return self.running[device]


def start(peer: str, device: str, task: dict[str, Any]) -> Pairs:
    """Start a contender; give its process, warmed up, and its warm-up epoch's ELBO."""
    child = Child("worker", {"peer": peer, "device": device, **task})
    return child, child.answer()["elbo"]


def order(child: Child, word: str) -> float:
    """Have a contender do something; give the seconds until it has."""
    begun = clock()
    child.tell(word)
    child.answer()
    return clock() - begun


@pytest.fixture(scope="module")
def ours(pytestconfig: pytest.Config, size: Size) -> Iterator[Ours]:
    """Run vaebench in a process of its own."""
    data = pytestconfig.getoption("--bench-data")
    made = Ours({"data": data, "images": size.images, "count": size.peers})
    yield made
    for child, _ in made.running.values():
        child.close()


@pytest.mark.benchmark(group="peers")
@pytest.mark.parametrize("peer", CASES)
def test_peer(
    benchmark: BenchmarkFixture, measure: Measure, device: torch.device, peer: str, ours: Ours,
    size: Size,
) -> None:  # fmt: skip
    if peer == "jax" and not has_jax():
        pytest.skip("jax is not installed: pip install vaebench[peers]")
    home, expected = ours.on(device.type)
    child, found = start(peer, device.type, ours.task)
    assert abs(found - expected) <= AGREES[peer] * abs(expected), f"ELBO {found}, not {expected}"
    our_seconds: list[float] = []

    def before() -> None:
        order(home, "restore")
        our_seconds.append(order(home, "epoch"))
        order(child, "restore")

    with child:
        measure(
            lambda: order(child, "epoch"), setup=before, rounds=size.rounds, images=size.peers,
            peer=peer, elbo=found, our_elbo=expected, device=device.type,
        )  # fmt: skip
    if benchmark.stats is not None:
        ratio = paired_ratio(benchmark.stats.stats.data, our_seconds)
        benchmark.extra_info["ratio"] = dataclasses.asdict(ratio)
        benchmark.extra_info["our_images_per_second"] = size.peers / summary(our_seconds).median
