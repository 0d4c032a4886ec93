"""Scores by the native kernel: the model's own, to rounding, whatever the sizes."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.fast import fully_connected as nets
from tests.fast.natives import images_of
from vaebench import VAE, evaluate, evaluation
from vaebench.data.images import to_unit
from vaebench.fast.chain.score import Scores, scores_of
from vaebench.models.adapt import adapted
from vaebench.models.protocol import as_vae
from vaebench.objective import Objective

CASES: dict[str, tuple[Callable[[], nn.Module], int, Objective]] = {
    "default": (lambda: VAE((6, 6), (40,), 3), 300, Objective()),
    "one of each": (lambda: VAE((6, 6), (1,), 1), 1, Objective()),
    "deep": (lambda: VAE((6, 6), (33, 20, 18), 5, "tanh"), 129, Objective()),
    "gated": (lambda: VAE((6, 6), (30, 17), 3, "gated"), 128, Objective()),
    "gaussian": (
        lambda: VAE((6, 6), (40,), 3, likelihood="gaussian"), 50, Objective("gaussian", sigma=0.3)
    ),
    "a sigmoid at the end": (nets.Plain, 77, Objective()),
    "silu and gelu": (nets.Smooth, 77, Objective()),
    "several activations": (nets.Several, 77, Objective()),
    "gates in two layers": (nets.Gated, 77, Objective()),
    "dropout, which sleeps": (nets.Noisy, 77, Objective()),
}  # fmt: skip


def _scored(
    model: nn.Module, images: Tensor, aim: Objective, labels: Tensor | None = None
) -> tuple[Scores | None, Tensor, Tensor]:
    """The kernel for a model; z for each image; what the model itself makes of them."""
    y = () if labels is None else (labels,)
    model.eval()
    x, few = to_unit(images), [t[:2] for t in y]
    vae, _ = adapted(model, x[:2].clone(), aim.likelihood, *few, training=False)
    with torch.no_grad():
        mu, _ = as_vae(vae).encode(x, *y)
        z = torch.randn(len(x), mu.shape[1])
        want = aim.log_likelihood(as_vae(vae).decode(z, *y), x)
        scores = scores_of(model, as_vae(vae), aim, images, labels, z.shape[1])
    return scores, z, want


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32], ids=["bytes", "floats"])
@pytest.mark.parametrize("case", CASES)
def test_equals_the_models_own(case: str, dtype: torch.dtype) -> None:
    make, count, aim = CASES[case]
    torch.manual_seed(2)
    scores, z, want = _scored(make(), images_of(count, (6, 6), 0.4, dtype), aim)
    assert scores
    torch.testing.assert_close(scores(z), want, rtol=1e-5, atol=1e-5)
    if count > 1:  # each image has its own
        assert not torch.allclose(scores(z.roll(1, 0)), want)


@pytest.mark.parametrize("one_hot", [True, False], ids=["classes", "numbers"])
def test_labels(one_hot: bool) -> None:
    torch.manual_seed(2)
    labels = torch.randint(5, (90,)) if one_hot else F.one_hot(torch.arange(90) % 5, 5).float()
    images = images_of(90, (6, 6), 0.4, torch.uint8)
    scores, z, want = _scored(nets.Conditional(one_hot), images, Objective(), labels)
    assert scores
    torch.testing.assert_close(scores(z), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("logit", [1e4, -1e4])
def test_huge_logits(logit: float) -> None:
    model = VAE((6, 6), (16,), 2)
    model.output.bias.data.fill_(logit)
    scores, z, want = _scored(model, images_of(40, (6, 6), 0.3, torch.float32), Objective())
    assert scores
    torch.testing.assert_close(scores(z), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "make", [nets.Skipping, nets.hooked, nets.overridden, nets.Nearly, nets.SmoothGated]
)
def test_other_models_score_themselves(make: Callable[[], nn.Module]) -> None:
    scores, _, _ = _scored(make(), images_of(4, (6, 6), 0.3, torch.uint8), Objective())
    assert scores is None


def test_other_likelihoods_are_the_models_own() -> None:
    model = VAE((6, 6), (16,), 2, likelihood="continuous-bernoulli")
    images = images_of(4, (6, 6), 0.3, torch.uint8)
    assert _scored(model, images, Objective("continuous-bernoulli"))[0] is None


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_do_not_matter(threads: int) -> None:
    before = torch.get_num_threads()
    try:
        found = []
        for count in (2, threads):
            torch.set_num_threads(count)
            torch.manual_seed(2)
            images = images_of(700, (6, 6), 0.4, torch.uint8)
            scores, z, _ = _scored(VAE((6, 6), (40,), 3), images, Objective())
            assert scores
            found.append(scores(z))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)


class Timid(nets.Plain):
    """Keeps from encoding what it needs in decoding: each batch is decoded right after."""

    def encode(self, x: Tensor) -> Any:
        """Keep."""
        self.kept = x.flatten(1).mean(1, keepdim=True)
        return super().encode(x)

    def decode(self, z: Tensor) -> Tensor:
        """Use it."""
        return super().decode(z + 0 * self.kept)


class Counting(nets.Plain):
    """Decodes otherwise each time."""

    count = 0

    def decode(self, z: Tensor) -> Tensor:
        """Count."""
        self.count += 1
        return super().decode(z)


def _watched() -> nn.Module:
    """Somebody wants to be told of every pass through a layer."""
    model = nets.Plain()
    model.fc4.register_forward_hook(lambda *_: None)
    return model


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Scores]:
    """Kernels are asked for however short it takes, and always faster; those that were called."""
    called: list[Scores] = []
    plain = Scores.__call__

    def call(self: Scores, z: Tensor) -> Tensor:
        called.append(self)
        return plain(self, z)

    monkeypatch.setattr(Scores, "__call__", call)
    monkeypatch.setattr(evaluation, "PAYS", 0.0)
    monkeypatch.setattr(evaluation, "_faster", lambda *_: True)
    return called


@pytest.mark.parametrize(
    "make",
    [
        nets.Plain,
        lambda: VAE((6, 6), (16,), 3, "gated"),
        lambda: VAE((6, 6), (16,), 3, prior="vamp", pseudo_inputs=5),
        Timid,
    ],
    ids=["theirs", "gated", "vamp", "timid"],
)
def test_estimates_are_the_same(
    make: Callable[[], nn.Module], asked: list[Scores], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(1)
    model, images = make(), images_of(150, (6, 6), 0.4, torch.uint8)
    fast = evaluate(model, images, samples=20, batch_size=64)
    assert len(asked) == (0 if isinstance(model, Timid) else 1 + 19)  # compared, then used
    monkeypatch.setattr(evaluation, "PAYS", 1e9)
    plain = evaluate(model, images, samples=20, batch_size=64)
    assert fast.log_likelihood == pytest.approx(plain.log_likelihood, rel=1e-6)
    assert fast.recon == pytest.approx(plain.recon, rel=1e-6)
    assert (fast.kl, fast.kl_per_latent) == (plain.kl, plain.kl_per_latent)


class Choosing(nets.Plain):
    """Decodes otherwise where a z is far off."""

    def decode(self, z: Tensor) -> Any:
        return super().decode(z if z.abs().max() < 1e9 else -z)


class Printing(nets.Plain):
    """Says what it does."""

    def decode(self, z: Tensor) -> Any:
        print("decodes")
        return super().decode(z)


@pytest.mark.parametrize("make", [Counting, _watched, Choosing, Printing])
def test_who_sees_each_z_still_does(make: Callable[[], Any], asked: list[Scores]) -> None:
    evaluate(make(), images_of(50, (6, 6), 0.4, torch.uint8), samples=8)
    assert not asked


def test_a_kernel_that_would_not_pay_is_not_asked_for(
    asked: list[Scores], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "PAYS", 20.0)
    evaluate(VAE((6, 6), (16,), 3), images_of(50, (6, 6), 0.4, torch.uint8), samples=60)
    assert not asked


def test_a_kernel_that_is_wrong_is_not_used(
    asked: list[Scores], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, images = VAE((6, 6), (16,), 3), images_of(150, (6, 6), 0.4, torch.uint8)
    right = evaluate(model, images, samples=3)
    monkeypatch.setattr(Scores, "__call__", lambda self, z: torch.full((len(z),), -1.0))
    found = evaluate(model, images, samples=6)
    assert found.recon == pytest.approx(right.recon, rel=0.05)
    assert found.recon < -10
