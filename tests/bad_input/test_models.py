"""Models of the user's own that cannot be trained; a model that was refused is as it was."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import vaebench
from tests.bad_input.refusal import Own, pixels, refusal


def own(encode: Any = None, decode: Any = None, **attributes: Any) -> nn.Module:
    """A VAE with some method or attribute of its own."""
    model = Own()
    for name, value in {"encode": encode, "decode": decode, **attributes}.items():
        if value is not None:
            setattr(model, name, value.__get__(model) if callable(value) else value)
    return model


def frozen() -> nn.Module:
    return Own().requires_grad_(False)


def on_meta() -> nn.Module:
    with torch.device("meta"):
        return Own()


def no_parameters() -> nn.Module:
    model = own(lambda s, x: (x.flatten(1)[:, :2],) * 2, lambda s, z: z.repeat(1, 8))
    del model.into, model.out
    return model


def normalised() -> nn.Module:
    """Batch norm does not train on one image, and a last batch of one is what it is given."""
    model = Own()
    model.into = nn.Sequential(nn.Linear(16, 4), nn.BatchNorm1d(4))  # type: ignore[assignment]
    return model


def _changed(model: Any, z: Tensor) -> Any:
    out = model.out(z)
    kept = out.sigmoid()
    kept += 1  # what the backward pass of sigmoid needs is gone
    return kept


MODELS: dict[str, tuple[Callable[[], Any], str]] = {
    "None": (lambda: None, "torch.nn.Module"),
    "a text": (lambda: "mlp", "torch.nn.Module"),
    "a class": (lambda: Own, "not its class"),
    "a function": (lambda: lambda x: x, "torch.nn.Module"),
    "no encode": (lambda: nn.Linear(16, 2), "no method encode"),
    "no decode": (lambda: own(decode=3), "no method decode"),
    "no parameters": (no_parameters, "no parameters"),
    "all frozen": (frozen, "frozen"),
    "on meta": (on_meta, "meta"),
    "half precision": (lambda: Own().half(), "does not take images"),
    "float64": (lambda: Own().double(), "does not take images"),
    "a single tensor from encode": (
        lambda: own(lambda s, x: s.into(x.flatten(1))),
        "encode gave one tensor of shape",
    ),
    "three tensors from encode": (
        lambda: own(lambda s, x: s.into(x.flatten(1)).split(1, 1)[:3]),
        "decode raised RuntimeError",
    ),
    "None from encode": (lambda: own(lambda s, x: None), "NoneType"),
    "lists from encode": (lambda: own(lambda s, x: ([1.0, 2.0], [0.0, 0.0])), "encode gave a list"),
    "whole numbers from encode": (
        lambda: own(lambda s, x: (torch.ones(len(x), 2, dtype=torch.int64),) * 2),
        "encode gave torch.int64",
    ),
    "no latents": (lambda: own(lambda s, x: (x.flatten(1)[:, :0],) * 2), "(batch, latent)"),
    "mu without a batch": (lambda: own(lambda s, x: (x.flatten()[:2],) * 2), "(batch, latent)"),
    "a batch of another size": (
        lambda: own(lambda s, x: (x.flatten(1)[:, :2].repeat(2, 1),) * 2),
        "(batch, latent)",
    ),
    "logvar of another size": (
        lambda: own(lambda s, x: (x.flatten(1)[:, :2], x.flatten(1)[:, :3])),
        "(batch, latent)",
    ),
    "encode of another sort": (lambda: own(lambda s: None), "does not take images"),
    "encode that fails": (lambda: own(lambda s, x: torch.cat([])), "does not take images"),
    "None from decode": (lambda: own(decode=lambda s, z: None), "decode gave a NoneType"),
    "an array from decode": (
        lambda: own(decode=lambda s, z: s.out(z).detach().numpy()),
        "decode gave a ndarray",
    ),
    "bools from decode": (lambda: own(decode=lambda s, z: s.out(z) > 0), "decode gave torch.bool"),
    "too few pixels": (lambda: own(decode=lambda s, z: s.out(z)[:, :9]), "9 numbers per image"),
    "too many pixels": (lambda: own(decode=lambda s, z: s.out(z).repeat(1, 2)), "32 numbers"),
    "no gradient": (
        lambda: own(lambda s, x: (x.flatten(1)[:, :2],) * 2, lambda s, z: s.out(z).detach()),
        "cannot be trained",
    ),
    "a gradient that was overwritten": (lambda: own(decode=_changed), "cannot be trained"),
    "batch norm on one image": (normalised, "a batch of 1 image"),
    "a likelihood nobody knows": (lambda: own(likelihood="poisson"), "bernoulli, gaussian"),
    "a likelihood that is no text": (lambda: own(likelihood=3), "bernoulli, gaussian"),
}


@pytest.mark.parametrize("name", MODELS)
def test_models(name: str) -> None:
    make, said = MODELS[name]
    # 19 in batches of 6 leave a last batch of one.
    refusal(lambda: vaebench.fit(make(), pixels(19), batch_size=6, device="cpu", epochs=1), said)


def test_a_model_that_was_refused_is_as_it_was() -> None:
    model = normalised().eval()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    refusal(lambda: vaebench.fit(model, pixels(19), batch_size=6, device="cpu"), "1 image")
    assert not model.training
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
