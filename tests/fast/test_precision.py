"""What numbers are rounded to: bfloat16, TF32, float32; and denormal ones flushed."""

import platform
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.engines import make_engine
from tests.fast.small import CPU
from vaebench import evaluate, fit
from vaebench.fast import amp as precision
from vaebench.fast import flush_denormal as denormals
from vaebench.fast import tf32
from vaebench.models.mlp import VAE
from vaebench.objective import Objective
from vaebench.system.device import full_float32
from vaebench.system.worker import Worker


def test_flush_reaches_every_worker_and_leaves_the_caller_alone() -> None:
    tiny = torch.full((1 << 20,), 1e-38)

    def zeros() -> int:
        return int(((tiny * 1e-3).view(torch.int32) == 0).sum())

    assert zeros() == 0  # and the caller's pool of workers exists from here on
    with Worker([denormals.enter]) as worker:
        assert worker.run(zeros) == len(tiny)
    with Worker() as worker:
        assert worker.run(zeros) == 0
    assert zeros() == 0


@pytest.mark.parametrize(
    ("gain", "name"), [(0.1, "float32"), (1.1, "float32"), (1.5, "bf16"), (8.0, "bf16")]
)
def test_amp_auto_follows_the_measurement(
    gain: float, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "bf16_gain", lambda device: gain)
    monkeypatch.setattr(precision, "emulates_bf16", lambda device: False)
    chosen = precision.choose("auto", CPU)
    assert chosen.name == name
    assert f"{gain:.2g}x" in chosen.reason
    assert precision.choose("bf16", CPU).name == "bf16"
    assert precision.choose(None, CPU).name == "float32"


def test_amp_auto_needs_the_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    """However fast a busy machine makes the products look."""
    monkeypatch.setattr(precision, "bf16_gain", lambda device: 5.0)
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: False)
    chosen = precision.choose("auto", CPU)
    assert (chosen.name, "no bfloat16 instructions" in chosen.reason) == ("float32", True)
    assert precision.choose("bf16", CPU).name == "bf16"
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert precision.choose("auto", CPU).name == "bf16"


@pytest.mark.parametrize(
    ("plain", "bf16", "name"), [(1.0, 1.2, "float32"), (1.0, 0.99, "float32"), (1.0, 0.5, "bf16")]
)
def test_amp_auto_on_a_gpu_follows_whole_steps(plain: float, bf16: float, name: str) -> None:
    chosen = precision.by_steps({None: plain, torch.bfloat16: bf16}.__getitem__)
    assert chosen.name == name
    assert f"{plain / bf16:.2g}x a float32 step's speed" in chosen.reason


def test_tf32_is_on_within_its_context_alone() -> None:
    before = torch.get_float32_matmul_precision()
    assert before != "high"
    with tf32.tf32_products():
        assert torch.get_float32_matmul_precision() == "high"
    assert torch.get_float32_matmul_precision() == before
    with pytest.raises(ZeroDivisionError), tf32.tf32_products():
        raise ZeroDivisionError
    assert torch.get_float32_matmul_precision() == before


def test_convolutions_are_float32_where_tf32_is_not_asked_for(strokes: Tensor) -> None:
    """Torch's default rounds them, on CUDA; who asks for TF32 gets that, too."""
    cudnn: Any = torch.backends.cudnn
    seen: list[str] = []

    def step(*words: Tensor) -> None:
        seen.append(cudnn.conv.fp32_precision)
        assert cudnn.allow_tf32 == (seen[-1] == "tf32")  # torch has two words for it

    class Seen(VAE):
        def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
            step()
            return super().encode(x)

    with full_float32():
        step()
    with tf32.tf32_products():
        step()
    assert seen == ["none", "tf32"]
    model = Seen(hidden_dims=(16,), latent_dim=2)
    evaluate(model, strokes[:10])
    assert set(seen[2:]) == {"none"}
    seen.clear()
    fit(model, strokes[:10], engine="reference", epochs=1, batch_size=5, device="cpu")
    assert seen.count("none") == 2  # steps
    assert cudnn.conv.fp32_precision == cudnn.rnn.fp32_precision == "tf32"


def test_tf32_where_there_is_none_is_said(strokes: Tensor) -> None:
    model = VAE(hidden_dims=(16,), latent_dim=2)
    built = make_engine(model, strokes, Objective(), 64, 1e-3, CPU, tf32=True)
    assert built.actual["tf32"] is False
    assert built.notes == ["--tf32: cpu has no such products; trained in float32"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("graph", [False, True])
def test_cuda_tf32_changes_the_products_and_little_else(strokes: Tensor, graph: bool) -> None:
    device = torch.device("cuda", 0)
    if not tf32.applies(device):
        pytest.skip("needs a GPU with TF32")
    found = {}
    for rounded in (False, True):
        torch.manual_seed(1)
        model = VAE(hidden_dims=(48,), latent_dim=6)
        built = make_engine(
            model, strokes, Objective(), 64, 1e-3, device, tf32=rounded, graph=graph
        )
        assert built.actual["tf32"] is rounded
        order = torch.arange(len(strokes), device=device)
        found[rounded] = float(built.engine.epoch(order, built.engine.no_noise(len(order))).recon)
    assert found[True] != found[False]
    assert found[True] == pytest.approx(found[False], rel=2e-3)


def test_the_probe_measures() -> None:
    assert precision.bf16_gain(CPU, budget=0.02) > 0
