"""Adam without hidden state, so that a compiler sees all of it.

Source: Kingma & Ba, Adam (arXiv 1412.6980), in the form and the defaults of torch.optim.Adam.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim.adam import adam as torch_adam

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8


@dataclass(frozen=True)
class AdamState:
    """Everything Adam remembers, in the order of the parameters.

    ``lr`` and ``step`` are tensors on the device: a compiled or captured step then reads them
    anew each time, where a Python number would be frozen into it.
    """

    params: list[Tensor]
    m: list[Tensor]
    v: list[Tensor]
    step: Tensor
    lr: Tensor

    @classmethod
    def of(cls, params: list[Tensor], lr: float) -> "AdamState":
        """Start: moments zero, step 0."""
        device = params[0].device
        return cls(
            params,
            [torch.zeros_like(p) for p in params],
            [torch.zeros_like(p) for p in params],
            torch.zeros((), dtype=torch.float32, device=device),
            torch.tensor(lr, dtype=torch.float32, device=device),
        )

    def tensors(self) -> list[Tensor]:
        """All that an update changes."""
        return [*self.params, *self.m, *self.v, self.step]


@torch.no_grad()
def update(state: AdamState, grads: tuple[Tensor, ...]) -> None:
    """One Adam step, in place. Under a compiler, formulas to fuse; else torch's fused kernel."""
    if not torch.compiler.is_compiling():
        _update_by_torch(state, grads)
        return
    state.step.add_(1)
    # float64: 1 - 0.999**step cancels; torch.optim.Adam computes it in Python floats.
    step = state.step.double()
    scale = (state.lr / (1 - BETA1**step)).float()
    root = (1 - BETA2**step).sqrt().float()
    for p, m, v, grad in zip(state.params, state.m, state.v, grads, strict=True):
        m.lerp_(grad, 1 - BETA1)
        v.mul_(BETA2).addcmul_(grad, grad, value=1 - BETA2)
        p.sub_(scale * m / (v.sqrt() / root + EPSILON))


def _update_by_torch(state: AdamState, grads: tuple[Tensor, ...]) -> None:
    """torch.optim.Adam's own fused kernel: one pass over parameters, gradients and moments."""
    torch_adam(
        state.params,
        list(grads),
        state.m,
        state.v,
        max_exp_avg_sqs=[],
        state_steps=[state.step.clone() for _ in state.params],
        fused=True,
        amsgrad=False,
        beta1=BETA1,
        beta2=BETA2,
        lr=state.lr,
        weight_decay=0.0,
        eps=EPSILON,
        maximize=False,
    )
    state.step.add_(1)
