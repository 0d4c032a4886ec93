"""What decode gives, in the ways that people write it."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Bernoulli, Independent

from tests.models.others.encoding import Output
from tests.models.others.plain import SHAPE, Plain


class Probabilities(Plain):
    def decode(self, z: Tensor) -> Any:
        return super().decode(z).sigmoid()


class TorchSigmoid(Plain):
    def decode(self, z: Tensor) -> Any:
        return torch.sigmoid(super().decode(z)).view(-1, 1, *SHAPE)


class OldSigmoid(Plain):
    def decode(self, z: Tensor) -> Any:
        return F.sigmoid(super().decode(z))


class SigmoidInPlace(Plain):
    def decode(self, z: Tensor) -> Any:
        return super().decode(z).sigmoid_().unsqueeze(1)[:, 0]


class SigmoidLayer(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.end = nn.Sequential(nn.Identity(), nn.Sigmoid())

    def decode(self, z: Tensor) -> Any:
        return self.end(super().decode(z)).view(-1, *SHAPE).transpose(1, 2).transpose(1, 2)


class SigmoidInTraining(Plain):
    """Logits in training, probabilities out of it, or the other way round."""

    def decode(self, z: Tensor) -> Any:
        logits = super().decode(z)
        return logits if self.training else logits.sigmoid()


class WithItsLogits(Plain):
    def decode(self, z: Tensor) -> Any:
        logits = super().decode(z)
        return logits.sigmoid(), logits


class ReconstructionAndMore(Plain):
    def decode(self, z: Tensor) -> Any:
        return super().decode(z).sigmoid(), z.square()


class DecodedDict(Plain):
    def decode(self, z: Tensor) -> Any:
        return {"h": z, "reconstruction": super().decode(z).sigmoid()}


class DecodedHub(Plain):
    def decode(self, z: Tensor) -> Any:
        return Output(sample=super().decode(z))


class ABernoulli(Plain):
    def decode(self, z: Tensor) -> Any:
        return Bernoulli(logits=super().decode(z))


class ABernoulliOfProbabilities(Plain):
    def decode(self, z: Tensor) -> Any:
        return Independent(Bernoulli(probs=super().decode(z).sigmoid()), 1)


class Clamped(Plain):
    """No sigmoid that could be left out: probabilities all the same."""

    def decode(self, z: Tensor) -> Any:
        return super().decode(z).sigmoid().clamp(1e-6, 1 - 1e-6)


class TwoClasses(Plain):
    def decode(self, z: Tensor) -> Any:
        logits = super().decode(z)
        return torch.stack([logits, torch.zeros_like(logits)], -1).softmax(-1)[..., 0]
