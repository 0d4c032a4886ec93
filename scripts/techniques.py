"""The register of techniques -> the table of vaebench/fast/README.md.

``python scripts/techniques.py`` writes it; with ``--check`` it only compares, and exits with 1 if
table and register differ.
"""

import re
import sys
from pathlib import Path

from vaebench.fast.register import TECHNIQUES

README = Path(__file__).resolve().parent.parent / "vaebench/fast/README.md"
MARKED = re.compile(r"(<!-- techniques -->\n).*(<!-- /techniques -->)", re.S)


def table() -> str:
    """A row for each technique, in the order in which they are tried."""
    lines = ["| technique | what it does | where | unless said otherwise |", "|---|---|---|---|"]
    for t in TECHNIQUES:
        where = ", ".join(device.upper() for device in t.devices)
        where += f", with `--{t.needs}`" if t.needs else ""
        default = "tried" if t.default else "off"
        lines.append(f"| `{t.flag}` | {t.help} | {where} | {default} |")
    return "\n".join(lines) + "\n"


def main(argv: list[str]) -> int:
    """Write or compare; give the exit status."""
    text = README.read_text(encoding="utf-8")
    made = MARKED.sub(lambda m: m[1] + table() + m[2], text)
    if argv != ["--check"]:
        README.write_text(made, encoding="utf-8")
    elif made != text:
        print("the table differs: run python scripts/techniques.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
