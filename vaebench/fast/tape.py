"""A step's operators as a list: written down once, then called without what wrote it.

Where kernels do nearly all of the arithmetic, a compiler has little left to fuse, and takes half a
minute for it. What an eager step loses there is Python's part in the model, autograd's and the
dispatcher's. So two steps, of other images each, are run as ever, and every operator that they call
is written down. If both lists are the same but for what is in the tensors, the list becomes one
function of Python, which calls these operators in their order on the same parameters and buffers:
the results are the eager step's, to the bit. Random numbers of the model's own are drawn anew each
time, in their turn.

A step that looks at values (``item``, ``numpy``), whose shapes depend on them, or that draws random
numbers elsewhere than from torch is not the same each time and stays as it is; so does one of a
model that has hooks, keeps what it computes, or prints, counts or collects anything elsewhere: a
list would do none of it, without a word.
"""

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from functools import wraps
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from vaebench.engine import Sums
from vaebench.fast.direct import DIRECT
from vaebench.fast.draft import Draft, Offer
from vaebench.fast.optimizer import opaque_updates
from vaebench.fast.step import Step, StepEngine, has_hooks
from vaebench.models.protocol import is_altered
from vaebench.system.garbage import no_collection

_ARGUMENTS = ("images", "index", "eps", "totals")
_SAME = (torch.ops.aten.detach.default, torch.ops.aten.alias.default)  # as their argument
_FRESH, _CLONE = torch.ops.aten.lift_fresh.default, torch.ops.aten.clone.default
_BY_VALUE = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)
# Products of the library's: like our own operators, nothing that a compiler makes faster.
_PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "convolution", "convolution_backward")
# The share of a step that they take from which on a compiler is not asked; steps timed for it.
ENOUGH, TIMED = 0.75, 10


class NotTheSameError(RuntimeError):
    """The step is no list of operators; the message is one line: why."""


def offer(draft: Draft) -> Offer | str:
    """Offer the steps of a network with native convolutions, called from a list."""
    problem, model = draft.problem, draft.problem.model
    alone = draft.group is None and problem.resident and problem.steady and problem.given is None
    if draft.whole or not alone or not draft.actual.get("products"):
        return ""
    if has_hooks(draft.optimizer.params) or any(is_altered(m) for m in model.modules()):
        return "hooks, or methods of their own in an instance, would not be called; left out"
    if problem.kept:
        return f"the model keeps what it computes ({problem.kept[0].lstrip('.:')}); left out"
    if beside := problem.told + problem.stored:
        return f"a step does more than compute ({beside[0]}); left out"
    engine = TapeEngine(draft.engine)
    try:
        engine.warm_up()
    except NotTheSameError as error:
        return f"{error}; left out"
    actual: dict[str, Any] = {"tape": True}
    if draft.asks("compile") and (share := engine.in_kernels()) >= ENOUGH:
        note = f"--tape: kernels take {share:.0%} of a step; the list takes a compiler's place"
        actual["compile"] = True
        return Offer(engine, draft.plan, actual, whole=True, notes=[note])
    return Offer(engine, draft.plan, actual)


class Value(NamedTuple):
    """A tensor of a list, by its number."""

    number: int


class Call(NamedTuple):
    """An operator, what it takes and gives, tensors by number; ``single``: no sequence of them."""

    operator: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    results: tuple[int, ...]
    single: bool

    @property
    def reads(self) -> set[int]:
        """The numbers of the tensors that it takes."""
        leaves = tree_leaves((self.args, self.kwargs), is_leaf=lambda x: isinstance(x, Value))
        return {leaf.number for leaf in leaves if isinstance(leaf, Value)}

    @property
    def acts(self) -> bool:
        """Whether it does more than give its results."""
        schema = self.operator._schema
        secretly = any(a.name.startswith("running_") for a in schema.arguments)  # batch norm
        random = torch.Tag.nondeterministic_seeded in self.operator.tags
        return bool(schema.is_mutable or secretly or random)


class Tape(TorchDispatchMode):
    """Writes down the operators that are called while it is entered.

    Args:
        arguments: the tensors that are other ones in each step; they have the first numbers.
    """

    def __init__(self, arguments: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[Call] = []
        self.kept: dict[int, Tensor] = {}  # tensors that no call has made
        self.constants: dict[int, Tensor] = {}  # those made of numbers in each step
        self.numbers: dict[int, int] = {}  # of each tensor, by its id
        self.unused = itertools.count()
        self.alive: list[Any] = []  # meanwhile no other has the id of one of these
        for argument in arguments:
            self._number(argument)

    def _number(self, tensor: Tensor) -> int:
        self.alive.append(tensor)
        if id(tensor) not in self.numbers:
            self.numbers[id(tensor)] = next(self.unused)
        return self.numbers[id(tensor)]

    def _taken(self, tensor: Tensor) -> Value:
        if id(tensor) not in self.numbers:
            self.kept[self._number(tensor)] = tensor
        return Value(self.numbers[id(tensor)])

    def call(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call an operator, and write it down.

        Raises:
            NotTheSameError: what it does depends on values, or on how a tensor is seen.
        """
        kwargs = kwargs or {}
        if any(tag in func.tags for tag in _BY_VALUE):
            raise NotTheSameError(f"a step looks at values ({func})")
        if torch.Tag.inplace_view in func.tags:
            raise NotTheSameError(f"a step gives a tensor another shape in place ({func})")
        if any(isinstance(leaf, torch.ScriptObject) for leaf in tree_leaves((args, kwargs))):
            raise NotTheSameError(f"a step hands objects about ({func})")  # other ones each time
        taken = tree_map_only(Tensor, self._taken, (args, kwargs))
        if func is _FRESH and (number := taken[0][0].number) in self.kept:
            # Whatever is done to it is done to another each time.
            self.constants[number] = self.kept.pop(number).clone()
            del self.numbers[id(args[0])]
        result = func(*args, **kwargs)
        if func in _SAME:
            self.alive.append(result)
            self.numbers[id(result)] = taken[0][0].number
            return result
        single = not isinstance(result, tuple | list)
        results = tuple(self._number(each) for each in ([result] if single else result))
        listed = _CLONE if func is _FRESH else func
        self.calls.append(Call(listed, taken[0], taken[1], results, single))
        return result

    def close(self) -> None:
        """Let go of what the operators have made."""
        self.alive.clear()

    def differs(self, other: "Tape") -> str | None:
        """In what the two are not the same, in words; None if they are."""
        for mine, theirs in zip(self.calls, other.calls, strict=False):
            if mine != theirs:
                return f"two steps do not call the same operators ({mine.operator})"
        if len(self.calls) != len(other.calls):
            return "two steps do not call as many operators"
        same = self.kept.keys() == other.kept.keys()
        same = same and all(tensor is other.kept[n] for n, tensor in self.kept.items())
        if not same or any(not t.equal(other.constants[n]) for n, t in self.constants.items()):
            return "two steps take other tensors than each other"
        return None

    def needed(self) -> list[Call]:
        """The calls that do something, or whose results are used by one that does."""
        used: set[int] = set()
        found: list[Call] = []
        for call in reversed(self.calls):
            if call.acts or used.intersection(call.results):
                used |= call.reads
                found.append(call)
        return found[::-1]


# Not in the class's body: what stands there is wrapped, and the wrapper loads the compiler.
Tape.__torch_dispatch__ = Tape.call  # type: ignore[assignment]


def written(tape: Tape, of: Callable[[Any], Callable[..., Any]]) -> Step:
    """Make a tape's calls into one function of its arguments; ``of`` an operator: what to call."""
    calls = tape.needed()
    kept = tape.kept | tape.constants
    names = {number: f"kept_{number}" for number in kept} | dict(enumerate(_ARGUMENTS))
    space: dict[str, Any] = {names[number]: tensor for number, tensor in kept.items()}
    lines = [f"def step({', '.join(_ARGUMENTS)}):"]
    last = {number: i for i, call in enumerate(calls) for number in call.reads}
    for i, call in enumerate(calls):
        # What is changed in place is given back too, and has its name.
        given = [n if n in last and n not in names else None for n in call.results]
        names |= {n: f"made_{n}" for n in given if n is not None}
        target = ", ".join("_" if n is None else names[n] for n in given)
        space[f"call_{i}"] = of(call.operator)
        taken = [_text(arg, names, space) for arg in call.args]
        taken += [f"{key}={_text(arg, names, space)}" for key, arg in call.kwargs.items()]
        equals = " = " if call.single else ", = "
        lines.append(f"    {target + equals if target else ''}call_{i}({', '.join(taken)})")
        over = [names[n] for n in call.reads if last[n] == i and names[n].startswith("made_")]
        lines += [f"    del {', '.join(over)}"] if over else []
    exec("\n".join(lines), space)
    step: Step = space["step"]
    return step


def _text(arg: Any, names: dict[int, str], space: dict[str, Any]) -> str:
    """What stands for an argument in the function; what has no words of its own is put in space."""
    if isinstance(arg, Value):
        return names[arg.number]
    if isinstance(arg, list):
        return f"[{', '.join(_text(each, names, space) for each in arg)}]"
    if arg is None or isinstance(arg, bool | int | str):
        return repr(arg)
    name = f"constant_{len(space)}"
    space[name] = arg
    return name


def direct(operator: Any) -> Callable[..., Any]:
    """What an operator runs, past the dispatcher, if it is ours; else itself."""
    found: Callable[..., Any] = DIRECT.get(operator, operator)
    return found


class TapeEngine(StepEngine):
    """Runs the step of another engine from a list of its operators.

    It trains the same model with the same optimiser, and the bits are the same.

    Args:
        plain: the engine whose step is written down.
    """

    holds_tensors = True

    def __init__(self, plain: StepEngine) -> None:
        super().__init__(plain.problem, plain.step, plain.optimizer, plain.contexts)
        self.tapes: dict[int, Tape] = {}  # by images of a batch
        self.listed: dict[int, Step] = {}

    def warm_up(self) -> None:
        """See :meth:`vaebench.engine.Engine.warm_up`.

        Raises:
            NotTheSameError: the step is no list of operators.
        """
        super().warm_up()
        if self.listed:
            return
        with self.unchanged(), self.training():
            for size in self.problem.batch_sizes:
                first, second = (self._tape(*each) for each in self._batches(size))
                difference = first.differs(second)
                if difference:
                    raise NotTheSameError(difference)
                self.tapes[size], self.listed[size] = second, written(second, direct)

    def _batches(self, size: int) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """The arguments of two steps that have nothing in common, if there are images enough."""
        index, noise = torch.arange(size), self.no_noise(size)
        yield self.images, index, noise, torch.zeros(2).double()
        index = len(self.images) - 1 - index
        yield self.images, index, torch.randn_like(noise), torch.zeros(2).double()

    def _tape(self, *arguments: Tensor) -> Tape:
        tape = Tape(arguments)
        with opaque_updates(), no_collection(), tape:
            self.step(*arguments)
        tape.close()
        return tape

    def in_kernels(self) -> float:
        """The share of a step's time that our operators take, and the library's products."""
        taken = 0.0

        def timed(operator: Any) -> Callable[..., Any]:
            run = direct(operator)
            if operator not in DIRECT and operator._schema.name[6:] not in _PRODUCTS:
                return run

            @wraps(run)
            def call(*args: Any, **kwargs: Any) -> Any:
                nonlocal taken
                begun = time.perf_counter()
                result = run(*args, **kwargs)
                taken += time.perf_counter() - begun
                return result

            return call

        size = self.problem.batch_sizes[0]
        step = written(self.tapes[size], timed)
        with self.unchanged(), self.training(), torch.inference_mode():
            batch = next(self._batches(size))
            step(*batch)
            taken, begun = 0.0, time.perf_counter()
            for _ in range(TIMED):
                step(*batch)
            return taken / (time.perf_counter() - begun)

    def run(self, order: Tensor, noise: Tensor) -> Sums:
        """Do what :meth:`epoch` does, within :meth:`training`."""
        totals = torch.zeros(2, dtype=torch.float64)
        for index, eps in zip(
            order.split(self.batch_size), noise.split(self.batch_size), strict=True
        ):
            listed = self.listed.get(len(index))
            if listed:
                with torch.inference_mode():
                    listed(self.images, index, eps, totals)
            else:
                self.step(self.images, index, eps, totals)
        return Sums(totals[0], totals[1], len(order))
