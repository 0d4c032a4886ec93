"""A whole training by JAX: a workload's recipe of the fully connected model, in a jitted scan.

``python -m benchmarks.peers.jax_command --workload record --data mnist``: one ``lax.scan`` over an
epoch's steps, its state donated, the learning rate of every step handed in; a test pass after each
epoch. Random numbers are JAX's own. What is compiled is kept in JAX's cache, so that a second
process starts warm, as one of vaebench's does.
"""

import argparse
import os
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.harness import load_data, new_model
from benchmarks.peers.jax_scan import initial, negative_elbo
from vaebench import TrainConfig
from vaebench.config import recipe
from vaebench.training.schedules import lr_factor


def keep_compiled() -> None:
    """Keep all that is compiled, however quick that was."""
    settings: Any = jax.config
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    settings.update("jax_compilation_cache_dir", str(Path(cache) / "jax"))
    settings.update("jax_persistent_cache_min_compile_time_secs", 0)
    settings.update("jax_persistent_cache_min_entry_size_bytes", -1)


def make_epoch(config: TrainConfig, images: Any) -> tuple[Any, Any]:
    """Make the function that trains on an order, (state, order, rates, key) to (state, loss).

    The second that is given makes the first state of parameters.
    """
    optimizer = config.optimizer
    adam = optax.scale_by_adam(*optimizer.adam_betas, eps=optimizer.adam_eps)

    def step(state: Any, batch: Any) -> tuple[Any, Any]:
        params, moments = state
        index, rate, key = batch
        x = images[index].astype(jnp.float32) / 255
        eps = jax.random.normal(key, (len(index), config.network.latent_dim))
        loss, grads = jax.value_and_grad(negative_elbo)(params, x, eps)
        updates, moments = adam.update(grads, moments, params)
        updates = jax.tree.map(lambda u: -rate * u, updates)
        return (optax.apply_updates(params, updates), moments), loss * len(index)

    @partial(jax.jit, donate_argnums=0)
    def scan(state: Any, index: Any, rates: Any, key: Any) -> tuple[Any, Any]:
        keys = jax.random.split(key, len(index))
        state, losses = jax.lax.scan(step, state, (index, rates, keys))
        return state, losses.sum()

    size = optimizer.batch_size

    def epoch(state: Any, order: Any, rates: Any, key: Any) -> tuple[Any, Any]:
        whole = len(order) // size
        first, last = order[: whole * size].reshape(whole, size), order[whole * size :]
        state, loss = scan(state, first, rates[:whole], key)
        if len(last):  # a scan's steps share one shape
            state, more = scan(state, last[None], rates[whole:], jax.random.fold_in(key, 1))
            loss += more
        return state, loss

    return epoch, lambda params: (params, adam.init(params))


@partial(jax.jit)
def test_elbo(params: Any, images: Any, key: Any) -> Any:
    """Mean over the images of their ELBO, one z each; nats."""
    x = images.astype(jnp.float32) / 255
    eps = jax.random.normal(key, (len(x), len(params["mu"][1])))
    return -negative_elbo(params, x, eps)


def main() -> None:
    """Train, and say the test ELBO after each epoch."""
    parser = argparse.ArgumentParser(description="a jitted JAX scan of a recipe")
    parser.add_argument("--workload", default="record")
    parser.add_argument("--data", default="auto")
    parser.add_argument("--seed", type=int, default=0)
    words = parser.parse_args()
    keep_compiled()
    config, data = recipe(words.workload), load_data(words.data)
    optimizer, count = config.optimizer, len(data.train)
    images, test = (jnp.asarray(p.images.flatten(1).numpy()) for p in (data.train, data.test))
    (epoch, start), key = make_epoch(config, images), jax.random.key(words.seed)
    state = start(initial(new_model(words.seed, config)))
    steps = -(-count // optimizer.batch_size)
    shuffled = np.random.default_rng(words.seed)
    for done in range(optimizer.epochs):
        key, drawn, tested = jax.random.split(key, 3)
        times = [done + i / steps for i in range(steps)]
        length = optimizer.epochs, optimizer.warmup
        factors = [lr_factor(optimizer.schedule, time, *length) for time in times]
        rates = jnp.asarray(optimizer.lr * np.array(factors), jnp.float32)
        order = jnp.asarray(shuffled.permutation(count))
        state, loss = epoch(state, order, rates, drawn)
        print(f"epoch {done + 1}: train {float(loss) / count:.4f}")
        print(f"epoch {done + 1}: test {-float(test_elbo(state[0], test, tested)):.4f}", flush=True)


if __name__ == "__main__":
    main()
