"""The Bernoulli log-likelihood and its gradient in one pass over the logits.

As a compiler fuses them they are two passes with an exponential each, and a logarithm per pixel.
The kernel (``fused_likelihood.cpp``) takes one exponential per pixel and one logarithm per image:
that of a product. It is C++, built when it is first used; the CPU only.
"""

import dataclasses
from ctypes import c_long, c_void_p
from functools import cache
from typing import Any

import torch
from torch import Tensor

from vaebench.fast.draft import Draft, Plan
from vaebench.models.protocol import Output
from vaebench.objective import Objective
from vaebench.system.toolchain import load_kernels


@dataclasses.dataclass(frozen=True)
class FusedObjective(Objective):
    """An Objective whose Bernoulli log-likelihood is the kernel's; x gets no gradient."""

    def log_likelihood(self, output: Output, x: Tensor) -> Tensor:
        """Log p(x|z), (B,), from the decoder's output and the images, B times D numbers each."""
        if not isinstance(output, Tensor) or output.dtype == torch.float64:
            return super().log_likelihood(output, x)
        logits, pixels = output.float().flatten(1), x.float().flatten(1)
        recon: Tensor = torch.ops.vaebench.bernoulli(logits, pixels)[0]
        return recon


def part(draft: Draft, plan: Plan) -> tuple[Plan, None] | None:
    """Put the kernel into the objective; None where it does not apply.

    Raises:
        vaebench.system.toolchain.CompileError: the kernel cannot be built.
    """
    objective = plan.objective
    if objective.likelihood != "bernoulli":
        return None
    _kernel()
    same = {each.name: getattr(objective, each.name) for each in dataclasses.fields(objective)}
    fused = FusedObjective(**same)
    return dataclasses.replace(plan, objective=fused), None


@cache
def _kernel() -> Any:
    """Load fused_likelihood.cpp."""
    library = load_kernels("vectors.h", "bernoulli.h", "fused_likelihood.cpp")
    library.vaebench_bernoulli.argtypes = [c_long] * 2 + [c_void_p] * 4
    return library


def _forward(logits: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    logits, x = logits.contiguous(), x.contiguous()
    recon, logits_grad = _fake_forward(logits, x)
    _kernel().vaebench_bernoulli(
        *logits.shape, *(t.data_ptr() for t in (logits, x, recon, logits_grad))
    )
    return recon, logits_grad


def _fake_forward(logits: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    return logits.new_empty(logits.shape[0]), logits.new_empty(logits.shape)


def _keep(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(output[1])


def _backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor, None]:
    return grad.unsqueeze(1) * ctx.saved_tensors[0], None


# FRAGMENT: the namespace is adam.py's too.
_LIBRARY = torch.library.Library("vaebench", "FRAGMENT")
_LIBRARY.define("bernoulli(Tensor logits, Tensor x) -> (Tensor, Tensor)")
_LIBRARY.impl("bernoulli", _forward, "CPU")
torch.library.register_fake("vaebench::bernoulli", _fake_forward, lib=_LIBRARY)
torch.library.register_autograd("vaebench::bernoulli", _backward, setup_context=_keep, lib=_LIBRARY)
