"""Binary pixels from grey ones: by a threshold, by one fixed sample, or by a new one every epoch.

Sampling takes a grey value as the probability that its pixel is lit. Only of binary pixels is a
Bernoulli ELBO a bound on a log-likelihood. Source: Salakhutdinov & Murray, On the quantitative
analysis of deep belief networks (ICML 2008); fixed once by Larochelle & Murray (AISTATS 2011).
"""

import torch
from torch import Tensor

from vaebench.errors import InputError
from vaebench.system.random import TRAINING_PIXELS, random_stream

# Of the fixed samples. Not the training's seed: all trainings then share one data set.
FIXED_SEED = 0
NOTES = {
    "threshold": "--binarize threshold: pixels of at least one half are lit",
    "static": "--binarize static: one fixed sample of the grey images, drawn by vaebench (seed "
    f"{FIXED_SEED}); it stands in for Larochelle & Murray's, which is a separate download",
    "dynamic": "--binarize dynamic: every training image is sampled anew each epoch; the test "
    f"images are one fixed sample (seed {FIXED_SEED})",
}
# Pixels at a time: what is drawn for them stays in the processor's cache.
CHUNK = 1 << 20


def binarize(images: Tensor, how: str, purpose: int) -> Tensor:
    """Give images of the same shape with uint8 pixels 0 and 255, on the CPU; new memory.

    Args:
        images: (N, ...) uint8, or float in [0, 1].
        how: ``"threshold"``; or ``"static"`` or ``"dynamic"``: a fixed sample, the same in every
            process. The sample of the first n images is the first n of the sample.
        purpose: ``TRAINING_PIXELS`` or ``TEST_PIXELS``: which fixed sample.

    Raises:
        InputError: the pixels are no probabilities.
    """
    images = images.cpu()
    _check(images)
    if how == "threshold":
        half = 128 if images.dtype == torch.uint8 else 0.5
        return (images >= half).to(torch.uint8).neg_()
    out = torch.empty_like(images, dtype=torch.uint8)
    _sample(images, random_stream(FIXED_SEED, purpose, images.device), out)
    return out


class Sampler:
    """Dynamic binarisation: a new sample of every image for each epoch.

    Epoch e's sample is a function of the seed, e and the kind of device alone, so that a training
    can go on from any epoch and every engine sees the same pixels.

    Args:
        grey: (N, ...) uint8, or float in [0, 1].
        seed: of the stream, which is apart from those of the order and the noise.
        device: where samples are drawn.
    """

    def __init__(self, grey: Tensor, seed: int, device: torch.device) -> None:
        _check(grey)
        self.grey = grey.to(device)
        self.seed = seed

    def draw(self, epoch: int, out: Tensor) -> None:
        """Write epoch's sample, pixels 0 and 255, to ``out``: (N, ...) uint8, on any device."""
        stream = random_stream(self.seed, TRAINING_PIXELS, self.grey.device, epoch)
        _sample(self.grey, stream, out)


def is_binary(images: Tensor) -> bool:
    """Say whether every pixel is 0 or full (255 of uint8, 1 of floats)."""
    full = 255 if images.dtype == torch.uint8 else 1
    return all(bool(((p == 0) | (p == full)).all()) for p in images.flatten().split(CHUNK))


def meaning(likelihood: str, images: Tensor, how: str) -> str:
    """Say what an ELBO of these images, binarised so, is; unlike ones never share a column."""
    if likelihood == "logistic":
        return "bound on log-likelihood of 256 grey levels"
    if likelihood != "bernoulli":
        return "bound on log-density"
    if how != "none" or is_binary(images):
        return "bound on log-likelihood"
    return "score of grey pixels, no likelihood"


def _check(images: Tensor) -> None:
    if images.is_floating_point():
        low, high = images.min().item(), images.max().item()
        if low < 0 or high > 1:
            raise InputError(
                f"pixels from {low:.4g} to {high:.4g} cannot be binarised: rescale them to [0, 1] "
                "or uint8, or leave out --binarize"
            )


def _sample(grey: Tensor, stream: torch.Generator, out: Tensor) -> None:
    """Light each pixel with the probability that its grey value is."""
    for pixels, target in zip(grey.flatten().split(CHUNK), out.flatten().split(CHUNK), strict=True):
        lit = torch.empty_like(pixels, dtype=torch.uint8)
        if pixels.is_floating_point():
            uniform = torch.rand(len(pixels), generator=stream, device=pixels.device)
            torch.lt(uniform, pixels, out=lit)
        else:
            torch.lt(_draw_16_bits(len(pixels), stream), _thresholds(pixels), out=lit)
        target.copy_(lit.neg_())  # 1 becomes 255


def _draw_16_bits(count: int, stream: torch.Generator) -> Tensor:
    """Uniform int16 but for the largest, which never comes up.

    Four from each 64-bit number: of all of torch's ways to draw on a CPU the quickest, a quarter
    of ``rand``'s time.
    """
    bits = torch.empty(-(-count // 4), dtype=torch.int64, device=stream.device)
    bits.random_(-(2**63), None, generator=stream)
    return bits.view(torch.int16)[:count].clamp_(max=32766)


def _thresholds(pixels: Tensor) -> Tensor:
    """Of 65536 equally likely int16, 257 g lie below g's threshold: g / 255 of them, to 2**-16.

    0 is never lit. 255 always is, since the largest number never comes up.
    """
    return pixels.to(torch.int16).mul_(257).sub_(-32768)
