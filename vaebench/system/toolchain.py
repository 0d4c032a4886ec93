"""Native kernels: C++ sources of this package, compiled on the machine that they run on.

They include no headers but the language's own, so that the compiler takes seconds, and call no
library but OpenMP, whose threads are torch's. The compiler is the one that ``torch.compile`` takes:
what ``CXX`` names, else g++ or clang++.

A built kernel is kept for later processes, under a name that holds two digests: of all that it was
built from, and of its content. What is damaged, or cannot be loaded here, is built anew. Where
nothing can be kept, a kernel is built for this process alone.
"""

import contextlib
import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from vaebench.errors import one_line

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
    stem = f"{Path(names[-1]).stem}-{_digest(key.encode())}"
    try:
        folder = _folder()
        for library in _cached(folder, stem):
            with contextlib.suppress(OSError):  # another machine's, perhaps
                return _load(library)
        return _build(command, text, stem, folder)
    except (OSError, CompileError) as error:
        return _build_for_this_process(command, text, error)


def _folder() -> Path:
    """Where built kernels are kept: beside torch's compiled code if that is named, else at home."""
    named = os.environ.get("TORCHINDUCTOR_CACHE_DIR") or os.environ.get("XDG_CACHE_HOME")
    try:
        folder = Path(named or Path.home() / ".cache") / "vaebench"
    except RuntimeError as error:  # nobody's home
        raise OSError(str(error)) from None
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _cached(folder: Path, stem: str) -> Iterator[Path]:
    """Find the whole libraries of this stem; remove damaged ones.

    Loading a file that was cut short may end the process, so it is not tried.
    """
    for path in sorted(folder.glob(f"{stem}-*.so")):
        with contextlib.suppress(OSError):  # a folder of that name; another process was faster
            if path.stem == f"{stem}-{_digest(path.read_bytes())}":
                yield path
            else:
                path.unlink()


def _load(library: Path) -> ctypes.CDLL:
    """Load a library; where it lies in a folder that nothing may be run from, a copy of it."""
    try:
        return ctypes.CDLL(str(library))
    except OSError:
        with _temporary_folder() as folder:
            return ctypes.CDLL(str(shutil.copy(library, folder)))


def _build(command: list[str], text: str, stem: str, folder: Path) -> ctypes.CDLL:
    """Compile in a folder, load, and keep there; whoever else builds it too finds it whole."""
    with _temporary_folder(folder) as place:
        built = _compile(command, text, place)
        library = _load(built)
        try:
            os.replace(built, folder / f"{stem}-{_digest(built.read_bytes())}.so")
        except OSError as error:  # such as a folder of that name
            _warn_not_kept(error)
        return library


def _build_for_this_process(command: list[str], text: str, trouble: Exception) -> ctypes.CDLL:
    """Compile in a temporary folder, since there was ``trouble`` with the one for keeping."""
    try:
        with _temporary_folder() as place:
            library = ctypes.CDLL(str(_compile(command, text, place)))
    except OSError as error:
        raise CompileError(
            f"a native kernel can neither be kept ({_reason(trouble)}) nor be built and loaded in "
            f"a temporary folder ({_reason(error)}): let TMPDIR name a folder that can be written "
            "to and that programs may run from"
        ) from error
    _warn_not_kept(trouble)
    return library


def _warn_not_kept(trouble: Exception) -> None:
    named = "TORCHINDUCTOR_CACHE_DIR"
    variable = named if os.environ.get(named) else "XDG_CACHE_HOME"
    warnings.warn(
        f"built kernels cannot be kept ({_reason(trouble)}): each start builds them anew, which "
        f"takes seconds; let {variable} name a folder that can be written to",
        stacklevel=1,  # one place, so that it is shown once for several kernels
    )


def _compile(command: list[str], text: str, folder: Path) -> Path:
    """Compile a source in a folder that is ours; give the library.

    Raises:
        CompileError: the compiler fails.
        OSError: the folder cannot be written to.
    """
    source, built = folder / "kernel.cpp", folder / "kernel.so"
    source.write_text(text, encoding="utf-8")
    line = [*command, str(source), "-o", str(built)]
    # In English, for what is looked for below; what it writes on its way belongs here too.
    env = {**os.environ, "LC_ALL": "C", "TMPDIR": str(folder)}
    try:
        done = subprocess.run(line, capture_output=True, text=True, errors="replace", env=env)
    except OSError:
        raise broken_compiler() from None
    if done.returncode or not built.exists():
        said = done.stderr.splitlines()
        errors = [line for line in said if "error" in line or "failed" in line]  # the linker's word
        if not errors:
            raise broken_compiler()
        raise CompileError(f"the C++ compiler {command[0]} failed: {errors[0].strip()}")
    return built


@contextlib.contextmanager
def _temporary_folder(within: Path | None = None) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(
        prefix="vaebench-", dir=within, ignore_cleanup_errors=True
    ) as name:
        yield Path(name)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return one_line(error)


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
        done = subprocess.run(
            [compiler, "--version"], capture_output=True, text=True, errors="replace"
        )
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
