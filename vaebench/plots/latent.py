"""The encoded test set in the latent plane, by label, over the prior's contours."""

import math

import torch
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Circle
from torch import Tensor

from vaebench.plots import style
from vaebench.plots.options import Options
from vaebench.plots.plane import densest
from vaebench.plots.run import Run

SIDE = 1060  # pixels across and down, with what is written beside the square
CONTOURS = (0.5, 0.9, 0.99)  # the prior's probability inside


def draw_latent(run: Run, options: Options) -> Figure:
    """Draw a scatter of the test set's means, or of one sample of q(z|x) each."""
    mu, logvar = run.codes
    z, what = mu, "its mean under q(z|x)"
    if options.latent == "sample":
        generator = torch.Generator().manual_seed(options.seed)
        z = mu + torch.exp(0.5 * logvar) * torch.randn(mu.shape, generator=generator)
        what = "one sample from q(z|x)"
    points = run.plane.project(z)
    plane = run.plane.caption().split(";")[0]
    caption = (
        f"{run.caption()} Each of {len(points):,} points is one test image: {what}. Circles hold "
        f"50, 90 and 99 % of {run.normal}.{plane}{'.' * bool(plane)}"
    )
    fig = style.chart(SIDE, SIDE - 2 * style.MARGIN, "The test set in latent space", caption)
    ax = fig.subplots()
    ax.set_box_aspect(1)
    _scatter(ax, points, run.test.labels)
    reach = 1.08 * max(3.2, float(points.abs().max()))
    ax.set(xlim=(-reach, reach), ylim=(-reach, reach))
    ax.set(xlabel=run.plane.axis_names()[0], ylabel=run.plane.axis_names()[1])
    _contours(ax)
    return fig


def _scatter(ax: Axes, points: Tensor, labels: Tensor | None) -> None:
    """Draw points (N, 2) in the test set's order, so that no class lies on top of another."""
    x, y = points.T.numpy()
    if labels is None:
        ax.scatter(x, y, s=5, c=style.LINES[0], alpha=0.6, linewidths=0)
        return
    classes, index = labels.unique(return_inverse=True)
    colours = [style.CLASSES[k % len(style.CLASSES)] for k in index.tolist()]
    ax.scatter(x, y, s=5, c=colours, alpha=0.75, linewidths=0)
    handles = [Line2D([], [], ls="", marker="o", color=c) for c in style.CLASSES[: len(classes)]]
    if len(classes) <= len(style.CLASSES):
        ax.legend(
            handles, [str(label) for label in classes.tolist()], ncols=len(classes),
            loc="upper center", handletextpad=0, columnspacing=1.2,
        )  # fmt: skip
    halo = [patheffects.withStroke(linewidth=3.5, foreground="white")]
    for k, label in enumerate(classes.tolist()):
        # The label itself stands where its class is densest: few have to match colours.
        left, up = densest(points[index == k]).tolist()
        ax.text(
            left, up, str(label), ha="center", va="center", fontsize=14, fontweight="bold",
            color=style.INK, path_effects=halo, zorder=4,
        )  # fmt: skip


def _contours(ax: Axes) -> None:
    for inside in CONTOURS:
        # A standard normal's squared distance from 0 in the plane is exponential with mean 2.
        radius = math.sqrt(-2 * math.log(1 - inside))
        ax.add_patch(Circle((0, 0), radius, fill=False, ec=style.INK, lw=0.8, zorder=3))
        ax.text(
            radius * math.cos(-math.pi / 4), radius * math.sin(-math.pi / 4), f"{inside:.0%}",
            ha="center", va="center", fontsize=7.5, color=style.INK, zorder=4,
            bbox={"boxstyle": "round,pad=0.15", "fc": "white", "ec": "none", "alpha": 0.85},
        )  # fmt: skip
