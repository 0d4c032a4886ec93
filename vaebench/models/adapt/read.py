"""What a model's encode and decode gave, understood: where mu and logvar are, where the output."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Distribution

from vaebench.models.adapt.names import (
    OUTPUTS,
    SPREADS,
    Path,
    Step,
    follow,
    parts,
    returned_names,
    role,
)

HINTS = {
    "encode": 'say what it gives, in order: vaebench.adapt(model, encode="mu, logvar"), '
    "or sigma or variance in place of logvar, _ for what is neither",
    "decode": 'say what it gives, in order: vaebench.adapt(model, decode="logits"), '
    'or probabilities, "mean", "mean, logvar", _ for what is of no use',
}


class Unread(Exception):
    """What a method gave cannot be understood: the message says what, ``helped`` if words help."""

    def __init__(self, gave: str, helped: bool = True) -> None:
        super().__init__(gave)
        self.helped = helped


@dataclass(frozen=True)
class Pair:
    """Where mu, or the mean, and its spread are in what a method gave.

    ``spread`` is ``"logvar"``, ``"logstd"``, ``"std"``, ``"variance"``, or ``"softplus"``, of which
    that makes a std. With ``halves`` both are
    in one tensor, one after the other along dimension 1.
    """

    mu: Path
    scale: Path
    spread: str = "logvar"
    halves: bool = False

    def of(self, value: Any) -> tuple[Tensor, Tensor]:
        """(mu, what the spread is told by), as the model gives them."""
        if self.halves:
            mu, scale = follow(value, self.mu).chunk(2, 1)
            return mu, scale
        return follow(value, self.mu), follow(value, self.scale)


# A standard deviation of what a spread may be; of either sign, as z is drawn with it.
STDS: dict[str, Callable[[Tensor], Tensor]] = {
    "logvar": lambda scale: (0.5 * scale).exp(),
    "logstd": torch.exp,
    "std": lambda scale: scale,
    "variance": torch.sqrt,
    "softplus": F.softplus,
}


def logvar_of(scale: Tensor, spread: str) -> Tensor:
    """Turn a spread into the logarithm of a variance."""
    if spread == "logvar":
        return scale
    scale = scale if scale.dtype == torch.float64 else scale.float()
    if spread == "logstd":
        return 2 * scale
    return torch.log(scale) if spread == "variance" else 2 * torch.log(STDS[spread](scale).abs())


def described(value: Any) -> str:
    """Say what a method gave: ``3 values of shapes (2, 4), (2, 4), (2, 9)``."""
    if isinstance(value, Tensor):
        kind = "" if value.is_floating_point() else f", {value.dtype}"
        return f"one tensor of shape {tuple(value.shape)}{kind}"
    if isinstance(value, (tuple, list)) and not hasattr(value, "_fields"):
        if all(isinstance(item, Tensor) for item in value):
            return f"{len(value)} values of shapes {', '.join(str(tuple(t.shape)) for t in value)}"
        return f"{len(value)} values: {', '.join(described(item) for item in value)}"
    named = parts(value)
    return f"a {type(value).__name__}" + (f" of {', '.join(named)}" if named else "")


def read_encoded(
    value: Any,
    named_as: Callable[[int], list[str | None]],
    again: Callable[[], Any],
    given: tuple[str, ...] = (),
) -> tuple[Pair, bool]:
    """Find mu and its spread in what ``encode`` gave.

    Args:
        value: what it gave.
        named_as: what so many values without names are called in the model's own text.
        again: calls it once more, with other noise.
        given: what the caller says it gives, in order.

    Returns:
        The pair, and whether the spread was taken for a logvar for want of a name.

    Raises:
        Unread: they are not to be found.
    """
    if isinstance(value, Tensor):
        pair = _halves(value, given)
        if pair is None:
            raise Unread(described(value))
        return pair, False
    if isinstance(value, (tuple, list)) and not hasattr(value, "_fields"):
        return _in_order(value, named_as, again, given)
    named = parts(value) or {}
    if isinstance(value, Distribution) and not named:
        raise Unread(
            f"a {type(value).__name__}, and of distributions only a Normal is known here: pass a "
            "function, vaebench.adapt(model, encode=lambda x: (mu, logvar))",
            helped=False,
        )
    pair = _by_name(named)
    if pair:
        return pair, False
    for step in named.values():
        child = follow(value, (step,))
        if not isinstance(child, Tensor):
            try:
                return _under(step, read_encoded(child, named_as, again, given))
            except Unread:
                continue
    raise Unread(described(value))


def _under(step: Step, found: tuple[Pair, bool]) -> tuple[Pair, bool]:
    pair, guessed = found
    return Pair((step, *pair.mu), (step, *pair.scale), pair.spread, pair.halves), guessed


def _halves(value: Tensor, given: tuple[str, ...]) -> Pair | None:
    if len(given) != 2 or given[0] != "mu" or value.dim() < 2 or value.shape[1] % 2:
        return None
    return Pair((), (), given[1], halves=True)


def _by_name(named: dict[str, Step]) -> Pair | None:
    roles = {role(name): step for name, step in reversed(named.items())}
    spread = next((kind for kind in SPREADS if kind in roles), None)
    if "mu" not in roles or spread is None:
        return None
    return Pair((roles["mu"],), (roles[spread],), spread)


def _in_order(
    values: Any,
    named_as: Callable[[int], list[str | None]],
    again: Callable[[], Any],
    given: tuple[str, ...],
) -> tuple[Pair, bool]:
    """Find them among values without names of their own."""
    for place, value in enumerate(values):
        if not isinstance(value, Tensor) and parts(value):  # a distribution and something else
            return _under(("item", place), read_encoded(value, named_as, again))
    roles: list[str | None] = [*given]
    if not given:
        roles = [role(name) if name else None for name in named_as(len(values))]
    roles += [None] * (len(values) - len(roles))
    mu = roles.index("mu") if "mu" in roles else None
    spreads = [place for place, kind in enumerate(roles) if kind in SPREADS]
    scale = min(spreads, key=lambda place: SPREADS.index(str(roles[place])), default=None)
    if len(values) == 2 and (mu is None or scale is None):  # the other one, or in this order
        mu = mu if mu is not None else 0 if scale is None else 1 - scale
        scale = 1 - mu
    elif mu is None or scale is None:
        mu, scale = _neighbours(_steady(values, again), mu, scale, values)
    if mu is None or scale is None or mu >= len(values) or scale >= len(values):
        raise Unread(described(values))
    spread = roles[scale] if roles[scale] in SPREADS else "logvar"
    pair = Pair((("item", mu),), (("item", scale),), str(spread))
    return pair, roles[scale] not in SPREADS


def _steady(values: Any, again: Callable[[], Any]) -> list[int]:
    """Places of tensors that no noise goes into: z itself, drawn, is not among them."""
    floats = [i for i, v in enumerate(values) if isinstance(v, Tensor) and v.is_floating_point()]
    if len(floats) <= 2:
        return floats
    other = again()
    return [i for i in floats if torch.equal(values[i], other[i])]


def _neighbours(
    places: list[int], mu: int | None, scale: int | None, values: Any
) -> tuple[int | None, int | None]:
    """Two values of one shape, one after the other, that fit what is known."""
    for first, second in pairwise(places):
        fits = mu in (None, first) and scale in (None, second)
        if fits and values[first].shape == values[second].shape and values[first].dim() >= 2:
            return first, second
    return None, None


def read_decoded(
    value: Any, x: Tensor, method: Any, likelihood: str, given: tuple[str, ...] = ()
) -> Path | Pair:
    """Find the output in what ``decode`` gave.

    Args:
        value: what it gave.
        x: the images, as many numbers as the output must hold.
        method: what was called, whose text may name what it returns.
        likelihood: with ``"gaussian"`` there may be a variance beside the mean.
        given: what the caller says it gives, in order.

    Returns:
        The path to the output, or the pair of mean and spread.

    Raises:
        Unread: there is none of so many numbers, or more than one.
    """
    if isinstance(value, Tensor):
        return _whole(value, x, given)
    if isinstance(value, (tuple, list)) and not hasattr(value, "_fields"):
        names = list(given) or returned_names(method, len(value))
        roles = [*(role(name) if name else None for name in names), *[None] * len(value)]
        steps: list[tuple[str | None, Step]] = [(roles[i], ("item", i)) for i in range(len(value))]
    else:
        steps = [(role(name), step) for name, step in (parts(value) or {}).items()]
    full = [(kind, step) for kind, step in steps if holds(follow(value, (step,)), x)]
    if likelihood == "gaussian":
        mean = next((step for kind, step in full if kind in ("mu", "recon")), None)
        spread = next(((k, step) for kind in SPREADS for k, step in steps if k == kind), None)
        if mean and spread:
            return Pair((mean,), (spread[1],), str(spread[0]))
    for wanted in OUTPUTS:
        for kind, step in full:
            if kind == wanted:
                return (step,)
    if len(full) == 1 or (full and likelihood == "bernoulli"):
        return (full[0][1],)
    for _, step in [] if full else steps:
        try:
            found = read_decoded(follow(value, (step,)), x, method, likelihood)
        except Unread:
            continue
        return _under(step, (found, False))[0] if isinstance(found, Pair) else (step, *found)
    raise Unread(described(value))


def _whole(value: Tensor, x: Tensor, given: tuple[str, ...]) -> Path | Pair:
    """A tensor that is the output, or both halves of one."""
    if value.numel() == 2 * x.numel():
        pair = _halves(value, given)
        if pair:
            return pair
    if not value.is_floating_point():
        raise Unread(f"{value.dtype}: it must give tensors of floats", False)
    if value.numel() != x.numel():
        raise Unread(
            f"{value.numel() // len(x)} numbers per image for images of "
            f"{x.numel() // len(x)} pixels: they must be as many",
            False,
        )
    return ()


def holds(value: Any, x: Tensor) -> bool:
    """Whether a value is a tensor of as many numbers as the images."""
    return isinstance(value, Tensor) and value.is_floating_point() and value.numel() == x.numel()
