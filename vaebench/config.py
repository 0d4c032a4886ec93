"""TrainConfig: every knob of a training has its one home, its default and its help text here.

It is made of groups, one for each thing that is settled: data, network, objective, optimizer, fast,
run. Each leaf is one option of the command line and one keyword of :func:`vaebench.fit`, under a
name of its own, so that a flat list of options makes a config (:meth:`TrainConfig.of`) and a config
can be written down as one (:meth:`TrainConfig.options`). No torch in this room: the command line is
checked before torch is loaded.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vaebench.errors import (
    WIDEST,
    InputError,
    check_choice,
    check_count,
    check_counts,
    check_real,
    check_seed,
    check_switch,
    check_text,
)
from vaebench.fast.register import AMP_MODES, TECHNIQUES, Technique
from vaebench.workloads import WORKLOADS as WORKLOADS

LIKELIHOODS = ("bernoulli", "gaussian")
ACTIVATIONS = ("relu", "tanh", "leaky_relu")
NETWORKS = ("mlp", "conv")
OPTIMIZERS = ("adam", "adagrad")
TO_THE_END = ("linear", "cosine", "one-cycle")  # what they give depends on the number of epochs
SCHEDULES = ("constant", *TO_THE_END, "iwae", "pythae")
BETA_SCHEDULES = ("constant", "warmup", "cyclical")
OBJECTIVES = ("vae", "iwae")
BINARIZE = ("none", "threshold", "static", "dynamic")
ENGINES = ("fast", "reference")

# What would take years or every thread there is, and is a slip of the finger.
_MOST = {"epochs": 10**9, "latent_dim": WIDEST, "threads": 1024}


def check_amp(amp: str | None) -> None:
    """Raise InputError unless ``amp`` is None, ``"auto"`` or ``"bf16"``."""
    if amp in ("fp16", "float16", "half"):
        raise InputError(
            f"--amp {amp} is not offered: float16 needs a loss scaler, and exp(logvar) overflows "
            "it; use --amp bf16"
        )
    if amp is not None:
        _check_choice("amp", amp, AMP_MODES)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _check_choice(name: str, value: str, accepted: tuple[str, ...]) -> None:
    check_choice(_flag(name), value, accepted)


def _counted(config: Any, *names: str) -> None:
    """Check fields that count something, and keep them as plain ints, whatever int was given."""
    for name in names:
        value = check_count(_flag(name), getattr(config, name), most=_MOST.get(name))
        object.__setattr__(config, name, value)


def _check_text_or_none(name: str, value: str | None) -> None:
    if value is not None:
        check_text(_flag(name), value)


def _measured(config: Any, *names: str) -> None:
    """Check fields that are real numbers, and keep them as plain floats; some may be zero."""
    for name in names:
        value = check_real(_flag(name), getattr(config, name), zero=name in ("beta", "warmup"))
        object.__setattr__(config, name, value)


def option(default: Any, help: str, *, flag: str | None = None, **argparse_kwargs: Any) -> Any:
    """Declare a field that is also an option, called ``flag`` where that is not the field's name.

    Further keyword arguments are those of ``argparse.add_argument``.
    """
    return field(default=default, metadata={"help": help, "option": flag, **argparse_kwargs})


@dataclass(frozen=True)
class DataConfig:
    """Which images, and what is made of them."""

    source: str = option(
        "auto",
        "auto (MNIST if at hand or downloadable, else strokes), mnist, strokes, "
        "or the path of a .npy, .npz or IDX file or of a folder of IDX files",
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
        0, "last training images to set aside: not trained on, nor looked at", metavar="N"
    )

    def __post_init__(self) -> None:
        check_text("--data", self.source)
        _check_text_or_none("data_dir", self.data_dir)
        _check_choice("binarize", self.binarize, BINARIZE)
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
    activation: str = option("relu", "hidden activation", choices=ACTIVATIONS)
    conditional: bool = option(
        False, "give encoder and decoder each image's label too: p(x|y) is modelled, not p(x)"
    )

    def __post_init__(self) -> None:
        _check_choice("network", self.kind, NETWORKS)
        _counted(self, "latent_dim")
        # A tuple from here on, whatever sequence was given: a run folder can hold it.
        widths = check_counts("--hidden-dim", self.hidden_dim, most=WIDEST)
        object.__setattr__(self, "hidden_dim", widths)
        _check_choice("activation", self.activation, ACTIVATIONS)
        check_switch("--conditional", self.conditional)


@dataclass(frozen=True)
class ObjectiveConfig:
    """What is maximised; see :class:`vaebench.objective.Objective`."""

    likelihood: str | None = option(
        None, "p(x|z) (default: bernoulli, or what the model says)", choices=LIKELIHOODS
    )
    sigma: float = option(1.0, "standard deviation of the Gaussian likelihood", metavar="F")
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
    bound: str = option(
        "vae",
        "what is maximised: the ELBO, averaged over the samples, or the importance-weighted bound",
        flag="objective",
        choices=OBJECTIVES,
    )
    samples: int = option(1, "z drawn per image and step, the k of both objectives", metavar="K")

    def __post_init__(self) -> None:
        if self.likelihood is not None:
            _check_choice("likelihood", self.likelihood, LIKELIHOODS)
        _measured(self, "sigma", "beta", "beta_epochs")
        _check_choice("beta_schedule", self.beta_schedule, BETA_SCHEDULES)
        _check_choice("objective", self.bound, OBJECTIVES)
        _counted(self, "samples")
        if self.bound == "iwae" and (self.beta, self.beta_schedule) != (1, "constant"):
            raise InputError(
                f"--beta is {self.beta}, {self.beta_schedule}: the importance-weighted bound has "
                "no separate KL to weigh; drop --beta and --beta-schedule, or use --objective vae"
            )


@dataclass(frozen=True)
class OptimizerConfig:
    """How often, in which steps and by which rule the parameters move."""

    epochs: int = option(10, "passes over the training images", metavar="N")
    batch_size: int = option(128, "images per optimiser step", metavar="N")
    name: str = option("adam", "update rule", flag="optimizer", choices=OPTIMIZERS)
    lr: float = option(1e-3, "learning rate", metavar="F")
    adam_eps: float = option(1e-8, "epsilon in Adam's denominator", metavar="F")
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
        _counted(self, "epochs", "batch_size")
        _check_choice("optimizer", self.name, OPTIMIZERS)
        _measured(self, "lr", "adam_eps", "warmup")
        _check_choice("schedule", self.schedule, SCHEDULES)


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
                check_switch(_flag(technique.name), value)

    FastConfig = dataclasses.make_dataclass(
        "FastConfig",
        [(t.name, bool, option(t.default, f"{t.help}{t.where}", **t.option)) for t in TECHNIQUES],
        frozen=True,
        namespace={
            "__post_init__": _check_techniques,
            "__doc__": "One field for each technique of :mod:`vaebench.fast.register`.",
        },
    )


_NOTHING_SAID = FastConfig()


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
    quiet: bool = option(False, "print warnings and errors only")

    def __post_init__(self) -> None:
        object.__setattr__(self, "seed", check_seed("--seed", self.seed))
        check_text("--device", self.device)
        if self.threads is not None:
            _counted(self, "threads")
        _check_choice("engine", self.engine, ENGINES)
        if self.checkpoint_every != 0:
            _counted(self, "checkpoint_every")
        for name in ("out", "resume"):
            _check_text_or_none(name, getattr(self, name))
        check_switch("--plot", self.plot)
        check_switch("--quiet", self.quiet)


@dataclass(frozen=True, init=False)
class TrainConfig:
    """One training, complete; see the groups for what there is to settle.

    Made of groups, of options by their flat names, or of both:
    ``TrainConfig(epochs=3, run=RunConfig(seed=1))``.

    Raises:
        InputError: a value that cannot be.
        TypeError: no such option; names it.
    """

    workload: str = option("mlp", "named recipe that sets the defaults of the options below")
    data: DataConfig = DataConfig()
    network: NetworkConfig = NetworkConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    fast: FastConfig = _NOTHING_SAID
    run: RunConfig = RunConfig()

    def __init__(self, **given: Any) -> None:
        groups: dict[str, Any] = {each.name: each.default for each in dataclasses.fields(self)}
        for name, default in groups.items():
            if name in given and type(given[name]) is type(default) and name != "workload":
                groups[name] = given.pop(name)
        changes: dict[str, dict[str, Any]] = {}
        for name, value in given.items():
            if name not in OPTIONS:
                raise TypeError(f"there is no option {name!r}")
            group, leaf = OPTIONS[name]
            changes.setdefault(group, {})[leaf] = value
        groups |= changes.pop("", {})
        groups |= {g: dataclasses.replace(groups[g], **c) for g, c in changes.items()}
        for name, value in groups.items():
            object.__setattr__(self, name, value)
        self._check()

    def _check(self) -> None:
        _check_choice("workload", self.workload, tuple(WORKLOADS))
        if self.objective.likelihood == "bernoulli" and self.objective.sigma != 1:
            raise InputError(
                f"--sigma {self.objective.sigma} belongs to the Gaussian likelihood: "
                "add --likelihood gaussian, or drop --sigma"
            )
        if self.run.engine == "reference":
            asked = [t.name for t in TECHNIQUES if not t.default and asks_for(self.fast, t.name)]
            if asked:
                raise InputError(
                    f"--engine reference is plain eager float32: drop "
                    f"{' and '.join(map(_flag, asked))}, or use --engine fast"
                )

    @classmethod
    def of(cls, **options: Any) -> "TrainConfig":
        """Make a config of options by their flat names, as on the command line.

        Raises:
            InputError: a value that cannot be.
            TypeError: no such option; names it.
        """
        return cls(**options)

    def replace(self, **options: Any) -> "TrainConfig":
        """Give this config with other values for some options; raises as :meth:`of`."""
        return type(self)(**{**self.options(), **options})

    def options(self) -> dict[str, Any]:
        """All options by their flat names."""
        return {
            name: getattr(getattr(self, group) if group else self, leaf)
            for name, (group, leaf) in OPTIONS.items()
        }


def _leaves() -> Iterable[tuple[str, str, "dataclasses.Field[Any]"]]:
    """(option, group, field) of every leaf, in the order of the command line's help."""
    for each in dataclasses.fields(TrainConfig):
        if not dataclasses.is_dataclass(each.default):
            yield each.name, "", each
            continue
        for leaf in dataclasses.fields(each.default):
            yield leaf.metadata["option"] or leaf.name, each.name, leaf


FIELDS: Mapping[str, "dataclasses.Field[Any]"] = {name: leaf for name, _, leaf in _leaves()}
# Where each option lives: (group, field); the group of TrainConfig's own is "".
OPTIONS: Mapping[str, tuple[str, str]] = {n: (group, leaf.name) for n, group, leaf in _leaves()}


def recipe(workload: str, **given: Any) -> TrainConfig:
    """Make the config of a named workload, with ``given`` fields in place of the recipe's.

    Raises:
        InputError: no such workload, or a value that cannot be.
    """
    _check_choice("workload", workload, tuple(WORKLOADS))
    return TrainConfig.of(**{"workload": workload, **WORKLOADS[workload].settings, **given})
