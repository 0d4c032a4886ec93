"""TrainConfig: every knob of a training has its one home, its default and its help text here.

No torch in this room: the command line is checked before torch is loaded.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from vaebench.errors import InputError

LIKELIHOODS = ("bernoulli", "gaussian")
ACTIVATIONS = ("relu", "tanh", "leaky_relu")
NETWORKS = ("mlp", "conv")
ENGINES = ("fast", "reference")
AMP_MODES = ("auto", "bf16")


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
    network: str = option(
        "mlp", "fully connected, or convolutional for 28x28 pixels", choices=NETWORKS
    )
    latent_dim: int = option(20, "size of z", metavar="N")
    hidden_dim: tuple[int, ...] = option(
        (400,),
        "width of each hidden layer, or channels of each convolution, first to last",
        metavar="N",
        nargs="+",
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
    products: bool = option(True, "on the CPU, compute small convolutions as matrix products")
    flush_denormal: bool = option(True, "treat denormal numbers as zero on the CPU")
    out: str | None = option(
        None, "run folder to write (default: runs/WORKLOAD-TIME)", metavar="DIR"
    )
    plot: bool = option(False, "draw pictures of the run into its folder at the end")
    quiet: bool = option(False, "print warnings and errors only")

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "latent_dim"):
            _check_count(name, getattr(self, name))
        if not self.hidden_dim:
            raise InputError("--hidden-dim is empty: give at least one width, e.g. 400")
        for width in self.hidden_dim:
            _check_count("hidden_dim", width)
        if self.threads is not None:
            _check_count("threads", self.threads)
        _check_real("lr", self.lr, positive=True)
        _check_real("sigma", self.sigma, positive=True)
        _check_real("beta", self.beta, positive=False)
        if not 0 <= self.seed < 2**63:
            raise InputError(f"--seed is {self.seed}: it must lie in 0 .. 2**63 - 1")
        _check_choice("workload", self.workload, tuple(WORKLOADS))
        _check_choice("network", self.network, NETWORKS)
        _check_choice("activation", self.activation, ACTIVATIONS)
        _check_choice("likelihood", self.likelihood, LIKELIHOODS)
        _check_choice("engine", self.engine, ENGINES)
        check_amp(self.amp)
        if self.engine == "reference" and (self.compile or self.amp):
            raise InputError(
                "--engine reference is plain eager float32: drop --compile and --amp, "
                "or use --engine fast"
            )


# Named recipes: what each sets apart from TrainConfig's own defaults.
WORKLOADS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        # pytorch/examples vae/main.py at 77f55b9: 784-400-(20,20)-400-784, Adam 1e-3, batch 128.
        "mlp": MappingProxyType({}),
        # danielwang7/MNIST-VAE at 5694d3c: 5 convolutions, mean squared error + 128/60000 KL, which
        # is, but for a factor, this Gaussian's negative ELBO: vaebench/conv.py says how.
        "conv": MappingProxyType(
            {
                "network": "conv",
                "batch_size": 32,
                "lr": 3e-4,
                "latent_dim": 2,
                "hidden_dim": (32, 64, 128, 256, 512),
                "activation": "leaky_relu",
                "likelihood": "gaussian",
                "sigma": math.sqrt(128 / 60_000 * 784 / 2),
            }
        ),
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
    if value not in accepted:
        raise InputError(f"{_flag(name)} is {value!r}: choose from {', '.join(accepted)}")


def _check_count(name: str, value: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InputError(f"{_flag(name)} is {value!r}: it must be a whole number of at least 1")


def _check_real(name: str, value: float, *, positive: bool) -> None:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise InputError(f"{_flag(name)} is {value!r}: it must be a number")
    if not math.isfinite(value) or value < 0 or (positive and value == 0):
        bound = "above 0" if positive else "of 0 or more"
        raise InputError(f"{_flag(name)} is {value}: it must be a finite number {bound}")
