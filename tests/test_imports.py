"""The house rules: imports point down, the front door is light, nothing happens on import."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import vaebench
from vaebench.fast.register import TECHNIQUES

ROOT = Path(vaebench.__file__).parent
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in ROOT.rglob("*.py")
}
# The lowest floor first. A module imports from lower floors, and from those named before it on its
# own. What is listed as a room stands for all its modules, which do not import one another.
_HOUSE = """
system.fork system.start errors fast.register workloads config.fields config.groups config engine
system.garbage system.random system.threads system.device system.timing system.info
    system.toolchain system.distributed system.worker
data.images data.idx data.arrays data.files data.download data.strokes data.mnist5k data.load
    data.streaming data.labels data.transforms data.datasets data.loader data.binarize models.code
    models.snapshot models.fingerprint models.protocol likelihoods models.base models.mlp
    models.conv models.networks models.pretrained objective models.adapt.squash models.adapt.names
    models.adapt.read models.adapt.ways models.adapt.between models.adapt.trial
    models.adapt.drawing models.adapt.encoding models.adapt.decoding models.adapt problem
reference fast.direct fast.layout fast.optimizer fast.given fast.step fast.stream fast.parallel
    fast.admit fast.chain.layers fast.chain.kernel fast.chain.read fast.chain.score fast.draft
    fast.crew fast.capture fast.threads fast.kernels.nonzero fast.kernels.triton_tiles
    fast.kernels.triton_update fast.kernels.triton_kernels fast.kernels.triton_step
    fast.flush_denormal fast.tf32 fast.amp fast.products.operators fast.products.layers
    fast.products.choice fast.products.idle fast.joint_update fast.products fast.batch_norm
    fast.tape fast.triton fast.native fast.sparse fast.fused_likelihood fast.compile
    fast.graph fast.build
evaluation
training.history training.schedules training.average training.state training.divergence
    training.callbacks training.memory training.follow training.inputs training.numbers
    training.loop training.fit proof.report proof.rules
    proof.subject proof.verify proof.pairs runs.storage runs.settings runs.folder
    runs.checkpoints
plots.options plots.style plots.plane plots.run plots.sheets plots.curves plots.latent
    plots.manifold plots.explorer plots.film plots.album plots
cli.streams cli.command cli.arguments cli.summary cli.train cli.evaluate cli.verify
    cli.plot
train evaluate __main__
"""
FLOORS = _HOUSE.strip().replace("\n    ", " ").splitlines()
PLACES = {
    name: (floor, place)
    for floor, line in enumerate(FLOORS)
    for place, name in enumerate(line.split())
}


def _imports(path: Path) -> set[str]:
    """Modules of the package that a file imports, anywhere in it; typing and the door aside."""
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
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            modules = [n for n in inner if n.removeprefix("vaebench.") in MODULES]
            names = modules or names
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        found |= {n.removeprefix("vaebench.") for n in names if n.split(".")[0] == "vaebench"}
    return found - {"vaebench"}


INSIDE = sorted(name.removesuffix(".__init__") for name in MODULES if name != "__init__")
# What techniques have in common; they do not know each other.
SHARED = ("register", "step", "optimizer", "layout", "admit", "draft", "crew", "capture", "direct")
EMPTY = {
    "cli",
    "data",
    "fast",
    "models",
    "proof",
    "runs",
    "system",
    "training",
    "fast.chain",
    "fast.kernels",
}  # a docstring each


def _path(module: str) -> Path:
    return MODULES.get(module) or MODULES[f"{module}.__init__"]


@pytest.mark.parametrize("module", INSIDE)
def test_imports_point_down(module: str) -> None:
    if module in EMPTY:
        assert not _imports(_path(module))
        return
    assert len(FLOORS) <= 9
    for imported in _imports(_path(module)):
        name = imported if imported in PLACES else imported.rpartition(".")[0]
        assert PLACES[name] < PLACES[module], f"{module} imports {imported}"


@pytest.mark.parametrize(
    "module", ["models.base", "models.mlp", "models.conv", "models.networks", "objective"]
)
def test_model_and_objective_know_no_machine(module: str) -> None:
    words = ("cuda", "device", "autocast", "compile", "bfloat16")
    code = ast.unparse(_without_docstrings(_path(module)))
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
    assert _imports(MODULES["reference"]) <= {"engine", "system.device"}


def test_techniques_do_not_know_each_other() -> None:
    """But for what they share: the step, memory layouts, and folders that are nobody's own."""
    shared = {f"fast.{name}" for name in SHARED}
    for module in INSIDE:
        if module in [technique.module.removeprefix("vaebench.") for technique in TECHNIQUES]:
            others = {i for i in _imports(_path(module)) if i.startswith("fast")}
            others -= {i for i in others if i.startswith(f"{module}.")}  # its own folder's
            nobodys = {i for i in others if i.startswith(("fast.kernels.", "fast.chain."))}
            assert others <= shared | nobodys, module


def test_the_trainer_knows_engines_by_what_they_do() -> None:
    assert not [i for i in _imports(_path("training.fit")) if i in ("fast.step", "fast.compiled")]


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
    # The compiler takes longer to load than all else that a short training does beside training.
    assert not loaded & {"torchvision", "matplotlib", "torch._dynamo"}


def test_every_public_name_is_there() -> None:
    assert set(vaebench.__all__) == set(vaebench._MODULES)
    for name in vaebench.__all__:
        assert getattr(vaebench, name).__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        vaebench.nonsense  # noqa: B018
