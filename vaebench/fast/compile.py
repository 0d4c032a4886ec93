"""The whole step as one compiled graph: forward, backward and Adam, with no break.

Some settings of torch make it so. ``trace_autograd_ops`` lets the compiler trace
``torch.autograd.grad``, which it otherwise stops at. ``backward_pass_autocast = "off"`` keeps the
backward pass out of the forward pass's autocast, as eager PyTorch does; by default the compiled
backward inherits it, and its float32 products silently run in bfloat16. ``fallback_random`` lets a
model's own random numbers (dropout) be those that it draws eagerly.

Compiled code depends on shapes and settings, not on which model it was made for: a second
training of the same kind in one process compiles nothing.
"""

import contextlib
import dataclasses
import shutil
import time
import warnings
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from functools import partial
from importlib import import_module
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vaebench.fast.admit import Verdict
from vaebench.fast.draft import Draft, Offer
from vaebench.fast.register import TECHNIQUES
from vaebench.fast.step import Step, has_hooks
from vaebench.system.toolchain import CompileError, broken_compiler, no_compiler

# Every shape, batch size and precision is one more variant of the one step function; torch's own
# limit of 8 would end a process that trains many kinds of model.
MAX_VARIANTS = 256
# Without the last two, a model with hooks, or with one parameter in two places, would be trained by
# what was compiled for its like without.
_DYNAMO = {
    "trace_autograd_ops": True,
    "recompile_limit": MAX_VARIANTS,
    "skip_nnmodule_hook_guards": False,
    "skip_no_tensor_aliasing_guards_on_parameters": False,
}


class Call(NamedTuple):
    """A call of a compiled graph: the graph, its inputs, how many tensors it gives back."""

    graph: Callable[..., Any]
    inputs: list[Any]
    outputs: int


# Collects the calls of compiled graphs while a step is compiled.
_calls: ContextVar[list[Call] | None] = ContextVar("calls", default=None)


def offer(draft: Draft) -> Offer | str:
    """Offer the step as one graph, with the techniques that are parts of it; see ``build``."""
    if draft.whole or not draft.problem.steady:
        return ""
    if has_hooks(draft.optimizer.params):
        return "a parameter's gradient has hooks, which a graph would not call; trained eagerly"
    closed = draft.problem.given is None and draft.problem.device.type == "cpu"
    plain = dataclasses.replace(draft.plan, compiled=partial(CompiledStep, closed=closed))
    plan, notes = plain, []
    actual: dict[str, Any] = {"compile": True}
    for part in TECHNIQUES:
        here = draft.problem.device.type in part.devices
        if here and part.kind == "part" and part.needs == "compile" and draft.asks(part.name):
            with contextlib.suppress(CompileError):  # compiling the step will say so
                changed = import_module(part.module).part(draft, plan)
                if changed:
                    plan, note = changed
                    actual[part.name] = True
                    notes += [note] if note else []

    def said(verdict: Verdict) -> str:
        return verdict.compiling(time.perf_counter() - draft.begun)

    alone = Offer(draft.make(plain), plain, {"compile": True}, whole=True, said=said)
    if plan is plain:
        return alone
    return Offer(draft.make(plan), plan, actual, whole=True, said=said, notes=notes, instead=alone)


class CompiledStep:
    """A step function, compiled for batches of one size; others run eagerly.

    The other size is the short last batch: one step in an epoch's hundreds. Compiling a second
    graph for it takes as long as the first and would save about a millisecond an epoch.

    Between two epochs anything may have been changed, by a callback or by the model's own code. So
    :meth:`renew` is called as an epoch begins, and the next step checks every assumption that was
    made when compiling, and compiles anew if one does not hold. What then cannot be compiled is
    trained eagerly.

    Args:
        step: as it is.
        batch_size: images of those that are compiled.
        closed: whether no code but ours is called from within the graph, and it is not recorded.
    """

    def __init__(self, step: Step, batch_size: int, closed: bool = False) -> None:
        self.eager = step
        self.batch_size = batch_size
        self.closed = closed
        self.compiled: Step = torch.compile(step, fullgraph=True, dynamic=False, backend=_backend)
        self.ready = False  # compiled, and checked in this epoch
        self.direct: Step | None = None

    @contextlib.contextmanager
    def renew(self) -> Iterator[None]:
        """Enter this as an epoch begins."""
        self.ready, self.direct = False, None
        yield

    def __call__(self, images: Tensor, index: Tensor, eps: Tensor, totals: Tensor) -> None:
        if len(index) != self.batch_size:
            self.eager(images, index, eps, totals)
        elif self.direct:
            self.direct(images, index, eps, totals)
        elif self.ready:
            with _steady():
                self.compiled(images, index, eps, totals)
        else:
            calls: list[Call] = []
            before = _calls.set(calls)
            try:
                with _compiler_settings(), compile_errors():
                    self.compiled(images, index, eps, totals)
            finally:
                _calls.reset(before)
            self.direct = _direct(calls, (images, index, eps, totals), self.closed)
            self.ready = True


def _backend(module: torch.fx.GraphModule, example: list[Any]) -> Callable[..., Any]:
    """Torch's own compiler; its graphs note their calls for whoever collects them."""
    graph = torch._dynamo.lookup_backend("inductor")(module, example)
    outputs = len(module.graph.output_node().args[0])  # type: ignore[arg-type]

    def run(*inputs: Any) -> Any:
        calls = _calls.get()
        if calls is not None:
            calls.append(Call(graph, list(inputs), outputs))
        return graph(*inputs)

    return run


def _direct(calls: list[Call], arguments: tuple[Tensor, ...], closed: bool) -> Step | None:
    """Give a way into the compiled graph past torch's front end, which takes 0.1 ms a step.

    A ``closed`` graph runs in inference mode: its operators are then called without asking
    autograd, which takes 10 microseconds each. What others' code keeps would be bound to that mode.

    The graph's inputs are the step's four arguments and, the same every time, the tensors that
    the step holds: parameters, moments, buffers. None if the step is not one graph that changes
    tensors in place and gives nothing back: then something would be left to do after it.
    """
    if len(calls) != 1 or calls[0].outputs:
        return None
    graph, inputs, _ = calls[0]
    places = [[i for i, t in enumerate(inputs) if t is argument] for argument in arguments]
    if any(len(found) != 1 for found in places):
        return None
    slots = [found[0] for found in places]
    mode = torch.inference_mode if closed else torch.no_grad

    def step(*changing: Tensor) -> None:
        for slot, tensor in zip(slots, changing, strict=True):
            inputs[slot] = tensor
        with mode():  # the graph holds the backward pass already
            graph(*inputs)

    return step


def _steady() -> Any:
    """Torch's stance once warmed up: never recompile, and check only which variant is meant.

    Checking every assumption made when compiling takes 0.15 ms a step, and none of them can have
    changed: the engine hands in the same tensors, and slices of one shape.
    """
    return torch.compiler.set_stance("fail_on_recompile", skip_guard_eval_unsafe=True)


@contextlib.contextmanager
def _compiler_settings() -> Iterator[None]:
    """Torch's settings while compiling; one that this torch does not know is left out."""
    # Imported here: they take longer than the rest of torch, and only compiling needs them.
    import torch._dynamo.config
    import torch._functorch.config
    import torch._inductor.config

    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        # Advice that is not for the user: TF32 is an option of ours, and float32 means float32.
        warnings.filterwarnings("ignore", "TensorFloat32 tensor cores")
        for module, changes in (
            (torch._dynamo.config, _DYNAMO),
            (torch._functorch.config, {"backward_pass_autocast": "off"}),
            (torch._inductor.config, {"fallback_random": True}),
        ):
            known = {name: value for name, value in changes.items() if hasattr(module, name)}
            stack.enter_context(module.patch(known))
        yield


@contextlib.contextmanager
def compile_errors() -> Iterator[None]:
    """Turn what the compiler raises into a CompileError; errors of the model pass through."""
    from torch._dynamo.exc import TorchDynamoException
    from torch._inductor.exc import CppCompileError, InvalidCxxCompiler

    try:
        yield
    except (TorchDynamoException, CppCompileError, InvalidCxxCompiler) as error:
        if shutil.which("g++") is None and shutil.which("clang++") is None:
            raise no_compiler("torch.compile") from error
        if InvalidCxxCompiler.__name__ in f"{type(error).__name__}: {error}":  # maybe wrapped
            raise broken_compiler() from error
        # The message's first line may only introduce the one that says something.
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        telling = [line for line in lines if not line.endswith("raised:")]
        reason = f"torch.compile failed: {(telling or [type(error).__name__])[0]}"
        raise CompileError(reason) from error
