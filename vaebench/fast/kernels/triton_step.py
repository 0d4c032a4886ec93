"""Whole steps of a fully connected VAE by Triton kernels: gather, forward, backward, Adam.

A step of PyTorch's operators is some seventy kernels on a GPU, most of them so short that starting
them takes longest. Here what follows a product is done to its tiles before they are stored:
activation, likelihood, or Adam's update, so that no gradient of a weight is ever stored; and every
product that has an image in it gathers the image itself. The eager step is its plain twin. What is
left is six kernels, each of which waits for the one before (``triton_kernels.py``):

1. encode: the images' hidden units, and what each adds to mu and logvar.
2. draw: z, the KL, and the decoder's hidden units; the updates' rates.
3. score: the logits, the likelihood, and the gradient along the logits.
4. decode back: that gradient carried back to the decoder's hidden units, and what they add to z's.
5. learn output: the gradients of mu and logvar, and of the encoder's hidden units. Beside it the
   output layer is updated, whose weights 4 still had to read as they were.
6. learn rest: the updates of the other layers; the totals.

They are to be replayed from a CUDA graph. Float32 is multiplied by tensor cores, each factor in two
parts of 10 bits (``"tf32x3"``: relative errors of 1e-7 to 1e-6 more, well within what the tests of
equality let pass of float32). ``"tf32"`` drops the second parts. ``"ieee"``, the multiply-add
units, is what the tests compare with.

Triton compiles the kernels when a model's first step is run; that takes seconds, which steps of
other batch sizes do not take again.
"""

import importlib.util
import math
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from vaebench.fast.optimizer import OptimizerState
from vaebench.fast.step import Step
from vaebench.models.mlp import VAE
from vaebench.models.protocol import is_altered
from vaebench.objective import Objective

MOST_LATENT = 128  # a row of z, padded, is held by one program
OLDEST = (8, 0)  # compute capability: what Triton's products are made for
# Of the factors of products.
PRECISIONS = ("tf32x3", "tf32", "ieee")
# A product and a sum may be rounded as one: newer releases of Triton want to be told.
FUSED = {"enable_fp_fusion": True}


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


class Tile(NamedTuple):
    """How a kernel cuts its work: see ``triton_kernels.py``; its warps, and chunks loaded ahead."""

    rows: int
    columns: int
    splits: int = 1
    chunk: int = 32
    warps: int = 4
    stages: int = 3


class Tiles(NamedTuple):
    """Those of each kernel; ``back``, of the gradients of mu and logvar within learn output.

    The fastest on an H100, for the default model and 128 images, of some dozen for each.
    """

    encode: Tile = Tile(16, 32, splits=4, chunk=32)
    draw: Tile = Tile(16, 64, warps=8)
    score: Tile = Tile(32, 32, splits=4, chunk=16, stages=4)
    decode_back: Tile = Tile(16, 32, splits=4, chunk=16, stages=4)
    back: Tile = Tile(16, 32)
    learn: Tile = Tile(64, 32)


# Tiles of 64 rows are multiplied otherwise, which pays only where factors are in parts.
ROUNDED_TILES = Tiles(learn=Tile(32, 32))


def supports(
    model: nn.Module, images: Tensor, objective: Objective, optimizer: OptimizerState
) -> bool:
    """Whether the kernels can train this. All of the following must hold.

    - The model is an untouched :class:`~vaebench.VAE` with one hidden layer on each side, ReLU,
      and at most 128 latents: no hooks, no methods or layers put in place of its own.
    - The objective is ``"vae"`` with the Bernoulli likelihood and one z per image; any beta, no
      free bits.
    - The optimiser is plain Adam of exactly the model's ten parameters. They and the moments are
      float32, row by row in memory, on the images' device, and all of them are trained; as are
      the step count and the learning rate, single numbers.
    - Images are (N, ...) uint8 or float32, row by row, with as many pixels as the model has.
    - They are on a CUDA device of compute capability 8.0 or newer and Triton is installed; or on
      the CPU, and Triton's interpreter is on (``TRITON_INTERPRET=1``), which is for tests.
    """
    if objective.weight is not None:  # its kernels have beta as a number
        return False
    if not objective.is_simple or objective.likelihood != "bernoulli":
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
    if model.logvar_range is not None or model.pseudo_inputs is not None:
        return False
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


def _is_adam_of(model: VAE, state: OptimizerState, device: torch.device) -> bool:
    """Whether the optimiser is Adam, of this model, laid out as the kernels go through it."""
    if not state.is_plain_adam or not state.even:
        return False
    if {id(p) for p in state.params} != {id(p) for p in model.parameters()}:
        return False
    tensors = [*state.tensors(), state.lr]
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


def _tensors(model: VAE, state: OptimizerState) -> dict[str, Tensor]:
    """Weights and biases by the kernel's names, and the moments of each."""
    place = {id(p): i for i, p in enumerate(state.params)}
    found: dict[str, Tensor] = {}
    m, v = state.moments["m"], state.moments["v"]
    for layer, linear in _layers_of(model)._asdict().items():
        for kind in ("weight", "bias"):
            i, name = place[id(getattr(linear, kind))], f"{layer}_{kind}"
            found |= {name: state.params[i], f"{name}_m": m[i], f"{name}_v": v[i]}
    return found


def ceil_div(n: int, block: int) -> int:
    return -(-n // block)


class Workspace:
    """What a step of one batch size passes from kernel to kernel; float32, on the device.

    ``hidden``, ``decoded`` and their gradients are (B, H); ``mu``, ``logvar``, ``z`` and gradients
    (B, Z); ``logits_grad`` (B, D). ``heads`` and ``along`` hold parts of mu and logvar, and of the
    gradient along z; ``recon`` and ``kl`` sums of tiles, in nats.
    """

    def __init__(self, batch: int, sizes: Sizes, tiles: Tiles, device: torch.device) -> None:
        parts, parts_back = _parts(sizes, tiles)
        largest = max(sizes.pixels, sizes.hidden, 2 * max(parts, parts_back) * sizes.latent)
        if batch * largest >= 2**31:
            raise ValueError(f"a batch of {batch} images is too large for the kernels' numbers")

        def empty(*shape: int) -> Tensor:
            return torch.empty(shape, dtype=torch.float32, device=device)

        hidden, latent = (batch, sizes.hidden), (batch, sizes.latent)
        self.hidden, self.decoded = empty(*hidden), empty(*hidden)
        self.hidden_grad, self.decoded_grad = empty(*hidden), empty(*hidden)
        self.mu, self.logvar, self.z = empty(*latent), empty(*latent), empty(*latent)
        self.mu_grad, self.logvar_grad = empty(*latent), empty(*latent)
        self.heads, self.along = empty(2, parts, *latent), empty(parts_back, *latent)
        self.logits_grad = empty(batch, sizes.pixels)
        self.kl = empty(ceil_div(batch, tiles.draw.rows))
        self.recon = empty(_count(batch, sizes.pixels, tiles.score))
        self.rates = empty(2)


def _parts(sizes: Sizes, tiles: Tiles) -> tuple[int, int]:
    """How many tiles add to a row of mu, and to one of the gradient along z."""
    return (
        ceil_div(sizes.hidden, tiles.encode.columns),
        ceil_div(sizes.hidden, tiles.decode_back.columns),
    )


def _count(height: int, width: int, tile: Tile) -> int:
    """Tiles of a matrix."""
    return ceil_div(height, tile.rows) * ceil_div(width, tile.columns)


class Launch(NamedTuple):
    """One kernel of a step: its name, programs, and what its compilation depends on."""

    kernel: str
    programs: int
    constants: dict[str, Any]
    options: dict[str, Any]


class Plan(NamedTuple):
    """What is known of the steps of one model before its images are."""

    sizes: Sizes
    tiles: Tiles
    precision: str
    fixed: dict[str, Any]  # arguments that are the same in every step, by name

    @classmethod
    def of(
        cls,
        model: VAE,
        objective: Objective,
        state: OptimizerState,
        precision: str,
        tiles: Tiles | None = None,
    ) -> "Plan":
        """Plan the steps of what the kernels `supports`."""
        numbers = {"beta": float(objective.beta), "epsilon": state.settings.adam_eps}
        tensors = {"step": state.step, "lr": state.lr, **_tensors(model, state)}
        tiles = tiles or (ROUNDED_TILES if precision == "tf32" else Tiles())
        return cls(_sizes(model), tiles, precision, {**numbers, **tensors})

    def workspace(self, batch: int, device: torch.device) -> Workspace:
        """Take memory for steps of so many images."""
        return Workspace(batch, self.sizes, self.tiles, device)

    def arguments(
        self, images: Tensor, index: Tensor, noise: Tensor, totals: Tensor, workspace: Workspace
    ) -> dict[str, Any]:
        """All that any kernel is given, by name; ``workspace`` is for its batch."""
        batch, _ = workspace.hidden.shape
        return {
            **self.fixed, **vars(workspace), "images": images, "index": index, "noise": noise,
            "totals": totals, "count": len(images), "batch": batch, "kls": len(workspace.kl),
            "recons": len(workspace.recon),
        }  # fmt: skip

    def launches(self, batch: int, bytes_: bool) -> list[Launch]:
        """The kernels of a step of so many images, in order; ``bytes_``: pixels are uint8."""
        d, h, latent, padded = self.sizes
        tiles = self.tiles
        parts, parts_back = _parts(self.sizes, tiles)
        common: dict[str, Any] = {
            "PIXELS": d,
            "HIDDEN": h,
            "LATENT": latent,
            "Z": padded,
            "BYTES": bytes_,
        }
        common |= {"PRECISION": self.precision}
        common |= {"BACK_ROWS": tiles.back.rows, "BACK_COLUMNS": tiles.back.columns}
        back, units = _count(batch, h, tiles.back), ceil_div(h, tiles.learn.columns)
        outputs = _count(d, h, tiles.learn) + ceil_div(d, tiles.learn.columns)
        rest = _count(h, d, tiles.learn) + 5 * units + 2

        def launch(name: str, tile: Tile, programs: int, parts: int = 0) -> Launch:
            own = {"ROWS": tile.rows, "COLUMNS": tile.columns, "SPLITS": tile.splits}
            constants = {**common, **own, "CHUNK": tile.chunk, "PARTS": parts}
            options = {"num_warps": tile.warps, "num_stages": tile.stages, **FUSED}
            return Launch(name, programs, constants, options)

        return [
            launch("encode", tiles.encode, _count(batch, h, tiles.encode)),
            launch("draw", tiles.draw, _count(batch, h, tiles.draw) + 1, parts),
            launch("score", tiles.score, _count(batch, d, tiles.score)),
            launch("decode_back", tiles.decode_back, _count(batch, h, tiles.decode_back)),
            launch("learn_output", tiles.learn, back + outputs, parts_back),
            launch("learn_rest", tiles.learn, rest),
        ]


def triton_step(
    model: nn.Module, objective: Objective, optimizer: OptimizerState, precision: str = "tf32x3"
) -> Step:
    """Build the step of kernels for what they `supports`; see that for the conditions.

    Nothing in a step waits for the device. Its memory is taken when it is first called with a
    batch size, and kept. Indices are trusted to be below the number of images, as checking would
    have to wait: one that is not reads nothing, and gives totals of NaN.

    Args:
        model: trained in place.
        objective: what is maximised.
        optimizer: Adam's state of all of the model's parameters, changed in place.
        precision: of the factors of products, as Triton's ``input_precision``: ``"tf32x3"``, each
            in two parts of 10 bits, nearly float32; ``"tf32"``, rounded to 10; ``"ieee"``.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision is {precision!r}: it must be one of {PRECISIONS}")
    plan = Plan.of(cast(VAE, model), objective, optimizer, precision)
    workspaces: dict[int, Workspace] = {}  # by the images of a step

    def step(images: Tensor, index: Tensor, eps: Tensor, totals: Tensor) -> None:
        from vaebench.fast.kernels import triton_kernels  # only here, as it needs Triton

        _check(images, index, eps, totals, plan.sizes)
        batch = len(index)
        if batch not in workspaces:
            workspaces[batch] = plan.workspace(batch, images.device)
        arguments = plan.arguments(images, index, eps, totals, workspaces[batch])
        # Triton starts kernels on torch's current device, which need not be the images'.
        with torch.no_grad(), torch.cuda.device_of(images):
            for name, programs, constants, options in plan.launches(
                batch, images.dtype == torch.uint8
            ):
                kernel: Any = getattr(triton_kernels, name)
                given = {n: (arguments | constants)[n] for n in kernel.arg_names}
                kernel[(programs,)](**given, **options)

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
