"""Whole steps of a fully connected VAE by eight kernels: gather, forward, backward, Adam.

A step of PyTorch's operators is some seventy kernels on a GPU, most of them so short that starting
them takes longest. Here (``triton_kernels.py``) what follows a product is done to its tiles before
they are stored: activation, likelihood, or Adam's update, so that no gradient of a weight is ever
stored; and every product that has an image in it gathers the image itself. The arithmetic is
float32, as in the eager step, which is its plain twin.

Each kernel waits for the one before:

1. ``encode``: the images' hidden units; and the rates of Adam's updates in this step.
2. ``sample``: mu, logvar, z, the KL, and the decoder's hidden units.
3. ``score``: the logits, the likelihood, and its slope.
4. ``decode_back``: that slope carried back to the decoder's hidden units.
5. ``learn``: the output layer, whose weights 4 still had to read as they were.
6. ``sample_back``: the slopes of mu and logvar, and of the encoder's hidden units.
7. ``learn_small``: the three layers beside z; and the totals.
8. ``learn``: the first layer.

Prediction, not measured: replayed from a CUDA graph, 25 to 45 microseconds a step of 784-400-20
with 128 images on an H100, most of it in the four products with 784 in them and in starting.

Triton compiles the kernels when a model's first step is run; that takes seconds, which steps of
other batch sizes do not take again.
"""

import importlib.util
import math
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn

from vaebench.elbo import Objective
from vaebench.fast.step import Optimizer, Step
from vaebench.model import VAE, is_altered

MOST_LATENT = 128  # a row of z, padded, is held by one program
OLDEST = (8, 0)  # compute capability: what Triton's products are made for
PRECISIONS = ("ieee", "tf32x3", "tf32")


class Moments(Protocol):
    """Adam's state, in the order of the parameters; see :mod:`vaebench.fast.adam`."""

    params: list[Tensor]
    m: list[Tensor]
    v: list[Tensor]
    step: Tensor
    lr: Tensor
    eps: float


class Layers(NamedTuple):
    """The linear layers of a VAE with one hidden layer on each side."""

    encoder: nn.Linear
    mu: nn.Linear
    logvar: nn.Linear
    decoder: nn.Linear
    output: nn.Linear


class Sizes(NamedTuple):
    """Of a model: pixels D, hidden units H, latents Z, and Z as the kernels' tiles have it."""

    pixels: int
    hidden: int
    latent: int
    padded: int


class Blocks(NamedTuple):
    """Tiles: rows of the batch, short and tall; columns, narrow and wide; length of a piece."""

    short: int = 16
    tall: int = 32
    narrow: int = 32
    wide: int = 64
    piece: int = 32


class Launch(NamedTuple):
    """One kernel of a step: its name, its programs along each axis, its arguments by name."""

    kernel: str
    grid: tuple[int, ...]
    arguments: dict[str, Any]


def takes(model: nn.Module, images: Tensor, objective: Objective, optimizer: Optimizer) -> bool:
    """Whether the kernels can train this. All of the following must hold.

    - The model is an untouched :class:`~vaebench.VAE` with one hidden layer on each side, ReLU,
      and at most 128 latents: no hooks, no methods or layers put in place of its own.
    - The objective is ``"vae"`` with the Bernoulli likelihood and one z per image; any beta.
    - The optimiser is Adam of exactly the model's ten parameters. They and the moments are
      float32, row by row in memory, on the images' device, and all of them are trained; as are
      the step count and the learning rate, single numbers.
    - Images are (N, ...) uint8 or float32, row by row, with as many pixels as the model has.
    - They are on a CUDA device of compute capability 8.0 or newer and Triton is installed; or on
      the CPU, and Triton's interpreter is on (``TRITON_INTERPRET=1``), which is for tests.
    """
    if objective.bound != "vae" or objective.samples != 1 or objective.likelihood != "bernoulli":
        return False
    if images.dtype not in (torch.uint8, torch.float32) or not images.is_contiguous():
        return False
    if type(model) is not VAE or not _is_plain(model) or images.dim() < 2:
        return False
    if images[0].numel() != model.output.out_features:
        return False
    return _is_adam_of(model, optimizer, images.device) and _runs_on(images.device)


def _is_plain(model: VAE) -> bool:
    """Whether a VAE is built as this package builds it, of the kind that the kernels know."""
    for part in (model.encoder, model.decoder):
        if type(part) is not nn.Sequential or [type(p) for p in part] != [nn.Linear, nn.ReLU]:
            return False
    if any(is_altered(module) for module in model.modules()):
        return False
    layers = [model.encoder[0], model.mu, model.logvar, model.decoder[0], model.output]
    if any(type(layer) is not nn.Linear for layer in layers):
        return False
    d, h, z, _ = _sizes(model)
    shapes = [(h, d), (z, h), (z, h), (h, z), (d, h)]
    right = [(s.out_features, s.in_features) for s in _layers_of(model)] == shapes
    whole = len(list(model.parameters())) == 2 * len(shapes)  # each has a weight and bias its own
    return right and whole and z <= MOST_LATENT


def _is_adam_of(model: VAE, optimizer: Optimizer, device: torch.device) -> bool:
    """Whether the optimiser is Adam, of this model, laid out as the kernels go through it."""
    if not all(hasattr(optimizer, n) for n in ("params", "m", "v", "step", "lr", "eps")):
        return False
    state = cast(Moments, optimizer)
    if {id(p) for p in state.params} != {id(p) for p in model.parameters()}:
        return False
    tensors = [*state.params, *state.m, *state.v, state.step, state.lr]
    fits = all(
        t.dtype == torch.float32 and t.device == device and t.is_contiguous() for t in tensors
    )
    return fits and all(p.requires_grad for p in state.params)


def _runs_on(device: torch.device) -> bool:
    """Whether Triton is there and has a way to run on this device."""
    if importlib.util.find_spec("triton") is None:
        return False
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= OLDEST
    return device.type == "cpu" and interpreted()


def interpreted() -> bool:
    """Whether Triton's interpreter is on, which runs kernels on the CPU, slowly."""
    import triton

    return bool(triton.knobs.runtime.interpret)


def _layers_of(model: VAE) -> Layers:
    return Layers(model.encoder[0], model.mu, model.logvar, model.decoder[0], model.output)  # type: ignore[arg-type]


def _sizes(model: VAE) -> Sizes:
    layers = _layers_of(model)
    latent = layers.mu.out_features
    # Products of tiles want 16 at least, and tiles are powers of two.
    padded = max(16, 1 << (latent - 1).bit_length())
    return Sizes(layers.encoder.in_features, layers.encoder.out_features, latent, padded)


def _tensors(model: VAE, state: Moments) -> dict[str, dict[str, Tensor]]:
    """Of each layer, by the kernels' names: weight, bias, and the moments of both."""
    place = {id(p): i for i, p in enumerate(state.params)}

    def of(layer: nn.Linear) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for name in ("weight", "bias"):
            i = place[id(getattr(layer, name))]
            found |= {name: state.params[i], f"{name}_m": state.m[i], f"{name}_v": state.v[i]}
        return found

    return {name: of(layer) for name, layer in _layers_of(model)._asdict().items()}


def _pieces(n: int, block: int) -> int:
    return -(-n // block)


class Space:
    """What a step of one batch size passes from kernel to kernel; float32, on the device.

    ``hidden``, ``decoded`` and their slopes are (B, H); ``mu``, ``logvar``, ``z`` and slopes
    (B, Z); ``slope``, along the logits, (B, D); ``recon`` and ``kl`` sums by programs, in nats.
    """

    def __init__(self, batch: int, sizes: Sizes, blocks: Blocks, device: torch.device) -> None:
        if batch * max(sizes.pixels, sizes.hidden, sizes.latent) >= 2**31:
            raise ValueError(f"a batch of {batch} images is too large for the kernels' numbers")

        def empty(*shape: int) -> Tensor:
            return torch.empty(shape, dtype=torch.float32, device=device)

        hidden, latent = (batch, sizes.hidden), (batch, sizes.latent)
        self.hidden, self.decoded = empty(*hidden), empty(*hidden)
        self.hidden_slope, self.decoded_slope = empty(*hidden), empty(*hidden)
        self.mu, self.logvar, self.z = empty(*latent), empty(*latent), empty(*latent)
        self.mu_slope, self.logvar_slope = empty(*latent), empty(*latent)
        self.slope = empty(batch, sizes.pixels)
        self.kl = empty(_pieces(batch, blocks.short))
        tiles = _pieces(batch, blocks.tall) * _pieces(sizes.pixels, blocks.narrow)
        self.recon = empty(tiles)
        self.rates = empty(2)


class Plan(NamedTuple):
    """The kernels of a step of one model, with their arguments."""

    sizes: Sizes
    blocks: Blocks
    layers: Mapping[str, Mapping[str, Tensor]]
    state: Moments
    beta: float
    precision: str

    @classmethod
    def of(cls, model: VAE, objective: Objective, state: Moments, precision: str) -> "Plan":
        """Plan the steps of what the kernels :func:`take <takes>`."""
        layers, beta = _tensors(model, state), float(objective.beta)
        return cls(_sizes(model), Blocks(), layers, state, beta, precision)

    def space(self, batch: int, device: torch.device) -> Space:
        """Take memory for steps of so many images."""
        return Space(batch, self.sizes, self.blocks, device)

    def launches(
        self, images: Tensor, index: Tensor, noise: Tensor, totals: Tensor, space: Space
    ) -> list[Launch]:
        """Give them in order. Programs, in comments, are of 784-400-20 and 128 images."""
        batch = len(index)
        source = {"images": images, "index": index, "count": len(images)}
        return [
            *self._forward(batch, source, noise, space),
            *self._backward(batch, source, noise, totals, space),
        ]

    def _forward(
        self, batch: int, source: Mapping[str, Any], noise: Tensor, space: Space
    ) -> list[Launch]:
        short, tall, narrow, wide, _ = self.blocks
        d, h, *_ = self.sizes
        bytewise = source["images"].dtype == torch.uint8
        encode = {
            **source, **self._plain("encoder"), "hidden": space.hidden, "step": self.state.step,
            "lr": self.state.lr, "rates": space.rates, "PIXELS": d, "BYTES": bytewise,
        }  # fmt: skip
        sample = {
            "hidden": space.hidden, **self._plain("decoder"), **self._heads("weight", "bias"),
            "noise": noise, "mu": space.mu, "logvar": space.logvar, "z": space.z,
            "decoded": space.decoded, "kl": space.kl, **self._latents(),
        }  # fmt: skip
        score = {
            **source, "decoded": space.decoded, **self._plain("output"), "slope": space.slope,
            "recon": space.recon, "PIXELS": d, "BYTES": bytewise,
        }  # fmt: skip
        return [
            self._launch("encode", (batch, h), (short, narrow), encode),  # 8 x 13
            self._launch("sample", (batch, h), (short, wide), sample),  # 8 x 7
            self._launch("score", (batch, d), (tall, narrow), score),  # 4 x 25
        ]

    def _backward(
        self, batch: int, source: Mapping[str, Any], noise: Tensor, totals: Tensor, space: Space
    ) -> list[Launch]:
        short, tall, narrow, wide, _ = self.blocks
        d, h, *_ = self.sizes
        decode_back = {
            "slope": space.slope, "weight": self.layers["output"]["weight"],
            "decoded": space.decoded, "decoded_slope": space.decoded_slope, "PIXELS": d,
        }  # fmt: skip
        sample_back = {
            "decoded_slope": space.decoded_slope, "weight": self.layers["decoder"]["weight"],
            "noise": noise, "mu": space.mu, "logvar": space.logvar, **self._heads("weight"),
            "hidden": space.hidden, "mu_slope": space.mu_slope,
            "logvar_slope": space.logvar_slope, "hidden_slope": space.hidden_slope,
            "beta": self.beta, **self._latents(),
        }  # fmt: skip
        output = self._learning("output", space.slope, space.decoded, source, space, gather=False)
        images = source["images"]
        first = self._learning("encoder", space.hidden_slope, images, source, space, gather=True)
        return [
            self._launch("decode_back", (batch, h), (short, narrow), decode_back, batch),  # 8 x 13
            self._launch("learn", (d, h), (tall, wide), output, batch),  # 25 x 7
            self._launch("sample_back", (batch, h), (short, wide), sample_back, batch),  # 8 x 7
            self._small(batch, totals, space),  # 3 x 13 + 1
            self._launch("learn", (h, d), (tall, wide), first, batch),  # 13 x 13
        ]

    def _launch(
        self,
        kernel: str,
        shape: tuple[int, int],
        tile: tuple[int, int],
        arguments: dict[str, Any],
        batch: int = 0,
    ) -> Launch:
        """Cover a result of this shape by tiles; its rows are the batch unless it is given."""
        common = {"batch": batch or shape[0], "PRECISION": self.precision}
        if kernel != "learn":  # which has the sizes of its own layer
            common["HIDDEN"] = self.sizes.hidden
        cut = {"BM": tile[0], "BN": tile[1], "BK": self.blocks.piece}
        grid = tuple(_pieces(n, block) for n, block in zip(shape, tile, strict=True))
        return Launch(kernel, grid, {**arguments, **common, **cut})

    def _small(self, batch: int, totals: Tensor, space: Space) -> Launch:
        """Make the launch of the layers beside z."""
        arguments = {
            **{f"{layer}_{name}": tensor
               for layer in ("mu", "logvar", "decoder")
               for name, tensor in self.layers[layer].items()},
            "hidden": space.hidden, "mu_slope": space.mu_slope,
            "logvar_slope": space.logvar_slope, "z": space.z,
            "decoded_slope": space.decoded_slope, "rates": space.rates,
            "epsilon": float(self.state.eps), "recon": space.recon, "kl": space.kl,
            "totals": totals, "batch": batch, "recons": len(space.recon), "kls": len(space.kl),
            "HIDDEN": self.sizes.hidden, **self._latents(), "PRECISION": self.precision,
            "BN": self.blocks.narrow, "BK": self.blocks.piece,
        }  # fmt: skip
        return Launch(
            "learn_small", (3 * _pieces(self.sizes.hidden, self.blocks.narrow) + 1,), arguments
        )

    def _learning(
        self,
        layer: str,
        slope: Tensor,
        inputs: Tensor,
        source: Mapping[str, Any],
        space: Space,
        *,
        gather: bool,
    ) -> dict[str, Any]:
        """Give the arguments of ``learn`` for a layer."""
        out, into = self.layers[layer]["weight"].shape
        return {
            **self.layers[layer], "slope": slope, "inputs": inputs, "index": source["index"],
            "count": source["count"], "rates": space.rates, "epsilon": float(self.state.eps),
            "OUT": out, "IN": into, "GATHERED": gather,
            "BYTES": gather and inputs.dtype == torch.uint8,
        }  # fmt: skip

    def _plain(self, layer: str) -> dict[str, Tensor]:
        return {name: self.layers[layer][name] for name in ("weight", "bias")}

    def _heads(self, *names: str) -> dict[str, Tensor]:
        return {f"{head}_{n}": self.layers[head][n] for head in ("mu", "logvar") for n in names}

    def _latents(self) -> dict[str, int]:
        return {"LATENT": self.sizes.latent, "Z": self.sizes.padded}


def triton_step(
    model: nn.Module, objective: Objective, optimizer: Optimizer, precision: str = "ieee"
) -> Step:
    """Build the step of kernels for what they :func:`take <takes>`; see that for the conditions.

    Nothing in a step waits for the device. Its memory is taken when it is first called with a
    batch size, and kept. Indices are trusted to be below the number of images, as checking would
    have to wait: one that is not reads nothing, and gives totals of NaN.

    Args:
        model: trained in place.
        objective: what is maximised.
        optimizer: Adam's state of all of the model's parameters, changed in place.
        precision: of the factors of products: ``"ieee"``, float32; ``"tf32"``, rounded;
            ``"tf32x3"``, in three parts, nearly float32. As Triton's ``input_precision``.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision is {precision!r}: it must be one of {PRECISIONS}")
    plan = Plan.of(cast(VAE, model), objective, cast(Moments, optimizer), precision)
    spaces: dict[int, Space] = {}

    @torch.no_grad()
    def step(images: Tensor, index: Tensor, eps: Tensor, totals: Tensor) -> None:
        import vaebench.fast.triton_kernels as kernels

        _check(images, index, eps, totals, plan.sizes)
        batch = len(index)
        if batch not in spaces:
            spaces[batch] = plan.space(batch, images.device)
        # Triton starts kernels on torch's current device, which need not be the images'.
        with torch.cuda.device_of(images):
            for launch in plan.launches(images, index, eps, totals, spaces[batch]):
                getattr(kernels, launch.kernel)[launch.grid](**launch.arguments)

    return step


def _check(images: Tensor, index: Tensor, eps: Tensor, totals: Tensor, sizes: Sizes) -> None:
    """Check what can be told without waiting: the kernels read where they are told to."""
    wanted = (
        ("images", images, images.dtype, (len(images), *images.shape[1:])),
        ("index", index, torch.int64, (len(index),)),
        ("eps", eps, torch.float32, (len(index), sizes.latent)),
        ("totals", totals, torch.float64, (2,)),
    )
    for name, tensor, dtype, shape in wanted:
        if tensor.dtype != dtype or tensor.shape != shape or not tensor.is_contiguous():
            raise ValueError(f"{name} must be {dtype} of {shape}, without gaps in memory")
        if tensor.device != images.device:
            raise ValueError(f"{name} must be on {images.device}, as the images are")
    if images.dtype not in (torch.uint8, torch.float32):
        raise ValueError(f"images are {images.dtype}: they must be uint8 or float32")
    if math.prod(images.shape[1:]) != sizes.pixels or not len(index):
        raise ValueError(f"there must be images, and of {sizes.pixels} pixels each")
