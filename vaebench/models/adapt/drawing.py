"""How a model draws z, which says what mu and its spread are, whatever they are called."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import permutations
from typing import Any

from torch import Tensor

from vaebench.models.adapt.between import NORMAL, UNIFORM, Steady, same
from vaebench.models.adapt.names import DECODERS
from vaebench.models.adapt.read import STDS, Pair, Unread
from vaebench.models.adapt.trial import Trial
from vaebench.models.adapt.ways import Source, headed
from vaebench.models.snapshot import modes_kept


def drawn(
    trial: Trial,
    source: Source,
    heads: tuple[str, str] | None,
    pair: Pair,
    value: Any,
    named: bool = True,
) -> Pair | None:
    """Find mu and its spread by what the model makes of them; tell of z that is made otherwise.

    Args:
        trial: its ``passed`` is set to the call of forward by which it was found.
        source: what encodes.
        heads: layers that make mu and its spread of what that gives.
        pair: where they are by name and place.
        value: what it gave.
        named: whether it is a name that says what the spread is.

    Returns:
        The pair that fits, or None if the model does not show.
    """
    decoders = tuple(trial.sources(trial.said.decode, DECODERS))
    found, silent = None, True
    for passed in trial.watched():
        encoded, decoded = passed.first((source,)), passed.first(decoders)
        if encoded is None or decoded is None or not isinstance(decoded[0], Tensor):
            continue
        try:
            given = headed(trial.model, encoded[1], heads)
            silent = is_made_of(decoded[0], pair.of(given)[0])
            found = None if silent else _by_forward(trial, given, pair, decoded[0])
        except (LookupError, AttributeError, TypeError, ValueError, RuntimeError):
            continue  # in this mode it gives other things
        trial.passed = passed
        if not silent:
            break
    if silent:
        found = _by_method(trial, *pair.of(value), pair)
    if found and found.spread != pair.spread and named:
        trial.notes.append(
            f"what is called {pair.spread} is a {found.spread} where z is drawn: taken for that"
        )
    return found


def _by_forward(trial: Trial, value: Any, pair: Pair, z: Tensor) -> Pair | None:
    found = as_drawn(value, pair, z)
    if found:
        return found
    found = as_drawn(value, pair, z, UNIFORM)
    trial.left_out.append(
        "forward draws its noise evenly, by rand: here it is standard normal"
        if found
        else "forward gives decode something else than mu + std * eps, which is left out here: "
        "adapt(model, decode=lambda z: ...) says what to do with z"
    )
    return found


def _by_method(trial: Trial, mu: Tensor, scale: Tensor, pair: Pair) -> Pair | None:
    """Ask a method that is named after the reparameterization, where forward does not show."""
    for name in dir(type(trial.model)):
        if "reparam" not in name.lower():
            continue
        for given in ((mu, scale), (scale, mu)):
            try:
                with modes_kept(trial.model), Steady(NORMAL, UNIFORM):
                    trial.model.train()
                    z = trial.run(partial(getattr(trial.model, name), *given))
                    spread = spread_of(mu, scale, z, pair.spread)
            except Exception:  # it may want anything else
                continue
            if spread:
                return replace(pair, spread=spread)
    return None


def halves(trial: Trial, source: Source, work: Callable[[], Tensor]) -> tuple[str, ...]:
    """Give the roles of a tensor's halves, where forward makes z of them; () if it does not.

    Raises:
        Unread: the tensor is z itself.
    """
    with Steady():
        silent = work()
    with Steady(NORMAL, UNIFORM):
        if not same(silent, work()):
            raise Unread(
                "z, drawn already, and neither mu nor logvar: pass a function that gives both, "
                "vaebench.adapt(model, encode=lambda x: (mu, logvar))",
                helped=False,
            )
    if silent.dim() < 2 or silent.shape[1] % 2:
        return ()
    pair = Pair((), (), "logvar", halves=True)
    found = drawn(trial, source, None, pair, silent, named=False)
    return ("mu", found.spread) if found else ()


def as_drawn(value: Any, pair: Pair, z: Tensor, noise: float = NORMAL) -> Pair | None:
    """Find mu and its spread by what forward makes of them: z.

    Args:
        value: what the encoder gave in that call.
        pair: where they are by name; of what fits, it is taken first.
        z: what the decoder was given.
        noise: what all noise was.

    Returns:
        The pair that fits, or None.
    """
    for found in (pair, *_others(pair, value)):
        spread = spread_of(*found.of(value), z, found.spread, noise)
        if spread:
            return replace(found, spread=spread)
    return None


def spread_of(
    mu: Tensor, scale: Tensor, z: Tensor, first: str, noise: float = NORMAL
) -> str | None:
    """Say what ``scale`` is if z is mu and so much noise; of what fits, ``first`` is preferred."""
    for spread in dict.fromkeys((first, *STDS)):
        if is_made_of(z, mu + STDS[spread](scale) * noise):
            return spread
    return None


def is_made_of(z: Tensor, rows: Tensor) -> bool:
    """Whether z is these rows; once or, as for several draws, again and again; beside labels."""
    rows = rows.flatten(1)
    width = rows.shape[1]
    ways = [z.reshape(-1, width)] if z.numel() % width == 0 else []
    if z.dim() > 1 and z.shape[0] == len(rows):
        flat = z.flatten(1)
        ways += [flat[:, :width], flat[:, -width:]]
    return any(_each_among(way, rows) for way in ways)


def _each_among(found: Tensor, rows: Tensor) -> bool:
    if found.shape[1:] != rows.shape[1:]:
        return False
    near = (found[:, None] - rows).abs() <= 1e-5 + 1e-4 * rows.abs()
    return bool(near.all(-1).any(1).all())


def _others(pair: Pair, value: Any) -> Iterator[Pair]:
    """Every other way to take two of the values for mu and its spread."""
    if isinstance(value, (tuple, list)) and not hasattr(value, "_fields"):
        tensors = [i for i, t in enumerate(value) if isinstance(t, Tensor)]
        for mu, scale in permutations(tensors, 2):
            if value[mu].shape == value[scale].shape and value[mu].is_floating_point():
                yield Pair((("item", mu),), (("item", scale),), pair.spread)
