"""Whole steps of a fully connected VAE by one native kernel: forward, backward, Adam.

A compiled graph calls a library for each product, and passes its results from one operator to the
next through memory. Here (``native.cpp``) one team of threads goes through all of a step, and one
call through many steps: products are tiles that stay in registers until activation, likelihood or
Adam's update has been applied to them; no gradient of a weight is ever stored; the first layer
leaves out dark pixels. The arithmetic is float32, as in the eager step, which is its plain twin.
Under ``amp`` the output layer's three products, nine tenths of those that are left, take bfloat16
factors and add up in float32, where the processor has instructions for it (AVX-512 BF16).

It is C++, built in seconds when it is first used; the CPU only.
"""

from ctypes import POINTER, Structure, byref, c_double, c_long, c_void_p
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vaebench.engine import Sums
from vaebench.fast.step import Moments, Step, StepEngine
from vaebench.models.mlp import ACTIVATIONS, VAE
from vaebench.models.protocol import is_altered
from vaebench.objective import Objective
from vaebench.system.toolchain import CompileError, load_kernels

SOURCES = ("vectors.h", "numbers.h", "halves.h", "sparse.h", "bernoulli.h", "tiles.h", "native.cpp")
# As the kernel numbers them.
_ACTIVATIONS = {nn.ReLU: 0, nn.Tanh: 1, nn.LeakyReLU: 2}
_LIKELIHOODS = {"bernoulli": 0, "gaussian": 1}
MOST_HIDDEN = 64
ALIGNMENT = 64  # bytes, a line of the cache


class Layers(NamedTuple):
    """The linear layers of a VAE."""

    encoder: list[nn.Linear]
    mu: nn.Linear
    logvar: nn.Linear
    decoder: list[nn.Linear]
    output: nn.Linear

    def in_order(self) -> list[nn.Linear]:
        """All of them, as the kernel has them."""
        return [*self.encoder, self.mu, self.logvar, *self.decoder, self.output]


class _Layer(Structure):
    _fields_ = (
        ("inputs", c_long),
        ("outputs", c_long),
        *((name, c_void_p) for name in ("weight", "bias", "weight_m", "weight_v")),
        *((name, c_void_p) for name in ("bias_m", "bias_v")),
    )


class _Net(Structure):
    _fields_ = (
        *((name, c_long) for name in ("pixels", "latent", "encoders", "decoders")),
        ("layers", POINTER(_Layer)),
        *((name, c_long) for name in ("activation", "likelihood", "sparse", "halves")),
        *((name, c_double) for name in ("leak", "sigma", "beta", "adam_eps")),
        ("step", c_void_p),
        ("lr", c_void_p),
    )


@cache
def _kernel() -> Any:
    """Load native.cpp."""
    library = load_kernels(*SOURCES)
    library.vaebench_native_halves.restype = c_long
    library.vaebench_native_space.argtypes = [c_void_p, c_long]
    library.vaebench_native_space.restype = c_long
    pointers, counts = [c_void_p] * 2, [c_long] * 3
    library.vaebench_native_steps.argtypes = [*pointers, *counts, *[c_void_p] * 4, c_long]
    return library


def takes_halves() -> bool:
    """Whether the kernel can be built here, and multiplies bfloat16."""
    try:
        return bool(_kernel().vaebench_native_halves())
    except CompileError:
        return False  # building the engine will say so


def takes(model: nn.Module, images: Tensor, objective: Objective) -> bool:
    """Whether the kernel can train this: on the CPU, an untouched VAE of this package's own.

    The objective must be the ELBO of one z per image. Every parameter must be trained, as float32;
    images are uint8 or float32.
    """
    if images.device.type != "cpu" or images.dtype not in (torch.uint8, torch.float32):
        return False
    if type(model) is not VAE or objective.bound != "vae" or objective.samples != 1:
        return False
    layers = [layer for layer in model.modules() if layer is not model]
    plain = {VAE, nn.Sequential, nn.Linear, *ACTIVATIONS.values()}
    if any(type(layer) not in plain or is_altered(layer) for layer in [model, *layers]):
        return False
    known = layers_of(model)
    fits = all(p.requires_grad and p.dtype == torch.float32 for p in model.parameters())
    whole = len(list(model.parameters())) == 2 * len(known.in_order())
    return fits and whole and len(known.encoder) + len(known.decoder) <= MOST_HIDDEN


def layers_of(model: VAE) -> Layers:
    """Find the linear layers."""
    inner = [
        [layer for layer in part if isinstance(layer, nn.Linear)]
        for part in (model.encoder, model.decoder)
    ]
    return Layers(inner[0], model.mu, model.logvar, inner[1], model.output)


class NativeEngine(StepEngine):
    """Trains by the kernel; see :class:`vaebench.engine.Engine`.

    Args:
        objective: what is maximised.
        sparse: whether the first layer leaves out dark pixels. Its weight must then be laid out by
            columns, and Adam's moments alike.
        halves: whether the output layer multiplies bfloat16; see :func:`takes_halves`.
        model: one that the kernel :func:`takes`, with ``images`` and ``objective``.
        images: (N, ...) uint8 or float32.
        step: the plain twin.
        optimizer: Adam's state of all of the model's parameters.
        words: as of :class:`~vaebench.fast.step.StepEngine`.

    Raises:
        vaebench.system.toolchain.CompileError: the kernel cannot be built.
    """

    def __init__(
        self,
        objective: Objective,
        sparse: bool,
        halves: bool,
        model: VAE,
        images: Tensor,
        step: Step,
        optimizer: Any,
        *words: Any,
    ) -> None:
        super().__init__(model, images.contiguous(), step, optimizer, *words)
        self.objective, self.sparse, self.halves = objective, sparse, halves
        self.layers = layers_of(model)
        self.activation = model.encoder[1]
        floats = _kernel().vaebench_native_space(byref(self._net()), self.batch_size)
        space = torch.zeros(floats + ALIGNMENT // 4)
        self.space = space[-space.data_ptr() % ALIGNMENT // 4 :]

    def _net(self) -> _Net:
        """Describe the model as it is now: tensors may have been given other memory."""
        state: Moments = self.optimizer  # type: ignore[assignment]
        place = {id(p): i for i, p in enumerate(state.params)}

        def addresses(layer: nn.Linear) -> list[int]:
            weight, bias = place[id(layer.weight)], place[id(layer.bias)]
            tensors = [state.params[weight], state.params[bias]]
            tensors += [moment[i] for i in (weight, bias) for moment in (state.m, state.v)]
            return [t.data_ptr() for t in tensors]

        layers = self.layers.in_order()
        described = (_Layer * len(layers))(
            *(_Layer(layer.in_features, layer.out_features, *addresses(layer)) for layer in layers)
        )
        aim = self.objective
        return _Net(
            self.layers.encoder[0].in_features,
            self.latent_dim,
            len(self.layers.encoder),
            len(self.layers.decoder),
            described,
            _ACTIVATIONS[type(self.activation)],
            _LIKELIHOODS[aim.likelihood],
            self.sparse,
            self.halves,
            getattr(self.activation, "negative_slope", 0.0),
            aim.sigma,
            aim.beta,
            state.eps,
            state.step.data_ptr(),
            state.lr.data_ptr(),
        )

    def epoch(self, order: Tensor, noise: Tensor) -> Sums:
        """Train on the images at ``order``; see :meth:`vaebench.engine.Engine.epoch`."""
        totals = torch.zeros(2, dtype=torch.float64)
        order, noise = order.contiguous(), noise.contiguous()
        # The kernel reads where it is told to, without asking.
        if len(order) and not 0 <= int(order.min()) <= int(order.max()) < len(self.images):
            raise IndexError(f"order must be of indices from 0 to {len(self.images) - 1}")
        if noise.shape != (len(order), self.latent_dim) or noise.dtype != torch.float32:
            raise ValueError(f"noise must be float32 of {len(order)} x {self.latent_dim}")
        _kernel().vaebench_native_steps(
            byref(self._net()),
            self.space.data_ptr(),
            self.batch_size,
            len(order),
            self.images.element_size(),
            *(t.data_ptr() for t in (self.images, order, noise, totals)),
            torch.get_num_threads(),
        )
        return Sums(totals[0], totals[1], len(order))
