"""Models as their authors wrote them, brought to ``encode(x) -> (mu, logvar)`` and ``decode(z)``.

``names`` knows what people call things, ``read`` finds them in what a method gave, ``squash`` finds
a last sigmoid; ``between`` watches the model's own forward, and ``drawing`` finds by it how z is
drawn; ``encoding`` and ``decoding`` try the model. What is found is written down in two
small records (``ways``); the module made of them shares everything with the caller's. May import
``errors`` and ``models``. To know another way of writing a VAE: a word in ``names``, or a case in
``read``, and a model written so in ``tests/models/others``.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from vaebench.config import LIKELIHOODS
from vaebench.errors import InputError, check_choice
from vaebench.likelihoods import OF_LOGITS
from vaebench.models.adapt.decoding import find_decoding
from vaebench.models.adapt.encoding import find_encoding
from vaebench.models.adapt.trial import Trial
from vaebench.models.adapt.ways import Decoding, Encoding, Said, said
from vaebench.models.base import BaseVAE
from vaebench.models.protocol import Mixture, Output, likelihood_of
from vaebench.models.snapshot import untouched


class Adapted(nn.Module):
    """A caller's model in the form that the trainer needs; see :func:`adapt`.

    Its parameters, buffers and mode are the model's, and so are its ``state_dict``'s keys.
    """

    def __init__(self, model: nn.Module, said: Said, likelihood: str) -> None:
        super().__init__()
        self.training = model.training
        self.model = model
        self.said = said
        self.likelihood = likelihood
        self.ways: dict[bool, tuple[Encoding, Decoding]] = {}  # by whether the model is in training
        self.notes: list[str] = []

    def encode(self, x: Tensor, *y: Tensor) -> tuple[Tensor, Tensor]:
        """Give (mu, logvar), each (B, Z), of q(z|x) for images x (B, ...), and labels y if any."""
        if not self.ways:
            found = _understand(self.model, x, y, self.likelihood, self.said, True)
            self.ways, self.notes = found[0], found[1] + found[2]
        return self.ways[self.model.training][0](self.model, x, *y)

    def decode(self, z: Tensor, *y: Tensor) -> Output:
        """Give the output for z (B, Z): Bernoulli logits, Gaussian means, or Gaussian.

        Raises:
            InputError: the model has not been tried on images yet.
        """
        if not self.ways:
            raise InputError("encode some images first: by them it is found how the model decodes")
        return self.ways[self.model.training][1](self.model, z, *y)

    @property
    def mixture_prior(self) -> Callable[[], Mixture] | None:
        """The model's own p(z), if it has one."""
        return getattr(self.model, "mixture_prior", None)

    @property
    def sources(self) -> list[Callable[..., Any]]:
        """What is called of the model's, or of the caller's own, to encode and decode."""
        found = [way.source for ways in self.ways.values() for way in ways]
        return [getattr(self.model, each) if isinstance(each, str) else each for each in found]

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Give the model's own, under its own keys."""
        return self.model.state_dict(*args, **kwargs)

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Load the model's own."""
        return self.model.load_state_dict(state_dict, strict=strict, assign=assign)

    def _get_name(self) -> str:
        return type(self.model).__name__


class EncoderAndDecoder(nn.Module):
    """Two modules as one model."""

    def __init__(self, encoder: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder


def adapt(
    model: nn.Module | tuple[nn.Module, nn.Module],
    *,
    encode: str | Callable[..., Any] | None = None,
    decode: str | Callable[..., Any] | None = None,
    likelihood: str | None = None,
) -> Adapted:
    """Give a model, as its author wrote it, the ``encode`` and ``decode`` that the trainer needs.

    :func:`vaebench.fit` and :func:`vaebench.evaluate` do this by themselves where what the model
    does can be told from names, shapes and a trial; this is to say what cannot. Training the result
    trains the model.

    Args:
        model: a module, or a pair (encoder, decoder). Anything with names will do: methods
            ``encode`` and ``decode``, parts ``encoder`` and ``decoder``, layers ``fc_mu`` and
            ``fc_logvar``; tuples, dicts, data classes, distributions.
        encode: what the model's own gives, in order: ``"mu, sigma"``, ``"_, mu, logvar"``, with
            ``logvar``, ``logstd``, ``sigma`` or ``variance``, and ``_`` for anything else (one
            tensor is cut in halves); or a method's name; or a function of x (B, ...) to call in its
            place, or of x and y where there are labels, whose result may be any of the above.
        decode: the same of a function of z (B, Z), or of z and y: ``"logits"``,
            ``"probabilities"``, ``"mean"``, ``"mean, logvar"``.
        likelihood: what it is used for where nothing else is said, one of
            :data:`vaebench.config.LIKELIHOODS`; default: the model's own, else Bernoulli.

    Returns:
        A module with ``encode(x) -> (mu, logvar)`` and ``decode(z) -> output``.

    Raises:
        InputError: an argument that cannot be. What the model does is found when it is first given
            images, and refused then.
    """
    whole = as_module(model)
    kind = likelihood_of(whole) if likelihood is None else likelihood
    check_choice("likelihood", kind, LIKELIHOODS)
    return Adapted(whole, said(whole, encode, decode), kind)


def adapted(
    model: nn.Module, x: Tensor, likelihood: str, *y: Tensor, training: bool = True
) -> tuple[nn.Module, list[str]]:
    """Give a model the form that the trainer needs, having tried it; leave no trace in it.

    Args:
        model: anything that :func:`adapt` takes, or what it gave.
        x: (B, ...) floats, a few images, on the model's device.
        likelihood: what its output is used for.
        y: (B, ...) labels of the images, where it takes them.
        training: whether it is to be trained; else it is tried in eval mode only.

    Returns:
        The model itself if it has that form already, else one that shares everything with it; and a
        line for each thing that had to be found out.

    Raises:
        InputError: it cannot be told how the model encodes or decodes, or it raised something.
    """
    known = model.said if isinstance(model, Adapted) else Said()
    whole = model.model if isinstance(model, Adapted) else as_module(model)
    if any(map(is_lazy, (*whole.parameters(), *whole.buffers()))):
        raise InputError(
            f"{type(whole).__name__} has lazy layers without weights: give it a batch first, so "
            "that it makes them"
        )
    ways, notes, left_out = _understand(whole, x, y, likelihood, known, training)
    if all(encoding.plain and decoding.plain for encoding, decoding in ways.values()):
        return whole, left_out
    result = Adapted(whole, known, likelihood)
    result.ways, result.notes = ways, notes + left_out
    return result, result.notes


def as_module(model: object) -> nn.Module:
    """Give a model as a module; of a pair (encoder, decoder) one that holds both.

    Raises:
        InputError: it is neither.
    """
    if isinstance(model, (tuple, list)) and len(model) == 2:
        encoder, decoder = model
        if isinstance(encoder, nn.Module) and isinstance(decoder, nn.Module):
            return EncoderAndDecoder(encoder, decoder)
    if not isinstance(model, nn.Module):
        raise InputError(
            f"model is {model!r}: it must be a torch.nn.Module, an instance and not its class"
        )
    return model


def classes_of(model: nn.Module) -> int | None:
    """How many classes of labels one of the package's own networks takes; None of any other."""
    whole = model.model if isinstance(model, Adapted) else model
    return whole.classes if isinstance(whole, BaseVAE) else None


def _understand(
    model: nn.Module,
    x: Tensor,
    y: tuple[Tensor, ...],
    likelihood: str,
    known: Said,
    training: bool,
) -> tuple[dict[bool, tuple[Encoding, Decoding]], list[str], list[str]]:
    """Find how a model encodes and decodes, in training and out of it.

    Returns:
        The ways by whether it is in training, lines on how they were found, and lines on what of
        its forward is left out.
    """
    likelihood = "bernoulli" if likelihood in OF_LOGITS else "gaussian"  # all that decoders know of
    with (
        torch.inference_mode(False),
        torch.set_grad_enabled(training),  # code may want gradients of its own
        torch.autocast(x.device.type, enabled=False),
        untouched(model),
    ):
        # Two at least: batch norm does not train on one.
        x, *labels = (t.detach().repeat(3 - min(len(t), 2), *[1] * (t.dim() - 1)) for t in (x, *y))
        y = tuple(labels)
        model.eval()
        trials = [Trial(model, x, y, likelihood, known)]
        way = _tried(trials[0])
        ways = {False: way, True: way}
        if training:
            model.train()
            trials.append(Trial(model, x, y, likelihood, known))
            ways[True] = _tried(trials[1])
    notes = dict.fromkeys(note for trial in trials for note in trial.notes)
    left_out = dict.fromkeys(note for trial in trials for note in trial.left_out)
    return ways, list(notes), list(left_out)


def _tried(trial: Trial) -> tuple[Encoding, Decoding]:
    encoding = find_encoding(trial)
    return encoding, find_decoding(trial, encoding)
