"""From the plain step to the fastest engine that is right here: techniques, admitted one by one.

The register says which techniques there are, and in which order they are tried. The module of a
technique has one function, ``offer(draft)``, which says of the problem at hand, and of what has
been admitted so far, why the technique cannot help here, in a line ("" if nobody need be told), or
offers the engine that it makes of the one below it. What is offered goes through the gate
(:mod:`vaebench.fast.admit`): verified beside the engine below, then raced.
"""

import warnings
from importlib import import_module
from typing import Any, NamedTuple

import torch

from vaebench.config import FastConfig, asks_for, without
from vaebench.errors import InputError, in_a_line
from vaebench.fast import admit
from vaebench.fast.draft import Draft, Offer, Plan
from vaebench.fast.given import GivenState
from vaebench.fast.optimizer import OptimizerState
from vaebench.fast.register import TECHNIQUES, Technique
from vaebench.fast.step import StepEngine
from vaebench.problem import Problem
from vaebench.system.distributed import Group
from vaebench.system.toolchain import CompileError


class Built(NamedTuple):
    """A warmed-up engine and what it really is, against what was asked for.

    ``actual`` says of every technique whether it runs; of ``amp``, ``"bf16"`` or ``"float32"``; of
    ``graph`` the steps per replay, or False; and as ``data_on`` ``"device"`` or ``"host,
    streamed"``. ``notes`` has one line for each request that could not be met, or was decided by
    measurement.
    """

    engine: StepEngine
    actual: dict[str, Any]
    notes: list[str]


def make_engine(
    problem: Problem,
    fast: FastConfig,
    group: Group | None = None,
    optimizer: OptimizerState | None = None,
) -> Built:
    """Build the fastest engine that is right for a problem here, warmed up.

    Args:
        problem: what is trained on what. Images that the device's memory does not hold are streamed
            from the host.
        fast: which techniques to try.
        group: the processes that train together, each with all of the images; None: this one.
        optimizer: the state of the training so far, to go on from; None: it begins.
    """
    started = optimizer or _begun(problem)
    draft = Draft(problem, fast, group, started, Plan(problem.objective))
    plain = draft.engine
    draft.actual = {t.name: t.idle for t in TECHNIQUES if t.kind != "thread"}
    for technique in TECHNIQUES:
        if technique.kind == "engine" and asks_for(fast, technique.name):
            _consider(technique, draft)
    if draft.engine is plain:
        plain.warm_up()
    elif not admit.is_open() and (regretted := _regretted(draft, plain)):
        technique, reason = regretted
        built = make_engine(problem, without(fast, technique.name), group, draft.optimizer)
        return built._replace(notes=[*built.notes, f"{technique.flag}: {reason}"])
    draft.actual["data_on"] = "device" if problem.resident else "host, streamed"
    return Built(draft.engine, draft.actual, draft.notes)


def _begun(problem: Problem) -> OptimizerState:
    """An optimiser's state as training begins."""
    if problem.given is not None:
        return GivenState.around(problem.given, problem.params, problem.optimizer)
    return OptimizerState.of(problem.params, problem.optimizer, apart=problem.varies)


def _regretted(draft: Draft, plain: StepEngine) -> tuple[Technique, str] | None:
    """A technique that loses now that others were built on it, and why; None if there is none.

    Its module says so in a line by a function ``regret(draft, plain)``, which most do not have.
    """
    for technique in TECHNIQUES:
        if draft.actual.get(technique.name, technique.idle) != technique.idle:
            regret = getattr(import_module(technique.module), "regret", None)
            reason = regret(draft, plain) if regret else ""
            if reason:
                return technique, reason
    return None


def _consider(technique: Technique, draft: Draft) -> None:
    """Let a technique offer what it can, and admit that if it is right and pays."""
    elsewhere = draft.problem.device.type not in technique.devices
    if elsewhere and technique.default is not False:  # else it was asked for by name, and says why
        return
    try:
        offered = import_module(technique.module).offer(draft)
        while isinstance(offered, Offer):
            offered = _admit(technique, draft, offered)
    except CompileError as error:
        warnings.warn(f"{error}; training eagerly", stacklevel=4)
        offered = f"{error}; trained eagerly"
    except (InputError, torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:  # a model may be what nobody has thought of
        if admit.is_open():
            raise
        said = f"went wrong here ({in_a_line(error)})"
        warnings.warn(f"{technique.flag} {said}; training without", stacklevel=4)
        offered = f"{said}; trained without"
    if offered:
        draft.notes.append(f"{technique.flag}: {offered}")


def _admit(technique: Technique, draft: Draft, offered: Offer) -> "Offer | str":
    """Verify and race what is offered; use it, or say why not, or give what to try instead."""
    engine, group = offered.engine, draft.group
    wrong = admit.objection(engine, draft.engine, offered.tolerance or draft.tolerance)
    if group and group.any(wrong is not None):
        wrong = wrong or "another process found it wrong"
    if wrong:
        said = f"went wrong here ({wrong})"
        warnings.warn(f"{technique.flag} {said}; training without", stacklevel=5)
        draft.notes.append(f"{technique.flag}: {said}; trained without")
        return offered.instead or ""
    # Several processes would each measure, and wait for, another.
    if offered.race and not group and not admit.is_open():
        verdict = offered.race(engine, draft.engine)
        if offered.said:
            draft.notes.append(offered.said(verdict))
        if not verdict.wins:
            slower = verdict.candidate / verdict.other
            return "" if offered.said else f"{slower:.2f}x the time without it; trained without"
    draft.engine, draft.plan = engine, offered.plan or draft.plan
    draft.whole = offered.whole
    draft.actual |= offered.actual
    draft.notes += offered.notes
    return ""
