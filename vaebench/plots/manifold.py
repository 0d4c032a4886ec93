"""The learned manifold: what the decoder makes of a grid of points in the latent plane.

Source: Kingma & Welling, Auto-Encoding Variational Bayes (arXiv 1312.6114), figure 4.
"""

import torch
from matplotlib.figure import Figure

from vaebench.errors import InputError
from vaebench.plots import style
from vaebench.plots.options import Options
from vaebench.plots.run import Run
from vaebench.plots.sheets import mosaic
from vaebench.training.callbacks import square_of

TARGET = 1120  # pixels; the picture's side is near it, in whole pixels per image pixel
LEFT, BELOW = 92, 70  # pixels for the axes' words


def draw_manifold(run: Run, options: Options) -> Figure:
    """Draw the decoded grid: (grid x grid) images, first latent to the right, second upwards."""
    low, high = options.percentiles
    # Equal steps in probability: the inverse of the normal distribution function spreads them.
    ticks = torch.special.ndtri(torch.linspace(low, high, options.grid))
    label = _label(run, options)
    pictures = run.decode(run.plane.lift(square_of(ticks)), label)
    caption = (
        f"{run.caption()} Each image is the decoder's mean at one point; points are spaced by "
        f"equal steps of {run.normal}'s probability, from {low:g} to {high:g}."
        f"{run.plane.caption()}"
    )
    title = "The learned manifold" if run.plane.whole else "A plane through the learned manifold"
    title += "" if label is None else f" of class {label}"
    return _lay_out(pictures, ticks, run.plane.axis_names(), title, caption)


def _label(run: Run, options: Options) -> int | None:
    """The class to show; None where the model takes no labels."""
    if options.label and options.label >= run.classes:
        has = f"{run.classes} classes, from 0" if run.classes else "none"
        raise InputError(f"--label is {options.label}: {run.folder} was trained on {has}")
    return options.label if run.classes else None


def _lay_out(
    pictures: torch.Tensor, ticks: torch.Tensor, names: tuple[str, str], title: str, caption: str
) -> Figure:
    count, (height, width) = len(ticks), pictures.shape[2:]
    scale = max(1, round(TARGET / (count * max(height, width))))
    across, down = count * width * scale, count * height * scale
    full_width = style.MARGIN + LEFT + across + style.MARGIN
    foot = style.caption_height(caption, full_width)
    fig = style.figure(full_width, style.HEADING + down + BELOW + foot)
    ax = style.axes(fig, style.MARGIN + LEFT, style.HEADING, across, down)
    ax.imshow(mosaic(pictures, count), interpolation="nearest", aspect="auto")
    ax.spines[:].set_visible(False)
    values, places = round_values(ticks)
    words = [f"{value:g}".replace("-", "−") for value in values]
    ax.set_xticks([(place + 0.5) * width - 0.5 for place in places], words)
    ax.set_yticks([(count - place - 0.5) * height - 0.5 for place in places], words)
    ax.set_xlabel(names[0])
    ax.set_ylabel(names[1])
    style.annotate(fig, title, caption)
    return fig


def round_values(ticks: torch.Tensor) -> tuple[list[float], list[float]]:
    """Give round numbers within the grid's values, and where they lie, counted in images.

    Places are found by probability, in which the grid is even: they lie between images, and the
    further from 0 the closer together.
    """
    ends = torch.special.ndtr(ticks[[0, -1]])
    reach = float(ticks.abs().max())
    step = 0.5 if reach <= 2 else 1.0
    values = [k * step for k in range(-int(reach / step), int(reach / step) + 1)]
    inside = [v for v in values if float(ticks[0]) <= v <= float(ticks[-1])]
    share = (torch.special.ndtr(torch.tensor(inside)) - ends[0]) / (ends[1] - ends[0])
    return inside, (share * (len(ticks) - 1)).tolist()
