"""L1 to L3: every technique of the register against the reference, on the same images and numbers.

The bars are those of the design's table. A gradient is judged against float64: compiled code
rounds in another order than eager code and is often nearer the truth, so it may differ from eager
as long as it errs no more. A technique without a passing test here is not timed.
"""

import copy
import dataclasses
from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.engines import PLAIN, make_engine
from tests.fast.tape import TapeCapture
from vaebench.fast import build
from vaebench.fast.adam import AdamState
from vaebench.fast.admit import Verdict
from vaebench.fast.build import Built
from vaebench.fast.register import TECHNIQUES, Technique
from vaebench.fast.step import StepEngine
from vaebench.models.mlp import VAE
from vaebench.objective import Objective
from vaebench.reference import ReferenceEngine

BATCH, LR, Z = 64, 1e-3, 6


IN_REGISTER = {technique.name: technique for technique in TECHNIQUES}


def _alone(technique: Technique) -> str:
    """A case's name: the technique, after the one that it needs."""
    return f"{technique.needs}+{technique.name}" if technique.needs else technique.name


# A case is named by its techniques; all others are off. One for each technique, and some together.
# Those for convolutions have a model, and bars, of their own: test_products.py, test_batch_norm.py.
_ENGINES = [t for t in TECHNIQUES if t.kind != "thread" and "products" not in (t.name, t.needs)]
_SINGLE = {_alone(t): t.rounds for t in _ENGINES}
_TOGETHER = {
    "compile+native+sparse": False,
    "compile+graph": False,
    "compile+fused_likelihood+amp": True,
    "compile+native+sparse+amp": True,
    "amp+graph": True,
}
CASES = {
    case: rounds
    for case, rounds in (_SINGLE | _TOGETHER).items()
    if set(case.split("+")) <= set(IN_REGISTER)
}
FLOAT32 = ["plain", *(case for case, rounds in CASES.items() if not rounds)]
ROUNDED = [case for case, rounds in CASES.items() if rounds]


class BatchNormVAE(nn.Module):
    """Somebody else's VAE: batch norm, no attributes but encode and decode."""

    def __init__(self) -> None:
        super().__init__()
        self.into = nn.Sequential(nn.Linear(784, 48), nn.BatchNorm1d(48), nn.LeakyReLU())
        self.heads = nn.Linear(48, 2 * Z)
        self.out = nn.Sequential(
            nn.Linear(Z, 48), nn.BatchNorm1d(48), nn.Tanh(), nn.Linear(48, 784)
        )

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mu, logvar = self.heads(self.into(x.flatten(1))).chunk(2, 1)
        return mu, logvar

    def decode(self, z: Tensor) -> Any:
        return self.out(z)


MODELS: dict[str, tuple[Callable[[], nn.Module], Objective]] = {
    "mlp": (lambda: VAE(hidden_dims=(48,), latent_dim=Z), Objective()),
    "deep-tanh-gaussian-beta": (
        lambda: VAE(hidden_dims=(40, 24), latent_dim=Z, activation="tanh", likelihood="gaussian"),
        Objective("gaussian", sigma=0.4, beta=2.0),
    ),
    "batch-norm": (BatchNormVAE, Objective()),
}


def _with_models(cases: list[str]) -> list[Any]:
    """Each case with each model: (name, case). Compiling takes seconds: the mlp stands for all."""
    slow = pytest.mark.slow
    return [
        pytest.param(name, case, marks=[slow] * (name != "mlp" and "compile" in case))
        for name in MODELS
        for case in cases
    ]


def _model(name: str) -> tuple[nn.Module, Objective]:
    make, objective = MODELS[name]
    torch.manual_seed(1)
    return make(), objective


def _build(
    case: str, model: nn.Module, images: Tensor, objective: Objective, lr: float, device: str
) -> Built:
    """Build the engine of a case: its techniques, and no others."""
    asked = {t: "bf16" if IN_REGISTER[t].option else True for t in _techniques(case)}
    off = {name: getattr(PLAIN, name) for name in IN_REGISTER}
    return make_engine(model, images, objective, BATCH, lr, torch.device(device), **(off | asked))


def _techniques(case: str) -> list[str]:
    return [] if case == "plain" else case.split("+")


def _fast(
    case: str, model: nn.Module, images: Tensor, objective: Objective, device: torch.device
) -> StepEngine:
    built = _build(case, model, images, objective, LR, str(device))
    # No silent stand-in: what is judged here is what its name says.
    for name, technique in IN_REGISTER.items():
        if technique.kind == "thread":
            continue
        running = built.actual[name] != technique.idle
        expected = name in _techniques(case) and _helps(name, case, model, objective)
        assert running is expected, (name, built.notes)
    return built.engine


def _helps(name: str, case: str, model: nn.Module, objective: Objective) -> bool:
    """Whether a technique has anything to do for a model, on a device that it is for."""
    native = "native" in _techniques(case) and isinstance(model, VAE)
    if name == "native":
        return native
    if name == "sparse":
        return native or "amp" not in _techniques(case)
    return name != "fused_likelihood" or (objective.likelihood == "bernoulli" and not native)


def _skip_elsewhere(case: str, model: nn.Module, device: str) -> None:
    """Skip a case where one of its techniques cannot run, whatever the model."""
    for name in _techniques(case):
        if device not in IN_REGISTER[name].devices and (device, name) != ("cpu", "graph"):
            pytest.skip(f"{name} is not for {device}")
    if "triton" in _techniques(case) and not _simple(model):
        pytest.skip("Triton's kernels are for a VAE with one hidden layer and ReLU")
    native_bf16 = {"native", "amp"} <= set(_techniques(case))
    if native_bf16 and not import_module(IN_REGISTER["native"].module).supports_bf16():
        pytest.skip("the native steps multiply bfloat16 where the CPU has instructions for it")


def _simple(model: nn.Module) -> bool:
    return isinstance(model, VAE) and [type(m) for m in model.encoder] == [nn.Linear, nn.ReLU]


@pytest.fixture(autouse=True)
def _no_race(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train compiled wherever it is asked for: on a busy machine the race may decide otherwise."""
    monkeypatch.setattr(Verdict, "wins", property(lambda _: True))


@pytest.fixture(autouse=True)
def _graphs(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the CPU stand in for CUDA: eager steps are replayed from a tape of operators."""
    names = request.fixturenames
    case = request.getfixturevalue("case")
    device = request.getfixturevalue("device").type if "device" in names else "cpu"
    if "graph" not in _techniques(case):
        return
    graph = import_module(IN_REGISTER["graph"].module)
    if device == "cpu":
        if "compile" in _techniques(case):
            pytest.skip("a compiled step has no operators to replay: needs a CUDA device")
        here = [
            dataclasses.replace(t, devices=("cpu",)) if t.name == "graph" else t for t in TECHNIQUES
        ]
        monkeypatch.setattr(build, "TECHNIQUES", here)
        monkeypatch.setattr(graph, "capture_for", lambda device: TapeCapture())
    # What is judged is whether they are equal; on models this small nothing else is certain.
    monkeypatch.setattr(graph.GraphEngine, "_race", lambda self: None)
    monkeypatch.setattr(graph.GraphEngine, "pays", True)


def _reference(
    model: nn.Module, images: Tensor, objective: Objective, device: torch.device
) -> ReferenceEngine:
    return ReferenceEngine(
        model,
        images,
        batch_size=BATCH,
        lr=LR,
        likelihood=objective.likelihood,
        sigma=objective.sigma,
        beta=objective.beta,
        device=device,
    )


def _numbers(n: int, images: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    torch.manual_seed(2)
    return torch.randperm(len(images))[:n].to(device), torch.randn(n, Z).to(device)


def _float64_reference(
    model: nn.Module, images: Tensor, objective: Objective, device: torch.device
) -> ReferenceEngine:
    return _reference(copy.deepcopy(model).double(), images.double() / 255, objective, device)


def _adam(engine: StepEngine) -> AdamState:
    assert isinstance(engine.optimizer, AdamState)
    return engine.optimizer


def _gradients(engine: StepEngine) -> list[Tensor]:
    """Adam's first moments start at zero, so after one step they are a tenth of the gradients."""
    return [m / 0.1 for m in _adam(engine).m]


def _rmse(a: Tensor, truth: Tensor) -> float:
    return (a.detach().double() - truth.detach()).square().mean().sqrt().item()


@pytest.mark.parametrize(("name", "case"), _with_models(FLOAT32))
def test_l1_one_step(name: str, case: str, images: Tensor, device: torch.device) -> None:
    model, objective = _model(name)
    _skip_elsewhere(case, model, device.type)
    order, noise = _numbers(BATCH, images, device)
    truth = _float64_reference(model, images, objective, device)
    plain = _reference(copy.deepcopy(model), images, objective, device)
    fast = _fast(case, model, images, objective, device)

    want, got = plain.epoch(order, noise), fast.epoch(order, noise)
    truth.epoch(order, noise.double())

    want_elbo, got_elbo = float(want.recon - want.kl), float(got.recon - got.kl)
    assert got_elbo == pytest.approx(want_elbo, rel=1e-5)
    names = [n for n, _ in model.named_parameters()]
    true_p, plain_p = list(truth.model.parameters()), list(plain.model.parameters())
    for i, (p, grad) in enumerate(zip(model.parameters(), _gradients(fast), strict=True)):
        true_grad, plain_grad = true_p[i].grad, plain_p[i].grad
        assert _rmse(grad, true_grad) <= 2 * _rmse(plain_grad, true_grad) + 1e-5, names[i]
        allowed = 2 * _rmse(plain_p[i], true_p[i]) + 1e-5
        if true_grad.abs().max() < 1e-12:
            # A bias's before batch norm is zero: Adam divides rounding by rounding, which on a
            # device may differ more than twofold. Sure is that no step is longer than this.
            allowed = max(allowed, LR)
        assert _rmse(p, true_p[i]) <= allowed, names[i]
    for (n, b), (_, want_b) in zip(model.named_buffers(), plain.model.named_buffers(), strict=True):
        torch.testing.assert_close(b, want_b, rtol=1e-5, atol=1e-6, msg=n)


def _eager_autocast(
    model: Any, objective: Objective, x: Tensor, eps: Tensor
) -> tuple[float, list[Tensor]]:
    """Autocast as its documentation shows it: forward under it, loss and backward outside."""
    with torch.autocast(x.device.type, torch.bfloat16):
        mu, logvar = model.encode(x)
        z = mu.float() + torch.exp(logvar.float() / 2) * eps
        output = model.decode(z)
    mu, logvar, output = mu.float(), logvar.float(), output.float().reshape(x.shape)
    if objective.likelihood == "bernoulli":
        recon = -F.binary_cross_entropy_with_logits(output, x, reduction="sum")
    else:
        recon = torch.distributions.Normal(output, objective.sigma).log_prob(x).sum()
    kl = -0.5 * torch.sum(1 + logvar - mu**2 - logvar.exp())
    grads = torch.autograd.grad(-(recon - objective.beta * kl) / len(x), list(model.parameters()))
    return (recon - kl).item(), list(grads)


@pytest.mark.parametrize(("name", "case"), _with_models(ROUNDED))
def test_l2_one_step(name: str, case: str, images: Tensor, device: torch.device) -> None:
    model, objective = _model(name)
    _skip_elsewhere(case, model, device.type)
    order, noise = _numbers(BATCH, images, device)
    truth = _float64_reference(model, images, objective, device)
    true_sums = truth.epoch(order, noise.double())
    true_grads = [p.grad for p in truth.model.parameters()]
    x = images[order.cpu()].to(device).float() / 255
    plain_elbo, plain_grads = _eager_autocast(
        copy.deepcopy(model).to(device).train(), objective, x, noise
    )
    fast = _fast(case, model, images, objective, device)
    got = fast.epoch(order, noise)

    true_elbo = float(true_sums.recon - true_sums.kl)
    got_elbo = float(got.recon - got.kl)
    assert got_elbo == pytest.approx(true_elbo, rel=2e-3)
    assert abs(got_elbo - true_elbo) <= 3 * abs(plain_elbo - true_elbo) + 2e-4 * abs(true_elbo)
    for (n, _), grad, plain_grad, true_grad in zip(
        model.named_parameters(), _gradients(fast), plain_grads, true_grads, strict=True
    ):
        assert _rmse(grad, true_grad) <= 3 * _rmse(plain_grad, true_grad) + 1e-4, n
        # A bias before batch norm has a gradient of zero, and rounding has any direction.
        if true_grad.abs().max() > 1e-6:
            cosine = F.cosine_similarity(grad.double().flatten(), true_grad.flatten(), dim=0)
            assert cosine >= 0.99, n


@pytest.mark.parametrize(("name", "case"), _with_models(FLOAT32))
def test_l3_trajectory(name: str, case: str, images: Tensor, device: torch.device) -> None:
    """Four epochs of 16 steps, the last one of each short."""
    model, objective = _model(name)
    _skip_elsewhere(case, model, device.type)
    plain = _reference(copy.deepcopy(model), images, objective, device)
    fast = _fast(case, model, images, objective, device)
    assert len(images) % BATCH
    generator = torch.Generator().manual_seed(5)
    for _ in range(4):
        order = torch.randperm(len(images), generator=generator).to(device)
        noise = torch.randn(len(images), Z, generator=generator).to(device)
        want, got = plain.epoch(order, noise), fast.epoch(order, noise)
        assert float(got.recon - got.kl) == pytest.approx(float(want.recon - want.kl), rel=1e-3)
        assert float(got.recon) == pytest.approx(float(want.recon), rel=1e-3)
        assert float(got.kl) == pytest.approx(float(want.kl), rel=1e-2)
    assert _adam(fast).step.item() == 64


@pytest.mark.parametrize("case", FLOAT32)
def test_a_wrong_step_would_be_seen(case: str, strokes: Tensor) -> None:
    """The bar of L3 is tight enough: a learning rate off by a tenth does not pass it."""
    cpu = torch.device("cpu")
    order, noise = _numbers(len(strokes), strokes, cpu)
    model, objective = _model("mlp")
    _skip_elsewhere(case, model, "cpu")
    plain = _reference(copy.deepcopy(model), strokes, objective, cpu)
    want = plain.epoch(order, noise)
    got = _build(case, model, strokes, objective, 1.1 * LR, "cpu").engine.epoch(order, noise)
    assert float(got.recon - got.kl) != pytest.approx(float(want.recon - want.kl), rel=1e-3)
