"""``python -m benchmarks.compare``: what can be compared, in turns, gone on with, and judged."""

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from vaebench.errors import InputError

ROOT = Path(__file__).parents[2]
Load = Callable[[str], ModuleType]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Load:
    """Load a module of the suite as its commands do: from the top of the checkout."""
    monkeypatch.syspath_prepend(ROOT)
    return lambda name: importlib.import_module(f"benchmarks.{name}")


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def _run(seconds: float, elbo: float = -120.0, busy: bool = False) -> dict[str, Any]:
    """What a worker gives: the first epoch is slow."""
    return {
        "epoch_seconds": [9.0, seconds, seconds, 1.1 * seconds], "first_epoch_after": 5 * seconds,
        "elbo": elbo, "actual": {}, "notes": [], "peak_bytes": 10**9, "busy": busy,
    }  # fmt: skip


def _judged(load: Load, factor: float, *, spread: float = 0.01, **second: Any) -> dict[str, Any]:
    verdict = load("compare.verdict")
    wobble = [1 + spread * ((7 * i) % 5 - 2) / 2 for i in range(13)]
    first = [_run(w) for w in wobble]
    return dict(verdict.judged("mlp", first, [_run(factor * w, **second) for w in wobble[::-1]]))


def test_a_verdict(load: Load) -> None:
    same, slower, faster = (_judged(load, factor) for factor in (1.0, 1.05, 0.9))
    assert same["verdict"] == "no difference found"
    assert 0 < same["resolution"] < 0.05
    assert slower["verdict"] == "slower"
    assert slower["ratio"]["median"] == pytest.approx(1.05, rel=0.02)
    assert faster["verdict"] == "faster"
    assert _judged(load, 1.05, spread=0.3)["verdict"] == "no difference found"
    fails = load("compare.verdict").fails
    assert fails(slower, 1.03)
    assert not fails(slower, 1.10)
    assert not fails(same, 0.5)


def test_a_verdict_in_words(load: Load) -> None:
    words = load("compare.verdict").in_words
    assert "ELBO equal" in words(_judged(load, 1.0))
    assert "NOT equal: ELBO -130" in words(_judged(load, 1.0, elbo=-130.0))
    assert "BUSY MACHINE" in words(_judged(load, 1.0, busy=True))
    assert "could have been" in words(_judged(load, 1.0))


def test_what_can_be_compared(load: Load, tmp_path: Path) -> None:
    sides = load("compare.sides")
    tree = tmp_path / "tree"
    (tree / "vaebench").mkdir(parents=True)
    (tree / "vaebench" / "__init__.py").touch()
    found = sides.side_of(str(tree))
    assert (found.tree, found.python) == (tree.resolve(), Path(sys.executable))
    assert found.env(tmp_path)["PYTHONPATH"] == str(tree.resolve())
    python = sides.side_of(sys.executable)
    assert (python.tree, python.python) == (None, Path(sys.executable))
    both = sides.side_of(f"{tree}+{sys.executable}")
    assert (both.tree, both.python) == (tree.resolve(), Path(sys.executable))


def test_a_commit_is_a_tree_of_its_own(load: Load) -> None:
    sides = load("compare.sides")
    if sides._commit("HEAD") is None:
        pytest.skip("the tests are not run in a clone")
    found = sides.side_of("HEAD")
    assert found.commit == sides._commit("HEAD")
    assert (found.tree / "vaebench" / "__init__.py").exists()
    assert sides.side_of("HEAD").tree == found.tree


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "names nothing"),
        ("no-such-commit", "'no-such-commit' is nothing that can be compared: give a requirement"),
        (f"{sys.executable}+torch==2.13.0", "names a Python and a requirement"),
        (f"{ROOT / 'README.md'}", "is nothing that can be compared"),
    ],
)
def test_what_cannot_be_is_a_line(text: str, said: str, load: Load) -> None:
    with pytest.raises(InputError, match=said):
        load("compare.sides").side_of(text)


def test_an_environment_that_cannot_be_made_is_a_line(
    load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    sides = load("compare.sides")
    real = sides._run

    def run(command: list[str]) -> Any:
        if "venv" in command:
            return real([sys.executable, "-c", ""])
        if "install" in command:
            return real([sys.executable, "-c", "raise SystemExit('ERROR: no such thing')"])
        return real(command)

    monkeypatch.setattr(sides, "_run", run)
    with pytest.raises(
        InputError, match=r"no environment with torch==0\.1 can be made: ERROR: no su"
    ):
        sides.side_of("torch==0.1")
    assert not list((sides.home() / "environments").glob("*/complete"))


def test_benchmarks_are_workloads_with_techniques(load: Load) -> None:
    task_of = load("compare.rounds").task_of
    task = task_of("conv+compile", Path("x.npy"), "cpu")
    assert task["model"] == "ConvVAE"
    assert task["options"]["compile"] is True
    assert task["options"]["batch_size"] == 32
    json.dumps(task)
    for name in ("gan", "mlp+warp"):
        with pytest.raises(InputError, match=f"{name.replace('+', '.')}' is no benchmark"):
            task_of(name, Path("x.npy"), "cpu")


def _comparison(load: Load, names: tuple[str, ...] = ("mlp",), rounds: int = 2) -> Any:
    side = load("compare.sides").Side
    here = [side(name, Path(sys.executable), ROOT) for name in "AB"]
    return load("compare.rounds").Comparison(here, names, rounds, "strokes", "cpu")


@pytest.fixture
def few(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    """Little to do."""
    module = load("compare.rounds")
    monkeypatch.setattr(module, "IMAGES", {"mlp": 256})
    monkeypatch.setattr(module, "EPOCHS", 2)


@pytest.mark.usefixtures("few")
@pytest.mark.slow
def test_a_comparison(load: Load) -> None:
    result = _comparison(load, rounds=1).run()
    (row,) = result["benchmarks"]
    assert row["equal"] is None
    assert row["elbo"][0] == row["elbo"][1]
    assert row["ratio"]["n"] == len(row["ratios"]) == 1
    assert result["sides"][0]["packages"]["torch"] == result["sides"][0]["torch"].split("+")[0]
    assert result["schema"] == 1
    page = load("compare.page").page(result)
    assert "<svg" in page
    assert "beside" in page
    json.dumps(result, allow_nan=False)


@pytest.mark.usefixtures("few")
def test_it_goes_on_where_it_was(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    first = _comparison(load)
    asked: list[tuple[int, int]] = []

    def race(self: Any, order: tuple[int, int], task: Any) -> list[dict[str, Any]]:
        asked.append(order)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return [{**_run(1.0), "torch": "2"}] * 2

    monkeypatch.setattr(type(first), "_race", race)
    with pytest.raises(KeyboardInterrupt):
        first.run()
    again = _comparison(load)
    assert len(again.runs) == 2
    again.run()
    # The other way round every other time; the round that was broken off once more.
    assert asked == [(0, 1), (1, 0), (1, 0), (0, 1)]
    assert not again.folder.exists()


@pytest.mark.usefixtures("few")
def test_what_a_side_cannot_run_is_said(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    comparison = _comparison(load, ("mlp", "conv"))
    comparison.tasks["conv"]["model"] = "NoSuchVAE"
    race = type(comparison)._race

    def answer(self: Any, order: tuple[int, int], task: Any) -> Any:
        known = task["model"] == "VAE" and task["network"]["latent_dim"] > 0
        return [{**_run(1.0), "torch": "2"}] * 2 if known else race(self, order, task)

    monkeypatch.setattr(type(comparison), "_race", answer)
    result = comparison.run()
    assert [row["name"] for row in result["benchmarks"]] == ["mlp"]
    assert "A cannot run conv: AttributeError" in result["not_compared"]["conv"]
    comparison = _comparison(load)
    comparison.tasks["mlp"]["network"]["latent_dim"] = -1
    with pytest.raises(InputError, match=r"A cannot run mlp: .*latent_dim"):
        comparison.run()


def test_a_bisection(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    main = load("compare.__main__")
    commits = [f"c{i}" for i in range(9)]
    monkeypatch.setattr(main, "commits_between", lambda a, b: commits)
    for bad in (0, 3, 8):
        tried: list[str] = []

        def compare(words: Any, a: str, b: str, bad: int = bad, tried: Any = tried) -> Any:
            tried.append(b)
            return {"benchmarks": [_judged(load, 1.05 if commits.index(b) >= bad else 1.0)]}

        monkeypatch.setattr(main, "compare", compare)
        assert main.bisect(main.parse(["c", "c8"])) == f"c{bad}"
        assert len(tried) <= 5
    monkeypatch.setattr(main, "compare", lambda *_: {"benchmarks": [_judged(load, 1.0)]})
    with pytest.raises(InputError, match="is not slower than"):
        main.bisect(main.parse(["c", "c8"]))


def test_the_command(
    load: Load, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    main = load("compare.__main__")
    found = {
        "benchmarks": [_judged(load, 1.05)], "not_compared": {}, "machine": {},
        "sides": [{"name": "A<"}, {"name": "B"}],
    }  # fmt: skip
    monkeypatch.setattr(main, "compare", lambda *_: dict(found))
    out = [f"--out={tmp_path / 'x.json'}", f"--html={tmp_path / 'x.html'}"]
    assert main.main(["a", "b", *out]) == 0
    assert "slower" in capsys.readouterr().out
    assert json.loads((tmp_path / "x.json").read_text())["command"].endswith("compare a b")
    assert "A&lt;" in (tmp_path / "x.html").read_text()
    assert main.main(["a", "b", "--fail-above", "1.03"]) == 1
    assert main.main(["a", "b", "--rounds", "3"]) == 2
    assert "fewer than 8 pairs" in capsys.readouterr().err
