"""A page of a comparison that needs nothing else: table and plots in one HTML file."""

import html
import io
from collections.abc import Mapping
from typing import Any

STYLE = (
    "body{font:15px/1.5 sans-serif;max-width:60em;margin:2em auto;padding:0 1em}"
    "table{border-collapse:collapse}td,th{padding:.3em .8em;border-bottom:1px solid #ccc;"
    "text-align:right}td:first-child,th:first-child{text-align:left}.slower{color:#b00}"
    ".faster{color:#070}svg{max-width:100%;height:auto}"
)
HEADS = ("benchmark", "B's time / A's", "interval", "verdict", "ELBO A", "ELBO B", "cold A, B (s)",
         "warm A, B (s)", "memory A, B (MB)")  # fmt: skip


def page(result: Mapping[str, Any]) -> str:
    """Make the page."""
    names = [html.escape(side["name"]) for side in result["sides"]]
    rows = "".join(_row(row) for row in result["benchmarks"])
    heads = "".join(f"<th>{head}</th>" for head in HEADS)
    machine = html.escape(", ".join(f"{k}: {v}" for k, v in result["machine"].items()))
    lost = "".join(f"<p>{html.escape(why)}</p>" for why in result["not_compared"].values())
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{names[0]} and {names[1]}'
        f"</title><style>{STYLE}</style><h1>{names[1]} beside {names[0]}</h1>"
        f"<p>A: {names[0]}. B: {names[1]}. Each round runs both, in a process of its own; the "
        "ratio is the median of the rounds', with a rank interval.</p>"
        f"<table><tr>{heads}</tr>{rows}</table>{lost}{_plot(result)}<p>{machine}</p></html>\n"
    )


def _row(row: Mapping[str, Any]) -> str:
    ratio, kind = row["ratio"], row["verdict"].split()[0]
    two = {k: ", ".join(f"{v:.1f}" for v in row[k]) for k in ("cold_seconds", "warm_seconds")}
    cells = [
        row["name"],
        f"{ratio['median']:.3f}",
        f"{ratio['low']:.3f} to {ratio['high']:.3f}",
        row["verdict"] + " (busy machine)" * bool(row["busy"]),
        *(f"{elbo:.2f}" for elbo in row["elbo"]),
        *two.values(),
        ", ".join(f"{v / 1e6:.0f}" for v in row["peak_bytes"]),
    ]
    return "<tr>" + "".join(f'<td class="{kind}">{html.escape(c)}</td>' for c in cells) + "</tr>"


def _plot(result: Mapping[str, Any]) -> str:
    """Each round's ratio, a row of dots for each benchmark, with the median's interval."""
    from matplotlib.figure import Figure

    rows = result["benchmarks"]
    figure = Figure(figsize=(8, 1 + 0.6 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for place, row in enumerate(rows):
        ratios = row["ratios"]
        axes.plot(ratios, [place] * len(ratios), "o", color="#4477aa", alpha=0.5)
        ends = [row["ratio"]["low"], row["ratio"]["high"]]
        axes.plot(ends, [place + 0.2] * 2, color="black", linewidth=2)
        axes.plot([row["ratio"]["median"]], [place + 0.2], "|", color="black", markersize=12)
    axes.axvline(1, color="gray", linewidth=1)
    axes.set_yticks(range(len(rows)), [row["name"] for row in rows])
    axes.set_ylim(-0.5, len(rows) - 0.3)
    axes.set_xlabel("B's time over A's, round by round; bar: interval of the median")
    drawn = io.StringIO()
    figure.savefig(drawn, format="svg")
    svg = drawn.getvalue()
    return svg[svg.index("<svg") :]
