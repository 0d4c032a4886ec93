"""The house rules: imports point down, the front door is light, nothing happens on import."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import vaebench

ROOT = Path(vaebench.__file__).parent
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in ROOT.rglob("*.py")
}
# The lowest floor first; a module imports from floors below its own, or from its own.
FLOORS = [
    {"errors", "checks", "config", "schedule", "engine", "idx", "arrays", "files", "download"}
    | {"data", "strokes", "binarize", "model", "conv", "networks", "elbo", "machine", "trial"}
    | {"processes", "history", "layout", "toolchain", "lock", "settings", "storage", "state"}
    | {"streaming"},
    {"fast", "reference", "checkpoint", "divergence", "memory", "imported"},
    {"trainer", "loop", "evaluation", "resume"},
    {"pictures"},
    {"train", "evaluate"},
]


def _imports(path: Path) -> set[str]:
    """Modules of the package that a file imports, anywhere in it, typing aside."""
    found = set()
    tree = ast.parse(path.read_text())
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
            if node.module == "vaebench":
                names = [f"vaebench.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        found |= {n.removeprefix("vaebench.") for n in names if n.split(".")[0] == "vaebench"}
    return found


def _room(module: str) -> str:
    return module.split(".")[0]


def _floor(module: str) -> int:
    return next(i for i, floor in enumerate(FLOORS) if _room(module) in floor)


INSIDE = sorted(name for name in MODULES if name != "__init__")


@pytest.mark.parametrize("module", INSIDE)
def test_imports_point_down(module: str) -> None:
    for imported in _imports(MODULES[module]):
        assert _floor(imported) <= _floor(module), f"{module} imports {imported}"


@pytest.mark.parametrize("module", ["model", "conv", "networks", "elbo"])
def test_model_and_objective_know_no_machine(module: str) -> None:
    words = ("cuda", "device", "autocast", "compile", "bfloat16")
    code = ast.unparse(_without_docstrings(MODULES[module]))
    allowed = code.replace("device=weight.device", "")
    assert not [word for word in words if word in allowed]


def _without_docstrings(path: Path) -> ast.Module:
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
            body[0] = ast.Pass()
    return tree


def test_the_reference_shares_nothing_with_the_fast_path() -> None:
    assert _imports(MODULES["reference"]) <= {"engine"}


def test_techniques_do_not_know_each_other() -> None:
    """Except that the step is what is compiled, and that Triton's kernels have their own file."""
    own = {
        "fast.triton_step": {"fast.triton_kernels"},
        "fast.triton_kernels": {"fast.triton_tiles"},
    }
    for module in INSIDE:
        if module.startswith("fast.") and module != "fast.__init__":
            others = {i for i in _imports(MODULES[module]) if i.startswith("fast")}
            assert others <= {"fast.step"} | own.get(module, set()), module


def test_the_trainer_knows_engines_by_what_they_do() -> None:
    assert not [i for i in _imports(MODULES["trainer"]) if i in ("fast.step", "fast.compiled")]


@pytest.mark.parametrize("room", ["tests", "benchmarks", "scripts"])
def test_rooms_do_not_import_each_other(room: str) -> None:
    others = {"tests", "benchmarks", "scripts"} - {room}
    for path in (ROOT.parent / room).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert (node.module or "").split(".")[0] not in others, path
            elif isinstance(node, ast.Import):
                assert not {a.name.split(".")[0] for a in node.names} & others, path


def _modules_after(code: str) -> set[str]:
    code += "\nimport sys\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_the_front_door_is_light() -> None:
    loaded = _modules_after("import vaebench; assert 'fit' in dir(vaebench)")
    assert not loaded & {"torch", "torchvision", "matplotlib", "numpy"}


def test_training_needs_no_torchvision_no_matplotlib_no_cuda() -> None:
    loaded = _modules_after(
        "import vaebench, torch\n"
        "[getattr(vaebench, name) for name in vaebench.__all__]\n"
        "vaebench.fit(vaebench.VAE((4, 4)), torch.zeros(8, 4, 4), batch_size=4, device='cpu')\n"
        "assert not torch.cuda.is_initialized()"
    )
    assert not loaded & {"torchvision", "matplotlib"}


def test_every_public_name_is_there() -> None:
    assert set(vaebench.__all__) == set(vaebench._HOME)
    for name in vaebench.__all__:
        assert getattr(vaebench, name).__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        vaebench.nonsense  # noqa: B018
