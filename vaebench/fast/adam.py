"""Adam without hidden state, so that a compiler sees all of it.

Source: Kingma & Ba, Adam (arXiv 1412.6980), in the form and the defaults of torch.optim.Adam.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from vaebench.fast.layout import in_memory_order, laid_out_as

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
    eps: float = EPSILON

    @classmethod
    def of(cls, params: list[Tensor], lr: float, eps: float = EPSILON) -> "AdamState":
        """Start: moments zero, step 0."""
        device = params[0].device
        return cls(
            params,
            [torch.zeros_like(p) for p in params],
            [torch.zeros_like(p) for p in params],
            torch.zeros((), dtype=torch.float32, device=device),
            torch.tensor(lr, dtype=torch.float32, device=device),
            eps,
        )

    def tensors(self) -> list[Tensor]:
        """All that an update changes."""
        return [*self.params, *self.m, *self.v, self.step]

    def memory(self) -> dict[str, Tensor]:
        """What is remembered beside the parameters, by name; the learning rate is a setting."""
        moments = {"m": self.m, "v": self.v}
        named = {f"{word}.{i}": t for word, ts in moments.items() for i, t in enumerate(ts)}
        return {**named, "step": self.step}

    @torch.no_grad()
    def update(self, grads: tuple[Tensor, ...]) -> None:
        """Take one Adam step, in place, by torch's own fused kernel.

        It goes once over parameters, gradients and moments. A compiled graph calls it as an opaque
        operator: written out as formulas for the compiler to fuse, Adam took three times as long
        on a CPU, and most of the time to compile.
        """
        self.step.add_(1)
        run = torch.ops.vaebench.adam_ if torch.compiler.is_compiling() else _fused_kernel
        alike = laid_out_as(self.params, grads)
        run(self.params, alike, self.m, self.v, self.step, self.lr, self.eps)


def _fused_kernel(
    params: list[Tensor],
    grads: list[Tensor],
    m: list[Tensor],
    v: list[Tensor],
    step: Tensor,
    lr: Tensor,
    eps: float,
) -> None:
    """The kernel behind torch.optim.Adam(fused=True), which counts in one tensor per parameter."""
    torch._fused_adam_(
        in_memory_order(params),
        in_memory_order(grads),
        in_memory_order(m),
        in_memory_order(v),
        [],  # no AMSGrad
        [step] * len(params),
        lr=lr,
        beta1=BETA1,
        beta2=BETA2,
        weight_decay=0.0,
        eps=eps,
        amsgrad=False,
        maximize=False,
    )


# The kernel reads the learning rate from a tensor, and in that form torch has not told its
# compiler about it: as an operator of our own it is known.
_LIBRARY = torch.library.Library("vaebench", "FRAGMENT")
_LIBRARY.define(
    "adam_(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] m, Tensor(c!)[] v, "
    "Tensor step, Tensor lr, float eps) -> ()"
)
_LIBRARY.impl("adam_", _fused_kernel, "CompositeExplicitAutograd")
torch.library.register_fake("vaebench::adam_", lambda *_: None, lib=_LIBRARY)
