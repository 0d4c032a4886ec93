"""verify(): what it compares for which model, and what it says."""

import json
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import vaebench
from vaebench.config import TrainConfig
from vaebench.errors import InputError
from vaebench.proof.report import Check, Report, row
from vaebench.proof.subject import Subject
from vaebench.proof.verify import Proof

SMALL: dict[str, Any] = {"batch_size": 32, "device": "cpu"}
# All but what takes a compiler of torch's: that is in tests/fast/test_equivalence.py.
QUICK: dict[str, Any] = {"amp": "bf16", **SMALL}


class Labelled(nn.Module):
    """A model with labels, dropout, and a part that is not trained."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.into = nn.Sequential(nn.Linear(794, 20), nn.Tanh(), nn.Dropout(dropout))
        self.heads, self.out, self.unused = nn.Linear(20, 6), nn.Linear(13, 784), nn.Linear(2, 2)

    def encode(self, x: Tensor, y: Tensor) -> Any:
        return self.heads(self.into(torch.cat([x.flatten(1), y], 1))).chunk(2, 1)

    def decode(self, z: Tensor, y: Tensor) -> Any:
        return self.out(torch.cat([z, y], 1))


def _levels(report: Report) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for check in report.checks:
        found.setdefault(check.case, set()).add(check.level)
    return found


def test_what_is_compared(strokes: Tensor) -> None:
    seen: list[str] = []
    model = vaebench.VAE(hidden_dims=(20,), latent_dim=3)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    report = vaebench.verify(
        model, strokes, progress=lambda checks: seen.append(row(checks)), **QUICK
    )
    assert report.passed
    assert _levels(report) == {"objective": {"L0"}, "plain": {"L1", "L3"}, "amp": {"L2"}}
    assert len(seen) == 4
    what = {check.what for check in report.checks if check.case == "plain"}
    assert {"elbo", "grad encoder.0.weight", "param output.bias", "kl of epoch 4"} <= what
    for name, t in model.state_dict().items():
        assert torch.equal(t, before[name])
    report.require()
    assert "equal (" in report.table()
    assert "products" in report.left_out
    stored = json.loads(json.dumps(report.as_json(), allow_nan=False))
    assert stored["passed"] is True
    assert len(stored["checks"]) == len(report.checks)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_labels_and_draws_of_the_models_own(dropout: float, strokes: Tensor) -> None:
    torch.manual_seed(0)
    labels = nn.functional.one_hot(torch.arange(len(strokes)) % 10).float()
    report = vaebench.verify(Labelled(dropout), strokes, labels=labels, **QUICK)
    assert report.passed, report.table()
    assert ("L0" in report.left_out) is bool(dropout)
    assert not any("unused" in check.what for check in report.checks)


@pytest.mark.parametrize(
    "options",
    [
        {"optimizer": "adagrad", "lr": 0.01},
        {"optimizer": "adamax", "weight_decay": 0.01},
        {"optimizer": "rmsprop", "lr": 3e-4, "momentum": 0.5},
        {"optimizer": "sgd", "lr": 1e-2, "momentum": 0.9, "weight_decay": 0.1, "clip_norm": 3.0},
        {"optimizer": "sgd", "lr": 1e-2, "clip_value": 0.02},
        {"objective": "iwae", "samples": 3},
        {"likelihood": "gaussian", "sigma": 0.3, "beta": 2.0},
    ],
    ids=lambda options: " ".join(map(str, options.values())),
)
def test_every_objective_and_optimiser(options: dict[str, Any], strokes: Tensor) -> None:
    torch.manual_seed(0)
    model = vaebench.VAE(
        hidden_dims=(20,), latent_dim=3, likelihood=options.get("likelihood", "bernoulli")
    )
    report = vaebench.verify(model, strokes, **QUICK, **options)
    assert report.passed, report.table()


def test_switches_choose() -> None:
    images = torch.rand(40, 6, 6)
    model = vaebench.VAE((6, 6), hidden_dims=(8,), latent_dim=2)
    cases = set(_levels(vaebench.verify(model, images, amp="bf16", batch_size=16, device="cpu")))
    assert cases == {"objective", "plain", "amp"}


def test_bad_input_is_said(strokes: Tensor) -> None:
    model = vaebench.VAE(hidden_dims=(8,), latent_dim=2)
    with pytest.raises(InputError, match="batch_size is 2000, more than the 1000 images"):
        vaebench.verify(model, strokes, batch_size=2000, device="cpu")
    with pytest.raises(InputError, match="warp"):
        vaebench.verify(model, strokes, warp=True)

    class Uncopied(vaebench.VAE):
        def __deepcopy__(self, memo: Any) -> Any:
            raise RuntimeError("one of a kind")

    with pytest.raises(InputError, match=r"Uncopied cannot be copied \(one of a kind\)"):
        vaebench.verify(Uncopied(hidden_dims=(8,), latent_dim=2), strokes, **SMALL)


def test_a_report_says_what_failed() -> None:
    checks = [
        Check("sparse", "L1", "elbo", 1e-7, 1e-6),
        Check("sparse", "L1", "grad a", math.nan, 1.0),
    ]
    report = Report("a model", checks, {"graph": "no GPU"}, 1.0, {})
    assert not report.passed
    with pytest.raises(
        AssertionError, match="sparse, L1: grad a is off by nan, where 1 is let pass"
    ):
        report.require()
    table = report.table()
    assert "inf FAILS" in table
    assert "not compared: no GPU" in table
    assert "NOT EQUAL: sparse, L1: grad a" in table
    assert (
        json.loads(json.dumps(report.as_json(), allow_nan=False))["checks"][1]["difference"]
        == "nan"
    )
    assert not Report("a model", [], {}, 1.0, {}).passed
    with pytest.raises(AssertionError, match="nothing was compared"):
        Report("a model", [], {}, 1.0, {}).require()
    zero = Check("plain", "L1", "buffer count", 0.0, 0.0)
    assert zero.passed
    assert zero.share == 0
    assert Check("plain", "L1", "buffer count", 1.0, 0.0).share == math.inf


def test_an_engine_that_fails_is_not_equal(
    strokes: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is no technique that happens to have nothing to do."""

    def crash(*_: Any) -> None:
        raise RuntimeError("no such instruction")

    monkeypatch.setattr("vaebench.fast.native.NativeEngine.run", crash)
    model = vaebench.VAE(hidden_dims=(20,), latent_dim=3)
    options = {"compile": True, "sparse": False, "fused_likelihood": False, **SMALL}
    proof = Proof(Subject(model, strokes, None, TrainConfig(**options)))
    assert proof.compare(["compile", "native"]) == "compile+native"
    (check,) = proof.checks
    assert not check.passed
    assert "RuntimeError: no such instruction" in str(check)


def test_hooks_that_a_copy_does_not_have_are_told(strokes: Tensor) -> None:
    model = vaebench.VAE(hidden_dims=(20,), latent_dim=3)
    next(model.parameters()).register_hook(lambda grad: 2 * grad)
    assert "hooks" in vaebench.verify(model, strokes, **QUICK).left_out
