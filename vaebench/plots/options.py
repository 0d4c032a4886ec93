"""What can be drawn, and the few choices there are. No torch and no matplotlib in this room."""

from dataclasses import dataclass

from vaebench.errors import InputError

KINDS = (
    "manifold",
    "latent",
    "reconstructions",
    "samples",
    "styles",
    "interpolate",
    "traverse",
    "curves",
    "film",
    "explore",
)
LATENTS = ("mean", "sample")
GRID_MAX = 100  # 100 x 100 images of 28 x 28 are 8 million pixels


class UnsuitedError(InputError):
    """This kind of picture cannot be made of this model, for the reason its message gives."""


@dataclass(frozen=True)
class Options:
    """Choices that hold for all pictures.

    ``grid`` is the manifold's number of images per side, ``percentiles`` those of the prior
    between which the manifold and the traversals run, ``latent`` what the scatter shows of
    q(z|x), ``label`` the class that a conditional model's manifold is of, ``seed`` that of samples
    and of the choice of test images, ``data_dir`` where MNIST is looked for, if not where the
    training found it.
    """

    grid: int = 20
    percentiles: tuple[float, float] = (0.05, 0.95)
    latent: str = "mean"
    label: int = 0
    seed: int = 0
    data_dir: str | None = None

    def __post_init__(self) -> None:
        if not 2 <= self.grid <= GRID_MAX:
            raise InputError(f"--grid is {self.grid}: it must lie in 2 .. {GRID_MAX}")
        low, high = self.percentiles
        if not 0 < low < high < 1:
            raise InputError(
                f"--percentiles are {low} and {high}: they must rise and lie between 0 and 1, "
                "both exclusive, as 0.05 0.95 do"
            )
        if self.latent not in LATENTS:
            raise InputError(f"--latent is {self.latent!r}: choose from {', '.join(LATENTS)}")
        if self.label < 0:
            raise InputError(f"--label is {self.label}: it must be a class, 0 or more")
        if not 0 <= self.seed < 2**63:
            raise InputError(f"--seed is {self.seed}: it must lie in 0 .. 2**63 - 1")


def choose(words: tuple[str, ...]) -> tuple[str, ...]:
    """Turn words into kinds: ``all``, or no word, into every kind; each kind once.

    Raises:
        InputError: a word that names no kind.
    """
    for word in words:
        if word not in (*KINDS, "all"):
            raise InputError(f"{word!r} is no kind of picture: choose from {', '.join(KINDS)}, all")
    if not words or "all" in words:
        return KINDS
    return tuple(dict.fromkeys(words))
