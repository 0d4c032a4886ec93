"""What a model's code reads and does outside its module, in every engine.

The reference runs a model's own code, step by step: what it trains, and what it prints, is what the
owner means.
"""

import cProfile
import functools
import importlib
import logging
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import vaebench
from vaebench.models.code import deeds, outside
from vaebench.models.fingerprint import changes, fingerprint

Z = 3
FACTOR = 1.0
SETTINGS: dict[str, Any] = {"factor": [1.0]}
SEEN: list[Any] = []
ANCHOR = torch.ones(())
LOGGER = logging.getLogger("of a model")


class Settings:
    """An object whose class and instance both have something to say."""

    factor = 1.0

    def scaled(self, x: Tensor) -> Tensor:
        return self.factor * x


settings = Settings()
module = types.ModuleType("a module of settings")
module.factor = 1.0  # type: ignore[attr-defined]


def activation(x: Tensor) -> Tensor:
    return F.leaky_relu(x, 0.1)


def make_class() -> Any:
    """A class of its own for each test, which may change it."""
    inner = 1.0

    class Net(nn.Module):
        own = 1.0

        def __init__(self, factor: float = 1.0) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.fc1, self.fc2 = nn.Linear(36, 16), nn.Linear(16, 2 * Z)
            self.fc3, self.fc4 = nn.Linear(Z, 16), nn.Linear(16, 36)
            self.scaled = functools.partial(torch.mul, 1.0)
            self.last: Callable[..., Any] = lambda x: factor * x

        @property
        def half(self) -> float:
            return 1.0

        def encode(self, x: Tensor) -> Any:
            return self.fc2(activation(self.fc1(x.flatten(1)))).chunk(2, 1)

        def decode(self, z: Tensor) -> Tensor:
            hidden: Any = settings.scaled(activation(self.fc3(z)))
            x: Any = self.last(self.scaled(hidden))
            x = sum(part * FACTOR * SETTINGS["factor"][0] for part in [x]) * ANCHOR
            x = x * inner * self.own * self.half * module.factor
            return self.fc4(x)  # type: ignore[no-any-return]

        def set_inner(self, value: float) -> None:
            nonlocal inner
            inner = value

        def unused(self) -> object:
            return SEEN

    return Net


@pytest.fixture
def net() -> Iterator[Any]:
    yield make_class()()
    globals().update(FACTOR=1.0, activation=_activation, ANCHOR=torch.ones(()))
    SETTINGS["factor"] = [1.0]
    vars(settings).clear()
    Settings.factor = 1.0
    module.factor = 1.0  # type: ignore[attr-defined]
    SEEN.clear()


_activation = activation
CHANGES: dict[str, Callable[[Any], object]] = {
    "global": lambda _: globals().update(FACTOR=0.5),
    "entry of a global": lambda _: SETTINGS["factor"].__setitem__(0, 0.5),
    "global function": lambda _: globals().update(activation=torch.tanh),
    "attribute of a module": lambda _: setattr(module, "factor", 0.5),
    "attribute of an object": lambda _: setattr(settings, "factor", 0.5),
    "attribute of an object's class": lambda _: setattr(Settings, "factor", 0.5),
    "attribute of its class": lambda m: setattr(type(m), "own", 0.5),
    "property of its class": lambda m: setattr(type(m), "half", property(lambda _: 0.5)),
    "method of its class": lambda m: setattr(type(m), "encode", lambda s, x: s.fc2(s.fc1(x)) / 2),
    "variable of an enclosing function": lambda m: m.set_inner(0.5),
    "variable that its function encloses": lambda m: setattr(m, "last", make_class()(0.5).last),
    "argument of a partial": lambda m: setattr(m, "scaled", functools.partial(torch.mul, 0.5)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_code_reads_is_seen_to_change(change: str, net: Any) -> None:
    before = fingerprint(net, [net.encode, net.decode])
    assert before == fingerprint(net, [net.encode, net.decode])
    CHANGES[change](net)
    assert changes(before.state, fingerprint(net, [net.encode, net.decode]).state)


def test_loggers_keep_notes_of_their_own() -> None:
    model = Chain(beside=lambda x: LOGGER)
    before = fingerprint(model)
    LOGGER.isEnabledFor(logging.DEBUG)
    assert vars(LOGGER)["_cache"]
    assert before == fingerprint(model)


def test_another_tensor_in_a_globals_place_is_told_apart(net: Any) -> None:
    """By itself: engines that read it anew need not care."""
    before = fingerprint(net, [net.decode])
    globals().update(ANCHOR=torch.zeros(()))
    after = fingerprint(net, [net.decode])
    assert before.state == after.state
    assert changes(before.memory, after.memory) == ["ANCHOR"]


def test_what_code_does_not_read_may_change(net: Any) -> None:
    before = fingerprint(net, [net.encode, net.decode])
    SEEN.append(1)
    net.unused()
    assert before == fingerprint(net, [net.encode, net.decode])
    assert "SEEN" in outside(net, [net.unused]).values


PACKAGE = """
import torch
FACTOR, seen = 1.0, {}

def scaled(x):
    seen.setdefault("a backend", type(x))
    return FACTOR * x

class Scale(torch.nn.Module):
    def forward(self, x):
        return scaled(x)
"""


@pytest.mark.usefixtures("net")
def test_other_packages_may_fill_their_caches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As einops does; but what a package's own module reads is read by the model."""
    folder = tmp_path / "site-packages" / "scaling"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text(PACKAGE)
    monkeypatch.syspath_prepend(str(folder.parent))
    scaling = importlib.import_module("scaling")
    model = Chain(beside=scaling.scaled)
    assert not any("changes from step to step" in note for note in _fit(model).notes)
    assert "FACTOR" not in outside(model).values
    model.fc5 = scaling.Scale()
    assert "FACTOR" in outside(model).values


ENGINES: dict[str, dict[str, Any]] = {
    "plain": {}, "compiled": {"compile": True, "native": False}, "native": {"compile": True},
}  # fmt: skip


class Chain(nn.Module):
    """What native steps know, with what a test does beside it."""

    def __init__(self, beside: Callable[..., object] = lambda x: None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc1, self.fc2 = nn.Linear(36, 16), nn.Linear(16, 2 * Z)
        self.fc3, self.fc4 = nn.Linear(Z, 16), nn.Linear(16, 36)
        self.beside = beside

    def encode(self, x: Tensor) -> Any:
        hidden = activation(self.fc1(x.flatten(1)))
        self.beside(hidden)
        return self.fc2(hidden).chunk(2, 1)

    def decode(self, z: Tensor) -> Tensor:
        return self.fc4(activation(self.fc3(z)))  # type: ignore[no-any-return]


@pytest.fixture
def any_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is used where it is offered, and nothing is really compiled."""
    lookup = torch._dynamo.lookup_backend
    monkeypatch.setattr(torch._dynamo, "lookup_backend", lambda _: lookup("aot_eager"))


def _fit(model: nn.Module, then: Callable[[Any], object] = id, **how: Any) -> vaebench.History:
    images = torch.rand(50, 6, 6, generator=torch.Generator().manual_seed(0))
    return vaebench.fit(
        model, images, epochs=3, batch_size=16, lr=0.01, seed=1, device="cpu",
        on_epoch=lambda _: then(model), **how,
    )  # fmt: skip


def _elbos(history: vaebench.History) -> list[float]:
    return [record.train_elbo for record in history.epochs]


@pytest.mark.usefixtures("any_engine", "net")
@pytest.mark.parametrize("how", ENGINES.values(), ids=ENGINES)
def test_a_global_function_that_is_replaced(how: dict[str, Any]) -> None:
    found = []
    for each in ({"engine": "reference"}, how):
        globals().update(activation=_activation)
        found.append(_fit(Chain(), CHANGES["global function"], **each))
    assert _elbos(found[1]) == pytest.approx(_elbos(found[0]), rel=2e-5)
    assert bool(found[1].actual["native"]) == (how.get("native", True) and "compile" in how)
    assert "the model was changed (activation" in "".join(found[1].notes)


def _prints(x: Tensor) -> None:
    print("a step")


def _logs(x: Tensor) -> None:
    logging.getLogger("a model's").warning("a step")


def _collects(x: Tensor) -> None:
    SEEN.append("a step")


def _looks(x: Tensor) -> None:
    globals()["SEEN"] += ["a step"] * bool(x.mean().item() < 1e9)


@pytest.mark.usefixtures("any_engine", "net")
@pytest.mark.filterwarnings("ignore:torch.compile failed")
@pytest.mark.parametrize("beside", [_prints, _logs, _collects, _looks])
@pytest.mark.parametrize("how", ENGINES.values(), ids=ENGINES)
def test_what_code_does_beside_computing_is_done(
    how: dict[str, Any],
    beside: Callable[..., object],
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    done = []
    for each in ({"engine": "reference"}, how):
        SEEN.clear()
        caplog.clear()
        capsys.readouterr()
        history = _fit(Chain(beside), **each)
        printed = capsys.readouterr().out.count("a step")
        done.append(printed + len(SEEN) + sum(r.message == "a step" for r in caplog.records))
        assert not history.actual["native"]
    # Trials may do it too, before the training.
    assert done[0] >= 12
    assert done[1] >= 12


@pytest.mark.usefixtures("any_engine", "net")
@pytest.mark.filterwarnings("ignore:torch.compile failed")
def test_native_steps_say_what_keeps_them_out() -> None:
    notes = "".join(_fit(Chain(_prints), compile=True).notes)
    assert (
        "the kernel does not know code that does more than compute (_prints calls print)" in notes
    )


def _checked_by_torch(x: Tensor) -> None:
    F.one_hot(x.long().flatten(), 2)


def _condition(x: Tensor) -> None:
    assert x.sum() > 0


def _number(x: Tensor) -> None:
    float(x.sum())


def _hook(x: Tensor) -> None:
    (x.clone().requires_grad_() * 2).register_hook(torch.zeros_like)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (_checked_by_torch, []),
        (_condition, ["_condition looks at values"]),
        (_number, ["_number looks at values"]),
        (_hook, ["a tensor's gradient is hooked"]),
    ],
)
def test_what_is_looked_at_is_told(code: Callable[..., object], said: list[str]) -> None:
    with deeds() as found:
        code(ANCHOR)
    assert sorted(found.told) == said


def test_a_profiler_goes_on() -> None:
    """Python's own, which could not be put back where it was taken from."""
    profile = cProfile.Profile()
    profile.enable()
    try:
        vaebench.evaluate(vaebench.VAE((6, 6), (8,), 2), torch.rand(5, 6, 6))
        with deeds():
            pass
    finally:
        profile.disable()
    names = {getattr(entry.code, "co_name", "") for entry in profile.getstats()}
    assert {"evaluate", "_only_computes"} <= names


def test_what_is_stored_is_told() -> None:
    def local() -> None:
        found = []
        found.append(1)

    with deeds() as found:
        local()
        _prints(ANCHOR)
    assert found.told == {"_prints calls print"}
    assert found.stored == {"local calls append"}


def _masks(x: Tensor) -> None:
    if x.requires_grad:
        x.register_hook(lambda grad: grad.clamp(min=0))


@pytest.mark.usefixtures("any_engine", "net")
@pytest.mark.filterwarnings("ignore:torch.compile failed")
@pytest.mark.parametrize("how", ENGINES.values(), ids=ENGINES)
def test_a_gradient_that_is_hooked(how: dict[str, Any]) -> None:
    found = [_fit(Chain(_masks), **each) for each in ({"engine": "reference"}, how)]
    assert _elbos(found[1]) == pytest.approx(_elbos(found[0]), rel=2e-5)
    assert not found[1].actual["native"]


class Keeping(Chain):
    """Keeps what it computes, as many do, in attributes that were not there before."""

    def encode(self, x: Tensor) -> Any:
        self.mu, self.logvar = super().encode(x)
        return self.mu, self.logvar


class Beginning(Chain):
    """Does something else in its first step."""

    begun = False

    def encode(self, x: Tensor) -> Any:
        mu, logvar = super().encode(x)
        if not self.begun:
            self.begun = True
            with torch.no_grad():
                self.fc1.weight.mul_(0.5)
        return mu, logvar


@pytest.mark.usefixtures("any_engine", "net")
@pytest.mark.parametrize(("kind", "said"), [(Keeping, ""), (Beginning, "(begun)")])
@pytest.mark.parametrize("how", ENGINES.values(), ids=ENGINES)
def test_what_the_first_step_leaves(how: dict[str, Any], kind: type[Chain], said: str) -> None:
    """Tensors that are kept hinder nobody; what is done but once, each engine does."""
    found = [_fit(kind(), **each) for each in ({"engine": "reference"}, how)]
    assert _elbos(found[1]) == pytest.approx(_elbos(found[0]), rel=2e-5)
    notes = [note for note in found[1].notes if "changes from step to step" in note]
    assert (said in notes[0]) if said else not notes
    assert bool(found[1].actual["compile"]) == ("compile" in how and not said)
