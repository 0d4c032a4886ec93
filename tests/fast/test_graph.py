"""Graphs of many steps: K replayed steps are K steps, bit for bit, whatever is handed over.

The CPU's cases replay a tape of operators (``tests/fast/tape.py``); those named cuda need a GPU.
"""

import gc
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.engines import make_engine, problem_of
from tests.fast.graphs import (
    BATCH,
    CPU,
    MODELS,
    Dropout,
    Waiting,
    Where,
    Z,
    all_equal,
    pieces_of,
    plain_of,
    replayed_of,
    state_of,
    train,
)
from tests.fast.tape import TapeCapture
from vaebench.fast import admit, graph
from vaebench.fast import capture as recording
from vaebench.fast.capture import CaptureError, CudaCapture
from vaebench.fast.graph import GraphEngine
from vaebench.models.mlp import VAE
from vaebench.objective import Objective
from vaebench.problem import Problem
from vaebench.training.numbers import Numbers

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
CAPTURES: list[Any] = [
    pytest.param((CPU, TapeCapture), id="tape"),
    pytest.param((torch.device("cuda", 0), CudaCapture), id="cuda", marks=needs_cuda),
]


@pytest.fixture
def all_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep every length of graph, whichever is the fastest here."""
    monkeypatch.setattr(GraphEngine, "_race", lambda self: None)


@pytest.fixture(params=CAPTURES)
def where(request: pytest.FixtureRequest) -> Where:
    """Each device with what records on it."""
    found: Where = request.param
    return found


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
    plain, other = plain_of(strokes, where[0], model), plain_of(strokes, where[0], model)
    replayed = replayed_of(other, where)
    assert sorted(replayed.chunks) == [1, 4, 15]  # 1,000 images are 15 batches and one of 40
    assert replayed.steps_at_once == 15
    start = state_of(plain)
    assert all_equal(state_of(replayed), start)  # recorded without a trace
    assert train(replayed, sizes) == train(plain, sizes)
    assert all_equal(state_of(replayed), state_of(plain))
    assert not all_equal(state_of(replayed), start)


@pytest.mark.usefixtures("all_lengths")
@pytest.mark.parametrize("optimizer", ["adam", "adagrad", "rmsprop", "sgd"])
def test_settings_of_the_step_stay_its_own(where: Where, strokes: Tensor, optimizer: str) -> None:
    words: dict[str, Any] = {"optimizer": optimizer, "samples": 3, "amp": "bf16", "batch": 50}
    plain, other = (plain_of(strokes, where[0], **words) for _ in range(2))
    replayed = replayed_of(other, where)
    # Noise of several samples is never handed over for a whole epoch.
    assert sorted(replayed.chunks) == [1, 4, 16, 20]
    assert train(replayed, [500, 500]) == train(plain, [500, 500])
    assert all_equal(state_of(replayed), state_of(plain))


@pytest.mark.usefixtures("all_lengths")
def test_a_changed_learning_rate_acts_on_replay(where: Where, strokes: Tensor) -> None:
    plain, other = plain_of(strokes, where[0]), plain_of(strokes, where[0])
    replayed = replayed_of(other, where)
    for lr in (1e-3, 1e-2):
        for engine in (plain, replayed):
            engine.set_lr(lr)
            train(engine, [1000])
        assert all_equal(state_of(replayed), state_of(plain))
    replayed.set_lr(0.0)
    before = [p.detach().clone() for p in replayed.optimizer.params]
    train(replayed, [1000])
    assert all_equal([p.detach() for p in replayed.optimizer.params], before)


@pytest.mark.usefixtures("all_lengths")
def test_noise_order_and_images_are_read_at_every_replay(where: Where, strokes: Tensor) -> None:
    """With lr 0 nothing but these can make two replays' sums differ."""
    replayed = replayed_of(plain_of(strokes.clone(), where[0]), where)
    replayed.set_lr(0.0)
    first, again, other = (train(replayed, [15 * BATCH], seed) for seed in (0, 0, 1))
    assert first == again
    assert first != other
    order, noise = next(pieces_of(replayed, [15 * BATCH]))
    assert float(replayed.epoch(order, noise + 1).recon) != first[0]
    assert float(replayed.epoch(order.flip(0), noise).recon) != first[0]
    replayed.images.fill_(7)  # as a new binary sample is written before an epoch
    assert float(replayed.epoch(order, noise).recon) != first[0]


@pytest.mark.usefixtures("all_lengths")
def test_sums_stay_what_they_were(where: Where, strokes: Tensor) -> None:
    """Each call gives its own, though all add up in one place."""
    replayed = replayed_of(plain_of(strokes, where[0]), where)
    first = replayed.epoch(*next(pieces_of(replayed, [1000])))
    before = float(first.recon)
    replayed.epoch(*next(pieces_of(replayed, [1000])))
    assert float(first.recon) == before


@pytest.mark.usefixtures("all_lengths")
def test_a_state_that_is_loaded_is_trained_on(where: Where, strokes: Tensor) -> None:
    plain, other = plain_of(strokes, where[0]), plain_of(strokes, where[0])
    replayed = replayed_of(other, where)
    train(plain, [1000])
    replayed.load_state(plain.state())
    replayed.model.load_state_dict(plain.model.state_dict())
    assert train(replayed, [1000], seed=3) == train(plain, [1000], seed=3)
    assert all_equal(state_of(replayed), state_of(plain))


def test_the_race_keeps_what_it_chose(where: Where, strokes: Tensor) -> None:
    replayed = replayed_of(plain_of(strokes, where[0]), where)
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
    plain = plain_of(strokes, CPU, batch=10)  # 100 steps
    monkeypatch.setattr(GraphEngine, "_race", lambda self: None)
    monkeypatch.setattr(graph, "EPOCH_SECONDS", math.inf)
    assert sorted(replayed_of(plain, (CPU, TapeCapture)).chunks) == [1, 4, 16, 64, 100]
    monkeypatch.setattr(graph, "EPOCH_SECONDS", 0.0)
    assert sorted(replayed_of(plain, (CPU, TapeCapture)).chunks) == [1, 4, 16, 64]
    monkeypatch.setattr(graph, "EPOCH_SECONDS", math.inf)
    several = plain_of(strokes, CPU, batch=10, samples=2)
    assert sorted(replayed_of(several, (CPU, TapeCapture)).chunks) == [1, 4, 16, 64]


@pytest.mark.parametrize("how", [None, TapeCapture])
def test_a_step_is_timed_without_a_trace(
    strokes: Tensor, monkeypatch: pytest.MonkeyPatch, how: type[TapeCapture] | None
) -> None:
    # A busy machine takes 0.1 s for the first run alone.
    monkeypatch.setattr(recording, "TIMED_SECONDS", 2.0)
    plain = plain_of(strokes, CPU, "batch norm")
    before = state_of(plain)
    capture = how() if how else None
    assert 0 < recording.step_seconds(plain, capture) < math.inf
    assert capture is None or capture.replays > 1
    assert all_equal(state_of(plain), before)


@pytest.mark.usefixtures("all_lengths")
def test_what_is_said_of_the_race(strokes: Tensor) -> None:
    engine = replayed_of(plain_of(strokes[: 4 * BATCH], CPU), (CPU, TapeCapture))
    engine.seconds, engine.plain_seconds = {1: 5e-5, 4: 2e-5}, 1e-4
    assert engine.steps_at_once == 4
    assert engine.pays
    assert engine.note() == (
        "--graph: 4 steps a replay (a step's time, of an un-captured one's: 0.50 at 1, 0.20 at 4 "
        "steps)"
    )
    engine.plain_seconds = 1e-5
    assert "not used" in engine.note()


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
    plain = plain_of(strokes, device, compile=compile)
    assert train(built.engine, [1000]) == pytest.approx(train(plain, [1000]), rel=1e-6)


@needs_cuda
def test_cuda_graphs_draw_a_models_own_random_numbers_anew(strokes: Tensor) -> None:
    device = torch.device("cuda", 0)
    plain = make_engine(Dropout(), strokes, Objective(), BATCH, 1e-3, device, graph=False).engine
    replayed = replayed_of(plain, (device, CudaCapture))
    replayed.set_lr(0.0)
    assert train(replayed, [4 * BATCH]) != train(replayed, [4 * BATCH])
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
    replayed = replayed_of(plain_of(strokes, device), (device, CudaCapture))
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
        replayed_of(plain, (device, CudaCapture))
    assert "\n" not in str(caught.value)
    assert torch.cuda.current_stream(device) == here
    assert all(math.isfinite(value) for value in train(plain, [1000]))
