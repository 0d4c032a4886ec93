"""What every table of the report is made of: its grid, figures in words, the lines under it."""

from typing import Any

Result = dict[str, Any]
Results = dict[str, Result]  # by the file's name without .json

NOT_YET = "Not measured yet."


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
