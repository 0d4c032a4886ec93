"""The report's tables, each of one stored result; those of the GPU are in ``report_cuda.py``."""

from report_words import NOT_YET, Result, Results, machine, quoted, rate, source, table, times


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
    """The records of the first track, oldest first."""
    return _track(results, "elbo", "test ELBO")


def likelihoods(results: Results) -> str:
    """Those of the second."""
    return _track(results, "likelihood", "test log-likelihood")


def _track(results: Results, track: str, score: str) -> str:
    found = sorted(
        (each for each in results.values() if each.get("track") == track),
        key=lambda each: (each["date"], -each["warm"]["median"]),
    )
    if not found:
        return NOT_YET
    heads = ["date", "seconds, warm (IQR; n)", "cold", "of it training", "epochs"]
    heads += [f"{score} (95 % interval)", "z each", "p", "what", "who", "machine"]
    return table(heads, [_record(each) for each in found])


def _record(result: Result) -> list[str]:
    warm, cold, score = result["warm"], result["cold"], result["score"]
    seconds = f"{warm['median']:.2f} ({warm['q1']:.2f} to {warm['q3']:.2f}; {warm['n']})"
    return [
        result["date"],
        quoted(seconds, warm["noise"]),
        f"{cold['median']:.1f}" if cold else "–",
        f"{result['parts']['train']:.2f}",
        str(result["epochs"]),
        f"{score['mean']:.3f} ({score['low']:.3f} to {score['high']:.3f})",
        f"{result['samples']:,}",
        f"{score['p']:.1g}",
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


def scaling(results: Results) -> str:
    """Rates over sizes, by ``benchmarks.scaling``, and a law for each."""
    result = results.get("scaling")
    if result is None:
        return NOT_YET
    heads = ["size", "plain loop, images/s", "vaebench, images/s", "× (interval)", "techniques"]
    rows = [
        [
            f"{row['axis']} {row['value']:g}",
            *(
                f"{row['batch'] / row['seconds_per_step'][who]['median']:,.0f}"
                for who in ("plain", "vaebench")
            ),
            times(row["ratio"]),
            ", ".join(row["engine"]) or "none",
        ]
        for row in result["rows"]
    ]
    laws = "\n".join(f"- {law}" for law in result["laws"])
    return f"{table(heads, rows)}\n\n{laws}{source(result, 'Medians of turns.')}"
