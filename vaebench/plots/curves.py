"""How trainings went: ELBO, reconstruction and KL against epochs and against seconds."""

from itertools import accumulate
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from vaebench.plots import style
from vaebench.plots.run import Run

WIDTH, HEIGHT = 1200, 310  # pixels of a row of panels, with what is written beside it
DASHES = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (5, 1.5, 1, 1.5)))

Record = dict[str, Any]


def draw_curves(runs: list[Run]) -> Figure:
    """Draw three panels against epochs beside the same three against training seconds."""
    caption = "\n".join(f"{run.name}: {run.caption()}" for run in runs)
    caption += (
        "\nAll in nats per image. Train values, recon and KL among them, are means over an epoch's "
        "steps. Seconds are those of the training steps alone, without start-up, compilation and "
        "evaluation."
    )
    above = style.LINE * len(runs) + 10
    fig = style.chart(WIDTH, 3 * HEIGHT, "Training", caption, above=above)
    panels = fig.subplots(3, 2, sharey="row")
    for row, quantity in enumerate(("ELBO", "recon", "KL")):
        for column in range(2):
            _panel(panels[row, column], runs, quantity, against_seconds=column == 1)
        panels[row, 0].set_ylabel(quantity)
    panels[2, 0].set_xlabel("epoch")
    panels[2, 1].set_xlabel("training time (s)")
    _legend(fig, panels[0, 0], len(runs))
    return fig


def _panel(ax: Axes, runs: list[Run], quantity: str, *, against_seconds: bool) -> None:
    for number, run in enumerate(runs):
        records = run.epochs
        x = [record["epoch"] for record in records]
        if against_seconds:
            x = list(accumulate(record["seconds"] for record in records))
        colour = style.LINES[number % len(style.LINES)]
        dash = DASHES[number % len(DASHES)]
        for key, words in _series(quantity, records):
            tested = key == "test_elbo"
            ax.plot(
                x, [record[key] for record in records], color=colour, ls=dash,
                lw=1.8 if tested else 1.2, marker="o" if tested else ".", ms=4,
                label=f"{run.name}, {words}",
            )  # fmt: skip
    ax.grid(axis="y", color="#e6e6e6", lw=0.8)
    ax.set_axisbelow(True)
    ax.set_xlim(left=0 if against_seconds else None)
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=not against_seconds))
    ax.yaxis.set_major_locator(MaxNLocator(5))


def _series(quantity: str, records: list[Record]) -> list[tuple[str, str]]:
    """Give the keys of the records to draw as this quantity, and what to call each."""
    if quantity != "ELBO":
        return [(quantity.lower(), "train")]
    tested = all(record["test_elbo"] is not None for record in records)
    return [("test_elbo", "test")] * tested + [("train_elbo", "train")]


def _legend(fig: Figure, ax: Axes, runs: int) -> None:
    """Put the first panel's legend above all panels, a line a run."""
    handles, labels = ax.get_legend_handles_labels()
    width, height = style.size(fig)
    columns = -(-len(handles) // runs)
    # Matplotlib fills columns first; a run's own lines shall stand side by side.
    order = [k for column in range(columns) for k in range(column, len(handles), columns)]
    fig.legend(
        [handles[k] for k in order], [labels[k] for k in order], ncols=columns,
        loc="upper left", bbox_to_anchor=(style.MARGIN / width, 1 - style.HEADING / height),
        borderpad=0, borderaxespad=0, handlelength=3.2,
    )  # fmt: skip
