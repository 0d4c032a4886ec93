"""Convolutions of small images by kernels of our own, on the CPU.

A library's convolution is made for large images. On one of 28x28 pixels and its halves down to a
single pixel, most of its time goes into setting up, into taps that meet nothing but padding, and
into weights brought from one layout into another. Here (``conv.h`` and what follows it):

- positions that meet the same taps are taken together, those of several images: a tile of the
  product then reads its rows where they lie, and nothing is gathered, padded or multiplied by zero;
- weights lie tap by tap while training lasts, and are packed once a call, by squares in registers;
  a tap that meets only padding, on 1x1 pixels five out of nine, is left out, and not even read,
  nor gone over by Adam (``idle.py``);
- a transposed convolution is the convolution's gradient by its input, and the other way round; the
  weights' gradient sums over positions and images, tap by tap;
- few channels, that would leave vectors empty, are sums of products of vectors, or share a tile
  with neighbouring taps;
- bfloat16 channels that fill them are multiplied by squares (AMX), whose rows are 16 images at one
  place: those lie the same distance apart wherever it is.

Sums run in one order, whatever the number of threads. Images lie channels last between layers, so
that a vector is of channels. Each layer's shape is raced against the
library's convolution, which keeps those that it is faster at.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, cast

from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from vaebench.fast.draft import Draft, Offer
from vaebench.fast.layout import LaidOut
from vaebench.fast.products import operators
from vaebench.fast.products.choice import Choice, Shape, choices, choose
from vaebench.fast.products.idle import IdleTaps, WithoutIdle
from vaebench.fast.products.layers import is_plain, native
from vaebench.models.snapshot import untouched
from vaebench.system.toolchain import CompileError

__all__ = ["Choice", "Products", "Shape", "choices", "choose", "offer", "plan"]


def offer(draft: Draft) -> Offer | str:
    """Offer the step with the convolutions that the kernels are faster at."""
    problem, bf16 = draft.problem, draft.plan.autocast is not None
    if problem.given is not None:
        return ""  # it may go by address, and weights would be laid out by taps
    x = problem.sample_batch
    y = () if problem.labels is None else (problem.labels[: len(x)],)

    def run() -> None:
        with untouched(problem.model):
            problem.model.eval()
            problem.vae.decode(problem.vae.encode(x, *y)[0], *y)

    try:
        found = plan(problem.model, run, problem.batch_size, bf16=bf16)
    except CompileError as error:
        return f"{error}; the library convolves"
    if not found:
        return ""
    if not found.count:
        return found.note
    made = draft.plan.within(partial(found.within, problem.model))
    idle: list[IdleTaps] = []
    for name, weight in found.weights(problem.model).items():
        trained = any(weight is p for p in draft.optimizer.params)
        tensors = draft.optimizer.belonging_to(weight) if trained else [weight]
        made = made.within(LaidOut(tensors, operators.taps_first(*weight.shape[:2])))
        taps = IdleTaps.of(tensors, found.shapes[name])
        idle += [taps] if trained and taps else []
    if idle and draft.optimizer.is_adam and not draft.optimizer.settings.weight_decay:
        made = made.within(WithoutIdle(draft.optimizer, idle))
    notes = [f"--products: {found.note}"]
    return Offer(draft.make(made), made, actual={"products": True}, notes=notes)


@dataclasses.dataclass(frozen=True)
class Products:
    """Which of a model's layers convolve by the kernels, by name, and what was measured.

    ``shapes`` are what each layer is given.
    """

    choices: dict[str, Choice]
    shapes: dict[str, Shape]

    @property
    def count(self) -> int:
        """How many layers the kernels take."""
        return sum(choice.manner is not None for choice in self.choices.values())

    @property
    def note(self) -> str:
        """Say it in a line."""
        ours, library = 0.0, 0.0
        for choice in self.choices.values():
            library += choice.seconds["library"]
            ours += min(choice.seconds.values()) if choice.manner else choice.seconds["library"]
        return (
            f"{self.count} of {len(self.choices)} convolutions by native kernels: alone, all take "
            f"{1e3 * ours:.2g} ms a step, {1e3 * library:.2g} by the library"
        )

    def weights(self, model: nn.Module) -> dict[str, Tensor]:
        """The weights of those layers, each once."""
        found: dict[int, tuple[str, Tensor]] = {}
        for name, choice in self.choices.items():
            if choice.manner:
                weight = cast(Tensor, model.get_submodule(name).weight)
                found.setdefault(id(weight), (name, weight))
        return dict(found.values())

    @contextlib.contextmanager
    def within(self, model: nn.Module) -> Iterator[None]:
        """Let the kernels convolve while this lasts; the model is changed in its classes alone."""
        modules: list[tuple[nn.Module, type[nn.Module]]] = []
        try:
            for name, choice in self.choices.items():
                module = model.get_submodule(name)
                if choice.manner is not None and is_plain(module):
                    modules.append((module, type(module)))
                    module.__class__ = native(type(module) is nn.ConvTranspose2d, choice.manner)
            yield
        finally:
            for module, plain in modules:
                module.__class__ = plain


def plan(
    model: nn.Module, run: Callable[[], object], batch_size: int, *, bf16: bool = False
) -> Products | None:
    """Choose for each convolution of a model by a race; None if it has none that suits.

    A model may not take what lies channels last, as where it calls ``view``, or draw random numbers
    in another order for it, as dropout does: then results are laid out as the library does it.

    Args:
        model: stays as it is.
        run: runs all of the model forward on some images, with gradients enabled; leaves no trace.
        batch_size: images of a step.
        bf16: whether the step runs under autocast.

    Raises:
        vaebench.system.toolchain.CompileError: the kernels cannot be built.
    """
    shapes = _shapes(model, run, batch_size, bf16)
    if not shapes:
        return None
    operators.build()
    kept = {name: dataclasses.replace(shape, contiguous=True) for name, shape in shapes.items()}
    if any(isinstance(m, _DropoutNd) and m.p for m in model.modules()):
        shapes = kept  # dropout draws in the order of memory: laid out otherwise, it drops others
    products = Products({name: choose(shape) for name, shape in shapes.items()}, shapes)
    try:
        with products.within(model):
            run()
    except RuntimeError:
        return Products({name: choose(shape) for name, shape in kept.items()}, kept)
    return products


def _shapes(
    model: nn.Module, run: Callable[[], object], batch_size: int, bf16: bool
) -> dict[str, Shape]:
    """The shapes of the model's plain convolutions, by name, as ``run`` uses them."""
    shapes: dict[str, Shape] = {}
    hooks = []

    def look(name: str) -> Any:
        def hook(layer: Any, inputs: tuple[Tensor, ...]) -> None:
            x = inputs[0]
            if x.dim() != 4:
                return
            shapes[name] = Shape(
                layer.transposed, (batch_size, *x.shape[1:]), layer.out_channels,
                layer.kernel_size, layer.stride, layer.padding, layer.output_padding,
                layer.bias is not None, x.requires_grad, bf16,
            )  # fmt: skip

        return hook

    for name, module in model.named_modules():
        if name and is_plain(module):
            hooks.append(module.register_forward_pre_hook(look(name)))
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return shapes
