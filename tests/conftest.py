"""Shared by all tests: a private compiler cache, small data, the devices there are."""

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from vaebench.cli.command import SPINS

# Of several processes that share the tests, each has a core of its own: threads that wait for one
# another's cores would take many times as long. Set before torch is imported.
_worker = os.environ.get("PYTEST_XDIST_WORKER")
if _worker and hasattr(os, "sched_setaffinity"):
    _cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {_cores[int(_worker.removeprefix("gw")) % len(_cores)]})

# Compiling in this process, one kernel after another: worker processes have been seen to hang
# tests. Set before torch is imported.
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
# As the commands have it: threads that wait for one that others keep from its core soon sleep.
os.environ.setdefault("GOMP_SPINCOUNT", SPINS)

MOST_PROCESSES = 4  # each holds a torch of its own
LONGEST = ("test_random_networks.py", "test_equivalence.py", "test_resume.py")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Two tiers: what takes minutes at most, with every kind of proof in it, and everything."""
    parser.addoption("--all", action="store_true", help="run the slow tests too")


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Let processes share the tests, a file at a time, where all are run; ``-n 0`` forbids it."""
    if _worker or config.args_source is not pytest.Config.ArgsSource.TESTPATHS:
        return
    if config.option.numprocesses is None and not config.option.usepdb:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
        config.option.numprocesses = min(cores, MOST_PROCESSES)
        config.option.dist = "loadfile"
        config.option.loadscopereorder = False  # it puts files of few tests last, however long
        config.option.benchmark_disable = True


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Name no test after bytes: a gzip member, say, holds the second in which it was made."""
    return argname if isinstance(val, bytes) else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip the slow tests unless all are asked for; files that take minutes go first."""
    items.sort(key=lambda item: item.path.name not in LONGEST)
    if config.getoption("--all"):
        return
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.skip(reason="slow: run by --all"))


def pytest_configure(config: pytest.Config) -> None:
    """Keep compiled code in pytest's own cache: apart from the user's, and quick the next time."""
    cache = getattr(config, "cache", None)  # absent under -p no:cacheprovider
    folder = cache.mkdir("inductor") if cache else Path(tempfile.mkdtemp(prefix="vaebench-"))
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)
    # A shell's background job is started with Ctrl-C ignored, which the tests of it would wait for.
    signal.signal(signal.SIGINT, signal.default_int_handler)


import torch  # noqa: E402

from vaebench.data.load import load_mnist  # noqa: E402
from vaebench.data.strokes import make_strokes  # noqa: E402
from vaebench.fast.admit import Verdict  # noqa: E402


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    """Let no test leave its number of threads, and so another rounding, to the next."""
    before = torch.get_num_threads()
    yield
    if torch.get_num_threads() != before:
        torch.set_num_threads(before)


@pytest.fixture(autouse=True, scope="session")
def _candidates_win() -> Iterator[None]:
    """Let no test depend on who is faster: each engine that is tried and is right is used.

    On a busy machine a race may end either way. Tests of what a lost race does lose it themselves.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Verdict, "wins", property(lambda _: True))
        yield


@pytest.fixture(params=["cpu", "cuda"])
def device(request: pytest.FixtureRequest) -> torch.device:
    """Each device in turn."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return torch.device(request.param)


@pytest.fixture(scope="session")
def strokes() -> torch.Tensor:
    """1,000 built-in digits, (1000, 28, 28) uint8."""
    return make_strokes(1000, seed=3)[0]


@pytest.fixture(scope="session")
def mnist() -> torch.Tensor:
    """The first 1,000 training images of the real MNIST, (1000, 28, 28) uint8."""
    if not os.environ.get("VAEBENCH_DATA"):
        pytest.skip("VAEBENCH_DATA names no folder of MNIST's files")
    return load_mnist(download=False).train.images[:1000].clone()


@pytest.fixture(params=["strokes", pytest.param("mnist", marks=pytest.mark.slow)])
def images(request: pytest.FixtureRequest) -> torch.Tensor:
    """Each small data set in turn; MNIST, by --all, where ``VAEBENCH_DATA`` names it."""
    data: torch.Tensor = request.getfixturevalue(request.param)
    return data
