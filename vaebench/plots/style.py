"""The look that all pictures share: colours, type, margins, and how a figure becomes a file.

Figures of images are laid out in pixels, so that an image's pixels can be whole numbers of the
figure's; charts by matplotlib, between a title and a caption.
Nothing here touches pyplot: no window, no global figure, no display needed.
"""

import contextlib
import io
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from vaebench.errors import InputError

DPI = 144
MARGIN = 28  # pixels, around everything
HEADING = 66  # pixels above the drawing: margin, title, air
LINE = 27  # pixels from one line of a caption to the next

INK, MUTED, FAINT = "#1a1a1a", "#595959", "#b0b0b0"

# Ten classes. Found by random search for the largest smallest distance between two of them, in
# Oklab, as seen with normal sight and, by the matrices of Machado et al. (2009), by people without
# the long-, middle- or short-wave cones: 0.129. (Petroff's ten reach 0.061, matplotlib's 0.007.)
# All contrast at least 1.49 with white and 2.4 with the explorer's dark plane. Digits that a VAE
# tends to put side by side (4, 7, 9; 3, 5, 8) have different hues.
CLASSES = (
    "#9b77fd",
    "#723f8f",
    "#0cbda2",
    "#a22421",
    "#a9cc15",
    "#14efb0",
    "#a46283",
    "#e75601",
    "#f797ff",
    "#2d41e2",
)

# Few lines, on white: Okabe and Ito's colours, so ordered that the first four, then five, differ
# most (0.189, 0.131 by the measure above); dashes tell them apart in grey.
LINES = ("#0072b2", "#d55e00", "#000000", "#56b4e9", "#e69f00", "#009e73", "#cc79a7")

_RC: dict[Any, Any] = {
    "font.family": ["DejaVu Sans"],  # matplotlib brings it along: the same letters everywhere
    "font.size": 9.0,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
}


@contextlib.contextmanager
def look() -> Iterator[None]:
    """Draw in this package's look, whatever the user's matplotlibrc says; put theirs back after."""
    with matplotlib.rc_context():
        # Not the backend: setting that imports pyplot.
        plain = {k: v for k, v in matplotlib.rcParamsDefault.items() if not k.startswith("backend")}
        settings: dict[Any, Any] = {**plain, **_RC}
        matplotlib.rcParams.update(settings)
        yield


def figure(width: int, height: int) -> Figure:
    """Make an empty white figure of ``width`` x ``height`` pixels, with no canvas but Agg's."""
    made = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor="white")
    FigureCanvasAgg(made)
    return made


def chart(width: int, height: int, title: str, caption: str, *, above: int = 0) -> Figure:
    """Make a figure with its words, and ``height`` pixels between them for axes yet to be added.

    Matplotlib lays those out, with all that is written around them, when the figure is rendered.
    ``above`` pixels more are left free between the title and them, for a legend.
    """
    below = caption_height(caption, width)
    whole = HEADING + above + height + below
    fig = figure(width, whole)
    annotate(fig, title, caption)
    area = (MARGIN / width, below / whole, 1 - 2 * MARGIN / width, height / whole)
    fig.set_layout_engine("constrained", rect=area)
    return fig


def axes(fig: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Add axes whose box lies ``left`` and ``top`` pixels from the figure's upper left corner."""
    full_width, full_height = size(fig)
    bottom = full_height - top - height
    return fig.add_axes(
        (left / full_width, bottom / full_height, width / full_width, height / full_height)
    )


def text(fig: Figure, left: float, top: float, words: str, **look: Any) -> None:
    """Write ``words`` with their upper left corner at pixels (left, top); ``look`` may differ."""
    width, height = size(fig)
    fig.text(left / width, 1 - top / height, words, **{"va": "top", **look})


def size(fig: Figure) -> tuple[int, int]:
    """Give the figure's width and height in pixels."""
    width, height = fig.get_size_inches() * fig.dpi
    return round(width), round(height)


def wrap(caption: str, width: int) -> list[str]:
    """Break a caption into the lines that fit a figure ``width`` pixels wide, keeping its own."""
    letters = max(20, int((width - 2 * MARGIN) / 9.2))  # pixels of a letter, on average
    return [line for part in caption.split("\n") for line in textwrap.wrap(part, letters)]


def caption_height(caption: str, width: int) -> int:
    """Give the pixels that a caption takes at the bottom of a figure, margins included."""
    return 20 + LINE * len(wrap(caption, width)) + MARGIN // 2


def annotate(fig: Figure, title: str, caption: str) -> None:
    """Write the title at the top and the caption at the bottom, both from the left margin."""
    width, height = size(fig)
    text(fig, MARGIN, MARGIN - 6, title, fontsize=11, fontweight="bold")
    top = height - caption_height(caption, width) + 20
    for number, line in enumerate(wrap(caption, width)):
        text(fig, MARGIN, top + LINE * number, line, color=MUTED, fontsize=8.5)


def png(fig: Figure, *, few_colours: bool = False) -> bytes:
    """Render a figure to the bytes of a PNG that holds nothing but pixels: no date, no program.

    A figure in greys is stored as such. ``few_colours`` keeps 256 of the thousands that smoothed
    edges make of a chart's dozen, in a third of the bytes; not for figures with coloured images.
    """
    canvas: Any = FigureCanvasAgg(fig)  # its methods are untyped
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[:, :, :3]
    image = Image.fromarray(np.ascontiguousarray(pixels))
    if (pixels == pixels[:, :, :1]).all():
        image = image.convert("L")
    elif few_colours:
        image = image.quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def write(content: bytes, path: Path) -> Path:
    """Write a file; InputError where that cannot be."""
    try:
        path.write_bytes(content)
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror}): choose --out") from error
    return path


def writable_folder(path: Path) -> Path:
    """Make the folder if need be; InputError where it cannot be made or written."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise InputError(
            f"--out {path} cannot be written ({error.strerror}): choose another folder"
        ) from error
    return path
