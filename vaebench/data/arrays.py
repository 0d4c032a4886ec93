"""Arrays of the user's own, in memory or in NumPy's files, made into checked image tensors."""

import math
import os
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import torch

from vaebench.data.idx import DEFLATE_MAX_RATIO, StrPath, open_file, read_up_to, reason, show
from vaebench.data.images import Images
from vaebench.errors import InputError

Array = npt.NDArray[Any]
Choose = Callable[[list[str]], list[str]]  # from the names in an archive to those wanted

NPY_MAGIC = b"\x93NUMPY"
ZIP_MAGIC = b"PK"
_SHAPES = "accepted are N x D, N x H x W and N x C x H x W"


def as_images(array: object, *, name: str = "images") -> torch.Tensor:
    """Check an array or tensor of images and return it as a plain tensor.

    Args:
        array: a NumPy array or dense tensor of shape N x D, N x H x W or N x C x H x W, no size
            of which is 0; uint8 or floating, any strides. Floats must be finite in float32; their
            range is not looked at.
        name: what error messages call it.

    Returns:
        A contiguous, detached tensor on the array's own device, uint8 as given or float32. It
        shares the caller's memory where no conversion was needed.

    Raises:
        InputError: the array is of another type, element type or shape, or holds NaN or infinity.
    """
    if isinstance(array, np.ndarray):
        images = _from_numpy(array, name)
    elif isinstance(array, torch.Tensor):
        images = _from_tensor(array, name)
    else:
        raise InputError(
            f"{name}: a {type(array).__name__} is not accepted; give a NumPy array or a tensor, "
            "for instance numpy.asarray(...)"
        )
    _check_finite(images, name)
    return images


def checked(images: object, name: str, *, unit_interval: bool) -> Images:
    """Check images for a likelihood, unless that was done before.

    Args:
        images: as :func:`as_images` takes them, or Images.
        name: what error messages call them.
        unit_interval: whether floats must lie in [0, 1], as a Bernoulli likelihood wants.

    Raises:
        InputError: see :func:`as_images`; or floats out of range.
    """
    if isinstance(images, Images):
        if images.unit_interval or not unit_interval:
            return images
        pixels = images.pixels
    else:
        pixels = as_images(images, name=name)
    if unit_interval and pixels.is_floating_point():
        low, high = torch.stack(pixels.aminmax()).tolist()
        if low < 0 or high > 1:
            raise InputError(
                f"{name} holds values from {low:.4g} to {high:.4g}: a Bernoulli likelihood takes "
                "[0, 1] or uint8; rescale them, or use the gaussian likelihood"
            )
    return Images(pixels, unit_interval or pixels.dtype == torch.uint8)


def _from_numpy(array: Array, name: str) -> torch.Tensor:
    """Return a uint8 or float32 tensor of a NumPy array of any strides and byte order."""
    if isinstance(array, np.ma.MaskedArray):
        raise InputError(f"{name}: a masked array is not accepted; fill it: array.filled(0)")
    floating = array.dtype.kind == "f"
    if not floating and array.dtype != np.uint8:
        raise InputError(_dtype_message(str(array.dtype), array.dtype.kind == "b", name))
    _check_shape(tuple(array.shape), name)
    # What is too large for float32 becomes infinite here and is reported by _check_finite.
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        plain = np.require(array, np.float32 if floating else np.uint8, ["C", "A", "W", "E"])
    return torch.from_numpy(plain)


def _from_tensor(tensor: torch.Tensor, name: str) -> torch.Tensor:
    """Return a uint8 or float32 tensor on the same device, outside of autograd."""
    if tensor.is_nested or tensor.layout != torch.strided:
        raise InputError(f"{name}: a sparse or nested tensor is not accepted; use .to_dense()")
    if tensor.is_meta:
        raise InputError(f"{name}: a tensor on device 'meta' holds no values; give a real one")
    if tensor.dtype != torch.uint8 and not tensor.is_floating_point():
        kind = str(tensor.dtype).removeprefix("torch.")
        raise InputError(_dtype_message(kind, tensor.dtype == torch.bool, name))
    _check_shape(tuple(tensor.shape), name)
    plain = tensor.detach()
    return (plain.float() if plain.is_floating_point() else plain).contiguous()


def _dtype_message(dtype: str, is_bool: bool, name: str) -> str:
    """Say why ``dtype`` is refused and how to convert it."""
    how = (
        "multiply by 255 and convert to uint8"
        if is_bool
        else "convert to uint8 if its values are 0 to 255, else scale and convert to float32"
    )
    return f"{name}: element type {show(dtype)} is not accepted, only uint8 and floats; {how}"


def _check_shape(shape: tuple[int, ...], name: str) -> None:
    """Raise InputError unless ``shape`` is that of at least one image of at least one pixel."""
    if not 2 <= len(shape) <= 4:
        raise InputError(f"{name}: shape {shape} is not that of images; {_SHAPES}: reshape it")
    if 0 in shape:
        raise InputError(f"{name}: shape {shape} is empty; {_SHAPES}, each at least 1")


def _check_finite(images: torch.Tensor, name: str) -> None:
    """Raise InputError if any value is NaN or infinite, saying how many and where the first is."""
    # Both ends are NaN if any value is: this needs no second array, unlike isfinite.
    if images.dtype == torch.uint8 or bool(torch.stack(images.aminmax()).isfinite().all()):
        return
    bad = images.isfinite().logical_not().flatten()
    first = np.unravel_index(int(bad.to(torch.uint8).argmax()), images.shape)
    raise InputError(
        f"{name}: {int(bad.sum())} of {bad.numel()} values are NaN or infinite in float32, the "
        f"first at index {tuple(map(int, first))}; remove or replace them (numpy.nan_to_num)"
    )


def read_npy(path: StrPath) -> Array:
    """Read the one numeric array of a ``.npy`` file; what is wrong with it is an InputError."""
    file = Path(path)
    with open_file(file) as stream, _damage_named(file):
        return _read_array(stream, show(file), os.fstat(stream.fileno()).st_size)


def read_npz(path: StrPath, choose: Choose) -> dict[str, Array]:
    """Read arrays of a ``.npz`` archive; what is wrong with it is an InputError.

    Args:
        path: the file.
        choose: is given the names of all arrays and returns those to read.
    """
    file = Path(path)
    with open_file(file) as stream, _damage_named(file), zipfile.ZipFile(stream) as archive:
        size = os.fstat(stream.fileno()).st_size
        members = {
            info.filename.removesuffix(".npy"): info
            for info in archive.infolist()
            if info.filename.endswith(".npy")
        }
        arrays = {}
        for key in choose(list(members)):
            name = f"{show(key)} in {show(file)}"
            _check_member(members[key], name, size)
            with archive.open(members[key]) as member:
                arrays[key] = _read_array(member, name, members[key].file_size)
        return arrays


@contextmanager
def _damage_named(file: Path) -> Iterator[None]:
    """Turn any failure to parse ``file`` into an InputError that names it.

    Any at all: NumPy parses a header as Python source and zipfile trusts offsets, so a damaged
    file can raise anything from SyntaxError to struct.error.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"{show(file)} is damaged or not NumPy's: {reason(error)}; "
            "write it again with numpy.save or numpy.savez"
        ) from error


def _check_member(info: zipfile.ZipInfo, name: str, archive_size: int) -> None:
    """Raise InputError if the sizes that the archive claims cannot be true."""
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise InputError(f"{name} is compressed in a way NumPy does not; write it with numpy.savez")
    most = min(info.compress_size, archive_size) * DEFLATE_MAX_RATIO
    if info.file_size > most:
        raise InputError(f"{name} claims {info.file_size} bytes, more than the file can hold")


def _read_array(stream: IO[bytes], name: str, size: int) -> Array:
    """Read header and values of one array from a stream that is ``size`` bytes long."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a damaged header can look like odd Python source
        version = np.lib.format.read_magic(stream)
        if version not in ((1, 0), (2, 0)):  # 3.0 is written for named fields only
            raise InputError(f"{name} has format version {version}; save a plain numeric array")
        if version == (1, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
        else:
            shape, fortran, dtype = np.lib.format.read_array_header_2_0(stream)
    if dtype.kind not in "buifc":
        raise InputError(f"{name} holds values of type {show(dtype)}; save uint8 or float32 values")
    if any(length < 0 for length in shape):
        raise InputError(f"{name} is damaged: its header says shape {shape}; write it again")
    count = math.prod(shape) * dtype.itemsize
    held = size - stream.tell()
    if count == held:
        values = read_up_to(stream, count + 1)
        held = len(values)
    if count != held:
        raise InputError(
            f"{name} is {'too short' if held < count else 'too long'}: its header promises shape "
            f"{show(shape)} of {dtype} ({count} bytes), it holds {held}; write it again"
        )
    return np.ndarray(shape, dtype, values, order="F" if fortran else "C")
