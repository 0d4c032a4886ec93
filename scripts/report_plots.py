"""The report's plots, drawn from stored results; see ``report.py``.

Each says what, in which unit, how often, and on which machine. Colours are told apart by the
colour-blind, and each is paired with a marker, a dash or a label.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vaebench.plots import style

Result = dict[str, Any]
Results = dict[str, Result]

WIDTH, HEIGHT = 1200, 570  # pixels, title and caption aside
MARKERS = "osD^vPX"


def draw_all(results: Results, folder: Path) -> list[Path]:
    """Draw every plot whose result is there; give the files."""
    plots: dict[str, tuple[str, Callable[[Result], Figure | None]]] = {
        "ladder": ("ladder", ladder),
        "ladder-cuda": ("ladder-cuda", ladder),
        "throughput": ("suite", throughput),
        "break-even": ("startup", break_even),
        "peers": ("suite", peers),
        "equality": ("equality", equality),
    }
    for name, track in (("record", "elbo"), ("record-likelihood", "likelihood")):
        drawable = [n for n, r in results.items() if r.get("track") == track and "curves" in r]
        if drawable:
            plots[name] = (max(drawable, key=lambda n: (str(results[n]["date"]), n)), record)
    shipped = [r for r in results.values() if r.get("kind") == "release"]
    if shipped:
        shipped.sort(key=lambda r: str(r["date"]))
        results = {**results, "releases": {**shipped[-1], "all": shipped}}
        plots["releases"] = ("releases", releases)
    drawn = []
    for name, (source, draw) in plots.items():
        if source not in results:
            continue
        with style.look():
            figure = draw(results[source])
            if figure is not None:
                content = style.png(figure, few_colours=True)
                drawn.append(style.write(content, folder / f"{name}.png"))
    return drawn


def page(title: str, caption: str, result: Result) -> tuple[Figure, Axes]:
    """Make a figure with its words and one pair of axes; the caption ends with the machine."""
    figure = style.chart(WIDTH, HEIGHT, title, f"{caption}\n{machine(result)}")
    return figure, figure.subplots()


def machine(result: Result) -> str:
    """Say where and of what a result is."""
    about = result["machine"]
    where = about.get("gpu") or about["cpu"]
    return (
        f"{where}, {about['threads']} threads, torch {about['torch']}; "
        f"data: {result['data']}; commit {result['commit']}."
    )


def ladder(result: Result) -> Figure | None:
    """What each rung adds to the one it builds on, as a waterfall of images/s."""
    rows = [
        row
        for row in result["rows"]
        if not row["refused"] and row["images_per_second"]["noise"] != "not quoted"
    ]
    if not rows:
        return None
    figure, box = page(
        "What each technique adds",
        f"Median of {result['repeats']} fresh processes of {result['epochs']} epochs; whiskers: "
        "quartiles. A bar spans from the rung it builds on to itself; hatched: slower than that; "
        "grey: no difference detected, or no other code (amp in float32).",
        result,
    )
    heights = {row["rung"]: row["images_per_second"] for row in rows}
    for place, row in enumerate(rows):
        top = heights[row["rung"]]
        base = heights.get(row["builds_on"], {"median": 0.0})["median"]
        slower = top["median"] < base
        idle = row["rung"] == "amp" and row["actual"]["amp"] == "float32"
        unclear = idle or row["verdict"] == "no difference detected"
        colour = style.FAINT if unclear else style.LINES[1 if slower else 0]
        box.bar(
            place, top["median"] - base, bottom=base, width=0.6, color=colour,
            hatch="///" if slower else None, edgecolor="white",
        )  # fmt: skip
        error = [[top["median"] - top["q1"]], [top["q3"] - top["median"]]]
        box.errorbar(place, top["median"], error, color=style.INK, capsize=4, linewidth=1)
        label = f"{top['median']:,.0f}" + (
            f"\n×{row['ratio']['median']:.2f}" if row["ratio"] else ""
        )
        high = max(top["q3"], base)
        box.annotate(label, (place, high), (0, 5), textcoords="offset points", ha="center")
    box.set_xticks(range(len(rows)), [row["rung"] for row in rows])
    box.set_ylim(0, 1.22 * max(h["q3"] for h in heights.values()))
    box.set_ylabel("training throughput, images/s")
    box.yaxis.set_major_formatter("{x:,.0f}")
    return figure


def throughput(result: Result) -> Figure | None:
    """Images/s against batch size for each rung, under the roofline of the measured peak."""
    points = [
        b
        for b in result["benchmarks"]
        if b["group"] == "step: throughput" and b["noise"] != "not quoted"
    ]
    if not points:
        return None
    figure, box = page(
        "Throughput against batch size",
        f"Median of {points[0]['rounds']} blocks of steps, synchronised once each. Roof: the "
        "machine's measured peak of torch's float32 products over an image's FLOP, all of them "
        "dense; native steps leave out part of those.",
        result,
    )
    series = list(dict.fromkeys((b["device"], b["rung"]) for b in points))
    for i, (device, rung) in enumerate(series):
        mine = sorted(
            (b["batch"], b["images_per_second"])
            for b in points
            if (b["device"], b["rung"]) == (device, rung)
        )
        box.plot(*zip(*mine, strict=True), f"{MARKERS[i]}-", color=style.LINES[i % 7],
                 label=f"{rung}, {device}")  # fmt: skip
    for device, roof in result["roof"].items():
        box.axhline(roof, color=style.MUTED, linestyle="--", linewidth=1)
        box.annotate(f"roof, {device}", (min(b["batch"] for b in points), roof), (0, 4),
                     textcoords="offset points", color=style.MUTED)  # fmt: skip
    box.set_xscale("log", base=2)
    box.set_ylim(0)
    box.yaxis.set_major_formatter("{x:,.0f}")
    sizes = sorted({b["batch"] for b in points})
    box.set_xticks(sizes, [f"{n:,}" for n in sizes])
    box.set_xlabel("batch size, images")
    box.set_ylabel("training throughput, images/s")
    box.legend()
    return figure


def break_even(result: Result) -> Figure | None:
    """Seconds since the command was typed, against epochs done."""
    rows = [row for row in result["rows"] if row["seconds"]["noise"] != "not quoted"]
    if not rows:
        return None
    epochs = result["epochs"]
    figure, box = page(
        "When compiling has paid",
        f"Whole commands, median of {result['repeats']}: what is paid once, then the same for "
        "each epoch, its test included. Of the script of pytorch/examples only the end is known.",
        result,
    )
    dashes = ("-", "--", "-.", ":", "-")
    for i, row in enumerate(rows):
        total, parts = row["seconds"]["median"], row["parts"]
        colour = style.LINES[i % 7]
        if parts is None:
            box.plot(epochs, total, "D", color=colour)
        else:
            each = (parts["train"] + parts["eval"]) / epochs
            box.plot([0, epochs], [total - each * epochs, total], dashes[i % 5], color=colour)
        box.annotate(row["name"], (epochs, total), (8, -3), textcoords="offset points",
                     color=colour)  # fmt: skip
    box.set_xlim(0, epochs * 1.22)
    box.set_ylim(0)
    box.set_xlabel("epochs")
    box.set_ylabel("seconds since the start of the process")
    return figure


def peers(result: Result) -> Figure | None:
    """How many times as long as vaebench each contender takes."""
    rows = [b for b in result["benchmarks"] if b["group"] == "peers"][::-1]
    if not rows:
        return None
    figure, box = page(
        "Against what one would otherwise use",
        f"Median ratio of {rows[0]['ratio']['n']} rounds, each beside one of vaebench --compile; "
        f"whiskers: rank interval, {rows[0]['ratio']['level']:.0%}.",
        result,
    )
    for place, row in enumerate(rows):
        ratio = row["ratio"]
        middle = ratio["median"]
        ours = row["peer"] == "vaebench"
        box.barh(place, middle, height=0.55, color=style.LINES[0 if ours else 5])
        error = [[middle - ratio["low"]], [ratio["high"] - middle]]
        box.errorbar(middle, place, xerr=error, color=style.INK, capsize=4, linewidth=1)
        box.annotate(f"{middle:.2f}", (ratio["high"], place), (6, -4), textcoords="offset points")
    box.axvline(1, color=style.MUTED, linestyle="--", linewidth=1)
    names = [f"{r['peer']}, {r['device']}" for r in rows]
    box.set_yticks(range(len(rows)), names)
    box.set_xlim(0, 1.12 * max(row["ratio"]["high"] for row in rows))
    box.set_xlabel("time for the same images, as a multiple of vaebench's")
    return figure


def releases(result: Result) -> Figure | None:
    """Each engine's rate as a multiple of the reference's, release by release."""
    figure, axes = page(
        "Over releases",
        f"Times the plain reference's rate, in turns; bars: rank intervals of {result['turns']} "
        "turns. The machine is that of the last release.",
        result,
    )
    names = [each["version"] for each in result["all"]]
    rows = [(i, row) for i, each in enumerate(result["all"]) for row in each["rows"]]
    kinds = dict.fromkeys((row["workload"], row["rung"]) for _, row in rows)
    kinds = {kind: None for kind in kinds if kind[1] != "reference"}
    for place, kind in enumerate(kinds):
        ran = [(i, r) for i, r in rows if not r["refused"]]
        mine = [(i, r["ratio"]) for i, r in ran if (r["workload"], r["rung"]) == kind]
        at = [i + 0.03 * (place - len(kinds) / 2) for i, _ in mine]
        middle = [ratio["median"] for _, ratio in mine]
        spread = [
            [ratio["median"] - ratio["low"] for _, ratio in mine],
            [ratio["high"] - ratio["median"] for _, ratio in mine],
        ]
        marker = MARKERS[place % len(MARKERS)]
        axes.errorbar(at, middle, spread, marker=marker, capsize=2, label=", ".join(kind))
    axes.axhline(1, color="black", linewidth=1, linestyle=":")
    axes.set_xticks(range(len(names)), names)
    axes.set_xlim(-0.5, len(names) - 0.5)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("times the plain reference's images/s")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def record(result: Result) -> Figure | None:
    """Test ELBO against seconds since the start, a line for each command."""
    caption = (
        "Test ELBO (nats per image, one z each) after each epoch of a whole command, start-up on "
        "the clock; one run each."
    )
    score = result["score"]
    what = ""
    if result["track"] == "likelihood":
        what = "\nasked of the\nlikelihood"
        end = f"{score['mean']:.2f}".replace("-", "−")
        caption += (
            " An ELBO is a lower bound of the log-likelihood, which is asked for (dotted): that is "
            f"{end} at the end, by {result['samples']:,} z, over {score['n']} seeds."
        )
    figure, axes = page("How soon the test ELBO is there", caption, result)
    for i, (name, points) in enumerate(result["curves"].items()):
        seconds, elbos = zip(*points, strict=True)
        axes.plot(seconds, elbos, marker=MARKERS[i] if len(points) < 50 else None, label=name)
    bar, said = score["bar"], f"{score['bar']}{what}".replace("-", "−")
    axes.axhline(bar, color="black", linewidth=1, linestyle=":")
    axes.annotate(
        said, (1, bar), xycoords=axes.get_yaxis_transform(), xytext=(4, 0),
        textcoords="offset points", va="center",
    )  # fmt: skip
    axes.set(xscale="log", xlabel="seconds since the start", ylabel="test ELBO, nats per image")
    low, high = axes.get_xlim()
    ticks = [n * 10**k for k in range(5) for n in (1, 2, 3, 5) if low <= n * 10**k <= high]
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set_ylim(bottom=max(-125.0, axes.get_ylim()[0]))
    axes.legend(loc="lower right")
    return figure


def equality(result: Result) -> Figure | None:
    """Each seed's two test ELBOs, and their difference in its margin."""
    pairs, test = result["pairs"], result["difference"]
    figure, box = page(
        "Equal test ELBO, seed by seed",
        f"{test['n']} seeds, {result['epochs']} epochs; mean difference {test['mean']:+.3f} nat, "
        f"95 % interval {test['low']:+.3f} to {test['high']:+.3f}. Bar: the margin of "
        f"±{test['margin']:g} nat around the reference.",
        result,
    )
    places = range(len(pairs))
    reference = [pair["reference"] for pair in pairs]
    box.errorbar(places, reference, test["margin"], fmt="none", ecolor=style.FAINT, elinewidth=5)
    box.plot(places, reference, "o", color=style.LINES[0], label="reference")
    box.plot(places, [p["fast"] for p in pairs], "x", color=style.LINES[1], label="fast, compiled")
    box.set_xticks(list(places), [str(pair["seed"]) for pair in pairs])
    box.set_xlabel("seed")
    box.set_ylabel("test ELBO, nats per image")
    box.margins(y=0.2)
    box.legend(loc="upper left", ncols=2)
    return figure
