"""The step of Triton's kernels: the plain eager twin's, to rounding; what it declines.

Without a GPU the kernels run under Triton's interpreter, in a process of its own (see
``tests/fast/triton_cases.py``), and are compiled for one ahead of time.
"""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from tests.engines import adam_of
from tests.fast.triton_cases import (
    CASES,
    ROUNDED,
    Case,
    compare,
    in_parts,
    joint,
    model_of,
    new,
    numbers_of,
    ours,
)
from vaebench import VAE
from vaebench.fast.kernels.triton_step import Plan, supports, triton_step
from vaebench.objective import Objective

pytest.importorskip("triton")
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
ROOT = Path(__file__).parents[2]


def _found(*names: str) -> dict[str, Any]:
    """What the cases of these names, or all, found under the interpreter."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.fast.triton_cases", *names],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return cast(dict[str, Any], json.loads(done.stdout))


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    """What all found."""
    return _found()


def _judge(case: Case, got: dict[str, Any]) -> None:
    assert got["steps"] == -(-case.images // case.batch)
    for mine, true in zip(got["sums"], got["true"], strict=True):
        assert mine == pytest.approx(true, rel=1e-5)
    elbo, true_elbo = (recon - kl for recon, kl in (got["sums"], got["true"]))
    assert elbo == pytest.approx(true_elbo, rel=1e-5)
    assert len(got["errors"]) == 3 * 10
    for i, (mine, eager, size) in enumerate(got["errors"]):
        assert mine <= 2 * eager + 1e-5 * size + 1e-9, i


def test_one_case_equals_the_eager_step() -> None:
    _judge(CASES["odd"], _found("odd")["odd"])


@pytest.mark.parametrize("case", CASES)
@pytest.mark.slow
def test_equals_the_eager_step(case: str, found: dict[str, Any]) -> None:
    _judge(CASES[case], found["cases"][case])


@pytest.mark.parametrize("case", ROUNDED)
@pytest.mark.slow
def test_products_in_parts_are_float32s(case: str, found: dict[str, Any]) -> None:
    _judge(CASES[case], found["in parts"][case])


@pytest.mark.slow
def test_factors_of_10_bits_are_near(found: dict[str, Any]) -> None:
    """Near enough for the trial on a GPU to let pass, and not so near that it need not."""
    for name, wrong in found["rounded"].items():
        assert wrong["rounded"] is None, name
        assert wrong["float32"] is not None, name


@pytest.mark.slow
def test_a_changed_learning_rate_acts(found: dict[str, Any]) -> None:
    still, moved = found["changed rate"]
    assert still == 0
    assert 5e-3 < moved < 2e-2  # Adam's second step is about as long as the learning rate


@pytest.mark.slow
def test_joint_updates_are_torchs(found: dict[str, Any]) -> None:
    assert 0 < found["joint"] < 1e-3  # of the learning rate: roundings of numbers near 1


@needs_cuda
def test_cuda_joint_updates_are_torchs() -> None:
    assert joint(torch.device("cuda", 0)) < 1e-3


@pytest.mark.slow
def test_every_run_gives_the_same_bits(found: dict[str, Any]) -> None:
    assert found["repeated"] is True


@pytest.mark.slow
def test_totals_accumulate(found: dict[str, Any]) -> None:
    grown = torch.tensor(found["accumulated"], dtype=torch.float64)
    moves = grown.diff(dim=0)
    assert (moves[:, 0] < -100).all()
    assert (moves[:, 1] > 0.1).all()
    torch.testing.assert_close(moves, moves[:1].expand(3, 2), rtol=1e-12, atol=0)


@pytest.mark.slow
def test_parameters_may_move_in_memory(found: dict[str, Any]) -> None:
    assert found["moved"] is True


@pytest.mark.slow
def test_what_is_not_finite_shows(found: dict[str, Any]) -> None:
    """An image that is not there too: nothing checks the indices before."""
    for name, (recon, kl) in found["not finite"].items():
        assert math.isfinite(recon - kl) is (name == "underflow"), name


@pytest.mark.slow
def test_huge_logits(found: dict[str, Any]) -> None:
    mine, eager = found["huge logits"]
    assert mine == pytest.approx(eager, rel=1e-6)


@pytest.mark.slow
def test_supports_what_it_can_train(found: dict[str, Any]) -> None:
    assert found["declined"] == {name: name.startswith("yes") for name in found["declined"]}


@pytest.mark.slow
def test_refuses_what_does_not_fit(found: dict[str, Any]) -> None:
    assert all(found["refused"].values()), found["refused"]


def test_declines_the_cpu_without_the_interpreter() -> None:
    import triton

    if triton.knobs.runtime.interpret:
        pytest.skip("the interpreter is on")
    case = CASES["odd"]
    model, state, _, images = new(case)
    assert not supports(model, images, Objective(), state)


def test_an_unknown_precision_is_refused() -> None:
    model = model_of(CASES["odd"])
    with pytest.raises(ValueError, match="half"):
        triton_step(model, Objective(), adam_of(list(model.parameters()), 1e-3), "half")


TYPES = {torch.float32: "*fp32", torch.float64: "*fp64", torch.int64: "*i64", torch.int32: "*i32"}


def _source(kernel: Any, arguments: dict[str, Any]) -> Any:
    """Describe a launch to Triton's compiler as the launch itself would."""
    from triton.compiler import ASTSource

    types: dict[str, str] = {}
    constants, attributes = {}, {}
    for i, param in enumerate(kernel.params):
        value = arguments[param.name]
        if param.is_constexpr:
            types[param.name], constants[(i,)] = "constexpr", value
        elif isinstance(value, Tensor):
            types[param.name] = TYPES.get(value.dtype, "*u8")
            if not param.do_not_specialize_on_alignment:
                attributes[(i,)] = [["tt.divisibility", 16]]
        else:
            types[param.name] = "fp32" if isinstance(value, float) else "i32"
    assert set(types) == set(arguments)
    return ASTSource(kernel, types, constants, attributes)


# Pixels, hidden units and latents, more or fewer than a tile has; pixels' type; and precision.
COMPILED = {
    "default": (784, 400, 20, torch.uint8, "tf32x3"),
    "narrow": (30, 20, 3, torch.float32, "tf32"),
    "wide": (900, 500, 100, torch.uint8, "ieee"),
}


@pytest.mark.parametrize("number", range(6))
@pytest.mark.parametrize(
    "name", [n if n == "default" else pytest.param(n, marks=pytest.mark.slow) for n in COMPILED]
)
def test_compiles_ahead_of_time(name: str, number: int) -> None:
    """For a GPU of compute capability 9.0, whatever there is here."""
    import triton

    if triton.knobs.runtime.interpret:
        pytest.skip("the interpreter is on: there is nothing to compile")
    from triton.backends.compiler import GPUTarget

    from vaebench.fast.kernels import triton_kernels

    pixels, hidden, latent, dtype, precision = COMPILED[name]
    model = VAE((pixels,), (hidden,), latent)
    state = adam_of(list(model.parameters()), 1e-3)
    plan = Plan.of(model, Objective(), cast(Any, state), precision)
    index, noise = torch.zeros(128, dtype=torch.int64), torch.zeros(128, latent)
    totals, images = torch.zeros(2, dtype=torch.float64), torch.zeros(200, pixels, dtype=dtype)
    arguments = plan.arguments(images, index, noise, totals, plan.workspace(128, images.device))
    launch = plan.launches(128, dtype == torch.uint8)[number]
    kernel = getattr(triton_kernels, launch.kernel)
    given = {n: (arguments | launch.constants)[n] for n in kernel.arg_names}
    try:
        made = triton.compile(
            _source(kernel, given), target=GPUTarget("cuda", 90, 32), options=launch.options
        )
    except FileNotFoundError as error:
        pytest.skip(f"Triton came without an assembler for NVIDIA's GPUs: {error}")
    assert len(made.asm["cubin"]) > 1000
    # Two programs share a multiprocessor's memory, of which an H100 has 227 KB.
    assert made.metadata.shared <= (113 if name == "default" else 227) * 1024
    code = made.asm["ptx"]
    assert "atom." not in code


@needs_cuda
@pytest.mark.parametrize("make", [ours, in_parts])
@pytest.mark.parametrize("case", CASES)
def test_cuda_equals_the_eager_step(case: str, make: Any) -> None:
    _judge(CASES[case], compare(CASES[case], torch.device("cuda", 0), make))


@needs_cuda
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32], ids=["bytes", "floats"])
def test_cuda_trains_the_default_size(dtype: torch.dtype) -> None:
    case = Case((28, 28), 400, 20, 1.0, 128, 300, dtype)
    _judge(case, compare(case, torch.device("cuda", 0)))


@needs_cuda
def test_cuda_steps_are_supported_and_recorded() -> None:
    """A recorded step, replayed, is the step: nothing in it waits or takes memory anew."""
    device, case = torch.device("cuda", 0), CASES["several"]
    order, noise = (t[: case.batch].clone() for t in numbers_of(case, device))
    found = []
    for recorded in (False, True):
        model, state, step, images = new(case, device)
        assert supports(model, images, Objective(), state)
        totals = torch.zeros(2, dtype=torch.float64, device=device)
        step(images, order, noise, totals)
        if recorded:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                step(images, order, noise, totals)
            graph.replay()
        else:
            step(images, order, noise, totals)
        found.append([totals, *(t.detach() for t in state.tensors())])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
