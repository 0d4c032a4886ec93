"""The faster way to multiply float32 in Triton's kernels, among those that are right here."""

import warnings
from collections.abc import Callable
from typing import cast

from vaebench.fast.admit import Verdict, objection
from vaebench.fast.capture import Capture, capture_for, step_seconds
from vaebench.fast.draft import Draft, Offer
from vaebench.fast.kernels.triton_step import FINE, supports, triton_step
from vaebench.fast.step import Optimizer, Step, StepEngine
from vaebench.models.mlp import VAE
from vaebench.problem import Problem


def offer_fastest(
    draft: Draft, name: str, kind: Callable[[Problem, Step, Optimizer], StepEngine]
) -> Offer | str:
    """Offer the engine that trains by these kernels, for a technique of this name.

    Which way to multiply float32 is the faster one is measured, among those that are right here:
    each is verified beside the engine below.
    """
    problem, optimizer = draft.problem, draft.optimizer
    plain = draft.plan.autocast is None and problem.resident and draft.group is None
    known = plain and not problem.adapted and problem.labels is None and not draft.whole
    if not (known and supports(problem.model, problem.images, problem.objective, optimizer)):
        return (
            "Triton's kernels train a plain vaebench.VAE with one hidden layer and ReLU, without "
            "autocast, in one process, on CUDA; trained without"
        )
    tf32 = bool(draft.actual.get("tf32"))
    right: dict[str, StepEngine] = {}
    for precision in ("tf32",) if tf32 else FINE:
        step = triton_step(cast(VAE, problem.model), problem.objective, optimizer, precision)
        engine = kind(problem, step, optimizer)
        wrong = objection(engine, draft.engine, draft.tolerance)
        if wrong is None:
            right[precision] = engine
        else:
            draft.notes.append(
                f"--{name}: Triton's kernels ({precision}) went wrong here ({wrong})"
            )
    if not right:
        warnings.warn(f"{draft.notes[-1][2:]}; training without", stacklevel=6)
        return ""
    capture = None if engine.steps_at_once > 1 else capture_for(problem.device)
    seconds = {p: step_seconds(engine, capture) for p, engine in right.items()}
    best = min(seconds, key=seconds.__getitem__)
    tried = ", ".join(f"{p} {1e6 * took:.1f}" for p, took in seconds.items())
    note = f"--{name}: products in {best} (microseconds a step: {tried})"
    actual = {name: True, "compile": bool(draft.asks("compile"))}
    return Offer(right[best], None, actual, whole=True, notes=[note], race=_race_of(capture))


def _race_of(capture: Capture | None) -> Callable[[StepEngine, StepEngine], Verdict]:
    """Race steps as they will be run: replayed, where they can be recorded."""

    def race_steps(candidate: StepEngine, other: StepEngine) -> Verdict:
        steps = -(-len(candidate.images) // candidate.batch_size)
        first, second = (step_seconds(engine, capture) for engine in (candidate, other))
        return Verdict(first, second, steps)

    return race_steps
