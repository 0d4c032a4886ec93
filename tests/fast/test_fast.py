"""The fast path's promises beyond equal numbers: one graph, no recompiling, no traces left."""

import copy

import pytest
import torch
import torch._dynamo
import torch._inductor.config
from torch import Tensor, nn
from torch._dynamo.utils import counters

from tests.engines import adam_of, make_engine
from tests.fast.small import CPU, engine_of, epoch, optimizer_of
from vaebench.errors import InputError
from vaebench.fast import compile as compiled
from vaebench.models.mlp import VAE
from vaebench.objective import Objective


def test_one_graph_no_break_no_recompile(strokes: Tensor) -> None:
    torch._dynamo.reset()
    counters.clear()
    engine = engine_of(strokes)
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]
    with torch.compiler.set_stance("fail_on_recompile"):
        first = epoch(engine)
        second = epoch(engine)
    assert second > first
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]


def test_a_second_training_of_the_same_kind_compiles_nothing(strokes: Tensor) -> None:
    engine_of(strokes)
    with torch.compiler.set_stance("fail_on_recompile"):
        epoch(engine_of(strokes))


@pytest.mark.parametrize("compile", [False, True])
def test_warm_up_leaves_no_trace(strokes: Tensor, compile: bool) -> None:
    engine = engine_of(strokes, compile=compile)
    torch.manual_seed(1)
    fresh = VAE(hidden_dims=(48,), latent_dim=6)
    for warmed, new in zip(engine.model.parameters(), fresh.parameters(), strict=True):
        assert torch.equal(warmed, new)
    assert optimizer_of(engine).step.item() == 0
    assert not any(t.any() for t in optimizer_of(engine).memory().values())


@pytest.mark.parametrize("compile", [False, True])
def test_learning_rate_is_read_at_every_step(strokes: Tensor, compile: bool) -> None:
    engine = engine_of(strokes, compile=compile)
    engine.optimizer.lr.zero_()
    before = [p.clone() for p in engine.optimizer.params]
    epoch(engine)
    assert all(torch.equal(p, b) for p, b in zip(engine.optimizer.params, before, strict=True))
    assert optimizer_of(engine).step.item() == len(strokes.split(64))


@pytest.mark.parametrize(("compile", "native"), [(False, False), (True, False), (True, True)])
def test_every_image_counts_exactly_once(strokes: Tensor, compile: bool, native: bool) -> None:
    """With lr 0 and zero noise, an epoch's sums are the sums over the images one by one."""
    engine = engine_of(strokes, compile=compile, native=native)
    engine.optimizer.lr.zero_()
    n = len(strokes)
    sums = engine.epoch(torch.randperm(n), torch.zeros(n, 6))
    alone = [engine.epoch(torch.tensor([i]), torch.zeros(1, 6)) for i in range(0, n, 1)]
    assert sums.images == n
    assert float(sums.recon) == pytest.approx(sum(float(s.recon) for s in alone), rel=1e-6)
    assert float(sums.kl) == pytest.approx(sum(float(s.kl) for s in alone), rel=1e-5)


@pytest.mark.parametrize("compile", [False, True])
def test_adam_equals_torchs(compile: bool) -> None:
    """60 steps with changing gradients, one parameter's always zero."""
    torch.manual_seed(0)
    ours = [torch.randn(5, 3), torch.randn(7), torch.randn(2)]
    theirs = [nn.Parameter(p.double()) for p in ours]
    state = adam_of(ours, 1e-2)
    optimizer = torch.optim.Adam(theirs, lr=1e-2)
    update = torch.compile(state.update, fullgraph=True) if compile else state.update
    for _ in range(60):
        grads = [torch.randn(5, 3), 1e-4 * torch.randn(7), torch.zeros(2)]
        update(tuple(grads))
        for parameter, grad in zip(theirs, grads, strict=True):
            parameter.grad = grad.double()
        optimizer.step()
    for p, want in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, want.detach().float(), rtol=1e-5, atol=1e-6)


def test_a_parameter_without_a_gradient_is_left_alone(strokes: Tensor) -> None:
    model = VAE(hidden_dims=(48,), latent_dim=6)
    model.output.weight.requires_grad_(False)
    frozen = model.output.weight.clone()
    epoch(make_engine(model, strokes, Objective(), 64, 1e-3, CPU).engine)
    assert torch.equal(model.output.weight, frozen)


def test_no_compiler_is_said_and_trained_around(
    strokes: Tensor, monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    torch._dynamo.reset()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("PATH", "/nowhere")
    model = VAE(hidden_dims=(20,), latent_dim=6)
    without = torch._inductor.config.patch({"cpp.cxx": (None, "g++")})
    with without, pytest.warns(UserWarning, match="apt install g\\+\\+"):
        built = make_engine(model, strokes, Objective(), 64, 1e-3, CPU, compile=True, native=False)
    assert built.actual["compile"] is False
    assert "C++ compiler" in " ".join(built.notes)
    epoch(built.engine)


def test_an_error_of_the_model_is_not_taken_for_the_compilers() -> None:
    class Broken(VAE):
        def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
            raise ZeroDivisionError("ZeroDivisionError")

    images = torch.zeros(8, 28, 28, dtype=torch.uint8)
    with pytest.raises((ZeroDivisionError, InputError), match="ZeroDivisionError"):
        make_engine(Broken(), images, Objective(), 4, 1e-3, CPU, compile=True)


def test_compiler_settings_unknown_to_this_torch_are_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = torch._dynamo.config.recompile_limit
    with compiled._compiler_settings():
        assert torch._dynamo.config.recompile_limit == compiled.MAX_VARIANTS
    assert torch._dynamo.config.recompile_limit == before


def test_engines_do_not_share_state(strokes: Tensor) -> None:
    one, two = engine_of(strokes), engine_of(strokes)
    before = copy.deepcopy(two.model.state_dict())
    epoch(one)
    assert all(torch.equal(v, before[k]) for k, v in two.model.state_dict().items())


def test_steady_steps_go_past_the_front_end_and_do_the_same(strokes: Tensor) -> None:
    direct, through = engine_of(strokes), engine_of(strokes)
    for engine in (direct, through):
        assert isinstance(engine.step, compiled.CompiledStep)
        assert engine.step.direct is not None
        assert engine.step.closed  # and so in inference mode, to which nothing stays bound
    through.step.direct = None  # type: ignore[attr-defined]
    order, noise = torch.arange(len(strokes)), torch.randn(len(strokes), 6)
    direct.epoch(order, noise)
    through.epoch(order, noise)
    for ours, theirs in zip(direct.model.parameters(), through.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert not any(t.is_inference() for t in direct.optimizer.tensors())


def test_a_graph_that_gives_something_back_is_not_called_directly() -> None:
    x = torch.zeros(1)
    inputs = [x, x + 1, x + 2, x + 3]
    arguments = (inputs[0], inputs[1], inputs[2], inputs[3])

    def call(outputs: int, found: list[Tensor]) -> compiled.Call:
        return compiled.Call(lambda *_: None, [*found, torch.ones(2)], outputs)

    assert compiled._direct([call(0, inputs)], arguments, False) is not None
    assert compiled._direct([call(1, inputs)], arguments, False) is None
    assert compiled._direct([call(0, inputs[:3])], arguments, False) is None
    assert compiled._direct([call(0, inputs)] * 2, arguments, False) is None
