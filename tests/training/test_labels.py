"""Labels in training: every engine hands each image's own to the model, and refuses others."""

import copy
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import vaebench
from tests.engines import PLAIN, problem_of
from vaebench.config import FastConfig
from vaebench.data.strokes import make_strokes
from vaebench.errors import InputError, ResourceError
from vaebench.fast.build import make_engine
from vaebench.models.base import BaseVAE
from vaebench.objective import Objective
from vaebench.reference import ReferenceEngine

BATCH, Z = 32, 3
CHANNELS = (4, 4, 8, 8, 8)


def _model(kind: str = "mlp") -> BaseVAE:
    torch.manual_seed(0)
    if kind == "conv":
        return vaebench.ConvVAE(hidden_dims=CHANNELS, latent_dim=Z, classes=10)
    return vaebench.VAE(hidden_dims=(24,), latent_dim=Z, classes=10)


def _data(n: int = 150) -> tuple[Tensor, Tensor]:
    """Images and labels; the last batch is short."""
    return make_strokes(n, seed=5)


def _epochs(engine: Any, images: int, samples: int = 1) -> list[float]:
    generator = torch.Generator().manual_seed(1)
    shape = (images, samples, Z) if samples > 1 else (images, Z)
    sums: list[float] = []
    for _ in range(2):
        order = torch.randperm(images, generator=generator)
        found = engine.epoch(order, torch.randn(shape, generator=generator))
        sums += [float(found.recon), float(found.kl)]
    return sums


def _reference(model: BaseVAE, objective: Objective) -> list[float]:
    images, labels = _data()
    engine = ReferenceEngine(
        model, images, labels=labels.long(), batch_size=BATCH, lr=1e-3, device=torch.device("cpu"),
        likelihood=objective.likelihood, bound=objective.bound, beta=objective.beta,
        sigma=objective.sigma,
    )  # fmt: skip
    return _epochs(engine, len(images), objective.samples)


def _freeze_what_batch_norm_undoes(model: nn.Module) -> None:
    """A bias before it has no gradient but rounding, of which Adam makes whole steps."""
    for module in model.modules():
        for layer, after in pairwise(module.children()):
            if isinstance(after, nn.BatchNorm2d) and getattr(layer, "bias", None) is not None:
                layer.bias.requires_grad_(False)


ENGINES: dict[str, tuple[FastConfig, bool]] = {
    "eager": (PLAIN, True),
    "streamed": (PLAIN, False),
    "native": (FastConfig(compile=True), True),
    "compiled": (FastConfig(compile=True, native=False), True),
    "compiled, streamed": (FastConfig(compile=True), False),
}


@pytest.mark.parametrize(
    ("kind", "engine"),
    [
        ("mlp", "eager"),
        ("mlp", "streamed"),
        ("conv", "eager"),
        ("conv", "streamed"),
        ("mlp", "native"),
        pytest.param("mlp", "compiled", marks=pytest.mark.slow),
        pytest.param("mlp", "compiled, streamed", marks=pytest.mark.slow),
    ],
)
def test_every_engine_is_the_reference(kind: str, engine: str) -> None:
    fast, resident = ENGINES[engine]
    images, labels = _data()
    model = _model(kind)
    _freeze_what_batch_norm_undoes(model)
    plain = copy.deepcopy(model)
    objective = Objective(model.likelihood)
    problem = problem_of(model, images, objective, BATCH, labels=labels.long(), resident=resident)
    built = make_engine(problem, fast)
    assert built.actual["compile"] is fast.compile
    assert built.actual["native"] is (engine == "native")
    assert built.actual["data_on"] == ("device" if resident else "host, streamed")
    if engine == "compiled, streamed":
        assert any("the kernel does not know" in note for note in built.notes)
    assert _epochs(built.engine, len(images)) == pytest.approx(
        _reference(plain, objective), rel=1e-3
    )
    for (name, p), q in zip(model.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=2e-4, msg=name)


def test_streamed_labels_give_the_same_bits() -> None:
    images, labels = _data()
    states = []
    for resident in (True, False):
        model = _model()
        problem = problem_of(
            model, images, batch_size=BATCH, labels=labels.long(), resident=resident
        )
        _epochs(make_engine(problem, PLAIN).engine, len(images))
        states.append(model.state_dict())
    assert all(torch.equal(t, states[1][name]) for name, t in states[0].items())


@pytest.mark.parametrize("bound", ["vae", "iwae"])
def test_each_of_several_samples_has_its_images_label(bound: str) -> None:
    images, labels = _data()
    objective = Objective(bound=bound, samples=3)
    model = _model()
    plain = copy.deepcopy(model)
    problem = problem_of(model, images, objective, BATCH, labels=labels.long())
    got = _epochs(make_engine(problem, PLAIN).engine, len(images), 3)
    assert got == pytest.approx(_reference(plain, objective), rel=1e-3)


def test_other_labels_train_another_model() -> None:
    images, labels = _data()
    elbos = []
    for given in (labels, labels, labels.roll(1)):
        history = vaebench.fit(
            _model(), images, labels=given, test_images=(images, given), epochs=2,
            batch_size=BATCH, device="cpu",
        )  # fmt: skip
        elbos.append(history.epochs[-1].test_elbo)
    assert elbos[0] == elbos[1] != elbos[2]


def test_evaluation_scores_an_image_under_its_own_label() -> None:
    images, labels = _data()
    model = _model()
    vaebench.fit(model, images, labels=labels, epochs=6, batch_size=BATCH, device="cpu", lr=1e-2)
    right = vaebench.evaluate(model, images, labels=labels).elbo
    wrong = vaebench.evaluate(model, images, labels=(labels + 1) % 10).elbo
    assert right > wrong + 1


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "none": ({}, "takes labels, and was given none"),
    "out of range": ({"labels": torch.full((150,), 10)}, "between 10 and 10, and the model has 10"),
    "too few": ({"labels": torch.zeros(149)}, r"labels are of shape \(149,\), for 150 images"),
    "floats": ({"labels": np.zeros(150)}, "takes one whole number for each image"),
    "of the test images": (
        {"labels": torch.zeros(150).long(), "test_images": (_data(20)[0], torch.full((20,), 11))},
        "the test images' labels lie between 11 and 11",
    ),
    "not for both": (
        {"labels": torch.zeros(150).long(), "test_images": _data(20)[0]},
        "for the images or for the test images, not for both",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_labels_that_cannot_be(name: str) -> None:
    kwargs, said = REFUSED[name]
    with pytest.raises(InputError, match=said):
        vaebench.fit(_model(), _data()[0], batch_size=BATCH, device="cpu", **kwargs)


def test_labels_for_a_model_that_takes_none_or_none_where_they_were_promised() -> None:
    images, labels = _data()
    with pytest.raises(InputError, match="this VAE takes no labels: make it with classes"):
        vaebench.fit(vaebench.VAE(), images, labels=labels, device="cpu")
    with pytest.raises(InputError, match=r"conditional is set, .* give labels="):
        vaebench.fit(vaebench.VAE(), images, conditional=True, device="cpu")


class Greedy(vaebench.VAE):
    """Asks for memory as a device short of it would refuse: above 40 images."""

    def encode(self, x: Tensor, y: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if len(x) > 40:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return super().encode(x, y)


def test_what_fits_into_memory_is_found_with_labels_too() -> None:
    images, labels = _data()
    model = Greedy(hidden_dims=(9,), latent_dim=2, classes=10)
    with pytest.raises(ResourceError, match="one of 37 does"):
        vaebench.fit(model, images, labels=labels, batch_size=150, device="cpu")
