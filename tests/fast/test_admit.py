"""What is tried beside the plain step: it is trained with where it agrees and is faster."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.engines import make_engine
from tests.fast.small import CPU, engine_of, epoch, optimizer_of
from vaebench import fit
from vaebench.fast import admit, build, sparse, triton
from vaebench.fast import compile as compiled
from vaebench.fast.build import Built
from vaebench.fast.register import TECHNIQUES
from vaebench.fast.step import make_step
from vaebench.models.mlp import VAE
from vaebench.objective import Objective


def test_the_race_measures_and_leaves_no_trace(strokes: Tensor) -> None:
    engine = engine_of(strokes, compile=False)
    before = [t.clone() for t in engine.optimizer.tensors()]
    verdict = admit.race(engine, engine)
    assert verdict.candidate > 0
    assert verdict.other > 0
    assert verdict.steps == -(-len(strokes) // engine.batch_size)
    for tensor, value in zip(engine.optimizer.tensors(), before, strict=True):
        assert torch.equal(tensor, value)


@pytest.mark.parametrize(
    ("candidate", "said"),
    [(1e-3, "it pays after 5.0 epochs"), (2e-3, "it pays never")],
)
def test_what_the_race_says(candidate: float, said: str) -> None:
    assert said in admit.Verdict(candidate, 2e-3, steps=1000).compiling(5.0)


@pytest.mark.parametrize("native", [False, True])
def test_the_slower_compiled_step_is_not_trained_with(
    native: bool, strokes: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admit.Verdict, "wins", property(lambda _: False))
    model = VAE(hidden_dims=(48,), latent_dim=6)  # whose step is compiled already
    built = make_engine(model, strokes, Objective(), 64, 1e-3, CPU, compile=True, native=native)
    assert built.actual["compile"] is False
    assert any("trained eagerly" in note for note in built.notes)
    said = [note for note in built.notes if note.startswith("--native: a native step took")]
    assert len(said) == native


@pytest.mark.parametrize(("waited", "races"), [(0.0, 1), (100.0, 2)])
def test_a_race_that_others_disturb_goes_on(
    waited: float, races: int, strokes: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The least time of all turns counts."""
    one, other = (engine_of(strokes, compile=False) for _ in range(2))
    times = iter([{one: 3.0, other: 1.0}, {one: 0.5, other: 2.0}])
    asked: list[dict[str, Any]] = []

    def timed(runs: Any, device: Any, around: Any, **words: Any) -> dict[Any, float]:
        asked.append(words)
        return next(times)

    told = iter([0.0, waited])
    monkeypatch.setattr(admit, "timed_in_turns", timed)
    monkeypatch.setattr(admit, "waited_seconds", lambda: next(told))
    verdict = admit.race(one, other)
    assert len(asked) == races
    assert verdict.candidate == (0.5 if races == 2 else 3.0)
    assert verdict.other == 1.0


def _with_triton(
    strokes: Tensor, monkeypatch: pytest.MonkeyPatch, step: Callable[..., object], **words: Any
) -> Built:
    """Build an engine whose Triton kernels are stood in for by another step."""
    here = [
        dataclasses.replace(t, devices=("cpu",)) for t in TECHNIQUES if t.name in ("triton", "amp")
    ]
    monkeypatch.setattr(build, "TECHNIQUES", here)
    monkeypatch.setattr(triton, "supports", lambda *_: True)
    monkeypatch.setattr(triton, "triton_step", step)
    torch.manual_seed(1)
    model = VAE(hidden_dims=(48,), latent_dim=6)
    return make_engine(model, strokes, Objective(), 64, 1e-3, CPU, compile=True, **words)


def _same(model: VAE, objective: Objective, optimizer: Any, _: str) -> object:
    return make_step(model, objective, optimizer)


def test_triton_kernels_are_used_where_they_agree(
    strokes: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = _with_triton(strokes, monkeypatch, _same)
    assert built.actual["triton"] is True
    epoch(built.engine)
    assert optimizer_of(built.engine).step.item() == 16  # the trial has left no trace


def test_triton_kernels_that_go_wrong_are_trained_around(
    strokes: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(model: VAE, objective: Objective, optimizer: Any, _: str) -> object:
        return make_step(model, Objective(beta=1.1), optimizer)

    def broken(*_: object) -> object:
        def step(*_: Tensor) -> None:
            raise ZeroDivisionError("no such instruction\nand more")

        return step

    for step, reason in ((wrong, "went wrong here"), (broken, "ZeroDivisionError: no such")):
        with pytest.warns(UserWarning, match="went wrong here"):
            built = _with_triton(strokes, monkeypatch, step)
        assert built.actual["triton"] is False
        assert reason in " ".join(built.notes)
        assert "\n" not in " ".join(built.notes)
        epoch(built.engine)


def test_parts_are_offered_on_their_devices_alone(
    strokes: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU, `--compile` once tried the CPU's kernels, which went wrong there."""
    elsewhere = [
        dataclasses.replace(t, devices=("cuda",)) if t.kind == "part" else t for t in TECHNIQUES
    ]
    monkeypatch.setattr(compiled, "TECHNIQUES", elsewhere)
    monkeypatch.setattr(sparse, "part", lambda *_: pytest.fail("offered on another device"))
    model = VAE(hidden_dims=(32,), latent_dim=6)
    built = make_engine(model, strokes, Objective(), 64, 1e-3, CPU, compile=True, native=False)
    assert built.actual["compile"] is True
    assert built.actual["sparse"] is False
    assert built.actual["fused_likelihood"] is False


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("rounded", [False, True])
def test_cuda_triton_is_used_and_trains(strokes: Tensor, rounded: bool) -> None:
    found = {}
    for asked in (False, True):
        torch.manual_seed(1)
        history = fit(
            VAE(hidden_dims=(48,), latent_dim=6), strokes, epochs=2, device="cuda", tf32=rounded,
            compile=True, triton=asked,
        )  # fmt: skip
        assert history.actual["triton"] is asked, history.notes
        found[asked] = history.epochs[-1].train_elbo
    assert found[True] == pytest.approx(found[False], rel=2e-3 if rounded else 1e-4)


def test_triton_gives_way_to_bf16_by_name_alone(
    strokes: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = _with_triton(strokes, monkeypatch, _same, amp="auto")
    assert (built.actual["triton"], built.actual["amp"]) == (True, "float32")
    assert any("whole steps" in note for note in built.notes)
    built = _with_triton(strokes, monkeypatch, _same, amp="bf16")
    assert (built.actual["triton"], built.actual["amp"]) == (False, "bf16")
