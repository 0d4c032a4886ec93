"""Graphs of many steps: K replayed steps are K steps, bit for bit, whatever is handed over.

The CPU's cases replay a tape of operators (``tests/fast/tape.py``); those named cuda need a GPU.
"""

import contextlib
import dataclasses
import gc
import inspect
import itertools
import math
import warnings
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import vaebench
from tests.engines import make_engine, problem_of
from tests.fast.tape import TapeCapture
from vaebench.fast import admit, build, graph
from vaebench.fast import capture as recording
from vaebench.fast.capture import CaptureError, CudaCapture
from vaebench.fast.graph import GraphEngine
from vaebench.fast.register import TECHNIQUES
from vaebench.fast.step import StepEngine
from vaebench.models.mlp import VAE
from vaebench.objective import Objective
from vaebench.problem import Problem
from vaebench.training.loop import Numbers

BATCH, Z = 64, 6
CPU = torch.device("cpu")
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
CAPTURES: list[Any] = [
    pytest.param((CPU, TapeCapture), id="tape"),
    pytest.param((torch.device("cuda", 0), CudaCapture), id="cuda", marks=needs_cuda),
]
Where = tuple[torch.device, Callable[[torch.device], recording.Capture]]


class BatchNorm(VAE):
    """With statistics that every step changes."""

    def __init__(self) -> None:
        super().__init__(hidden_dims=(32,), latent_dim=Z)
        self.encoder = nn.Sequential(*self.encoder, nn.BatchNorm1d(32))


class Dropout(VAE):
    """With random numbers of its own."""

    def __init__(self) -> None:
        super().__init__(hidden_dims=(32,), latent_dim=Z)
        self.encoder = nn.Sequential(*self.encoder, nn.Dropout(0.3))


class Waiting(VAE):
    """Reads a number back in the middle of a step."""

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mu, logvar = super().encode(x)
        return mu * (1.0 if mu.sum().item() < 1e30 else 0.0), logvar


MODELS: dict[str, Callable[[], nn.Module]] = {
    "mlp": lambda: VAE(hidden_dims=(32,), latent_dim=Z),
    "batch norm": BatchNorm,
}


def _plain(
    images: Tensor, device: torch.device, model: str = "mlp", batch: int = BATCH, **words: Any
) -> StepEngine:
    torch.manual_seed(1)
    objective = Objective(samples=words.pop("samples", 1))
    made = MODELS[model]()
    # No joint update: whether it pays is measured, so that two engines may round otherwise.
    words = {"graph": False, "joint_update": False, **words}
    return make_engine(made, images, objective, batch, 1e-3, device, **words).engine


def _replayed(plain: StepEngine, where: Where) -> GraphEngine:
    engine = GraphEngine(plain, where[1](where[0]))
    engine.warm_up()
    return engine


@pytest.fixture
def all_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep every length of graph, whichever is the fastest here."""
    monkeypatch.setattr(GraphEngine, "_race", lambda self: None)


@pytest.fixture(params=CAPTURES)
def where(request: pytest.FixtureRequest) -> Where:
    """Each device with what records on it."""
    found: Where = request.param
    return found


def _state(engine: StepEngine) -> list[Tensor]:
    return [t.detach().clone() for t in (*engine.optimizer.tensors(), *engine.model.buffers())]


def _equal(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def _pieces(engine: StepEngine, sizes: list[int], seed: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    numbers = torch.Generator().manual_seed(seed)
    for size in sizes:
        order = torch.randperm(len(engine.images), generator=numbers)[:size]
        shape = engine.no_noise(size).shape
        yield order.to(engine.device), torch.randn(shape, generator=numbers).to(engine.device)


def _train(engine: StepEngine, sizes: list[int], seed: int = 0) -> list[float]:
    sums = [engine.epoch(*piece) for piece in _pieces(engine, sizes, seed)]
    assert [part.images for part in sums] == sizes
    return [float(value) for part in sums for value in (part.recon, part.kl)]


# Whole epochs; pieces that are no multiple of any graph's; odd batches that were never recorded.
HANDED = {
    "epochs": [1000, 1000],
    "pieces": [3 * BATCH, 7 * BATCH, 5 * BATCH + 40],
    "single steps": [BATCH, BATCH, 40],
    "odd": [BATCH + 7, 3, 2 * BATCH + 40, 2],
}


@pytest.mark.usefixtures("all_lengths")
@pytest.mark.parametrize("sizes", HANDED.values(), ids=HANDED)
@pytest.mark.parametrize("model", MODELS)
def test_replays_are_steps_bit_for_bit(
    where: Where, strokes: Tensor, model: str, sizes: list[int]
) -> None:
    plain, other = _plain(strokes, where[0], model), _plain(strokes, where[0], model)
    replayed = _replayed(other, where)
    assert sorted(replayed.chunks) == [1, 4, 15]  # 1,000 images are 15 batches and one of 40
    assert replayed.steps_at_once == 15
    start = _state(plain)
    assert _equal(_state(replayed), start)  # recorded without a trace
    assert _train(replayed, sizes) == _train(plain, sizes)
    assert _equal(_state(replayed), _state(plain))
    assert not _equal(_state(replayed), start)


@pytest.mark.usefixtures("all_lengths")
@pytest.mark.parametrize("optimizer", ["adam", "adagrad", "rmsprop", "sgd"])
def test_settings_of_the_step_stay_its_own(where: Where, strokes: Tensor, optimizer: str) -> None:
    words: dict[str, Any] = {"optimizer": optimizer, "samples": 3, "amp": "bf16", "batch": 50}
    plain, other = (_plain(strokes, where[0], **words) for _ in range(2))
    replayed = _replayed(other, where)
    # Noise of several samples is never handed over for a whole epoch.
    assert sorted(replayed.chunks) == [1, 4, 16, 20]
    assert _train(replayed, [500, 500]) == _train(plain, [500, 500])
    assert _equal(_state(replayed), _state(plain))


@pytest.mark.usefixtures("all_lengths")
def test_a_changed_learning_rate_acts_on_replay(where: Where, strokes: Tensor) -> None:
    plain, other = _plain(strokes, where[0]), _plain(strokes, where[0])
    replayed = _replayed(other, where)
    for lr in (1e-3, 1e-2):
        for engine in (plain, replayed):
            engine.set_lr(lr)
            _train(engine, [1000])
        assert _equal(_state(replayed), _state(plain))
    replayed.set_lr(0.0)
    before = [p.detach().clone() for p in replayed.optimizer.params]
    _train(replayed, [1000])
    assert _equal([p.detach() for p in replayed.optimizer.params], before)


@pytest.mark.usefixtures("all_lengths")
def test_noise_order_and_images_are_read_at_every_replay(where: Where, strokes: Tensor) -> None:
    """With lr 0 nothing but these can make two replays' sums differ."""
    replayed = _replayed(_plain(strokes.clone(), where[0]), where)
    replayed.set_lr(0.0)
    first, again, other = (_train(replayed, [15 * BATCH], seed) for seed in (0, 0, 1))
    assert first == again
    assert first != other
    order, noise = next(_pieces(replayed, [15 * BATCH]))
    assert float(replayed.epoch(order, noise + 1).recon) != first[0]
    assert float(replayed.epoch(order.flip(0), noise).recon) != first[0]
    replayed.images.fill_(7)  # as a new binary sample is written before an epoch
    assert float(replayed.epoch(order, noise).recon) != first[0]


@pytest.mark.usefixtures("all_lengths")
def test_sums_stay_what_they_were(where: Where, strokes: Tensor) -> None:
    """Each call gives its own, though all add up in one place."""
    replayed = _replayed(_plain(strokes, where[0]), where)
    first = replayed.epoch(*next(_pieces(replayed, [1000])))
    before = float(first.recon)
    replayed.epoch(*next(_pieces(replayed, [1000])))
    assert float(first.recon) == before


@pytest.mark.usefixtures("all_lengths")
def test_a_state_that_is_loaded_is_trained_on(where: Where, strokes: Tensor) -> None:
    plain, other = _plain(strokes, where[0]), _plain(strokes, where[0])
    replayed = _replayed(other, where)
    _train(plain, [1000])
    replayed.load_state(plain.state())
    replayed.model.load_state_dict(plain.model.state_dict())
    assert _train(replayed, [1000], seed=3) == _train(plain, [1000], seed=3)
    assert _equal(_state(replayed), _state(plain))


def test_the_race_keeps_what_it_chose(where: Where, strokes: Tensor) -> None:
    replayed = _replayed(_plain(strokes, where[0]), where)
    assert set(replayed.seconds) == {1, 4, 15}
    assert all(0 < seconds < math.inf for seconds in replayed.seconds.values())
    assert 0 < replayed.plain_seconds < math.inf
    best = min(replayed.seconds.values())
    kept = replayed.steps_at_once
    assert replayed.seconds[kept] <= graph.WORTHWHILE * best
    assert all(s > graph.WORTHWHILE * best for k, s in replayed.seconds.items() if k < kept)
    assert sorted(replayed.chunks) == [k for k in (1, 4, 15) if k <= kept]
    assert replayed.pays == (replayed.seconds[kept] < replayed.plain_seconds)
    assert sum(replayed.trial_sizes) == 2 * (sum(replayed.chunks) * BATCH + 40)


def test_a_whole_epoch_is_recorded_where_that_is_quick(
    strokes: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = _plain(strokes, CPU, batch=10)  # 100 steps
    monkeypatch.setattr(GraphEngine, "_race", lambda self: None)
    monkeypatch.setattr(graph, "EPOCH_SECONDS", math.inf)
    assert sorted(_replayed(plain, (CPU, TapeCapture)).chunks) == [1, 4, 16, 64, 100]
    monkeypatch.setattr(graph, "EPOCH_SECONDS", 0.0)
    assert sorted(_replayed(plain, (CPU, TapeCapture)).chunks) == [1, 4, 16, 64]
    monkeypatch.setattr(graph, "EPOCH_SECONDS", math.inf)
    several = _plain(strokes, CPU, batch=10, samples=2)
    assert sorted(_replayed(several, (CPU, TapeCapture)).chunks) == [1, 4, 16, 64]


@pytest.mark.parametrize("how", [None, TapeCapture])
def test_a_step_is_timed_without_a_trace(
    strokes: Tensor, monkeypatch: pytest.MonkeyPatch, how: type[TapeCapture] | None
) -> None:
    # A busy machine takes 0.1 s for the first run alone.
    monkeypatch.setattr(recording, "TIMED_SECONDS", 2.0)
    plain = _plain(strokes, CPU, "batch norm")
    before = _state(plain)
    capture = how() if how else None
    assert 0 < recording.step_seconds(plain, capture) < math.inf
    assert capture is None or capture.replays > 1
    assert _equal(_state(plain), before)


# make_engine and fit: a graph is used where it can be, agrees and pays; else that is said.


@pytest.fixture
def taped(monkeypatch: pytest.MonkeyPatch) -> TapeCapture:
    """Let the CPU have graphs, and let them pay."""
    capture = TapeCapture()
    here = [
        dataclasses.replace(t, devices=("cpu",)) if t.name == "graph" else t for t in TECHNIQUES
    ]
    monkeypatch.setattr(build, "TECHNIQUES", here)
    monkeypatch.setattr(graph, "capture_for", lambda device: capture)
    monkeypatch.setattr(GraphEngine, "_race", lambda self: None)
    monkeypatch.setattr(GraphEngine, "pays", True)
    monkeypatch.setattr(GraphEngine, "note", lambda self: "--graph: so many steps")
    return capture


def _fit(images: Tensor, **words: Any) -> tuple[vaebench.History, dict[str, Tensor]]:
    torch.manual_seed(1)
    model = BatchNorm()
    settings: dict[str, Any] = {"epochs": 2, "batch_size": BATCH, "device": "cpu"}
    history = vaebench.fit(model, images, **{**settings, **words})
    return history, model.state_dict()


@pytest.mark.parametrize("samples", [1, 2])
def test_fit_with_graphs_is_fit_without(strokes: Tensor, taped: TapeCapture, samples: int) -> None:
    history, state = _fit(strokes, samples=samples)
    assert history.actual["graph"] == 15
    assert "--graph: so many steps" in history.notes
    assert taped.replays > 0
    before = taped.replays
    plain, expected = _fit(strokes, samples=samples, graph=False)
    assert plain.actual["graph"] is False
    assert taped.replays == before
    assert all(torch.equal(state[name], value) for name, value in expected.items())
    for mine, right in zip(history.epochs, plain.epochs, strict=True):
        assert mine.train_elbo == pytest.approx(right.train_elbo, rel=1e-12)


def test_going_on_with_another_graph_is_going_on_to_the_same_bits(
    strokes: Tensor, taped: TapeCapture
) -> None:
    states: list[Any] = []
    _, expected = _fit(strokes, epochs=2)
    _fit(strokes, epochs=1, graph=False, on_state=states.append)
    history, state = _fit(strokes, epochs=2, resume=states[0])
    assert history.actual["graph"] == 15
    assert not any("graph" in note for note in history.notes if "went on" in note)
    assert all(torch.equal(state[name], value) for name, value in expected.items())


def test_what_cannot_be_recorded_is_said_and_trained_without(
    strokes: Tensor, taped: TapeCapture
) -> None:
    torch.manual_seed(1)
    model = Waiting(hidden_dims=(32,), latent_dim=Z)
    built = make_engine(model, strokes, Objective(), BATCH, 1e-3, CPU)
    assert built.actual["graph"] is False
    assert built.notes == [
        "--graph: CUDA graph capture failed: operation not permitted when stream is capturing; "
        "trained without"
    ]
    plain = _plain(strokes, CPU)
    assert _train(built.engine, [1000]) == _train(plain, [1000])  # no trace of the attempt


def test_fewer_images_than_a_batch_are_trained_without(strokes: Tensor, taped: TapeCapture) -> None:
    model = VAE(hidden_dims=(32,), latent_dim=Z)
    built = make_engine(model, strokes[:20], Objective(), BATCH, 1e-3, CPU)
    assert built.notes == ["--graph: there are fewer images than a batch has; trained without"]
    assert built.actual["graph"] is False


def test_graphs_that_do_not_pay_are_not_used(
    strokes: Tensor, taped: TapeCapture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(GraphEngine, "pays", False)
    built = make_engine(VAE(latent_dim=Z), strokes, Objective(), BATCH, 1e-3, CPU)
    assert built.actual["graph"] is False
    assert not isinstance(built.engine, GraphEngine)


@pytest.mark.usefixtures("all_lengths")
def test_what_is_said_of_the_race(strokes: Tensor) -> None:
    engine = _replayed(_plain(strokes[: 4 * BATCH], CPU), (CPU, TapeCapture))
    engine.seconds, engine.plain_seconds = {1: 5e-5, 4: 2e-5}, 1e-4
    assert engine.steps_at_once == 4
    assert engine.pays
    assert engine.note() == (
        "--graph: 4 steps a replay (a step's time, of an un-captured one's: 0.50 at 1, 0.20 at 4 "
        "steps)"
    )
    engine.plain_seconds = 1e-5
    assert "not used" in engine.note()


def test_there_are_no_graphs_on_the_cpu() -> None:
    assert recording.capture_for(CPU) is None


def test_the_reason_is_what_went_wrong_first() -> None:
    first = RuntimeError("operation not permitted\nCUDA kernel errors might be ...")
    second = RuntimeError("capture was invalidated")
    second.__context__ = first
    assert recording._reason(second) == recording._reason(first) == "operation not permitted"
    assert recording._reason(RuntimeError()) == "RuntimeError"


# The calls of CudaCapture, in a world where torch.cuda only notes them.


class NotedCuda:
    """Stands in for what CudaCapture uses of ``torch.cuda``."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.calls: list[str] = []
        self.current, self.mode, self.end_fails = "main", 0, False
        self.signature = inspect.signature(torch.cuda.graph.__init__)
        for name in (
            *("Stream", "CUDAGraph", "graph_pool_handle", "current_stream", "set_stream"),
            *("stream", "device", "graph", "get_sync_debug_mode", "set_sync_debug_mode"),
        ):
            assert hasattr(torch.cuda, name)
            patch.setattr(torch.cuda, name, getattr(self, name))

    class Stream:
        def __init__(self, device: torch.device) -> None:
            self.device = device

    class CUDAGraph:
        def replay(self) -> None:
            pass

    def graph_pool_handle(self) -> tuple[int, int]:
        return (0, 1)

    def current_stream(self, device: torch.device) -> Any:
        note = self.calls.append

        class Current:
            def wait_stream(self, other: Any) -> None:
                note("main waits")

        return Current()

    def set_stream(self, stream: Any) -> None:
        self.current = "main"

    @contextlib.contextmanager
    def stream(self, stream: Any) -> Iterator[None]:
        self.current = "side"
        try:
            yield
        finally:
            self.current = "main"

    @contextlib.contextmanager
    def device(self, device: torch.device) -> Iterator[None]:
        yield

    @contextlib.contextmanager
    def graph(self, *given: Any, **named: Any) -> Iterator[None]:
        words = self.signature.bind(None, *given, **named).arguments
        assert words["pool"] == (0, 1)
        assert isinstance(words["stream"], NotedCuda.Stream)
        self.current = "recording"
        try:
            yield
        finally:
            if self.end_fails:  # and torch's stream stays the current one
                raise RuntimeError("capture was invalidated")
            self.current = "main"

    def get_sync_debug_mode(self) -> int:
        return self.mode

    def set_sync_debug_mode(self, mode: int | str) -> None:
        if mode == "error":
            warnings.warn("Synchronization debug mode is a prototype feature", stacklevel=2)
        self.mode = 2 if mode == "error" else int(mode)


@pytest.fixture
def noted(monkeypatch: pytest.MonkeyPatch) -> NotedCuda:
    """Give the world, and in it a capture."""
    monkeypatch.setattr(
        NotedCuda.Stream,
        "wait_stream",
        lambda self, other: None,
        raising=False,
    )
    return NotedCuda(monkeypatch)


def test_cuda_warms_up_aside_and_notices_waiting(noted: NotedCuda) -> None:
    capture = CudaCapture(torch.device("cuda", 0))
    seen: list[tuple[str, int]] = []
    capture.warm_up(lambda: seen.append((noted.current, noted.mode)))
    assert seen == [("side", 2)]
    assert (noted.current, noted.mode) == ("main", 0)
    assert noted.calls == ["main waits"]

    def waits() -> None:
        raise RuntimeError("called a synchronizing CUDA operation")

    def breaks() -> None:
        raise RuntimeError("shapes do not match")

    with pytest.raises(CaptureError, match="the step waits for the device"):
        capture.warm_up(waits)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        capture.warm_up(breaks)
    assert (noted.current, noted.mode) == ("main", 0)
    assert noted.calls == ["main waits"] * 3  # what ran aside is waited for, failed or not


def test_cuda_records_and_comes_back_whatever_happens(noted: NotedCuda) -> None:
    capture = CudaCapture(torch.device("cuda", 0))
    seen: list[tuple[str, bool]] = []
    replay = capture.record(lambda: seen.append((noted.current, gc.isenabled())))
    assert seen == [("recording", False)]
    assert callable(replay)
    assert (noted.current, gc.isenabled()) == ("main", True)

    def breaks() -> None:
        raise RuntimeError("operation not permitted\nand more")

    noted.end_fails = True
    with pytest.raises(CaptureError) as caught:
        capture.record(breaks)
    assert str(caught.value) == "CUDA graph capture failed: operation not permitted"
    assert (noted.current, gc.isenabled()) == ("main", True)


def test_cuda_graphs_end_together(noted: NotedCuda) -> None:
    """Each that ends takes along the workspace that the others use."""
    capture = CudaCapture(torch.device("cuda", 0))
    replays = [capture.record(lambda: None) for _ in range(2)]
    alive = [weakref.ref(graph) for graph in capture.graphs]
    del replays[0]
    assert all(graph() for graph in alive)
    del capture, replays
    assert not any(graph() for graph in alive)


def test_cuda_captures_share_no_stream(noted: NotedCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cuda", 0)
    streams: list[Any] = [NotedCuda.Stream(device) for _ in range(3)]
    dealt = itertools.cycle(streams)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: next(dealt))
    captures = [CudaCapture(device) for _ in range(2)]
    next(dealt)
    captures.append(CudaCapture(device))  # the next two in turn are taken
    assert [capture.stream for capture in captures] == streams
    del captures[1]
    assert CudaCapture(device).stream is streams[1]
    captures.append(CudaCapture(device))
    assert CudaCapture(device).stream in streams  # all are taken


@pytest.mark.parametrize("how", ["warm_up", "record"])
def test_cuda_keeps_nothing_of_a_step_that_failed(noted: NotedCuda, how: str) -> None:
    held: list[weakref.ref[Tensor]] = []

    def waits() -> None:
        kept = torch.zeros(1)
        held.append(weakref.ref(kept))
        raise RuntimeError("called a synchronizing CUDA operation")

    with pytest.raises(CaptureError) as caught:
        getattr(CudaCapture(torch.device("cuda", 0)), how)(waits)
    assert caught.value.__cause__ is not None
    assert held[0]() is None


# The check before use: what is wrong in one of many ways is seen, and rounding is not.


class Broken(TapeCapture):
    """Records right, and replays wrong."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        replay = super().record(work)
        if self.how == "nothing":
            return lambda: None
        if self.how == "twice":
            return lambda: (replay(), replay())[0]
        return replay


def _frozen_noise(chunk: recording.Chunk, order: Tensor, noise: Tensor) -> None:
    chunk.index.copy_(order)
    chunk.replay()


def _frozen_order(chunk: recording.Chunk, order: Tensor, noise: Tensor) -> None:
    chunk.noise.copy_(noise)
    chunk.replay()


@pytest.mark.parametrize("how", ["nothing", "twice"])
def test_wrong_replays_are_not_used(
    strokes: Tensor, taped: TapeCapture, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(graph, "capture_for", lambda device: Broken(how))
    torch.manual_seed(1)
    with pytest.warns(UserWarning, match="--graph went wrong here"):
        built = make_engine(MODELS["mlp"](), strokes, Objective(), BATCH, 1e-3, CPU)
    assert built.actual["graph"] is False
    assert built.notes[0] == "--graph: so many steps"
    assert built.notes[1].startswith("--graph: went wrong here (recon and kl add up to")
    assert _train(built.engine, [1000]) == _train(_plain(strokes, CPU), [1000])


@pytest.mark.parametrize("run", [_frozen_noise, _frozen_order])
def test_stale_buffers_are_seen(
    strokes: Tensor, monkeypatch: pytest.MonkeyPatch, run: Callable[..., None]
) -> None:
    plain = _plain(strokes, CPU)
    replayed = _replayed(plain, (CPU, TapeCapture))
    monkeypatch.setattr(recording.Chunk, "run", run)
    assert admit.disagreement(replayed, plain, replayed.trial_sizes) is not None


def _wrong(plain: StepEngine, spoil: Callable[[StepEngine], object]) -> StepEngine:
    """The engine, with something spoilt after every step."""

    def step(*words: Tensor) -> None:
        plain.step(*words)
        with torch.no_grad():
            spoil(plain)

    return StepEngine(plain.problem, step, plain.optimizer)


SPOILT: dict[str, Callable[[StepEngine], object]] = {
    "one bias": lambda e: e.optimizer.params[-1].mul_(1.001),
    "one row": lambda e: e.optimizer.params[0][-1].add_(1e-3),
    "not a number": lambda e: e.optimizer.params[3].fill_(math.nan),
    "a moment": lambda e: e.optimizer.memory()["v.2"].mul_(1.05),
    "the count": lambda e: e.optimizer.memory()["step"].add_(1),
    # The variance: the mean moves with a bias whose gradient is zero, and so with rounding alone.
    "statistics": lambda e: list(e.model.buffers())[1].mul_(1.01),
}


@pytest.mark.parametrize("spoil", SPOILT.values(), ids=SPOILT)
def test_the_check_sees_what_is_spoilt(
    strokes: Tensor, spoil: Callable[[StepEngine], object]
) -> None:
    plain = _plain(strokes, CPU, "batch norm")
    before = _state(plain)
    found = admit.disagreement(_wrong(plain, spoil), plain, [3 * BATCH, 40])
    assert found is not None
    assert "\n" not in found
    assert _equal(_state(plain), before)


@pytest.mark.parametrize("model", MODELS)
def test_the_check_lets_rounding_pass(strokes: Tensor, model: str) -> None:
    """Batches the other way round: the same sums in another order, and other bits."""
    plain = _plain(strokes, CPU, model)

    def step(images: Tensor, index: Tensor, eps: Tensor, totals: Tensor) -> None:
        turned = torch.arange(len(index)).roll(11).flip(0)
        plain.step(images, index[turned], eps[turned], totals)

    other = StepEngine(plain.problem, step, plain.optimizer)
    pieces = [15 * BATCH, 4 * BATCH, 40]
    assert admit.disagreement(other, plain, pieces) is None
    order, noise = admit._numbers(plain, sum(pieces))
    mine, right = (admit._outcome(e, order, noise, pieces) for e in (other, plain))
    assert mine.sums != right.sums  # so there was something to let pass


def test_a_training_that_diverges_is_not_blamed_on_the_graph(strokes: Tensor) -> None:
    plain = _plain(strokes, CPU)
    plain.set_lr(1e30)
    replayed = _replayed(plain, (CPU, TapeCapture))
    assert not all(map(math.isfinite, _train(plain, [1000])))
    assert admit.disagreement(replayed, plain, replayed.trial_sizes) is None


def test_the_check_gives_both_the_same_dropout(strokes: Tensor) -> None:
    model = Dropout()
    plain = make_engine(model, strokes, Objective(), BATCH, 1e-3, CPU, graph=False).engine
    assert admit.disagreement(plain, plain, [3 * BATCH]) is None
    order, noise = admit._numbers(plain, 3 * BATCH)
    outcome = partial(admit._outcome, plain, order, noise, [3 * BATCH])
    assert outcome().sums == outcome().sums


# The loop hands over what an engine likes.


def _problem(images: int, batch: int, samples: int = 1) -> Problem:
    pixels = torch.zeros(images, 2, 2, dtype=torch.uint8)
    model = VAE((2, 2), hidden_dims=(3,), latent_dim=Z)
    return problem_of(model, pixels, Objective(samples=samples), batch)


@pytest.mark.parametrize("at_once", [1, 4, 16, 64, 78])
def test_pieces_are_of_the_steps_that_an_engine_likes(at_once: int) -> None:
    problem = _problem(10_000, 128)
    made = [Numbers(problem, 5) for _ in range(2)]  # 78 steps and a short one
    pieces = [list(made[0].epoch()), list(made[1].epoch(at_once))]
    for i in (0, 1):
        whole = [torch.cat([piece[i] for piece in found]) for found in pieces]
        assert torch.equal(*whole)
    lengths = [len(order) for order, _ in pieces[1]]
    assert all(length % (at_once * 128) == 0 for length in lengths[:-1])
    assert len(lengths) <= 20


def test_several_samples_are_drawn_alike_for_every_engine() -> None:
    problem = _problem(1000, 16, samples=3)
    made = [Numbers(problem, 5) for _ in range(2)]
    for plain, other in zip(made[0].epoch(), made[1].epoch(16), strict=True):
        assert torch.equal(plain[0], other[0])
        assert torch.equal(plain[1], other[1])


# On a GPU alone.


@needs_cuda
@pytest.mark.parametrize("compile", [False, True])
def test_cuda_trains_by_graphs_by_default(strokes: Tensor, compile: bool) -> None:
    device = torch.device("cuda", 0)
    torch.manual_seed(1)
    built = make_engine(MODELS["mlp"](), strokes, Objective(), BATCH, 1e-3, device, compile=compile)
    assert built.actual["compile"] is compile
    assert built.actual["graph"] in (1, 4, 15), built.notes
    plain = _plain(strokes, device, compile=compile)
    assert _train(built.engine, [1000]) == pytest.approx(_train(plain, [1000]), rel=1e-6)


@needs_cuda
def test_cuda_graphs_draw_a_models_own_random_numbers_anew(strokes: Tensor) -> None:
    device = torch.device("cuda", 0)
    plain = make_engine(Dropout(), strokes, Objective(), BATCH, 1e-3, device, graph=False).engine
    replayed = _replayed(plain, (device, CudaCapture))
    replayed.set_lr(0.0)
    assert _train(replayed, [4 * BATCH]) != _train(replayed, [4 * BATCH])
    assert admit.disagreement(replayed, plain, replayed.trial_sizes) is None


@needs_cuda
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_cuda_steady_epochs_wait_for_nothing(strokes: Tensor) -> None:
    device = torch.device("cuda", 0)
    built = make_engine(MODELS["mlp"](), strokes, Objective(), BATCH, 1e-3, device)
    assert built.actual["graph"], built.notes
    numbers = Numbers(built.engine.problem, 0)
    list(numbers.epoch())
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        built.engine.set_lr(1e-4)
        for _ in range(3):
            for order, noise in numbers.epoch(built.engine.steps_at_once):
                built.engine.epoch(order, noise)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@needs_cuda
def test_cuda_epochs_leave_no_memory_behind(strokes: Tensor) -> None:
    device = torch.device("cuda", 0)
    replayed = _replayed(_plain(strokes, device), (device, CudaCapture))
    numbers = Numbers(replayed.problem, 0)
    gc.collect()  # an earlier test's engine, freed meanwhile, would count too
    held = []
    for _ in range(100):
        for order, noise in numbers.epoch(replayed.steps_at_once):
            replayed.epoch(order, noise)
        del order, noise
        torch.cuda.synchronize()
        held.append((torch.cuda.memory_allocated(), torch.cuda.memory_reserved()))
    assert held[10] == held[-1]


@needs_cuda
def test_cuda_a_failed_capture_leaves_the_device_usable(strokes: Tensor) -> None:
    device = torch.device("cuda", 0)
    here = torch.cuda.current_stream(device)
    model = Waiting(hidden_dims=(32,), latent_dim=Z)
    plain = make_engine(model, strokes, Objective(), BATCH, 1e-3, device, graph=False).engine
    with pytest.raises(CaptureError) as caught:
        _replayed(plain, (device, CudaCapture))
    assert "\n" not in str(caught.value)
    assert torch.cuda.current_stream(device) == here
    assert all(math.isfinite(value) for value in _train(plain, [1000]))
