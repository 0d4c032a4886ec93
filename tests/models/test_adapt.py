"""Models as people write them, against the same network written plainly."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Normal
from torch.nn.functional import sigmoid as own_name

import vaebench
from tests.models import others
from tests.models.others import OTHERS, SHAPE, Output, Plain
from tests.tiers import first
from vaebench.errors import InputError
from vaebench.models.adapt import Adapted, EncoderAndDecoder, adapt, adapted
from vaebench.objective import Objective, loss_terms
from vaebench.reference import ReferenceEngine

# Not a sigmoid that could be left out: the logits are computed back, and rounded.
ROUNDED = (others.Clamped, others.TwoClasses, others.ABernoulliOfProbabilities)
NAMES = [kind.__name__ for kind in OTHERS]


@pytest.fixture
def x() -> Tensor:
    return torch.rand(5, *SHAPE, generator=torch.Generator().manual_seed(0))


def twins(kind: type[nn.Module]) -> tuple[nn.Module, Plain]:
    """A model and the plain one, with the same weights."""
    plain = Plain()
    torch.manual_seed(1)
    with torch.no_grad():
        for p in plain.parameters():
            p.copy_(0.2 * torch.randn(p.shape))
    model = kind()
    for part in (model.Encoder, model.Decoder) if isinstance(model, others.Parts) else (model,):
        with torch.no_grad():
            for name, p in _by_role(part).items():
                p.copy_(dict(plain.named_parameters())[name])
    return model, plain


def _by_role(model: nn.Module) -> dict[str, nn.Parameter]:
    """A model's parameters by the names that they have in the plain one."""
    renamed = {"fc_mu": "mean", "fc_var": "spread", "encoder.0": "fc1", "decoder.0": "fc3"}
    renamed |= {"decoder.2": "fc4"}
    found = {}
    for name, p in model.named_parameters():
        layer, _, kind = name.rpartition(".")
        found[f"{renamed.get(layer, layer)}.{kind}"] = p
    return found


def brought_in(model: nn.Module, x: Tensor, likelihood: str = "bernoulli") -> Any:
    said = getattr(model, "said", {})
    return adapted(adapt(model, **said) if said else model, x, likelihood)[0]


def terms(model: Any, x: Tensor, **kwargs: Any) -> list[Tensor]:
    """Recon and kl of each image, and the gradients of the loss, by names of the plain model."""
    eps = torch.randn(len(x), others.LATENTS, generator=torch.Generator().manual_seed(2))
    loss, recon, kl = loss_terms(model, Objective(**kwargs), x, eps)
    inner = model.model if isinstance(model, Adapted) else model
    params: dict[str, Any] = {}
    if isinstance(inner, others.Parts):
        params = (
            _by_role(inner.Decoder)
            | {  # each half trains its own layers
                name: p
                for name, p in _by_role(inner.Encoder).items()
                if name[:3] not in ("fc3", "fc4")
            }
        )
    else:
        params = _by_role(inner)
    used = [params[name] for name, _ in Plain().named_parameters()]
    return [recon, kl, *torch.autograd.grad(loss, used)]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", OTHERS, ids=NAMES)
def test_the_elbo_and_its_gradients_are_the_plain_networks(
    kind: type[nn.Module], training: bool, x: Tensor
) -> None:
    model, plain = twins(kind)
    vae = brought_in(model, x).train(training)
    rtol = 1e-5 if kind in ROUNDED else 1e-6
    for got, want in zip(terms(vae, x), terms(plain, x), strict=True):
        torch.testing.assert_close(got, want, rtol=rtol, atol=10 * rtol)


@pytest.mark.parametrize("kind", OTHERS, ids=NAMES)
def test_the_reference_trains_the_same(kind: type[nn.Module], x: Tensor) -> None:
    losses = []
    for model in twins(kind):
        vae = brought_in(model, x)
        engine = ReferenceEngine(
            vae, x, batch_size=2, lr=0.01, likelihood="bernoulli", sigma=1.0, beta=1.0,
            device=torch.device("cpu"),
        )  # fmt: skip
        noise = torch.randn(5, 3, generator=torch.Generator().manual_seed(3))
        losses.append([float(engine.epoch(torch.arange(5), noise).recon) for _ in range(3)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize("kind", first(8, OTHERS), ids=NAMES)
def test_it_is_traced_into_one_graph(kind: type[nn.Module], x: Tensor) -> None:
    model, plain = twins(kind)
    vae = brought_in(model, x)
    eps = torch.zeros(len(x), others.LATENTS)
    torch._dynamo.reset()

    def loss(x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return loss_terms(vae, Objective(), x, eps)[0]

    compiled = torch.compile(loss, fullgraph=True, backend="eager")
    want = loss_terms(plain, Objective(), x, eps)[0]
    torch.testing.assert_close(compiled(x), want, rtol=1e-5, atol=0)
    assert F.sigmoid is own_name  # which is another while it is traced


def test_what_a_compiler_hides_is_never_trained_wrong(x: Tensor) -> None:
    class ItsOwnName(Plain):
        def decode(self, z: Tensor) -> Any:
            return own_name(super().decode(z))

    vae = brought_in(ItsOwnName(), x)
    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported):
        compiled: Any = torch.compile(vae.decode, fullgraph=True, backend="eager")
        compiled(torch.zeros(2, 3))
    assert F.sigmoid is own_name


@pytest.mark.parametrize("kind", OTHERS, ids=NAMES)
def test_no_trace_is_left(kind: type[nn.Module], x: Tensor) -> None:
    model, _ = twins(kind)
    model.register_buffer("seen", torch.zeros(1))
    next(model.children()).eval()
    modes = [module.training for module in model.modules()]
    attributes = [_shallow(module) for module in model.modules()]
    tensors = {name: t.clone() for name, t in model.state_dict().items()}
    random = torch.get_rng_state()
    brought_in(model, x)
    assert [module.training for module in model.modules()] == modes
    assert [_shallow(module) for module in model.modules()] == attributes
    assert torch.equal(torch.get_rng_state(), random)
    assert model.state_dict().keys() == tensors.keys()
    assert all(torch.equal(t, tensors[name]) for name, t in model.state_dict().items())


def _shallow(module: nn.Module) -> dict[str, Any]:
    held = {n: v for n, v in vars(module).items() if n not in ("_parameters", "_buffers")}
    return {n: list(v) if isinstance(v, (list, dict)) else v for n, v in held.items()}


def test_training_changes_the_callers_model_and_its_keys_stay(x: Tensor) -> None:
    model, _ = twins(others.ADict)
    before = copy.deepcopy(model.state_dict())
    states: list[vaebench.TrainState] = []
    history = vaebench.fit(model, x, epochs=1, batch_size=2, device="cpu", on_state=states.append)
    assert model.state_dict().keys() == before.keys() == states[0].model.keys()
    assert not torch.equal(model.state_dict()["fc1.weight"], before["fc1.weight"])
    assert history.epochs
    given = vaebench.adapt(model)
    assert given.state_dict().keys() == before.keys()
    given.load_state_dict(before)
    assert torch.equal(model.state_dict()["fc1.weight"], before["fc1.weight"])


@pytest.mark.parametrize("kind", [Plain, others.AList, vaebench.VAE, vaebench.ConvVAE])
def test_what_is_plain_stays_itself(kind: type[nn.Module]) -> None:
    model = kind()
    shape = SHAPE if isinstance(model, Plain) else (28, 28)
    given = adapted(model, torch.rand(2, *shape), getattr(model, "likelihood", "bernoulli"))
    assert given == (model, [])


def test_zeros_to_begin_with_are_logits(x: Tensor) -> None:
    """All 0 lies in [0, 1], and says nothing."""
    model = Plain()
    nn.init.zeros_(model.fc4.weight)
    nn.init.zeros_(model.fc4.bias)
    assert adapted(model, x, "bernoulli") == (model, [])


@pytest.mark.parametrize("kind", OTHERS, ids=NAMES)
def test_evaluation_takes_it_the_same_way(kind: type[nn.Module], x: Tensor) -> None:
    model, plain = twins(kind)
    said = getattr(model, "said", {})
    elbos = [
        vaebench.evaluate(m, x, samples=2).elbo
        for m in (adapt(model, **said) if said else model, plain)
    ]
    assert elbos[0] == pytest.approx(elbos[1], rel=1e-5)


def test_a_mode_of_ones_own(x: Tensor) -> None:
    """Probabilities out of training, logits in it: each is taken for what it is."""
    model, _ = twins(others.SigmoidInTraining)
    vae = brought_in(model, x)
    logits = [vae.train(mode).decode(torch.zeros(1, 3)) for mode in (True, False)]
    torch.testing.assert_close(*logits)


# --- Gaussian likelihoods


class Spread(Plain):
    """A mean and a variance of its own, written as ``form`` says."""

    form: Callable[[Tensor, Tensor], Any]

    def __init__(self) -> None:
        super().__init__()
        self.fc5 = nn.Linear(16, 36)

    def decode(self, z: Tensor) -> Any:
        h = self.fc3(z).relu()
        return type(self).form(self.fc4(h), self.fc5(h))


def _pair(mean: Tensor, logvar: Tensor) -> Any:
    return {"mean": mean, "logvar": logvar}


FORMS = {
    "dict": _pair,
    "normal": lambda mean, logvar: Normal(mean, torch.exp(0.5 * logvar)),
    "output": lambda mean, logvar: (Output(loc=mean, scale=torch.exp(0.5 * logvar)), mean[:, :2]),
    "variance": lambda mean, logvar: {"mu": mean, "sigma2": logvar.exp()},
}


@pytest.mark.parametrize("name", FORMS)
def test_a_variance_of_its_own(name: str, x: Tensor) -> None:
    class Model(Spread):
        form = staticmethod(FORMS[name])

    torch.manual_seed(0)
    model = Model()
    vae: Any
    vae, notes = adapted(model, x, "gaussian")
    assert "decode gives a variance of its own: sigma is not used" in notes
    eps = torch.randn(5, 3)
    _, recon, _ = loss_terms(vae, Objective("gaussian", sigma=7.0), x, eps)
    mu, logvar = model.encode(x)
    h = model.fc3(mu + torch.exp(0.5 * logvar) * eps).relu()
    density = Normal(model.fc4(h), torch.exp(0.5 * model.fc5(h)))
    torch.testing.assert_close(recon, density.log_prob(x.flatten(1)).sum(1))
    engine = ReferenceEngine(
        vae, x, batch_size=5, lr=1e-3, likelihood="gaussian", sigma=7.0, beta=1.0,
        device=torch.device("cpu"),
    )  # fmt: skip
    torch.testing.assert_close(engine.loss(x, eps)[1], recon.sum())
    value = Objective("gaussian").value(vae.decode(mu), x)
    torch.testing.assert_close(value, Objective("gaussian").log_likelihood(vae.decode(mu), x))


def test_a_variance_of_its_own_is_trained_and_evaluated(x: Tensor) -> None:
    class Model(Spread):
        form = staticmethod(_pair)

    model = Model()
    histories = [
        vaebench.fit(copy.deepcopy(model), x, epochs=2, batch_size=2, device="cpu", engine=engine,
                     likelihood="gaussian", test_images=x)
        for engine in ("fast", "reference")
    ]  # fmt: skip
    elbos = [[e.test_elbo for e in history.epochs] for history in histories]
    assert elbos[0] == pytest.approx(elbos[1], rel=1e-4)


class Squashed(Plain):
    def __init__(self, squash: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.squash = squash

    def decode(self, z: Tensor) -> Any:
        return self.squash(super().decode(z))


@pytest.mark.parametrize("name", ["tanh", "relu", "exp"])
def test_what_can_be_no_logit_is_a_mean_or_is_refused(name: str, x: Tensor) -> None:
    model = Squashed(getattr(torch, name))
    with pytest.raises(InputError, match=f"decode ends in {name}.*likelihood=.gaussian.*remove"):
        adapted(model, x, "bernoulli")
    assert adapted(model, x, "gaussian") == (model, [])


def test_under_a_gaussian_likelihood_a_sigmoid_is_a_mean(x: Tensor) -> None:
    model = others.Probabilities()
    assert adapted(model, x, "gaussian") == (model, [])


def test_a_gate_is_no_end(x: Tensor) -> None:
    """Sigmoids inside a network, and the last layer's own."""
    model = Squashed(lambda a: a * torch.sigmoid(a))
    assert adapted(model, x, "bernoulli") == (model, [])
    gated = Squashed(lambda a: torch.sigmoid(a * torch.sigmoid(a)))
    a = torch.nn.functional.silu(Plain.decode(gated, torch.ones(1, 3)))
    vae: Any
    vae, _ = adapted(gated, x, "bernoulli")
    torch.testing.assert_close(vae.decode(torch.ones(1, 3)), a)


@pytest.mark.parametrize(
    "squash",
    [lambda a: 0.5 * a.tanh() + 0.5, lambda a: 0.9 * a.sigmoid(), lambda a: a.clamp(0, 1)],
)
def test_other_probabilities_have_their_exact_likelihood(squash: Any, x: Tensor) -> None:
    torch.manual_seed(0)
    model = Squashed(squash)
    vae: Any
    vae, notes = adapted(model, x, "bernoulli")
    assert "probabilities" in notes[0]
    z = torch.randn(5, 3)
    p, lit = model.decode(z).clamp(1e-12, 1 - 2**-24).double(), (x > 0.5).flatten(1)
    want = torch.where(lit, p, 1 - p).log().sum(1)
    got = Objective().log_likelihood(vae.decode(z), lit.float())
    torch.testing.assert_close(got.double(), want, rtol=1e-6, atol=1e-6)


# --- what cannot be known


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


def test_an_assertion_says_where(x: Tensor) -> None:
    class Strict(Plain):
        def encode(self, x: Tensor) -> Any:
            assert x.dim() == 7
            return super().encode(x)

    with pytest.raises(InputError, match=r"encode raised AssertionError: .*test_adapt\.py:") as got:
        adapted(Strict(), x, "bernoulli")
    assert isinstance(got.value.__cause__, AssertionError)


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
            return self.decoder(mu + sigma * torch.randn_like(mu)), mu, sigma

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
