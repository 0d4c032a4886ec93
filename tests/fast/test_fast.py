"""The fast path's promises beyond equal numbers: one graph, no recompiling, no traces left."""

import copy
import dataclasses
import os
import platform
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo
import torch._inductor.config
from torch import Tensor, nn
from torch._dynamo.utils import counters

from tests.engines import adam_of, make_engine
from vaebench import evaluate, fit
from vaebench.data.images import gather, to_unit
from vaebench.data.loader import DeviceLoader
from vaebench.errors import InputError
from vaebench.fast import admit, build, sparse, tf32, triton
from vaebench.fast import amp as precision
from vaebench.fast import compile as compiled
from vaebench.fast import flush_denormal as denormals
from vaebench.fast.build import Built
from vaebench.fast.optimizer import OptimizerState
from vaebench.fast.register import TECHNIQUES
from vaebench.fast.step import StepEngine, make_step
from vaebench.models.mlp import VAE
from vaebench.objective import Objective
from vaebench.system.device import full_float32
from vaebench.system.worker import Worker, release_workers

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _no_race(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train compiled wherever it is asked for: on a busy machine the race may decide otherwise."""
    monkeypatch.setattr(admit.Verdict, "wins", property(lambda _: True))


def _engine(
    images: Tensor, *, batch_size: int = 64, compile: bool = True, native: bool = False
) -> StepEngine:
    torch.manual_seed(1)
    model = VAE(hidden_dims=(48,), latent_dim=6)
    words: dict[str, Any] = {"compile": compile, "native": native}
    built = make_engine(model, images, Objective(), batch_size, 1e-3, CPU, **words)
    assert built.actual["compile"] is compile
    return built.engine


def _epoch(engine: StepEngine) -> float:
    n = len(engine.images)
    sums = engine.epoch(torch.randperm(n), torch.randn(n, engine.latent_dim))
    return float(sums.recon - sums.kl) / n


def _adam(engine: StepEngine) -> OptimizerState:
    return engine.optimizer


def test_one_graph_no_break_no_recompile(strokes: Tensor) -> None:
    torch._dynamo.reset()
    counters.clear()
    engine = _engine(strokes)
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]
    with torch.compiler.set_stance("fail_on_recompile"):
        first = _epoch(engine)
        second = _epoch(engine)
    assert second > first
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]


def test_a_second_training_of_the_same_kind_compiles_nothing(strokes: Tensor) -> None:
    _engine(strokes)
    with torch.compiler.set_stance("fail_on_recompile"):
        _epoch(_engine(strokes))


@pytest.mark.parametrize("compile", [False, True])
def test_warm_up_leaves_no_trace(strokes: Tensor, compile: bool) -> None:
    engine = _engine(strokes, compile=compile)
    torch.manual_seed(1)
    fresh = VAE(hidden_dims=(48,), latent_dim=6)
    for warmed, new in zip(engine.model.parameters(), fresh.parameters(), strict=True):
        assert torch.equal(warmed, new)
    assert _adam(engine).step.item() == 0
    assert not any(t.any() for t in _adam(engine).memory().values())


@pytest.mark.parametrize("compile", [False, True])
def test_learning_rate_is_read_at_every_step(strokes: Tensor, compile: bool) -> None:
    engine = _engine(strokes, compile=compile)
    engine.optimizer.lr.zero_()
    before = [p.clone() for p in engine.optimizer.params]
    _epoch(engine)
    assert all(torch.equal(p, b) for p, b in zip(engine.optimizer.params, before, strict=True))
    assert _adam(engine).step.item() == len(strokes.split(64))


@pytest.mark.parametrize(("compile", "native"), [(False, False), (True, False), (True, True)])
def test_every_image_counts_exactly_once(strokes: Tensor, compile: bool, native: bool) -> None:
    """With lr 0 and zero noise, an epoch's sums are the sums over the images one by one."""
    engine = _engine(strokes, compile=compile, native=native)
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
    _epoch(make_engine(model, strokes, Objective(), 64, 1e-3, CPU).engine)
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
    _epoch(built.engine)


def test_an_error_of_the_model_is_not_taken_for_the_compilers() -> None:
    class Broken(VAE):
        def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
            raise ZeroDivisionError("ZeroDivisionError")

    images = torch.zeros(8, 28, 28, dtype=torch.uint8)
    with pytest.raises((ZeroDivisionError, InputError), match="ZeroDivisionError"):
        make_engine(Broken(), images, Objective(), 4, 1e-3, CPU, compile=True)


def test_flush_reaches_every_worker_and_leaves_the_caller_alone() -> None:
    tiny = torch.full((1 << 20,), 1e-38)

    def zeros() -> int:
        return int(((tiny * 1e-3).view(torch.int32) == 0).sum())

    assert zeros() == 0  # and the caller's pool of workers exists from here on
    with Worker([denormals.enter]) as worker:
        assert worker.run(zeros) == len(tiny)
    with Worker() as worker:
        assert worker.run(zeros) == 0
    assert zeros() == 0


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts threads in /proc")
def test_the_callers_workers_are_released() -> None:
    """Beside a second pool, training would take more than twice as long."""
    if not release_workers():
        pytest.skip("this OpenMP runtime cannot end its workers")

    def threads() -> int:
        return len(list(Path("/proc/self/task").iterdir()))

    wanted = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        alone = threads()
        torch.ones(1 << 22).sum()
        assert threads() == alone + 1
        assert release_workers()
        assert threads() == alone
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(wanted)


def test_the_worker_raises_what_the_work_raises() -> None:
    def work() -> None:
        raise OSError("inside")

    with pytest.raises(OSError, match="inside"), Worker() as worker:
        worker.run(work)


def test_the_worker_asks_the_work_to_stop_on_ctrl_c() -> None:
    stop = threading.Event()

    def work() -> bool:
        signal.raise_signal(signal.SIGINT)  # in this thread: it wakes nobody who waits
        return stop.wait(10)

    with Worker(on_interrupt=stop.set) as worker:
        assert worker.run(work)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_the_second_ctrl_c_is_raised() -> None:
    asked = []
    with pytest.raises(KeyboardInterrupt), Worker(on_interrupt=lambda: asked.append(1)):
        os.kill(os.getpid(), signal.SIGINT)
        assert asked == [1]
        os.kill(os.getpid(), signal.SIGINT)
    assert asked == [1]


def test_a_callers_own_handler_keeps_ctrl_c() -> None:
    seen = []
    before = signal.signal(signal.SIGINT, lambda *_: seen.append("caller"))
    try:
        with Worker(on_interrupt=lambda: seen.append("worker")):
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
    assert seen == ["caller"]


def test_workers_within_workers_take_ctrl_c_in_turn() -> None:
    seen = []
    with Worker(on_interrupt=lambda: seen.append("outer")):
        with Worker(on_interrupt=lambda: seen.append("inner")):
            os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
    assert seen == ["inner", "outer"]


@pytest.mark.parametrize(
    ("gain", "name"), [(0.1, "float32"), (1.1, "float32"), (1.5, "bf16"), (8.0, "bf16")]
)
def test_amp_auto_follows_the_measurement(
    gain: float, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "bf16_gain", lambda device: gain)
    monkeypatch.setattr(precision, "emulates_bf16", lambda device: False)
    chosen = precision.choose("auto", CPU)
    assert chosen.name == name
    assert f"{gain:.2g}x" in chosen.reason
    assert precision.choose("bf16", CPU).name == "bf16"
    assert precision.choose(None, CPU).name == "float32"


def test_amp_auto_needs_the_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    """However fast a busy machine makes the products look."""
    monkeypatch.setattr(precision, "bf16_gain", lambda device: 5.0)
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: False)
    chosen = precision.choose("auto", CPU)
    assert (chosen.name, "no bfloat16 instructions" in chosen.reason) == ("float32", True)
    assert precision.choose("bf16", CPU).name == "bf16"
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert precision.choose("auto", CPU).name == "bf16"


@pytest.mark.parametrize(
    ("plain", "bf16", "name"), [(1.0, 1.2, "float32"), (1.0, 0.99, "float32"), (1.0, 0.5, "bf16")]
)
def test_amp_auto_on_a_gpu_follows_whole_steps(plain: float, bf16: float, name: str) -> None:
    chosen = precision.by_steps({None: plain, torch.bfloat16: bf16}.__getitem__)
    assert chosen.name == name
    assert f"{plain / bf16:.2g}x a float32 step's speed" in chosen.reason


def test_tf32_is_on_within_its_context_alone() -> None:
    before = torch.get_float32_matmul_precision()
    assert before != "high"
    with tf32.tf32_products():
        assert torch.get_float32_matmul_precision() == "high"
    assert torch.get_float32_matmul_precision() == before
    with pytest.raises(ZeroDivisionError), tf32.tf32_products():
        raise ZeroDivisionError
    assert torch.get_float32_matmul_precision() == before


def test_convolutions_are_float32_where_tf32_is_not_asked_for(strokes: Tensor) -> None:
    """Torch's default rounds them, on CUDA; who asks for TF32 gets that, too."""
    cudnn: Any = torch.backends.cudnn
    seen: list[str] = []

    def step(*words: Tensor) -> None:
        seen.append(cudnn.conv.fp32_precision)
        assert cudnn.allow_tf32 == (seen[-1] == "tf32")  # torch has two words for it

    class Seen(VAE):
        def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
            step()
            return super().encode(x)

    with full_float32():
        step()
    with tf32.tf32_products():
        step()
    assert seen == ["none", "tf32"]
    model = Seen(hidden_dims=(16,), latent_dim=2)
    evaluate(model, strokes[:10])
    assert set(seen[2:]) == {"none"}
    seen.clear()
    fit(model, strokes[:10], engine="reference", epochs=1, batch_size=5, device="cpu")
    assert seen.count("none") == 2  # steps
    assert cudnn.conv.fp32_precision == cudnn.rnn.fp32_precision == "tf32"


def test_tf32_where_there_is_none_is_said(strokes: Tensor) -> None:
    model = VAE(hidden_dims=(16,), latent_dim=2)
    built = make_engine(model, strokes, Objective(), 64, 1e-3, CPU, tf32=True)
    assert built.actual["tf32"] is False
    assert built.notes == ["--tf32: cpu has no such products; trained in float32"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("graph", [False, True])
def test_cuda_tf32_changes_the_products_and_little_else(strokes: Tensor, graph: bool) -> None:
    device = torch.device("cuda", 0)
    if not tf32.applies(device):
        pytest.skip("needs a GPU with TF32")
    found = {}
    for rounded in (False, True):
        torch.manual_seed(1)
        model = VAE(hidden_dims=(48,), latent_dim=6)
        built = make_engine(
            model, strokes, Objective(), 64, 1e-3, device, tf32=rounded, graph=graph
        )
        assert built.actual["tf32"] is rounded
        order = torch.arange(len(strokes), device=device)
        found[rounded] = float(built.engine.epoch(order, built.engine.no_noise(len(order))).recon)
    assert found[True] != found[False]
    assert found[True] == pytest.approx(found[False], rel=2e-3)


def test_the_probe_measures() -> None:
    assert precision.bf16_gain(CPU, budget=0.02) > 0


def test_compiler_settings_unknown_to_this_torch_are_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = torch._dynamo.config.recompile_limit
    with compiled._compiler_settings():
        assert torch._dynamo.config.recompile_limit == compiled.MAX_VARIANTS
    assert torch._dynamo.config.recompile_limit == before


def test_loader_gives_every_image_once_with_its_label(
    strokes: Tensor, device: torch.device
) -> None:
    index = torch.arange(len(strokes))
    loader = DeviceLoader(strokes, index, batch_size=64, device=device)
    batches = list(loader)
    assert len(loader) == len(batches) == 16
    assert [len(x) for x, _ in batches] == [64] * 15 + [40]
    seen = torch.cat([i for _, i in batches]).cpu()
    assert not torch.equal(seen, index)
    assert torch.equal(seen.sort().values, index)
    for x, i in batches:
        assert x.device == loader.images.device
        torch.testing.assert_close(x.cpu(), strokes[i.cpu()].float() / 255)


def test_loader_orders(strokes: Tensor) -> None:
    first = DeviceLoader(strokes, seed=4, batch_size=64)
    again = DeviceLoader(strokes, seed=4, batch_size=64)
    orders = [first.order(), first.order()]
    assert not torch.equal(*orders)
    assert torch.equal(again.order(), orders[0])
    assert torch.equal(again.order(), orders[1])
    plain = DeviceLoader(strokes, shuffle=False, drop_last=True, batch_size=64)
    assert torch.equal(torch.cat(list(plain)), to_unit(strokes[: 15 * 64]))  # type: ignore[arg-type]


def test_gather_passes_floats_as_they_are() -> None:
    images = torch.randn(5, 3)
    assert torch.equal(gather(images, torch.tensor([4, 0])), images[[4, 0]])


@pytest.mark.parametrize(
    ("count", "others", "batch_size", "said"),
    [(4, (), 0, "batch_size is 0"), (0, (), 2, "no images"), (4, (torch.zeros(3),), 2, "length 3")],
)
def test_loader_refuses(count: int, others: tuple[Tensor, ...], batch_size: int, said: str) -> None:
    with pytest.raises(InputError, match=said):
        DeviceLoader(torch.zeros(count, 2), *others, batch_size=batch_size)


def test_engines_do_not_share_state(strokes: Tensor) -> None:
    one, two = _engine(strokes), _engine(strokes)
    before = copy.deepcopy(two.model.state_dict())
    _epoch(one)
    assert all(torch.equal(v, before[k]) for k, v in two.model.state_dict().items())


def test_steady_steps_go_past_the_front_end_and_do_the_same(strokes: Tensor) -> None:
    direct, through = _engine(strokes), _engine(strokes)
    for engine in (direct, through):
        assert isinstance(engine.step, compiled.CompiledStep)
        assert engine.step.direct is not None
    through.step.direct = None  # type: ignore[attr-defined]
    order, noise = torch.arange(len(strokes)), torch.randn(len(strokes), 6)
    direct.epoch(order, noise)
    through.epoch(order, noise)
    for ours, theirs in zip(direct.model.parameters(), through.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_graph_that_gives_something_back_is_not_called_directly() -> None:
    x = torch.zeros(1)
    inputs = [x, x + 1, x + 2, x + 3]
    arguments = (inputs[0], inputs[1], inputs[2], inputs[3])

    def call(outputs: int, found: list[Tensor]) -> compiled.Call:
        return compiled.Call(lambda *_: None, [*found, torch.ones(2)], outputs)

    assert compiled._direct([call(0, inputs)], arguments) is not None
    assert compiled._direct([call(1, inputs)], arguments) is None
    assert compiled._direct([call(0, inputs[:3])], arguments) is None
    assert compiled._direct([call(0, inputs)] * 2, arguments) is None


def test_the_race_measures_and_leaves_no_trace(strokes: Tensor) -> None:
    engine = _engine(strokes, compile=False)
    before = [t.clone() for t in engine.optimizer.tensors()]
    verdict = admit.race(engine, engine)
    assert verdict.candidate > 0
    assert verdict.other > 0
    assert verdict.steps == -(-len(strokes) // engine.batch_size)
    for tensor, value in zip(engine.optimizer.tensors(), before, strict=True):
        assert torch.equal(tensor, value)


@pytest.mark.parametrize(
    ("candidate", "said"),
    [(1e-3, "it pays after 5.0 epochs"), (2e-3, "it pays never")],
)
def test_what_the_race_says(candidate: float, said: str) -> None:
    assert said in admit.Verdict(candidate, 2e-3, steps=1000).compiling(5.0)


def test_the_slower_compiled_step_is_not_trained_with(
    strokes: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admit.Verdict, "wins", property(lambda _: False))
    model = VAE(hidden_dims=(48,), latent_dim=6)  # whose step is compiled already
    built = make_engine(model, strokes, Objective(), 64, 1e-3, CPU, compile=True, native=False)
    assert built.actual["compile"] is False
    assert any("trained eagerly" in note for note in built.notes)


def _with_triton(
    strokes: Tensor, monkeypatch: pytest.MonkeyPatch, step: Callable[..., object], **words: Any
) -> Built:
    """Build an engine whose Triton kernels are stood in for by another step."""
    here = [
        dataclasses.replace(t, devices=("cpu",)) for t in TECHNIQUES if t.name in ("triton", "amp")
    ]
    monkeypatch.setattr(build, "TECHNIQUES", here)
    monkeypatch.setattr(triton, "supports", lambda *_: True)
    monkeypatch.setattr(triton, "triton_step", step)
    torch.manual_seed(1)
    model = VAE(hidden_dims=(48,), latent_dim=6)
    return make_engine(model, strokes, Objective(), 64, 1e-3, CPU, compile=True, **words)


def _same(model: VAE, objective: Objective, optimizer: Any, _: str) -> object:
    return make_step(model, objective, optimizer)


def test_triton_kernels_are_used_where_they_agree(
    strokes: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = _with_triton(strokes, monkeypatch, _same)
    assert built.actual["triton"] is True
    _epoch(built.engine)
    assert _adam(built.engine).step.item() == 16  # the trial has left no trace


def test_triton_kernels_that_go_wrong_are_trained_around(
    strokes: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(model: VAE, objective: Objective, optimizer: Any, _: str) -> object:
        return make_step(model, Objective(beta=1.1), optimizer)

    def broken(*_: object) -> object:
        def step(*_: Tensor) -> None:
            raise ZeroDivisionError("no such instruction\nand more")

        return step

    for step, reason in ((wrong, "went wrong here"), (broken, "ZeroDivisionError: no such")):
        with pytest.warns(UserWarning, match="went wrong here"):
            built = _with_triton(strokes, monkeypatch, step)
        assert built.actual["triton"] is False
        assert reason in " ".join(built.notes)
        assert "\n" not in " ".join(built.notes)
        _epoch(built.engine)


def test_parts_are_offered_on_their_devices_alone(
    strokes: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU, `--compile` once tried the CPU's kernels, which went wrong there."""
    elsewhere = [
        dataclasses.replace(t, devices=("cuda",)) if t.kind == "part" else t for t in TECHNIQUES
    ]
    monkeypatch.setattr(compiled, "TECHNIQUES", elsewhere)
    monkeypatch.setattr(sparse, "part", lambda *_: pytest.fail("offered on another device"))
    model = VAE(hidden_dims=(32,), latent_dim=6)
    built = make_engine(model, strokes, Objective(), 64, 1e-3, CPU, compile=True, native=False)
    assert built.actual["compile"] is True
    assert built.actual["sparse"] is False
    assert built.actual["fused_likelihood"] is False


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("rounded", [False, True])
def test_cuda_triton_is_used_and_trains(strokes: Tensor, rounded: bool) -> None:
    found = {}
    for asked in (False, True):
        torch.manual_seed(1)
        history = fit(
            VAE(hidden_dims=(48,), latent_dim=6), strokes, epochs=2, device="cuda", tf32=rounded,
            compile=True, triton=asked,
        )  # fmt: skip
        assert history.actual["triton"] is asked, history.notes
        found[asked] = history.epochs[-1].train_elbo
    assert found[True] == pytest.approx(found[False], rel=2e-3 if rounded else 1e-4)


def test_triton_gives_way_to_bf16_by_name_alone(
    strokes: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = _with_triton(strokes, monkeypatch, _same, amp="auto")
    assert (built.actual["triton"], built.actual["amp"]) == (True, "float32")
    assert any("whole steps" in note for note in built.notes)
    built = _with_triton(strokes, monkeypatch, _same, amp="bf16")
    assert (built.actual["triton"], built.actual["amp"]) == (False, "bf16")


@pytest.mark.parametrize(("waited", "races"), [(0.0, 1), (100.0, 2)])
def test_a_race_that_others_disturb_goes_on(
    waited: float, races: int, strokes: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The least time of all turns counts."""
    one, other = (_engine(strokes, compile=False) for _ in range(2))
    times = iter([{one: 3.0, other: 1.0}, {one: 0.5, other: 2.0}])
    asked: list[dict[str, Any]] = []

    def timed(runs: Any, device: Any, around: Any, **words: Any) -> dict[Any, float]:
        asked.append(words)
        return next(times)

    told = iter([0.0, waited])
    monkeypatch.setattr(admit, "timed_in_turns", timed)
    monkeypatch.setattr(admit, "waited_seconds", lambda: next(told))
    verdict = admit.race(one, other)
    assert len(asked) == races
    assert verdict.candidate == (0.5 if races == 2 else 3.0)
    assert verdict.other == 1.0
