"""Fully connected networks, read off what autograd recorded of them, however they are written.

A kernel for whole steps needs to know every layer. Names and classes do not tell what a model
computes; the graph of its ``encode`` and ``decode`` does: linear layers with an activation or a
gate, another layer's sigmoid, between each two, and two heads, be they two layers or the halves of
one; logvar may be made of its head's output. Labels may stand behind the images' pixels and behind
z. What the graph does not show, such as images that are scaled before the first layer, shows in the
values: the layers that were found are run by themselves, and must give what the model gave.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vaebench.fast.chain.layers import UNCHANGED, Activation, Chain, Linear, Spread
from vaebench.models.protocol import EncoderDecoder
from vaebench.models.snapshot import untouched
from vaebench.problem import Problem

# An edge of autograd's graph: what made a tensor, and which of its results it is.
Edge = tuple[Any, int]
# Nodes that leave numbers and their order as they are.
_VIEWS = ("View", "UnsafeView", "ReshapeAlias", "Unsqueeze", "Squeeze", "Alias")
# Those that take a part of the columns; which, the values tell.
_PARTS = ("Split", "SplitWithSizes", "Slice", "Chunk")
_ACTIVATIONS = {
    "Relu": "relu", "Tanh": "tanh", "LeakyRelu": "leaky_relu", "Sigmoid": "sigmoid",
    "Softplus": "softplus", "Elu": "elu", "Silu": "silu", "Gelu": "gelu",
}  # fmt: skip
_BY_VALUE = ("relu", "tanh", "leaky_relu", "sigmoid", "softplus", "elu")  # may have a gate
# Those that make logvar of a head's output.
_OF_A_SPREAD = ("Mul", "Log", "Abs", "Exp", "Softplus", "Add", "Pow", "Hardtanh", "Clamp")
CLOSE = 1e-4
# What is added to a head's biases, to see what is made of its output far from where it is.
SHIFTS = (-40.0, -14.0, -7.0, 0.0, 10.0, 40.0)


class _Other(Exception):
    """The network is another kind."""


def read(problem: Problem) -> Chain | None:
    """Read the network of a problem, as it is trained; None if it is not such a chain."""
    y = () if problem.labels is None else (problem.labels[: len(problem.sample_batch)],)
    with untouched(problem.model):
        problem.model.train()
        return read_of(problem.model, problem.vae, problem.sample_batch, y, problem.latent_dim)


def read_of(
    model: nn.Module, vae: EncoderDecoder, x: Tensor, y: tuple[Tensor, ...], latent_dim: int
) -> Chain | None:
    """Read the network of a model, in the modes that it is in; None if it is not such a chain.

    Args:
        model: left as it was.
        vae: what encodes and decodes: the model, or an adapter around it.
        x: (B, ...) some images.
        y: their labels, if it takes them.
        latent_dim: Z.
    """
    z = torch.linspace(-1, 1, len(x) * latent_dim, device=x.device, dtype=x.dtype)
    z = z.view(len(x), -1).requires_grad_()
    with untouched(model), torch.enable_grad():
        try:
            mu, logvar = vae.encode(x, *y)
            output = vae.decode(z, *y)
            if not isinstance(output, Tensor):
                return None
            chain = _chain(mu, logvar, output, z)
            given = x.flatten(1), z
            if y:
                labels = as_numbers(y[0], chain.encoder[0].inputs - given[0].shape[1])
                chain = chain._replace(labels=labels.shape[1])
                given = torch.cat([given[0], labels], 1), torch.cat([z, labels], 1)
            chain = chain._replace(spread=_spread(chain, vae, x, y, given[0]))
            with torch.no_grad():
                pairs = zip(
                    (*chain.encode(given[0]), chain.decode(given[1])), (mu, logvar, output),
                    strict=True,
                )  # fmt: skip
                same = all(_alike(a, b.flatten(1)) for a, b in pairs)
        except Exception:  # whatever it is, it is no chain
            return None
    return chain if same else None


def as_numbers(labels: Tensor, width: int) -> Tensor:
    """Labels (B,) int64 as (B, width) float32, one 1 each; or (B, width) floats as they are.

    Raises:
        RuntimeError: they are of another width.
    """
    if labels.dim() == 1 and not labels.is_floating_point():
        return F.one_hot(labels, max(width, 0)).float()
    if labels.dim() != 2 or labels.shape[1] != width:
        raise RuntimeError("labels that the layers do not take as they are")
    return labels.float()


def _alike(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, CLOSE, CLOSE)


@torch.no_grad()
def _spread(
    chain: Chain, vae: EncoderDecoder, x: Tensor, y: tuple[Tensor, ...], given: Tensor
) -> Spread:
    """Find what makes logvar of its head's output, by the output that other biases give."""
    layer = chain.logvar
    rows = slice(layer.first, layer.first + layer.outputs)
    before = layer.bias.detach().clone()
    shown: list[tuple[Tensor, Tensor]] = []
    try:
        for shift in SHIFTS:
            layer.bias[rows] = before[rows] + shift
            head = layer(chain.through(chain.encoder, given))
            shown.append((head, vae.encode(x, *y)[1]))
    finally:
        layer.bias.copy_(before)
    lowest, highest = (_constant(logvar) for logvar in (shown[0][1], shown[-1][1]))
    least = math.exp(lowest / 2) if lowest else 0.0
    limits = (-math.inf if lowest is None else lowest, math.inf if highest is None else highest)
    for spread in (
        *(Spread(name) for name in ("plain", "double", "std_softplus", "logvar_softplus")),
        *(Spread(name, 0.0, *limits) for name in ("plain", "double")),
        Spread("std_softplus", 0.0 if least < 1e-12 else least),
    ):
        if all(_alike(spread(head), logvar) for head, logvar in shown):
            return spread
    raise _Other


def _constant(logvar: Tensor) -> float | None:
    """The number that all of it is, if it is one."""
    low, high = float(logvar.min()), float(logvar.max())
    return low if high - low <= 1e-5 * abs(low) else None


def _chain(mu: Tensor, logvar: Tensor, output: Tensor, z: Tensor) -> Chain:
    heads, below = _heads(mu, logvar)
    encoder, first = _hidden(below)
    (last,), below = _linear(_edge(output))
    decoder, second = _hidden(below, z)
    if first is not None or second is not None or not encoder or not decoder:
        raise _Other
    return Chain(encoder, *heads, decoder, last, Spread())


def _name(node: Any) -> str:
    """What a node undoes: View of ViewBackward0. The number is that of an overload."""
    return "" if node is None else str(node.name()).rpartition("Backward")[0]


def _edge(tensor: Tensor) -> Edge:
    return tensor.grad_fn, tensor.output_nr


def _past(edge: Edge, names: tuple[str, ...]) -> Edge:
    """Go back past nodes of these names, along the one thing that they take."""
    while _name(edge[0]) in names:
        edges = [e for e in edge[0].next_functions if e[0] is not None]
        if len(edges) > 1:
            raise _Other
        edge = edges[0] if edges else (None, 0)
    return edge


def _heads(mu: Tensor, logvar: Tensor) -> tuple[tuple[Linear, Linear], Edge]:
    """The two heads, and what they take."""
    edges = [_past(_edge(head), (*_VIEWS, *_PARTS)) for head in (mu, logvar)]
    # What lies between logvar and its head, if anything; which of them it is, the values tell.
    edges[1] = _past(edges[1], (*_VIEWS, *_PARTS, *_OF_A_SPREAD))
    found = [_linear(edge) for edge in edges]
    if found[0][1] != found[1][1]:
        raise _Other
    given = edges[0][0]._saved_mat1
    with torch.no_grad():
        first = _part(mu, found[0][0], given)
        others = [
            layer._replace(first=row, outputs=mu.shape[1])
            for layer in found[1][0]
            for row in range(0, layer.outputs - mu.shape[1] + 1, mu.shape[1])
        ]
        plain = [part for part in others if _alike(part(given), logvar)]
        # Not as it is: then the part that mu is not.
        rest = [p for p in others if (id(p.weight), p.first) != (id(first.weight), first.first)]
    if not plain and len(rest) != 1:
        raise _Other
    return (first, (plain or rest)[0]), found[0][1]


def _part(
    head: Tensor, layers: list[Linear], given: Tensor, activation: Activation = UNCHANGED
) -> Linear:
    """Which rows of a layer, or of several side by side, give a head."""
    width = head.shape[1]
    for layer in layers:
        for first in range(0, layer.outputs - width + 1, width):
            part = layer._replace(first=first, outputs=width)
            if _alike(activation(part(given)), head):
                return part
    raise _Other


def _linear(edge: Edge) -> tuple[list[Linear], Edge]:
    """A linear layer, or several side by side, and what it takes."""
    node = _past(edge, _VIEWS)[0]
    if _name(node) != "Addmm" or (node._saved_alpha, node._saved_beta) != (1, 1):
        raise _Other
    bias, given, (turned, _) = node.next_functions
    if _name(turned) != "T":
        raise _Other
    weights = list(_parameters(turned.next_functions[0]))
    biases = list(_parameters(bias))
    shapes = [(w.dim(), len(w)) for w in weights] == [(2, len(b)) for b in biases]
    if not shapes or any(b.dim() != 1 for b in biases):
        raise _Other
    return [Linear(w, b, 0, len(w)) for w, b in zip(weights, biases, strict=True)], given


def _parameters(edge: Edge) -> Iterator[Tensor]:
    """The parameter at an edge, or those that are put together there."""
    node = edge[0]
    if _name(node) == "Cat" and node._saved_dim == 0:
        for each in node.next_functions:
            yield from _parameters(each)
    elif hasattr(node, "variable"):
        yield node.variable
    else:
        raise _Other


def _hidden(edge: Edge, z: Tensor | None = None) -> tuple[list[Linear], Any]:
    """The hidden layers from the first to the last, and what is below that is not z; else None."""
    found: list[Linear] = []
    while True:
        node = _past(edge, _VIEWS)[0]
        if found and _name(node) == "Cat":  # labels behind z
            (below, _), *others = node.next_functions
            if any(other is not None for other, _ in others):
                raise _Other
            edge = below, 0
            node = _past(edge, _VIEWS)[0]
        if node is None or (z is not None and getattr(node, "variable", None) is z):
            return found[::-1], None if (node is None) is (z is None) else node
        layer, edge = _gated(node) or _followed((node, 0))
        found.append(layer)


def _followed(edge: Edge) -> tuple[Linear, Edge]:
    """A layer with an activation, and what it takes."""
    node = _past(edge, _VIEWS)[0]
    (layer, *more), below = _linear(node.next_functions[0])
    if more:
        raise _Other
    return layer._replace(activation=_activation(node)), below


def _gated(node: Any) -> tuple[Linear, Edge] | None:
    """A layer with a gate, and what both take; None if this is nothing of the kind."""
    if _name(node) == "Glu":
        (layer, *more), below = _linear(node.next_functions[0])
        half = layer.outputs // 2
        if more or node._saved_dim not in (1, 2**64 - 1):
            raise _Other
        gate = layer._replace(first=half, outputs=half)
        return layer._replace(outputs=half, activation=UNCHANGED, gate=gate), below
    if _name(node) != "Mul":
        return None
    values = node._saved_self, node._saved_other
    factors = [
        _factor(edge, value) for edge, value in zip(node.next_functions, values, strict=True)
    ]
    # Of two that end in a sigmoid either may be called the gate.
    factors.sort(key=lambda factor: factor[0].activation == Activation("sigmoid"))
    (layer, below), (gate, same) = factors
    if gate.activation != Activation("sigmoid") or below != same:
        raise _Other
    if layer.activation is None or layer.activation.name not in _BY_VALUE:
        raise _Other
    return layer._replace(gate=gate._replace(activation=None)), below


def _factor(edge: Edge, value: Tensor | None) -> tuple[Linear, Edge]:
    """A layer, or some rows of one, that gives one factor of a product; and what it takes."""
    edge = _past(edge, _VIEWS)
    activation = UNCHANGED
    if _name(edge[0]) in _ACTIVATIONS:
        activation, edge = _activation(edge[0]), edge[0].next_functions[0]
    layers, below = _linear(_past(edge, (*_VIEWS, *_PARTS)))
    if value is None or value.dim() != 2:
        raise _Other
    given = _past(edge, (*_VIEWS, *_PARTS))[0]._saved_mat1
    with torch.no_grad():
        layer = _part(value, layers, given, activation)
    return layer._replace(activation=activation), below


def _activation(node: Any) -> Activation:
    """What a node undoes."""
    name = _ACTIVATIONS.get(_name(node))
    if name == "softplus" and (node._saved_beta, node._saved_threshold) != (1, 20):
        raise _Other
    if name == "gelu" and node._saved_approximate != "none":
        raise _Other
    if name == "elu" and (node._saved_scale, node._saved_input_scale) != (1, 1):
        raise _Other
    if name is None:
        raise _Other
    slopes = {"leaky_relu": "_saved_negative_slope", "elu": "_saved_alpha"}
    return Activation(name, getattr(node, slopes[name]) if name in slopes else 0.0)
