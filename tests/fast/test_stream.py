"""Images streamed from the host: the same batches as of images kept on the device, bit for bit."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import vaebench
from tests.engines import make_engine
from vaebench import problem
from vaebench.data import loader, streaming
from vaebench.data.images import to_unit
from vaebench.data.streaming import HostImages
from vaebench.fast.step import StepEngine
from vaebench.fast.stream import StreamEngine
from vaebench.models.mlp import VAE
from vaebench.objective import Objective
from vaebench.training import inputs

CPU = torch.device("cpu")
BATCH, Z = 64, 6
EACH = 28 * 28  # bytes of an image
# Chunks of one batch, of three (the last one short), and of all there are.
CHUNKS = (1, 3 * BATCH * EACH, 10**9)


@pytest.fixture
def small_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no images fit on the device."""
    _fill(monkeypatch)


def _fill(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (problem, inputs, loader):
        monkeypatch.setattr(module, "fits", lambda images, device: False)
    # On the CPU they would be where the model is, all the same.


def _engine(images: Tensor, device: torch.device, **words: Any) -> StepEngine:
    torch.manual_seed(1)
    objective = Objective(samples=words.pop("samples", 1))
    model = VAE(hidden_dims=(32,), latent_dim=Z)
    # No joint update: whether it pays is measured, so that two engines may round otherwise.
    words = {"graph": False, "joint_update": False, **words}
    return make_engine(model, images, objective, BATCH, 1e-3, device, **words).engine


def _train(engine: StepEngine, sizes: list[int]) -> list[float]:
    numbers = torch.Generator().manual_seed(0)
    sums = []
    for size in sizes:
        order = torch.randperm(len(engine.images), generator=numbers)[:size].to(engine.device)
        noise = torch.randn(engine.no_noise(size).shape, generator=numbers).to(engine.device)
        sums.append(engine.epoch(order, noise))
    return [float(value) for part in sums for value in (part.recon, part.kl)]


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("samples", [1, 3])
def test_streamed_steps_are_the_resident_ones(
    strokes: Tensor,
    device: torch.device,
    monkeypatch: pytest.MonkeyPatch,
    chunk: int,
    samples: int,
) -> None:
    resident = _engine(strokes, device, samples=samples)
    monkeypatch.setattr(streaming, "CHUNK", chunk)
    _fill(monkeypatch)
    streamed = _engine(strokes, device, samples=samples)
    assert isinstance(streamed, StreamEngine)
    assert streamed.images.device == CPU
    assert streamed.source.rows == {1: 64, CHUNKS[1]: 192, 10**9: 16 * 64}[chunk]
    sizes = [1000, 1000, 3 * BATCH, BATCH + 7, 5]
    assert _train(streamed, sizes) == _train(resident, sizes)
    for ours, theirs in zip(
        streamed.optimizer.tensors(), resident.optimizer.tensors(), strict=True
    ):
        assert torch.equal(ours, theirs)


@pytest.mark.usefixtures("small_device")
def test_the_compiled_step_takes_streamed_images_too(
    strokes: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "CHUNK", CHUNKS[1])
    words = {"sparse": False, "fused_likelihood": False}
    streamed = _engine(strokes, CPU, compile=True, **words)
    assert isinstance(streamed, StreamEngine)
    with torch.compiler.set_stance("fail_on_recompile"):
        found = _train(streamed, [1000])
    assert found == pytest.approx(_train(_engine(strokes, CPU), [1000]), rel=1e-5)


def _fit(images: Tensor, **words: Any) -> tuple[vaebench.History, list[Tensor]]:
    torch.manual_seed(1)
    model = VAE(hidden_dims=(32,), latent_dim=Z)
    history = vaebench.fit(model, images, epochs=2, batch_size=BATCH, device="cpu", **words)
    return history, [p.detach() for p in model.parameters()]


@pytest.mark.parametrize("binarize", ["none", "dynamic"])
def test_fit_streams_what_does_not_fit_and_says_so(
    strokes: Tensor, monkeypatch: pytest.MonkeyPatch, binarize: str
) -> None:
    resident, expected = _fit(strokes, binarize=binarize)
    assert resident.actual["data_on"] == "device"
    _fill(monkeypatch)
    monkeypatch.setattr(streaming, "room", lambda device: 2e6)
    streamed, found = _fit(strokes, binarize=binarize)
    assert streamed.actual["data_on"] == "host, streamed"
    assert (
        "data: 0.000784 GB of images, and cpu has 0.002 GB free: kept on the host and streamed"
        in streamed.notes
    )
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    for mine, right in zip(streamed.epochs, resident.epochs, strict=True):
        assert mine.train_elbo == pytest.approx(right.train_elbo, rel=1e-12)


@pytest.mark.parametrize("words", [{}, {"drop_last": True}, {"shuffle": False}])
@pytest.mark.parametrize("floats", [False, True])
def test_the_loader_streams_the_same_batches(
    strokes: Tensor,
    device: torch.device,
    monkeypatch: pytest.MonkeyPatch,
    words: dict[str, Any],
    floats: bool,
) -> None:
    images = strokes.float() / 255 if floats else strokes
    labels = torch.arange(len(images))
    monkeypatch.setattr(streaming, "CHUNK", CHUNKS[1])
    resident = vaebench.DeviceLoader(images, labels, batch_size=BATCH, device=device, **words)
    monkeypatch.setattr(loader, "fits", lambda images, device: False)
    streamed = vaebench.DeviceLoader(images, labels, batch_size=BATCH, device=device, **words)
    assert (resident.data_on, streamed.data_on) == ("device", "host, streamed")
    assert streamed.images.device == CPU
    for _ in range(2):
        kept = list(streamed)  # each batch stays what it is while others are fetched
        assert len(kept) == len(streamed)
        for (x, label), (right, same) in zip(kept, resident, strict=True):
            assert x.device == label.device == right.device
            assert torch.equal(x, right)
            assert torch.equal(label, same)


def test_a_loader_left_early_begins_anew(strokes: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "CHUNK", 1)
    monkeypatch.setattr(loader, "fits", lambda images, device: False)
    streamed = vaebench.DeviceLoader(strokes, batch_size=BATCH, shuffle=False)
    for x in streamed:
        assert torch.equal(x, to_unit(strokes[:BATCH]))  # type: ignore[arg-type]
        break
    assert torch.equal(torch.cat(list(streamed)), to_unit(strokes))  # type: ignore[arg-type]


# What may be written when. A stand-in for the device copies as late as it is allowed to, and
# another notes the order of things.


class Late(streaming._Queue):
    """Copies only when somebody waits for it."""

    def __init__(self) -> None:
        self.pending: list[Callable[[], object] | None] = [None, None]

    def copy(self, slot: int, source: Tensor, target: Tensor) -> None:
        assert self.pending[slot] is None
        self.pending[slot] = lambda: target.copy_(source)

    def await_staging(self, slot: int) -> None:
        work, self.pending[slot] = self.pending[slot], None
        if work:
            work()

    await_copy = await_staging


class Noted(streaming._Queue):
    """Notes what is asked of it, by slot."""

    def __init__(self) -> None:
        self.seen: tuple[list[str], list[str]] = ([], [])

    def copy(self, slot: int, source: Tensor, target: Tensor) -> None:
        super().copy(slot, source, target)
        self.seen[slot].append("copy")

    def await_staging(self, slot: int) -> None:
        self.seen[slot].append("staging")

    def await_copy(self, slot: int) -> None:
        self.seen[slot].append("copied")

    def done_with(self, slot: int) -> None:
        self.seen[slot].append("done")


def _source(images: Tensor, queue: streaming._Queue, monkeypatch: pytest.MonkeyPatch) -> HostImages:
    monkeypatch.setattr(streaming, "CHUNK", 1)
    source = HostImages(images, CPU, 10)
    source.queue = queue
    return source


def test_a_slow_copy_is_waited_for(strokes: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    source = _source(strokes, Late(), monkeypatch)
    for seed in (0, 1):
        order = torch.randperm(95, generator=torch.Generator().manual_seed(seed))
        got = torch.cat([images[:count].clone() for images, count in source.chunks(order)])
        assert torch.equal(got, strokes[order])


def test_memory_is_written_when_it_is_free(
    strokes: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = Noted()
    source = _source(strokes, queue, monkeypatch)
    list(source.chunks(torch.arange(50)))  # five chunks: three in the first slot, two in the other
    turn = ["staging", "copy", "copied", "done"]
    assert queue.seen == (3 * turn, 2 * turn)
    for _ in source.chunks(torch.arange(50)):
        break
    assert queue.seen[0][-1] == "done"  # though no more were wanted


def test_what_fits() -> None:
    images, cuda = torch.zeros(100, 10), torch.device("cuda", 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streaming, "room", lambda device: 4000 / streaming.SHARE)
        assert streaming.fits(images, cuda)
        patch.setattr(streaming, "room", lambda device: 3999 / streaming.SHARE)
        assert not streaming.fits(images, cuda)
        assert streaming.fits(images, CPU)  # there already


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_room_is_what_torch_holds_too() -> None:
    device = torch.device("cuda", 0)
    before = streaming.room(device)
    held = torch.zeros(2**26, device=device)
    assert streaming.room(device) < before - 2**27
    del held
    assert streaming.room(device) >= before - 2**27
