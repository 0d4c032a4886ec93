"""A proof sees what is wrong: kernels, each with one of its lines broken."""

import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import vaebench
from tests.tiers import first
from vaebench.config import TrainConfig
from vaebench.fast.register import TECHNIQUES
from vaebench.proof.subject import Subject
from vaebench.proof.verify import Proof
from vaebench.system import toolchain


class Convolutions(nn.Module):
    """A small network with a convolution up and down, and batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.into = nn.Sequential(
            nn.Conv2d(1, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.LeakyReLU(), nn.Conv2d(8, 20, 3, 2, 1),
            nn.BatchNorm2d(20), nn.LeakyReLU(), nn.Flatten(), nn.Linear(20 * 49, 6),
        )  # fmt: skip
        self.out = nn.Sequential(
            nn.Linear(3, 20 * 49), nn.Unflatten(1, (20, 7, 7)), nn.BatchNorm2d(20), nn.LeakyReLU(),
            nn.ConvTranspose2d(20, 8, 3, 2, 1, 1), nn.BatchNorm2d(8), nn.LeakyReLU(),
            nn.ConvTranspose2d(8, 1, 3, 2, 1, 1), nn.Flatten(),
        )  # fmt: skip

    def encode(self, x: Tensor) -> Any:
        return self.into(x.view(-1, 1, 28, 28)).chunk(2, 1)

    def decode(self, z: Tensor) -> Any:
        return self.out(z)


class Soft(nn.Module):
    """Soft activations, and a standard deviation by softplus."""

    def __init__(self) -> None:
        super().__init__()
        self.into = nn.Sequential(
            nn.Linear(784, 30), nn.ELU(), nn.Linear(30, 20), nn.Sigmoid(), nn.Linear(20, 8)
        )
        self.out = nn.Sequential(nn.Linear(4, 20), nn.Softplus(), nn.Linear(20, 784))

    def encode(self, x: Tensor) -> Any:
        mu, raw = self.into(x.flatten(1)).chunk(2, 1)
        return mu, 2 * torch.log(nn.functional.softplus(raw))

    def decode(self, z: Tensor) -> Any:
        return self.out(z)


class Smooth(nn.Module):
    """Activations whose derivative is not of the value."""

    def __init__(self) -> None:
        super().__init__()
        self.into = nn.Sequential(nn.Linear(784, 30), nn.SiLU(), nn.Linear(30, 8))
        self.out = nn.Sequential(nn.Linear(4, 20), nn.GELU(), nn.Linear(20, 784))

    def encode(self, x: Tensor) -> Any:
        return self.into(x.flatten(1)).chunk(2, 1)

    def decode(self, z: Tensor) -> Any:
        return self.out(z)


def _linear() -> nn.Module:
    return vaebench.VAE(hidden_dims=(48,), latent_dim=6)


def _gated() -> nn.Module:
    return vaebench.VAE(
        hidden_dims=(48,), latent_dim=6, activation="gated", logvar_range=(-0.02, 0.02)
    )


@dataclass(frozen=True)
class Broken:
    """One line of a kernel, another in its place, and the level that tells first."""

    techniques: tuple[str, ...]
    file: str
    line: str
    by: str
    level: str = "L1"
    make: Callable[[], nn.Module] = _linear
    options: Mapping[str, Any] = field(default_factory=dict)


SGD = {"optimizer": "sgd", "momentum": 0.9, "clip_norm": 1.0}
NATIVE, NORM = ("compile", "native"), ("products", "batch_norm")
BROKEN = [
    Broken(NATIVE, "rules.h", "m = m_old * m + m_new * g;", "m = m_old * m + m_old * g;"),
    Broken(NATIVE, "rules.h", "v = v_old * v + v_new * (g * g);\n    if (kept",
           "v = v_old * v + v_new * abs(g);\n    if (kept"),
    Broken(NATIVE, "rules.h", "*o.lr / (1 - std::pow(o.beta1, step))", "*o.lr"),
    Broken(NATIVE, "rules.h", "change = m = m_old * m + change;", "change = m_old * m + change;",
           options=SGD),
    Broken(NATIVE, "native_backward.h", "rule.shortened = factor < 1 ? factor",
           "rule.shortened = factor < 1 ? 1", options=SGD),
    Broken(NATIVE, "activations.h", "(h > 0 ? broadcast(1) : broadcast(slope))",
           "(h >= 0 ? broadcast(1) : broadcast(slope))"),
    Broken(NATIVE, "activations.h", "default: return h > 0 ? broadcast(1) : h + slope;",
           "default: return h > 0 ? broadcast(1) : h;", make=Soft),
    Broken(NATIVE, "activations.h", "return -expm1(-h);", "return 1.0f - h;", make=Soft),
    Broken(NATIVE, "activations.h", "return h * (1.0f - h);", "return h;", make=Soft),
    Broken(NATIVE, "activations.h", "return share + h * share * (1.0f - share);", "return share;",
           make=Smooth),
    Broken(NATIVE, "activations.h", "return normal_share(h) + 0.39894228f * h",
           "return normal_share(h) + 0.3f * h", make=Smooth),
    Broken(NATIVE, "activations.h", "sum = sum * t - 0.284496736f;", "sum = sum * t - 0.28f;",
           make=Smooth),
    Broken(NATIVE, "native_backward.h", "through * before * (1.0f - gate)", "through * before",
           make=_gated),
    Broken(NATIVE, "native_backward.h", "grad = through;", "grad = grad;", make=_gated),
    Broken(NATIVE, "native.h", "free > (float)net.highest ? vec{} : grad", "false ? vec{} : grad",
           make=_gated),
    Broken((*NATIVE, "sparse"), "native_forward.h", "before[i] = gates ? square[i]",
           "before[i] = !gates ? square[i]", make=Smooth),
    Broken(NATIVE, "native.h", "return 2.0f * sigmoid(h) / (softplus(h) + (float)net.least_std);",
           "return 2.0f * sigmoid(h);", make=Soft),
    Broken(NATIVE, "native_forward.h", "m * m + expm1(l) - l,", "m * m + expm1(l),"),
    Broken(NATIVE, "native_forward.h", "s = expm1(0.5f * l) + 1.0f", "s = expm1(l) + 1.0f"),
    Broken(NATIVE, "native_forward.h", "at(to + place) = x + layer.bias[feature];",
           "at(to + place) = x;"),
    Broken((*NATIVE, "sparse"), "native_forward.h", "if (!p[0] && (count < G || !p[1])) return;",
           "if (!p[0]) return;"),
    Broken(NATIVE, "bernoulli.h", "return (l < 0 ? e * share : share) - x;", "return share - x;"),
    Broken(NORM, "batch_norm.cpp", "b += g * (off * c[n].inverse);", "b += g * off;",
           make=Convolutions),
    Broken(NORM, "batch_norm.cpp", "shift[c] = sums[c] / parts.rows,",
           "shift[c] = sums[c] / (parts.rows - 9),", make=Convolutions),
    Broken(("products",), "conv_apply.h", "on.bias && n < width", "on.bias && n < 0 * width",
           make=Convolutions),
    Broken(("products",), "conv.cpp", "sum[n] += load_numbers(", "sum[n] += 0.9f * load_numbers(",
           make=Convolutions),
    Broken(("products",), "conv_apply.h", "start[0][n] + tree_sum(", "2 * start[0][n] + tree_sum(",
           make=Convolutions),
    Broken(("products",), "conv.h", "past = max(first, min(g.small[axis],",
           "past = max(first, min(g.small[axis] - 1,", make=Convolutions),
]  # fmt: skip


@pytest.fixture
def kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the kernels' folder, from which they are built while the test lasts."""
    folder = tmp_path / "kernels"
    shutil.copytree(toolchain.SOURCES, folder)
    monkeypatch.setattr(toolchain, "SOURCES", folder)
    _forget()
    yield folder
    _forget()


def _forget() -> None:
    """Let kernels be built anew."""
    toolchain.load_kernels.cache_clear()
    for technique in TECHNIQUES:
        module = import_module(technique.module)
        for place in (module, getattr(module, "operators", module)):
            getattr(getattr(place, "_kernel", None), "cache_clear", lambda: None)()


@pytest.mark.parametrize("broken", first(1, BROKEN), ids=lambda b: b.line)
def test_a_broken_line_is_seen(broken: Broken, kernels: Path, strokes: Tensor) -> None:
    source = kernels / broken.file
    text = source.read_text()
    assert text.count(broken.line) == 1
    source.write_text(text.replace(broken.line, broken.by))
    torch.manual_seed(1)
    config = TrainConfig(batch_size=32, device="cpu", **broken.options)
    subject = Subject(broken.make(), strokes, None, config)
    proof = Proof(subject)
    assert proof.compare(broken.techniques), proof.reason
    levels = {check.level for check in proof.checks if not check.passed}
    assert broken.level in levels


@pytest.mark.parametrize("options", [{}, SGD], ids=["adam", "sgd"])
@pytest.mark.parametrize("make", [_linear, Soft, Smooth, _gated, Convolutions])
def test_whole_kernels_pass(
    make: Callable[[], nn.Module], options: dict[str, Any], strokes: Tensor
) -> None:
    """The same models, the same comparisons."""
    torch.manual_seed(1)
    config = TrainConfig(batch_size=32, device="cpu", **options)
    proof = Proof(Subject(make(), strokes, None, config))
    for techniques in {broken.techniques for broken in BROKEN if broken.make is make}:
        assert proof.compare(techniques), proof.reason
    assert [str(check) for check in proof.checks if not check.passed] == []
