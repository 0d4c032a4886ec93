"""Native kernels: C++ sources of this package, compiled on the machine that they run on.

They include no headers but the language's own, so that the compiler takes seconds, and call no
library but OpenMP, whose threads are torch's. The compiler is the one that ``torch.compile`` takes:
what ``CXX`` names, else g++ or clang++.
"""

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

SOURCES = Path(__file__).parents[1] / "fast" / "kernels"  # where they lie
FLAGS = "-std=c++17 -O3 -fopenmp -shared -fPIC -ffp-contract=fast -fno-trapping-math".split()
INSTALL = (
    "install one (Debian, Ubuntu: apt install g++; Fedora: dnf install gcc-c++; "
    "macOS: xcode-select --install)"
)


class CompileError(RuntimeError):
    """Something cannot be compiled here; the message is one line: the reason and the remedy."""


def no_compiler(what: str) -> CompileError:
    """Say that ``what`` needs a C++ compiler and there is none."""
    return CompileError(f"{what} needs a C++ compiler and there is none: {INSTALL}")


def broken_compiler() -> CompileError:
    """Say that the C++ compiler does not work, and whether ``CXX`` chose it."""
    named = os.environ.get("CXX")
    which = f", which CXX names ({named})," if named else ""
    return CompileError(f"the C++ compiler{which} does not work: unset CXX, or {INSTALL}")


@cache
def load_kernels(*names: str) -> ctypes.CDLL:
    """Build C++ sources as one, or find them built, and load them.

    Args:
        names: files of ``vaebench/fast/kernels``, each after those that it needs.

    Raises:
        CompileError: there is no compiler, or it does not do this.
    """
    text = "\n".join((SOURCES / name).read_text(encoding="utf-8") for name in names)
    command = [*_compiler(), *FLAGS, _for_this_processor()]
    key = "\n".join([text, *command, _version(command[0]), _processor()])
    library = _folder() / f"{Path(names[-1]).stem}-{hashlib.sha256(key.encode()).hexdigest()}.so"
    if not library.exists():
        _build(command, text, library)
    return ctypes.CDLL(str(library))


def _build(command: list[str], text: str, library: Path) -> None:
    """Compile; a library appears under its name when it is whole, whoever else builds it too."""
    with tempfile.TemporaryDirectory(dir=library.parent) as name:
        source, built = Path(name) / "kernel.cpp", Path(name) / "kernel.so"
        source.write_text(text, encoding="utf-8")
        line = [*command, str(source), "-o", str(built)]
        try:
            done = subprocess.run(line, capture_output=True, text=True, errors="replace")
        except OSError:
            raise broken_compiler() from None
        if done.returncode or not built.exists():
            errors = [said for said in done.stderr.splitlines() if "error" in said]
            if not errors:
                raise broken_compiler()
            raise CompileError(f"the C++ compiler {command[0]} failed: {errors[0].strip()}")
        os.replace(built, library)


def _compiler() -> list[str]:
    named = os.environ.get("CXX")
    if named:
        return shlex.split(named)
    for name in ("g++", "clang++"):
        if shutil.which(name):
            return [name]
    raise no_compiler("a native kernel")


def _for_this_processor() -> str:
    return "-march=native" if platform.machine() in ("x86_64", "AMD64") else "-mcpu=native"


def _version(compiler: str) -> str:
    try:
        done = subprocess.run([compiler, "--version"], capture_output=True, text=True)
    except OSError:
        raise broken_compiler() from None
    return done.stdout


def _processor() -> str:
    """What instructions this processor knows: a folder may be shared by several machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        return platform.processor()


def _folder() -> Path:
    """Where built kernels are kept: beside torch's compiled code if that is named, else at home."""
    torch_s = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = Path(torch_s) if torch_s else home
    try:
        (folder / "vaebench").mkdir(parents=True, exist_ok=True)
        return folder / "vaebench"
    except OSError:  # no home, or not to be written to
        return Path(_for_this_process().name)


@cache
def _for_this_process() -> "tempfile.TemporaryDirectory[str]":
    """A folder that goes when the process does."""
    return tempfile.TemporaryDirectory(prefix="vaebench-")
