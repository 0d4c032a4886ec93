"""Stored results -> the tables of benchmarks/*.md, and plots: ``python scripts/report.py``.

    python scripts/report.py                      write the tables, draw the plots
    python scripts/report.py --check              exit with 1 if tables and results differ
    python scripts/report.py reduce RAW.json OUT  keep of pytest-benchmark's JSON what is needed

It reads JSON files only, ``benchmarks/results/*.json``; a table stands between the markers
``<!-- table:NAME -->`` and ``<!-- /table:NAME -->``. What has no file is "not measured yet".
"""

import argparse
import json
import re
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

Result = dict[str, Any]
Results = dict[str, Result]  # by the file's name without .json

ROOT = Path(__file__).resolve().parent.parent
NOT_YET = "Not measured yet."


def read(folder: Path) -> Results:
    """Read all stored results."""
    paths = sorted(folder.glob("*.json"))
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in paths}


def reduce(raw: Result) -> Result:
    """Keep of pytest-benchmark's own JSON the summaries and facts that tables and plots need."""
    machine = dict(raw["machine_info"])
    wanted = ("median", "iqr", "rounds")
    return {
        "kind": "suite",
        "machine": machine,
        "commit": machine.pop("commit"),
        "command": "pytest benchmarks --benchmark-only --benchmark-json=RAW.json",
        "data": machine.pop("data"),
        "size": machine.pop("size"),
        "exponents": raw["exponents"],
        "roof": raw["roof"],
        "benchmarks": [
            {"name": bench["name"], "group": bench["group"]}
            | {key: bench["stats"][key] for key in wanted}
            | bench["extra_info"]
            for bench in raw["benchmarks"]
        ],
    }


# Figures in words.


def table(heads: list[str], rows: list[list[str]]) -> str:
    """Make a Markdown table; all columns but the first are aligned to the right."""
    rule = ["---", *["---:"] * (len(heads) - 1)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (heads, rule, *rows))


def quoted(words: str, noise: str) -> str:
    """Mark a noisy figure; hold back one that is noise above all."""
    if noise == "not quoted":
        return "too noisy to quote"
    return words + (" (noisy)" if noise == "noisy" else "")


def rate(found: Result) -> str:
    """Images per second with quartiles and n."""
    words = f"{found['median']:,.0f} ({found['q1']:,.0f} to {found['q3']:,.0f}; {found['n']})"
    return quoted(words, found["noise"])


def times(ratio: Result | None) -> str:
    """A ratio with its interval."""
    if ratio is None:
        return "–"
    if ratio["low"] == ratio["high"] == 1:
        return "1"
    return f"{ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})"


def machine(result: Result) -> str:
    """Say where and of what a result is."""
    about = result["machine"]
    where = about.get("gpu") or f"{about['cpu']} ({about['cpu_capability']})"
    return (
        f"{where}, {about['threads']} threads, torch {about['torch']}, "
        f"data: {result['data']}, commit {result['commit']}"
    )


def source(result: Result, *words: str) -> str:
    """The lines under a table: what was done, where, by which command."""
    told = " ".join(words)
    return f"\n\n{told} Machine: {machine(result)}. Command: `{result['command']}`"


# Tables.


def ladder(results: Results, name: str = "ladder") -> str:
    """The ladder: a row per rung."""
    result = results.get(name)
    if result is None:
        return NOT_YET
    heads = ["rung", "adds", "images/s (IQR; n)", "× reference (interval)", "× rung below"]
    heads += ["test ELBO", "memory", "of peak", "verdict"]
    rows = [_rung(row) for row in result["rows"]]
    ratios = [row["ratio"] for row in result["rows"] if row.get("ratio")]
    covers = f"{ratios[-1]['level']:.1%}" if ratios else "none"
    return table(heads, rows) + source(
        result,
        f"Medians of {result['repeats']} fresh processes per rung, run up and down the ladder in "
        f"turn, each training {result['epochs']} epochs of {result['images']:,} images at batch "
        f"{result['batch_size']}; on the clock: training alone. Ratios are taken repeat by repeat; "
        f"rank intervals, {covers}. Test ELBO in nats per image, {result['samples']} z each, one "
        "seed. Memory: the process's peak, its compiler included. Peak: "
        f"{(result['peak_flops'] or 0) / 1e9:,.0f} GFLOP/s, that of torch's float32 products, "
        "measured; a rung is credited with the dense arithmetic, part of which some leave out.",
    )


def _rung(row: Result) -> list[str]:
    if row["refused"]:
        return [row["rung"], row["adds"], f"not trained: {row['refused']}", *["–"] * 6]
    noise = row["images_per_second"]["noise"]
    memory = row["device_memory_bytes"] or row["peak_memory_bytes"]
    adds, verdict = row["adds"], row["verdict"]
    if row["rung"] == "amp":
        adds += f" (here: {row['actual']['amp']})"
        if row["actual"]["amp"] == "float32":  # whatever differs is the instrument's
            verdict = "the same code as the rung below"
    return [
        row["rung"],
        adds,
        rate(row["images_per_second"]),
        quoted(times(row["ratio"]), noise),
        quoted(times(row["gain"]), noise),
        f"{row['test_elbo']:.2f}",
        f"{memory / 1e6:,.0f} MB",
        quoted(f"{row['peak_share']:.0%}", noise),
        verdict,
    ]


def peers(results: Results, name: str = "suite") -> str:
    """The peers: a row per contender; the run made again beside it, if there is one."""
    found = [b for b in results.get(name, {}).get("benchmarks", []) if b["group"] == "peers"]
    if not found:
        return NOT_YET
    result, again = results[name], results.get(name + "-again")
    second = {b["peer"]: b for b in again["benchmarks"] if "peer" in b} if again else {}
    heads = ["contender", "images/s", "its time / vaebench's (interval)"]
    heads += ["measured again"] * bool(second) + ["training ELBO"]
    rows = []
    for bench in found:
        peer, noise = bench["peer"], bench["noise"]
        cells = ["vaebench --compile, against itself" if peer == "vaebench" else peer]
        cells += [quoted(f"{bench['images_per_second']:,.0f}", noise), times(bench["ratio"])]
        if second:
            cells += [times(second[peer]["ratio"]) if peer in second else "–"]
        rows.append([*cells, f"{bench['elbo']:.2f}"])
    images, n = found[0]["images"], found[0]["rounds"]
    return table(heads, rows) + source(
        result,
        f"Medians of {n} rounds of {images:,} images, batch 128, float32 (but for --amp, which "
        "takes bfloat16 where that is measured to be faster), each contender in a "
        "process of its own and compiled before; vaebench trains the same images before every "
        "round, and ratios are taken round by round; rank intervals, "
        f"{found[0]['ratio']['level']:.1%}.",
    )


def equality(results: Results) -> str:
    """The equality of whole trainings."""
    result = results.get("equality")
    if result is None:
        return NOT_YET
    test, arms = result["difference"], result["arms"]
    rows = [
        [arm, f"{arms[arm]['mean']:.3f}", f"{arms[arm]['sd']:.3f}"] for arm in ("reference", "fast")
    ]
    rows.append(["fast − reference, by seed", f"{test['mean']:+.3f}", f"{test['sd']:.3f}"])
    verdict = "equivalent" if test["equivalent"] else "equivalence not shown"
    return table(["test ELBO, nats per image", "mean over seeds", "s.d."], rows) + source(
        result,
        f"{test['n']} seeds, {result['epochs']} epochs of {result['images']:,} images, "
        f"{result['samples']} z per test image. Mean difference {test['mean']:+.3f} nat, 95 % "
        f"interval {test['low']:+.3f} to {test['high']:+.3f}; two one-sided t tests at "
        f"±{test['margin']:g} nat: p = {test['p']:.2g}, {verdict}.",
    )


def startup(results: Results) -> str:
    """Whole commands: cold, warm, not compiled, and what one would otherwise run."""
    result = results.get("startup")
    if result is None:
        return NOT_YET
    heads = ["command", "seconds in all (IQR; n)", "start-up", "compile", "training", "tests"]
    rows = []
    for row in result["rows"]:
        took = row["seconds"]
        spread = f"{took['median']:.1f} ({took['q1']:.1f} to {took['q3']:.1f}; {took['n']})"
        parts = row["parts"] or {}
        split = [
            f"{parts[part]:.1f}" if parts else "–"
            for part in ("startup", "compile", "train", "eval")
        ]
        cells = [COMMANDS.get(row["name"], row["name"]), quoted(spread, took["noise"]), *split]
        rows.append([*cells, f"{row['test_elbo']:.2f}"])
    paid = "; ".join(
        f"{name}: {'never' if epochs is None else f'after {epochs:.1f} epochs'}"
        for name, epochs in result["break_even"].items()
    )
    return table([*heads, "test ELBO"], rows) + source(
        result,
        f"Whole commands of {result['epochs']} epochs, from typing to the last line; medians. "
        f"Compiling has paid against not compiling, {paid}.",
    )


COMMANDS = {
    "examples": "pytorch/examples' script",
    "reference": "`vaebench.train --engine reference --no-flush-denormal`",
    "fast": "`vaebench.train`",
    "compile, cold": "`vaebench.train --compile`, cold",
    "compile, warm": "`vaebench.train --compile`, warm",
    "compile, amp, warm": "`vaebench.train --compile --amp`, warm",
}


def cuda(results: Results) -> str:
    """The GPU's report, and the ladder and the peers there."""
    tables = [cuda_report(results), ladder(results, "ladder-cuda"), peers(results, "suite-cuda")]
    return "\n\n".join(found for found in tables if found != NOT_YET) or NOT_YET


def cuda_report(results: Results) -> str:
    """What ``benchmarks.cuda_report`` found: techniques, peers, batch sizes."""
    result = results.get("cuda")
    if result is None:
        return NOT_YET
    parts = {name: part["rows"] for name, part in result["parts"].items()}
    tables = [
        _techniques(parts, result["epochs"]),
        _cuda_peers(parts.get("peers", [])),
        _batches(result["parts"].get("batches", {})),
    ]
    lost = [f"{name}: {part['error']}" for name, part in result["parts"].items() if part["error"]]
    lost += ["it was cut off"] * (not result["complete"])
    words = (
        f"{result['images']:,} images at batch {result['batch_size']}; steady rates are medians of "
        f"whole epochs, all rungs in turns, ratios turn by turn; {result['epochs']} epochs by "
        f"`fit`, warm, the training alone, medians over seeds; test ELBO in nats per image, "
        f"{result['samples']} z each, mean over seeds. Peers: rounds beside vaebench's fastest in "
        "float32, which is named."
    )
    said = f" Not all of it: {'; '.join(lost)}." if lost else ""
    skipped = {name: len(part.get("skipped", [])) for name, part in result["parts"].items()}
    left_out = [f"{count} of {name}" for name, count in skipped.items() if count]
    said += f" Left out for want of time: {', '.join(left_out)}." if left_out else ""
    return "\n\n".join(filter(None, tables)) + source(result, words + said)


def _techniques(parts: dict[str, list[Result]], epochs: int) -> str:
    steady = {row["name"]: row for row in parts.get("rungs", [])}
    trained: dict[str, list[Result]] = {}
    for row in parts.get("whole", []):
        if not row["refused"]:
            trained.setdefault(row["name"], []).append(row)
    heads = ["rung", "µs a step", "images/s (IQR; n)", "× resident (interval)"]
    heads += ["× rung below", f"{epochs} epochs", "test ELBO (n)"]
    rows = []
    for built in parts.get("build", []):
        name = built["name"]
        if built["refused"]:
            rows.append([name, f"not timed: {built['refused']}", *["–"] * 5])
            continue
        cells = ["–"] * 4
        if name in steady:
            found = steady[name]
            noise = found["images_per_second"]["noise"]
            cells = [quoted(f"{found['microseconds_per_step']:.1f}", noise)]
            cells += [rate(found["images_per_second"]), quoted(times(found["ratio"]), noise)]
            cells += [quoted(times(found["gain"]), noise)]
        runs = trained.get(name, [])
        whole = [f"{statistics.median(r['train_seconds'] for r in runs):.3f} s"] if runs else ["–"]
        elbos = [r["test_elbo"] for r in runs]
        whole += [f"{statistics.mean(elbos):.2f} ({len(elbos)})"] if elbos else ["–"]
        graph = built["actual"].get("graph")
        many = f" ({graph} steps a replay)" if graph else ""
        rows.append([name + many, *cells, *whole])
    return table(heads, rows) if rows else ""


def _cuda_peers(found: list[Result]) -> str:
    heads = ["contender", "beside", "images/s", "its time / vaebench's (interval)", "training ELBO"]
    rows = []
    for row in found:
        if row["refused"]:
            rows.append([row["name"], f"not timed: {row['refused']}", *["–"] * 3])
            continue
        its = row["images_per_second"]
        cells = [row["name"], f"`{row['ours']}`", quoted(f"{its['median']:,.0f}", its["noise"])]
        rows.append([*cells, times(row["ratio"]), f"{row['elbo']:.2f}"])
    return table(heads, rows) if rows else ""


def _batches(part: Result) -> str:
    good = [row for row in part.get("rows", []) if not row["refused"]]
    if not good:
        return ""
    sizes = sorted({row["batch_size"] for row in good})
    rates = {(row["name"], row["batch_size"]): row["images_per_second"] for row in good}
    pays = {row["name"]: row for row in part.get("pays", [])}
    heads = ["images/s at batch", *(f"{size:,}" for size in sizes), "pays against the rung below"]
    rows = []
    for name in dict.fromkeys(row["name"] for row in good):
        cells = [f"{rates[name, s]:,.0f}" if (name, s) in rates else "–" for s in sizes]
        rows.append([name, *cells, _until(pays.get(name))])
    return table(heads, rows)


def _until(found: Result | None) -> str:
    if found is None:
        return "–"
    if found["until"] is None:
        return f"not at {found['not_at']:,}"
    if found["not_at"] is None:
        return f"up to {found['until']:,}, the largest tried"
    return f"up to {found['until']:,}, not at {found['not_at']:,}"


def compare(results: Results) -> str:
    """Two torches in turns, by ``benchmarks.compare``."""
    result = results.get("compare-torch")
    if result is None:
        return NOT_YET
    heads = ["benchmark", "B's time / A's (interval)", "verdict", "ELBO, A and B", "cold, s"]
    heads += ["warm, s", "memory, MB"]
    a, b = (side["torch"] for side in result["sides"])
    words = (
        f"A: torch {a}; B: torch {b}. Training alone, medians of {result['rounds']} rounds of a "
        f"fresh process each, {result['epochs'] - 1} epochs apiece after the first; rank "
        f"intervals, {result['benchmarks'][0]['ratio']['level']:.1%}. Cold and warm: from the "
        "process's start to the end of its first epoch, without and with kernels built."
    )
    rows = [_compared(row) for row in result["benchmarks"]]
    return table(heads, rows) + source(result, words)


def _compared(row: Result) -> list[str]:
    ratio, verdict = row["ratio"], row["verdict"]
    if verdict == "no difference found":
        verdict += f" (from {row['resolution']:.1%} on it would be)"
    pair = (("elbo", "{:.2f}", 1), ("cold_seconds", "{:.1f}", 1), ("warm_seconds", "{:.1f}", 1),
            ("peak_bytes", "{:.0f}", 1e-6))  # fmt: skip
    return [
        row["name"],
        f"{ratio['median']:.3f} ({ratio['low']:.3f} to {ratio['high']:.3f})"
        + " (busy machine)" * bool(row["busy"]),
        verdict,
        *(", ".join(how.format(unit * value) for value in row[key]) for key, how, unit in pair),
    ]


def records(results: Results) -> str:
    """The records, oldest first."""
    found = sorted(
        (each for each in results.values() if each.get("kind") == "record"),
        key=lambda each: (each["date"], -each["warm"]["median"]),
    )
    if not found:
        return NOT_YET
    heads = ["date", "seconds, warm (IQR; n)", "cold", "of it training", "epochs"]
    heads += ["test ELBO (95 % interval)", "p", "what", "who", "machine"]
    return table(heads, [_record(each) for each in found])


def _record(result: Result) -> list[str]:
    warm, cold, elbo = result["warm"], result["cold"], result["elbo"]
    seconds = f"{warm['median']:.2f} ({warm['q1']:.2f} to {warm['q3']:.2f}; {warm['n']})"
    return [
        result["date"],
        quoted(seconds, warm["noise"]),
        f"{cold['median']:.1f}" if cold else "–",
        f"{result['parts']['train']:.2f}",
        str(result["epochs"]),
        f"{elbo['mean']:.3f} ({elbo['low']:.3f} to {elbo['high']:.3f})",
        f"{elbo['p']:.1g}",
        result["what"],
        result["who"],
        machine(result),
    ]


def releases(results: Results) -> str:
    """Each release's rates as multiples of the reference's."""
    found = sorted(
        (each for each in results.values() if each.get("kind") == "release"),
        key=lambda each: each["date"],
    )
    if not found:
        return NOT_YET
    rows = [
        [
            f"{each['version']}, {each['date']}",
            row["workload"],
            f"`{row['rung']}`",
            *([f"refused: {row['refused']}", "–"] if row["refused"] else _rates(row)),
        ]
        for each in found
        for row in each["rows"]
    ]
    words = f"Medians of {found[-1]['turns']} turns, of the last release:"
    heads = ["release", "workload", "engine", "images/s (IQR; n)", "× reference (interval)"]
    return table(heads, rows) + source(found[-1], words)


def _rates(row: Result) -> list[str]:
    return [rate(row["images_per_second"]), times(row["ratio"])]


TABLES: dict[str, Callable[[Results], str]] = {
    "ladder": ladder,
    "peers": peers,
    "equality": equality,
    "startup": startup,
    "compare": compare,
    "records": records,
    "releases": releases,
    "cuda": cuda,
}
MARKED = re.compile(r"(<!-- table:(\w+) -->\n).*?(<!-- /table:\2 -->)", re.S)


def filled(text: str, results: Results) -> str:
    """Give a text with every marked table made anew.

    Raises:
        KeyError: a marker names no table.
    """
    return MARKED.sub(lambda m: m[1] + TABLES[m[2]](results) + "\n" + m[3], text)


def main(argv: list[str]) -> int:
    """Run the command line; give its exit status."""
    parser = argparse.ArgumentParser(prog="scripts/report.py", description=__doc__)
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks/results")
    texts = [ROOT / "benchmarks/README.md", ROOT / "benchmarks/RECORDS.md"]
    parser.add_argument("--readme", type=Path, nargs="+", default=texts)
    parser.add_argument("--check", action="store_true", help="compare only")
    commands = parser.add_subparsers(dest="command")
    reducing = commands.add_parser("reduce", help="shrink pytest-benchmark's JSON")
    reducing.add_argument("raw", type=Path)
    reducing.add_argument("out", type=Path)
    words = parser.parse_args(argv)
    if words.command == "reduce":
        small = reduce(json.loads(words.raw.read_text(encoding="utf-8")))
        words.out.write_text(json.dumps(small, indent=1) + "\n", encoding="utf-8")
        return 0
    results = read(words.results)
    for path in words.readme:
        text = path.read_text(encoding="utf-8")
        if not words.check:
            path.write_text(filled(text, results), encoding="utf-8")
        elif filled(text, results) != text:
            print(f"{path.name} differs: run python scripts/report.py", file=sys.stderr)
            return 1
    if words.check:
        return 0
    from report_plots import draw_all

    for path in draw_all(results, words.results):
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
