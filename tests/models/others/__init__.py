"""One small network, written in the ways that people write VAEs; see test_adapt_others.

Every class computes what :class:`Plain` computes, from parameters of the same values.
"""

from torch import nn

from tests.models.others import decoding, encoding, whole
from tests.models.others.decoding import (
    ABernoulliOfProbabilities,
    Clamped,
    Probabilities,
    SigmoidInTraining,
    TwoClasses,
)
from tests.models.others.encoding import ADict, AList, Output
from tests.models.others.plain import LATENTS, SHAPE, Plain
from tests.models.others.whole import Decoder, Encoder, OnlyForward, Parts

OTHERS = [
    value
    for module in (encoding, decoding, whole)
    for value in vars(module).values()
    if isinstance(value, type)
    and issubclass(value, nn.Module)
    and value not in (Plain, Encoder, Decoder)
    and value.__module__ == module.__name__
]
__all__ = [
    "LATENTS",
    "OTHERS",
    "SHAPE",
    "ABernoulliOfProbabilities",
    "ADict",
    "AList",
    "Clamped",
    "Decoder",
    "Encoder",
    "OnlyForward",
    "Output",
    "Parts",
    "Plain",
    "Probabilities",
    "SigmoidInTraining",
    "TwoClasses",
]
