"""TrainConfig: every knob of a training has its one home, its default and its help text here.

No torch in this room: the command line is checked before torch is loaded.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from vaebench.checks import (
    WIDEST,
    check_choice,
    check_count,
    check_counts,
    check_real,
    check_seed,
    check_switch,
    check_text,
)
from vaebench.errors import InputError

LIKELIHOODS = ("bernoulli", "gaussian")
ACTIVATIONS = ("relu", "tanh")
ENGINES = ("fast", "reference")
AMP_MODES = ("auto", "bf16")


# What would take years or every thread there is, and is a slip of the finger.
_MOST = {"epochs": 10**9, "latent_dim": WIDEST, "threads": 1024}


def option(default: Any, help: str, **argparse_words: Any) -> Any:
    """Declare a dataclass field that is also a command-line option; see ``vaebench.train``."""
    return dataclasses.field(default=default, metadata={"help": help, **argparse_words})


@dataclass(frozen=True)
class TrainConfig:
    """One training, complete. Field names are the command line's words with ``_`` for ``-``."""

    workload: str = option("mlp", "named recipe that sets the defaults of the options below")
    data: str = option(
        "auto",
        "auto (MNIST if at hand or downloadable, else strokes), mnist, strokes, "
        "or the path of a .npy, .npz or IDX file or of a folder of IDX files",
    )
    data_dir: str | None = option(
        None, "folder of MNIST's files (default: $VAEBENCH_DATA, else data/)", metavar="DIR"
    )
    epochs: int = option(10, "passes over the training images", metavar="N")
    batch_size: int = option(128, "images per optimiser step", metavar="N")
    lr: float = option(1e-3, "Adam's learning rate", metavar="F")
    latent_dim: int = option(20, "size of z", metavar="N")
    hidden_dim: tuple[int, ...] = option(
        (400,), "width of each hidden layer, first to last", metavar="N", nargs="+"
    )
    activation: str = option("relu", "hidden activation", choices=ACTIVATIONS)
    likelihood: str = option("bernoulli", "p(x|z)", choices=LIKELIHOODS)
    sigma: float = option(1.0, "standard deviation of the Gaussian likelihood", metavar="F")
    beta: float = option(
        1.0, "weight of the KL in the loss (the ELBO is reported at 1)", metavar="F"
    )
    seed: int = option(0, "seed of the initial weights, the order and the noise", metavar="N")
    device: str = option("auto", "auto, cpu, cuda or cuda:N")
    threads: int | None = option(
        None, "CPU threads (default: what affinity and the cgroup quota allow)", metavar="N"
    )
    engine: str = option("fast", "which code trains", choices=ENGINES)
    compile: bool = option(False, "compile the whole training step into one graph")
    amp: str | None = option(
        None,
        "autocast: auto (the default of the bare flag) uses bf16 where this device multiplies "
        "it faster than float32; bf16 forces it",
        choices=AMP_MODES,
        nargs="?",
        const="auto",
    )
    flush_denormal: bool = option(True, "treat denormal numbers as zero on the CPU")
    out: str | None = option(
        None, "run folder to write (default: runs/WORKLOAD-TIME)", metavar="DIR"
    )
    plot: bool = option(False, "draw pictures of the run into its folder at the end")
    quiet: bool = option(False, "print warnings and errors only")

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "latent_dim"):
            _check_count(name, getattr(self, name))
        check_counts("--hidden-dim", self.hidden_dim, most=WIDEST)
        if self.threads is not None:
            _check_count("threads", self.threads)
        _check_real("lr", self.lr, positive=True)
        _check_real("sigma", self.sigma, positive=True)
        _check_real("beta", self.beta, positive=False)
        check_seed("--seed", self.seed)
        _check_choice("workload", self.workload, tuple(WORKLOADS))
        _check_choice("activation", self.activation, ACTIVATIONS)
        _check_choice("likelihood", self.likelihood, LIKELIHOODS)
        _check_choice("engine", self.engine, ENGINES)
        check_amp(self.amp)
        if self.engine == "reference" and (self.compile or self.amp):
            raise InputError(
                "--engine reference is plain eager float32: drop --compile and --amp, "
                "or use --engine fast"
            )
        self._check_kinds()

    def _check_kinds(self) -> None:
        """What the command line's own parser sees to, but a caller of the library may get wrong."""
        for name in ("data", "device"):
            check_text(_flag(name), getattr(self, name))
        for name in ("data_dir", "out"):
            if getattr(self, name) is not None:
                check_text(_flag(name), getattr(self, name))
        for name in ("compile", "flush_denormal", "plot", "quiet"):
            check_switch(_flag(name), getattr(self, name))
        if self.likelihood == "bernoulli" and self.sigma != 1:
            raise InputError(
                f"--sigma {self.sigma} belongs to the Gaussian likelihood: "
                "add --likelihood gaussian, or drop --sigma"
            )


# Named recipes: what each sets apart from TrainConfig's own defaults.
WORKLOADS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        # pytorch/examples vae/main.py at 77f55b9: 784-400-(20,20)-400-784, Adam 1e-3, batch 128.
        "mlp": MappingProxyType({}),
    }
)


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


def _check_count(name: str, value: int) -> None:
    check_count(_flag(name), value, most=_MOST.get(name))


def _check_real(name: str, value: float, *, positive: bool) -> None:
    check_real(_flag(name), value, zero=not positive)
