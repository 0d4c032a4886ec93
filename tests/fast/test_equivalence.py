"""L1 to L3: every technique of the register against the reference, on the same images and numbers.

By the package's own proof, which users run on their machines: ``vaebench/proof/rules.py`` has the
bars. A technique without a passing test here is not timed.
"""

import dataclasses
import functools
from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.fast.tape import TapeCapture
from vaebench.config import TrainConfig
from vaebench.fast import build
from vaebench.fast.register import TECHNIQUES, Technique
from vaebench.models.mlp import VAE
from vaebench.objective import Objective
from vaebench.proof import rules
from vaebench.proof.subject import Subject
from vaebench.proof.verify import Proof

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

    def quick(name: str, case: str) -> bool:
        techniques = set(case.split("+"))
        together = "amp" in techniques or {"native", "sparse"} & techniques == {"sparse"}
        return name == "mlp" and not together

    return [
        pytest.param(name, case, marks=[slow] * ("compile" in case and not quick(name, case)))
        for name in MODELS
        for case in cases
    ]


def _model(name: str) -> tuple[nn.Module, Objective]:
    make, objective = MODELS[name]
    torch.manual_seed(1)
    return make(), objective


def _techniques(case: str) -> list[str]:
    return [] if case == "plain" else case.split("+")


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


@functools.cache
def _proof(name: str, device: str, images: str, lr: float = LR) -> Proof:
    """The proofs of a model on images, which keep what they compare with."""
    model, objective = _model(name)
    config = TrainConfig(
        batch_size=BATCH, lr=lr, device=device, likelihood=objective.likelihood,
        sigma=objective.sigma, beta=objective.beta,
    )  # fmt: skip
    return Proof(Subject(model, _IMAGES[images], None, config))


_IMAGES: dict[str, Tensor] = {}


@pytest.mark.parametrize(("name", "case"), _with_models([*FLOAT32, *ROUNDED]))
def test_a_technique_is_equal(
    name: str, case: str, images: Tensor, device: torch.device, request: pytest.FixtureRequest
) -> None:
    """L1 and L3, or L2: one step, and several epochs, the last batch of each short."""
    model, objective = _model(name)
    _skip_elsewhere(case, model, device.type)
    which = str(request.node.callspec.params["images"])
    _IMAGES.setdefault(which, images)
    proof, techniques = _proof(name, device.type, which), _techniques(case)
    running = proof.compare(techniques)
    # No silent stand-in: what is judged here is what its name says.
    helping = all(_helps(t, case, model, objective) for t in techniques)
    assert bool(running) is helping, proof.reason
    if running:
        assert set(_techniques(running)) == set(techniques)
        checks = [check for check in proof.checks if check.case == running]
        assert {check.level for check in checks} == ({"L2"} if case in ROUNDED else {"L1", "L3"})
        assert [str(check) for check in checks if not check.passed] == []


@pytest.mark.parametrize("case", FLOAT32)
def test_a_wrong_step_would_be_seen(case: str, strokes: Tensor) -> None:
    """The bars are tight enough: a learning rate off by a tenth does not pass L1, nor L3."""
    _skip_elsewhere(case, _model("mlp")[0], "cpu")
    _IMAGES.setdefault("strokes", strokes)
    right, wrong = _proof("mlp", "cpu", "strokes"), _proof("mlp", "cpu", "strokes", 1.1 * LR)
    run = wrong.subject.build(_techniques(case))
    with run.engine.unchanged():
        got = run.step(right.batch)
    first = rules.one_step(right.moves, got, right.plains, right.truth)
    assert [what for what, off, bar in first if off > bar and what.startswith("param")]
    sums = [run.epoch(right.subject.numbers(epoch=i)) for i in range(right.subject.epochs)]
    late = rules.trajectory(1, sums[-1], right.epochs[-1])
    assert any(off > bar for _, off, bar in late)
