"""What the package's own networks share: labels beside images and codes, and samples."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vaebench.errors import WIDEST, InputError, check_count
from vaebench.likelihoods import mean_pixels
from vaebench.models.protocol import Output, prior_of


class BaseVAE(nn.Module):
    """A VAE with a diagonal Gaussian q(z|x), or q(z|x, y) where it is given ``classes``.

    A conditional VAE models images x given their label y: encoder and decoder see the label too, so
    that z holds what is left, the style. Source: Kingma et al., Semi-Supervised Learning with Deep
    Generative Models (arXiv 1406.5298), section 2, M2 with all labels known.
    """

    latent_dim: int
    likelihood: str
    classes: int | None

    def encode(self, x: Tensor, y: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Give (mu, logvar), each (B, Z), for x (B, ...), and y (B,) where there are classes."""
        raise NotImplementedError

    def decode(self, z: Tensor, y: Tensor | None = None) -> Any:
        """Give the output (B, ...) for z (B, Z), and y (B,) where there are classes."""
        raise NotImplementedError

    @torch.no_grad()
    def sample(
        self, n: int, generator: torch.Generator | None = None, *, y: int | Tensor | None = None
    ) -> Tensor:
        """Draw z from the prior and give the n mean images (n, ``*image_shape``).

        Where there are classes, of the label y: one for all, or (n,) int64. The generator must live
        on the model's device. Call ``eval()`` before where there is batch norm: in train mode it
        would normalise each image by the others.
        """
        z = self.draw(n, generator)
        weight = next(self.parameters())
        if y is not None:
            y = torch.as_tensor(y, device=weight.device).expand(n)
        return self.pixels(self.decode(z.to(weight.dtype), y))

    @torch.no_grad()
    def draw(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw codes (n, Z) from the prior; the generator must live on the model's device."""
        check_count("n", n)
        weight = next(self.parameters())
        z = torch.randn(n, self.latent_dim, generator=generator, device=weight.device)
        if (prior := prior_of(self)) is None:
            return z
        mu, logvar = prior
        which = torch.randint(len(mu), (n,), generator=generator, device=weight.device)
        return mu[which] + torch.exp(0.5 * logvar[which]) * z

    def pixels(self, output: Output) -> Tensor:
        """Turn the decoder's output into mean pixel values, E[x|z]."""
        return mean_pixels(self.likelihood, output)

    def _joined(self, values: Tensor, y: Tensor | None) -> Tensor:
        """Put the labels y (B,) beside values (B, N, ...), one-hot: (B, N + classes, ...)."""
        if self.classes is None:
            if y is not None:
                raise InputError(
                    f"this {type(self).__name__} takes no labels: make it with classes=..., or "
                    "leave them out"
                )
            return values
        if y is None:
            raise InputError(
                f"this {type(self).__name__} takes labels, and was given none: give y, one of 0 to "
                f"{self.classes - 1} for each image"
            )
        label = F.one_hot(y, self.classes).to(values.dtype)
        label = label.view(*label.shape, *(1,) * (values.dim() - 2))
        return torch.cat([values, label.expand(-1, -1, *values.shape[2:])], 1)


def check_classes(classes: object) -> int | None:
    """Give the number of classes as it is, or None; InputError if it cannot be one."""
    return None if classes is None else check_count("classes", classes, most=WIDEST)
