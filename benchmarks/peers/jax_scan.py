"""The jitted JAX peer: one ``lax.scan`` over an epoch's steps, donated state, Adam by optax.

The short last batch is a second, smaller compiled function, as the scan's steps share one shape.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from torch import Tensor

from benchmarks.harness import BATCH, LEARNING_RATE, new_model, numbers

Params = dict[str, tuple[Any, Any]]
adam = optax.adam(LEARNING_RATE)


def dense(layer: tuple[Any, Any], x: Any) -> Any:
    """Apply weights (in, out) and bias in full float32."""
    weight, bias = layer
    return jnp.matmul(x, weight, precision=jax.lax.Precision.HIGHEST) + bias


def negative_elbo(params: Params, x: Any, eps: Any) -> Any:
    """Mean over images of -(recon - kl), in nats; x (B, D) in [0, 1]."""
    hidden = jax.nn.relu(dense(params["encoder"], x))
    mu, logvar = dense(params["mu"], hidden), dense(params["logvar"], hidden)
    z = mu + jnp.exp(0.5 * logvar) * eps
    logits = dense(params["output"], jax.nn.relu(dense(params["decoder"], z)))
    recon = (x * logits + jax.nn.log_sigmoid(-logits)).sum(1)
    kl = 0.5 * (mu**2 + jnp.exp(logvar) - 1 - logvar).sum(1)
    return (kl - recon).mean()


def step(images: Any, state: Any, batch: Any) -> tuple[Any, Any]:
    """Train on the images at an index; give the new state and the summed loss."""
    params, moments = state
    index, eps = batch
    x = images[index].astype(jnp.float32) / 255
    loss, grads = jax.value_and_grad(negative_elbo)(params, x, eps)
    updates, moments = adam.update(grads, moments, params)
    return (optax.apply_updates(params, updates), moments), loss * len(index)


@partial(jax.jit, donate_argnums=0)
def scan_steps(state: Any, images: Any, index: Any, eps: Any) -> tuple[Any, Any]:
    """Train over index (steps, B) and eps (steps, B, Z); give the state and the losses' sum."""
    state, losses = jax.lax.scan(partial(step, images), state, (index, eps))
    return state, losses.sum()


def initial(model: torch.nn.Module) -> Params:
    """Take a torch model's weights, layer by layer, transposed to (in, out)."""
    names = ("encoder", "mu", "logvar", "decoder", "output")
    arrays = [p.detach().numpy() for p in model.parameters()]
    return {
        name: (np.ascontiguousarray(arrays[2 * i].T), arrays[2 * i + 1])
        for i, name in enumerate(names)
    }


class JaxScan:
    """See :class:`benchmarks.peers.Contender`."""

    def __init__(self, images: Tensor, count: int, device: torch.device) -> None:
        self.home = jax.devices("gpu" if device.type == "cuda" else "cpu")[0]
        self.count = count
        self.images = jax.device_put(images.flatten(1).numpy(), self.home)
        order, noise = (t.numpy() for t in numbers(len(images), count, torch.device("cpu")))
        whole = count - count % BATCH
        self.parts = [
            jax.device_put(
                (index.reshape(-1, size), eps.reshape(-1, size, eps.shape[1])), self.home
            )
            for index, eps, size in (
                (order[:whole], noise[:whole], BATCH),
                (order[whole:], noise[whole:], count - whole),
            )
            if len(index)
        ]
        params = initial(new_model())
        self.start = (params, adam.init(params))
        self.restore()

    def restore(self) -> None:
        """Put copies of the initial state on the device: the epoch gives its own away."""
        self.state = jax.device_put(self.start, self.home, may_alias=False)
        jax.block_until_ready(self.state)  # type: ignore[no-untyped-call]

    def epoch(self) -> float:
        """Train."""
        losses = []
        for index, eps in self.parts:
            self.state, loss = scan_steps(self.state, self.images, index, eps)
            losses.append(loss)
        return -float(sum(losses)) / self.count


def make(images: Tensor, count: int, device: torch.device) -> JaxScan:
    """Build it."""
    return JaxScan(images, count, device)
