"""Files that survive: replaced whole, and on the disk.

What is replaced is written beside its destination, forced to the disk, renamed, and the rename is
forced to the disk: whoever reads, after a crash or a power cut too, finds the old file or the new.
"""

import contextlib
import hashlib
import json
import math
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

from vaebench.errors import ResourceError

_TEMPORARY = ".vaebench-{}.tmp"

# The words that the safetensors format has for torch's dtypes.
_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Open a file that takes the place of ``path`` at the end of the block, if nothing is raised.

    Raises:
        ResourceError: it could not be written; ``path`` is as it was.
    """
    temporary = path.with_name(_TEMPORARY.format(path.name))
    with writing(path):
        try:
            with open(temporary, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            _sync_folder(path.parent)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a failure to write ``path`` into a ResourceError, one line."""
    try:
        yield
    except OSError as error:
        gone = "" if path.parent.exists() else " (its folder is gone)"
        raise ResourceError(f"{path} cannot be written: {error.strerror or error}{gone}") from error


def temporaries(folder: Path) -> list[Path]:
    """What a killed process left half-written."""
    return list(folder.glob(_TEMPORARY.format("*")))


def _sync_folder(folder: Path) -> None:
    """Force a folder's names to the disk, where the system lets a folder be opened."""
    if sys.platform != "win32":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_tensors(
    file: IO[bytes], tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors in the safetensors format, as ``safetensors.torch.save`` does, byte for byte.

    From their own memory, into a file that is ours: that function makes two copies of everything
    first, which doubles the time of a checkpoint. ``save_file`` does not, but leaves a file of a
    random name behind when it is killed, does not force it to the disk, and tells a full disk by
    words alone. Tensors may share memory.
    """
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name in order:
        begin, end = end, end + tensors[name].numel() * tensors[name].element_size()
        header[name] = {
            "dtype": _DTYPES[tensors[name].dtype],
            "shape": list(tensors[name].shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for name in order:
        file.write(as_bytes(tensors[name]))


def to_json(value: object, *, indent: int | None = None) -> str:
    """Write a value as JSON, with null for numbers that JSON does not have: NaN and infinity."""
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def _finite(value: object) -> object:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: _finite(inner) for name, inner in value.items()}
    return [_finite(inner) for inner in value] if isinstance(value, list | tuple) else value


def digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """SHA-256 over names, dtypes, shapes and contents, and the metadata."""
    total = hashlib.sha256(json.dumps(sorted(metadata.items())).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        total.update(f"{name} {tensor.dtype} {list(tensor.shape)} ".encode())
        total.update(as_bytes(tensor))
    return total.hexdigest()


def as_bytes(tensor: Tensor) -> memoryview:
    """A tensor's numbers as bytes; those of a contiguous one on the CPU are not copied."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")
