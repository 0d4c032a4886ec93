"""``python -m vaebench`` and the console script: one door to all commands, and it is light."""

import ast
import importlib.metadata
import json
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

import vaebench
from vaebench.__main__ import COMMANDS, entry, main
from vaebench.data.strokes import make_strokes

ROOT = Path(__file__).parents[2]


def _run(*args: object) -> "subprocess.CompletedProcess[str]":
    words = [sys.executable, "-m", "vaebench", *map(str, args)]
    return subprocess.run(words, capture_output=True, text=True, timeout=120)


def test_help_lists_each_command_in_a_line_without_torch() -> None:
    code = (
        "import sys; from vaebench.__main__ import main\n"
        "assert main(['--help']) == 0\n"
        "assert not {'torch', 'numpy', 'matplotlib'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    lines = [line.split() for line in done.stdout.splitlines() if line.startswith("  ")]
    assert [line[0] for line in lines] == list(COMMANDS)
    assert all(len(line) < 80 for line in done.stdout.splitlines())


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_a_help_of_its_own_without_torch(command: str) -> None:
    code = (
        "import sys; from vaebench.__main__ import main\n"
        f"try: main([{command!r}, '--help'])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "usage:" in done.stdout
    assert callable(import_module(f"vaebench.cli.{command}").main)


def test_version_is_written_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"vaebench {vaebench.__version__}\n"
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert vaebench.__version__ not in project
    # Building reads it without running the module, which it can of a literal alone.
    tree = ast.parse((ROOT / "vaebench" / "__init__.py").read_text(encoding="utf-8"))
    assigned = {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and node.targets[0].id == "__version__"
    }
    assert assigned == {"__version__": vaebench.__version__}


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ([], "a command is missing"),
        (["trian"], "'trian' is no command"),
        (["--data", "strokes"], "'--data' is no command"),
        (["--help", "train"], "'--help' is no command"),
        (["tra\nin"], "is no command"),
    ],
)
def test_no_command(args: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(args) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "choose from train, evaluate, verify, plot" in error
    assert error.count("\n") == 1


def test_the_console_script_is_this_door() -> None:
    scripts = importlib.metadata.entry_points(group="console_scripts", name="vaebench")
    for script in scripts:  # none in an environment that was set up before there was one
        assert script.load() is entry
    assert 'vaebench = "vaebench.__main__:entry"' in (ROOT / "pyproject.toml").read_text()


def test_train_evaluate_and_plot(tmp_path: Path) -> None:
    images = make_strokes(120, seed=3)[0].numpy()
    np.savez(tmp_path / "x.npz", x_train=images[:100], x_test=images[100:])
    run = tmp_path / "run"
    words = "--epochs 1 --hidden-dim 8 --latent-dim 2 --batch-size 50 --device cpu --quiet".split()
    for args in (
        ["train", "--data", tmp_path / "x.npz", "--out", run, *words],
        ["evaluate", run, "--samples", 2, "--quiet"],
        ["plot", run, "curves"],
    ):
        done = _run(*args)
        assert (done.returncode, done.stderr) == (0, ""), args
    assert json.loads((run / "evaluation.json").read_text())["images"] == 20
    assert done.stdout == f"{run / 'pictures' / 'curves.png'}\n"
    assert _run("evaluate", tmp_path).returncode == 2


def test_a_process_of_its_own_is_set_up_before_torch_is_loaded() -> None:
    """And nobody else's: neither by importing, nor by calling ``main``."""
    program = (
        "import gc, os, sys\n"
        "import vaebench.cli.train\n"
        "from vaebench.__main__ import main\n"
        "def told(): return os.environ.get('GOMP_SPINCOUNT'), gc.get_threshold()[0]\n"
        "before = told()\n"
        "main(['--version'])\n"
        "assert told() == before, told()\n"
        "from vaebench.cli.command import alone\n"
        "assert alone(lambda: print(*told(), 'torch' in sys.modules) or 3) == 3\n"
    )
    for given, spins in (({}, "2000"), ({"GOMP_SPINCOUNT": "7"}, "7")):
        names = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
        env = {name: value for name, value in os.environ.items() if name not in names}
        line = [sys.executable, "-c", program]
        env |= given
        ran = subprocess.run(line, env=env, capture_output=True, text=True, check=True)
        assert ran.stdout.splitlines()[1] == f"{spins} 50000 False"
