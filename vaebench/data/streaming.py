"""Images that do not fit on the device: gathered on the host, a chunk ahead of their use.

A thread gathers a chunk of many batches into pinned memory, from where the device copies it beside
its computing. There are two of everything: while one chunk is trained on, the next is on its way.
"""

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from vaebench.system.device import free_memory

# Of the device's free memory, what images may take: models, noise and activations need the rest.
SHARE = 0.6
# Bytes per chunk: large enough that a copy runs at the bus's full rate.
CHUNK = 64 * 2**20


def fits(images: Tensor, device: torch.device) -> bool:
    """Whether the images may be kept on the device; they may where they are already."""
    same = images.device.type == device.type and (images.device.index or 0) == (device.index or 0)
    return same or size(images) <= SHARE * room(device)


def room(device: torch.device) -> float:
    """Bytes that can be had on the device, those included that torch holds and does not use."""
    held = 0
    if device.type == "cuda":
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return free_memory(device) + held


def size(images: Tensor) -> int:
    """Bytes of the images."""
    return images.numel() * images.element_size()


def explained(images: Tensor, device: torch.device) -> str:
    """Say in a line why they are streamed."""
    needed, free = size(images) / 1e9, room(device) / 1e9
    return (
        f"data: {needed:.3g} GB of images, and {device} has {free:.3g} GB free: kept on the host "
        "and streamed"
    )


class HostImages:
    """Images on the host, to be had on a device in any order, chunk by chunk.

    Args:
        images: (N, ...), on the host.
        device: where the chunks are wanted.
        batch_size: images of a batch; a chunk holds a multiple of it.
    """

    def __init__(self, images: Tensor, device: torch.device, batch_size: int) -> None:
        self.images, self.device = images, device
        each = max(1, size(images) // len(images))
        most = math.ceil(len(images) / batch_size)
        self.rows = batch_size * min(most, max(1, CHUNK // (batch_size * each)))
        shape, cuda = (self.rows, *images.shape[1:]), device.type == "cuda"
        self.staged = [torch.empty(shape, dtype=images.dtype, pin_memory=cuda) for _ in range(2)]
        self.there = [torch.empty(shape, dtype=images.dtype, device=device) for _ in range(2)]
        self.queue = _CudaQueue(device) if cuda else _Queue()

    def chunks(self, order: Tensor) -> Iterator[tuple[Tensor, int]]:
        """Give the images at ``order`` (n,), on the device: a buffer, and how many it holds.

        They stand in its front. A buffer is the caller's until the next is asked for. Taking the
        order to the host waits for the device, once.
        """
        parts = order.cpu().split(self.rows)
        with ThreadPoolExecutor(1) as ahead:
            coming = [ahead.submit(self._fetch, i, part) for i, part in enumerate(parts[:2])]
            for i, part in enumerate(parts):
                coming[i].result()
                self.queue.await_copy(i % 2)
                try:
                    yield self.there[i % 2], len(part)
                finally:  # also if no more are wanted
                    self.queue.done_with(i % 2)
                if i + 2 < len(parts):
                    coming.append(ahead.submit(self._fetch, i + 2, parts[i + 2]))

    def _fetch(self, i: int, index: Tensor) -> None:
        """Gather a chunk and start its copy."""
        slot, n = i % 2, len(index)
        self.queue.await_staging(slot)
        torch.index_select(self.images, 0, index, out=self.staged[slot][:n])
        self.queue.copy(slot, self.staged[slot][:n], self.there[slot][:n])


class _Queue:
    """Where the device is the host: everything is done when it is asked for."""

    def await_staging(self, slot: int) -> None:
        """Wait, on the host, until the slot's staging memory is free."""

    def copy(self, slot: int, source: Tensor, target: Tensor) -> None:
        """Copy, once what used the target is done."""
        target.copy_(source)

    def await_copy(self, slot: int) -> None:
        """Let what the device does from now on wait until the slot is filled."""

    def done_with(self, slot: int) -> None:
        """Whatever was asked of the device so far is all that uses the slot."""


class _CudaQueue(_Queue):
    """Copies on a stream of their own; events tell when memory may be written again."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device)
        self.copied = [torch.cuda.Event() for _ in range(2)]
        self.used = [torch.cuda.Event() for _ in range(2)]
        # The buffers may lie where earlier work has not ended yet.
        self.stream.wait_stream(torch.cuda.current_stream(device))

    def await_staging(self, slot: int) -> None:
        """See :class:`_Queue`."""
        self.copied[slot].synchronize()

    def copy(self, slot: int, source: Tensor, target: Tensor) -> None:
        """See :class:`_Queue`."""
        with torch.cuda.stream(self.stream):
            self.stream.wait_event(self.used[slot])
            target.copy_(source, non_blocking=True)
            # If nobody waits for this copy, as after an epoch left early, the memory is still not
            # given to somebody else before it has ended.
            target.record_stream(self.stream)
            self.copied[slot].record(self.stream)

    def await_copy(self, slot: int) -> None:
        """See :class:`_Queue`."""
        torch.cuda.current_stream(self.device).wait_event(self.copied[slot])

    def done_with(self, slot: int) -> None:
        """See :class:`_Queue`."""
        self.used[slot].record(torch.cuda.current_stream(self.device))
