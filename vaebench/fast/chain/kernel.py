"""The native kernel's library, and a network as it is told of one."""

from collections.abc import Callable, Sequence
from ctypes import POINTER, Structure, c_double, c_long, c_void_p
from functools import cache
from typing import Any

from torch import Tensor

from vaebench.fast.chain.layers import Chain, Linear
from vaebench.objective import Objective
from vaebench.system.toolchain import load_kernels

SOURCES = (
    *("vectors.h", "numbers.h", "bf16.h", "amx.h", "sparse.h", "bernoulli.h", "tiles.h"),
    *("activations.h", "rules.h", "native.h", "native_forward.h", "native_backward.h"),
    *("native_score.h", "native.cpp"),
)
# As the kernel numbers them.
_ACTIVATIONS = {
    "relu": 0, "leaky_relu": 1, "tanh": 2, "sigmoid": 3, "softplus": 4, "elu": 5, "silu": 6,
    "gelu": 7,
}  # fmt: skip
RULES = {"adam": 0, "adamw": 1, "adamax": 2, "adagrad": 3, "rmsprop": 4, "sgd": 5}
_SPREADS = {"plain": 0, "double": 1, "std_softplus": 2, "logvar_softplus": 3}
LIKELIHOODS = {"bernoulli": 0, "gaussian": 1}
# Inputs and outputs from which on a hidden layer has bfloat16 factors: below, converting takes what
# they save.
WIDE = 64
ALIGNMENT = 64  # bytes, a line of the cache


class Layer(Structure):
    """As native.h has it."""

    _fields_ = (
        ("inputs", c_long),
        ("outputs", c_long),
        *((name, c_void_p) for name in ("weight", "bias", "weight_m", "weight_v")),
        *((name, c_void_p) for name in ("bias_m", "bias_v")),
        ("pitch", c_long),
        ("activation", c_long),
        ("slope", c_double),
        ("gate", c_long),
    )


class Optimizer(Structure):
    """As rules.h has it."""

    _fields_ = (
        ("rule", c_long),
        *((name, c_double) for name in ("eps", "beta1", "beta2", "weight_decay", "momentum")),
        *((name, c_double) for name in ("clip_norm", "clip_value")),
        ("step", c_void_p),
        ("lr", c_void_p),
    )


class Net(Structure):
    """As native.h has it."""

    _fields_ = (
        *((name, c_long) for name in ("pixels", "latent", "encoders", "decoders", "labels")),
        ("layers", POINTER(Layer)),
        *((name, c_long) for name in ("gates", "logvar", "likelihood", "sparse", "wide")),
        *((name, c_double) for name in ("least_std", "lowest", "highest", "sigma", "beta")),
        ("optimizer", Optimizer),
    )


@cache
def kernel() -> Any:
    """Load native.cpp."""
    library = load_kernels(*SOURCES)
    for name in ("bf16", "squares"):
        getattr(library, f"vaebench_native_{name}").restype = c_long
    library.vaebench_native_workspace.argtypes = [c_void_p, c_long]
    library.vaebench_native_workspace.restype = c_long
    pointers, counts = [c_void_p] * 2, [c_long] * 3
    library.vaebench_native_steps.argtypes = [*pointers, *counts, *[c_void_p] * 4, c_long]
    library.vaebench_native_score_workspace.argtypes = [c_void_p]
    library.vaebench_native_score_workspace.restype = c_long
    library.vaebench_native_scores.argtypes = [*pointers, c_long, c_long, *[c_void_p] * 3, c_long]
    return library


def takes_squares(layer: Linear) -> bool:
    """Whether a hidden layer in bfloat16 is multiplied by squares: it, and this processor."""
    return min(layer.inputs, layer.outputs) >= WIDE and bool(kernel().vaebench_native_squares())


# Gives a parameter, and what its optimiser remembers of it: first and second moment, or None.
Memory = Callable[[Tensor], Sequence[Tensor | None]]


def alone(param: Tensor) -> Sequence[Tensor | None]:
    """A parameter that is not to be updated."""
    return param, None, None


def describe(
    chain: Chain,
    objective: Objective,
    memory: Memory = alone,
    *,
    sparse: bool = False,
    bf16: bool = False,
) -> Net:
    """Describe a network to the kernel, as it is now: tensors may be given other memory.

    Args:
        chain: its layers.
        objective: of a likelihood that :data:`LIKELIHOODS` names.
        memory: where its parameters are.
        sparse: whether the first layer's weights lie by columns, and dark pixels are left out.
        bf16: whether the output layer, and what :func:`takes_squares`, multiply bfloat16.
    """
    layers, spread = chain.in_order(), chain.spread
    described = (Layer * len(layers))(*(_layer(chain, each, memory, sparse) for each in layers))
    return Net(
        chain.output.outputs,
        chain.mu.outputs,
        len(chain.encoder),
        len(chain.decoder),
        chain.labels,
        described,
        len(chain.gates),
        _SPREADS[spread.name],
        LIKELIHOODS[objective.likelihood],
        sparse,
        WIDE if bf16 else 0,
        spread.least,
        spread.lowest,
        spread.highest,
        objective.sigma,
        objective.beta if objective.weight is None else float(objective.weight),
    )


def _layer(chain: Chain, layer: Linear, memory: Memory, sparse: bool) -> Layer:
    """Describe a layer: where it and its moments lie, and what follows it."""
    first = chain.encoder[0]
    columns = sparse and (layer is first or layer is first.gate)

    def addresses(param: Tensor, before: int) -> list[int]:
        # Of a layer that is some rows of a parameter: where those are.
        skipped = before * param.element_size()
        return [0 if t is None else t.data_ptr() + skipped for t in memory(param)]

    weight, *moments = addresses(layer.weight, layer.first * (1 if columns else layer.inputs))
    bias, *others = addresses(layer.bias, layer.first)
    pitch = len(layer.weight) if columns else layer.inputs
    follows = layer.activation
    gate = next((i for i, other in enumerate(chain.in_order()) if other is layer.gate), 0)
    return Layer(
        layer.inputs,
        layer.outputs,
        *(weight, bias, *moments, *others),
        pitch,
        *((_ACTIVATIONS[follows.name], follows.slope) if follows else (0, 0.0)),
        gate,
    )
