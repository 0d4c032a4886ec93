"""What a model's own forward does beside encode and decode is left out, and told."""

from typing import Any

import pytest
import torch
from torch import Tensor

import vaebench
from tests.models.test_adapt_drawn import Unnamed
from vaebench.models.adapt import adapted

EVENLY = "forward draws its noise evenly, by rand: here it is standard normal"


class Evenly(Unnamed):
    def noise(self, like: Tensor) -> Tensor:
        return torch.rand_like(like)


class EvenlyOfASize(Unnamed):
    def noise(self, like: Tensor) -> Tensor:
        return torch.rand(like.shape)


class EvenlyInPlace(Unnamed):
    def noise(self, like: Tensor) -> Tensor:
        return like.new_empty(like.shape).uniform_()


class Flow(Unnamed):
    def z(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.tanh(super().z(a, b))


class Scaled(Unnamed):
    def forward(self, x: Tensor) -> Any:
        return super().forward(2 * x - 1)


class Denoising(Unnamed):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x + 0.1 * torch.randn_like(x))


class Halved(Unnamed):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x) / 2


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (Evenly, EVENLY),
        (EvenlyOfASize, EVENLY),
        (EvenlyInPlace, EVENLY),
        (Flow, "forward gives decode something else than mu + std * eps, which is left out here"),
        (Scaled, "forward changes images before encode, which is left out here"),
        (Denoising, "forward changes images before encode, which is left out here"),
        (Halved, "forward changes what decode gives, which is left out here"),
    ],
)
def test_what_forward_does_besides_is_told(
    kind: type[Unnamed], said: str, flat: bool, x: Tensor
) -> None:
    """Also of a model that takes pixels in one line alone, and fails for other shapes."""

    class Flat(kind):  # type: ignore[valid-type, misc]
        def hidden(self, x: Tensor) -> Tensor:
            return torch.relu(self.fc1(x))

    model = Flat() if flat else kind()
    history = vaebench.fit(model, x, epochs=1, batch_size=5, device="cpu")
    (note,) = [note for note in history.notes if note.startswith("forward")]
    assert note.startswith(said)


class Squashed(Unnamed):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x).sigmoid()


def test_a_sigmoid_after_decode_belongs_to_logits_alone(x: Tensor) -> None:
    assert adapted(Squashed(), x, "bernoulli")[1] == []
    (note,) = adapted(Squashed(), x, "gaussian")[1]
    assert note.startswith("forward changes what decode gives")


def test_what_would_be_heard_is_not_called(x: Tensor, capsys: pytest.CaptureFixture[str]) -> None:
    """Hooks on the model itself, and a forward that would be compiled."""

    class Loud(Unnamed):
        def forward(self, x: Tensor) -> Any:
            print("forward")
            return super().forward(x)

    hooked, compiled = Unnamed(), Loud()
    hooked.register_forward_hook(lambda *_: print("hook"))
    vars(compiled)["_orig_mod"] = None
    for model in (hooked, compiled):
        adapted(model, x, "bernoulli")
    assert capsys.readouterr().out == ""


def test_what_was_tried_in_vain_is_not_told(x: Tensor) -> None:
    """Forward draws z of what another method gives than its encoder."""

    class Late(Unnamed):
        encode = None  # type: ignore[assignment]

        def encoder(self, x: Tensor) -> Any:
            return torch.cat(Unnamed.encode(self, x), 1)

        def posterior(self, x: Tensor) -> Any:
            mu, logvar = (2 * self.encoder(x)).chunk(2, 1)
            return mu, logvar

        def forward(self, x: Tensor) -> Any:
            mu, logvar = (2 * self.encoder(x)).chunk(2, 1)
            return self.decode(self.z(mu, logvar)), mu, logvar

    assert adapted(Late(), x, "bernoulli")[1] == ["encode is Late's posterior"]
