"""Convolutions by kernels of our own, in a model: chosen by measurement, and no trace left."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import vaebench
from tests.engines import adam_of, make_engine
from tests.tiers import first
from vaebench.config import WORKLOADS
from vaebench.data.strokes import make_strokes
from vaebench.fast import products
from vaebench.fast.products import Products, Shape, choice, layers
from vaebench.fast.products.layers import is_plain
from vaebench.fast.step import StepEngine
from vaebench.objective import Objective
from vaebench.reference import ReferenceEngine
from vaebench.system.toolchain import no_compiler

pytestmark = pytest.mark.usefixtures("kernels_win")
CPU = torch.device("cpu")
OBJECTIVE = Objective("gaussian", WORKLOADS["conv"].settings["sigma"])
BATCH, LR, Z = 32, 3e-4, 2
UP = nn.ConvTranspose2d
Make = Callable[[], nn.Module]


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


class Viewing(Small):
    """Calls view on what a convolution gave: it must lie as the library lays it out."""

    def encode(self, x: Tensor) -> Any:
        return self.heads(self.down(x.unsqueeze(1)).view(len(x), -1)).chunk(2, 1)


def _both(model: nn.Module) -> Callable[[], None]:
    x = torch.rand(2, 28, 28, generator=torch.Generator().manual_seed(0))
    vae: Any = model
    return lambda: vae.decode(vae.encode(x)[0])


def _planned(model: nn.Module, **kwargs: Any) -> Products:
    found = products.plan(model.eval(), _both(model), BATCH, **kwargs)
    assert found
    return found


@pytest.mark.parametrize("make", [Small, Viewing])
@pytest.mark.parametrize("bf16", [False, True], ids=["float32", "bf16"])
def test_a_model_gives_the_same(make: Make, bf16: bool) -> None:
    torch.manual_seed(0)
    model: Any = make()
    found = _planned(model, bf16=bf16)
    assert found.count == 3
    assert all(
        c.manner and c.manner.contiguous is (make is Viewing) for c in found.choices.values()
    )
    x, params = torch.rand(5, 28, 28), list(model.parameters())

    def passed() -> list[Tensor]:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            mu, logvar = model.encode(x)
            loss = (model.decode(mu) - x.flatten(1)).square().sum() + logvar.square().sum()
        return list(torch.autograd.grad(loss, params))

    want = passed()
    with found.within(model):
        got = passed()
    for a, b in zip(got, want, strict=True):
        assert (a - b).norm() <= (3e-2 if bf16 else 1e-4) * b.norm() + 1e-5


def test_no_trace_is_left_in_a_model() -> None:
    """Not in classes, memory or layout: a user may view, save and flatten the weights."""
    model = Small()
    kinds = [type(m) for m in model.modules()]
    places = [(p.data_ptr(), p.stride()) for p in model.parameters()]
    found = _planned(model)
    with pytest.raises(KeyError), found.within(model):
        assert type(model.out) is not nn.Conv2d
        raise KeyError
    assert [type(m) for m in model.modules()] == kinds
    assert [(p.data_ptr(), p.stride()) for p in model.parameters()] == places
    assert all(not m._forward_pre_hooks for m in model.modules())


def test_what_does_not_suit_is_left_alone() -> None:
    class Own(nn.Conv2d):
        pass

    odd = [
        nn.Conv2d(4, 4, 3, groups=2), nn.Conv2d(4, 4, 3, dilation=2), nn.Conv2d(4, 4, 3).double(),
        nn.Conv2d(4, 4, 3, padding="same"), nn.Conv2d(4, 4, 3, 1, 1, padding_mode="circular"),
        nn.Conv1d(4, 4, 3), Own(4, 4, 3),
    ]  # fmt: skip
    assert not any(map(is_plain, odd))
    assert all(map(is_plain, [nn.Conv2d(4, 4, 3, (1, 2)), UP(4, 4, 3, (1, 2))]))
    assert products.plan(nn.Sequential(*odd), lambda: None, BATCH) is None


@pytest.mark.parametrize("make", [nn.Conv2d, UP])
def test_inputs_that_do_not_suit_go_to_the_library(make: Any) -> None:
    """A single image, no image, channels that are too many, an output's size by name."""
    layer = make(2, 3, 3, 2, 1)
    model = nn.Sequential(layer)
    found = products.plan(model, lambda: model(torch.zeros(1, 2, 5, 5)), 4)
    assert found
    for x in (torch.rand(2, 5, 5), torch.rand(0, 2, 5, 5)):
        want = layer(x)
        with found.within(model):
            assert torch.equal(layer(x), want)
    with found.within(model), pytest.raises(RuntimeError, match="channels"):
        layer(torch.rand(1, 4, 5, 5))
    if make is UP:
        x = torch.rand(1, 2, 5, 5)
        want = layer(x, output_size=[10, 10])
        with found.within(model):
            assert torch.equal(layer(x, output_size=[10, 10]), want)


@pytest.mark.parametrize("bf16", [False, True], ids=["float32", "bf16"])
@pytest.mark.parametrize("contiguous", [False, True])
def test_a_race_decides_once(monkeypatch: pytest.MonkeyPatch, bf16: bool, contiguous: bool) -> None:
    shape = Shape(False, (3, 4, 6, 6), 5, (3, 3), (1, 1), (1, 1), bf16=bf16, contiguous=contiguous)
    for ours, theirs in ((1.0, 2.0), (2.0, 1.0)):
        choice._CHOICES.clear()
        monkeypatch.setattr(
            choice, "race", lambda runs, *_, o=ours, t=theirs, **__: {
                name: t if name.startswith("library") else o for name in runs if runs[name]()
            },
        )  # fmt: skip
        found = choice.choose(shape)
        assert (found.manner is not None) is (ours < theirs)
        if found.manner:
            assert found.manner.contiguous is contiguous
        assert set(found.seconds) == {"library", "native", *(["widened"] if bf16 else [])}
        assert choice.choices() == {shape: found}
        assert choice.choose(shape) is found
    choice._CHOICES.clear()


def test_a_real_race() -> None:
    choice._CHOICES.clear()
    found = choice.choose(Shape(True, (2, 3, 4, 4), 5, (3, 3), (2, 2), (1, 1), (1, 1)))
    assert all(0 < seconds < 1 for seconds in found.seconds.values())
    choice._CHOICES.clear()


@pytest.mark.parametrize("of_param", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("of_grad", [torch.contiguous_format, torch.channels_last])
def test_adam_minds_the_layout(of_param: Any, of_grad: Any) -> None:
    torch.manual_seed(0)
    param = torch.randn(8, 4, 3, 3)
    ours = adam_of([param.clone(memory_format=of_param)], LR)
    theirs = torch.optim.Adam([param], lr=LR)
    for _ in range(3):
        param.grad = torch.randn(8, 4, 3, 3)
        theirs.step()
        ours.update((param.grad.clone(memory_format=of_grad),))
    torch.testing.assert_close(ours.params[0], param)


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
    # first. It is the layout, not the kernels, whose rounding is larger: compare like with like.
    plain = reference(copy.deepcopy(model).to(memory_format=torch.channels_last), images)
    truth = reference(copy.deepcopy(model).double(), images.double() / 255)
    order, noise = _numbers(BATCH, seed=1)
    truth.epoch(order, noise.double())
    built = make_engine(model, images, OBJECTIVE, BATCH, LR, CPU, compile=compile)
    assert built.actual["compile"] is compile
    said = f"--products: {count} of {count} convolutions by native kernels"
    assert any(note.startswith(said) for note in built.notes)
    assert [type(m) for m in model.modules()] == kinds
    return built.engine, plain, truth.model


@pytest.fixture(
    scope="module",
    params=[False, pytest.param(True, marks=pytest.mark.slow)],
    ids=["eager", "compile"],
)
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
        truth.named_parameters(), plain.model.parameters(), fast.optimizer.moments["m"], strict=True
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
    assert all(type(m) is nn.Conv2d for m in fast.model.modules() if isinstance(m, nn.Conv2d))


def test_the_switch() -> None:
    images = make_strokes(64, seed=3)[0]
    model = vaebench.ConvVAE(hidden_dims=(2, 2, 2, 2, 2))
    for kwargs, says in (
        ({}, True),
        ({"products": False}, False),
        ({"engine": "reference"}, False),
    ):
        history = vaebench.fit(model, images, epochs=1, batch_size=32, device="cpu", **kwargs)
        said = [n for n in history.notes if n.startswith("--products: 11 of 11 convolutions")]
        assert bool(said) is says
    assert vaebench.fit(vaebench.VAE(), images, epochs=1, batch_size=32, device="cpu").notes == []


SPOILT: dict[str, Callable[[Tensor], Tensor]] = {
    "a hundredth more": lambda y: 1.01 * y,  # which batch norm undoes, but for its statistics
    "a row left out": lambda y: torch.cat([y[:, :, :-1], torch.zeros_like(y[:, :, -1:])], 2),
    "a channel shifted": lambda y: y + 0.01 * (torch.arange(y.shape[1]) == 0).view(1, -1, 1, 1),
    "no gradient": lambda y: y.detach() + 0 * y,
    "half a gradient": lambda y: (y + y.detach()) / 2,
}


@pytest.mark.parametrize("seed", first(1, [0, 1]))
@pytest.mark.parametrize("spoil", first(2, SPOILT.values()), ids=SPOILT)
def test_a_wrong_kernel_is_refused(
    spoil: Callable[[Tensor], Tensor], seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one layer of eleven, whatever else differs by rounding."""
    torch.manual_seed(seed)
    applied = layers._applied

    def wrong(layer: Any, *args: Any) -> Tensor:
        y = applied(layer, *args)
        return spoil(y) if layer is target else y

    model = vaebench.ConvVAE((28, 28), (8, 8, 16, 16, 32), Z)
    target = [m for m in model.modules() if isinstance(m, nn.Conv2d)][1]
    monkeypatch.setattr(layers, "_applied", wrong)
    images = make_strokes(100, seed=3)[0]
    with pytest.warns(UserWarning, match="products went wrong here"):
        built = make_engine(model, images, OBJECTIVE, BATCH, LR, CPU)
    assert built.actual["products"] is False
    assert "went wrong here" in built.notes[0]


@pytest.mark.parametrize("seed", first(1, range(4)))
def test_right_kernels_are_let_pass(seed: int) -> None:
    """Other rounding, much of which batch norm of few images, and kinks, make more of."""
    torch.manual_seed(seed)
    model = vaebench.ConvVAE((28, 28), (8, 8, 16, 16, 32), Z)
    for count in (64, 100):
        images = make_strokes(count, seed=seed)[0]
        built = make_engine(model, images, OBJECTIVE, BATCH, 1e-3, CPU)
        assert built.actual["products"] is True, built.notes


def test_without_a_compiler_the_library_convolves(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> None:
        raise no_compiler("a native kernel")

    monkeypatch.setattr(products.operators, "build", none)
    images = make_strokes(64, seed=3)[0]
    model = vaebench.ConvVAE(hidden_dims=(2, 2, 2, 2, 2))
    built = make_engine(model, images, OBJECTIVE, BATCH, LR, CPU)
    (note,) = built.notes
    assert note.startswith("--products: a native kernel needs a C++ compiler")


def _made_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if such a weight were the layer's own."""
    monkeypatch.setattr(
        products, "is_plain", lambda m: isinstance(m, nn.Conv2d | UP) and m.kernel_size == (3, 3)
    )


@pytest.mark.filterwarnings("ignore:.*spectral_norm:FutureWarning")
@pytest.mark.parametrize("mistaken", [False, True])
def test_a_weight_that_is_made_of_another(mistaken: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Spectral norm by hooks: at first the two share their memory, which layouts must not touch."""
    images = make_strokes(96, seed=3)[0]
    elbos = []
    for engine in ("reference", "fast"):
        torch.manual_seed(0)
        model = Small()
        nn.utils.spectral_norm(model.up[0])
        if mistaken and engine == "fast":
            _made_of_another(monkeypatch)
            with pytest.warns(UserWarning, match="products went wrong here"):
                history = vaebench.fit(model, images, epochs=3, batch_size=BATCH, device="cpu")
        else:
            how = {"batch_size": BATCH, "device": "cpu", "engine": engine}
            history = vaebench.fit(model, images, epochs=3, **how)  # type: ignore[arg-type]
        elbos.append([record.train_elbo for record in history.epochs])
    assert elbos[1] == pytest.approx(elbos[0], rel=1e-4)
    assert bool(history.actual["products"]) is not mistaken
