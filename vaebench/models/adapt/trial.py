"""A model being tried: calls that do the same every time, and what its forward says of them."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vaebench.errors import InputError
from vaebench.models.adapt.between import NORMAL, UNIFORM, Passed, Steady, watching
from vaebench.models.adapt.names import (
    DECODERS,
    ENCODERS,
    follow,
    parts,
    received_names,
    returned_names,
)
from vaebench.models.adapt.read import HINTS, Unread
from vaebench.models.adapt.ways import Said, Source, other_shapes, shaped
from vaebench.models.protocol import reason
from vaebench.models.snapshot import modes_kept


class Trial:
    """A model in one mode, and a few images.

    Args:
        model: in the mode that it is tried in; whoever tries it puts it back.
        x: (B, ...) images.
        y: their labels, (B, ...), if it is given any.
        likelihood: what it is wanted for.
        said: what the caller says of it.
    """

    def __init__(
        self, model: nn.Module, x: Tensor, y: tuple[Tensor, ...], likelihood: str, said: Said
    ) -> None:
        self.model, self.x, self.y, self.likelihood, self.said = model, x, y, likelihood, said
        self.name = type(model).__name__
        self.notes: list[str] = []
        self.left_out: list[str] = []  # what is told of forward, which the trainer does not call
        self.seen: dict[bool, Passed | None] = {}  # of forward, by whether in training: seen once
        self.passed: Passed | None = None  # a call of its forward that encodes and decodes
        self.latent: tuple[int, ...] = ()  # of an image's z, once encoded
        self.generator = torch.Generator(x.device).manual_seed(0)
        self.buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]

    def run(self, work: Callable[[], Any], seed: int = 0) -> Any:
        """Do some work of the model's, from the same buffers and the same random state."""
        for buffer, value in self.buffers:
            buffer.copy_(value)
        torch.default_generator.manual_seed(seed)
        if self.x.is_cuda:
            torch.cuda.manual_seed(seed)
        return work()

    def noise(self, *shape: int) -> Tensor:
        """Standard-normal numbers that no generator of the caller's is used for."""
        return torch.randn(shape, generator=self.generator, device=self.x.device)

    def sources(self, given: Source | None, names: tuple[str, ...]) -> Iterator[Source]:
        """What may be called: what the caller says, else whatever has one of the usual names."""
        if given is not None:
            yield given
            return
        children = {name.lower(): name for name, _ in self.model.named_children()}
        for name in names:
            found = name if callable(getattr(self.model, name, None)) else children.get(name)
            if found:
                yield found

    def method(self, source: Source) -> Any:
        """What a source is."""
        return getattr(self.model, source) if isinstance(source, str) else source

    def received(self, source: Source, count: int) -> list[str | None]:
        """What forward's own text calls the values that a source gives it."""
        return received_names(self.model, source, count) if isinstance(source, str) else []

    def forward(self) -> tuple[list[str | None], list[Tensor]] | None:
        """Names and tensors that forward gives for the images where z is mu; None if it fails."""
        with Steady():
            found = self._forward()
        return found and _flat(found[0], self.model)

    def watched(self) -> Iterator[Passed]:
        """What forward does where noise is not 0: in the model's mode, and then in the other."""
        for training in (self.model.training, not self.model.training):
            if training not in self.seen:
                self.seen[training] = self._watch(training)
            if passed := self.seen[training]:
                yield passed

    def _watch(self, training: bool) -> Passed | None:
        names = [*self.sources(None, ENCODERS), *self.sources(None, DECODERS)]
        passed = Passed()
        with modes_kept(self.model), Steady(NORMAL, UNIFORM):
            self.model.train(training)
            with watching(self.model, [str(name) for name in names], passed):
                found = self._forward(passed)
        if not found:
            return None
        passed.result = _flat(found[0], self.model)[1]
        return passed

    def _forward(self, passed: Passed | None = None) -> tuple[Any] | None:
        """What forward gives for the images, in the first shape that it takes; None if in none."""
        if type(self.model).forward is nn.Module.forward or hasattr(self.model, "_orig_mod"):
            return None
        for shape in (None, *other_shapes(self.x)):
            try:  # by its name: hooks on the model itself are no part of what it does
                value = self.run(partial(self.model.forward, shaped(self.x, shape), *self.y))
            except Exception:  # it may want anything else beside x
                for calls in passed.calls.values() if passed else ():
                    calls.clear()
            else:
                return (value,)
        return None

    def refused(self, method: str, faults: list[tuple[Source, Exception]]) -> InputError:
        """Say what was wrong with the first of the sources tried, and what would help."""
        if not faults:
            argument = self._argument(method)
            return InputError(
                f"{self.name} has no method {method}(), nor a part of such a name: say what does "
                f"it, as vaebench.adapt(model, {method}=lambda {argument}: ...)"
            )
        source, fault = faults[0]
        if isinstance(fault, Unread):
            hint = f": {HINTS[method]}" if fault.helped else ""
            refusal = InputError(f"{self.name}: {called_by(source)} gave {fault}{hint}")
        elif method == "encode":
            labels = f" with labels of shape {tuple(self.y[0].shape[1:])}" if self.y else ""
            refusal = InputError(
                f"{self.name} does not take images of shape {tuple(self.x.shape[1:])}{labels}: "
                f"{called_by(source)} raised {reason(fault)}{self._otherwise_typed()}"
            )
        else:
            refusal = InputError(
                f"{self.name}: {called_by(source)} raised {reason(fault)} for z of shape "
                f"{self.latent}; if it is to be called otherwise, say how: "
                f"vaebench.adapt(model, decode=lambda {self._argument(method)}: ...)"
            )
        refusal.__cause__ = fault
        return refusal

    def _otherwise_typed(self) -> str:
        """What to do about weights of another type than the images, if there are any."""
        kinds = {p.dtype for p in self.model.parameters() if p.is_floating_point()} - {self.x.dtype}
        if not kinds:
            return ""
        names = ", ".join(sorted(str(kind).removeprefix("torch.") for kind in kinds))
        return (
            f"; it has weights in {names}, and images are float32: model.float() makes them alike"
        )

    def _argument(self, method: str) -> str:
        """What a function in the place of a method is called with."""
        return ("x" if method == "encode" else "z") + ", y" * bool(self.y)


def called_by(source: Source) -> str:
    """The name of a source."""
    return source if isinstance(source, str) else getattr(source, "__name__", "the function given")


def _flat(value: Any, model: nn.Module) -> tuple[list[str | None], list[Tensor]]:
    """The tensors among what forward gave, with their names."""
    pairs: list[tuple[str | None, Any]]
    if isinstance(value, Tensor):
        return [None], [value]
    if isinstance(value, (tuple, list)) and not hasattr(value, "_fields"):
        pairs = list(zip(returned_names(model, len(value)), value, strict=True))
    else:
        pairs = [(name, follow(value, (step,))) for name, step in (parts(value) or {}).items()]
    names: list[str | None] = []
    tensors: list[Tensor] = []
    for name, item in pairs:
        inner = ([name], [item]) if isinstance(item, Tensor) else _flat(item, nn.Identity())
        names += inner[0]
        tensors += inner[1]
    return names, tensors
