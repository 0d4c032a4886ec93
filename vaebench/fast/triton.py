"""Whole steps of a vaebench.VAE with one hidden layer and ReLU, by six Triton kernels a step.

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
    if not draft.asks("compile") or draft.asks("amp") == "bf16":
        return ""
    plain = problem.resident and draft.group is None and not draft.whole
    known = plain and not problem.adapted and problem.labels is None
    if not (known and supports(problem.model, problem.images, problem.objective, optimizer)):
        return ""
    precision = "tf32" if draft.actual.get("tf32") else "tf32x3"
    step = triton_step(cast(VAE, problem.model), problem.objective, optimizer, precision)
    actual = {"triton": True, "compile": True}
    race = race_replayed(problem.device)
    return Offer(StepEngine(problem, step, optimizer), None, actual, whole=True, race=race)
