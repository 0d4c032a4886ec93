"""One clear line for everything that is no file or array of images, and for damage of any kind."""

import gzip
import io
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.files.made import NAMES, four_files, idx, npy, npz, pixels, put, refusal
from vaebench.data.arrays import read_npy
from vaebench.data.load import load_dataset, read_idx, read_images
from vaebench.errors import InputError

NAN = np.float32("nan")
GOOD = pixels(4)
BAD_ARRAYS: dict[str, tuple[Any, str]] = {
    "list": ([[1.0, 2.0]], "list"),
    "none": (None, "NoneType"),
    "number": (3, "int"),
    "int64": (GOOD.astype(np.int64), "int64"),
    "int8": (GOOD.astype(np.int8), "int8"),
    "uint16": (GOOD.astype(">u2"), "u2"),
    "bool": (GOOD > 9, "multiply by 255"),
    "complex": (GOOD.astype(np.complex64), "complex64"),
    "object": (GOOD.astype(object), "object"),
    "string": (GOOD.astype(str), "<U"),
    "bytes": (GOOD.astype("S3"), "S3"),
    "datetime": (np.zeros((2, 3), "M8[s]"), "datetime64"),
    "structured": (np.zeros((2, 3), [("a\n", "u1")]), "only uint8 and floats"),
    "masked": (np.ma.masked_array(GOOD, mask=False), "masked"),
    "0-d": (np.array(1.0), "shape ()"),
    "1-d": (GOOD.ravel(), "shape (80,)"),
    "5-d": (GOOD[None, None], "shape (1, 1, 4, 5, 4)"),
    "no images": (GOOD[:0], "shape (0, 5, 4)"),
    "no pixels": (GOOD[:, :0], "shape (4, 0, 4)"),
    "nan": (np.array([[1, 2], [NAN, NAN]], np.float32), "2 of 4 values"),
    "inf": (np.array([[1, 2], [3, -np.inf]]), "(1, 1)"),
    "too large": (np.full((1, 2), 1e300), "2 of 2 values"),
    "tensor int64": (torch.zeros(2, 3, dtype=torch.int64), "int64"),
    "tensor bool": (torch.zeros(2, 3, dtype=torch.bool), "multiply by 255"),
    "tensor complex": (torch.zeros(2, 3, dtype=torch.complex64), "complex64"),
    "tensor 1-d": (torch.zeros(3), "shape (3,)"),
    "tensor empty": (torch.zeros(0, 3), "empty"),
    "tensor nan": (torch.full((2, 3), float("nan")), "(0, 0)"),
    "tensor half inf": (torch.full((2, 3), float("inf")).half(), "6 of 6"),
    "tensor sparse": (torch.eye(3).to_sparse(), "to_dense"),
    "tensor meta": (torch.zeros(2, 3, device="meta"), "meta"),
}


@pytest.mark.parametrize("case", BAD_ARRAYS)
def test_bad_arrays(case: str) -> None:
    array, word = BAD_ARRAYS[case]
    refusal(lambda: read_images(array), "images", word)


PLAIN, PACKED = idx(GOOD), gzip.compress(idx(GOOD))
NPY, NPZ = npy(GOOD), npz(x_train=GOOD, x_test=GOOD)


def header(descr: str, shape: object, body: bytes = b"", version: int = 1) -> bytes:
    """Return a .npy file with a header of one's own."""
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    length = struct.pack("<H" if version == 1 else "<I", len(text))
    return b"\x93NUMPY" + bytes([version, 0]) + length + text + body


def zipped(content: bytes, method: int = zipfile.ZIP_DEFLATED, name: str = "x_train.npy") -> bytes:
    """Return a zip archive of one member."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        archive.writestr(name, content)
    return out.getvalue()


def patched(content: bytes, at: int, new: bytes) -> bytes:
    """Return ``content`` with the bytes from ``at`` on replaced by ``new``."""
    at %= len(content)
    return content[:at] + new + content[at + len(new) :]


def lying_zip(size: int) -> bytes:
    """Return an archive that claims one member of ``size`` bytes, in both places."""
    content = zipped(header("'|u1'", (1 << 40, 1)))
    new = struct.pack("<I", size)
    return patched(patched(content, 22, new), content.rindex(b"PK\x01\x02") + 24, new)


HUGE = struct.pack(">BBBBIII", 0, 0, 8, 3, 4_000_000_000, 4_000_000_000, 4_000_000_000)
BAD_FILES: dict[str, tuple[bytes, str]] = {
    "empty file": (b"", "begins with nothing"),
    "text": (b"label,pixel0\n5,0\n", "neither .npy, .npz nor IDX"),
    "png": (b"\x89PNG\r\n\x1a\n" + bytes(50), "neither .npy"),
    "pickle": (pickle.dumps(GOOD), "neither .npy"),
    "idx magic only": (b"\0\0", "IDX"),
    "idx magic not zero": (b"\0\1\x08\3" + PLAIN[4:], "begins with"),
    "idx int8": (idx(GOOD, 0x09), "int8"),
    "idx int16": (idx(GOOD, 0x0B), "int16"),
    "idx int32": (idx(GOOD, 0x0C), "int32"),
    "idx unknown type": (idx(GOOD, 0x77), "0x77"),
    "idx no dimensions": (b"\0\0\x08\0", "no values"),
    "idx 5 dimensions": (idx(GOOD[None, None]), "5 dimensions"),
    "idx 255 dimensions": (b"\0\0\x08\xff" + bytes(100), "too short"),
    "idx zero size": (idx(GOOD[:, :0]), "no values"),
    "idx header cut": (PLAIN[:9], "within its header"),
    "idx no body": (PLAIN[:16], "too short"),
    "idx short by one": (PLAIN[:-1], "too short"),
    "idx long by one": (PLAIN + b"\0", "too long"),
    "idx absurd size": (HUGE + bytes(100), "too short"),
    "idx labels": (idx(GOOD.ravel()), "shape (80,)"),
    "idx one image": (idx(GOOD[:1]), "at least 2"),
    "idx nan": (idx(np.full((2, 2), np.nan)), "NaN"),
    "gz absurd size": (gzip.compress(HUGE + bytes(100)), "too short"),
    "gz of short": (gzip.compress(PLAIN[:-1]), "too short"),
    "gz of long": (gzip.compress(PLAIN + b"\0"), "too long"),
    "gz bomb": (gzip.compress(PLAIN + bytes(1 << 24)), "too long"),
    "gz of nothing": (gzip.compress(b""), "begins with nothing"),
    "gz of npy": (gzip.compress(NPY), "not an IDX file"),
    "gz cut in header": (PACKED[:5], "damaged"),
    "gz cut in body": (PACKED[:40], "damaged"),
    "gz cut in checksum": (PACKED[:-3], "damaged"),
    "gz wrong checksum": (patched(PACKED, -8, b"\0\0\0\0"), "CRC"),
    "gz wrong length": (patched(PACKED, -4, b"\0\0\0\0"), "damaged"),
    "gz wrong method": (patched(PACKED, 2, b"\7"), "damaged"),
    "gz garbage in body": (patched(PACKED, 12, b"\xff" * 20), "damaged"),
    "gz garbage behind": (PACKED + b"garbage", "damaged"),
    "npy magic only": (NPY[:6], "damaged"),
    "npy header cut": (NPY[:40], "damaged"),
    "npy no body": (NPY[:128], "it holds 0"),
    "npy short": (NPY[:-1], "too short"),
    "npy long": (NPY + b"\0", "too long"),
    "npy absurd size": (header("'|u1'", (1 << 40, 1 << 40)), "too short"),
    "npy negative size": (header("'|u1'", (-1, -4), bytes(4)), "shape (-1, -4)"),
    "npy zero size": (npy(GOOD[:0]), "empty"),
    "npy version 9": (patched(NPY, 6, b"\x09"), "(9, 0)"),
    "npy version 3": (header("'|u1'", (2, 2), bytes(4), version=3), "(3, 0)"),
    "npy object": (header("'|O'", (2, 2), pickle.dumps([1])), "object"),
    "npy void": (header("'|V0'", (2, 2)), "type"),
    "npy string": (npy(GOOD.astype(str)), "<U3"),
    "npy fields": (npy(np.zeros((2, 2), [("a", "u1")])), "type"),
    "npy int32": (npy(GOOD.astype(np.int32)), "int32"),
    "npy bool": (npy(GOOD > 9), "bool"),
    "npy complex": (npy(GOOD.astype(complex)), "complex128"),
    "npy 1-d": (npy(GOOD.ravel()), "shape (80,)"),
    "npy nan": (npy(np.full((2, 2), np.nan)), "4 of 4"),
    "npy one image": (npy(GOOD[:1]), "at least 2"),
    "npy header no dict": (b"\x93NUMPY\1\0\x04\0[1]\n", "damaged"),
    "npy header no python": (b"\x93NUMPY\1\0\x06\0{'a':\n" + bytes(9), "damaged"),
    "npy header code": (header("__import__('os').abort()", (2, 2)), "damaged"),
    "npy header nested": (header("(" * 3000, (2, 2)), "damaged"),
    "npy shape no tuple": (header("'|u1'", "'x'"), "damaged"),
    "npz no zip": (b"PK\3\4" + bytes(60), "damaged"),
    "npz cut": (NPZ[:-10], "damaged"),
    "npz empty": (zipped(b"", name="readme.txt"), "no arrays"),
    "npz other names": (npz(a=GOOD, b=GOOD), "a, b"),
    "npz only test": (npz(x_test=GOOD, y_test=GOOD[:, 0, 0]), "x_train"),
    "npz damaged member": (patched(NPZ, 60, b"\xff" * 30), "own"),
    "npz member not npy": (zipped(b"no array"), "damaged"),
    "npz member short": (zipped(NPY[:-1]), "too short"),
    "npz member long": (zipped(NPY + b"\0"), "too long"),
    "npz member absurd": (zipped(header("'|u1'", (1 << 40, 1))), "too short"),
    "npz lying directory": (lying_zip(0xFFFF_0000), "more than the file can hold"),
    "npz bzip2": (zipped(NPY, zipfile.ZIP_BZIP2), "compressed"),
    "npz object": (zipped(header("'|O'", (2, 2), pickle.dumps([1]))), "object"),
    "npz encrypted": (patched(zipped(NPY), zipped(NPY).rindex(b"PK\1\2") + 8, b"\1"), "damaged"),
    "npz shapes differ": (npz(x_train=GOOD, x_test=GOOD[:, 1:]), "shape (5, 4)"),
    "npz types differ": (npz(train=GOOD, test=GOOD / 2), "float32"),
    "npz labels short": (npz(x_train=GOOD, y_train=np.arange(3)), "labels"),
    "npz labels float": (npz(x_train=GOOD, y_train=np.ones(4)), "labels"),
    "npz labels columns": (npz(x_train=GOOD, y_train=np.ones((4, 1), int)), "labels"),
    "npz one image": (npz(images=GOOD[:1]), "at least 2"),
    "npz int64": (npz(x_train=GOOD.astype(int)), "int64"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_files(tmp_path: Path, case: str) -> None:
    content, word = BAD_FILES[case]
    (tmp_path / "own").write_bytes(content)
    refusal(lambda: load_dataset("./own"), "own", word)


def test_bad_paths(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    os.symlink("nowhere", tmp_path / "link")
    put(tmp_path / "empty", {})
    put(tmp_path / "both" / "A" / "raw", four_files())
    put(tmp_path / "both" / "B" / "raw", four_files())
    part = four_files()
    del part[NAMES[3]]
    put(tmp_path / "part", part)
    put(tmp_path / "labels", {**four_files(), NAMES[1]: idx(np.zeros(7, np.uint8))})
    (put(tmp_path / "folder", part) / NAMES[3]).mkdir()
    accepted = ("auto, mnist, mnist5k, strokes", ".npz", NAMES[0])
    for data, words in {
        "foo": ("'foo'", *accepted),
        "MNIST": ("'MNIST'", *accepted),
        "": ("''", *accepted),
        "new\nline": ("new", *accepted),
        "nul\0": accepted,
        "\ud800": accepted,
        "x" * 5000: ("xxx", *accepted),
        "pipe": ("pipe", "regular file"),
        "/dev/zero": ("/dev/zero", "regular file"),
        "link": ("link", "No such file"),
        "empty": ("empty", "no set", *NAMES),
        "both": ("more than one set", "A", "B"),
        "part": ("part", NAMES[3], "missing"),
        "labels": ("labels", "12 images"),
        "folder": (NAMES[3], "regular file"),
    }.items():
        refusal(partial(load_dataset, data), *words)
    refusal(lambda: load_dataset(3), "int")  # type: ignore[arg-type]
    refusal(lambda: read_images(tmp_path / "none"), "none", "No such file")
    refusal(lambda: read_idx(tmp_path), "regular file")


def test_bad_data_dirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"")
    folders: list[Any] = ["file", "", 3, "nul\0", "\ud800"]
    for folder in folders:
        for data in ("auto", "mnist"):
            refusal(partial(load_dataset, data, folder), "data_dir", "folder")
    monkeypatch.setenv("VAEBENCH_DATA", "file")
    refusal(load_dataset, "data_dir")


def test_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own.npy").write_bytes(NPY)

    def refuse(*args: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("vaebench.data.idx.open", refuse, raising=False)
    refusal(lambda: load_dataset("own.npy"), "own.npy", "Permission denied")


# Damage of any kind

SETTINGS = settings(max_examples=200, deadline=None)


@st.composite
def damaged(draw: st.DrawFn, *originals: bytes) -> bytes:
    """Return a valid file cut off, or with bits flipped, or random from some byte on."""
    content = bytearray(draw(st.sampled_from(originals)))
    kind = draw(st.sampled_from(["random", "cut", "flip"]))
    if kind == "random":
        return bytes(content[: draw(st.integers(0, 24))]) + draw(st.binary(max_size=80))
    if kind == "cut":
        return bytes(content[: draw(st.integers(0, len(content)))])
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, min(len(content) - 1, draw(st.sampled_from([10, 130, 10**6])))))
        content[at] ^= 1 << draw(st.integers(0, 7))
    return bytes(content)


def valid_or_refused(read: Callable[[], Any]) -> None:
    """Call ``read``: it returns values or raises an InputError of one line, nothing else."""
    try:
        said = None if read().size else "nothing was read and nothing said\n"
    except InputError as error:
        said = str(error)
    assert said is None or said.isprintable()


@pytest.fixture(scope="session")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "own"


@SETTINGS
@given(content=damaged(PLAIN, PACKED, idx(np.ones((2, 3)))))
def test_fuzz_idx(scratch: Path, content: bytes) -> None:
    scratch.write_bytes(content)
    valid_or_refused(lambda: read_idx(scratch).numpy())


@SETTINGS
@given(content=damaged(NPY, npy(np.ones((2, 3), ">f8")), npy(np.asfortranarray(GOOD))))
def test_fuzz_npy(scratch: Path, content: bytes) -> None:
    scratch.write_bytes(content)
    valid_or_refused(lambda: read_npy(scratch))
    valid_or_refused(lambda: read_images(scratch).numpy())


@SETTINGS
@given(content=damaged(NPZ, zipped(NPY, zipfile.ZIP_STORED)))
def test_fuzz_npz(scratch: Path, content: bytes) -> None:
    scratch.write_bytes(content)
    valid_or_refused(lambda: read_images(scratch).numpy())
