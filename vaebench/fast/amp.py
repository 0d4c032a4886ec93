"""Which autocast dtype on which device, and why: measured, not assumed.

Only bfloat16 is offered. float16 needs a loss scaler, and its largest number is passed by
exp(logvar) at logvar = 11. A processor that lists bfloat16 instructions need not gain from them,
and one without them emulates: there autocast is slower than float32, often by much. A GPU
multiplies bfloat16 many times faster, and may gain nothing: small products take a kernel's least
time, and autocast adds kernels that convert. There whole steps are compared.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from vaebench.system.device import synchronize

# Casting weights and activations costs two passes over them, so a product that is only just
# faster does not pay for itself.
WORTHWHILE = 1.2
# Of whole steps, the conversions included: more than two runs of the same code may differ.
WORTHWHILE_STEP = 1.05
# One matrix product of the default workload's largest layer.
PROBE_SHAPE = (128, 784, 400)
MIN_TURNS, MAX_TURNS = 4, 200


@dataclass(frozen=True)
class Precision:
    """The dtype to autocast to, None for none, and the reason in words for the user."""

    dtype: torch.dtype | None
    reason: str

    @property
    def name(self) -> str:
        """As it stands in results: ``"bf16"`` or ``"float32"``."""
        return "bf16" if self.dtype is torch.bfloat16 else "float32"


def choose(requested: str | None, device: torch.device) -> Precision:
    """Decide on a precision for ``requested`` (None, ``"auto"`` or ``"bf16"``)."""
    if requested is None:
        return Precision(None, "autocast was not asked for")
    if requested == "bf16":
        return Precision(torch.bfloat16, "bf16 was asked for by name")
    gain = bf16_gain(device)
    words = f"a bf16 matrix product runs at {gain:.2g}x float32's speed on this {device.type}"
    if gain >= WORTHWHILE:
        return Precision(torch.bfloat16, words)
    return Precision(None, f"{words}: training in float32 (--amp bf16 forces bf16)")


def by_steps(seconds: Callable[[torch.dtype | None], float]) -> Precision:
    """Decide by a training step's time in float32 (None) and under bfloat16 autocast."""
    gain = seconds(None) / seconds(torch.bfloat16)
    words = f"a bf16 step runs at {gain:.2g}x a float32 step's speed on this GPU"
    if gain >= WORTHWHILE_STEP:
        return Precision(torch.bfloat16, words)
    return Precision(None, f"{words}: training in float32 (--amp bf16 forces bf16)")


def bf16_gain(device: torch.device, budget: float = 0.3) -> float:
    """Measure float32's time over bfloat16's for one product; takes about ``budget`` seconds.

    The two take turns, and the shortest time of each counts: something else that runs meanwhile
    then slows both, or neither, and does not decide.
    """
    m, k, n = PROBE_SHAPE
    best = {torch.float32: math.inf, torch.bfloat16: math.inf}
    # Random numbers: on some hardware a product of constants takes less power, and less time.
    generator = torch.Generator(device).manual_seed(0)
    a32 = torch.randn(m, k, generator=generator, device=device)
    b32 = torch.randn(n, k, generator=generator, device=device).t()
    factors = {dtype: (a32.to(dtype), b32.to(dtype)) for dtype in best}
    end = time.perf_counter() + budget
    for turn in range(MAX_TURNS):
        for dtype, (a, b) in factors.items():
            synchronize(device)
            start = time.perf_counter()
            torch.mm(a, b)
            synchronize(device)
            if turn > 0:  # the first turn sets up what later ones reuse
                best[dtype] = min(best[dtype], time.perf_counter() - start)
        if turn >= MIN_TURNS and time.perf_counter() > end:
            break
    return best[torch.float32] / best[torch.bfloat16]
