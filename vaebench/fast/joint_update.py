"""Adam's update of all parameters by one kernel that keeps a whole GPU busy.

Torch's fused kernel gives each of its blocks 65,536 numbers: a network of half a million parameters
then keeps a tenth of a large GPU's multiprocessors busy, and its update takes longer than the rest
of a step (on an H100: 65 of 285 microseconds).
"""

import importlib.util
from functools import partial

import torch

from vaebench.fast.capture import race_replayed
from vaebench.fast.draft import Draft, Offer
from vaebench.fast.optimizer import OptimizerState, Update, updates_by

BLOCK = 1024  # numbers that a program updates
# Tensors of one launch: their addresses are its arguments, of which there are 4 KB at most.
MOST = 32


def offer(draft: Draft) -> Offer | str:
    """Offer the plain step with such updates; see :mod:`vaebench.fast.build`."""
    if draft.whole or not supports(draft.optimizer):
        return ""
    plan = draft.plan.within(partial(updates_by, update_jointly))
    race = race_replayed(draft.problem.device)
    return Offer(draft.make(plan), plan, actual={"joint_update": True}, race=race)


def supports(optimizer: OptimizerState) -> bool:
    """Whether this is plain Adam of float32 parameters that have been updated equally often."""
    if not optimizer.is_plain_adam or not optimizer.even:
        return False
    if importlib.util.find_spec("triton") is None:
        return False
    return all(p.dtype == torch.float32 and p.numel() < 2**31 for p in optimizer.params)


def update_jointly(update: Update) -> None:
    """Do what torch's fused kernel does; all tensors share the first count."""
    import triton

    from vaebench.fast.kernels import triton_update

    params = update.params
    lists = [params, update.grads, *update.kinds]
    with torch.cuda.device_of(params[0]):
        for first in range(0, len(params), MOST):
            tensors = [tuple(each[first : first + MOST]) for each in lists]
            sizes = tuple(p.numel() for p in tensors[0])
            programs = sum(triton.cdiv(size, BLOCK) for size in sizes)
            if programs:
                rest = sizes, update.steps[0], update.lr, update.numbers.eps
                triton_update.update[(programs,)](*tensors, *rest, BLOCK=BLOCK)
