"""TF32: float32 products whose factors keep 10 bits of their 23, at several times the speed.

Not float32 by this package's rule of equality, so it is used only where it is asked for; and
torch's switches for it, which are the whole process's, are on while it trains alone. That for
convolutions torch has on by default: it is off during all other steps. A graph recorded from a
step keeps the kernels that were chosen then.
"""

import contextlib
from collections.abc import Iterator

import torch

from vaebench.fast.admit import ROUNDED
from vaebench.fast.draft import Draft, Offer


def applies(device: torch.device) -> bool:
    """Whether this device has such products: NVIDIA's do since compute capability 8."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def offer(draft: Draft) -> Offer | str:
    """Offer the plain step with such products: they are asked for by name, and not raced."""
    if not applies(draft.problem.device):
        return f"{draft.problem.device} has no such products; trained in float32"
    plan = draft.plan.within(tf32_products)
    draft.actual["tf32"] = True  # what is made from here on is compared as such
    engine = draft.make(plan)
    return Offer(engine, plan, actual={"tf32": True}, race=None, tolerance=ROUNDED)


@contextlib.contextmanager
def tf32_products() -> Iterator[None]:
    """Switch TF32 on in the block, forward and backward."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
