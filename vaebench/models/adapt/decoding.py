"""How a model decodes, found by trying it: what its output is, and whether it ends in a sigmoid."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from vaebench.errors import InputError
from vaebench.models.adapt.between import same
from vaebench.models.adapt.encoding import checked_spread
from vaebench.models.adapt.names import DECODERS, Path, follow, parts, role
from vaebench.models.adapt.read import Pair, Unread, holds, read_decoded
from vaebench.models.adapt.squash import end_of
from vaebench.models.adapt.trial import Trial, called_by
from vaebench.models.adapt.ways import LEAST, Decoding, Encoding, Source, called, shaped
from vaebench.models.protocol import Logistic

# Neither logits nor probabilities: bounded on both sides of 0, or never below it.
UNSUITED = ("tanh", "relu", "softplus", "exp")


def find_decoding(trial: Trial, encoding: Encoding) -> Decoding:
    """Find how the model decodes, given how it encodes.

    Raises:
        InputError: it cannot be found, or what it gives cannot be used.
    """
    mu, _ = trial.run(lambda: encoding(trial.model, trial.x, *trial.y))
    z = mu + trial.noise(*mu.shape)
    trial.latent = encoding.latent
    faults: list[tuple[Source, Exception]] = []
    for source in trial.sources(trial.said.decode, DECODERS):
        found = _try(trial, source, encoding.latent, mu, z)
        if not isinstance(found, Decoding) and len(encoding.latent) > 1:
            flat = _try(trial, source, (math.prod(encoding.latent),), mu, z)
            found = flat if isinstance(flat, Decoding) else found
        if isinstance(found, Decoding):
            if source != "decode":
                trial.notes.append(f"decode is {trial.name}'s {called_by(source)}")
            _say_after(trial, found)
            return _ended(trial, found, z)
        faults.append((source, found))
        if not isinstance(found, Unread) and source == "decode":
            break  # its author's own fault is to be said, not passed by
    raise trial.refused("decode", faults)


def _try(
    trial: Trial, source: Source, latent: tuple[int, ...], mu: Tensor, z: Tensor
) -> Decoding | Exception:
    """One source, and z in one shape; what was wrong with it, if it does not do."""
    notes = len(trial.notes)
    try:
        return _read(trial, source, latent, mu, z)
    except (torch.OutOfMemoryError, MemoryError, InputError):
        raise
    except Exception as error:
        del trial.notes[notes:]
        return error


def _read(trial: Trial, source: Source, latent: tuple[int, ...], mu: Tensor, z: Tensor) -> Decoding:
    def work(z: Tensor) -> Any:
        return trial.run(lambda: called(trial.model, source, shaped(z, latent), *trial.y))

    value = work(z)
    if isinstance(value, Logistic):
        if trial.likelihood == "bernoulli":
            raise InputError(
                f"{trial.name}: {called_by(source)} gives a vaebench.Logistic: pass "
                'likelihood="logistic"'
            )
        return Decoding(source, latent, (), plain=source == "decode" and len(latent) == 1)
    method, said = trial.method(source), trial.said.decoded
    output = read_decoded(value, trial.x, method, trial.likelihood, said)
    if isinstance(output, Pair):
        mean, scale = output.of(value)
        scale.expand_as(mean)
        if not said:
            output = checked_spread(trial, output, value, work, z)
    else:
        _say_unused(trial, source, value, output)
    if isinstance(method, nn.Module) and trial.said.decode is None:
        _agree(trial, method, output, mu)
    plain = source == "decode" and output == () and len(latent) == 1
    return Decoding(source, latent, output, plain=plain)


def _say_unused(trial: Trial, source: Source, value: Any, output: Path) -> None:
    """Tell of more values of an image's size than the one that is taken."""
    if isinstance(value, Tensor) or trial.said.decoded or len(output) != 1:
        return
    several = isinstance(value, (tuple, list)) and not hasattr(value, "_fields")
    steps = [("item", i) for i in range(len(value))] if several else (parts(value) or {}).values()
    others = [
        step for step in steps if step != output[0] and holds(follow(value, (step,)), trial.x)
    ]
    if others:
        which = f"number {output[0][1] + 1}" if several else output[0][1]
        trial.notes.append(
            f"{called_by(source)} gives {len(others) + 1} values of an image's size: {which} is "
            "its output, and the others are not used; adapt(model, decode=...) says otherwise"
        )


def _agree(trial: Trial, part: nn.Module, output: Path | Pair, mu: Tensor) -> None:
    """Check that forward gives this part z, and gives what it gives, or the sigmoid of that."""
    seen: list[Any] = []
    given: list[Any] = []

    def look(_: nn.Module, inputs: tuple[Any, ...], value: Any) -> None:
        given.append(inputs[0] if inputs else None)
        seen.append(value)

    handle = part.register_forward_hook(look)
    try:
        _, tensors = trial.forward() or ([], [])
    finally:
        handle.remove()
    if not seen:
        return
    if isinstance(given[-1], Tensor) and not same(given[-1], mu):
        raise Unread("what it makes of something else than z, in forward")
    value = output.of(seen[-1])[0] if isinstance(output, Pair) else follow(seen[-1], output)
    if not _goes_on_as(tensors, [value, value.sigmoid()]):
        raise Unread("something else than forward makes of it")


def _goes_on_as(results: list[Tensor], ends: list[Tensor]) -> bool:
    """Whether forward gives one of these, if it gives anything of their size."""
    alike = [t for t in results if t.numel() == ends[0].numel()]
    return not alike or any(same(t, end) for t in alike for end in ends)


def _say_after(trial: Trial, found: Decoding) -> None:
    """Tell of what forward does with the output, which is left out."""
    passed = trial.passed
    decoded = passed and passed.first((found.source,))
    if not passed or not decoded or isinstance(found.output, Pair):
        return
    value = follow(decoded[1], found.output)
    ends = [value, value.sigmoid()] if trial.likelihood == "bernoulli" else [value]
    if not _goes_on_as(passed.result, ends):
        trial.left_out.append(
            f"forward changes what {called_by(found.source)} gives, which is left out here: "
            "adapt(model, decode=lambda z: ...) says what to do with it"
        )


def _ended(trial: Trial, found: Decoding, z: Tensor) -> Decoding:
    """Find what the output is under the likelihood: logits, probabilities or a mean.

    Raises:
        InputError: it can be none of them.
    """
    path, where = found.output, called_by(found.source)
    if isinstance(path, Pair):
        trial.notes.append(f"{where} gives a variance of its own: sigma is not used")
        return found
    said = trial.said.decoded[0] if trial.said.decoded else _named(path)
    if trial.likelihood != "bernoulli" or said == "logits":
        return found

    def run(z: Tensor = z) -> Tensor:
        given = (shaped(z, found.latent), *trial.y)
        value = trial.run(lambda: called(trial.model, found.source, *given))
        output: Tensor = follow(value, path)
        return output

    end = end_of(run, ("sigmoid", *UNSUITED))
    if end and end.squash == "sigmoid":
        trial.notes.append(f"{where} ends in sigmoid: its logits are used")
        return replace(found, sigmoid=end.place, plain=False)
    if end and said != "probabilities":
        raise InputError(
            f"{trial.name}: {where} ends in {end.squash}, whose output is neither logits nor "
            'probabilities: pass likelihood="gaussian", or remove it'
        )
    if said != "probabilities" and not _bounded(trial, run, z):
        return found
    trial.notes.append(f"{where} gives probabilities: clamped to [{LEAST:g}, 1 - 6e-08]")
    return replace(found, clamped=True, plain=False)


def _bounded(trial: Trial, run: Callable[[Tensor], Tensor], z: Tensor) -> bool:
    """Whether the output stays in [0, 1] however large z is, and depends on it."""
    first = run(z)
    moves = False
    for scale in (0, 1, 10, 100):
        output = run(scale * trial.noise(*z.shape)) if scale else first
        if not bool(((output >= 0) & (output <= 1)).all()):
            return False
        moves = moves or not torch.equal(output, first)
    return moves


def _named(path: Path) -> str | None:
    """What the name of the output says it is."""
    return role(path[-1][1]) if path and isinstance(path[-1][1], str) else None
