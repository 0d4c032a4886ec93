"""Which autocast dtype on which device, and why: measured, not assumed.

Only bfloat16 is offered. float16 needs a loss scaler, and its largest number is passed by
exp(logvar) at logvar = 11. A processor that lists bfloat16 instructions need not gain from them,
and one without them emulates: there autocast is slower than float32, often by much. A GPU
multiplies bfloat16 many times faster, and may gain nothing: small products take a kernel's least
time, and autocast adds kernels that convert. There whole steps are compared.
"""

import dataclasses
import platform
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from vaebench.fast.admit import BF16
from vaebench.fast.admit import race as race_steps
from vaebench.fast.capture import capture_for, step_seconds
from vaebench.fast.draft import Draft, Offer
from vaebench.fast.step import StepEngine
from vaebench.system.timing import race

# Casting weights and activations costs two passes over them, so a product that is only just
# faster does not pay for itself.
WORTHWHILE = 1.2
# Of whole steps, the conversions included: more than two runs of the same code may differ.
WORTHWHILE_STEP = 1.05
# One matrix product of the default workload's largest layer.
PROBE_SHAPE = (128, 784, 400)
TURNS = 200


@dataclass(frozen=True)
class Precision:
    """The dtype to autocast to, None for none, and the reason in words for the user."""

    dtype: torch.dtype | None
    reason: str

    @property
    def name(self) -> str:
        """As it stands in results: ``"bf16"`` or ``"float32"``."""
        return "bf16" if self.dtype is torch.bfloat16 else "float32"


def offer(draft: Draft) -> Offer | str:
    """Offer the plain step under autocast, where it is asked for or measured to gain."""
    problem, requested = draft.problem, draft.asks("amp")
    if draft.whole:
        return "kernels for float32 make whole steps here: trained so (--amp bf16 forces bf16)"
    if draft.problem.device.type == "cuda" and requested == "auto" and problem.resident:
        precision = by_steps(partial(_step_seconds, draft))
    else:
        precision = choose(requested, problem.device)
    if draft.group:  # one decision, by one measurement
        bf16 = draft.group.broadcast(float(precision.dtype is not None))
        precision = Precision(torch.bfloat16 if bf16 else None, precision.reason)
    if precision.dtype is None:
        return precision.reason
    plan = dataclasses.replace(draft.plan, autocast=precision.dtype)
    notes = [f"--amp: {precision.reason}"]
    return Offer(
        draft.make(plan), plan, actual={"amp": "bf16"}, race=None, notes=notes, tolerance=BF16
    )


def regret(draft: Draft, plain: StepEngine) -> str:
    """Say that bf16, chosen for its products' speed, makes steps slower than float32's, if so."""
    chosen = draft.asks("amp") == "auto" and not draft.group
    if chosen and not race_steps(draft.engine, plain).wins:
        measured = next(note for note in draft.notes if note.startswith("--amp: "))
        return f"{measured.removeprefix('--amp: ')}, but a step was slower in bf16"
    return ""


def _step_seconds(draft: Draft, dtype: torch.dtype | None) -> float:
    """Time a plain step, replayed from a graph if that is wanted.

    Compiled it would be faster, but to compile both takes longer than it could ever save.
    """
    engine = draft.make(dataclasses.replace(draft.plan, autocast=dtype))
    capture = capture_for(draft.problem.device) if draft.asks("graph") else None
    return step_seconds(engine, capture)


def choose(requested: str | None, device: torch.device) -> Precision:
    """Decide on a precision for ``requested`` (None, ``"auto"`` or ``"bf16"``)."""
    if requested is None:
        return Precision(None, "autocast was not asked for")
    if requested == "bf16":
        return Precision(torch.bfloat16, "bf16 was asked for by name")
    if emulates_bf16(device):
        return Precision(None, "this cpu has no bfloat16 instructions: training in float32")
    gain = bf16_gain(device)
    measured = f"a bf16 matrix product runs at {gain:.2g}x float32's speed on this {device.type}"
    if gain >= WORTHWHILE:
        return Precision(torch.bfloat16, measured)
    return Precision(None, f"{measured}: training in float32 (--amp bf16 forces bf16)")


def emulates_bf16(device: torch.device) -> bool:
    """Whether a processor is known to have no bfloat16 products.

    It gains nothing, and need not be measured: beside other programs a measurement may say so.
    """
    if device.type != "cpu" or platform.machine() not in ("x86_64", "AMD64"):
        return False
    cpu: Any = torch.cpu
    return not (cpu._is_avx512_bf16_supported() or cpu._is_amx_tile_supported())


def by_steps(seconds: Callable[[torch.dtype | None], float]) -> Precision:
    """Decide by a training step's time in float32 (None) and under bfloat16 autocast."""
    gain = seconds(None) / seconds(torch.bfloat16)
    measured = f"a bf16 step runs at {gain:.2g}x a float32 step's speed on this GPU"
    if gain >= WORTHWHILE_STEP:
        return Precision(torch.bfloat16, measured)
    return Precision(None, f"{measured}: training in float32 (--amp bf16 forces bf16)")


def bf16_gain(device: torch.device, budget: float = 0.3) -> float:
    """Measure float32's time over bfloat16's for one product; takes about ``budget`` seconds."""
    m, k, n = PROBE_SHAPE
    # Random numbers: on some hardware a product of constants takes less power, and less time.
    generator = torch.Generator(device).manual_seed(0)
    a32 = torch.randn(m, k, generator=generator, device=device)
    b32 = torch.randn(n, k, generator=generator, device=device).t()
    products = {
        dtype: partial(torch.mm, a32.to(dtype), b32.to(dtype))
        for dtype in (torch.float32, torch.bfloat16)
    }
    best = race(products, device, turns=TURNS, budget=budget)
    return best[torch.float32] / best[torch.bfloat16]
