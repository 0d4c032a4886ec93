"""The plane through latent space that pictures show: all of it, or its two main directions."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Plane:
    """A plane through the prior's mean.

    ``basis`` (Z, Z) has orthonormal columns: the first two span the plane, the rest its
    complement, by falling variance of the encoded test set; the unit matrix where Z is 2.
    ``shares`` (Z,) are the columns' parts of that variance. As the basis is orthonormal, the prior
    is standard normal in its coordinates too.
    """

    basis: Tensor
    shares: Tensor

    @property
    def whole(self) -> bool:
        """Whether the plane is all of latent space."""
        return len(self.basis) == 2

    def project(self, z: Tensor) -> Tensor:
        """Coordinates (N, 2) in the plane of the points z (N, Z)."""
        return z @ self.basis[:, :2]

    def lift(self, coordinates: Tensor) -> Tensor:
        """Points z (N, Z) of coordinates (N, 2) in the plane."""
        return coordinates @ self.basis[:, :2].T

    def axis_names(self) -> tuple[str, str]:
        """What to write along the axes."""
        if self.whole:
            return "$z_1$", "$z_2$"
        first, second = (f"{share:.0%} of variance" for share in self.shares[:2].tolist())
        return f"1st principal direction ({first})", f"2nd principal direction ({second})"

    def caption(self) -> str:
        """One sentence on which plane this is; empty where there is only one."""
        if self.whole:
            return ""
        return (
            f" Shown: the plane through the prior's mean along the first two principal directions "
            f"of the encoded test set ({float(self.shares[:2].sum()):.0%} of its variance); "
            f"the other {len(self.basis) - 2} coordinates are 0."
        )


def find_plane(mu: Tensor) -> Plane:
    """Find the plane for encoded means mu (N, Z), Z at least 2."""
    centred = mu.double() - mu.double().mean(0)
    covariance = centred.T @ centred / len(mu)
    if mu.shape[1] == 2:
        basis, variances = torch.eye(2, dtype=torch.float64), covariance.diagonal()
    else:
        variances, basis = torch.linalg.eigh(covariance)  # by rising variance
        variances, basis = variances.flip(0), basis.flip(1)
        # A direction is found but for its sign: make its largest component positive.
        largest = basis.abs().argmax(0, keepdim=True)
        basis = basis * basis.gather(0, largest).sign()
    return Plane(basis.float(), (variances / variances.sum()).float())


def densest(points: Tensor) -> Tensor:
    """Give the one of the points (N, 2) around which the others lie closest; of 500 at most.

    Unlike their mean or median it lies among them even if they form two groups.
    """
    points = points[:500]
    squares = torch.cdist(points, points).square()
    return points[torch.exp(-squares / 0.1).sum(1).argmax()]
