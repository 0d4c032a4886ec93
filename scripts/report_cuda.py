"""The tables of the GPU's report; see ``report.py``."""

import statistics

from report_tables import ladder, peers
from report_words import NOT_YET, Result, Results, quoted, rate, source, table, times


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
