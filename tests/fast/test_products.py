"""Convolutions as matrix products: the same numbers as torch's own, and no trace in the model."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import vaebench
from tests.engines import make_engine
from vaebench.config import WORKLOADS
from vaebench.data.strokes import make_strokes
from vaebench.fast import admit
from vaebench.fast.adam import AdamState
from vaebench.fast.products import ProductConv2d, _changed, _suited
from vaebench.fast.step import StepEngine
from vaebench.objective import Objective
from vaebench.reference import ReferenceEngine

CPU = torch.device("cpu")
OBJECTIVE = Objective("gaussian", WORKLOADS["conv"].settings["sigma"])
BATCH, LR, Z = 32, 3e-4, 2
UP = nn.ConvTranspose2d
LAYERS: dict[str, Any] = {
    "halve": lambda: nn.Conv2d(6, 5, 3, 2, 1),
    "double": lambda: UP(6, 5, 3, 2, 1, 1),
    "narrow": lambda: nn.Conv2d(8, 1, 5, 1, 2),
    "narrow, two out": lambda: nn.Conv2d(8, 2, 5, 1, 3, bias=False),
    "wide": lambda: nn.Conv2d(2, 6, 5, 1, 2, bias=False),
    "nothing but padding on one pixel": lambda: nn.Conv2d(3, 4, 1, 3, 1),
    "one pixel": lambda: nn.Conv2d(3, 4, 1),
    "sides that differ": lambda: nn.Conv2d(2, 6, (2, 3), 3, (3, 2)),
    "sides that differ, up": lambda: UP(6, 5, (5, 4), 3, (2, 1), (0, 2)),
    "gaps between": lambda: UP(4, 3, 2, 3, 0, 1),
}


@pytest.fixture(autouse=True, scope="module")
def _no_race() -> Iterator[None]:
    """Let products win, which on a busy machine the smallest may not."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(admit.Verdict, "wins", property(lambda _: True))
        yield


@pytest.mark.parametrize("side", [1, 2, 3, 4, 7, 8])
@pytest.mark.parametrize("kind", LAYERS)
def test_a_layer_is_torchs(kind: str, side: int) -> None:
    torch.manual_seed(side)
    layer = LAYERS[kind]().double().to(memory_format=torch.channels_last)
    x = torch.randn(3, layer.in_channels, side, side + 1, dtype=torch.float64, requires_grad=True)
    want = layer(x)
    with _changed([layer]):
        assert type(layer) not in (nn.Conv2d, UP)
        got = layer(x)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    grad = torch.randn_like(want)
    inputs = [x, *layer.parameters()]
    for a, b in zip(
        torch.autograd.grad(got, inputs, grad), torch.autograd.grad(want, inputs, grad), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)
    assert type(layer) in (nn.Conv2d, UP)


def test_what_does_not_suit_is_left_alone() -> None:
    class Own(nn.Conv2d):
        pass

    odd = [
        nn.Conv2d(4, 4, 3, groups=2), nn.Conv2d(4, 4, 3, dilation=2), nn.Conv2d(4, 4, 3, (1, 2)),
        nn.Conv2d(4, 4, 3, padding="same"), nn.Conv2d(4, 4, 3, 1, 1, padding_mode="circular"),
        nn.Conv1d(4, 4, 3), Own(4, 4, 3),
    ]  # fmt: skip
    assert len(_suited(nn.Sequential(*odd))) == 0
    assert len(_suited(nn.Sequential(*odd, nn.Conv2d(4, 4, 3)))) == 1


def test_large_images_keep_the_librarys_convolution(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object) -> Tensor:
        raise AssertionError("a product of 33 x 33 positions")

    monkeypatch.setattr("vaebench.fast.products._live", forbidden)
    for layer in (nn.Conv2d(1, 2, 3, 1, 1), UP(1, 2, 3, 1, 1)):
        with _changed([layer]):
            layer(torch.zeros(1, 1, 33, 33))
            with pytest.raises(AssertionError):
                layer(torch.zeros(1, 1, 32, 32))


def test_an_image_without_its_batch() -> None:
    for layer in (nn.Conv2d(1, 2, 3), UP(1, 2, 3)):
        x = torch.rand(1, 5, 5)
        want = layer(x)
        with _changed([layer]):
            assert torch.equal(layer(x), want)


def test_layers_are_as_they_were_after_an_error() -> None:
    layer = nn.Conv2d(1, 1, 3)
    with pytest.raises(RuntimeError), _changed([layer]):
        layer(torch.zeros(1, 2, 5, 5))
    assert type(layer) is nn.Conv2d


@pytest.mark.parametrize("name", ["windows", "overlap_add"])
@pytest.mark.parametrize("planar", [False, True])
def test_the_operators_keep_torchs_promises(name: str, planar: bool) -> None:
    """Shapes and strides as told to the compiler, gradients, no memory shared with the input."""
    shapes = {"windows": (2, 5, 4, 3), "overlap_add": (2, 3, 2, 3, 3, 2)}
    words = {
        "windows": (2, [-1, 0], [3, 3], [3, 2], planar),
        "overlap_add": (2, [-1, 0], [5, 5], planar),
    }
    x = torch.randn(shapes[name], dtype=torch.float64, requires_grad=True)
    operator = getattr(torch.ops.vaebench, name).default
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(operator, (x, *words[name]), test_utils=tests)
    assert torch.autograd.gradcheck(lambda t: operator(t, *words[name]), x)


@pytest.mark.parametrize("of_param", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("of_grad", [torch.contiguous_format, torch.channels_last])
def test_adam_minds_the_layout(of_param: Any, of_grad: Any) -> None:
    torch.manual_seed(0)
    param = torch.randn(8, 4, 3, 3)
    ours = AdamState.of([param.clone(memory_format=of_param)], LR)
    theirs = torch.optim.Adam([param], lr=LR)
    for _ in range(3):
        param.grad = torch.randn(8, 4, 3, 3)
        theirs.step()
        ours.update((param.grad.clone(memory_format=of_grad),))
    torch.testing.assert_close(ours.params[0], param)


class Small(nn.Module):
    """A layer of each kind, and batch norm: compiled in seconds."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(1, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.Tanh())
        self.heads = nn.Linear(8 * 14 * 14, 2 * Z)
        self.into = nn.Linear(Z, 8 * 14 * 14)
        self.up = nn.Sequential(UP(8, 8, 3, 2, 1, 1), nn.BatchNorm2d(8), nn.Tanh())
        self.out = nn.Conv2d(8, 1, 5, padding=2)

    def encode(self, x: Tensor) -> Any:
        return self.heads(self.down(x.unsqueeze(1)).flatten(1)).chunk(2, 1)

    def decode(self, z: Tensor) -> Any:
        return self.out(self.up(self.into(z).unflatten(1, (8, 14, 14)))).flatten(1)


def _numbers(count: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(count, generator=generator), torch.randn(count, Z, generator=generator)


def _engines(compile: bool, images: Tensor) -> tuple[StepEngine, ReferenceEngine, nn.Module]:
    """The fast engine, the reference, and the model of a float64 reference after a step."""
    torch.manual_seed(3)
    small = (8, 8, 16, 16, 32)
    # A smooth activation: at a kink, one rounding more is another gradient.
    model = Small() if compile else vaebench.ConvVAE((28, 28), small, Z, "tanh")
    count = 3 if compile else 11
    kinds = [type(m) for m in model.modules()]

    def reference(model: nn.Module, images: Tensor) -> ReferenceEngine:
        return ReferenceEngine(
            model, images, batch_size=BATCH, lr=LR, likelihood="gaussian", sigma=OBJECTIVE.sigma,
            beta=1.0, device=CPU,
        )  # fmt: skip

    # Torch's own batch norm adds up in float32 where channels lie last, in float64 where they lie
    # first. It is the layout, not the products, whose rounding is larger: compare like with like.
    plain = reference(copy.deepcopy(model).to(memory_format=torch.channels_last), images)
    truth = reference(copy.deepcopy(model).double(), images.double() / 255)
    order, noise = _numbers(BATCH, seed=1)
    truth.epoch(order, noise.double())
    built = make_engine(model, images, OBJECTIVE, BATCH, LR, CPU, compile=compile)
    assert built.actual["compile"] is compile
    assert f"--products: {count} convolutions as matrix products" in built.notes
    assert [type(m) for m in model.modules()] == kinds
    return built.engine, plain, truth.model


@pytest.fixture(scope="module", params=[False, True], ids=["eager", "compile"])
def trained(request: pytest.FixtureRequest) -> tuple[StepEngine, ReferenceEngine, nn.Module, Any]:
    """Both engines after one step on the same numbers; what they gave."""
    images = make_strokes(100, seed=3)[0]
    fast, plain, truth = _engines(request.param, images)
    numbers = _numbers(BATCH, seed=1)
    return fast, plain, truth, (fast.epoch(*numbers), plain.epoch(*numbers))


def test_a_step_is_the_references(trained: Any) -> None:
    """L1: ELBO, gradients by the float64 rule, and batch norm's statistics."""
    fast, plain, truth, (got, want) = trained
    assert float(got.recon - got.kl) == pytest.approx(float(want.recon - want.kl), rel=1e-5)
    for (name, p), q, m in zip(
        truth.named_parameters(), plain.model.parameters(), fast.optimizer.m, strict=True
    ):
        mine, plains = m / 0.1 - p.grad, q.grad - p.grad
        # A bias before batch norm has no gradient but rounding, of its layer's size.
        scale = truth.get_parameter(name.replace("bias", "weight")).grad.abs().max()
        bar = 2 * plains.square().mean().sqrt() + 1e-5 * scale
        assert mine.square().mean().sqrt() <= bar, name
    # By the float64 rule too: with one thread torch's channels-last sums are off by more.
    statistics = zip(
        truth.named_buffers(), plain.model.buffers(), fast.model.buffers(), strict=True
    )
    for (name, b), q, c in statistics:
        mine, plains = (c - b).abs().max(), (q - b).abs().max()
        assert mine <= 2 * plains + 1e-6 + 1e-5 * b.abs().max(), name
        assert not name.endswith("num_batches_tracked") or c == 1


def test_epochs_are_the_references(trained: Any) -> None:
    """L3, with a short last batch each; and what evaluation makes of batch norm's statistics."""
    fast, plain, _, _ = trained
    for seed in range(3):
        order, noise = _numbers(100, seed)
        got, want = fast.epoch(order, noise), plain.epoch(order, noise)
        assert float(got.recon) == pytest.approx(float(want.recon), rel=1e-3)
        assert float(got.kl) == pytest.approx(float(want.kl), rel=2e-2)
    assert all(b == 13 for n, b in fast.model.named_buffers() if n.endswith("num_batches_tracked"))
    elbos = [
        vaebench.evaluate(m, fast.images, likelihood="gaussian", sigma=OBJECTIVE.sigma).elbo
        for m in (fast.model, plain.model)
    ]
    assert elbos[0] == pytest.approx(elbos[1], rel=1e-3)
    assert not any(isinstance(m, ProductConv2d) for m in fast.model.modules())


def test_the_switch() -> None:
    images = make_strokes(64, seed=3)[0]
    model = vaebench.ConvVAE(hidden_dims=(2, 2, 2, 2, 2))
    for words, expected in (
        ({}, ["--products: 11 convolutions as matrix products"]),
        ({"products": False}, []),
        ({"engine": "reference"}, []),
    ):
        history = vaebench.fit(model, images, epochs=1, batch_size=32, device="cpu", **words)
        assert history.notes == expected
    assert vaebench.fit(vaebench.VAE(), images, epochs=1, batch_size=32, device="cpu").notes == []
