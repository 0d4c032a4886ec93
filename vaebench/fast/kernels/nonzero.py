"""How dark images are: whether it pays to leave out pixels that are zero."""

from torch import Tensor

# As in sparse.h: neighbouring pixels that are kept or left out together.
GROUP = 2
# Share of groups with any nonzero pixel from which dense products may be as fast.
WORTHWHILE = 0.5
SAMPLE = 1024  # images looked at to find that share


def nonzero_fraction(images: Tensor) -> float:
    """Find the share of groups of GROUP neighbouring pixels that are not all zero."""
    pixels = images[:: max(1, len(images) // SAMPLE)].flatten(1)
    whole = pixels.shape[1] // GROUP * GROUP
    if whole == 0:
        return 1.0
    groups = pixels[:, :whole].unflatten(1, (-1, GROUP))
    return float(groups.ne(0).any(2).float().mean())


def dark(images: Tensor) -> str | None:
    """Say in a line that leaving out zeros of images (N, ...) pays; None if it does not."""
    share = nonzero_fraction(images)
    if share > WORTHWHILE:
        return None
    return f"the first layer leaves out dark pixels: {share:.0%} of the images' are lit, in twos"
