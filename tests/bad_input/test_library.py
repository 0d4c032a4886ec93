"""What TrainConfig, ``fit``, ``evaluate``, the loader and the model are handed: an InputError."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import vaebench
from tests.bad_input.refusal import COUNT, pixels, refusal, small_vae
from vaebench.config import TrainConfig

# TrainConfig, made by a caller of the library

CONFIGS: list[dict[str, Any]] = [
    *({"epochs": v} for v in (0, -3, True, 2.0, "3", None, math.nan, [3], 10**10, 10**5000)),
    *({"batch_size": v} for v in (0, True, 1.5, "128", None, b"128")),
    *({"latent_dim": v} for v in (0, 2.5, "2", None, (20,), 2**21)),
    *(
        {"hidden_dim": v}
        for v in ((), (0,), (400, -1), 400, "400", b"4", None, (4.0,), ((4,),), {4: 4})
    ),
    *({"threads": v} for v in (0, -1, 1.5, "2", True, 10**6)),
    *({"resume": v} for v in (b"run", "", 3, True)),
    *({"lr": v} for v in (0, -1e-3, math.nan, math.inf, "fast", None, True, 1j, 1e-40, [1])),
    *({"sigma": v, "likelihood": "gaussian"} for v in (0.0, -1, math.inf, "1", None, 1e200)),
    *({"beta": v} for v in (-0.5, math.nan, "1", None, 10**400)),
    *({"seed": v} for v in (-1, 2**63, 1.5, "0", None, math.nan, True)),
    *({"activation": v} for v in ("gelu", "", None, 3, ["relu"], torch.relu)),
    *({"likelihood": v} for v in ("laplace", 0, ("bernoulli",))),
    *({"workload": v} for v in ("gan", None, 1, [1])),
    *({"engine": v} for v in ("warp", None, True)),
    *({"amp": v} for v in ("fp16", "fp8", "", 16, True, torch.bfloat16)),
    *({"device": v} for v in ("", None, 0, torch.device("cpu"))),
    *({"data": v} for v in ("", None, 3, Path("x"))),
    *({"out": v} for v in ("", 3, Path("x"))),
    *({"data_dir": v} for v in ("", 3)),
    *({name: "yes"} for name in ("compile", "tf32", "graph", "flush_denormal", "plot", "quiet")),
    *({name: 1} for name in ("compile", "tf32", "graph", "flush_denormal", "plot", "quiet")),
    {"engine": "reference", "amp": "auto"},
    {"engine": "reference", "compile": True},
    {"engine": "reference", "tf32": True},
    {"sigma": 0.5, "likelihood": "bernoulli"},
]


@pytest.mark.parametrize("words", CONFIGS, ids=[str(i) for i in range(len(CONFIGS))])
def test_configs(words: dict[str, Any]) -> None:
    refusal(lambda: TrainConfig.of(**words), "--" + next(iter(words)).replace("_", "-"))


# What fit, evaluate, the loader and the model are handed

NOT_IMAGES: dict[str, tuple[Callable[[], Any], str]] = {
    "None": (lambda: None, "NoneType"),
    "a list": (lambda: [[0.5] * 16] * 20, "list"),
    "a ragged array": (lambda: np.array([[1.0], [1.0, 2.0]], dtype=object), "object"),
    "a text": (lambda: "mnist", "str"),
    "a generator": (lambda: (x for x in pixels()), "generator"),
    "a data loader": (lambda: vaebench.DeviceLoader(pixels(), batch_size=2), "DeviceLoader"),
    "0-d": (lambda: torch.tensor(0.5), "shape ()"),
    "1-d": (lambda: torch.zeros(16), "shape (16,)"),
    "5-d": (lambda: torch.zeros(2, 1, 1, 4, 4), "shape (2, 1, 1, 4, 4)"),
    "no images": (lambda: pixels()[:0], "empty"),
    "no pixels": (lambda: pixels()[:, :0], "empty"),
    "int64": (lambda: pixels().long(), "only uint8 and floats"),
    "int8": (lambda: pixels().to(torch.int8), "only uint8 and floats"),
    "bool": (lambda: pixels() > 99, "multiply by 255"),
    "complex": (lambda: torch.zeros(20, 4, 4, dtype=torch.complex64), "only uint8 and floats"),
    "quantised": (
        lambda: torch.quantize_per_tensor(torch.zeros(20, 4, 4), 0.1, 0, torch.quint8),
        "only uint8 and floats",
    ),
    "sparse": (lambda: torch.eye(16).to_sparse(), "to_dense"),
    "sparse rows": (lambda: torch.eye(16).to_sparse_csr(), "to_dense"),
    "nested": (lambda: torch.nested.nested_tensor([torch.ones(4), torch.ones(3)]), "to_dense"),
    "meta": (lambda: torch.zeros(20, 4, 4, device="meta"), "meta"),
    "NaN": (lambda: torch.full((20, 4, 4), math.nan), "NaN or infinite"),
    "one infinity": (
        lambda: torch.zeros(20, 16).index_fill(0, torch.tensor(3), math.inf),
        "(3, 0)",
    ),
    "a float64 too large": (lambda: np.full((20, 4, 4), 1e300), "NaN or infinite in float32"),
    "above 1": (lambda: torch.full((20, 4, 4), 255.0), "rescale"),
    "below 0": (lambda: torch.full((20, 4, 4), -0.01), "rescale"),
    "masked": (lambda: np.ma.masked_array(pixels().numpy(), mask=False), "masked"),
    "text in an array": (lambda: pixels().numpy().astype(str), "only uint8 and floats"),
    "of another size": (lambda: torch.zeros(20, 5, 4), "does not take images of shape (5, 4)"),
}
# A loader yields what it is given: values and shapes beyond a first dimension are not its affair.
NOT_LOADED = [
    "None", "a list", "a ragged array", "a text", "0-d", "no images", "no pixels", "int64", "bool",
    "complex", "quantised", "sparse", "nested", "meta",
]  # fmt: skip

FIT: list[tuple[dict[str, Any], str]] = [
    *(({"epochs": v}, "epochs is") for v in (0, -1, 2.5, "3", True, math.nan)),
    *(({"batch_size": v}, "batch_size is") for v in (0, -1, 2.5, "8", True, 21, 10**30)),
    *(({"lr": v}, "lr is") for v in (0.0, -1, math.nan, math.inf, "x", True, 1e300, 1e-300)),
    *(({"likelihood": v}, "likelihood is") for v in ("laplace", "", 3, ["bernoulli"])),
    *(({"sigma": v}, "sigma is") for v in (0, -1, math.nan, "x", None, 1e-200)),
    *(({"beta": v}, "beta is") for v in (-1, math.inf, "x", None)),
    *(({"seed": v}, "seed is") for v in (-1, 2**63, 1.5, "x")),
    *(({"device": v}, "auto, cpu, cuda") for v in ("abacus", "", None, 3.5, "meta", b"cpu")),
    *(({"compile": v}, "True or False") for v in ("no", 1)),
    *(({"flush_denormal": v}, "True or False") for v in ("no", 0)),
    *(({"graph": v}, "True or False") for v in ("no", 0)),
    *(({"tf32": v}, "True or False") for v in ("no", 0)),
    ({"engine": "reference", "tf32": True}, "drop tf32"),
    *(({"amp": v}, "amp") for v in ("fp16", "fp8", 16, "")),
    *(({"engine": v}, "fast, reference") for v in ("warp", None, 3)),
    *(({"on_epoch": v}, "function of one EpochRecord") for v in (3, "print")),
    ({"engine": "reference", "compile": True}, "drop compile, or use"),
    ({"engine": "reference", "amp": True}, "drop amp, or use"),
    ({"test_images": torch.zeros(3, 5, 4)}, "make them alike"),
    ({"test_images": torch.zeros(3, 16)}, "make them alike"),
    ({"test_images": torch.full((3, 4, 4), 2.0)}, "test_images holds values"),
]
EVALUATE: list[tuple[dict[str, Any], str]] = [
    *(({"samples": v}, "samples is") for v in (0, -1, 1.5, "x", None, True)),
    *(({"batch_size": v}, "batch_size is") for v in (0, -1, 1.5, "x")),
    *(({"seed": v}, "seed is") for v in (-1, 1.5, "x", 2**64)),
    *(({"likelihood": v}, "likelihood is") for v in ("laplace", "", 3)),
    *(({"sigma": v}, "sigma is") for v in (0, math.nan, "x")),
]
LOADER: list[tuple[dict[str, Any], str]] = [
    *(({"batch_size": v}, "batch_size is") for v in (0, -1, 2.5, "x", None, True)),
    *(({"seed": v}, "seed is") for v in (-1, 1.5, "x")),
    *(({"device": v}, "auto, cpu, cuda") for v in ("abacus", 3.5, "meta", "cuda:x")),
    *(({"transform": v}, "transform is") for v in ("crop", 3, [abs, "crop"])),
    *(({"generator": v}, "generator is") for v in (3, "cpu", torch.default_generator.__class__)),
    ({"seed": 1, "generator": torch.Generator()}, "give one of them"),
    *(({"as_tuple": v}, "True or False") for v in ("no", 1)),
    *(({"shuffle": v}, "True or False") for v in ("no", None)),
    *(({"drop_last": v}, "True or False") for v in ("no", 1)),
]
BESIDE: dict[str, tuple[Callable[[], Any], str]] = {
    "too short": (lambda: torch.zeros(19), "as long as"),
    "too long": (lambda: torch.zeros(21, 2), "as long as"),
    "a list": (lambda: [0] * 20, "list"),
    "0-d": (lambda: torch.tensor(3), "without dimensions"),
    "an array of text": (lambda: np.array(["a"] * 20), "give numbers"),
    "masked": (lambda: np.ma.masked_array(np.zeros(20)), "MaskedArray"),
    "sparse": (lambda: torch.eye(20).to_sparse(), "dense"),
}
RECIPES: list[dict[str, Any]] = [
    *({"image_shape": v} for v in ((), (4, 0), (4, -1), 16, "44", (4.0, 4), None, (4, None))),
    *({"hidden_dims": v} for v in ((), (0,), 400, "400", (4.5,), None, (2**21,), [4, "4"])),
    *({"latent_dim": v} for v in (0, -1, 2.0, "2", None, True, 10**12)),
    *({"activation": v} for v in ("gelu", None, ["relu"], nn.ReLU)),
    *({"likelihood": v} for v in ("laplace", None, {1: 2}, "Gaussian")),
]


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch's, of making such tensors
@pytest.mark.parametrize("name", NOT_IMAGES)
def test_images(name: str) -> None:
    make, said = NOT_IMAGES[name]
    model = small_vae()
    refusal(lambda: vaebench.fit(model, make(), batch_size=2, device="cpu"), said)
    refusal(lambda: vaebench.evaluate(model, make()), said)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", NOT_LOADED)
def test_loaded(name: str) -> None:
    make, _ = NOT_IMAGES[name]
    refusal(lambda: vaebench.DeviceLoader(make(), batch_size=2), "images")


@pytest.mark.parametrize(("words", "said"), FIT, ids=[str(i) for i in range(len(FIT))])
def test_fit(words: dict[str, Any], said: str) -> None:
    model = small_vae()
    before = [p.detach().clone() for p in model.parameters()]
    sound = {"device": "cpu", "epochs": 1, "batch_size": 8}
    refusal(lambda: vaebench.fit(model, pixels(), **{**sound, **words}), said)
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize(("words", "said"), EVALUATE, ids=[str(i) for i in range(len(EVALUATE))])
def test_evaluate(words: dict[str, Any], said: str) -> None:
    refusal(lambda: vaebench.evaluate(small_vae(), pixels(), **words), said)


@pytest.mark.parametrize(("words", "said"), LOADER, ids=[str(i) for i in range(len(LOADER))])
def test_loader(words: dict[str, Any], said: str) -> None:
    refusal(lambda: vaebench.DeviceLoader(pixels(), **{"batch_size": 2, **words}), said)


@pytest.mark.parametrize("name", BESIDE)
def test_beside_images(name: str) -> None:
    make, said = BESIDE[name]
    refusal(lambda: vaebench.DeviceLoader(pixels(), make(), batch_size=2), said)


@pytest.mark.parametrize("words", RECIPES, ids=[str(i) for i in range(len(RECIPES))])
def test_recipes(words: dict[str, Any]) -> None:
    refusal(lambda: vaebench.VAE(**words), f"{next(iter(words))} is")


@pytest.mark.parametrize("n", [0, -1, 1.5, "4", None])
def test_samples(n: Any) -> None:
    refusal(lambda: small_vae().sample(n), "n is", COUNT)
