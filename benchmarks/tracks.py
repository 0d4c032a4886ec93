"""The record's two tracks: what is fixed, how a model is scored, which mean score it must reach."""

from dataclasses import dataclass
from pathlib import Path

from benchmarks.harness import load_data
from vaebench import InputError, evaluate, load
from vaebench.config import recipe
from vaebench.data.binarize import binarize
from vaebench.system.random import TEST_PIXELS

# Seeds of the evaluation are none that a training used.
EVALUATION = 10_000


@dataclass(frozen=True)
class Track:
    """One task, by which recipes are compared.

    ``score`` is the field of :class:`vaebench.Evaluation` that must be at least ``bar`` nats on
    average over ``fewest`` seeds, by ``samples`` z per test image. Recipes are like that of
    ``model`` in the options ``fixed``; ``largest`` is the number of parameters allowed.
    """

    workload: str
    score: str
    bar: float
    fewest: int
    samples: int
    model: str
    fixed: tuple[str, ...]
    largest: int | None = None

    def check(self, workload: str) -> None:
        """Check that a recipe is of this track.

        Raises:
            InputError: it is not; says what differs.
        """
        mine, fixed = recipe(workload).options(), recipe(self.model).options()
        other = [n for n in self.fixed if (mine[n] or "bernoulli") != (fixed[n] or "bernoulli")]
        if other:
            raise InputError(
                f"--workload {workload} differs from {self.model} in {', '.join(other)}: this "
                "track's record is not of such"
            )

    def judge(self, run: Path, data: str, seed: int, samples: int) -> float:
        """The score of a finished run: of all test images, with noise of this judge's own.

        Raises:
            InputError: the model has too many parameters.
        """
        model = load(run)
        size = sum(p.numel() for p in model.parameters())
        if self.largest and size > self.largest:
            raise InputError(
                f"{run} has {size:,} parameters: this track allows {self.largest:,}; make it "
                "smaller"
            )
        test = load_data(data).test.images
        if recipe(self.model).data.binarize != "none":
            test = binarize(test, "static", TEST_PIXELS)
        found = evaluate(model, test, samples=samples, seed=EVALUATION + seed)
        return float(getattr(found, self.score))


TRACKS = {
    "elbo": Track(
        *("record", "elbo", -105.5, 20, 1, "mlp"),
        ("network", "latent_dim", "hidden_dim", "likelihood", "sigma", "binarize", "conditional"),
    ),
    "likelihood": Track(
        *("likelihood", "log_likelihood", -86.8, 3, 1000, "iwae"),
        ("likelihood", "binarize", "conditional"),
        largest=2_000_000,
    ),
}
