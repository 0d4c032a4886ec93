"""Native convolutions: torch's own, to rounding, whatever the sizes; the same bits anywhere."""

import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vaebench.fast.products import operators

Layer = Callable[[Tensor, Tensor, Tensor], Tensor]
LAST = torch.channels_last


def _cases(seed: int, count: int) -> list[tuple[Any, ...]]:
    """(transposed, x size, out channels, kernel, stride, padding, output padding)."""
    draw = random.Random(seed)
    cases: list[tuple[Any, ...]] = []
    while len(cases) < count:
        kernel = draw.randint(1, 5), draw.randint(1, 5)
        stride = draw.randint(1, 3), draw.randint(1, 3)
        padding = draw.randint(0, 3), draw.randint(0, 3)
        extra = draw.randrange(stride[0]), draw.randrange(stride[1])
        x = draw.choice([1, 2, 7, 32, draw.randint(1, 130)]), draw.choice([1, 2, 3, *range(1, 71)])
        size = draw.randint(1, 11), draw.randint(1, 11)
        transposed = bool(len(cases) % 2)
        up = [(n - 1) * s - 2 * p + k + e for n, s, p, k, e in
              zip(size, stride, padding, kernel, extra, strict=True)]  # fmt: skip
        down = operators.conv2d_size(size, kernel, stride, padding)
        if min(up if transposed else down) >= 1:
            channels = draw.choice([1, 2, 3, *range(1, 71)])
            cases.append((transposed, (*x, *size), channels, kernel, stride, padding, extra))
    return cases


# What random sizes may miss: few channels on either side, tiles whole and short, nothing but
# padding, the gaps of a large stride, a kernel larger than a vector, channels by 16 and by 32.
CASES = [
    (False, (32, 32, 7, 7), 64, (3, 3), (2, 2), (1, 1), (0, 0)),
    (True, (33, 64, 4, 4), 32, (3, 3), (2, 2), (1, 1), (1, 1)),
    (False, (7, 96, 5, 3), 48, (3, 2), (1, 1), (2, 0), (0, 0)),
    (True, (20, 32, 3, 3), 176, (3, 3), (3, 2), (1, 1), (2, 0)),
    (False, (65, 64, 1, 1), 32, (3, 3), (1, 1), (1, 1), (0, 0)),
    (False, (32, 32, 12, 12), 1, (5, 5), (1, 1), (0, 0), (0, 0)),
    (False, (3, 64, 9, 9), 4, (3, 3), (1, 1), (1, 1), (0, 0)),
    (False, (32, 1, 28, 28), 32, (3, 3), (2, 2), (1, 1), (0, 0)),
    (False, (33, 40, 2, 2), 65, (3, 3), (2, 2), (1, 1), (0, 0)),
    (True, (32, 70, 1, 1), 33, (3, 3), (2, 2), (1, 1), (1, 1)),
    (True, (2, 48, 7, 7), 3, (4, 4), (2, 2), (1, 1), (0, 0)),
    (False, (3, 3, 1, 1), 4, (1, 1), (3, 3), (1, 1), (0, 0)),
    (True, (2, 4, 3, 3), 3, (2, 2), (3, 3), (0, 0), (1, 1)),
    (False, (2, 17, 20, 3), 18, (17, 1), (1, 2), (3, 0), (0, 0)),
    *_cases(0, 40),
]


def _tensors(case: tuple[Any, ...]) -> tuple[Tensor, Tensor, Tensor]:
    transposed, size, channels, kernel, *_ = case
    torch.manual_seed(0)
    ends = (size[1], channels) if transposed else (channels, size[1])
    return torch.randn(size), torch.randn(*ends, *kernel), torch.randn(channels)


def _ours(case: tuple[Any, ...]) -> Layer:
    transposed, size, _, kernel, stride, padding, extra = case
    where = list(stride), list(padding)
    if not transposed:
        return lambda x, weight, bias: torch.ops.vaebench.conv2d(x, weight, bias, *where)
    up = [(n - 1) * s - 2 * p + k + e for n, s, p, k, e in
          zip(size[2:], stride, padding, kernel, extra, strict=True)]  # fmt: skip
    return lambda x, weight, bias: torch.ops.vaebench.conv_transpose2d(x, weight, bias, *where, up)


def _torchs(case: tuple[Any, ...]) -> Layer:
    transposed, _, _, _, stride, padding, extra = case
    if transposed:
        return lambda x, w, b: F.conv_transpose2d(x, w, b, stride, padding, extra)
    return lambda x, w, b: F.conv2d(x, w, b, stride, padding)


def _passed(layer: Layer, x: Tensor, weight: Tensor, bias: Tensor) -> list[Tensor]:
    """What a layer gives, and the gradients of its input, weight and bias."""
    inputs = [t.detach().requires_grad_() for t in (x, weight, bias)]
    y = layer(*inputs)
    torch.manual_seed(1)
    grad = torch.randn(y.shape, dtype=torch.float32).bfloat16().to(y.dtype)
    return [y.detach(), *torch.autograd.grad(y, inputs, grad)]


def _rms(t: Tensor) -> float:
    return float(t.double().square().mean().sqrt())


def _agree(case: tuple[Any, ...]) -> None:
    x, weight, bias = _tensors(case)
    truth = _passed(_torchs(case), *(t.double() for t in (x, weight, bias)))
    plain = _passed(_torchs(case), x, weight, bias)
    got = _passed(_ours(case), x, weight, bias)
    for name, a, b, t in zip(("y", "x", "weight", "bias"), got, plain, truth, strict=True):
        assert a.shape == t.shape
        assert a.dtype == torch.float32
        assert _rms(a - t) <= 2 * _rms(b - t) + 1e-5 * _rms(t), (name, case)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_they_are_torchs(case: tuple[Any, ...]) -> None:
    _agree(case)


@pytest.mark.parametrize("case", CASES[:20], ids=str)
def test_bf16_is_as_near_as_torchs(case: tuple[Any, ...]) -> None:
    _bf16_is_as_near_as_torchs(case)


@pytest.mark.usefixtures("without_squares")
@pytest.mark.parametrize("case", CASES[:5], ids=str)
def test_bf16_without_squares_is_too(case: tuple[Any, ...]) -> None:
    _bf16_is_as_near_as_torchs(case)


def _bf16_is_as_near_as_torchs(case: tuple[Any, ...]) -> None:
    x, weight, bias = _tensors(case)
    x, rounded = x.bfloat16(), weight.bfloat16()
    exact = x.double(), weight.double(), bias.double()
    truth = _passed(_torchs(case), *exact)
    plain = _passed(_torchs(case), x, rounded, bias.bfloat16())
    got = _passed(_ours(case), x, weight, bias)
    dtypes = torch.bfloat16, torch.bfloat16, torch.float32, torch.float32
    for a, b, t, dtype in zip(got, plain, truth, dtypes, strict=True):
        assert a.dtype == dtype
        assert _rms(a - t) <= 3 * _rms(b - t) + 1e-6 * _rms(t)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bf16"])
def test_what_threads_do_does_not_matter(dtype: torch.dtype) -> None:
    threads = torch.get_num_threads()
    try:
        for case in CASES[:12]:
            x, weight, bias = _tensors(case)
            found = []
            for count in (1, 2, 3):
                torch.set_num_threads(count)
                found.append(_passed(_ours(case), x.to(dtype), weight, bias))
            for others in found[1:]:
                assert all(map(torch.equal, found[0], others)), case
    finally:
        torch.set_num_threads(threads)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "channels last": lambda x: x.contiguous(memory_format=LAST),
    "every other image": lambda x: x.repeat_interleave(2, 0)[::2],
    "part of an image": lambda x: F.pad(x, (1, 2, 3, 4))[:, :, 3:-4, 1:-2],
    "rows and columns turned": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "channels of another tensor": lambda x: torch.cat([x, x], 1)[:, x.shape[1] :],
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_does_not_matter(layout: str) -> None:
    for case in (CASES[1], CASES[4], CASES[8]):
        x, weight, bias = _tensors(case)
        want = _passed(_ours(case), x, weight, bias)
        changed = LAYOUTS[layout](weight)
        assert torch.equal(changed, weight)
        got = _passed(_ours(case), LAYOUTS[layout](x), changed, bias)
        assert all(map(torch.equal, got, want)), case


def test_a_gradient_that_is_expanded() -> None:
    x, weight = torch.randn(4, 3, 6, 6), torch.randn(5, 3, 3, 3, requires_grad=True)
    torch.ops.vaebench.conv2d(x, weight, None, [1, 1], [1, 1]).sum().backward()
    got = weight.grad
    (want,) = torch.autograd.grad(F.conv2d(x, weight, None, 1, 1).sum(), weight)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    "flags",
    ["-mno-avx512f", "-mno-avx512bf16", "-mno-avx"],
)
@pytest.mark.slow
def test_on_other_processors(flags: str, tmp_path: Path) -> None:
    """Vectors of AVX2, none of bfloat16, and plain ones, as the compiler makes them."""
    machine = os.uname().machine
    if machine not in ("x86_64", "AMD64"):
        pytest.skip("flags of another processor")
    code = (
        "import torch\n"
        "from tests.fast import test_conv_operators as t\n"
        "for case in t.CASES[:24]: t._agree(case)\n"
        "for case in t.CASES[:8]: t.test_bf16_is_as_near_as_torchs(case)\n"
        "t.test_what_threads_do_does_not_matter(torch.float32)\n"
    )
    compiler = os.environ.get("CXX", "g++")
    env = {**os.environ, "CXX": f"{compiler} {flags}", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_infinities_and_what_is_no_number_stay_where_they_belong() -> None:
    """No output reads beyond its window, not even to multiply by zero."""
    for case in (CASES[0], CASES[1], CASES[3], CASES[4]):
        x, weight, bias = _tensors(case)
        x[0, 0, 0, 0], x[1, 0, -1, -1] = float("nan"), float("inf")
        got, want = (layer(case)(x, weight, bias) for layer in (_ours, _torchs))
        assert torch.equal(got.isfinite(), want.isfinite())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bf16"])
def test_the_operators_keep_torchs_promises(dtype: torch.dtype) -> None:
    """Shapes and strides as told to the compiler, gradients, no memory shared with the input."""
    x = torch.randn(2, 3, 6, 5, dtype=dtype, requires_grad=True)
    down, up = torch.randn(4, 3, 3, 2, requires_grad=True), torch.randn(3, 4, 3, 2)
    bias = torch.randn(4, requires_grad=True)
    grad = torch.randn(2, 4, 3, 4, dtype=dtype)
    ops = torch.ops.vaebench
    where = [2, 1], [1, 0]
    for operator, args in (
        (ops.conv2d, (x, down, bias, *where)),
        (ops.conv_transpose2d, (x, up.requires_grad_(), bias, *where, [12, 6])),
        (ops.conv2d_weight_grad, (x.detach(), grad, [3, 2], *where)),
        (ops.channel_sums, (grad,)),
    ):
        tests = ("test_schema", "test_autograd_registration", "test_faketensor")
        torch.library.opcheck(operator.default, args, test_utils=tests)


@pytest.mark.slow
def test_the_compiler_keeps_them_in_one_graph() -> None:
    def work(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        y = torch.ops.vaebench.conv2d(x, weight, bias, [2, 2], [1, 1]).relu()
        z: Tensor = torch.ops.vaebench.conv_transpose2d(y, weight, None, [2, 2], [1, 1], [6, 6])
        return z.tanh()

    x, weight, bias = torch.randn(2, 3, 6, 6), torch.randn(4, 3, 3, 3), torch.randn(4)
    want = _passed(work, x, weight, bias)
    got = _passed(torch.compile(work, fullgraph=True), x, weight, bias)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
