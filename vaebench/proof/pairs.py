"""assert_equal_training(): anybody's fast training step beside the plain one."""

import copy
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from vaebench.errors import InputError
from vaebench.proof import rules
from vaebench.proof.report import Check, Report
from vaebench.system.info import fingerprint

# Trains a model one step on a batch, in place, and gives the loss.
Step = Callable[..., Tensor]
Make = Callable[[nn.Module], Step]


def assert_equal_training(
    plain: Make,
    fast: Make,
    model: nn.Module,
    batches: Sequence[Sequence[Tensor]],
    *,
    rounded: bool = False,
) -> Report:
    """Assert that a fast training step does what a plain one does, but for rounding.

    Both are given a copy of the model and make a step for it; the plain one also for a copy in
    float64, beside which both are judged. So the plain step must be written without a dtype of
    its own: ``torch.zeros(n, dtype=x.dtype)``. Noise belongs to the batches: two steps that draw
    for themselves cannot be compared, and dropout can only where both draw alike.

        def plain(model):
            optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

            def step(x, eps):
                optimizer.zero_grad()
                loss = loss_of(model, x, eps)
                loss.backward()
                optimizer.step()
                return loss

            return step

        vaebench.assert_equal_training(plain, mine, model, batches)

    After the first batch the loss, each gradient, each parameter and each buffer are compared (L1;
    L2 if ``rounded``), after that the loss of every batch, and the parameters at the end (L3).
    Gradients are those that the step leaves in ``grad``; where it leaves none, the parameters
    alone tell.

    Args:
        plain: makes a step of a model: ``step(*batch)`` trains it in place, once.
        fast: the same, of the step that is judged.
        model: copied, and left as it is.
        batches: the arguments of each step, tensors; at least one.
        rounded: whether ``fast`` may multiply in bfloat16 or TF32. ``plain`` never does.

    Returns:
        Report: what was compared.

    Raises:
        AssertionError: something differs; names the first, and by how much.
        InputError: there are no batches, or one of the steps is none, or failed.
    """
    begun = time.perf_counter()
    if not batches:
        raise InputError("batches is empty: give the arguments of at least one step")
    pair = _Pair(plain, fast, model)
    checks = [*pair.first(batches[0], rounded), *pair.later(batches, rounded)]
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    subject = f"{type(model).__name__}, two training steps, {len(batches)} batches"
    report = Report(subject, checks, {}, time.perf_counter() - begun, fingerprint(device))
    report.require()
    return report


class _Pair:
    """Two steps of copies of a model, and the plain one of a copy in float64."""

    def __init__(self, plain: Make, fast: Make, model: nn.Module) -> None:
        self.mine, self.eager = _Trained(fast, model, "fast"), _Trained(plain, model, "plain")
        exact = copy.deepcopy(model).double()
        self.truth = _Trained(plain, exact, "plain, in float64,")
        names = [name for name, _ in model.named_parameters()]
        self.moves = rules.Moves(names, rules.copies(list(model.parameters())))

    def first(self, batch: Sequence[Tensor], rounded: bool) -> list[Check]:
        """Compare what the first step leaves."""
        got, want = self.mine.first(batch), self.eager.first(batch)
        true = self.truth.first([rules.float64(t) for t in batch])
        if rounded:
            return _checks("L2", _rounded(self.moves.names, got, true))
        return _checks("L1", rules.one_step(self.moves, got, [want], true, "loss"))

    def later(self, batches: Sequence[Sequence[Tensor]], rounded: bool) -> list[Check]:
        """Compare the losses of the steps that follow, and where they end."""
        level, rest = "L2" if rounded else "L3", batches[1:]
        losses = [trained.then(rest) for trained in (self.mine, self.eager)]
        checks = _checks(level, rules.losses(*losses, level=level))
        if rest and not rounded:
            self.truth.then([[rules.float64(t) for t in batch] for batch in rest])
            ends = [list(t.model.parameters()) for t in (self.mine, self.eager, self.truth)]
            checks += _checks(level, rules.params_after(len(batches), self.moves, *ends))
        return checks


def _checks(level: str, found: Iterable[rules.Found]) -> list[Check]:
    return [Check("fast", level, *entry) for entry in found]


def _rounded(
    names: Sequence[str], got: rules.Outcome, true: rules.Outcome
) -> Iterator[rules.Found]:
    """L2 without an eager autocast of the caller's step: what 8 bits of factors may lead to."""
    yield "loss", abs(got.value - true.value), rules.ELBO["L2"] * abs(true.value)
    for name, mine, exact in zip(names, got.grads, true.grads, strict=True):
        if mine is not None and exact is not None and float(exact.abs().max()) > 1e-6:
            yield f"direction of grad {name}", rules.turned(mine, exact), rules.COSINE
            sizes = [float(t.double().norm()) for t in (mine, exact)]
            yield f"size of grad {name}", abs(sizes[0] - sizes[1]), 2 * rules.COSINE * sizes[1]


class _Trained:
    """A copy of a model, and a step that trains it."""

    def __init__(self, make: Make, model: nn.Module, who: str) -> None:
        self.model, self.who = copy.deepcopy(model), who
        self.step = make(self.model)
        if not callable(self.step):
            raise InputError(
                f"{who} gave {self.step!r}: it must give a step, a function of a batch"
            )

    def first(self, batch: Sequence[Tensor]) -> rules.Outcome:
        """What the first step leaves."""
        loss = self._loss(batch)
        params = list(self.model.parameters())
        grads = [None if p.grad is None else p.grad.detach().clone() for p in params]
        buffers = rules.values(dict(self.model.named_buffers()))
        return rules.Outcome(loss, grads, rules.copies(params), buffers)

    def then(self, batches: Sequence[Sequence[Tensor]]) -> list[float]:
        """The losses of the steps that follow."""
        return [self._loss(batch) for batch in batches]

    def _loss(self, batch: Sequence[Tensor]) -> float:
        try:
            loss = self.step(*(t.clone() for t in batch))
        except Exception as error:
            raise InputError(
                f"the {self.who} step failed: {type(error).__name__}: {error}"
            ) from error
        if not isinstance(loss, Tensor | float | int):
            raise InputError(f"the {self.who} step gave {loss!r}: it must give the loss")
        return float(loss.detach() if isinstance(loss, Tensor) else loss)
