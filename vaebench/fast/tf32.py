"""TF32: float32 products whose factors keep 10 bits of their 23, at several times the speed.

Not float32 by this package's rule of equality, so it is used only where it is asked for; and
torch's switches for it, which are the whole process's, are on during the steps alone. That for
convolutions torch has on by default: it is off during all other steps. A graph recorded from a
step keeps the kernels that were chosen then.
"""

import torch
from torch import Tensor

from vaebench.fast.step import Step
from vaebench.system.device import full_float32


def applies(device: torch.device) -> bool:
    """Whether this device has such products: NVIDIA's do since compute capability 8."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def with_tf32(step: Step) -> Step:
    """Give the step with TF32 switched on around it, forward and backward."""

    def tf32_step(images: Tensor, index: Tensor, eps: Tensor, totals: Tensor) -> None:
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high")
        try:
            step(images, index, eps, totals)
        finally:
            torch.set_float32_matmul_precision(before)

    return tf32_step


def without_tf32(step: Step) -> Step:
    """Give the step with convolutions in float32, as its products are."""
    return full_float32()(step)
