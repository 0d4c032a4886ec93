"""Whole steps of a fully connected VAE by Triton kernels, five a step.

The kernels, and what they do, are in ``kernels/triton_step.py``.
"""

from vaebench.fast.draft import Draft, Offer
from vaebench.fast.kernels.triton_offer import offer_fastest
from vaebench.fast.step import StepEngine


def offer(draft: Draft) -> Offer | str:
    """Offer the kernels; see :mod:`vaebench.fast.build`."""
    return offer_fastest(draft, "triton", StepEngine)
