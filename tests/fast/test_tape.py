"""A step's operators as a list: the eager step's bits, and nobody's whose steps are no list."""

import itertools
import logging
import random
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import vaebench
from tests.engines import make_engine
from vaebench.data.strokes import make_strokes
from vaebench.fast import tape
from vaebench.fast.build import Built
from vaebench.fast.register import TECHNIQUES
from vaebench.fast.tape import NotTheSameError, Tape, TapeEngine, Value
from vaebench.objective import Objective

pytestmark = pytest.mark.usefixtures("kernels_win")
IMAGES = make_strokes(75, seed=1)[0]
BATCH = 16


class Small(nn.Module):
    """Convolutions with batch norm, some dropout, and what a test puts between them."""

    def __init__(self, dropout: float = 0.0, between: Callable[..., Any] | None = None) -> None:
        super().__init__()
        self.down = nn.Sequential(
            nn.Conv2d(1, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.LeakyReLU(), nn.Dropout(dropout)
        )
        self.heads = nn.Linear(8 * 14 * 14, 6)
        self.start = nn.Linear(3, 8 * 14 * 14)
        self.up = nn.Sequential(nn.ReLU(), nn.ConvTranspose2d(8, 1, 4, 2, 1))
        self.mean = torch.zeros(())
        self.between = between or (lambda _, x: x)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.between(self, self.down(x.view(-1, 1, 28, 28)))
        mu, logvar = self.heads(hidden.flatten(1)).chunk(2, 1)
        return mu, logvar

    def decode(self, z: Tensor) -> Tensor:
        output: Tensor = self.up(self.start(z).view(-1, 8, 14, 14)).view(-1, 28, 28)
        return output


def _small(dropout: float = 0.0, between: Callable[..., Any] | None = None) -> Small:
    torch.manual_seed(0)
    return Small(dropout, between)


def _built(model: nn.Module, objective: Objective | None = None, **given: Any) -> Built:
    cpu, aim = torch.device("cpu"), objective or Objective()
    return make_engine(model, IMAGES, aim, BATCH, 1e-3, cpu, **given)


def _note(built: Built) -> str:
    return "".join(note for note in built.notes if note.startswith("--tape"))


def _trained(built: Built, k: int = 1) -> list[Tensor]:
    """Two epochs of 4 batches and a short one: all that they leave."""
    engine = built.engine
    generator = torch.Generator().manual_seed(3)
    torch.manual_seed(5)
    sums = []
    for epoch in range(2):
        engine.set_lr(1e-3 / (1 + epoch))
        order = torch.randperm(len(IMAGES), generator=generator)
        shape = (len(IMAGES), k, 3) if k > 1 else (len(IMAGES), 3)
        found = engine.epoch(order, torch.randn(shape, generator=generator))
        sums += [found.recon, found.kl]
    return [*sums, *engine.model.state_dict().values(), *engine.optimizer.memory().values()]


@pytest.mark.parametrize("amp", [None, "bf16"])
@pytest.mark.parametrize(
    "how",
    [
        {},
        {"objective": Objective(samples=3, bound="iwae")},
        {"objective": Objective("gaussian", beta=0.5)},
        {"optimizer": "rmsprop", "clip_norm": 1.0},
    ],
    ids=["plain", "iwae", "gaussian", "rmsprop"],
)
def test_the_bits_are_the_eager_steps(how: dict[str, Any], amp: str | None) -> None:
    k = how["objective"].samples if "objective" in how else 1
    built = [_built(_small(0.3), amp=amp, tape=wanted, **how) for wanted in (True, False)]
    assert [each.actual["tape"] for each in built] == [True, False]
    for got, want in zip(*(_trained(each, k) for each in built), strict=True):
        assert torch.equal(got, want)


def test_the_seeds_network_is_not_compiled_for_what_little_is_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tape, "ENOUGH", 0.0)
    torch.manual_seed(0)
    built = _built(
        vaebench.ConvVAE(hidden_dims=(8, 8, 8, 8, 8)), Objective("gaussian"), compile=True
    )
    assert (built.actual["tape"], built.actual["compile"]) == (True, True)
    assert isinstance(built.engine, TapeEngine)
    assert "takes a compiler's place" in _note(built)


def test_an_update_is_one_operator() -> None:
    """Whether taps are left out of an update is asked in each step, not written down."""
    model = _small()
    built = _built(model)
    assert isinstance(built.engine, TapeEngine)
    operators = [call.operator for call in built.engine.tapes[BATCH].needed()]
    assert operators.count(torch.ops.vaebench.update_.default) == 1
    assert not [op for op in operators if "adam" in str(op)]


def _item(model: Any, x: Tensor) -> Tensor:
    return x * float(x.detach().mean().item() > -1)


def _python_random(model: Any, x: Tensor) -> Tensor:
    return x * 2 if random.random() < 1e-9 else x


def _legacy_random(model: Any, x: Tensor) -> Tensor:
    return x * 2 if np.random.rand() < 1e-9 else x


def _numpy_random(model: Any, x: Tensor) -> Tensor:
    return x + torch.from_numpy(np.random.default_rng().normal(size=1)).float() * 1e-6


def _branch(model: Any, x: Tensor) -> Tensor:
    return x * 2 if x.detach().numpy().sum() > 1e9 else x


def _asarray(model: Any, x: Tensor) -> Tensor:
    return x * 2 if np.asarray(x.detach()).sum() > 1e9 else x


def _listed(model: Any, x: Tensor) -> Tensor:
    return x * 2 if max(x.detach().flatten().tolist()) > 1e9 else x


def _shapes(model: Any, x: Tensor) -> Tensor:
    return x + 0 * x.detach()[x.detach() > 0].sum()


def _reshaped(model: Any, x: Tensor) -> Tensor:
    return x * torch.ones(1).unsqueeze_(0)


def _kept(model: Any, x: Tensor) -> Tensor:
    model.mean = x.detach().mean()
    return x


ANCHOR = torch.ones(())
SEEN: list[Tensor] = []
COUNT = {"steps": 0}


def _collected(model: Any, x: Tensor) -> Tensor:
    SEEN.append(x.detach().mean())
    return x


def _counted(model: Any, x: Tensor) -> Tensor:
    COUNT["steps"] += 1
    return x


def _put(model: Any, x: Tensor) -> Tensor:
    mine: dict[str, Tensor] = {}
    mine["seen"] = x.detach().mean()
    return x


def _printed(model: Any, x: Tensor) -> Tensor:
    print(x.shape)
    return x


def _logged(model: Any, x: Tensor) -> Tensor:
    logging.getLogger("a model's").debug("a step")
    return x


@pytest.mark.parametrize(
    ("between", "said"),
    [
        (_collected, "changes from step to step (SEEN)"),
        (_counted, "changes from step to step (COUNT)"),
        (_put, "_put stores an item"),
        (_printed, "_printed calls print"),
        (_logged, "_logged logs"),
        (_item, "_item looks at values"),
        (_python_random, "not torch's"),
        (_legacy_random, "not torch's"),
        (_numpy_random, "take other tensors"),
        (_branch, "_branch calls numpy"),
        (_asarray, "handed to numpy"),
        (_listed, "_listed calls tolist"),
        (_shapes, "looks at values"),
        (_reshaped, "another shape in place"),
        (_kept, "keeps what it computes"),
    ],
)
def test_a_step_that_is_no_list_stays_as_it_is(between: Callable[..., Any], said: str) -> None:
    model = _small(between=between)
    built = _built(model)
    assert built.actual["products"]
    assert not built.actual["tape"]
    assert said in _note(built) + "".join(built.engine.problem.notes)


def _anchored(model: Any, x: Tensor) -> Tensor:
    scaled: Tensor = x * ANCHOR * model.mean.exp()
    return scaled


@pytest.mark.parametrize("where", ["a global", "an attribute"])
def test_another_tensor_takes_ones_place(where: str) -> None:
    """Between epochs: what a list goes on with is not what the model's code reads."""
    elbos = []
    engines: list[dict[str, Any]] = [{"engine": "reference"}, {}]
    for how in engines:
        globals().update(ANCHOR=torch.ones(()))
        model = _small(between=_anchored)

        def replace(_: Any, model: Small = model) -> None:
            if where == "a global":
                globals().update(ANCHOR=torch.tensor(0.5))
            else:
                model.mean = torch.tensor(-1.0)

        history = vaebench.fit(
            model, IMAGES, epochs=2, batch_size=BATCH, seed=1, device="cpu", on_epoch=replace, **how
        )
        elbos.append([record.train_elbo for record in history.epochs])
    assert history.actual["tape"]
    assert elbos[1] == pytest.approx(elbos[0], rel=2e-5)
    assert "the model was changed (" in "".join(history.notes)


def _constant(model: Any, x: Tensor) -> Tensor:
    factor = torch.tensor(0.5)
    factor += 0.25  # which is another one in the next step
    return x * factor


def test_a_constant_made_in_each_step_is_made_anew() -> None:
    built = [_built(_small(between=_constant), tape=wanted) for wanted in (True, False)]
    assert built[0].actual["tape"]
    for got, want in zip(*map(_trained, built), strict=True):
        assert torch.equal(got, want)


def test_two_steps_that_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a number, in an operator, in how many there are."""
    turns = itertools.cycle([1.0, 2.0])
    for between in (
        lambda _, x: x * next(turns),
        lambda _, x: x.exp() if next(turns) == 1 else x.sin(),
        lambda _, x: x if next(turns) == 1 else x.sin(),
    ):
        engine = _built(_small(between=between), products=False).engine
        built = TapeEngine(engine)
        with pytest.raises(NotTheSameError, match="two steps do not call"):
            built.warm_up()


def test_hooks_are_called() -> None:
    model = _small()
    model.down[0].register_forward_hook(lambda *_: None)
    built = _built(model)
    assert not built.actual["tape"]


def test_what_is_written_wrongly_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call left out: the gate sees that batch norm's statistics, or a weight, stay behind."""
    needed = Tape.needed
    for name in ("running_stats_", "update_", "add_"):
        monkeypatch.setattr(
            Tape,
            "needed",
            lambda self, name=name: [c for c in needed(self) if name not in str(c.operator)],
        )
        with pytest.warns(UserWarning, match="went wrong here"):
            built = _built(_small())
        assert not built.actual["tape"]


def test_calls_that_do_nothing_are_left_out() -> None:
    x, y, mean, var = torch.ones(3, 2), torch.zeros(3, 2), torch.zeros(2), torch.ones(2)
    with Tape([x]) as written:
        x.exp()  # used by nobody
        x.bernoulli()  # nor this, but what is drawn next depends on it
        nn.functional.batch_norm(x, mean, var, training=True)  # changes both
        z = x.detach() * 2
        y.add_(z)
    names = [str(call.operator).split(".")[1] for call in written.needed()]
    assert names == ["bernoulli", "native_batch_norm", "mul", "add_"]
    assert written.needed()[2].args == (Value(0), 2)
    assert [id(t) for t in written.kept.values()] == [id(t) for t in (mean, var, y)]


def test_a_short_batch_has_a_list_of_its_own() -> None:
    engine = _built(_small()).engine
    assert isinstance(engine, TapeEngine)
    assert list(engine.listed) == [BATCH, len(IMAGES) % BATCH]


def test_a_list_needs_no_compiler() -> None:
    """Which takes most of a second to load."""
    code = (
        "import sys, torch\n"
        "from vaebench.fast.tape import Tape\n"
        "with Tape([]):\n"
        "    torch.ones(3).exp()\n"
        "assert 'torch._dynamo' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_it_stands_where_the_register_says() -> None:
    names = [t.name for t in TECHNIQUES]
    assert names.index("batch_norm") < names.index("tape") < names.index("compile")


def test_an_operator_of_something_else_stays_out() -> None:
    """DataParallel hands its profiler's own objects about, which refuse to be compared."""
    model = _small()
    model.down = nn.DataParallel(model.down)  # type: ignore[assignment]
    built = _built(model)
    assert not built.actual["tape"]
    assert "hands objects about" in _note(built)
    _trained(built)
