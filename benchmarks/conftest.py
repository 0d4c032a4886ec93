"""The instrument under pytest: sizes, devices, ``measure``, and what every figure carries with it.

Denormals are flushed for the whole process, before its first parallel region, as training does:
worker threads inherit the switch from the thread that makes them. ``_instrument`` checks that it
has reached them. Contenders that do not flush run in processes of their own.

What a busy machine spoils is marked noisy or left untimed, with the reason; a benchmark fails only
if an engine is wrong, and the last line says which did and why.
"""

import dataclasses
import os
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.harness import (
    BATCH,
    DEFAULT,
    clock,
    commit,
    has_jax,
    load_data,
    new_model,
    problem_of,
    seconds_of,
)
from benchmarks.rungs import Rung, RungError, find, ladder, top
from benchmarks.statistics import exponent, paired_ratio, summary
from vaebench import Dataset
from vaebench.system.info import fingerprint
from vaebench.system.threads import available_cpus
from vaebench.system.timing import peak_flops
from vaebench.training.fit import training_flops

# Of a stored result, what may differ between two runs that are compared.
FREE = ("commit",)
# Rounds of which there are at least so many, however slow: alone, and where a ratio is taken.
MIN_ROUNDS, MIN_PAIRS = 3, 6


@dataclass(frozen=True)
class Size:
    """How much is measured. ``None`` images: all there are."""

    images: int | None  # of the training set
    tests: int | None  # of the test set
    block: int  # images per timed block of steps
    peers: int  # images per timed round of the peers
    rounds: int  # at most
    seconds: float  # for all rounds of a benchmark, if MIN_ROUNDS rounds do not take longer


SIZES = {
    "small": Size(300, 100, 64, 200, 1, 1.0),
    "default": Size(None, None, 8192, 20_000, 11, 8.0),
}


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--bench-size`` and ``--bench-data``."""
    group = parser.getgroup("vaebench")
    group.addoption(
        "--bench-size", choices=list(SIZES), default="default", help="small: does it run at all?"
    )
    group.addoption(
        "--bench-data", default="auto", help="auto: MNIST if it is on disk, else strokes"
    )


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Set the process up as a training would be, before anything runs in it."""
    config.addinivalue_line("python_files", "bench_*.py")
    # What is skipped, or fails, before it is timed.
    config.addinivalue_line("filterwarnings", "ignore:Benchmark fixture was not used")
    config.addinivalue_line("markers", "full: left out at --bench-size small")
    torch.set_flush_denormal(True)
    torch.set_num_threads(available_cpus())
    config.option.benchmark_timer = f"{clock.__module__}.clock"
    if config.option.benchmark_columns is None:
        config.option.benchmark_columns = ["median", "iqr", "min", "rounds"]
    config.option.benchmark_sort = "fullname"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the large cases of a small run."""
    if config.getoption("--bench-size") != "small":
        return
    large = [item for item in items if item.get_closest_marker("full")]
    items[:] = [item for item in items if item not in large]
    config.hook.pytest_deselected(items=large)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None, object, object]:
    """Skip a rung that stands aside here: that is no fault, and its time would not be its own."""
    try:
        return (yield)
    except RungError as error:
        pytest.skip(f"not timed: {error}")


# What the figures carry, and what they may be compared with.


def pytest_benchmark_update_machine_info(
    config: pytest.Config, machine_info: dict[str, Any]
) -> None:
    """Say what the figures depend on, in place of the host's name and its clock of the moment."""
    machine_info.clear()
    machine_info.update(_machine_info(config))


def _machine_info(config: pytest.Config) -> dict[str, Any]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return {
        **fingerprint(device),
        "flush_denormal": True,
        "jax": _jax_version(),
        "data": _data(config).name,
        "size": config.getoption("--bench-size"),
        "commit": commit(),
    }


def _jax_version() -> str | None:
    if not has_jax():
        return None
    from importlib.metadata import version

    return version("jax")


def pytest_benchmark_compare_machine_info(
    machine_info: dict[str, Any], compared_benchmark: dict[str, Any]
) -> None:
    """Refuse to compare with figures from another machine or other settings.

    Raises:
        pytest.UsageError: names every difference.
    """
    there = compared_benchmark["machine_info"]
    different = [
        f"{key} is {machine_info.get(key)!r} here and {there.get(key)!r} there"
        for key in sorted({*machine_info, *there} - {*FREE})
        if machine_info.get(key) != there.get(key)
    ]
    if different:
        raise pytest.UsageError(
            "the stored benchmark cannot be compared with this run: " + "; ".join(different)
        )


def pytest_benchmark_update_json(output_json: dict[str, Any]) -> None:
    """Add the load, how cost grows along each axis swept, and each device's roof in images/s."""
    # Not with the machine, which two runs that are compared must share.
    output_json["load"] = round(os.getloadavg()[0], 1)
    benches = output_json["benchmarks"]
    output_json["exponents"] = _exponents(
        [(b["extra_info"], b["stats"]["median"]) for b in benches]
    )
    devices = {b["extra_info"]["device"] for b in benches if "device" in b["extra_info"]}
    output_json["roof"] = {name: _roof(torch.device(name)) for name in sorted(devices)}


def _roof(device: torch.device) -> float:
    """Images/s if nothing but the default workload's matrix products took time, at their peak."""
    images = torch.zeros(BATCH, 28, 28, dtype=torch.uint8)
    problem = problem_of(new_model(), images, DEFAULT, device)
    return peak_flops(device) / training_flops(problem)


def _exponents(benches: list[tuple[dict[str, Any], float]]) -> dict[str, float]:
    axes: dict[str, list[tuple[float, float]]] = {}
    for facts, seconds in benches:
        for axis, value in facts.get("axes", {}).items():
            axes.setdefault(f"{axis} ({facts['device']})", []).append((value, seconds))
    return {a: exponent(*zip(*points, strict=True)) for a, points in axes.items() if points[1:]}


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """List what may not be quoted, and the fitted exponents."""
    session = getattr(config, "_benchmarksession", None)
    benches = [b for b in session.benchmarks if b] if session else []
    for bench in benches:
        if bench.extra_info.get("noise", "ok") != "ok":
            terminalreporter.write_line(f"{bench.extra_info['noise']}: {bench.fullname}")
    fitted = _exponents([(b.extra_info, b.stats.median) for b in benches])
    for axis, slope in fitted.items():
        terminalreporter.write_line(f"cost grows as {axis}^{slope:.2f}")


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> Generator[None, object, object]:
    """End with what failed and why, a line each."""
    result = yield
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter:
        for report in reporter.stats.get("failed", []) + reporter.stats.get("error", []):
            crash = getattr(report.longrepr, "reprcrash", None)
            why = (crash.message if crash else str(report.longrepr)).strip().splitlines()
            reporter.write_line(f"failed: {report.nodeid}: {(why or ['no reason given'])[0]}")
    return result


# Fixtures.


@pytest.fixture(scope="session")
def size(pytestconfig: pytest.Config) -> Size:
    """How much to measure."""
    return SIZES[pytestconfig.getoption("--bench-size")]


@cache
def _data(config: pytest.Config) -> Dataset:
    chosen = SIZES[config.getoption("--bench-size")]
    return load_data(config.getoption("--bench-data"), chosen.images, chosen.tests)


@pytest.fixture(scope="session")
def data(pytestconfig: pytest.Config) -> Dataset:
    """The images that everything is measured on."""
    return _data(pytestconfig)


@pytest.fixture(params=["cpu", "cuda"])
def device(request: pytest.FixtureRequest) -> torch.device:
    """Each device in turn."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device")
    return torch.device(request.param)


@pytest.fixture
def rung(request: pytest.FixtureRequest, device: torch.device) -> Rung:
    """A rung by its name; ``top`` is that of plain ``--compile``."""
    name = top(device.type) if request.param == "top" else request.param
    if name.partition("=")[0] not in ladder(device.type):
        pytest.skip(f"{name} is not for {device.type}")
    return find(name, device.type)


@pytest.fixture(autouse=True, scope="session")
def _instrument() -> None:
    """Check that every thread which computes flushes denormals."""
    halves = torch.full((1 << 20,), 1e-39).mul_(0.5)
    # Compared as bits: as numbers, denormals are zero to a thread that flushes.
    assert not halves.view(torch.int32).any(), "denormals are not flushed in every thread"


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """Give a function that sets the number of threads; afterwards there are as many as before."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


Measure = Callable[..., Any]


@pytest.fixture
def measure(benchmark: BenchmarkFixture, size: Size) -> Measure:
    """Give a function that times ``target()`` in rounds; nothing may be compiled meanwhile.

    Its arguments: ``rounds`` at most, fewer if they would take too long; ``images`` processed per
    call, to state a throughput; ``setup``, called before each, off the clock; ``beside``, called
    and timed before each, off the target's clock: of the two the ratio is taken round by round;
    ``warm_up``: a first round does not count; and facts to store beside the figure.
    """

    def run(
        target: Callable[[], Any],
        *,
        rounds: int = size.rounds,
        images: int | None = None,
        setup: Callable[[], None] = lambda: None,
        beside: Callable[[], object] | None = None,
        warm_up: bool = True,
        **facts: Any,
    ) -> Any:
        theirs: list[float] = []

        def before() -> None:
            setup()
            if beside:
                theirs.append(seconds_of(beside))

        benchmark.extra_info.update(facts)
        with torch.compiler.set_stance("fail_on_recompile"):
            if warm_up and benchmark.enabled:
                begun = clock()
                before()
                target()
                took = clock() - begun
                least = min(rounds, MIN_PAIRS if beside else MIN_ROUNDS)
                rounds = max(least, min(rounds, int(size.seconds / took)))
                theirs.clear()
            result = benchmark.pedantic(  # type: ignore[no-untyped-call]
                target, setup=before, rounds=rounds
            )
        if benchmark.stats is not None:
            mine = benchmark.stats.stats.data
            benchmark.extra_info["noise"] = summary(mine).noise
            if images is not None:
                benchmark.extra_info["images"] = images
                benchmark.extra_info["images_per_second"] = images / summary(mine).median
            if beside:
                benchmark.extra_info["ratio"] = dataclasses.asdict(paired_ratio(mine, theirs))
                benchmark.extra_info["seconds_beside"] = summary(theirs).median
        return result

    return run
