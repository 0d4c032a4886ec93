"""What a newcomer reads agrees with the code, the stored results, and itself."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import vaebench

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
    ROOT / "CONTRIBUTING.md",
    *(ROOT / room / "README.md" for room in ("benchmarks", "scripts", "tests", "vaebench")),
    ROOT / "vaebench/fast/README.md",
]
ROOMS = "cli data models models/adapt training fast fast/kernels runs system plots".split()
# What stands in backticks and is a file: a path with a suffix, from the root or from the page.
FILE = re.compile(r"`([\w/]+\.(?:py|md|cpp|h|cff|toml))`")


def test_the_readme_is_short_and_has_the_two_commands() -> None:
    assert len(README.splitlines()) <= 160
    (line,) = re.findall(r"^python3 -m venv .* pytest$", README, re.M)  # what .ci/run looks for
    assert line.count(" && ") == 3
    assert "&& python -m vaebench.train --compile --amp\n" in README


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_points_to_is_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if not link.startswith("http")]
    for link in links:
        assert (page.parent / link).exists(), link
    for name in FILE.findall(text):
        if name not in ("result.json", "metrics.jsonl", "config.json") and "NAME" not in name:
            places = (ROOT, ROOT / "vaebench", page.parent, page.parent / "vaebench")
            rooms = [ROOT / "vaebench" / room for room in ROOMS]
            assert any((place / name).exists() for place in (*places, *rooms)), name


def test_the_headline_is_that_of_the_stored_result() -> None:
    result = json.loads((ROOT / "benchmarks/results/startup.json").read_text())
    rows = {row["name"]: row for row in result["rows"]}
    shown = re.findall(r"^\|[^|]*\| ([\d.]+) \| −([\d.]+) \|$", README, re.M)
    wanted = ("examples", "reference", "fast", "compile, amp, warm")
    assert shown == [
        (f"{rows[name]['seconds']['median']:.1f}", f"{-rows[name]['test_elbo']:.2f}")
        for name in wanted
    ]
    assert f"Medians of {'two' if result['repeats'] == 2 else result['repeats']}" in README


def test_the_techniques_are_those_of_the_register() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "scripts/techniques.py", "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_the_library_in_ten_lines_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    code = re.search(r"```python\n(import vaebench\n.*?)```", README, re.S)
    assert code
    assert len(code[1].splitlines()) <= 12
    small = vaebench.load_dataset("strokes")
    train = type(small.train)(small.train.images[:300])
    data = type(small)("strokes", train, type(small.test)(small.test.images[:100]))
    monkeypatch.setattr(vaebench, "load_mnist", lambda _: data)
    names: dict[str, object] = {}
    exec(code[1].replace("epochs=10, compile=True", 'epochs=1, device="cpu"'), names)
    assert getattr(names["digits"], "shape", None) == (16, 28, 28)


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_says_what_it_may_import_and_how_to_add_to_it(room: str) -> None:
    name = f"vaebench.{room.replace('/', '.')}"
    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec.origin is not None
    told = " ".join((Path(spec.origin).read_text(encoding="utf-8").split('"""')[1]).split())
    assert "ay import " in told
    assert re.search(r"To (add|know) ", told)
