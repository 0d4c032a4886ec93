"""Whole steps of a fully connected VAE by Triton kernels: gather, forward, backward, Adam.

A step of PyTorch's operators is some seventy kernels on a GPU, most of them so short that starting
them takes longest. Here what follows a product is done to its tiles before they are stored:
activation, likelihood, or Adam's update, so that no gradient of a weight is ever stored; and every
product that has an image in it gathers the image itself. The eager step is its plain twin. What is
left is five phases, each of which waits for the one before (``triton_tiles.py``):

1. encode: the images' hidden units, and what each adds to mu and logvar; the updates' rates.
2. score: z, the logits, both terms of the ELBO, and the gradient along the logits.
3. decode back: that gradient carried back to the decoder's hidden units, and what they add to z's.
4. sample back: the gradients of mu and logvar, and of the encoder's hidden units. Beside it the
   output layer is updated, whose weights 3 still had to read as they were.
5. learn: the updates of the other layers; the totals.

:func:`triton_step` starts a kernel for each phase, five a step, to be replayed from a CUDA graph.
``persistent`` starts one for many steps, in which all programs, as many as the GPU runs
at once, meet after each phase: parameters and moments are loaded, and stay in its second-level
cache, from the first step to the last.

Float32 is multiplied by the multiply-add units (``"ieee"``), or by tensor cores, each factor in two
parts of 10 bits (``"tf32x3"``: relative errors of 1e-7 to 1e-6 more, well within what the tests of
equality let pass of float32). ``"tf32"`` drops the second parts.

Predictions, none measured, for a step of 784-400-20 with 128 images on an H100: its products are
240 million multiply-adds, at best 8 microseconds by the multiply-add units and 2 to 6 by tensor
cores; a phase's first loads take 1 to 2 microseconds, a kernel of a graph 1 to 2 to start, and a
meeting 1. So five kernels take 20 to 40 microseconds, one kernel 15 to 30, tensor cores being
at the lower end of both.

Triton compiles a kernel for each phase, and one for all, when a model's first step is run; that
takes seconds, which steps of other batch sizes do not take again.
"""

import importlib.util
import math
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from vaebench.fast.step import Moments, Optimizer, Step
from vaebench.models.mlp import VAE
from vaebench.models.protocol import is_altered
from vaebench.objective import Objective

MOST_LATENT = 128  # a row of z, padded, is held by one program
OLDEST = (8, 0)  # compute capability: what Triton's products are made for
# Of the factors of products: the first two are float32's, as the tests of equality have it.
PRECISIONS = ("ieee", "tf32x3", "tf32")
FINE = PRECISIONS[:2]
# How the kernel is compiled. Three chunks of a product's factors are loaded ahead of the one at
# hand, since waiting for them is most of its time; and a product and a sum may be rounded as one,
# which newer releases of Triton want to be told.
OPTIONS = {"num_stages": 4, "enable_fp_fusion": True}
MANY = 64  # steps of one launch, where the caller lets them be chosen, and of a trial


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
    """Tiles: short or tall by narrow or wide; chunks of what is summed up, long ones of pixels."""

    short: int = 16
    tall: int = 32
    narrow: int = 32
    wide: int = 64
    chunk: int = 32
    long: int = 64


def supports(model: nn.Module, images: Tensor, objective: Objective, optimizer: Optimizer) -> bool:
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
    if not state.even:
        return False
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


def _tensors(model: VAE, state: Moments) -> dict[str, Tensor]:
    """Weights and biases by the kernel's names, and the moments of each."""
    place = {id(p): i for i, p in enumerate(state.params)}
    found: dict[str, Tensor] = {}
    for layer, linear in _layers_of(model)._asdict().items():
        for kind in ("weight", "bias"):
            i, name = place[id(getattr(linear, kind))], f"{layer}_{kind}"
            found |= {name: state.params[i], f"{name}_m": state.m[i], f"{name}_v": state.v[i]}
    return found


def ceil_div(n: int, block: int) -> int:
    return -(-n // block)


class Workspace:
    """What a step of one batch size passes from phase to phase; float32, on the device.

    ``hidden``, ``decoded`` and their gradients are (B, H); ``mu``, ``logvar``, ``z`` and gradients
    (B, Z); ``logits_grad`` (B, D). ``heads`` and ``along`` hold parts of mu and
    logvar, and of the gradient along z; ``recon`` and ``kl`` sums of tiles, in nats. ``arrived`` is
    int32, and 0 between launches.
    """

    def __init__(self, batch: int, sizes: Sizes, blocks: Blocks, device: torch.device) -> None:
        chunks = ceil_div(sizes.hidden, blocks.narrow)
        largest = max(sizes.pixels, sizes.hidden, 2 * chunks * sizes.latent)
        if batch * largest >= 2**31:
            raise ValueError(f"a batch of {batch} images is too large for the kernels' numbers")

        def empty(*shape: int) -> Tensor:
            return torch.empty(shape, dtype=torch.float32, device=device)

        hidden, latent = (batch, sizes.hidden), (batch, sizes.latent)
        self.hidden, self.decoded = empty(*hidden), empty(*hidden)
        self.hidden_grad, self.decoded_grad = empty(*hidden), empty(*hidden)
        self.mu, self.logvar, self.z = empty(*latent), empty(*latent), empty(*latent)
        self.mu_grad, self.logvar_grad = empty(*latent), empty(*latent)
        self.heads, self.along = empty(2, chunks, *latent), empty(chunks, *latent)
        self.logits_grad = empty(batch, sizes.pixels)
        rows = ceil_div(batch, blocks.tall)
        self.kl, self.recon = empty(rows), empty(rows * ceil_div(sizes.pixels, blocks.narrow))
        self.rates = empty(2)
        self.arrived = torch.zeros(1, dtype=torch.int32, device=device)


class Plan(NamedTuple):
    """What is known of the steps of one model before its images are."""

    sizes: Sizes
    blocks: Blocks
    fixed: dict[str, Any]  # the kernel's arguments that are the same in every step, by name

    @classmethod
    def of(cls, model: VAE, objective: Objective, state: Moments, precision: str) -> "Plan":
        """Plan the steps of what the kernels `supports`."""
        sizes, blocks = _sizes(model), Blocks()
        constants: dict[str, Any] = {"PIXELS": sizes.pixels, "HIDDEN": sizes.hidden}
        constants |= {"LATENT": sizes.latent, "Z": sizes.padded, "PRECISION": precision}
        constants |= {name.upper(): value for name, value in blocks._asdict().items()}
        numbers = {"beta": float(objective.beta), "epsilon": float(state.eps)}
        tensors = {"step": state.step, "lr": state.lr, **_tensors(model, state)}
        return cls(sizes, blocks, {**constants, **numbers, **tensors})

    def workspace(self, batch: int, device: torch.device) -> Workspace:
        """Take memory for steps of so many images."""
        return Workspace(batch, self.sizes, self.blocks, device)

    def arguments(
        self, images: Tensor, index: Tensor, noise: Tensor, totals: Tensor, workspace: Workspace
    ) -> dict[str, Any]:
        """All arguments of the kernel, by name, but the phase; ``workspace`` is for its batch."""
        batch, _ = workspace.hidden.shape
        return {
            **self.fixed, **vars(workspace), "images": images, "index": index, "noise": noise,
            "totals": totals, "count": len(images), "batch": batch, "kls": len(workspace.kl),
            "recons": len(workspace.recon), "steps": len(index) // batch,
            "BYTES": images.dtype == torch.uint8,
        }  # fmt: skip

    def tiles(self, batch: int) -> list[int]:
        """Tiles of each phase; in comments those of 784-400-20 and 128 images."""
        d, h, *_ = self.sizes
        short, tall, narrow, wide, *_ = self.blocks
        units = ceil_div(h, narrow)
        back = ceil_div(batch, short) * units
        return [
            back,  # 8 x 13
            ceil_div(batch, tall) * ceil_div(d, narrow),  # 4 x 25
            back,  # 8 x 13
            back + ceil_div(d, tall) * ceil_div(h, wide),  # 8 x 13 + 25 x 7
            ceil_div(h, tall) * ceil_div(d, wide) + 3 * units + 1,  # 13 x 13 + 3 x 13 + 1
        ]


def triton_step(
    model: nn.Module, objective: Objective, optimizer: Optimizer, precision: str = "ieee"
) -> Step:
    """Build the step of kernels for what they `supports`; see that for the conditions.

    Nothing in a step waits for the device. Its memory is taken when it is first called with a
    batch size, and kept. Indices are trusted to be below the number of images, as checking would
    have to wait: one that is not reads nothing, and gives totals of NaN.

    Args:
        model: trained in place.
        objective: what is maximised.
        optimizer: Adam's state of all of the model's parameters, changed in place.
        precision: of the factors of products: ``"ieee"``, float32; ``"tf32"``, rounded;
            ``"tf32x3"``, each in two such parts, nearly float32. As Triton's ``input_precision``.
    """
    return Phases(model, objective, optimizer, precision)


class Phases:
    """A step, phase by phase, and many steps in one launch."""

    def __init__(
        self, model: nn.Module, objective: Objective, optimizer: Optimizer, precision: str
    ) -> None:
        if precision not in PRECISIONS:
            raise ValueError(f"precision is {precision!r}: it must be one of {PRECISIONS}")
        self.plan = Plan.of(cast(VAE, model), objective, cast(Moments, optimizer), precision)
        self.workspaces: dict[int, Workspace] = {}  # by the images of a step

    def __call__(self, images: Tensor, index: Tensor, eps: Tensor, totals: Tensor) -> None:
        """Train one step; see :data:`vaebench.fast.step.Step`."""
        arguments = self._arguments(images, index, eps, totals, len(index))
        # Triton starts kernels on torch's current device, which need not be the images'.
        with torch.no_grad(), torch.cuda.device_of(images):
            for phase, tiles in enumerate(self.plan.tiles(len(index)), start=1):
                _kernel()[(tiles,)](**arguments, PHASE=phase, **OPTIONS)

    def many(
        self, images: Tensor, index: Tensor, eps: Tensor, totals: Tensor, batch: int, programs: int
    ) -> None:
        """Train on batches of ``batch`` images, in one launch; ``index`` is a multiple of it.

        Its programs wait for each other: the GPU must run so many at once, and else refuses.
        """
        arguments = self._arguments(images, index, eps, totals, batch)
        with torch.no_grad(), torch.cuda.device_of(images):
            arguments["arrived"].zero_()
            _kernel()[(programs,)](**arguments, PHASE=0, **OPTIONS, launch_cooperative_grid=True)

    def _arguments(
        self, images: Tensor, index: Tensor, eps: Tensor, totals: Tensor, batch: int
    ) -> dict[str, Any]:
        _check(images, index, eps, totals, self.plan.sizes)
        if batch not in self.workspaces:
            self.workspaces[batch] = self.plan.workspace(batch, images.device)
        return self.plan.arguments(images, index, eps, totals, self.workspaces[batch])


def _kernel() -> Any:
    """Import the kernel: only here, as it needs Triton."""
    from vaebench.fast.kernels.triton_kernels import train

    return train


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
