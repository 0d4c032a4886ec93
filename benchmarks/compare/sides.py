"""What is compared: requirements, commits, source trees, Pythons; and environments of them."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.harness import ROOT, say
from vaebench import InputError

_REQUIREMENT = re.compile(r"[A-Za-z0-9][\w.-]*(\[[\w,.-]+\])?\s*([=<>!~]=|[<>@]).+")
SHOWN = "a requirement such as torch==2.13.0, a commit, the folder of a source tree, or a Python"


@dataclass(frozen=True)
class Side:
    """One of the two that are compared, ready to run.

    Args:
        name: as it was written.
        python: the program that runs it.
        tree: the folder that has ``vaebench`` in it; None: what the Python has installed.
        commit: of the tree, where it is one.
    """

    name: str
    python: Path
    tree: Path | None
    commit: str | None = None

    def env(self, kernels: Path) -> dict[str, str]:
        """The environment variables of its processes; kernels that they build lie in a folder."""
        own = {"TORCHINDUCTOR_CACHE_DIR": str(kernels)}
        if self.tree:
            own["PYTHONPATH"] = str(self.tree)
        return {**os.environ, **own}


def home() -> Path:
    """Where environments, trees and unfinished comparisons are kept."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "vaebench-compare"


def side_of(text: str) -> Side:
    """Make what ``text`` names: parts joined by ``+``; what is made once is kept.

    Raises:
        InputError: a part is none of what can be compared, or its environment cannot be made.
    """
    requirements, tree, python, commit = [], None, None, None
    for part in filter(None, map(str.strip, text.split("+"))):
        path = Path(part).expanduser()
        if _REQUIREMENT.fullmatch(part):
            requirements.append(part)
        elif path.is_file() and os.access(path, os.X_OK):
            python = path.absolute()
        elif (path / "vaebench" / "__init__.py").is_file():
            tree = path.resolve()
        elif found := _commit(part):
            tree, commit = _tree_of(found), found
        else:
            raise InputError(f"{part!r} is nothing that can be compared: give {SHOWN}")
    if python and requirements:
        raise InputError(f"{text!r} names a Python and a requirement: install that there yourself")
    if not (requirements or tree or python):
        raise InputError(f"{text!r} names nothing: give {SHOWN}")
    if requirements:
        tree = tree or ROOT
        python = _environment(requirements, tree)
    if tree is None and python is None:
        tree = ROOT
    return Side(text, python or Path(sys.executable), tree, commit)


def commits_between(good: str, bad: str) -> list[str]:
    """The commits after ``good`` up to ``bad``, oldest first, along first parents.

    Raises:
        InputError: they are no commits, or one does not follow the other.
    """
    for name in (good, bad):
        if not _commit(name):
            raise InputError(f"{name!r} is no commit: --bisect goes from one to another")
    listed = _git("rev-list", "--reverse", "--first-parent", f"{good}..{bad}").split()
    if not listed:
        raise InputError(f"no commit lies between {good} and {bad}")
    return listed


def _commit(name: str) -> str | None:
    try:
        return _git("rev-parse", "--verify", "--quiet", f"{name}^{{commit}}").strip() or None
    except InputError:
        return None


def _git(*words: str) -> str:
    done = _run(["git", "-C", str(ROOT), *words])
    if done.returncode:
        raise InputError(f"git {words[0]} failed: {_last_line(done.stderr)}")
    return done.stdout


def _run(command: Sequence[str]) -> "subprocess.CompletedProcess[str]":
    try:
        return subprocess.run(command, capture_output=True, text=True, errors="replace")
    except OSError as error:
        raise InputError(f"{command[0]} cannot be run: {error.strerror}") from error


def _tree_of(commit: str) -> Path:
    """The files of a commit, in a folder of their own."""
    tree = home() / "trees" / commit
    if tree.is_dir():
        return tree
    making = tree.with_name(f"{commit}.{os.getpid()}")
    making.mkdir(parents=True)
    archive = making.with_suffix(".tar")
    try:
        _git("archive", "--output", str(archive), commit)
        shutil.unpack_archive(archive, making)
        os.replace(making, tree)
    finally:
        archive.unlink(missing_ok=True)
        shutil.rmtree(making, ignore_errors=True)
    if not (tree / "vaebench" / "__init__.py").is_file():
        raise InputError(f"commit {commit[:12]} has no vaebench package")
    return tree


def _environment(requirements: Sequence[str], tree: Path) -> Path:
    """A virtual environment with these requirements and what vaebench needs; gives its Python."""
    project = (tree / "pyproject.toml").read_text(encoding="utf-8")
    key = digest(sys.version, project, *sorted(requirements))
    folder = home() / "environments" / key
    python = folder / "bin" / "python"
    if (folder / "complete").exists():
        return python
    say(f"making an environment with {', '.join(requirements)}: minutes, once")
    shutil.rmtree(folder, ignore_errors=True)
    # Installing writes into the source tree: it is a copy's.
    with tempfile.TemporaryDirectory(prefix="vaebench-compare-") as name:
        source = Path(name) / "tree"
        shutil.copytree(tree / "vaebench", source / "vaebench")
        for file in ("pyproject.toml", "README.md"):
            shutil.copy(tree / file, source)
        for command in (
            [sys.executable, "-m", "venv", str(folder)],
            [str(python), "-m", "pip", "install", "--quiet", str(source), *requirements],
        ):
            done = _run(command)
            if done.returncode:
                shutil.rmtree(folder, ignore_errors=True)
                wanted = ", ".join(requirements)
                reason = _last_line(done.stderr)
                raise InputError(f"no environment with {wanted} can be made: {reason}")
    (folder / "complete").touch()
    return python


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower()]
    return (errors or lines or ["it said nothing"])[-1][:300]


def digest(*texts: str) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]
