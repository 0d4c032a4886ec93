"""How a model encodes, found by trying it."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from vaebench.errors import InputError
from vaebench.models.adapt.between import same
from vaebench.models.adapt.drawing import drawn, halves
from vaebench.models.adapt.names import ENCODERS, SPREADS, returned_names, role
from vaebench.models.adapt.read import Pair, Unread, read_encoded
from vaebench.models.adapt.squash import end_of, made_positive
from vaebench.models.adapt.trial import Trial, called_by
from vaebench.models.adapt.ways import Encoding, Source, called, other_shapes, shaped

# How far off inputs are to see what a layer can give: by chance all of one sign they are not.
WILD = (1, 10, 100) * 4


def find_encoding(trial: Trial) -> Encoding:
    """Find how the model encodes.

    Raises:
        InputError: it cannot be found; says what its method gave and what would help.
    """
    faults: list[tuple[Source, Exception]] = []
    for source in trial.sources(trial.said.encode, ENCODERS):
        found = _try(trial, source, None)
        if isinstance(found, Encoding):
            return _noted(trial, found)
        others = [_try(trial, source, shape) for shape in other_shapes(trial.x)]
        fitting = [one for one in others if isinstance(one, Encoding)]
        if len(fitting) == 1:
            return _noted(trial, fitting[0])
        # In another shape it may have come further, to what it gives.
        gave = (one for one in (found, *others) if isinstance(one, Unread))
        faults.append((source, next(gave, found)))
        if not isinstance(found, Unread) and source == "encode":
            break  # its author's own fault is to be said, not passed by
    raise trial.refused("encode", faults)


def _noted(trial: Trial, found: Encoding) -> Encoding:
    if found.shape:
        trial.notes.append(f"images are given to the model in the shape {found.shape}")
    encoded = trial.passed and trial.passed.first((found.source,))
    if encoded and not same(encoded[0], trial.x):
        trial.left_out.append(
            f"forward changes images before {called_by(found.source)}, which is left out here: "
            "adapt(model, encode=lambda x: ...) says what to do with x"
        )
    return found


def _try(trial: Trial, source: Source, shape: tuple[int, ...] | None) -> Encoding | Exception:
    """One source, and images in one shape; what was wrong with it, if it does not do."""
    notes, left_out = len(trial.notes), len(trial.left_out)
    try:
        return _read(trial, source, shape)
    except (torch.OutOfMemoryError, MemoryError, InputError):
        raise
    except Exception as error:
        del trial.notes[notes:], trial.left_out[left_out:]
        return error


def _read(trial: Trial, source: Source, shape: tuple[int, ...] | None) -> Encoding:
    x, given = shaped(trial.x, shape), trial.said.encoded
    heads: tuple[str, str] | None = None
    unnamed = False  # whether it is two halves, the second of which nothing names

    def work(seed: int = 0, x: Tensor = x) -> Any:
        return trial.run(lambda: called(trial.model, source, x, *trial.y, heads=heads), seed)

    value = work()
    if isinstance(value, Tensor):
        heads = _heads(trial)
        halved = () if given and not heads else _halved(trial, value)
        if halved:
            unnamed = not given and not halved[1]
            heads, given = None, given or ("mu", halved[1] or "logvar")
        elif heads:
            given = given or ("mu", str(role(heads[1])))
        elif not given:
            given = halves(trial, source, work)
        value = work()
    pair, guessed = read_encoded(value, partial(_named_as, trial, source), lambda: work(1), given)
    mu, scale = pair.of(value)
    _check_shapes(trial, mu, scale, pair)
    if not trial.said.encoded:
        guessed = guessed or unnamed
        found = drawn(trial, source, heads, pair, value, named=not guessed)
        pair = found or _checked(trial, pair, guessed, lambda inputs=x: work(x=inputs), x, source)
        mu, scale = pair.of(value)
    if heads or not (isinstance(source, str) and source.lower().strip("_") == "encode"):
        _agree(trial, source, mu, scale)
    _say(trial, source, heads, value, pair)
    two = isinstance(value, (tuple, list)) and len(value) == 2
    exact = two and value[0] is mu and value[1] is scale and pair.spread == "logvar"
    plain = exact and (source, shape, heads, mu.dim()) == ("encode", None, None, 2)
    return Encoding(source, shape, heads, pair, tuple(mu.shape[1:]), plain)


def _checked(
    trial: Trial, pair: Pair, guessed: bool, work: Callable[..., Any], x: Tensor, source: Source
) -> Pair:
    """Check that the spread can be what its name says, or a logvar for want of a name."""
    value = work()
    pair = checked_spread(trial, pair, value, work, x, source)
    if guessed:
        if end_of(lambda: pair.of(work())[1], ("exp", "softplus")):
            raise Unread("a last value that is squashed to be above 0, and so is no logvar")
        with torch.enable_grad():
            positive = made_positive(pair.of(work())[1])
        if positive and not _falls_below_0(trial, pair, value, work, x):
            raise Unread("a last value that is never below 0, and so is no logvar")
    return pair


def _named_as(trial: Trial, source: Source, count: int) -> list[str | None]:
    """What the source's text calls so many values, or, where it names no spread, forward's."""
    own = returned_names(trial.method(source), count)
    if any(role(name) in SPREADS for name in own if name):
        return own
    return trial.received(source, count) or own


def _check_shapes(trial: Trial, mu: Any, scale: Any, pair: Pair) -> None:
    for part in (mu, scale):
        if not isinstance(part, Tensor) or not part.is_floating_point():
            kind = part.dtype if isinstance(part, Tensor) else f"a {type(part).__name__}"
            raise Unread(f"{kind}: it must give tensors of floats", False)
    if mu.dim() < 2 or mu.shape != scale.shape or len(mu) != len(trial.x) or not mu.numel():
        shapes = f"mu {tuple(mu.shape)} and {pair.spread} {tuple(scale.shape)}"
        raise Unread(f"{shapes} for {len(trial.x)} images: both must be (batch, latent)", False)


def checked_spread(
    trial: Trial,
    pair: Pair,
    value: Any,
    work: Callable[[Tensor], Any],
    inputs: Tensor,
    source: Source | None = None,
) -> Pair:
    """Give the pair if its spread can be what its name says; what is below 0 may be a logvar.

    Args:
        trial: told of it.
        pair: as its names say.
        value: what the model gave.
        work: what gave it, of inputs; it is tried on wild ones too, of which a linear layer, which
            many call var, makes numbers of both signs.
        inputs: ordinary ones.
        source: whose values forward may call by another name.

    Raises:
        Unread: it is called a standard deviation, and is not above 0.
    """
    if pair.spread not in ("std", "variance") or not _falls_below_0(
        trial, pair, value, work, inputs
    ):
        return pair
    received = (
        trial.received(source, len(value)) if source and isinstance(value, (tuple, list)) else []
    )
    logvar = any(role(name) == "logvar" for name in received if name)
    if pair.spread == "std" and not logvar:
        raise Unread("a sigma that is not above 0 everywhere")
    trial.notes.append(f"what is called {pair.spread} is below 0 somewhere: it is taken for logvar")
    return replace(pair, spread="logvar")


def _falls_below_0(
    trial: Trial, pair: Pair, value: Any, work: Callable[[Tensor], Any], inputs: Tensor
) -> bool:
    if bool((pair.of(value)[1] < 0).any()):
        return True
    for far in WILD:
        try:
            wild = work(far * trial.noise(*inputs.shape))
        except (RuntimeError, ValueError):  # 0 or infinite, a distribution refuses it
            continue
        if bool((pair.of(wild)[1] < 0).any()):
            return True
    return False


def _heads(trial: Trial) -> tuple[str, str] | None:
    """Layers of the model named after mu and its spread."""
    roles: dict[str | None, str] = {}
    for name, _ in trial.model.named_children():
        roles.setdefault(role(name), name)
    spread = next((roles[kind] for kind in SPREADS if kind in roles), None)
    return (roles["mu"], spread) if "mu" in roles and spread else None


def _halved(trial: Trial, value: Tensor) -> tuple[str, ...]:
    """What forward calls the two halves of a tensor, if it gives them apart; "" for nothing."""
    if value.dim() < 2 or value.shape[1] % 2:
        return ()
    names, tensors = trial.forward() or ([], [])
    mu, scale = value.chunk(2, 1)
    at = [place for place, tensor in enumerate(tensors) if same(tensor, scale)]
    if not at or not any(same(tensor, mu) for tensor in tensors):
        return ()
    kind = role(names[at[0]] or "")
    return ("mu", str(kind) if kind in SPREADS else "")


def _agree(trial: Trial, source: Source, mu: Tensor, scale: Tensor) -> None:
    """Check that what a part of the model gives is what forward gives, if that gives as much."""
    _, tensors = trial.forward() or ([], [])
    alike = [tensor for tensor in tensors if tensor.numel() == mu.numel()]
    if len(alike) < 2 or not isinstance(source, str):
        return
    if not all(any(same(t, part) for t in alike) for part in (mu, scale)):
        raise Unread("something else than forward makes of it")


def _say(
    trial: Trial, source: Source, heads: tuple[str, str] | None, value: Any, pair: Pair
) -> None:
    where = called_by(source)
    if source != "encode":
        by = f", with {heads[0]} and {heads[1]}" if heads else ""
        trial.notes.append(f"encode is {trial.name}'s {where}{by}")
    if isinstance(value, (tuple, list)) and len(value) > 2 and not trial.said.encoded:
        steps = [step[1] + 1 for step in (*pair.mu, *pair.scale) if isinstance(step[1], int)]
        if len(steps) == 2:
            trial.notes.append(
                f"{where} gives {len(value)} values: number {steps[0]} is mu, number {steps[1]} "
                f"its {pair.spread}"
            )
    if pair.spread != "logvar":
        trial.notes.append(f"{where} gives a {pair.spread}: logvar is computed from it")
