"""Batch norm with its activation by a kernel: torch's, to rounding, and no trace left behind."""

import copy
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import vaebench
from tests.engines import make_engine
from vaebench.data.strokes import make_strokes
from vaebench.fast import batch_norm, products
from vaebench.fast.products import Choice
from vaebench.fast.products.layers import Manner
from vaebench.objective import Objective
from vaebench.reference import ReferenceEngine

# Of the images, or vectors: one vector of channels and parts of one, few rows and many.
SIZES = [(2, 3), (7, 16), (4, 17, 3, 3), (32, 32, 9, 9), (5, 100, 1, 2), (3, 1, 28, 28), (80, 72)]
ACTIVATIONS: dict[str, Callable[[], list[nn.Module]]] = {
    "none": list,
    "relu": lambda: [nn.ReLU()],
    "leaky": lambda: [nn.LeakyReLU(0.2, inplace=True)],
    "tanh": lambda: [nn.Tanh()],
}


def _network(channels: int, images: bool, activation: str) -> nn.Sequential:
    kind = nn.BatchNorm2d if images else nn.BatchNorm1d
    layer = kind(channels, eps=1e-3, momentum=0.3)
    generator = torch.Generator().manual_seed(channels)
    with torch.no_grad():
        layer.weight.uniform_(-1, 2, generator=generator)
        layer.bias.uniform_(-1, 1, generator=generator)
    return nn.Sequential(layer, *ACTIVATIONS[activation]())


def _images(size: tuple[int, ...], mean: float = 0.5) -> Tensor:
    x = torch.randn(size, generator=torch.Generator().manual_seed(1)) + mean
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x


def _passed(network: nn.Sequential, x: Tensor, native: bool) -> list[Tensor]:
    """The output, the gradients of x, weight and bias, and the running statistics."""
    network = copy.deepcopy(network)
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    with batch_norm.swapped(batch_norm.find(network) if native else []):
        y = network(x)
    factors = torch.randn(y.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    grads = torch.autograd.grad((y * factors.to(y.dtype)).sum(), [x, *network.parameters()])
    return [y.detach(), *grads, *(b.clone() for b in network.buffers())]


def _as_near(network: nn.Sequential, x: Tensor, factor: float = 2.0) -> None:
    """The kernel is as near to float64 as torch is, but for a factor."""
    truth = _passed(copy.deepcopy(network).double(), x.double(), native=False)
    torchs, ours = (_passed(network, x, native) for native in (False, True))
    for want, other, got in zip(truth, torchs, ours, strict=True):
        assert got.dtype == other.dtype
        assert got.shape == other.shape
        allowed = factor * (other.double() - want).norm() + 1e-6 * want.double().norm() + 1e-7
        assert (got.double() - want).norm() <= allowed


@pytest.mark.parametrize("activation", list(ACTIVATIONS))
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_as_near_as_torchs(size: tuple[int, ...], activation: str) -> None:
    _as_near(_network(size[1], len(size) == 4, activation), _images(size))


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_bf16_is_as_near_as_torchs(size: tuple[int, ...]) -> None:
    """Images in bfloat16, as autocast's convolutions give them; all else in float32."""
    _as_near(_network(size[1], len(size) == 4, "relu"), _images(size).bfloat16())


def test_a_mean_far_from_zero_costs_nothing() -> None:
    _as_near(_network(16, True, "none"), _images((8, 16, 7, 7), 0.0) * 1e-2 + 1000)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bf16"])
def test_what_threads_do_does_not_matter(dtype: torch.dtype) -> None:
    network, x = _network(72, True, "leaky"), _images((32, 72, 9, 9)).to(dtype)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(_passed(network, x, native=True))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_what_is_no_number_stays_in_its_channel() -> None:
    network, x = _network(5, True, "relu"), _images((4, 5, 3, 3))
    x[1, 2, 0, 0] = float("nan")
    got = _passed(network, x, native=True)[0].isnan().sum((0, 2, 3))
    assert got.tolist() == [0, 0, 36, 0, 0]


class Model(nn.Module):
    """Normalises in every way, right and wrong for the kernel."""

    def __init__(self) -> None:
        super().__init__()
        relu, twice = nn.ReLU(), nn.BatchNorm1d(6)
        self.paired = nn.Sequential(nn.BatchNorm1d(6), nn.ReLU())
        self.other = nn.Sequential(nn.BatchNorm1d(6), nn.Tanh())
        self.shared = nn.Sequential(nn.BatchNorm1d(6), relu, nn.Linear(6, 6), relu)
        self.twice = nn.ModuleList([nn.Sequential(twice, nn.ReLU()), twice])
        self.watched = nn.Sequential(nn.BatchNorm1d(6), nn.ReLU())
        self.watched[1].register_forward_hook(lambda *_: None)
        self.hooked = nn.Sequential(nn.BatchNorm1d(6), nn.ReLU())
        self.hooked[0].register_forward_hook(lambda *_: None)
        self.bare = nn.BatchNorm1d(6, affine=False)
        self.averaging = nn.BatchNorm1d(6, momentum=None)
        self.forgetful = nn.BatchNorm1d(6, track_running_stats=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 6) -> (B, 6)."""
        for layer in (*self.children(), *self.twice):
            if layer is not self.twice:
                x = layer(x) + x
        return x


def test_only_what_suits_is_taken_and_no_trace_left() -> None:
    model: Any = Model()
    found = {id(layer): activation for layer, activation in batch_norm.find(model)}
    pairs = {name: found.get(id(getattr(model, name)[0])) for name in ("paired", "other", "shared")}
    assert pairs == {"paired": model.paired[1], "other": None, "shared": None}
    taken = {"paired": 0, "other": 0, "shared": 0, "twice": 0, "watched": 0}
    layers = [model.get_submodule(name)[at] for name, at in taken.items() if name != "twice"]
    assert set(found) == {*map(id, layers), id(model.twice[1])}
    kinds = [type(m) for m in model.modules()]
    want = _passed(model, _images((9, 6)), native=False)
    got = _passed(model, _images((9, 6)), native=True)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b)
    with pytest.raises(KeyError), batch_norm.swapped(batch_norm.find(model)):
        assert type(model.paired[0]) is not nn.BatchNorm1d
        raise KeyError
    assert [type(m) for m in model.modules()] == kinds


@pytest.mark.parametrize("why", ["frozen", "channels first", "one image"])
def test_what_the_kernel_cannot_take_is_torchs(why: str) -> None:
    network = _network(6, True, "relu")
    x = _images((1, 6, 1, 1) if why == "one image" else (4, 6, 3, 3))
    if why == "frozen":
        network.eval()
    if why == "channels first":
        x = x.contiguous()
    if why == "one image":
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            _passed(network, x, native=True)
        return
    both = (_passed(network, x, native) for native in (True, False))
    assert all(torch.equal(a, b) for a, b in zip(*both, strict=True))


def test_it_compiles_to_one_graph_that_gives_the_same() -> None:
    network, x = _network(8, True, "leaky"), _images((4, 8, 3, 3)).requires_grad_()
    twin = copy.deepcopy(network)
    with batch_norm.swapped([*batch_norm.find(network), *batch_norm.find(twin)]):
        got = torch.compile(network, fullgraph=True, backend="aot_eager")(x)
        want = twin(x)
    assert torch.equal(got, want)
    grads = (torch.autograd.grad(y.square().sum(), x)[0] for y in (got, want))
    assert torch.equal(*grads)
    assert all(map(torch.equal, network.buffers(), twin.buffers()))


@pytest.mark.slow  # convolutions take long to compile
@pytest.mark.parametrize("amp", [None, "bf16"])
def test_an_engine_with_it_is_the_reference(
    amp: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Recon, kl, parameters and running statistics, after a step of a whole network."""
    won = Choice(Manner(), {"library": 2.0, "native": 1.0})
    monkeypatch.setattr(products, "choose", lambda shape: won)
    torch.manual_seed(0)
    model = vaebench.ConvVAE((28, 28), (8, 8, 16, 16, 32), 2)
    images, objective = make_strokes(32, seed=0)[0], Objective("gaussian", 0.9)
    device, twin = torch.device("cpu"), copy.deepcopy(model)
    truth = ReferenceEngine(
        twin, images, batch_size=32, lr=1e-3, device=device, likelihood="gaussian", sigma=0.9,
        beta=1.0,
    )  # fmt: skip
    built = make_engine(model, images, objective, 32, 1e-3, device, amp=amp)
    assert built.actual["batch_norm"] is True
    numbers = torch.arange(32), torch.randn(32, 2)
    got, want = built.engine.epoch(*numbers), truth.epoch(*numbers)
    bar = 1e-2 if amp else 1e-5
    assert float(got.recon) == pytest.approx(float(want.recon), rel=bar)
    assert float(got.kl) == pytest.approx(float(want.kl), rel=10 * bar)
    for (name, a), b in zip(model.named_buffers(), twin.buffers(), strict=True):
        assert (a - b).double().norm() <= 10 * bar * b.double().norm() + 1e-6, name


def test_without_native_convolutions_it_stands_aside() -> None:
    model = vaebench.ConvVAE((28, 28), (8, 8, 8, 8, 8), 2)
    images, cpu = make_strokes(32, seed=0)[0], torch.device("cpu")
    built = make_engine(model, images, Objective("gaussian"), 32, 1e-3, cpu, products=False)
    assert built.actual["batch_norm"] is False


@pytest.mark.slow
@pytest.mark.parametrize("flags", ["-mno-avx512f", "-mno-avx"])
def test_on_other_processors(flags: str, tmp_path: Path) -> None:
    """Vectors of AVX2, and plain ones, as the compiler makes them."""
    if os.uname().machine not in ("x86_64", "AMD64"):
        pytest.skip("flags of another processor")
    code = (
        "from tests.fast import test_batch_norm as t\n"
        "for size in t.SIZES:\n"
        "    t.test_as_near_as_torchs(size, 'leaky')\n"
        "    t.test_bf16_is_as_near_as_torchs(size)\n"
    )
    compiler = os.environ.get("CXX", "g++")
    env = {**os.environ, "CXX": f"{compiler} {flags}", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
