"""A graph is used where it can be, agrees and pays; else that is said, and trained without."""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

import vaebench
from tests.engines import make_engine
from tests.fast.graphs import (
    BATCH,
    CPU,
    MODELS,
    BatchNorm,
    Dropout,
    Waiting,
    Z,
    all_equal,
    plain_of,
    replayed_of,
    state_of,
    train,
)
from tests.fast.tape import TapeCapture
from vaebench.fast import admit, build, graph
from vaebench.fast import capture as recording
from vaebench.fast.graph import GraphEngine
from vaebench.fast.register import TECHNIQUES
from vaebench.fast.step import StepEngine
from vaebench.models.mlp import VAE
from vaebench.objective import Objective


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
    plain = plain_of(strokes, CPU)
    assert train(built.engine, [1000]) == train(plain, [1000])  # no trace of the attempt


def test_what_a_model_prints_is_printed_in_each_step(
    strokes: Tensor, taped: TapeCapture, capsys: pytest.CaptureFixture[str]
) -> None:
    class Printing(VAE):
        def decode(self, z: Tensor) -> Any:
            print("decodes")
            return super().decode(z)

    built = make_engine(Printing((28, 28), (32,), Z), strokes, Objective(), BATCH, 1e-3, CPU)
    assert built.actual["graph"] is False
    assert "decode calls print" in "".join(built.notes)
    capsys.readouterr()
    built.engine.epoch(torch.arange(2 * BATCH), torch.zeros(2 * BATCH, Z))
    assert capsys.readouterr().out.count("decodes") == 2


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


def test_there_are_no_graphs_on_the_cpu() -> None:
    assert recording.capture_for(CPU) is None


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
    assert train(built.engine, [1000]) == train(plain_of(strokes, CPU), [1000])


@pytest.mark.parametrize("run", [_frozen_noise, _frozen_order])
def test_stale_buffers_are_seen(
    strokes: Tensor, monkeypatch: pytest.MonkeyPatch, run: Callable[..., None]
) -> None:
    plain = plain_of(strokes, CPU)
    replayed = replayed_of(plain, (CPU, TapeCapture))
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
    plain = plain_of(strokes, CPU, "batch norm")
    before = state_of(plain)
    found = admit.disagreement(_wrong(plain, spoil), plain, [3 * BATCH, 40])
    assert found is not None
    assert "\n" not in found
    assert all_equal(state_of(plain), before)


@pytest.mark.parametrize("model", MODELS)
def test_the_check_lets_rounding_pass(strokes: Tensor, model: str) -> None:
    """Batches the other way round: the same sums in another order, and other bits."""
    plain = plain_of(strokes, CPU, model)

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
    plain = plain_of(strokes, CPU)
    plain.set_lr(1e30)
    replayed = replayed_of(plain, (CPU, TapeCapture))
    assert not all(map(math.isfinite, train(plain, [1000])))
    assert admit.disagreement(replayed, plain, replayed.trial_sizes) is None


def test_the_check_gives_both_the_same_dropout(strokes: Tensor) -> None:
    model = Dropout()
    plain = make_engine(model, strokes, Objective(), BATCH, 1e-3, CPU, graph=False).engine
    assert admit.disagreement(plain, plain, [3 * BATCH]) is None
    order, noise = admit._numbers(plain, 3 * BATCH)
    outcome = partial(admit._outcome, plain, order, noise, [3 * BATCH])
    assert outcome().sums == outcome().sums
