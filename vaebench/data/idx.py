"""The IDX format of MNIST and its kin, plain or gzipped: read, checked and bounded.

A file on disk is not trusted: its header is compared with its length before anything is
allocated, and whatever is wrong with it becomes one `InputError` that names it.
"""

import gzip
import hashlib
import math
import os
import stat
import struct
import zlib
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

import numpy as np
import torch

from vaebench.errors import InputError

StrPath = str | os.PathLike[str]

GZIP_MAGIC = b"\x1f\x8b"
DEFLATE_MAX_RATIO = 1032  # deflate spends at least 2 bits on 258 bytes: no archive unpacks to more
_CHUNK = 1 << 20
_TYPES: dict[int, np.dtype[Any]] = {
    0x08: np.dtype("u1"),
    0x0D: np.dtype(">f4"),
    0x0E: np.dtype(">f8"),
}
_REFUSED = {0x09: "int8", 0x0B: "int16", 0x0C: "int32"}


def show(text: object, limit: int = 300) -> str:
    """Return ``str(text)`` as one printable line of at most about ``limit`` characters."""
    line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(text))
    return line if len(line) <= limit else f"{line[: limit // 2]} ... {line[-limit // 2 :]}"


def reason(error: BaseException) -> str:
    """Return in one line why ``error`` was raised, without the path that an OSError repeats."""
    if isinstance(error, OSError) and error.strerror:
        return show(error.strerror)
    return show(error) or type(error).__name__


def open_file(path: Path) -> BinaryIO:
    """Open a regular file for reading; a folder, a pipe or a missing file is an InputError."""
    try:
        # Opening a named pipe would wait for ever, so the kind is looked at first.
        regular = stat.S_ISREG(os.stat(path).st_mode)
        handle = open(path, "rb") if regular else None  # noqa: SIM115 (the caller closes it)
    except (OSError, ValueError) as error:
        raise InputError(
            f"cannot read {show(path)}: {reason(error)}; give an existing, readable file"
        ) from error
    if handle is None:
        raise InputError(f"cannot read {show(path)}: it is not a regular file; give a data file")
    return handle


def read_up_to(stream: IO[bytes], limit: int) -> bytearray:
    """Read ``limit`` bytes, or fewer where the stream ends.

    In chunks: one large ``read`` would allocate ``limit`` bytes before it knows they exist.
    """
    data = bytearray()
    while len(data) < limit:
        chunk = stream.read(min(_CHUNK, limit - len(data)))
        if not chunk:
            break
        data += chunk
    return data


def read_idx(path: StrPath, *, md5: str | None = None) -> torch.Tensor:
    """Read one IDX file, plain or gzipped (told apart by the first bytes, not by the name).

    Args:
        path: the file.
        md5: what the md5 of the unpacked bytes must be; ``None`` does not check.

    Returns:
        A contiguous CPU tensor of the file's own shape; uint8, float32 or float64 as stored.

    Raises:
        InputError: the file is missing, unreadable, damaged, too short, too long, empty, of
            another element type, or not the one that ``md5`` stands for.
    """
    file = Path(path)
    with open_file(file) as plain:
        size = os.fstat(plain.fileno()).st_size
        start = plain.read(2)
        plain.seek(0)
        try:
            if start != GZIP_MAGIC:
                return _read_stream(plain, show(file), size, md5)
            with gzip.GzipFile(fileobj=plain) as unpacked:
                stream = cast(BinaryIO, unpacked)
                return _read_stream(stream, show(file), size * DEFLATE_MAX_RATIO, md5)
        except (OSError, EOFError, zlib.error, MemoryError) as error:
            raise InputError(
                f"{show(file)} is damaged or unreadable: {reason(error)}; get the file again"
            ) from error


def _read_stream(stream: IO[bytes], name: str, most: int, md5: str | None) -> torch.Tensor:
    """Read header and values from unpacked bytes, of which there are at most ``most``."""
    dtype, shape, header = _read_header(stream, name)
    size = math.prod(shape) * dtype.itemsize
    promise = f"its header promises {'x'.join(map(str, shape))} values ({size} bytes)"
    if len(header) + size > most:
        raise InputError(f"{name} is too short: {promise}, it is cut off; get the file again")
    body = read_up_to(stream, size + 1)
    if len(body) < size:
        raise InputError(f"{name} is too short: {promise}, {len(body)} came; get the file again")
    if len(body) > size:
        raise InputError(f"{name} is too long: {promise}, more follow; get the file again")
    _check_md5(header, body, name, md5)
    values = np.frombuffer(body, dtype).astype(dtype.newbyteorder("="), copy=False)
    return torch.from_numpy(values.reshape(shape))


def _read_header(stream: IO[bytes], name: str) -> tuple[np.dtype[Any], tuple[int, ...], bytearray]:
    """Return element type, shape and the header's bytes: magic, then one uint32 a dimension."""
    header = read_up_to(stream, 4)
    if len(header) < 4 or header[:2] != b"\0\0":
        raise InputError(
            f"{name} is not an IDX file: it begins with {bytes(header).hex(' ') or 'nothing'}, "
            "IDX with 00 00, a type and a number of dimensions; give an IDX, .npy or .npz file"
        )
    code, dims = header[2], header[3]
    if code not in _TYPES:
        raise InputError(
            f"{name} holds values of type {_REFUSED.get(code, 'unknown')} (code 0x{code:02x}); "
            "accepted are uint8 (0x08), float32 (0x0d) and float64 (0x0e): convert it"
        )
    header += read_up_to(stream, 4 * dims)
    if len(header) < 4 + 4 * dims:
        raise InputError(f"{name} is too short: it ends within its header; get the file again")
    shape = struct.unpack(f">{dims}I", header[4:])
    if dims == 0 or 0 in shape:
        raise InputError(f"{name} holds no values: its header says shape {shape}; get a full file")
    if dims > 4:
        raise InputError(f"{name} has {dims} dimensions; accepted are 1 to 4: reshape it")
    return _TYPES[code], shape, header


def _check_md5(header: bytearray, body: bytearray, name: str, md5: str | None) -> None:
    """Raise InputError unless header and body are the bytes that ``md5`` was made of."""
    if md5 is None:
        return
    # Not a matter of security; said so, else hashlib refuses md5 on hardened systems.
    digest = hashlib.md5(header, usedforsecurity=False)
    digest.update(body)
    if digest.hexdigest() != md5:
        raise InputError(
            f"{name} is not the published file: its unpacked bytes have md5 {digest.hexdigest()}, "
            f"not {md5}; delete it, so that it can be downloaded again"
        )
