"""What ``test_triton_step`` judges: steps of kernels beside eager ones in float32 and float64.

Run as ``python -m tests.fast.triton_cases`` with ``TRITON_INTERPRET=1`` it trains on the CPU, under
Triton's interpreter, and prints what it found as JSON: in a process of its own, since the variable
decides what ``@triton.jit`` makes.
"""

import copy
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tests.engines import adam_of, problem_of
from vaebench import VAE
from vaebench.fast import admit
from vaebench.fast.joint_update import update_jointly
from vaebench.fast.kernels.triton_step import supports, triton_step
from vaebench.fast.optimizer import OptimizerState, updates_by
from vaebench.fast.step import Step, StepEngine, make_step
from vaebench.objective import Objective
from vaebench.problem import Problem

CPU = torch.device("cpu")
LR = 1e-3


class Case(NamedTuple):
    """A model and objective, images per batch, and how many in all: the last batch may be short."""

    shape: tuple[int, ...]
    hidden: int
    latent: int
    beta: float
    batch: int
    images: int
    dtype: torch.dtype


# Small, the interpreter being slow. Blocks are of 16 or 32 rows and 32 or 64 columns: whole,
# short, and several; "many" has more partial sums than are read at once.
CASES = {
    "whole": Case((8, 8), 64, 16, 1.0, 32, 64, torch.uint8),
    "odd": Case((5, 6), 20, 3, 1.0, 17, 39, torch.uint8),
    "odd floats": Case((5, 6), 20, 3, 0.5, 17, 39, torch.float32),
    "one of each": Case((2, 1), 1, 1, 1.0, 1, 3, torch.uint8),
    "several": Case((7, 10), 70, 18, 4.0, 70, 150, torch.float32),
    "no kl": Case((4, 4), 33, 2, 0.0, 20, 33, torch.uint8),
    "many": Case((25, 20), 17, 2, 1.0, 530, 530, torch.uint8),
}


# Those that are trained with factors of 10 bits, or of parts of 10 bits, too.
ROUNDED = ("whole", "odd floats")


def images_of(case: Case, device: torch.device = CPU) -> Tensor:
    """Grey pixels on a dark ground, (90, ...)."""
    torch.manual_seed(0)
    x = torch.rand(90, *case.shape) * (torch.rand(90, *case.shape) < 0.3)
    return ((255 * x).byte() if case.dtype == torch.uint8 else x).to(device)


def model_of(case: Case) -> VAE:
    """Make the model, always the same."""
    torch.manual_seed(1)
    return VAE(case.shape, (case.hidden,), case.latent)


def numbers_of(case: Case, device: torch.device = CPU) -> tuple[Tensor, Tensor]:
    """Order and noise."""
    torch.manual_seed(2)
    order, noise = torch.randint(90, (case.images,)), torch.randn(case.images, case.latent)
    return order.to(device), noise.to(device)


def trained(
    case: Case, model: VAE, step: Step, images: Tensor, batch: int | None = None
) -> tuple[Tensor, VAE]:
    """Train on all of a case's images; give the sums of recon and kl, and the model."""
    order, noise = numbers_of(case, images.device)
    totals = torch.zeros(2, dtype=torch.float64, device=images.device)
    size = batch or case.batch
    for index, eps in zip(order.split(size), noise.split(size), strict=True):
        step(images, index, eps.to(next(model.parameters()).dtype), totals)
    return totals.cpu(), model


def case_problem(case: Case, model: nn.Module, images: Tensor) -> Problem:
    """Make the problem that an engine trains."""
    return problem_of(model, images, Objective(beta=case.beta), case.batch, LR, images.device)


def eager(model: VAE, case: Case, state: OptimizerState) -> Step:
    """Make the plain twin."""
    return make_step(model, Objective(beta=case.beta), state)


def ours(model: VAE, case: Case, state: OptimizerState, precision: str = "ieee") -> Step:
    """Make the step of kernels."""
    return triton_step(model, Objective(beta=case.beta), state, precision)


def in_parts(model: VAE, case: Case, state: OptimizerState) -> Step:
    """Make the step of kernels that multiply float32 by its parts of 10 bits."""
    return ours(model, case, state, "tf32x3")


def outcome(
    case: Case, make: Callable[[VAE, Case, OptimizerState], Step], dtype: torch.dtype, device: Any
) -> tuple[list[float], list[Tensor], float]:
    """Sums of recon and kl; parameters and moments in float64; the number of steps."""
    model, images = model_of(case).to(device, dtype), images_of(case, device)
    if dtype == torch.float64:
        images = images.double() / 255 if images.dtype == torch.uint8 else images.double()
    state = adam_of(list(model.parameters()), LR)
    totals, _ = trained(case, model, make(model, case, state), images)
    tensors = [*state.params, *state.moments["m"], *state.moments["v"]]
    return totals.tolist(), [t.detach().double().cpu() for t in tensors], state.step.item()


def compare(
    case: Case,
    device: torch.device = CPU,
    mine: Callable[[VAE, Case, OptimizerState], Step] = ours,
) -> dict[str, Any]:
    """How far the kernels and the eager float32 step are from the eager float64 one.

    ``errors`` are, for each parameter and each of its moments, root mean squares: of the kernels'
    error, of the eager step's, and of the tensor.
    """
    sums, tensors, steps = outcome(case, mine, torch.float32, device)
    plain_sums, plain, _ = outcome(case, eager, torch.float32, device)
    true_sums, true, _ = outcome(case, eager, torch.float64, device)
    errors = [
        [rms(a - t), rms(b - t), rms(t)] for a, b, t in zip(tensors, plain, true, strict=True)
    ]
    found = {"sums": sums, "plain": plain_sums, "true": true_sums}
    return {**found, "errors": errors, "steps": steps}


def rms(t: Tensor) -> float:
    """Root mean square."""
    return float(t.square().mean().sqrt())


def new(case: Case, device: torch.device = CPU) -> tuple[VAE, OptimizerState, Step, Tensor]:
    """Make a model, its state, its step of kernels, and images."""
    model = model_of(case).to(device)
    state = adam_of(list(model.parameters()), LR)
    return model, state, ours(model, case, state), images_of(case, device)


def rounded(case: Case) -> dict[str, str | None]:
    """Whether kernels with factors of 10 bits pass beside the eager step, by each tolerance."""
    model, state, _, images = new(case)
    problem = case_problem(case, model, images)
    eagerly = StepEngine(problem, eager(model, case, state), state)
    engine = StepEngine(problem, ours(model, case, state, "tf32"), state)
    tolerances = {"rounded": admit.ROUNDED, "float32": admit.FLOAT32}
    pieces = [case.images]
    return {n: admit.disagreement(engine, eagerly, pieces, t) for n, t in tolerances.items()}


def changed_rate(case: Case) -> list[float]:
    """Give the longest moves of a step at learning rate 0, and of the next at 1e-2."""
    model, state, step, images = new(case)
    moves = []
    for lr in (0.0, 1e-2):
        before = [p.detach().clone() for p in state.params]
        state.lr.fill_(lr)
        trained(case._replace(images=case.batch), model, step, images)
        pairs = zip(before, state.params, strict=True)
        moves.append(max(float((a - b.detach()).abs().max()) for a, b in pairs))
    return moves


def repeated(case: Case) -> bool:
    """Whether two trainings give the same bits."""
    found = []
    for _ in range(2):
        model, state, step, images = new(case)
        totals, _ = trained(case, model, step, images)
        found.append([totals, *(t.detach() for t in state.tensors())])
    return all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def accumulated(case: Case) -> list[list[float]]:
    """Give what three steps at learning rate 0 on one batch add to totals that were not 0."""
    _, state, step, images = new(case)
    state.lr.fill_(0.0)
    order, noise = numbers_of(case)
    totals = torch.tensor([1000.0, -50.0], dtype=torch.float64)
    grown = [totals.tolist()]
    for _ in range(3):
        step(images, order[: case.batch], noise[: case.batch], totals)
        grown.append(totals.tolist())
    return grown


def shown(case: Case, spoil: Callable[[VAE, Tensor], None]) -> list[float]:
    """Give the totals of one step after something has been done to the model and the indices."""
    model, _, step, images = new(case)
    order, noise = (t[: case.batch] for t in numbers_of(case))
    with torch.no_grad():
        spoil(model, order)
    totals = torch.zeros(2, dtype=torch.float64)
    step(images, order, noise, totals)
    return totals.tolist()


def moved_tensors(case: Case) -> bool:
    """Whether memory that a parameter has left is left alone, and its new memory is trained."""
    model, _, step, images = new(case)
    old = model.output.weight.data
    model.output.weight.data = old.clone()
    kept = old.clone()
    trained(case, model, step, images)
    return torch.equal(old, kept) and not torch.equal(model.output.weight, kept)


def not_finite(case: Case) -> dict[str, list[float]]:
    """Totals of steps that overflow, hold NaN, underflow, or read an image that is not there."""

    def bias(value: float) -> Callable[[VAE, Tensor], None]:
        return lambda model, _: (model.logvar.bias.fill_(value), None)[1]

    def nan_weight(model: VAE, _: Tensor) -> None:
        next(iter(model.parameters()))[0, 0] = float("nan")

    def index(value: int) -> Callable[[VAE, Tensor], None]:
        return lambda _, order: (order[3:4].fill_(value), None)[1]

    return {
        "overflow": shown(case, bias(100.0)),
        "nan": shown(case, bias(float("nan"))),
        "nan weight": shown(case, nan_weight),
        "underflow": shown(case, bias(-200.0)),
        "past the end": shown(case, index(90)),
        "before the start": shown(case, index(-1)),
    }


def huge_logits(case: Case) -> list[list[float]]:
    """Totals of a step whose logits reach 1e4: the kernels', and the eager step's."""
    found = []
    for make in (ours, eager):
        model = model_of(case)
        last = model.output.bias
        last.data.copy_(torch.linspace(-1e4, 1e4, len(last)))
        state = adam_of(list(model.parameters()), LR)
        totals, _ = trained(
            case._replace(images=case.batch), model, make(model, case, state), images_of(case)
        )
        found.append(totals.tolist())
    return found


def declined() -> dict[str, bool]:
    """Whether each of these is taken; only the first four should be."""
    case = CASES["odd"]
    images, model, aim = images_of(case), model_of(case), Objective()
    floats = images.float() / 255

    def state(m: nn.Module, **words: Any) -> OptimizerState:
        return adam_of(list(m.parameters()), LR, **words)

    def asked(
        m: Any, x: Tensor = images, o: Objective = aim, s: OptimizerState | None = None
    ) -> bool:
        return bool(supports(m, x, o, state(m) if s is None else s))

    hooked, other, frozen = (copy.deepcopy(model) for _ in range(3))
    hooked.encoder.register_forward_hook(lambda *_: None)
    other.decode = other.decode  # type: ignore[method-assign]
    frozen.mu.weight.requires_grad_(False)
    shared, columns, unbiased = (copy.deepcopy(model) for _ in range(3))
    shared.logvar = shared.mu
    columns.output.weight.data = columns.output.weight.data.t().contiguous().t()
    unbiased.mu.bias = None  # type: ignore[assignment]
    some: list[Tensor] = [*model.parameters()]
    few = adam_of(some[1:], LR)
    subclass = type("Mine", (VAE,), {})(case.shape, (case.hidden,), case.latent)
    return {
        "yes": asked(model),
        "yes floats": asked(model, floats),
        "yes beta": asked(model, o=Objective(beta=3.0)),
        "yes eps": asked(model, s=state(model, adam_eps=1e-4)),
        "gaussian": asked(model, o=Objective("gaussian")),
        "iwae": asked(model, o=Objective(bound="iwae", samples=5)),
        "samples": asked(model, o=Objective(samples=2)),
        "tanh": asked(VAE(case.shape, (20,), 3, "tanh")),
        "deep": asked(VAE(case.shape, (20, 20), 3)),
        "wide latent": asked(VAE(case.shape, (20,), 129)),
        "doubles": asked(copy.deepcopy(model).double()),
        "double images": asked(model, floats.double()),
        "images with gaps": asked(model, images[::2]),
        "other pixels": asked(model, images[:, :4].contiguous()),
        "hooked": asked(hooked),
        "own method": asked(other),
        "frozen": asked(frozen),
        "shared": asked(shared),
        "by columns": asked(columns),
        "no bias": asked(unbiased),
        "subclass": asked(subclass),
        "not a vae": asked(nn.Linear(3, 3)),
        "adagrad": asked(model, s=state(model, name="adagrad")),
        "weight decay": asked(model, s=state(model, weight_decay=0.01)),
        "betas": asked(model, s=state(model, adam_betas=(0.9, 0.99))),
        "clipped": asked(model, s=state(model, clip_norm=1.0)),
        "few parameters": asked(model, s=few),
        "another's": asked(model, s=state(copy.deepcopy(model))),
    }


def refused(case: Case) -> dict[str, str]:
    """Give the errors of steps that are handed what does not fit."""
    _, _, step, images = new(case)
    order, noise = (t[: case.batch] for t in numbers_of(case))
    totals = torch.zeros(2, dtype=torch.float64)
    wrong = {
        "index": (images, order.int(), noise, totals),
        "eps": (images, order, noise[:-1], totals),
        "totals": (images, order, noise, totals.float()),
        "pixels": (images[:, :4].contiguous(), order, noise, totals),
        "no images": (images, order[:0], noise[:0], totals),
        "gaps": (images, order, noise.t().contiguous().t(), totals),
    }
    found = {}
    for name, given in wrong.items():
        try:
            step(*given)
            found[name] = ""
        except ValueError as error:
            found[name] = str(error)
    return found


def joint(device: torch.device = CPU) -> float:
    """How far three joint updates of many tensors end from torch's own, as a share of the rate."""
    torch.manual_seed(0)
    shapes = [(3, 5), (1,), (2000,), (7, 9, 4), (1024,), (1025,)] * 7  # more than one launch's
    start = [torch.randn(shape) for shape in shapes]
    start[2] = torch.randn(40, 50).t()
    states = [adam_of([p.to(device, copy=True) for p in start], LR) for _ in range(2)]
    for _ in range(3):
        grads = tuple(torch.randn_like(p).to(device) for p in start)
        states[0].update(grads)
        with updates_by(update_jointly):
            states[1].update(grads)
    pairs = zip(states[0].tensors(), states[1].tensors(), strict=True)
    assert states[0].step.item() == 3
    return max(float((a - b).abs().max()) for a, b in pairs) / LR


def main(names: Sequence[str]) -> None:
    """Print what the cases of these names found; without any, everything."""
    from tests.fast.triton_interpreter import mend

    mend()
    torch.set_num_threads(1)
    if names:
        print(json.dumps({name: compare(CASES[name]) for name in names}))
        return
    odd = CASES["odd"]
    found = {
        "cases": {name: compare(case) for name, case in CASES.items()},
        "in parts": {name: compare(CASES[name], mine=in_parts) for name in ROUNDED},
        "rounded": {name: rounded(CASES[name]) for name in ROUNDED},
        "changed rate": changed_rate(odd),
        "joint": joint(),
        "repeated": repeated(odd),
        "accumulated": accumulated(odd),
        "moved": moved_tensors(odd),
        "not finite": not_finite(odd),
        "huge logits": huge_logits(CASES["odd floats"]),
        "declined": declined(),
        "refused": refused(odd),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:])
