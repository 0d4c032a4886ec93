"""Built-in digits, drawn by program and shaped like MNIST, so that no network is needed.

A digit is a few smooth pen lines through control points. Every image shifts those points, bends,
slants and stretches the whole, and inks it with a pen of its own; size and place follow MNIST's
rule: the longer side fills 20 pixels, the centre of mass lies about in the middle.

Drawing is linear algebra. A spline is a matrix times its control points. Ink is a row of round
Gaussian blobs; a blob is a column times a row, so one matrix product adds up all blobs of an image.
Figures measured on these digits are not figures on MNIST.
"""

import contextlib
import math
import os
import tempfile
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vaebench.errors import InputError

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]

VERSION = 1  # of the drawing: raise it whenever the same seed gives other bytes
TRAIN, TEST = 0, 1  # two streams of random numbers that share nothing
BLOCK = 500  # images drawn together; each block has its own generator, so n changes no image
BLOBS = 80  # ink blobs per image, less than a pixel apart
SIDE, BOX = 28, 20.2  # pixels: the image, and the longer side of the digit in it
MIDDLE = 14.0  # MNIST's centre of mass, as a pixel index
PAPER, BLACK = 0.08, 1.0  # ink below PAPER leaves no mark, ink above BLACK no further one
RADIUS = 1.25  # pixels: half the width of a usual line
SOFT = 0.45  # pixels: how slowly the grey edge of a line fades

# (digit, how common, pen lines), in order of digits. Points are "x,y" in percent of the
# digit's height, y downwards; "|" begins a new line. Lines that name the same point stay joined
# when it is shifted, in a corner; a line that ends on its first point is a smooth closed loop.
TEMPLATES = (
    (0, 3, "35,0 10,17 0,50 10,83 35,100 60,83 70,50 60,17 35,0"),
    (0, 2, "48,3 26,3 7,22 0,55 12,87 36,100 61,84 70,50 60,17 38,1 27,8"),
    (1, 6, "30,0 29,50 28,100"),
    (1, 2, "20,15 34,0 | 34,0 33,50 33,100"),
    (1, 1, "18,16 34,0 | 34,0 33,50 33,99 | 6,100 33,99 62,98"),
    (2, 2, "4,20 20,3 42,0 58,16 50,42 26,72 0,98 | 0,98 35,96 70,97"),
    (2, 2, "6,18 24,1 48,3 57,22 46,52 25,82 5,95 0,84 14,78 38,92 72,93"),
    (3, 3, "4,12 26,0 50,10 47,32 22,46 | 22,46 50,54 60,76 42,97 16,99 0,86"),
    (3, 1, "4,2 32,3 58,1 | 58,1 22,42 | 22,42 50,49 60,73 42,97 16,99 0,88"),
    (3, 1, "4,14 24,0 48,8 47,30 26,42 15,46 28,51 53,58 60,78 40,98 14,98 0,85"),
    (4, 3, "8,0 1,30 6,50 32,55 62,46 | 60,4 56,50 52,100"),
    (4, 2, "46,0 24,28 0,60 | 0,60 35,60 70,58 | 46,0 45,50 43,100"),
    (4, 1, "14,4 4,34 0,54 | 0,54 34,54 70,52 | 50,20 46,60 44,100"),
    (5, 2, "62,2 38,2 15,3 | 15,3 10,44 | 10,44 36,38 60,54 60,80 36,99 0,93"),
    (5, 2, "16,6 12,26 14,44 38,46 58,60 56,84 32,100 2,92 | 17,5 42,4 66,0"),
    (6, 3, "46,0 22,22 4,56 8,86 30,100 54,88 55,66 36,56 16,66 7,82"),
    (6, 1, "30,0 10,30 0,66 14,96 38,97 50,78 36,60 16,64 3,78"),
    (7, 3, "2,6 30,5 60,4 | 60,4 40,45 24,100"),
    (7, 1, "2,6 30,5 60,4 | 60,4 40,45 24,100 | 16,54 36,51 58,48"),
    (7, 1, "2,20 6,5 | 6,5 32,7 60,3 | 60,3 44,40 34,100"),
    (8, 3, "56,14 36,0 12,12 16,34 38,52 55,74 44,97 20,98 5,80 18,58 42,42 56,14"),
    (8, 2, "60,6 38,0 14,12 18,36 42,54 56,76 42,98 16,96 6,76 22,56 46,36 62,10"),
    (9, 2, "56,10 34,0 8,12 2,36 22,48 46,36 57,8 | 57,8 54,50 46,100"),
    (9, 1, "54,14 34,0 10,12 6,34 24,46 44,36 54,14 | 54,14 58,50 46,90 22,100 2,90"),
    (9, 1, "58,16 34,0 8,12 3,34 20,46 44,38 58,16 | 58,16 48,60 34,100"),
)


class Hand(NamedTuple):
    """All T templates, padded to the same number C of control points."""

    digit: npt.NDArray[np.int64]  # (T,)
    reach: npt.NDArray[np.float64]  # (T,) running total of shares; 1 is one digit's total
    points: Floats  # (T, C, 2) x and y, height 1; zeros beyond the template's own points
    mid: Floats  # (T, BLOBS, C) matrix: control points -> the middle of each bit of line
    step: Floats  # (T, BLOBS, C) matrix: control points -> the bit's end minus its start


def _spline(line: list[int], gaps: npt.NDArray[np.float64], count: int, size: int) -> Floats:
    """(count + 1, size) matrix: control points -> points along a Catmull-Rom line.

    It goes through the control points whose indices are in `line` and which lie `gaps` apart.
    """
    eye = np.eye(size)[line]
    closed = line[0] == line[-1]
    before = eye[-2] if closed else 2 * eye[0] - eye[1]
    after = eye[1] if closed else 2 * eye[-1] - eye[-2]
    knots = np.stack([before, *eye, after])
    along = np.append(0, np.cumsum(gaps))
    at = np.interp(np.linspace(0, along[-1], count + 1), along, np.arange(len(line)))
    i = np.minimum(at.astype(int), len(line) - 2)
    t = (at - i)[:, None]
    curve = knots[i] * (-t + 2 * t**2 - t**3) + knots[i + 1] * (2 - 5 * t**2 + 3 * t**3)
    curve += knots[i + 2] * (t + 4 * t**2 - 3 * t**3) + knots[i + 3] * (t**3 - t**2)
    matrix: Floats = (curve / 2).astype(np.float32)
    return matrix


@cache
def _hand() -> Hand:
    """The templates as arrays, worked out once, when first needed."""
    texts = [[line.split() for line in text.split("|")] for _, _, text in TEMPLATES]
    names = [list(dict.fromkeys(point for line in lines for point in line)) for lines in texts]
    size = max(map(len, names))
    points = np.zeros((len(texts), size, 2), np.float32)
    mid, step = np.zeros((2, len(texts), BLOBS, size), np.float32)
    for k, (lines, name) in enumerate(zip(texts, names, strict=True)):
        points[k, : len(name)] = [[float(v) / 100 for v in point.split(",")] for point in name]
        index = [[name.index(point) for point in line] for line in lines]
        gaps = [np.hypot(*np.diff(points[k, line], axis=0).T) for line in index]
        total = np.cumsum([0, *(gap.sum() for gap in gaps)])
        ends = np.rint(total / total[-1] * BLOBS).astype(int)  # blobs in proportion to length
        for line, gap, a, b in zip(index, gaps, ends[:-1], ends[1:], strict=True):
            curve = _spline(line, gap, b - a, size)
            mid[k, a:b] = (curve[1:] + curve[:-1]) / 2
            step[k, a:b] = curve[1:] - curve[:-1]
    digit = np.array([d for d, _, _ in TEMPLATES])
    common = np.array([w for _, w, _ in TEMPLATES], float)
    share = common / np.bincount(digit, common)[digit]
    return Hand(digit, np.cumsum(share), points, mid, step)


def _choose(rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """(BLOCK,) template numbers: every digit equally often, in random order."""
    digits = rng.permutation(np.arange(BLOCK) % 10)
    reach = _hand().reach  # digit d owns the stretch from d to d + 1
    which = np.searchsorted(reach, digits + rng.random(BLOCK), side="right")
    return which.clip(0, len(reach) - 1)


def _write(rng: np.random.Generator, which: npt.NDArray[np.int64]) -> tuple[Floats, Floats]:
    """Lines of ink in the writer's own units: middles (n, BLOBS, 2) and steps of the same shape."""
    hand, n = _hand(), len(which)

    def normal(*shape: int) -> Floats:
        return rng.standard_normal((n, *shape), np.float32)

    points = hand.points[which]
    care = np.exp(0.35 * normal(1, 1))  # some hands shake more than others
    points = points + 0.033 * care * normal(*points.shape[1:])
    points -= np.array([0.32, 0.5], np.float32)  # so that bending and turning leave the middle
    x, y = points[..., 0], points[..., 1]
    squares = np.stack([x * x, x * y, y * y], axis=-1)  # (n, C, 3): a gentle bend of the paper
    points = points + squares @ (0.14 * normal(3, 2))
    turn, slant = 0.09 * normal(), 0.12 + 0.23 * normal()
    wide, cos, sin = np.exp(0.17 + 0.18 * normal()), np.cos(turn), np.sin(turn)
    # Columns of stretch, then slant (to the right: y runs downwards), then turn.
    matrix = np.stack([wide * cos, wide * sin, -slant * cos - sin, cos - slant * sin], axis=-1)
    points = points @ matrix.reshape(n, 2, 2)
    return hand.mid[which] @ points, hand.step[which] @ points


def _ink(rng: np.random.Generator, which: npt.NDArray[np.int64]) -> tuple[Floats, Floats, Floats]:
    """The blobs of n images, sized and placed as MNIST's digits are.

    Their places in pixels (n, BLOBS, 2), standard deviations in pixels (n, 1), and the ink in the
    middle of each (n, BLOBS), of which 1 in all makes black.
    """
    xy, step = _write(rng, which)
    n = len(which)
    radius = RADIUS * np.exp(0.22 * rng.standard_normal((n, 1), np.float32)).clip(0.6, 1.9)
    # At `radius` from the middle of a line the ink is 0.5, and fades equally fast for every pen.
    spread = np.sqrt(SOFT * radius)
    height = 0.5 * np.exp(radius / (2 * SOFT))
    phase, waves = rng.random((2, n, 1), np.float32)
    angle = 2 * np.pi * (phase + (0.5 + waves) * np.linspace(0, 1, BLOBS, dtype=np.float32))
    height = height * (1 + 0.25 * np.sin(angle))  # pressure comes and goes
    edge = spread * np.sqrt(2 * np.log(height.max(1, keepdims=True) / PAPER))
    extent = (xy.max(1) - xy.min(1)).max(1, keepdims=True)
    scale = ((BOX - 2 * edge) / extent)[:, None]  # (n, 1, 1)
    xy, length = xy * scale, np.hypot(*np.moveaxis(step * scale, -1, 0))
    mass = (length * np.sqrt(np.log(2 * height)))[..., None]  # length times width of line
    centre = (xy * mass).sum(1, keepdims=True) / mass.sum(1, keepdims=True)
    # MNIST moves digits by whole pixels, which leaves their centres up to half a pixel off.
    place = MIDDLE + 0.8 * (rng.random((n, 1, 2), np.float32) - 0.5)
    # Blobs a small way apart pile up to `height` along the middle of their line.
    return xy - centre + place, spread, height * length / (spread * math.sqrt(2 * math.pi))


def _render(xy: Floats, spread: Floats, weight: Floats) -> Bytes:
    """(n, SIDE, SIDE) grey values, 0 to 255, of the blobs that `_ink` describes."""
    grid = np.arange(SIDE, dtype=np.float32)
    blob = np.exp(-0.5 * ((xy[..., None] - grid) / spread[..., None, None]) ** 2)
    # Whole numbers: their sums, far below 2**24, are exact in float32, hence the same bytes in
    # whatever order (and on however many threads) the matrix product adds them.
    columns = np.rint(512 * blob[:, :, 0])
    rows = np.rint(512 * weight[..., None] * blob[:, :, 1])
    total = (rows.transpose(0, 2, 1) @ columns) / np.float32(512**2)
    grey = ((total - PAPER) / (BLACK - PAPER)).clip(0, 1)
    image: Bytes = np.rint(255 * grey).astype(np.uint8)
    return image


def _draw(n: int, seed: int, stream: int) -> tuple[Bytes, Bytes]:
    """Images (n, 28, 28) and labels (n,): the first n of an endless row."""
    images, labels = np.empty((n, SIDE, SIDE), np.uint8), np.empty(n, np.uint8)
    for block, start in enumerate(range(0, n, BLOCK)):
        rng = np.random.default_rng([stream, block, seed])
        which = _choose(rng)
        part = slice(start, min(start + BLOCK, n))
        images[part] = _render(*_ink(rng, which))[: n - start]
        labels[part] = _hand().digit[which][: n - start]
    return images, labels


def _check(n: int, seed: int) -> None:
    """Refuse, in one line, what cannot be drawn."""
    if n < 1 or seed < 0:
        raise InputError(f"strokes need n >= 1 images and a seed >= 0, got n={n} and seed={seed}")


def _load(path: Path, shapes: list[tuple[int, ...]]) -> list[Bytes] | None:
    """What the cache file holds, or None if it is absent or not what it should be."""
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            arrays = [file[f"arr_{i}"] for i in range(len(shapes))]
    except Exception:  # a damaged zip raises a dozen kinds of error, and all mean: draw again
        return None
    fit = all(a.shape == s and a.dtype == np.uint8 for a, s in zip(arrays, shapes, strict=True))
    return arrays if fit else None


def _save(path: Path, arrays: list[Bytes]) -> None:
    """Put the cache file in place at one stroke; a folder that takes no files is no error."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".strokes-") as folder:
            part = Path(folder) / path.name
            np.savez(part, *arrays)
            os.replace(part, path)


def _default_folder() -> Path:
    """The user's cache folder, by the XDG rule: a relative path there counts as none."""
    folder = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (folder if folder.is_absolute() else Path.home() / ".cache") / "vaebench"


def make_strokes(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images (n, 28, 28) uint8, bright ink on 0, and labels (n,) uint8, 0 to 9 in random order.

    The same `seed` gives the same bytes, and a smaller `n` the first `n` of them. Classes are
    equally frequent. No global random generator is used.
    """
    _check(n, seed)
    images, labels = _draw(n, seed, TRAIN)
    return torch.from_numpy(images), torch.from_numpy(labels)


def load_strokes(
    n_train: int = 60_000, n_test: int = 10_000, seed: int = 0, cache_dir: Path | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(train images, train labels, test images, test labels), made once and then cached.

    Shapes and values as `make_strokes`; the training part is `make_strokes(n_train, seed)`, the
    test part comes from random numbers of its own and does not depend on `n_train`.
    `cache_dir` defaults to `$XDG_CACHE_HOME/vaebench` or `~/.cache/vaebench`.
    """
    _check(n_train, seed)
    _check(n_test, seed)
    folder = _default_folder() if cache_dir is None else cache_dir
    path = folder / f"strokes-v{VERSION}-seed{seed}-{n_train}+{n_test}.npz"
    arrays = _load(path, [(n_train, SIDE, SIDE), (n_train,), (n_test, SIDE, SIDE), (n_test,)])
    if arrays is None:
        arrays = [*_draw(n_train, seed, TRAIN), *_draw(n_test, seed, TEST)]
        _save(path, arrays)
    train, train_labels, test, test_labels = map(torch.from_numpy, arrays)
    return train, train_labels, test, test_labels
