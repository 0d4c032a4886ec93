"""The calls of CudaCapture, in a world where ``torch.cuda`` only notes them."""

import contextlib
import gc
import inspect
import itertools
import warnings
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from vaebench.fast import capture as recording
from vaebench.fast.capture import CaptureError, CudaCapture


def test_the_reason_is_what_went_wrong_first() -> None:
    first = RuntimeError("operation not permitted\nCUDA kernel errors might be ...")
    second = RuntimeError("capture was invalidated")
    second.__context__ = first
    assert recording._reason(second) == recording._reason(first) == "operation not permitted"
    assert recording._reason(RuntimeError()) == "RuntimeError"


class NotedCuda:
    """Stands in for what CudaCapture uses of ``torch.cuda``."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.calls: list[str] = []
        self.current, self.mode, self.end_fails = "main", 0, False
        self.signature = inspect.signature(torch.cuda.graph.__init__)
        for name in (
            *("Stream", "CUDAGraph", "graph_pool_handle", "current_stream", "set_stream"),
            *("stream", "device", "graph", "get_sync_debug_mode", "set_sync_debug_mode"),
        ):
            assert hasattr(torch.cuda, name)
            patch.setattr(torch.cuda, name, getattr(self, name))

    class Stream:
        def __init__(self, device: torch.device) -> None:
            self.device = device

    class CUDAGraph:
        def replay(self) -> None:
            pass

    def graph_pool_handle(self) -> tuple[int, int]:
        return (0, 1)

    def current_stream(self, device: torch.device) -> Any:
        note = self.calls.append

        class Current:
            def wait_stream(self, other: Any) -> None:
                note("main waits")

        return Current()

    def set_stream(self, stream: Any) -> None:
        self.current = "main"

    @contextlib.contextmanager
    def stream(self, stream: Any) -> Iterator[None]:
        self.current = "side"
        try:
            yield
        finally:
            self.current = "main"

    @contextlib.contextmanager
    def device(self, device: torch.device) -> Iterator[None]:
        yield

    @contextlib.contextmanager
    def graph(self, *given: Any, **named: Any) -> Iterator[None]:
        words = self.signature.bind(None, *given, **named).arguments
        assert words["pool"] == (0, 1)
        assert isinstance(words["stream"], NotedCuda.Stream)
        self.current = "recording"
        try:
            yield
        finally:
            if self.end_fails:  # and torch's stream stays the current one
                raise RuntimeError("capture was invalidated")
            self.current = "main"

    def get_sync_debug_mode(self) -> int:
        return self.mode

    def set_sync_debug_mode(self, mode: int | str) -> None:
        if mode == "error":
            warnings.warn("Synchronization debug mode is a prototype feature", stacklevel=2)
        self.mode = 2 if mode == "error" else int(mode)


@pytest.fixture
def noted(monkeypatch: pytest.MonkeyPatch) -> NotedCuda:
    """Give the world, and in it a capture."""
    monkeypatch.setattr(
        NotedCuda.Stream,
        "wait_stream",
        lambda self, other: None,
        raising=False,
    )
    return NotedCuda(monkeypatch)


def test_cuda_warms_up_aside_and_notices_waiting(noted: NotedCuda) -> None:
    capture = CudaCapture(torch.device("cuda", 0))
    seen: list[tuple[str, int]] = []
    capture.warm_up(lambda: seen.append((noted.current, noted.mode)))
    assert seen == [("side", 2)]
    assert (noted.current, noted.mode) == ("main", 0)
    assert noted.calls == ["main waits"]

    def waits() -> None:
        raise RuntimeError("called a synchronizing CUDA operation")

    def breaks() -> None:
        raise RuntimeError("shapes do not match")

    with pytest.raises(CaptureError, match="the step waits for the device"):
        capture.warm_up(waits)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        capture.warm_up(breaks)
    assert (noted.current, noted.mode) == ("main", 0)
    assert noted.calls == ["main waits"] * 3  # what ran aside is waited for, failed or not


def test_cuda_records_and_comes_back_whatever_happens(noted: NotedCuda) -> None:
    capture = CudaCapture(torch.device("cuda", 0))
    seen: list[tuple[str, bool]] = []
    replay = capture.record(lambda: seen.append((noted.current, gc.isenabled())))
    assert seen == [("recording", False)]
    assert callable(replay)
    assert (noted.current, gc.isenabled()) == ("main", True)

    def breaks() -> None:
        raise RuntimeError("operation not permitted\nand more")

    noted.end_fails = True
    with pytest.raises(CaptureError) as caught:
        capture.record(breaks)
    assert str(caught.value) == "CUDA graph capture failed: operation not permitted"
    assert (noted.current, gc.isenabled()) == ("main", True)


def test_cuda_graphs_end_together(noted: NotedCuda) -> None:
    """Each that ends takes along the workspace that the others use."""
    capture = CudaCapture(torch.device("cuda", 0))
    replays = [capture.record(lambda: None) for _ in range(2)]
    alive = [weakref.ref(graph) for graph in capture.graphs]
    del replays[0]
    assert all(graph() for graph in alive)
    del capture, replays
    assert not any(graph() for graph in alive)


def test_cuda_captures_share_no_stream(noted: NotedCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cuda", 0)
    streams: list[Any] = [NotedCuda.Stream(device) for _ in range(3)]
    dealt = itertools.cycle(streams)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: next(dealt))
    captures = [CudaCapture(device) for _ in range(2)]
    next(dealt)
    captures.append(CudaCapture(device))  # the next two in turn are taken
    assert [capture.stream for capture in captures] == streams
    del captures[1]
    assert CudaCapture(device).stream is streams[1]
    captures.append(CudaCapture(device))
    assert CudaCapture(device).stream in streams  # all are taken


@pytest.mark.parametrize("how", ["warm_up", "record"])
def test_cuda_keeps_nothing_of_a_step_that_failed(noted: NotedCuda, how: str) -> None:
    held: list[weakref.ref[Tensor]] = []

    def waits() -> None:
        kept = torch.zeros(1)
        held.append(weakref.ref(kept))
        raise RuntimeError("called a synchronizing CUDA operation")

    with pytest.raises(CaptureError) as caught:
        getattr(CudaCapture(torch.device("cuda", 0)), how)(waits)
    assert caught.value.__cause__ is not None
    assert held[0]() is None
