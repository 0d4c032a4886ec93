"""A stand-in for CUDA graphs on the CPU, as strict as they are about what is frozen.

Recording notes every operator that the work calls, with the very tensors it was given, and leaves
their values as they were. A replay runs those operators again on those tensors: no Python of the
work's is run, a number that was read from a variable is frozen, and what is in the tensors now is
read anew. Waiting for a size on the host cannot be recorded.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vaebench.fast.capture import CaptureError


class Tape(TorchDispatchMode):
    """The operators called while it is active."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[tuple[Any, Any, Any, Any]] = []
        self.before: dict[int, tuple[Tensor, Tensor]] = {}  # of changed tensors, by identity

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten.nonzero.default:
            raise RuntimeError("operation not permitted when stream is capturing\nmore words")
        # Batch norm changes its statistics without saying so.
        secret = "batch_norm" in func.name()
        for argument, given in zip(func._schema.arguments, args, strict=False):
            writes = argument.alias_info is not None and argument.alias_info.is_write
            if writes or (secret and argument.name.startswith("running_")):
                for tensor in tree_leaves(given):
                    if tensor is not None:
                        self.before.setdefault(id(tensor), (tensor, tensor.detach().clone()))
        result = func(*args, **kwargs)
        self.calls.append((func, args, kwargs, result))
        return result

    @torch.no_grad()
    def undo(self) -> None:
        """Put back what the recorded calls have changed."""
        for tensor, value in reversed(self.before.values()):
            tensor.copy_(value)

    @torch.no_grad()
    def replay(self) -> None:
        """Run the calls again, each result into the memory where it was."""
        for func, args, kwargs, result in self.calls:
            again = func(*args, **kwargs)
            for old, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
                if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


class TapeCapture:
    """See :class:`vaebench.fast.capture.Capture`."""

    def __init__(self, device: torch.device | None = None) -> None:
        self.replays = 0

    def warm_up(self, work: Callable[[], None]) -> None:
        """Run it."""
        work()

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """Record it."""
        tape = Tape()
        try:
            with tape:
                work()
        except RuntimeError as error:
            raise CaptureError(
                f"CUDA graph capture failed: {str(error).splitlines()[0]}"
            ) from error
        finally:
            tape.undo()

        def replay() -> None:
            self.replays += 1
            tape.replay()

        return replay
