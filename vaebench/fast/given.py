"""An optimiser object of the caller's, any torch.optim.Optimizer, in the form that engines need.

What it remembers is its own affair: it is stepped as its author wrote it, eagerly; a compiled graph
calls it as one opaque operator. Kernels that lay weights out otherwise, or have the update in them,
stand aside.
"""

import contextlib
import copy
import inspect
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vaebench.config import OptimizerConfig
from vaebench.errors import InputError
from vaebench.fast.layout import laid_out_as
from vaebench.fast.optimizer import OptimizerState, clipped

# Of a config: what the object settles itself.
ITS_OWN = ("lr", "adam_eps", "adam_betas", "momentum", "weight_decay")

_stepping: ContextVar["GivenState"] = ContextVar("stepping")


def check_given(given: torch.optim.Optimizer, model: nn.Module) -> None:
    """Check that an optimiser can train a model here.

    Raises:
        InputError: it holds none of its parameters, or its steps evaluate the loss themselves.
    """
    name = type(given).__name__
    needed = list(inspect.signature(type(given).step).parameters.values())[1:]
    if any(p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD for p in needed):
        raise InputError(
            f"{name}'s step needs a closure, in which it evaluates the loss several times: choose "
            "an optimiser of one gradient a step"
        )
    if not _held(given) & {id(p) for p in model.parameters()}:
        raise InputError(
            f"the {name} holds none of {model._get_name()}'s parameters: make it of "
            "model.parameters()"
        )


def _held(given: torch.optim.Optimizer) -> set[int]:
    return {id(p) for group in given.param_groups for p in group["params"]}


@dataclass(frozen=True)
class GivenState(OptimizerState):
    """What a caller's optimiser remembers, and its steps; see :class:`OptimizerState`.

    ``base`` has each group's learning rate as it was at first: a schedule multiplies it.
    """

    given: torch.optim.Optimizer = None  # type: ignore[assignment]
    base: tuple[float, ...] = ()

    @classmethod
    def around(
        cls, given: torch.optim.Optimizer, params: list[Tensor], settings: OptimizerConfig
    ) -> "GivenState":
        """Of those parameters that the optimiser holds."""
        held = _held(given)
        mine = [p for p in params if id(p) in held]
        if not mine:
            raise InputError(
                f"nothing that the {type(given).__name__} holds is trained: unfreeze some of it"
            )
        lr = torch.tensor(settings.lr, dtype=torch.float64)
        base = tuple(float(group["lr"]) for group in given.param_groups)
        return cls(mine, {}, [], lr, settings, given=given, base=base)

    @property
    def is_adam(self) -> bool:
        """Nothing is known of its rule."""
        return False

    @property
    def even(self) -> bool:
        """Nothing is known of its counts."""
        return False

    def following(self, params: list[Tensor], *, apart: bool = False) -> "GivenState":
        """Go on with these parameters; it remembers each by itself."""
        found = GivenState.around(self.given, params, self.settings)
        object.__setattr__(found, "base", self.base)
        return found

    def only(self, chosen: list[int]) -> "GivenState":
        """The same optimiser, and some of its parameters alone."""
        params = [self.params[i] for i in chosen]
        return GivenState(params, {}, [], self.lr, self.settings, given=self.given, base=self.base)

    def set_lr(self, lr: float) -> None:
        """Take ``lr`` as a share of the config's: each group's own is multiplied by it.

        Nothing is touched while that stays the same: the caller may have a scheduler.
        """
        if lr == float(self.lr):
            return
        share = lr / self.settings.lr
        self.lr.fill_(lr)
        for group, base in zip(self.given.param_groups, self.base, strict=True):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(base * share)
            else:
                group["lr"] = base * share

    @contextlib.contextmanager
    def stepping(self) -> Iterator[None]:
        """Let compiled steps in the block find this optimiser."""
        before = _stepping.set(self)
        try:
            yield
        finally:
            _stepping.reset(before)

    @torch.no_grad()
    def update(self, grads: tuple[Tensor, ...]) -> None:
        """Take one step, in place, by the optimiser's own code."""
        grads = clipped(grads, self.settings.clip_norm, self.settings.clip_value)
        alike = laid_out_as(self.params, grads)
        if torch.compiler.is_compiling():
            torch.ops.vaebench.step_given_(self.params, alike)
        else:
            self.take(alike)

    def take(self, grads: list[Tensor]) -> None:
        """Step by these gradients.

        Raises:
            InputError: the optimiser's own code raised something.
        """
        for p, grad in zip(self.params, grads, strict=True):
            p.grad = grad
        try:
            self.given.step()
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            raise InputError(
                f"{type(self.given).__name__}.step() raised {type(error).__name__}: {error}"
            ) from error
        finally:
            for p in self.params:
                p.grad = None

    def memory(self) -> dict[str, Tensor]:
        """What is remembered of each parameter, by name, and each group's learning rate.

        Numbers that are no tensors are made some. What is neither is not here: a training that
        goes on from a checkpoint begins it anew.
        """
        found: dict[str, Tensor] = {}
        for i, p in enumerate(self._in_order()):
            for name, value in self.given.state.get(p, {}).items():
                if isinstance(value, Tensor):
                    found[f"{name}.{i}"] = value
                elif type(value) in (int, float):
                    found[f"{name}:{type(value).__name__}.{i}"] = torch.tensor(value)
        # Those of the parameters' shapes first, and numbers last.
        found = dict(sorted(found.items(), key=lambda item: item[1].dim() == 0))
        for i, group in enumerate(self.given.param_groups):
            found[f"group_lr.{i}"] = torch.tensor(float(group["lr"]), dtype=torch.float64)
        return found

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take back what :meth:`memory` gave.

        Raises:
            InputError: it is another optimiser's.
        """
        params = self._in_order()
        groups = self.given.state_dict()["param_groups"]
        entries: dict[int, dict[str, Any]] = {}
        for key, value in state.items():
            name, _, place = key.rpartition(".")
            if not place.isdigit() or int(place) >= len(params):
                raise InputError(f"the optimiser's state has {key!r}: it is another optimiser's")
            if name == "group_lr":
                groups[int(place)]["lr"] = value.item()
                continue
            name, _, kind = name.partition(":")
            entries.setdefault(int(place), {})[name] = value.item() if kind else value.clone()
        self.given.load_state_dict({"state": entries, "param_groups": groups})

    def _in_order(self) -> list[Tensor]:
        return [p for group in self.given.param_groups for p in group["params"]]

    @contextlib.contextmanager
    def unchanged(self) -> Iterator[None]:
        """Put parameters, and all that the optimiser remembers anywhere, back at the end."""
        given, lr = self.given, float(self.lr)
        values = [p.detach().clone() for p in self.params]
        state = {p: _copied(kept, given) for p, kept in given.state.items()}
        # What its author added to what every optimiser is, and each group's own.
        plain = {*vars(torch.optim.SGD([torch.zeros(())], lr=1.0))}
        owners = [(vars(given), plain), *((group, {"params"}) for group in given.param_groups)]
        kept = [_copied({n: v for n, v in o.items() if n not in but}, given) for o, but in owners]
        try:
            yield
        finally:
            with torch.no_grad():
                for p, value in zip(self.params, values, strict=True):
                    p.copy_(value)
                self.lr.fill_(lr)
            given.state.clear()
            given.state.update(state)
            for (owner, but), own in zip(owners, kept, strict=True):
                for name in {*owner} - but - {*own}:
                    del owner[name]
                owner.update(own)


def _copied(kept: Mapping[str, Any], given: torch.optim.Optimizer) -> dict[str, Any]:
    """Copies of what an optimiser keeps; the parameters, and itself, stay what they are.

    So does what cannot be copied, as an open file.
    """
    memo: dict[int, Any] = {id(p): p for group in given.param_groups for p in group["params"]}
    memo[id(given)] = given
    found = dict(kept)
    for name, value in kept.items():
        with contextlib.suppress(TypeError, NotImplementedError, RuntimeError):
            found[name] = copy.deepcopy(value, memo)
    return found


def _step(params: list[Tensor], grads: list[Tensor]) -> None:
    state = _stepping.get()
    state.take(grads)
    for given, own in zip(params, state.params, strict=True):
        if given.data_ptr() != own.data_ptr():  # a compiler may hand over a copy, and copy it back
            given.copy_(own)


_LIBRARY = torch.library.Library("vaebench", "FRAGMENT")
_LIBRARY.define("step_given_(Tensor(a!)[] params, Tensor[] grads) -> ()")
_LIBRARY.impl("step_given_", _step, "CompositeExplicitAutograd")
torch.library.register_fake("vaebench::step_given_", lambda *_: None, lib=_LIBRARY)
