"""Models as people write them, against the same network written plainly."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.functional import sigmoid as own_name

import vaebench
from tests.models import others
from tests.models.others import OTHERS, SHAPE, Plain
from tests.models.twins import brought_in, terms, twins
from tests.tiers import first
from vaebench.models.adapt import adapt, adapted
from vaebench.objective import Objective, loss_terms
from vaebench.reference import ReferenceEngine

# Not a sigmoid that could be left out: the logits are computed back, and rounded.
ROUNDED = (others.Clamped, others.TwoClasses, others.ABernoulliOfProbabilities)
NAMES = [kind.__name__ for kind in OTHERS]


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
