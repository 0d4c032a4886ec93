"""Pictures of a training: latent plane, reconstructions, samples, curves, a page to explore.

Matplotlib and torch are loaded by the first picture drawn, not by importing this package. May
import every room but ``cli``. To add a picture: its name in ``options.KINDS``, a function of a run
and the options that gives a figure, a line in ``album.OF_ONE_RUN``; ``style`` has its look.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from vaebench.plots.options import KINDS, Options

__all__ = ["KINDS", "Options", "draw"]


def draw(
    run_dir: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    kinds: Sequence[str] = ("all",),
    out: str | os.PathLike[str] | None = None,
    options: Options | None = None,
) -> list[Path]:
    """Draw pictures of a run: a PNG per kind, and an HTML file for ``explore``.

    Args:
        run_dir: a run folder; several for ``curves``, which share its axes.
        kinds: from :data:`KINDS`, or ``"all"``, which leaves out, with a notice, a kind that does
            not suit the model.
        out: folder to write to, made if need be; default: ``pictures`` in the run folder.
        options: what the pictures show; default: ``Options()``.

    Returns:
        The files written, in the order of ``kinds``.

    Raises:
        InputError: no such run or kind, data that is not found, a folder that cannot be written.
    """
    from vaebench.plots.album import fill

    runs = [run_dir] if isinstance(run_dir, str | os.PathLike) else list(run_dir)
    target = None if out is None else Path(out)
    return fill([Path(run) for run in runs], kinds, target, options or Options())
