"""Whose models are trained by native steps, and what is left to the compiler."""

import copy
import dataclasses
import re
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.engines import adam_of, make_engine, problem_of
from tests.fast import fully_connected as nets
from tests.fast.natives import CPU, engine_of, images_of, native_of, trained
from vaebench import VAE, InputError, fit
from vaebench.fast.chain import kernel
from vaebench.fast.chain.read import read
from vaebench.fast.native import NativeEngine, unsupported
from vaebench.fast.step import StepEngine
from vaebench.objective import Objective


def _supported(model: nn.Module, images: Tensor, objective: Objective) -> bool:
    problem = problem_of(model, images, objective, 2)
    chain = read(problem)
    if chain is None:
        return False
    return unsupported(problem, chain, adam_of(problem.params, 1e-3)) is None


OTHERS: dict[str, Callable[[], nn.Module]] = {
    "functions": nets.Plain,
    "halves": nets.Halves,
    "halves, swapped": lambda: nets.Halves(swapped=True),
    "a subclass": lambda: nets.Sub((6, 6), (16, 9), 2, "tanh"),
    "another activation in the decoder": nets.Mixed,
    "a distribution": nets.Reading,
    "one of each activation": nets.Several,
    "std by softplus and a little": nets.Softened,
    "std by softplus": nets.Bare,
    "logvar by its square": nets.Squared,
    "logvar by softplus": nets.Wide,
    "std by exp": nets.Exponential,
    "logvar cut off": nets.Floored,
    "logvar cut off above": nets.Capped,
    "std by exp, cut off": nets.Bounded,
    "gates": nets.Gated,
    "a gate at the pixels": nets.GatedFirst,
    "our own, gated": lambda: VAE((6, 6), (16, 9), 2, "gated", logvar_range=(-0.1, 0.1)),
    "silu and gelu": nets.Smooth,
}


@pytest.mark.parametrize("sparse", [True, False], ids=["sparse", "dense"])
@pytest.mark.parametrize("make", OTHERS.values(), ids=OTHERS)
def test_anybodys_network_equals_the_eager_step(
    make: Callable[[], nn.Module], sparse: bool
) -> None:
    torch.manual_seed(2)
    model = make()
    images = images_of(90, (6, 6), 0.1, torch.uint8)
    if isinstance(model, nets.Halves):
        images = images.unsqueeze(1)
    eager = make_engine(copy.deepcopy(model), images, Objective(), 40, 1e-3, CPU).engine
    native = native_of(model, images, Objective(), 40, sparse=sparse)
    (got, ours), (want, theirs) = (trained(engine, 200) for engine in (native, eager))
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)
    if isinstance(model, nets.Plain):
        assert torch.equal(model.classifier.weight, eager.model.classifier.weight)  # type: ignore[arg-type, union-attr]


def _with_labels(
    model: nn.Module, images: Tensor, labels: Tensor, **words: Any
) -> tuple[StepEngine, StepEngine]:
    """The native engine, and the eager one of a copy."""
    twin = copy.deepcopy(model)
    native = native_of(model, images, Objective(), 40, labels=labels, **words)
    return native, make_engine(twin, images, Objective(), 40, 1e-3, CPU, labels=labels).engine


@pytest.mark.parametrize("sparse", [True, False], ids=["sparse", "dense"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32], ids=["bytes", "floats"])
@pytest.mark.parametrize("kind", ["classes", "one-hot", "numbers", "own"])
def test_labels(kind: str, dtype: torch.dtype, sparse: bool) -> None:
    torch.manual_seed(2)
    images, labels = images_of(90, (6, 6), 0.1, dtype), torch.randint(5, (90,))
    model: nn.Module = nets.Conditional(kind == "classes")
    if kind == "own":
        model = VAE((6, 6), (16, 9), 3, classes=5)
    if kind == "one-hot":
        labels = F.one_hot(labels, 5).float()
    if kind == "numbers":
        labels = torch.rand(90, 5)
        if dtype == torch.uint8:
            problem = problem_of(model, images, Objective(), 40, labels=labels)
            chain = read(problem)
            assert chain
            assert "a byte does not hold" in str(
                unsupported(problem, chain, adam_of(problem.params, 1e-3))
            )
            return
    native, eager = _with_labels(model, images, labels, sparse=sparse)
    for fresh in (False, True):
        if fresh:  # new pixels in place, as of dynamic binarisation
            for engine in (native, eager):
                engine.images.copy_(images.flip(0))
            labels.copy_(labels.roll(1, 0))  # nor need a callback leave labels as they were
        (got, ours), (want, theirs) = (trained(engine, 200) for engine in (native, eager))
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    "make",
    [
        *(
            nets.Curbed,
            nets.Rooted,
            nets.Cut,
            nets.Scaled,
            nets.Turned,
            nets.Skipping,
            nets.Tied,
            nets.Noisy,
        ),
        *(nets.Keeping, nets.hooked, nets.overridden, nets.frozen, nets.extended, nets.shared),
        *(nets.parametrised, nets.Signed, nets.Crossed, nets.SmoothGated, nets.Nearly),
    ],
)
def test_other_models_are_left_to_the_compiler(make: Callable[[], nn.Module]) -> None:
    assert not _supported(make(), images_of(4, (6, 6), 0.3, torch.uint8), Objective())


def test_labels_beyond_the_classes_are_left_to_the_model() -> None:
    images, labels = images_of(90, (6, 6), 0.1, torch.uint8), torch.arange(90) % 5
    model = nets.Conditional(one_hot=True)
    problem = problem_of(model, images, Objective(), 40, labels=labels)
    chain, state = read(problem), adam_of(problem.params, 1e-3)
    assert chain
    assert unsupported(problem, chain, state) is None
    for wrong in (labels + 1, labels - 1):
        other = dataclasses.replace(problem, labels=wrong)
        assert "such labels" in str(unsupported(other, chain, state))


@pytest.mark.parametrize("aim", [Objective(samples=2), Objective(bound="iwae", samples=3)])
def test_other_objectives_are_left_to_the_compiler(aim: Objective) -> None:
    assert not _supported(VAE((6, 6), (16,), 2), images_of(4, (6, 6), 0.3, torch.uint8), aim)


@pytest.mark.slow
def test_native_steps_may_be_turned_off() -> None:
    images = images_of(20, (6, 6), 0.3, torch.uint8)
    model = VAE((6, 6), (16,), 2)
    assert not isinstance(engine_of(model, images, Objective(), 20, native=False), NativeEngine)


@pytest.mark.slow
def test_bf16_without_its_instructions_is_left_to_the_compiler(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("vaebench.fast.native.supports_bf16", lambda: False)
    images = images_of(20, (6, 6), 0.3, torch.uint8)
    engine = engine_of(VAE((6, 6), (16,), 2), images, Objective(), 20, amp="bf16")
    assert not isinstance(engine, NativeEngine)


@pytest.mark.parametrize("hidden", [16, 64])
def test_amx_leaves_no_pixel_out(hidden: int) -> None:
    """Where a hidden layer is wide enough for it; a note says so."""
    squares = kernel.kernel().vaebench_native_squares()
    images = images_of(40, (8, 8), 0.1, torch.uint8)
    model = VAE((8, 8), (hidden,), 2)
    built = make_engine(model, images, Objective(), 20, 1e-3, CPU, compile=True, amp="bf16")
    assert any("AMX" in note for note in built.notes) is bool(squares and hidden == 64)
    assert not (squares and hidden == 64 and built.actual["sparse"])


def test_what_is_built_before_the_engine_counts_as_compiling(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whether bfloat16 is to be had is found out by building the kernel."""
    images = images_of(20, (6, 6), 0.3, torch.uint8)
    native_of(VAE((6, 6), (16,), 2), images, Objective(), 20)  # so that the kernel itself is built
    monkeypatch.setattr("vaebench.fast.native.dark", lambda _: time.sleep(1))
    built = make_engine(VAE((6, 6), (16,), 2), images, Objective(), 20, 1e-3, CPU, compile=True)
    (took,) = re.findall(r"--compile: (?:took|a compiled step took) ([\d.]+)", built.notes[-1])
    assert float(took) >= 1


def test_fit_trains_by_it_and_says_so() -> None:
    images = images_of(60, (6, 6), 0.3, torch.uint8)
    found = {}
    for native in (True, False):
        torch.manual_seed(6)
        model = VAE((6, 6), (16,), 2)
        history = fit(
            model, images, epochs=2, batch_size=20, device="cpu", compile=native, native=native
        )
        assert history.actual["native"] is native
        found[native] = history.epochs[-1].train_elbo
    assert found[True] == pytest.approx(found[False], rel=1e-5)
    with pytest.raises(InputError, match="native"):
        fit(VAE((6, 6), (16,), 2), images, batch_size=20, native=1)
