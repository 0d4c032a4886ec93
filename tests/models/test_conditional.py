"""Conditional VAEs: the label joined to what encoder and decoder see; without, nothing changes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import vaebench
from vaebench.errors import InputError
from vaebench.models.base import BaseVAE
from vaebench.models.networks import make_network
from vaebench.runs.folder import RunFolder

CHANNELS = (4, 4, 8, 8, 16)
KINDS: dict[str, Callable[..., BaseVAE]] = {
    "mlp": lambda **kwargs: vaebench.VAE(hidden_dims=(12, 8), latent_dim=3, **kwargs),
    "conv": lambda **kwargs: vaebench.ConvVAE(hidden_dims=CHANNELS, latent_dim=3, **kwargs),
}


@pytest.fixture(params=KINDS)
def make(request: pytest.FixtureRequest) -> Callable[..., BaseVAE]:
    return KINDS[request.param]


def _batch() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(5, 28, 28, generator=generator)
    return x, torch.tensor([3, 0, 9, 3, 1]), torch.randn(5, 3, generator=generator)


def test_without_classes_the_weights_are_those_of_plain_layers() -> None:
    torch.manual_seed(3)
    model = vaebench.VAE(hidden_dims=(12, 8), latent_dim=3)
    torch.manual_seed(3)
    sizes = [(784, 12), (12, 8), (8, 3), (8, 3), (3, 8), (8, 12), (12, 784)]
    plain = [p for n_in, n_out in sizes for p in nn.Linear(n_in, n_out).parameters()]
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), plain, strict=True))
    torch.manual_seed(3)
    conv = vaebench.ConvVAE(hidden_dims=CHANNELS, latent_dim=3)
    torch.manual_seed(3)
    first = nn.Conv2d(1, 4, 3)
    assert torch.equal(next(conv.parameters()), first.weight)
    assert conv.decoder_input.weight.shape == (16, 3)


def test_the_fully_connected_one_sees_the_label_beside_x_and_z() -> None:
    model = vaebench.VAE(hidden_dims=(12, 8), latent_dim=3, classes=10)
    x, y, z = _batch()
    label = torch.eye(10)[y]
    hidden = model.encoder(torch.cat([x.flatten(1), label], 1))
    mu, logvar = model.encode(x, y)
    torch.testing.assert_close(mu, model.mu(hidden))
    torch.testing.assert_close(logvar, model.logvar(hidden))
    output = model.output(model.decoder(torch.cat([z, label], 1)))
    torch.testing.assert_close(model.decode(z, y), output.view(5, 28, 28))


def test_the_convolutional_one_sees_the_label_as_channels() -> None:
    model = vaebench.ConvVAE(hidden_dims=CHANNELS, latent_dim=3, classes=10).eval()
    x, y, z = _batch()
    label = F.one_hot(y, 10).float()
    planes = torch.ones(5, 10, 28, 28) * label.view(5, 10, 1, 1)
    hidden = model.encoder(torch.cat([x.unsqueeze(1), planes], 1)).flatten(1)
    mu, logvar = model.encode(x, y)
    torch.testing.assert_close(mu, model.fc_mu(hidden))
    torch.testing.assert_close(logvar, model.fc_var(hidden))
    hidden = model.decoder_input(torch.cat([z, label], 1)).view(5, 16, 1, 1)
    output = model.final_layer(model.decoder(hidden)).view(5, 28, 28)
    torch.testing.assert_close(model.decode(z, y), output)


def test_every_label_has_weights_of_its_own(make: Callable[..., BaseVAE]) -> None:
    model = make(classes=4).eval()
    x, _, z = _batch()
    for call, given in ((model.encode, x), (model.decode, z)):
        outputs = [call(given, torch.full((5,), label)) for label in range(4)]
        flat = [out[0] if isinstance(out, tuple) else out for out in outputs]
        for other in flat[1:]:
            assert not torch.allclose(flat[0], other)


def test_samples_of_a_label(make: Callable[..., BaseVAE]) -> None:
    model = make(classes=10).eval()

    def sample(**kwargs: Any) -> Tensor:
        return model.sample(4, torch.Generator().manual_seed(1), **kwargs)

    mixed = sample(y=torch.tensor([7, 7, 0, 7]))
    same = sample(y=7)
    assert mixed.shape == (4, 28, 28)
    torch.testing.assert_close(mixed[[0, 1, 3]], same[[0, 1, 3]])
    assert not torch.allclose(mixed[2], same[2])
    assert make().sample(2).shape == (2, 28, 28)


def test_labels_missing_or_not_wanted(make: Callable[..., BaseVAE]) -> None:
    x, y, z = _batch()
    plain, conditional = make(), make(classes=10)
    for call in (
        lambda: conditional.encode(x),
        lambda: conditional.decode(z),
        lambda: conditional.sample(3),
    ):
        with pytest.raises(InputError, match=r"takes labels, .* give y, one of 0 to 9"):
            call()
    for call in (
        lambda: plain.encode(x, y),
        lambda: plain.decode(z, y),
        lambda: plain.sample(3, y=1),
    ):
        with pytest.raises(InputError, match=r"takes no labels: make it with classes"):
            call()


@pytest.mark.parametrize("classes", [0, -1, 2.0, "10", True, 2**21])
def test_classes_that_cannot_be(make: Callable[..., BaseVAE], classes: Any) -> None:
    with pytest.raises(InputError, match="classes is"):
        make(classes=classes)


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_folder_gives_it_back(kind: str, tmp_path: Path) -> None:
    recipe = {
        "kind": kind, "hidden_dims": CHANNELS if kind == "conv" else (12,), "latent_dim": 3,
        "classes": 10,
    }  # fmt: skip
    torch.manual_seed(0)
    model = make_network(recipe).eval()
    with RunFolder(tmp_path / "run") as folder:
        folder.write_config({}, recipe)
        folder.write_model(model.state_dict())
    back = vaebench.load(tmp_path / "run")
    x, y, z = _batch()
    assert back.classes == 10
    assert torch.equal(back.encode(x, y)[0], model.encode(x, y)[0])
    assert torch.equal(back.decode(z, y), model.decode(z, y))
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    config["model"]["classes"] = "ten"
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="damaged: classes is 'ten'"):
        vaebench.load(tmp_path / "run")


@pytest.mark.parametrize("kind", KINDS)
def test_a_recipe_without_classes_is_as_before(kind: str) -> None:
    recipe = {"kind": kind, "latent_dim": 3}
    for given in (recipe, {**recipe, "classes": None}):
        torch.manual_seed(2)
        model = make_network(given)
        assert model.classes is None
        torch.manual_seed(2)
        right = make_network(recipe).state_dict()
        assert all(torch.equal(t, right[name]) for name, t in model.state_dict().items())
