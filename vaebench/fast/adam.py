"""Adam without hidden state, so that a compiler sees all of it.

Source: Kingma & Ba, Adam (arXiv 1412.6980), in the form and the defaults of torch.optim.Adam.
"""

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vaebench.fast.layout import in_memory_order, laid_out_as, real

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8


@dataclass(frozen=True)
class AdamState:
    """Everything Adam remembers, in the order of the parameters.

    ``lr`` and ``steps`` are tensors on the device: a compiled or captured step then reads them
    anew each time, where a Python number would be frozen into it. Parameters that have been updated
    equally often share one count.
    """

    params: list[Tensor]
    m: list[Tensor]
    v: list[Tensor]
    steps: list[Tensor]
    lr: Tensor
    eps: float = EPSILON
    # Of parameters that are not trained at the moment, by their id: the parameter, m, v, step.
    resting: dict[int, tuple[Tensor, Tensor, Tensor, Tensor]] = field(default_factory=dict)

    # The different counts, each once. Known beforehand: a graph must not depend on identities.
    counts: list[Tensor] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "counts", list({id(s): s for s in self.steps}.values()))

    @classmethod
    def of(cls, params: list[Tensor], lr: float, eps: float = EPSILON) -> "AdamState":
        """Start: moments zero, step 0."""
        device = params[0].device
        step = torch.zeros((), dtype=torch.float32, device=device)
        return cls(
            params,
            [torch.zeros_like(p) for p in params],
            [torch.zeros_like(p) for p in params],
            [step] * len(params),
            torch.tensor(lr, dtype=torch.float32, device=device),
            eps,
        )

    @property
    def step(self) -> Tensor:
        """The count of all parameters, where they share one."""
        return self.steps[0]

    @property
    def even(self) -> bool:
        """Whether all parameters share one count."""
        return all(step is self.step for step in self.steps)

    def following(self, params: list[Tensor]) -> "AdamState":
        """Go on with these parameters: what is remembered of each goes with it.

        One that was not there before starts as at the beginning; one that is not there any more
        (a layer frozen) is remembered until it comes back, as torch.optim does.
        """
        known = dict(self.resting)
        for p, m, v, step in zip(self.params, self.m, self.v, self.steps, strict=True):
            known[id(p)] = (p, m, v, step)
        trained = set(map(id, params))
        # Their counts are copies: the shared one goes on.
        resting = {
            key: (p, m, v, step.clone())
            for key, (p, m, v, step) in known.items()
            if key not in trained
        }
        fresh = torch.zeros_like(self.lr)
        entries = [
            known.get(id(p), (p, torch.zeros_like(p), torch.zeros_like(p), fresh)) for p in params
        ]
        _, ms, vs, steps = map(list, zip(*entries, strict=True))
        return AdamState(params, ms, vs, steps, self.lr, self.eps, resting)

    def belonging_to(self, param: Tensor) -> list[Tensor]:
        """A parameter, and what is remembered of it in its shape."""
        i = next(i for i, p in enumerate(self.params) if p is param)
        return [param, self.m[i], self.v[i]]

    def tensors(self) -> list[Tensor]:
        """All that an update changes."""
        return [*self.params, *self.m, *self.v, *self.counts]

    def memory(self) -> dict[str, Tensor]:
        """What is remembered beside the parameters, by name; the learning rate is a setting."""
        moments = {"m": self.m, "v": self.v}
        named = {f"{word}.{i}": t for word, ts in moments.items() for i, t in enumerate(ts)}
        if self.even:
            return {**named, "step": self.step}
        return {**named, **{f"step.{i}": step for i, step in enumerate(self.steps)}}

    @torch.no_grad()
    def update(self, grads: tuple[Tensor, ...]) -> None:
        """Take one Adam step, in place, by torch's own fused kernel or that of :func:`updates_by`.

        It goes once over parameters, gradients and moments. A compiled graph calls it as an opaque
        operator: written out as formulas for the compiler to fuse, Adam took three times as long
        on a CPU, and most of the time to compile.
        """
        for count in self.counts:
            count.add_(1)
        run = torch.ops.vaebench.adam_ if torch.compiler.is_compiling() else _by_kernel
        alike = laid_out_as(self.params, grads)
        run(self.params, alike, self.m, self.v, self.steps, self.lr, self.eps)


def _fused_kernel(
    params: list[Tensor],
    grads: list[Tensor],
    m: list[Tensor],
    v: list[Tensor],
    steps: list[Tensor],
    lr: Tensor,
    eps: float,
) -> None:
    """The kernel behind torch.optim.Adam(fused=True), which counts in one tensor per parameter."""
    torch._fused_adam_(
        in_memory_order(real(params)),
        in_memory_order(real(grads)),
        in_memory_order(real(m)),
        in_memory_order(real(v)),
        [],  # no AMSGrad
        steps,
        lr=lr,
        beta1=BETA1,
        beta2=BETA2,
        weight_decay=0.0,
        eps=eps,
        amsgrad=False,
        maximize=False,
    )


Kernel = Callable[
    [list[Tensor], list[Tensor], list[Tensor], list[Tensor], list[Tensor], Tensor, float], None
]
_kernel: ContextVar[Kernel] = ContextVar("kernel", default=_fused_kernel)


@contextlib.contextmanager
def updates_by(kernel: Kernel) -> Iterator[None]:
    """Let another kernel take the steps in the block; it is given what torch's would be."""
    before = _kernel.set(kernel)
    try:
        yield
    finally:
        _kernel.reset(before)


def _by_kernel(
    params: list[Tensor],
    grads: list[Tensor],
    m: list[Tensor],
    v: list[Tensor],
    steps: list[Tensor],
    lr: Tensor,
    eps: float,
) -> None:
    _kernel.get()(params, grads, m, v, steps, lr, eps)


# The kernel reads the learning rate from a tensor, and in that form torch has not told its
# compiler about it: as an operator of our own it is known.
_LIBRARY = torch.library.Library("vaebench", "FRAGMENT")
_LIBRARY.define(
    "adam_(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] m, Tensor(c!)[] v, "
    "Tensor[] steps, Tensor lr, float eps) -> ()"
)
_LIBRARY.impl("adam_", _by_kernel, "CompositeExplicitAutograd")
torch.library.register_fake("vaebench::adam_", lambda *_: None, lib=_LIBRARY)
