"""Random VAEs, composed of PyTorch's standard layers, hooks and wrappers."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations

SIDE, Z = 8, 3  # pixels across, latents
ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU, "leaky_relu": nn.LeakyReLU, "tanh": nn.Tanh, "silu": nn.SiLU, "elu": nn.ELU,
    "softplus": nn.Softplus, "gelu": nn.GELU,
}  # fmt: skip
NORMS = ("none", "batch", "layer", "group")
WRAPPERS = ("none", "none", "none", "weight_norm", "spectral_norm")
FLATTENED = ("flatten", "view", "reshape")
HOOKS = ("none", "none", "forward", "pre", "gradient", "accumulated")


@dataclass(frozen=True)
class Block:
    """A layer with weights and what follows it; kernel and stride are a convolution's."""

    width: int
    norm: str
    activation: str
    dropout: float
    wrapper: str
    bias: bool
    kernel: int = 3
    stride: int = 1


@dataclass(frozen=True)
class Network:
    """What a network is made of: convolutions, if any, and linear layers, on both sides of z.

    ``frozen`` and ``hooked`` choose one of its layers with weights, None and "none": none.
    """

    seed: int
    down: tuple[Block, ...]
    into: tuple[Block, ...]
    out: tuple[Block, ...]
    up: tuple[Block, ...]
    flattened: str
    two_heads: bool
    hook: str
    hooked: int
    frozen: int | None


def _blocks(most: int) -> st.SearchStrategy[tuple[Block, ...]]:
    block = st.builds(
        Block,
        width=st.sampled_from([8, 10, 12]),  # two in a group would be 1 and -1, or the other way
        norm=st.sampled_from(NORMS),
        activation=st.sampled_from(sorted(ACTIVATIONS)),
        dropout=st.sampled_from([0.0, 0.0, 0.0, 0.2]),
        wrapper=st.sampled_from(WRAPPERS),
        bias=st.booleans(),
        kernel=st.sampled_from([1, 3, 5]),
        stride=st.sampled_from([1, 2]),
    )
    return st.lists(block, max_size=most).map(tuple)


def networks() -> st.SearchStrategy[Network]:
    """Any of them."""
    return st.builds(
        Network,
        seed=st.integers(0, 2**16),
        down=_blocks(2),
        into=_blocks(2),
        out=_blocks(2),
        up=_blocks(2),
        flattened=st.sampled_from(FLATTENED),
        two_heads=st.booleans(),
        hook=st.sampled_from(HOOKS),
        hooked=st.integers(0, 7),
        frozen=st.none() | st.integers(0, 7),
    )


class RandomVAE(nn.Module):
    """The VAE of a :class:`Network`, for images (N, 8, 8); the same weights every time."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network
        with torch.random.fork_rng():
            torch.manual_seed(network.seed)
            self._make()
            self._change()

    def _make(self) -> None:
        network = self.network
        channels, side = 1, SIDE
        down: list[nn.Module] = []
        layer: nn.Module
        for block in network.down:
            layer = nn.Conv2d(
                channels, block.width, block.kernel, block.stride, block.kernel // 2,
                bias=block.bias,
            )  # fmt: skip
            channels, side = block.width, -(-side // block.stride)
            down += _with_rest(layer, block, (channels, side, side))
        self.down = nn.Sequential(*down)
        into, width = _linear(channels * side**2, network.into)
        self.into = nn.Sequential(*into)
        ends = [Z, Z] if network.two_heads else [2 * Z]
        self.heads = nn.ModuleList(nn.Linear(width, end) for end in ends)
        out, width = _linear(Z, network.out)
        up: list[nn.Module] = []
        self.first = 0  # channels of the image that is made of the last hidden layer
        if network.up:
            self.first, side = network.up[0].width, SIDE >> len(network.up)
            out.append(nn.Linear(width, self.first * side**2))
            channels = self.first
            for block in network.up:
                side *= 2
                layer = nn.ConvTranspose2d(channels, block.width, 4, 2, 1, bias=block.bias)
                channels = block.width
                up += _with_rest(layer, block, (channels, side, side))
            up.append(nn.Conv2d(channels, 1, 3, padding=1))
        else:
            out.append(nn.Linear(width, SIDE**2))
        self.out, self.up = nn.Sequential(*out), nn.Sequential(*up)

    def _change(self) -> None:
        """Freeze a layer, and hook one, if the network says so."""
        network = self.network
        layers = [m for m in self.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
        if network.frozen is not None:
            layers[network.frozen % len(layers)].requires_grad_(False)
        layer = layers[network.hooked % len(layers)]
        if network.hook == "forward":
            layer.register_forward_hook(lambda module, args, output: 0.5 * output)
        elif network.hook == "pre":
            layer.register_forward_pre_hook(lambda module, args: (0.5 * args[0],))
        weights = [p for p in layer.parameters() if p.requires_grad]
        for weight in weights if network.hook == "gradient" else ():
            weight.register_hook(lambda grad: grad.clamp(-0.01, 0.01))
        for weight in weights if network.hook == "accumulated" else ():
            weight.register_post_accumulate_grad_hook(_halve)

    def encode(self, x: Tensor) -> Any:
        hidden = self.down(x[:, None])
        if self.network.flattened == "view":
            hidden = hidden.view(len(x), -1)
        elif self.network.flattened == "reshape":
            hidden = hidden.reshape(len(x), -1)
        else:
            hidden = hidden.flatten(1)
        heads = [head(self.into(hidden)) for head in self.heads[:1]]
        if not self.network.two_heads:
            return heads[0].chunk(2, 1)
        hidden = self.into(hidden)
        return self.heads[0](hidden), self.heads[1](hidden)

    def decode(self, z: Tensor) -> Tensor:
        hidden: Tensor = self.out(z)
        if self.first:
            side = SIDE >> len(self.network.up)
            hidden = self.up(hidden.view(len(z), self.first, side, side))
        return hidden.flatten(1)


def _halve(p: Tensor) -> None:
    assert p.grad is not None
    p.grad.mul_(0.5)


def _linear(width: int, blocks: tuple[Block, ...]) -> tuple[list[nn.Module], int]:
    layers: list[nn.Module] = []
    for block in blocks:
        layers += _with_rest(nn.Linear(width, block.width, bias=block.bias), block, (block.width,))
        width = block.width
    return layers, width


def _with_rest(layer: nn.Module, block: Block, shape: tuple[int, ...]) -> list[nn.Module]:
    """A layer that gives ``shape``, wrapped, and the norm, activation and dropout after it."""
    if block.wrapper == "weight_norm":
        layer = parametrizations.weight_norm(layer)
    elif block.wrapper == "spectral_norm":
        layer = parametrizations.spectral_norm(layer)
    batch = nn.BatchNorm1d if len(shape) == 1 else nn.BatchNorm2d
    norms: dict[str, Callable[[], nn.Module]] = {
        "none": nn.Identity,
        "batch": lambda: batch(shape[0]),
        "layer": lambda: nn.LayerNorm(shape),
        "group": lambda: nn.GroupNorm(2, shape[0]),
    }
    rest: list[nn.Module] = [norms[block.norm](), ACTIVATIONS[block.activation]()]
    return [layer, *rest, *([nn.Dropout(block.dropout)] if block.dropout else [])]
