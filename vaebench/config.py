"""TrainConfig: every knob of a training has its one home, its default and its help text here.

No torch in this room: the command line is checked before torch is loaded.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

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

LIKELIHOODS = ("bernoulli", "gaussian")
ACTIVATIONS = ("relu", "tanh", "leaky_relu")
NETWORKS = ("mlp", "conv")
OPTIMIZERS = ("adam", "adagrad")
SCHEDULES = ("constant", "iwae", "pythae")
OBJECTIVES = ("vae", "iwae")
BINARIZE = ("none", "threshold", "static", "dynamic")
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
    binarize: str = option(
        "none",
        "pixels: none leaves them as they are; threshold lights those of one half or more; static "
        "takes one fixed random sample; dynamic samples the training images anew every epoch",
        choices=BINARIZE,
    )
    holdout: int = option(
        0, "last training images to set aside: not trained on, nor looked at", metavar="N"
    )
    epochs: int = option(10, "passes over the training images", metavar="N")
    batch_size: int = option(128, "images per optimiser step", metavar="N")
    optimizer: str = option("adam", "update rule", choices=OPTIMIZERS)
    lr: float = option(1e-3, "learning rate", metavar="F")
    adam_eps: float = option(1e-8, "epsilon in Adam's denominator", metavar="F")
    schedule: str = option(
        "constant",
        "learning rate by epoch: constant, or that of the iwae or the pythae recipe",
        choices=SCHEDULES,
    )
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
    objective: str = option(
        "vae",
        "what is maximised: the ELBO, averaged over the samples, or the importance-weighted bound",
        choices=OBJECTIVES,
    )
    samples: int = option(1, "z drawn per image and step, the k of both objectives", metavar="K")
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
    native: bool = option(
        True,
        "compile the fully connected network by a kernel written for it; on the CPU",
    )
    triton: bool = option(
        False,
        "on CUDA, train the fully connected network by Triton kernels written for it, where they "
        "are found to agree",
    )
    persistent: bool = option(
        False, "the same by one kernel that goes through many steps; tried before --triton"
    )
    tf32: bool = option(
        False, "on CUDA, float32 products with factors of 10 bits; faster, not equal to float32"
    )
    sparse: bool = option(
        True,
        "let the first layer leave out dark pixels where they are many; compiled, on the CPU",
    )
    fused_likelihood: bool = option(
        True,
        "compute a Bernoulli likelihood and its gradient in one pass; compiled, on the CPU",
    )
    products: bool = option(True, "on the CPU, compute small convolutions as matrix products")
    graph: bool = option(
        True, "on CUDA, replay many steps at once from a graph, where that is measured to pay"
    )
    flush_denormal: bool = option(True, "treat denormal numbers as zero on the CPU")
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
        for name in ("epochs", "batch_size", "latent_dim", "samples"):
            _check_count(name, getattr(self, name))
        # A tuple from here on, whatever sequence was given: a run folder can hold it.
        widths = check_counts("--hidden-dim", self.hidden_dim, most=WIDEST)
        object.__setattr__(self, "hidden_dim", widths)
        if self.threads is not None:
            _check_count("threads", self.threads)
        if self.checkpoint_every != 0:
            _check_count("checkpoint_every", self.checkpoint_every)
        _check_real("lr", self.lr, positive=True)
        _check_real("adam_eps", self.adam_eps, positive=True)
        _check_real("sigma", self.sigma, positive=True)
        _check_real("beta", self.beta, positive=False)
        check_seed("--seed", self.seed)
        _check_choice("workload", self.workload, tuple(WORKLOADS))
        _check_choice("network", self.network, NETWORKS)
        _check_choice("activation", self.activation, ACTIVATIONS)
        _check_choice("likelihood", self.likelihood, LIKELIHOODS)
        _check_choice("engine", self.engine, ENGINES)
        _check_choice("binarize", self.binarize, BINARIZE)
        _check_choice("optimizer", self.optimizer, OPTIMIZERS)
        _check_choice("schedule", self.schedule, SCHEDULES)
        _check_choice("objective", self.objective, OBJECTIVES)
        if not isinstance(self.holdout, int) or self.holdout < 0:
            raise InputError(f"--holdout is {self.holdout!r}: it must be a whole number, 0 or more")
        if self.objective == "iwae" and self.beta != 1:
            raise InputError(
                f"--beta is {self.beta}: the importance-weighted bound has no separate KL to "
                "weigh; drop --beta, or use --objective vae"
            )
        check_amp(self.amp)
        if self.engine == "reference" and (self.compile or self.amp):
            raise InputError(
                "--engine reference is plain eager float32: drop --compile and --amp, "
                "or use --engine fast"
            )
        for name in ("tf32", "triton", "persistent"):
            if self.engine == "reference" and getattr(self, name):
                raise InputError(f"--engine reference is plain eager float32: drop {_flag(name)}")
        self._check_kinds()

    def _check_kinds(self) -> None:
        """What the command line's own parser sees to, but a caller of the library may get wrong."""
        for name in ("data", "device"):
            check_text(_flag(name), getattr(self, name))
        for name in ("data_dir", "out", "resume"):
            if getattr(self, name) is not None:
                check_text(_flag(name), getattr(self, name))
        kernels = ("native", "triton", "persistent", "sparse", "fused_likelihood", "products")
        for name in ("compile", *kernels, "tf32", "graph", "flush_denormal", "plot", "quiet"):
            check_switch(_flag(name), getattr(self, name))
        if self.likelihood == "bernoulli" and self.sigma != 1:
            raise InputError(
                f"--sigma {self.sigma} belongs to the Gaussian likelihood: "
                "add --likelihood gaussian, or drop --sigma"
            )


@dataclass(frozen=True)
class Recipe:
    """A workload of the literature: where it is from, and what it sets of TrainConfig's fields."""

    source: str
    settings: Mapping[str, Any]


def _recipe(source: str, **settings: Any) -> Recipe:
    return Recipe(source, MappingProxyType(settings))


# Where a recipe departs from its source, the comment says so. Weights start as PyTorch's layers do.
WORKLOADS: Mapping[str, Recipe] = MappingProxyType(
    {
        # Mean squared error + 128/60000 KL is, but for a factor, this Gaussian's negative ELBO:
        # vaebench/models/conv.py says how.
        "conv": _recipe(
            "danielwang7/MNIST-VAE at 5694d3c: five convolutions with batch norm, latent 2, Adam "
            "3e-4, batch 32",
            network="conv",
            batch_size=32,
            lr=3e-4,
            latent_dim=2,
            hidden_dim=(32, 64, 128, 256, 512),
            activation="leaky_relu",
            likelihood="gaussian",
            sigma=math.sqrt(128 / 60_000 * 784 / 2),
        ),
        "mlp": _recipe(
            "pytorch/examples vae/main.py at 77f55b9: 784-400-20, ReLU, Adam 1e-3, batch 128"
        ),
        # 30 epochs as in its config; the README gives a value after 10.
        "flax": _recipe(
            "google/flax examples/vae at 18f8f31: 784-500-20, static binarisation, 50,000 images",
            binarize="static",
            holdout=10_000,
            epochs=30,
            hidden_dim=(500,),
        ),
        # 1,667 epochs are the 10^8 images of its figure 2. Of its learning rates 0.01, 0.02 and 0.1
        # the last diverges from these starting weights. It names no binarisation. Left out: its
        # N(0, I) prior over the weights. Its Gaussian decoder gives a variance per pixel;
        # --likelihood gaussian has one fixed --sigma.
        "aevb": _recipe(
            "Kingma & Welling 2013, section 5: 500 tanh units, Bernoulli, batch 100, Adagrad; "
            "latent sizes 2, 3, 5, 10, 20, 200 by --latent-dim",
            epochs=1667,
            batch_size=100,
            optimizer="adagrad",
            lr=0.01,
            hidden_dim=(500,),
            activation="tanh",
        ),
        # Its published code adds up the gradients of the 20 images; here they are averaged, as in
        # its later implementations, so that the same epsilon weighs 20 times as much. It does not
        # shuffle.
        "iwae": _recipe(
            "Burda et al. 2015 (arXiv 1509.00519): 784-200-200-50, tanh, batch 20, Adam with "
            "epsilon 1e-4, staged learning rate over 3,280 passes, a new binary sample each pass; "
            "k = 1, 5, 50 by --samples, their IWAE by --objective iwae",
            binarize="dynamic",
            holdout=400,
            epochs=3280,
            batch_size=20,
            adam_eps=1e-4,
            schedule="iwae",
            latent_dim=50,
            hidden_dim=(200, 200),
            activation="tanh",
        ),
        # It keeps the epoch that scored best on the held-out images; here the last one is kept.
        "pythae": _recipe(
            "clementchadebec/benchmark_VAE reproducibility/vae.py at 58c9e63: 784-400-40, ReLU, "
            "static binarisation, 50,000 images, Adam 1e-4 in steps, batch 100",
            binarize="static",
            holdout=10_000,
            epochs=500,
            batch_size=100,
            lr=1e-4,
            schedule="pythae",
            latent_dim=40,
        ),
    }
)


def recipe(workload: str, **given: Any) -> TrainConfig:
    """Make the config of a named workload, with ``given`` fields in place of the recipe's.

    Raises:
        InputError: no such workload, or a value that cannot be.
    """
    _check_choice("workload", workload, tuple(WORKLOADS))
    return TrainConfig(**{"workload": workload, **WORKLOADS[workload].settings, **given})


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
