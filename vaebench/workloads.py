"""The workloads: recipes of the literature by name, and what each sets. No torch in this room."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any


@dataclass(frozen=True)
class Recipe:
    """A workload of the literature: where it is from, and what it sets of TrainConfig's options."""

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
        # Three passes instead of ten. Small batches, since the native steps take them at nearly the
        # rate of large ones, and twice as many steps are worth more than twice the images each. A
        # rate six times the usual one, which a short warm-up makes bearable and a decay to zero
        # makes good: at a constant one the noise of the last steps costs a nat. beta2 of 0.98, as
        # the gradients' sizes of a hundred steps ago say little in so short a training. Tuned on
        # the last 10,000 training images; benchmarks/LOG.md has what was tried.
        "record": _recipe(
            "benchmarks/RECORDS.md: mlp's model and objective in the least seconds to a test ELBO "
            "of -105.5",
            epochs=3,
            batch_size=64,
            lr=6e-3,
            adam_betas=(0.9, 0.98),
            schedule="linear",
            warmup=0.5,
        ),
        # Plain layers, one z a step: what the native steps train. Wider than iwae's, since dynamic
        # pixels keep it from learning them by heart; the KL warmed up, without which fewer latents
        # are used; a high rate that falls to zero. Tuned on the last 10,000 training images.
        "likelihood": _recipe(
            "benchmarks/RECORDS.md: dynamic binary pixels, 784-500-500-40, in the least seconds to "
            "a log-likelihood of -86.8",
            binarize="dynamic",
            epochs=150,
            lr=3e-3,
            schedule="linear",
            warmup=1.0,
            beta_schedule="warmup",
            beta_epochs=20.0,
            hidden_dim=(500, 500),
            latent_dim=40,
        ),
        # 30 epochs as in its config; its README gives a value after 10.
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
        # Its published code divides each tensor's gradient by its norm before Adam, starts from
        # wider weights, and raises the KL's weight epoch by epoch. --prior standard is its VAE with
        # N(0, I).
        "vampprior": _recipe(
            "Tomczak & Welling 2017 (arXiv 1705.07120): gated 784-300-300-40, a VampPrior of 500 "
            "pseudo-inputs, dynamic binarisation, 50,000 images, KL warmed up over 100 epochs, "
            "stopped after 50 without a better one",
            binarize="dynamic",
            holdout=10_000,
            epochs=2000,
            patience=50,
            batch_size=100,
            lr=5e-4,
            beta_schedule="warmup",
            beta_epochs=100.0,
            latent_dim=40,
            hidden_dim=(300, 300),
            activation="gated",
            logvar_range=(-6.0, 2.0),
            prior="vamp",
        ),
        # It keeps the epoch that scored best on the held-out images: best.safetensors here. The
        # figure that it is published with is reached with the second hidden layer that stands
        # commented out in it: --hidden-dim 400 400.
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
