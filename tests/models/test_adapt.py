"""What cannot be known of a model is said, with what would help; what its caller says is done."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import vaebench
from tests.models import others
from tests.models.others import Plain
from tests.models.twins import brought_in, terms, twins
from vaebench.errors import InputError
from vaebench.models.adapt import EncoderAndDecoder, adapt, adapted


def failing(encode: Any = None, decode: Any = None) -> nn.Module:
    """The plain model with a method of its own."""
    methods = {"encode": encode, "decode": decode}
    kind = type("Own", (Plain,), {name: method for name, method in methods.items() if method})
    model: nn.Module = kind()
    return model


def _heads(self: Any, x: Tensor) -> Any:
    return Plain.encode(self, x)


REFUSED: dict[str, tuple[nn.Module, str]] = {
    "three of different sizes": (
        failing(lambda s, x: tuple([_heads(s, x)[0], _heads(s, x)[1][:, :2], x.flatten(1)])),
        r"encode gave 3 values of shapes \(5, 3\), \(5, 2\), \(5, 36\).*adapt\(model, encode=",
    ),
    "one tensor": (
        failing(lambda s, x: torch.cat([s.fc1(x.flatten(1))], 1)),
        r"encode gave one tensor of shape \(5, 16\): say .*adapt\(model, encode=.mu, logvar",
    ),
    "a sigma below 0": (
        failing(lambda s, x: dict(zip(("mu", "sigma"), _heads(s, x), strict=True))),
        "encode gave a sigma that is not above 0 everywhere.*adapt",
    ),
    "a softplus with no name": (
        failing(lambda s, x: tuple([_heads(s, x)[0], nn.functional.softplus(_heads(s, x)[1])])),
        "squashed to be above 0, and so is no logvar.*adapt",
    ),
    # arkrp/vae-lab's is 0.05 + |h|, and was once trained as a logvar.
    "a size with no name": (
        failing(lambda s, x: tuple([_heads(s, x)[0], 0.05 + _heads(s, x)[1].abs()])),
        "encode gave a last value that is never below 0, and so is no logvar.*adapt",
    ),
    "a square": (
        failing(lambda s, x: tuple([_heads(s, x)[0], s.fc1(x.flatten(1))[:, :3].square()])),
        "never below 0",
    ),
    "nothing": (failing(lambda s, x: None), "encode gave a NoneType"),
    "an attribute that is not there": (
        failing(lambda s, x: s.absent(x)),
        r"encode raised AttributeError: .*absent.*test_adapt.py:\d+\)",
    ),
    "a key": (
        failing(lambda s, x: {"a": x}["mu"]),
        r"encode raised KeyError: 'mu' \(.*test_adapt.py:",
    ),
    "an index": (failing(decode=lambda s, z: [][3]), "decode raised IndexError: .*test_adapt.py:"),
    "a shape": (failing(lambda s, x: s.fc3(x)), "encode raised RuntimeError: mat1.*test_adapt.py:"),
    "no values of pixels": (failing(decode=lambda s, z: (z, z)), "decode gave 2 values of shapes"),
    "whole numbers": (failing(decode=lambda s, z: z.long()), "decode gave torch.int64"),
    "too few": (failing(decode=lambda s, z: z), "decode gave 3 numbers per image.* 36 pixels"),
    "no methods": (nn.Linear(36, 36), r"no method encode\(\), nor.*adapt\(model, encode=lambda x"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_it_is_said_what_was_given_and_what_would_help(what: str, x: Tensor) -> None:
    model, message = REFUSED[what]
    with pytest.raises(InputError, match=message) as caught:
        adapted(model, x, "bernoulli")
    assert caught.value.__cause__ or what == "no methods"
    with pytest.raises(InputError, match=message.replace("5, ", "2, ")):
        vaebench.fit(model, x, epochs=1, batch_size=2, device="cpu")


def test_weights_of_another_type(x: Tensor) -> None:
    with pytest.raises(
        InputError, match=r"it has weights in float64, and .* model.float\(\) makes"
    ):
        adapted(Plain().double(), x, "bernoulli")
    assert adapted(Plain().double().float(), x, "bernoulli")[1] == []


@pytest.mark.parametrize("work", [vaebench.evaluate, vaebench.fit])
def test_lazy_layers_want_a_batch_first(work: Any, x: Tensor) -> None:
    class Lazy(Plain):
        def __init__(self) -> None:
            super().__init__()
            self.fc1 = nn.LazyLinear(16)

    model = Lazy()
    how = {"epochs": 1, "batch_size": 5, "device": "cpu"} if work is vaebench.fit else {}
    with pytest.raises(InputError, match="Lazy has lazy layers without weights: give it a batch"):
        work(model, x, **how)
    model.encode(x)
    work(model, x, **how)


def test_an_assertion_says_where(x: Tensor) -> None:
    class Strict(Plain):
        def encode(self, x: Tensor) -> Any:
            assert x.dim() == 7
            return super().encode(x)

    with pytest.raises(InputError, match=r"encode raised AssertionError: .*test_adapt\.py:") as got:
        adapted(Strict(), x, "bernoulli")
    assert isinstance(got.value.__cause__, AssertionError)


def test_a_logvar_that_happens_to_be_above_0_is_one(x: Tensor) -> None:
    """A head of bounded numbers, or a dead one, whose bias is above 0: trained as it is."""

    class Bounded(Plain):
        def encode(self, x: Tensor) -> Any:
            h = self.hidden(x).tanh()
            return self.mean(h), self.spread(h)

    model = Bounded()
    with torch.no_grad():
        model.spread.weight.mul_(0.01)
        model.spread.bias.fill_(0.5)
    vae: Any
    vae, notes = adapted(model, x, "bernoulli")
    assert (vae, notes) == (model, [])


def test_heads_that_forward_does_not_give_are_not_believed(x: Tensor) -> None:
    class Softened(others.OnlyForward):
        def forward(self, x: Tensor) -> Any:
            recon, mu, log_var = super().forward(x)
            return recon, mu, log_var.clamp(0.1, 0.2)

    with pytest.raises(InputError, match="something else than forward makes of it"):
        adapted(Softened(), x, "bernoulli")


def test_a_decoder_that_forward_goes_on_from_is_not_believed(x: Tensor) -> None:
    class Softened(others.OnlyForward):
        def forward(self, x: Tensor) -> Any:
            recon, mu, log_var = super().forward(x)
            return 0.9 * recon, mu, log_var

    with pytest.raises(InputError, match="something else than forward makes of it"):
        adapted(Softened(), x, "bernoulli")


def test_a_layer_between_z_and_the_decoder_is_not_passed_by(x: Tensor) -> None:
    class Between(others.OnlyForward):
        def __init__(self) -> None:
            super().__init__()
            self.lift = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Any:
            h = self.encoder(x.view(-1, 36))
            mu, log_var = self.fc_mu(h), self.fc_var(h)
            return self.decoder(self.lift(self.drawn(mu, log_var))), mu, log_var

    model = Between()
    with pytest.raises(InputError, match="decoder gave what it makes of something else than z"):
        adapted(model, x, "bernoulli")
    vae: Any = adapt(model, decode=lambda z: model.decoder(model.lift(z)))
    mu, _ = vae.encode(x)
    torch.testing.assert_close(vae.decode(mu).sigmoid(), model.decoder(model.lift(mu)))


def test_a_decoder_that_wants_more_says_what_and_how(x: Tensor) -> None:
    model = failing(decode=lambda s, z, c: z)
    with pytest.raises(
        InputError, match=r"decode raised TypeError: .*'c'.*decode=lambda z: \.\.\."
    ):
        adapted(model, x, "bernoulli")


def test_words_for_heads(x: Tensor) -> None:
    """A sigma that may be negative, in a layer of its own, as its caller says."""

    class Linear(others.OnlyForward):
        def __init__(self) -> None:
            super().__init__()
            self.sigma = self.fc_var
            del self.fc_var

        def forward(self, x: Tensor) -> Any:
            h = self.encoder(x.view(-1, 36))
            mu, sigma = self.fc_mu(h), self.sigma(h)
            return mu, sigma  # which does not show how z is drawn

    model = Linear()
    with pytest.raises(InputError, match="a sigma that is not above 0"):
        adapted(model, x, "bernoulli")
    vae: Any = adapted(adapt(model, encode="mu, sigma"), x, "bernoulli")[0]
    mu, logvar = vae.encode(x)
    h = model.encoder(x.flatten(1))
    torch.testing.assert_close(mu, model.fc_mu(h))
    torch.testing.assert_close(logvar.exp(), model.sigma(h).square())


def test_a_pair_of_modules(x: Tensor) -> None:
    pair = (others.Encoder(), others.Decoder())
    vae = adapt(pair)
    assert isinstance(vae.model, EncoderAndDecoder)
    mu, _ = vae.encode(x)
    torch.testing.assert_close(mu, pair[0](x)[0])
    torch.testing.assert_close(vae.decode(mu).sigmoid(), pair[1](mu))  # type: ignore[union-attr]
    assert vaebench.fit(vae, x, epochs=1, batch_size=2, device="cpu").epochs


def test_functions_of_the_callers(x: Tensor) -> None:
    model, plain = twins(others.OnlyForward)
    net: Any = model
    vae = adapt(
        model,
        encode=lambda x: {"mu": net.fc_mu(net.encoder(x.flatten(1))), "logvar": plain.encode(x)[1]},
        decode=lambda z: net.decoder(z),
    )
    torch.testing.assert_close(vae.encode(x), plain.encode(x))
    assert vaebench.fit(vae, x, epochs=1, batch_size=2, device="cpu").epochs


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"encode": "mu, nonsense"}, "'nonsense' is none of mu, logvar"),
        ({"decode": 3}, "decode is 3: it must be a function"),
        ({"likelihood": "poisson"}, "likelihood is 'poisson'"),
    ],
)
def test_adapt_refuses(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        adapt(Plain(), **kwargs)
    with pytest.raises(InputError, match="must be a torch"):
        adapt("model")  # type: ignore[arg-type]


def test_batch_norm_is_trained_once_a_step_and_not_when_tried(x: Tensor) -> None:
    model = failing(decode=lambda s, z: torch.sigmoid(s.norm(Plain.decode(s, z))))
    model.norm = nn.BatchNorm1d(36)
    vae = brought_in(model, x)
    assert model.norm.num_batches_tracked == 0
    terms(vae.train(), x)
    assert model.norm.num_batches_tracked == 1


def test_a_buffer_that_moves_with_every_call(x: Tensor) -> None:
    """As spectral norm's does in training: all tries are made from the same one."""

    class Moving(Plain):
        offset: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("offset", torch.zeros(36))

        def decode(self, z: Tensor) -> Any:
            if self.training:
                self.offset += 1
            return torch.sigmoid(super().decode(z) + self.offset)

    model = Moving()
    _, notes = adapted(model, x, "bernoulli")
    assert notes == ["decode ends in sigmoid: its logits are used"]
    assert not model.offset.any()


def test_a_model_that_is_only_evaluated_may_be_frozen_and_in_inference_mode(x: Tensor) -> None:
    model, plain = twins(others.Probabilities)
    model.requires_grad_(False)
    with torch.inference_mode():
        got, want = (vaebench.evaluate(m, x).elbo for m in (model, plain))
    assert got == pytest.approx(want, rel=1e-6)


class Hooked(nn.Module):
    """Its code wants gradients: of a tensor, and at once."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(36, 6), nn.Linear(3, 36)

    def encode(self, x: Tensor) -> Any:
        return self.down(x.flatten(1)).chunk(2, 1)

    def decode(self, z: Tensor) -> Tensor:
        output: Tensor = self.up(z)
        if self.training:
            output.register_hook(lambda grad: grad.clamp(-0.1, 0.1))
            slope = torch.autograd.grad(output.sum(), self.up.weight, create_graph=True)[0]
            output = output + 0 * slope.sum()
        return output


@pytest.mark.parametrize("how", [{"engine": "reference"}, {}, {"compile": True}])
@pytest.mark.filterwarnings("ignore:torch.compile failed")
def test_code_that_wants_gradients_is_tried_with_them(how: dict[str, Any]) -> None:
    torch.manual_seed(0)
    x = torch.rand(20, 6, 6, generator=torch.Generator().manual_seed(0))
    history = vaebench.fit(Hooked(), x, test_images=x, epochs=2, batch_size=8, device="cpu", **how)
    assert all(record.test_elbo for record in history.epochs)
