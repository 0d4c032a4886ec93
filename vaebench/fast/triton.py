"""Whole steps of a fully connected VAE by Triton kernels, six a step.

The kernels, and what they do, are in ``kernels/triton_step.py``.
"""

from typing import cast

from vaebench.fast.capture import race_replayed
from vaebench.fast.draft import Draft, Offer
from vaebench.fast.kernels.triton_step import supports, triton_step
from vaebench.fast.step import StepEngine
from vaebench.models.mlp import VAE


def offer(draft: Draft) -> Offer | str:
    """Offer the kernels; see :mod:`vaebench.fast.build`."""
    problem, optimizer = draft.problem, draft.optimizer
    plain = draft.plan.autocast is None and problem.resident and draft.group is None
    known = plain and not problem.adapted and problem.labels is None and not draft.whole
    if not (known and supports(problem.model, problem.images, problem.objective, optimizer)):
        return (
            "Triton's kernels train a plain vaebench.VAE with one hidden layer and ReLU, without "
            "autocast, in one process, on CUDA; trained without"
        )
    precision = "tf32" if draft.actual.get("tf32") else "tf32x3"
    step = triton_step(cast(VAE, problem.model), problem.objective, optimizer, precision)
    actual = {"triton": True, "compile": bool(draft.asks("compile"))}
    race = race_replayed(problem.device)
    return Offer(StepEngine(problem, step, optimizer), None, actual, whole=True, race=race)
