"""How does vaebench compare with what one would otherwise use?

Every contender runs in a process of its own. Before each timed round of a peer, vaebench trains
the same images: the ratio is taken round by round, so that what the machine does besides hits
both sides. A peer whose ELBO is not vaebench's is not timed. The loop of danielwang7/MNIST-VAE has
its own workload, ``-k MNIST-VAE``: vaebench trains that with ``--compile``, and with ``--amp``.
"""

from collections.abc import Iterator

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.conftest import Measure, Size
from benchmarks.harness import differ, has_jax
from benchmarks.peers import PEERS, Running

# A small run leaves out those that compile what another case compiles.
LONG = ("vaebench", "vaebench --amp", "torch.compile(model)", "danielwang7/MNIST-VAE, beside --amp")
CASES = [pytest.param(p, marks=pytest.mark.full) if p in LONG else p for p in PEERS]


@pytest.fixture(scope="module")
def ours() -> Iterator[dict[tuple[str, str], Running]]:
    """Give vaebench's processes, by name and device: kept for all peers, ended with the module."""
    started: dict[tuple[str, str], Running] = {}
    yield started
    for each in started.values():
        each.close()


@pytest.mark.benchmark(group="peers")
@pytest.mark.parametrize("peer", CASES)
def test_peer(
    benchmark: BenchmarkFixture, measure: Measure, device: torch.device, peer: str, size: Size,
    ours: dict[tuple[str, str], Running], pytestconfig: pytest.Config,
) -> None:  # fmt: skip
    if peer == "jax" and not has_jax():
        pytest.skip("jax is not installed: pip install vaebench[peers]")
    start = (device.type, pytestconfig.getoption("--bench-data"), size.images, size.peers)
    beside = PEERS[peer].beside
    if beside != "vaebench":
        benchmark.group = f"peers: {beside}"  # another workload is another table
    if (beside, device.type) not in ours:
        ours[beside, device.type] = Running(beside, *start).ready()
    home = ours[beside, device.type]
    with Running(peer, *start) as theirs:
        wrong = differ(theirs.elbo, home.elbo, PEERS[peer].agrees)
        assert wrong is None, wrong

        def before() -> None:
            home.restore()
            theirs.restore()

        measure(
            theirs.epoch, setup=before, beside=home.epoch, images=theirs.count,
            peer=peer, beside_peer=beside, elbo=theirs.elbo, our_elbo=home.elbo,
            device=device.type,
        )  # fmt: skip
