"""How a model encodes and decodes, once found: small records that are called in every step."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vaebench.errors import InputError
from vaebench.models.adapt.names import SPREADS, Path, follow, words
from vaebench.models.adapt.read import Pair, logvar_of
from vaebench.models.adapt.squash import Without, shown
from vaebench.models.protocol import Gaussian, Output

# A method or a part of the model, by name, or a function of the caller's.
Source = str | Callable[..., Any]
# Nearer to 0 and 1 than this, probabilities are clamped: both logarithms are finite then.
LEAST, MOST = 1e-12, 1 - 2**-24


class Said(NamedTuple):
    """What the caller says of a model: what to call, and what that gives in order."""

    encode: Source | None = None
    decode: Source | None = None
    encoded: tuple[str, ...] = ()
    decoded: tuple[str, ...] = ()


def said(model: nn.Module, encode: Source | None, decode: Source | None) -> Said:
    """Read the arguments of :func:`vaebench.adapt`: a function, a method's name, or words.

    Raises:
        InputError: one of them is none of these.
    """
    sources: list[Source | None] = []
    given: list[tuple[str, ...]] = []
    for name, value, roles in (
        ("encode", encode, ("mu", *SPREADS)),
        ("decode", decode, ("logits", "probabilities", "mu", *SPREADS)),
    ):
        named = isinstance(value, str) and callable(getattr(model, value, None))
        if value is None or callable(value) or named:
            sources.append(value)
            given.append(())
        elif isinstance(value, str):
            sources.append(None)
            given.append(words(value, roles, name))
        else:
            raise InputError(
                f"{name} is {value!r}: it must be a function, a method's name, or a list of "
                'what it gives, as "mu, logvar"'
            )
    return Said(sources[0], sources[1], given[0], given[1])


@dataclass(frozen=True)
class Encoding:
    """How mu and logvar are had from images.

    ``shape`` is what an image is reshaped to, None for its own; ``latent`` the shape of an image's
    mu, as the model gives it; ``heads`` are layers that make mu and its spread of what ``source``
    gives; ``plain`` says that ``encode`` itself gives just what the trainer needs.
    """

    source: Source
    shape: tuple[int, ...] | None
    heads: tuple[str, str] | None
    pair: Pair
    latent: tuple[int, ...]
    plain: bool

    def __call__(self, model: nn.Module, x: Tensor, *y: Tensor) -> tuple[Tensor, Tensor]:
        """(mu, logvar), each (B, Z)."""
        value = called(model, self.source, shaped(x, self.shape), *y, heads=self.heads)
        mu, scale = self.pair.of(value)
        return mu.flatten(1), logvar_of(scale, self.pair.spread).flatten(1)


@dataclass(frozen=True)
class Decoding:
    """How the output is had from z.

    ``latent`` is the shape that the model takes an image's z in; ``sigmoid`` the call of sigmoid
    that is left out, 0 for none; ``clamped`` says that probabilities are turned into logits.
    """

    source: Source
    latent: tuple[int, ...]
    output: Path | Pair
    sigmoid: int = 0
    clamped: bool = False
    plain: bool = False

    def __call__(self, model: nn.Module, z: Tensor, *y: Tensor) -> Output:
        """Logits of a Bernoulli likelihood; the mean, or mean and logvar, of a Gaussian one."""
        z = shaped(z, self.latent)
        if isinstance(self.output, Pair):
            mean, scale = self.output.of(called(model, self.source, z, *y))
            return Gaussian(mean, logvar_of(scale, self.output.spread).expand_as(mean))
        if self.sigmoid:
            without = Without("sigmoid", self.sigmoid)
            with without, shown():
                value = called(model, self.source, z, *y)
            if without.calls < self.sigmoid:  # where a compiler hides one still
                raise RuntimeError(f"sigmoid was called {without.calls} times, not {self.sigmoid}")
        else:
            value = called(model, self.source, z, *y)
        output: Tensor = follow(value, self.output)
        return logits_of(output) if self.clamped else output


def logits_of(probabilities: Tensor) -> Tensor:
    """Turn probabilities into the logits that give them, clamped where there are none."""
    p = probabilities if probabilities.dtype == torch.float64 else probabilities.float()
    p = p.clamp(LEAST, MOST)
    return torch.log(p) - torch.log1p(-p)


def called(
    model: nn.Module, source: Source, *values: Tensor, heads: tuple[str, str] | None = None
) -> Any:
    """What a source gives for x or z, and y if there is any, put through the heads."""
    given = getattr(model, source)(*values) if isinstance(source, str) else source(*values)
    return headed(model, given, heads)


def headed(model: nn.Module, given: Any, heads: tuple[str, str] | None) -> Any:
    """Put what a source gave through the heads, if there are any."""
    if heads is None:
        return given
    mu, scale = (getattr(model, head) for head in heads)
    given = given.flatten(1) if isinstance(mu, nn.Linear) else given
    return mu(given), scale(given)


def shaped(t: Tensor, shape: tuple[int, ...] | None) -> Tensor:
    """A batch (B, ...) in another shape."""
    return t if shape is None else t.reshape(-1, *shape)


def other_shapes(x: Tensor) -> list[tuple[int, ...]]:
    """Shapes that a model may have been made for instead of that of the images x (B, ...)."""
    shape = tuple(x.shape[1:])
    pixels = math.prod(shape)
    side = math.isqrt(pixels)
    others: list[tuple[int, ...]] = [(pixels,)]
    if len(shape) == 2:
        others.append((1, *shape))
    elif len(shape) == 3 and shape[0] == 1:
        others.append(shape[1:])
    elif len(shape) == 1 and side**2 == pixels:
        others += [(1, side, side), (side, side)]
    return [other for other in others if other != shape]
