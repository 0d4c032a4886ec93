"""Processes that train one model together, through torch.distributed.

torchrun starts them and says by environment variables how they find each other; a caller of the
library may have initialised torch.distributed by other means. Two groups of the same processes
are used: one whose every wait is short, for what happens many times a second, so that a process
that has stopped is noticed; and one that is patient, for what may take minutes in one process
(compiling, evaluating, writing). A process that ends closes its connections: either group
notices at once.
"""

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from functools import partial
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor

from vaebench.errors import InputError, TrainingError

STEP = timedelta(seconds=20)  # for the others' part of a step; theirs takes milliseconds
PATIENCE = timedelta(minutes=10)
MEETING = timedelta(minutes=2)  # for all processes to be there at the start

_active: list["Group"] = []  # the one that trains at the moment


def started() -> bool:
    """Whether the environment says that this is one of several processes (torchrun sets it)."""
    return os.environ.get("WORLD_SIZE", "1") != "1"


def is_main_process() -> bool:
    """Whether this process is the one that writes, prints and evaluates."""
    return os.environ.get("RANK", "0") == "0" if started() else True


def local_count() -> int:
    """Count the processes on this machine, which share its CPUs."""
    return _number("LOCAL_WORLD_SIZE", 1, 10**6, default=1) if started() else 1


def own_device(name: str) -> str:
    """Give each process of a machine a GPU of its own, if ``name`` leaves the choice."""
    if not started() or local_count() == 1:
        return name
    if name.startswith("cuda:"):
        raise InputError(
            f"--device {name} names one GPU for {local_count()} processes: give cuda, and each "
            "takes its own, or start one process"
        )
    if name == "cuda" or (name == "auto" and torch.cuda.device_count()):
        return f"cuda:{_number('LOCAL_RANK', 0, 10**6)}"
    return name


def _number(name: str, low: int, high: int, default: int | None = None) -> int:
    """Read a whole number from an environment variable that torchrun sets."""
    text = os.environ.get(name)
    if text is None and default is not None:
        return default
    try:
        value = int(text or "")
    except ValueError:
        value = low - 1
    if not low <= value <= high:
        raise InputError(
            f"the environment variable {name} is {text!r}: it must be a whole number from {low} "
            f"to {high}, as torchrun sets it; to train in one process, unset WORLD_SIZE"
        )
    return value


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Meet the other processes, if there are any, and part from them at the end.

    Raises:
        InputError: the environment names no possible group, or the others are not found.
    """
    if not started():
        yield
        return
    size = _number("WORLD_SIZE", 1, 10**6)
    rank = _number("RANK", 0, size - 1)
    address, port = os.environ.get("MASTER_ADDR"), _number("MASTER_PORT", 1, 65535)
    if not address:
        raise InputError(
            "the environment variable MASTER_ADDR is not set: start by torchrun, or to train in "
            "one process, unset WORLD_SIZE"
        )
    try:
        dist.init_process_group("gloo", rank=rank, world_size=size, timeout=MEETING)
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"the {size} processes did not meet at {address}:{port} ({_first_line(error)}): see "
            "that all are started, with one address and port"
        ) from error
    try:
        yield
    finally:
        dist.destroy_process_group()


@contextlib.contextmanager
def main_process_first() -> Iterator[None]:
    """Let the first process of each machine go first: what it downloads, the others find."""
    if not started():
        yield
        return
    first = _number("LOCAL_RANK", 0, 10**6, default=0) == 0
    if not first:
        _communicate(lambda: dist.monitored_barrier(timeout=PATIENCE))
    yield
    if first:
        _communicate(lambda: dist.monitored_barrier(timeout=PATIENCE))


def count() -> int:
    """Count the processes of this training: 1, unless torch.distributed is initialised."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


class Group:
    """All processes, while they train a model together; :meth:`close` it at the end.

    Args:
        device: where this process trains: NCCL connects GPUs, gloo CPUs.
    """

    def __init__(self, device: torch.device) -> None:
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self.silent = False
        backend = "nccl" if device.type == "cuda" else "gloo"
        new_group = cast(Callable[..., dist.ProcessGroup], dist.new_group)
        self._quick = new_group(backend=backend, timeout=STEP)
        self._patient = new_group(backend="gloo", timeout=PATIENCE)
        _active.append(self)

    def close(self) -> None:
        """Give the connections back."""
        _active.remove(self)
        for group in (self._quick, self._patient):
            with contextlib.suppress(RuntimeError):  # as when another process is gone
                dist.destroy_process_group(group)

    def share(self, n: int) -> slice:
        """Say which of ``n`` things in a row are this process's: as many as others', give one."""
        return slice(self.rank * n // self.world_size, (self.rank + 1) * n // self.world_size)

    def all_reduce(self, tensor: Tensor) -> None:
        """Replace a tensor by its sum over all processes; the same bits in each of them."""
        if not self.silent:
            _communicate(lambda: dist.all_reduce(tensor, group=self._quick))

    def copy_from_first(self, tensors: Sequence[Tensor]) -> None:
        """Overwrite tensors with those of the first process."""
        with torch.no_grad():
            for tensor in tensors:
                whole = tensor.contiguous()
                _communicate(partial(dist.broadcast, whole, 0, group=self._quick))
                tensor.copy_(whole)

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process. Waits for all of them, patiently."""
        flags = torch.tensor(int(flag))
        _communicate(lambda: dist.all_reduce(flags, dist.ReduceOp.MAX, group=self._patient))
        return bool(flags)

    def broadcast(self, value: float) -> float:
        """Give the first process's value. Waits for it, patiently."""
        sent = torch.tensor(value, dtype=torch.float64)
        _communicate(lambda: dist.broadcast(sent, 0, group=self._patient))
        return sent.item()

    def check_alike(self, what: str, *values: object) -> None:
        """Raise InputError, in every process, unless all of them have the same values."""
        digest = hashlib.sha256(repr(values).encode()).digest()
        mine = torch.frombuffer(bytearray(digest), dtype=torch.uint8)
        highest, lowest = mine.clone(), mine.clone()
        _communicate(lambda: dist.all_reduce(highest, dist.ReduceOp.MAX, group=self._patient))
        _communicate(lambda: dist.all_reduce(lowest, dist.ReduceOp.MIN, group=self._patient))
        if not torch.equal(highest, lowest):
            raise InputError(
                f"the {self.world_size} processes differ in {what}: start all with the same "
                "arguments, data and software"
            )


def all_reduce(tensor: Tensor) -> None:
    """Replace a tensor by its sum over the processes that train; also in a compiled graph."""
    if torch.compiler.is_compiling():
        torch.ops.vaebench.all_reduce_(tensor)
    else:
        _active[-1].all_reduce(tensor)


# A compiled graph calls it as an opaque operator, as it calls Adam's kernel.
_LIBRARY = torch.library.Library("vaebench", "FRAGMENT")
_LIBRARY.define("all_reduce_(Tensor(a!) tensor) -> ()")
_LIBRARY.impl(
    "all_reduce_", lambda tensor: _active[-1].all_reduce(tensor), "CompositeExplicitAutograd"
)
torch.library.register_fake("vaebench::all_reduce_", lambda _: None, lib=_LIBRARY)


def _communicate(call: Callable[[], object]) -> None:
    """Communicate; a process that has ended, or does not answer, becomes a TrainingError."""
    try:
        call()
    except RuntimeError as error:
        raise TrainingError(
            f"another of the {dist.get_world_size()} processes ended or did not answer "
            f"({_first_line(error)}): its own message says why; epochs that were finished are kept"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
