"""The second witness: the ELBO of a one-hidden-layer VAE and its gradients, in float64 NumPy.

Written from the paper's formulas by hand, backward pass included. It shares no line with the
package, so a mistake common to the fast path and the reference cannot hide from it.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass
class Weights:
    """(out, in) matrices and (out,) biases under the names of ``VAE``'s parameters."""

    values: dict[str, Array]

    def linear(self, name: str, x: Array) -> Array:
        return x @ self.values[f"{name}.weight"].T + self.values[f"{name}.bias"]


def elbo(
    weights: Weights,
    x: Array,
    eps: Array,
    *,
    activation: str = "relu",
    likelihood: str = "bernoulli",
    sigma: float = 1.0,
    beta: float = 1.0,
) -> tuple[Array, Array, dict[str, Array]]:
    """(recon (B,), kl (B,), gradients of mean(beta kl - recon)) for x (B, D), eps (B, Z)."""

    def act(a: Array) -> Array:
        return np.maximum(a, 0) if activation == "relu" else np.tanh(a)

    def slope(h: Array) -> Array:
        return (h > 0).astype(np.float64) if activation == "relu" else 1 - h * h

    h1 = act(weights.linear("encoder.0", x))
    mu, logvar = weights.linear("mu", h1), weights.linear("logvar", h1)
    std = np.exp(logvar / 2)
    z = mu + std * eps
    h2 = act(weights.linear("decoder.0", z))
    out = weights.linear("output", h2)

    if likelihood == "bernoulli":
        p = 1 / (1 + np.exp(-out))
        recon = (x * np.log(p) + (1 - x) * np.log1p(-p)).sum(1)
        d_out = p - x
    else:
        density = np.exp(-((x - out) ** 2) / (2 * sigma**2)) / np.sqrt(2 * np.pi * sigma**2)
        recon = np.log(density).sum(1)
        d_out = (out - x) / sigma**2
    kl = -0.5 * (1 + logvar - mu**2 - np.exp(logvar)).sum(1)

    grads: dict[str, Array] = {}

    def back(name: str, d: Array, inputs: Array) -> Array:
        grads[f"{name}.weight"] = d.T @ inputs
        grads[f"{name}.bias"] = d.sum(0)
        return d @ weights.values[f"{name}.weight"]

    batch = len(x)
    d_h2 = back("output", d_out / batch, h2) * slope(h2)
    d_z = back("decoder.0", d_h2, z)
    d_mu = d_z + beta * mu / batch
    d_logvar = d_z * eps * std / 2 + beta * (np.exp(logvar) - 1) / 2 / batch
    d_h1 = (back("mu", d_mu, h1) + back("logvar", d_logvar, h1)) * slope(h1)
    back("encoder.0", d_h1, x)
    return recon, kl, grads


def bound(
    weights: Weights,
    x: Array,
    eps: Array,
    *,
    name: str,
    activation: str = "tanh",
    likelihood: str = "bernoulli",
    sigma: float = 1.0,
    beta: float = 1.0,
) -> tuple[float, Array, dict[str, Array]]:
    """(loss, log weights (B, k), gradients of the loss) for eps (B, k, Z).

    ``name`` is "vae": mean over images and samples of beta kl - recon; or "iwae": minus the mean
    over images of log((1/k) sum_i w_i), with w_i = p(x|z_i) p(z_i) / q(z_i|x) from the densities
    themselves.
    """

    def slope(h: Array) -> Array:
        return (h > 0).astype(np.float64) if activation == "relu" else 1 - h * h

    def act(a: Array) -> Array:
        return np.maximum(a, 0) if activation == "relu" else np.tanh(a)

    v = weights.values
    h1 = act(weights.linear("encoder.0", x))
    mu, logvar = weights.linear("mu", h1)[:, None], weights.linear("logvar", h1)[:, None]
    std = np.exp(logvar / 2)
    z = mu + std * eps  # (B, k, Z)
    h2 = act(weights.linear("decoder.0", z))
    out, x3 = weights.linear("output", h2), x[:, None]
    if likelihood == "bernoulli":
        p = 1 / (1 + np.exp(-out))
        recon = np.log(np.where(x3 > 0.5, p, 1 - p)).sum(2)  # x is binary
        d_recon = x3 - p
    else:
        recon = (-((x3 - out) ** 2) / (2 * sigma**2) - np.log(sigma * np.sqrt(2 * np.pi))).sum(2)
        d_recon = (x3 - out) / sigma**2
    normal = np.sqrt(2 * np.pi)
    log_p_z = np.log(np.exp(-(z**2) / 2) / normal).sum(2)
    log_q_z = np.log(np.exp(-(((z - mu) / std) ** 2) / 2) / (std * normal)).sum(2)
    log_w = recon + log_p_z - log_q_z
    if name == "vae":
        loss, share, d_z_prior, d_mu, d_logvar = _elbo(mu, logvar, z, recon, beta)
    else:
        loss, share, d_z_prior, d_mu, d_logvar = _iwae(mu, logvar, z, log_w)
    grads: dict[str, Array] = {}

    def back(name: str, d: Array, inputs: Array) -> Array:
        flat = d.reshape(-1, d.shape[-1])
        grads[f"{name}.weight"] = flat.T @ inputs.reshape(len(flat), -1)
        grads[f"{name}.bias"] = flat.sum(0)
        return d @ v[f"{name}.weight"]

    d_h2 = back("output", -share * d_recon, h2) * slope(h2)
    d_z = back("decoder.0", d_h2, z) + d_z_prior
    d_mu = d_mu + d_z.sum(1)
    d_logvar = d_logvar + (d_z * eps * std / 2).sum(1)
    back("encoder.0", (back("mu", d_mu, h1) + back("logvar", d_logvar, h1)) * slope(h1), x)
    return float(loss), log_w, grads


# A loss; each sample's share in it (B, k, 1); its gradients by z, other than through the decoder,
# by mu and by logvar, other than through z.
_Loss = tuple[float, Array, Array, Array, Array]


def _elbo(mu: Array, logvar: Array, z: Array, recon: Array, beta: float) -> _Loss:
    batch, k, _ = z.shape
    kl = 0.5 * (mu**2 + np.exp(logvar) - 1 - logvar).sum(2)
    share = np.full((batch, k, 1), 1 / (batch * k))
    d_logvar = beta * (np.exp(logvar[:, 0]) - 1) / 2 / batch
    loss = float((beta * kl - recon).mean())
    return loss, share, np.zeros_like(z), beta * mu[:, 0] / batch, d_logvar


def _iwae(mu: Array, logvar: Array, z: Array, log_w: Array) -> _Loss:
    w, batch = np.exp(log_w), len(z)
    share = (w / w.sum(1, keepdims=True) / batch)[:, :, None]
    d_logvar = np.full_like(logvar[:, 0], -0.5 / batch)
    loss = float(-np.log(w.mean(1)).mean())
    return loss, share, share * z, np.zeros_like(mu[:, 0]), d_logvar
