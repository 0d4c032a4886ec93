"""From words to files: which function draws which kind, and where its picture goes."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from vaebench.errors import InputError
from vaebench.plots import style
from vaebench.plots.curves import draw_curves
from vaebench.plots.explorer import make_page
from vaebench.plots.film import make_film
from vaebench.plots.latent import draw_latent
from vaebench.plots.manifold import draw_manifold
from vaebench.plots.options import Options, UnsuitedError, choose
from vaebench.plots.run import Run
from vaebench.plots.sheets import (
    draw_interpolations,
    draw_reconstructions,
    draw_samples,
    draw_styles,
    draw_traversals,
)
from vaebench.runs.folder import FRAMES

CHARTS = ("latent", "curves")  # drawn in a few colours; the others may show coloured images
OF_ONE_RUN: dict[str, Callable[[Run, Options], Figure]] = {
    "manifold": draw_manifold,
    "latent": draw_latent,
    "reconstructions": draw_reconstructions,
    "samples": draw_samples,
    "styles": draw_styles,
    "interpolate": draw_interpolations,
    "traverse": draw_traversals,
}


def fill(
    folders: Sequence[Path], words: Sequence[str], out: Path | None, options: Options
) -> list[Path]:
    """Draw the kinds that the words name and give the files; see :func:`vaebench.plots.draw`."""
    kinds = choose(tuple(words))
    if not folders:
        raise InputError("there is no run to draw: give a run folder")
    if len(folders) > 1 and kinds != ("curves",):
        raise InputError("only curves can show several runs: give one run, or the kind curves")
    runs = [Run(folder, options.data_dir) for folder in folders]
    out = style.writable_folder(out or folders[0] / "pictures")
    files = []
    for kind in kinds:
        if kind not in words and _nobody_misses(kind, runs[0]):
            continue
        try:
            files.append(_draw_one(kind, runs, out, options))
        except UnsuitedError as reason:
            if kind in words:
                raise
            logging.getLogger("vaebench").warning("%s is left out: %s", kind, reason)
    return files


def _nobody_misses(kind: str, run: Run) -> bool:
    """Whether it is of what the training was not asked for: labels, or a film."""
    return (kind == "styles" and not run.classes) or (
        kind == "film" and not (run.folder / FRAMES).exists()
    )


def _draw_one(kind: str, runs: list[Run], out: Path, options: Options) -> Path:
    if kind == "explore":
        return style.write(make_page(runs[0]).encode(), out / "explore.html")
    if kind == "film":
        return style.write(make_film(runs[0]), out / "film.gif")
    with style.look():
        figure = draw_curves(runs) if kind == "curves" else OF_ONE_RUN[kind](runs[0], options)
        return style.write(style.png(figure, few_colours=kind in CHARTS), out / f"{kind}.png")
