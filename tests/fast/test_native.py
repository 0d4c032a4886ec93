"""The native steps: the plain eager twin's, to rounding, whatever the sizes."""

import copy
import shutil
from collections.abc import Callable
from ctypes import c_void_p
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.engines import make_engine
from tests.fast.natives import CPU, images_of, native_of, numbers_of, optimizer_of, trained
from tests.tiers import first
from vaebench import VAE
from vaebench.fast.chain import kernel
from vaebench.fast.native import supports_bf16
from vaebench.objective import Objective
from vaebench.system import toolchain

Make = Callable[[], VAE]
# Vectors of 8 or 16, tiles of 6 rows, groups of 2 pixels, blocks of 128 images: whole and short.
CASES: dict[str, tuple[Make, Objective, int, int]] = {
    "default": (lambda: VAE(), Objective(), 128, 300),
    "one of each": (lambda: VAE((4, 1), (1,), 1), Objective(), 1, 3),
    "odd": (lambda: VAE((7, 9), (37,), 3), Objective(beta=0.5), 20, 50),
    "several blocks": (lambda: VAE((5, 6), (50,), 7), Objective(), 300, 700),
    "deep": (lambda: VAE((8, 9), (33, 20, 18), 5, "tanh"), Objective(), 64, 200),
    "leaky": (lambda: VAE((8, 8), (30, 17), 2, "leaky_relu"), Objective(), 130, 270),
    "gated": (lambda: VAE((8, 8), (30, 17), 2, "gated"), Objective(), 130, 270),
    "gaussian": (
        lambda: VAE((6, 11), (40,), 20, "tanh", "gaussian"),
        Objective("gaussian", sigma=0.3, beta=2.0),
        150,
        400,
    ),
}


@pytest.mark.parametrize("sparse", [True, False], ids=["sparse", "dense"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32], ids=["bytes", "floats"])
@pytest.mark.parametrize("case", CASES)
def test_equals_the_eager_step(case: str, dtype: torch.dtype, sparse: bool) -> None:
    make, aim, batch, count = CASES[case]
    torch.manual_seed(2)
    model = make()
    images = images_of(310, model.image_shape, 0.1, dtype)
    eager = make_engine(copy.deepcopy(model), images, aim, batch, 1e-3, CPU).engine
    exact_images = images.double() / 255 if dtype == torch.uint8 else images.double()
    exact = make_engine(copy.deepcopy(model).double(), exact_images, aim, batch, 1e-3, CPU).engine
    native = native_of(model, images, aim, batch, sparse=sparse)
    assert native.sparse is sparse

    (got, ours), (plain, theirs), (true, truth) = (
        trained(engine, count) for engine in (native, eager, exact)
    )
    torch.testing.assert_close(got, true, rtol=1e-5, atol=1e-6)
    assert optimizer_of(native).step.item() == -(-count // batch)
    for i, (a, b, t) in enumerate(zip(ours, theirs, truth, strict=True)):
        near = 2 * (b - t).square().mean().sqrt() + 1e-5 * t.square().mean().sqrt()
        assert (a - t).square().mean().sqrt() <= near + 1e-9, i
    torch.testing.assert_close(plain, true, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("sparse", [True, False], ids=["sparse", "dense"])
@pytest.mark.parametrize("wide", [64, 4])  # the output layer alone in most; others too
@pytest.mark.parametrize("case", CASES)
def test_bf16_is_as_near_as_autocast(
    case: str, wide: int, sparse: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    _bf16_is_as_near_as_autocast(case, wide, sparse, monkeypatch)


@pytest.mark.usefixtures("without_squares")
@pytest.mark.parametrize("case", CASES)
def test_bf16_without_squares_is_too(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _bf16_is_as_near_as_autocast(case, 4, False, monkeypatch)
    assert not kernel.kernel().vaebench_native_squares()


def _bf16_is_as_near_as_autocast(
    case: str, wide: int, sparse: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not supports_bf16():
        pytest.skip("this processor does not multiply bfloat16")
    monkeypatch.setattr(kernel, "WIDE", wide)
    make, aim, batch, count = CASES[case]
    torch.manual_seed(2)
    model = make()
    images = images_of(310, model.image_shape, 0.1, torch.uint8)
    words: dict[str, Any] = {"amp": "bf16"}
    lr = 1e-12  # all steps are of the same weights
    eager = make_engine(copy.deepcopy(model), images, aim, batch, lr, CPU, **words).engine
    exact_model = copy.deepcopy(model).double()
    exact = make_engine(exact_model, images.double() / 255, aim, batch, lr, CPU).engine
    native = native_of(model, images, aim, batch, sparse=sparse, lr=lr, **words)
    assert native.bf16
    (got, ours), (plain, theirs), (true, truth) = (
        trained(engine, count) for engine in (native, eager, exact)
    )
    torch.testing.assert_close(got, true, rtol=2e-3, atol=1e-6)
    assert (got - true).norm() <= 3 * (plain - true).norm() + 2e-4 * true.norm()
    moments = slice(len(list(model.parameters())), None)
    for i, (a, b, t) in enumerate(zip(ours[moments], theirs[moments], truth[moments], strict=True)):
        slack = 1e-4 if t.numel() > 16 else 1e-2  # a few numbers may round well by chance
        near = 3 * (b - t).square().mean().sqrt() + slack * t.square().mean().sqrt()
        assert (a - t).square().mean().sqrt() <= near + 1e-9, i
    # They are bfloat16: float32 would be nearer by far.
    assert (got[0] - true[0]).abs() > 1e-7 * true[0].abs()


PROBE = """
extern "C" void probe(const uint8_t* bytes, float* units, uint8_t* back) {
  for (long i = 0; i < 256; i += LANES) {
    at(units + i) = load_unit(bytes + i);
    store_unit(back + i, at(units + i));
  }
}
"""


def test_pixels_are_divided_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("vectors.h", "numbers.h"):
        shutil.copy(toolchain.SOURCES / name, tmp_path)
    (tmp_path / "probe.cpp").write_text(PROBE)
    monkeypatch.setattr(toolchain, "SOURCES", tmp_path)
    every, back, units = torch.arange(256).byte(), torch.zeros(256).byte(), torch.zeros(256)
    probe = toolchain.load_kernels.__wrapped__("vectors.h", "numbers.h", "probe.cpp").probe
    probe(*(c_void_p(t.data_ptr()) for t in (every, units, back)))
    assert torch.equal(units, every / 255)
    assert torch.equal(back, every)


RULES: dict[str, dict[str, Any]] = {
    "adamw": {"optimizer": "adamw", "weight_decay": 0.1, "adam_betas": (0.8, 0.99)},
    "adamax": {"optimizer": "adamax", "weight_decay": 0.1, "adam_betas": (0.8, 0.99)},
    "adagrad": {"optimizer": "adagrad", "weight_decay": 0.1},
    "rmsprop": {"optimizer": "rmsprop"},
    "rmsprop, momentum": {"optimizer": "rmsprop", "momentum": 0.5, "weight_decay": 0.1},
    "sgd": {"optimizer": "sgd", "weight_decay": 0.1},
    "sgd, momentum": {"optimizer": "sgd", "momentum": 0.9},
    "adam, clipped by value": {"clip_value": 1e-3},
    "sgd, clipped by norm": {"optimizer": "sgd", "clip_norm": 2.0},
    "a norm that is never reached": {"optimizer": "sgd", "clip_norm": 1e6},
    "both": {"optimizer": "sgd", "clip_norm": 2.0, "clip_value": 0.05, "momentum": 0.5},
}


@pytest.mark.parametrize("sparse", [True, False], ids=["sparse", "dense"])
@pytest.mark.parametrize("batch", [40, 200])  # of one block, and of two
@pytest.mark.parametrize("rule", RULES)
def test_rules(rule: str, batch: int, sparse: bool) -> None:
    images = images_of(310, (6, 6), 0.1, torch.uint8)
    torch.manual_seed(2)
    model = VAE((6, 6), (19, 9), 3, "gated")
    words = RULES[rule]
    eager = make_engine(copy.deepcopy(model), images, Objective(), batch, 1e-2, CPU, **words).engine
    before = [p.detach().clone() for p in model.parameters()]
    native = native_of(model, images, Objective(), batch, sparse=sparse, lr=1e-2, **words)
    (got, ours), (want, theirs) = (trained(engine, 900) for engine in (native, eager))
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)
    moved = zip(before, model.parameters(), strict=True)
    assert max(float((a - b.detach()).abs().max()) for a, b in moved) > 1e-3


@pytest.mark.parametrize("batch", [40, 200])  # of one block, and of two
@pytest.mark.parametrize("rule", ["adamw", "sgd, momentum", "both"])
def test_bf16_weights_are_paired_anew_in_each_step(
    rule: str, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each call begins with that: many steps in one call are the same, to the bit."""
    if not supports_bf16():
        pytest.skip("this processor does not multiply bfloat16")
    monkeypatch.setattr(kernel, "WIDE", 4)
    images = images_of(310, (6, 6), 0.3, torch.uint8)
    torch.manual_seed(2)
    model = VAE((6, 6), (37, 50), 3, "gated")
    words = {"amp": "bf16", "lr": 1e-2, **RULES[rule]}
    together, apart = (
        native_of(copy.deepcopy(model), images, Objective(), batch, **words) for _ in range(2)
    )
    order, noise = numbers_of(together, 3 * batch)
    together.epoch(order, noise)
    for part in zip(order.split(batch), noise.split(batch), strict=True):
        apart.epoch(*part)
    for a, b in zip(together.model.parameters(), apart.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_norm_that_is_no_number_shows() -> None:
    images = images_of(40, (6, 6), 0.3, torch.uint8)
    model = VAE((6, 6), (16,), 2)
    engine = native_of(model, images, Objective(), 40, clip_norm=1.0)
    model.logvar.bias.data.fill_(float("nan"))
    engine.epoch(*numbers_of(engine, 40))
    assert all(p.isnan().all() for p in (model.output.bias, model.mu.weight))


@pytest.mark.parametrize("amp", first(1, ["bf16", None]))
def test_what_threads_do_does_not_matter(amp: str | None) -> None:
    """The same bits, run by run and thread by thread; batches of one block and of several."""
    if amp and not supports_bf16():
        pytest.skip("this processor does not multiply bfloat16")
    images = images_of(500, (28, 28), 0.2, torch.uint8)
    threads = torch.get_num_threads()
    try:
        found = []
        for count in (1, 2, 3, 2):
            torch.set_num_threads(count)
            torch.manual_seed(3)
            engine = native_of(VAE(), images, Objective(), 200, amp=amp)
            found.append(trained(engine, 500))
    finally:
        torch.set_num_threads(threads)
    for sums, tensors in found[1:]:
        assert torch.equal(sums, found[0][0])
        for a, b in zip(tensors, found[0][1], strict=True):
            assert torch.equal(a, b)


def test_threads_may_be_changed_while_it_trains() -> None:
    engine = native_of(
        VAE((6, 6), (16,), 2), images_of(40, (6, 6), 0.3, torch.uint8), Objective(), 20
    )
    threads = torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            engine.epoch(*numbers_of(engine, 40))
            assert engine.crew.most == count
    finally:
        torch.set_num_threads(threads)


def test_pieces_of_an_epoch_are_the_epoch() -> None:
    images = images_of(300, (8, 8), 0.3, torch.uint8)
    models = []
    for cuts in ([300], [64, 128, 108]):
        torch.manual_seed(4)
        model = VAE((8, 8), (20,), 3)
        engine = native_of(model, images, Objective(), 64)
        order, noise = numbers_of(engine, 300)
        for index, eps in zip(order.split(cuts), noise.split(cuts), strict=True):
            engine.epoch(index, eps)
        models.append(model)
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_changed_learning_rate_acts() -> None:
    images = images_of(40, (6, 6), 0.3, torch.uint8)
    model = VAE((6, 6), (16,), 2)
    engine = native_of(model, images, Objective(), 40)
    before = [p.detach().clone() for p in model.parameters()]
    engine.set_lr(0.0)
    engine.epoch(*numbers_of(engine, 40))
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    engine.set_lr(1e-2)
    engine.epoch(*numbers_of(engine, 40))
    pairs = zip(before, model.parameters(), strict=True)
    moved = max(float((a - b.detach()).abs().max()) for a, b in pairs)
    assert 5e-3 < moved < 2e-2  # Adam's second step is about as long as the learning rate


def test_parameters_may_move_in_memory() -> None:
    """As by ``model.to`` or by assigning data: nothing is written where they once were."""
    images = images_of(40, (6, 6), 0.3, torch.uint8)
    model = VAE((6, 6), (16,), 2)
    engine = native_of(model, images, Objective(), 20)
    old = model.output.weight.data
    model.output.weight.data = old.clone()
    kept = old.clone()
    engine.epoch(*numbers_of(engine, 40))
    assert torch.equal(old, kept)
    assert not torch.equal(model.output.weight, kept)


@pytest.mark.parametrize("logvar", [100.0, -200.0, float("nan")])
def test_what_is_not_finite_shows(logvar: float) -> None:
    """Overflow and NaN reach the sums, where training looks for them; underflow is no fault."""
    images = images_of(40, (6, 6), 0.3, torch.uint8)
    model = VAE((6, 6), (16,), 2)
    engine = native_of(model, images, Objective(), 40)
    model.logvar.bias.data.fill_(logvar)
    sums = engine.epoch(*numbers_of(engine, 40))
    assert bool((sums.recon - sums.kl).isfinite()) is (logvar == -200.0)


def test_huge_logits() -> None:
    images = images_of(40, (6, 6), 0.3, torch.float32)
    torch.manual_seed(5)
    model = VAE((6, 6), (16,), 2)
    model.output.bias.data.copy_(torch.linspace(-1e4, 1e4, 36))
    twin = copy.deepcopy(model)
    native = native_of(model, images, Objective(), 40)
    eager = make_engine(twin, images, Objective(), 40, 1e-3, CPU).engine
    (got, _), (want, _) = trained(native, 40), trained(eager, 40)
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)


def test_an_order_that_cannot_be_is_refused() -> None:
    """The kernel itself would read beyond the images."""
    images = images_of(40, (6, 6), 0.3, torch.uint8)
    engine = native_of(VAE((6, 6), (16,), 2), images, Objective(), 20)
    noise = torch.zeros(2, 2)
    for order in (torch.tensor([0, 40]), torch.tensor([-1, 0])):
        with pytest.raises(IndexError, match="0 to 39"):
            engine.epoch(order, noise)
    with pytest.raises(ValueError, match="2 x 2"):
        engine.epoch(torch.tensor([0, 1]), noise[:1])
    with pytest.raises(ValueError, match="float32"):
        engine.epoch(torch.tensor([0, 1]), noise.double())
