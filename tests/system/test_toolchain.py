"""Building native kernels: once, whole, and with one clear line where it cannot be done."""

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.tiers import first
from vaebench import VAE, fit
from vaebench.fast import fused_likelihood, sparse
from vaebench.fast.chain.kernel import kernel as native_kernel
from vaebench.system import toolchain
from vaebench.system.toolchain import CompileError, load_kernels

LIKELIHOOD = ("vectors.h", "bernoulli.h", "fused_likelihood.cpp")


@pytest.fixture(autouse=True)
def _as_in_a_new_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing is built or loaded yet."""
    loaded = (load_kernels, native_kernel, sparse._kernel, fused_likelihood._kernel)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    for kernel in loaded:
        kernel.cache_clear()
    yield
    for kernel in loaded:
        kernel.cache_clear()


def _built(folder: Path) -> list[Path]:
    return sorted((folder / "vaebench").iterdir())


def test_built_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load_kernels(*LIKELIHOOD)
    (library,) = _built(tmp_path)  # nothing else is left lying about
    assert library.name.startswith("fused_likelihood-")
    assert library.suffix == ".so"
    load_kernels.cache_clear()
    monkeypatch.setattr(toolchain, "_build", None)  # calling it would be an error
    load_kernels(*LIKELIHOOD)


def test_other_flags_are_another_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load_kernels(*LIKELIHOOD)
    load_kernels.cache_clear()
    monkeypatch.setattr(toolchain, "FLAGS", [*toolchain.FLAGS, "-DOTHER"])
    load_kernels(*LIKELIHOOD)
    assert len(_built(tmp_path)) == 2


def test_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(CompileError, match="needs a C\\+\\+ compiler and there is none: install"):
        load_kernels(*LIKELIHOOD)


@pytest.mark.parametrize("compiler", ["/nowhere/g++", "false"])
def test_a_compiler_that_does_not_work(compiler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", compiler)
    with pytest.raises(CompileError, match=f"CXX names \\({compiler.replace('+', '.')}\\)"):
        load_kernels(*LIKELIHOOD)


def test_a_source_that_does_not_compile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolchain, "SOURCES", tmp_path)
    (tmp_path / "wrong.cpp").write_text("int wrong = ;")
    with pytest.raises(CompileError, match=r"failed: .*error") as caught:
        load_kernels("wrong.cpp")
    assert "\n" not in str(caught.value)
    assert not _built(tmp_path)


# Kernels that were kept


def _build_and_forget(folder: Path) -> Path:
    """Build a kernel; give the file that it is kept in."""
    load_kernels(*LIKELIHOOD)
    load_kernels.cache_clear()
    (library,) = _built(folder)
    return library


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "cut to a page": lambda content: content[:4096],  # loading it would end the process
    "cut by a byte": lambda content: content[:-1],
    "one bit flipped": lambda content: content[:5000] + bytes([content[5000] ^ 1]) + content[5001:],
    "text": lambda content: b"no library at all\n",
}


@pytest.mark.parametrize("damage", first(2, DAMAGE.values()), ids=DAMAGE)
def test_a_damaged_kernel_is_built_anew(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    library = _build_and_forget(tmp_path)
    whole = library.read_bytes()
    library.unlink()  # this process has that one in use
    library.write_bytes(damage(whole))
    assert load_kernels(*LIKELIHOOD).vaebench_bernoulli
    assert _built(tmp_path) == [library]
    assert library.read_bytes() == whole


def test_a_kernel_of_another_machine_is_built_anew_beside_it(tmp_path: Path) -> None:
    """Its name says that it is whole: the folder may be shared with a machine that can load it."""
    library = _build_and_forget(tmp_path)
    theirs = library.read_bytes()[:4096].replace(b"ELF\2", b"ELF\1")  # of another word length
    stem = library.stem.rpartition("-")[0]
    library.unlink()
    other = library.with_name(f"{stem}-{toolchain._digest(theirs)}.so")
    other.write_bytes(theirs)
    assert load_kernels(*LIKELIHOOD).vaebench_bernoulli
    assert set(_built(tmp_path)) == {library, other}


def test_a_folder_in_the_place_of_the_kernel_is_let_be(tmp_path: Path) -> None:
    library = _build_and_forget(tmp_path)
    library.unlink()
    library.mkdir()
    with pytest.warns(UserWarning, match="built kernels cannot be kept .*Is a directory"):
        assert load_kernels(*LIKELIHOOD).vaebench_bernoulli
    assert _built(tmp_path) == [library]
    assert library.is_dir()


def test_two_processes_at_once(tmp_path: Path) -> None:
    code = (
        "from vaebench.system.toolchain import load_kernels\n"
        f"assert load_kernels(*{LIKELIHOOD}).vaebench_bernoulli"
    )
    env = {**os.environ, "PYTHONWARNINGS": "error"}
    both = [subprocess.Popen([sys.executable, "-c", code], env=env) for _ in range(2)]
    assert [process.wait(timeout=120) for process in both] == [0, 0]
    (library,) = _built(tmp_path)
    assert library.suffix == ".so"


# Folders that kernels cannot be kept in


def _no_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def nobody() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", nobody)


def _home_in_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HOME", str(tmp_path / "file"))


def _vanishing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = toolchain._compile

    def compile_late(command: list[str], text: str, folder: Path) -> Path:
        shutil.rmtree(tmp_path / "home", ignore_errors=True)
        return real(command, text, folder)

    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(toolchain, "_compile", compile_late)


@pytest.mark.parametrize("trouble", [_no_home, _home_in_a_file, _vanishing])
def test_a_folder_that_is_not_there(
    trouble: Callable[[pytest.MonkeyPatch, Path], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    trouble(monkeypatch, tmp_path)
    with pytest.warns(UserWarning, match="built kernels cannot be kept .* XDG_CACHE_HOME") as said:
        assert load_kernels(*LIKELIHOOD).vaebench_bernoulli
    assert len(said) == 1
    assert "\n" not in str(said[0].message)


MOUNTS = {  # how the folder for keeping is mounted, and what a start with no kernel there says
    "ro": "Read-only file system",
    "size=4k": "No space left on device",  # the source does not fit
    "size=28k": "No space left on device",  # nor does what the compiler makes of it,
    "size=36k": "No space left on device",  # nor the linker
    "noexec": None,  # a copy of what is kept is loaded
}


@pytest.mark.parametrize(("mount", "said"), first(2, MOUNTS.items()), ids=MOUNTS)
def test_a_mounted_folder(mount: str, said: str | None, tmp_path: Path) -> None:
    done = _in_mounts({tmp_path / "cache": mount}, tmp_path / "cache")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == (["built", "built"] if said else ["built", "kept"])
    if said:
        assert said in done.stderr
        assert "): each start builds them anew" in done.stderr
    else:
        assert done.stderr == ""


def test_no_folder_that_programs_may_run_from(tmp_path: Path) -> None:
    """Nor any for temporary files: then it cannot be done, and one line says so."""
    mounts = {tmp_path / "cache": "noexec", tmp_path / "tmp": "noexec"}
    done = _in_mounts(mounts, tmp_path / "cache", TMPDIR=str(tmp_path / "tmp"))
    assert done.returncode == 1
    error = done.stderr.splitlines()[-1]
    assert "CompileError: a native kernel can neither be kept (" in error
    assert "let TMPDIR name a folder" in error


def test_no_folder_for_temporary_files_is_needed(tmp_path: Path) -> None:
    done = _in_mounts(
        {tmp_path / "tmp": "noexec"}, tmp_path / "cache", TMPDIR=str(tmp_path / "tmp")
    )
    assert (done.returncode, done.stdout.split(), done.stderr) == (0, ["built", "kept"], "")


LOAD_TWICE = f"""
import sys
from vaebench.system import toolchain
real, built = toolchain._compile, []
toolchain._compile = lambda *args: built.append(args) or real(*args)
for start in range(2):
    built.clear()
    toolchain.load_kernels.cache_clear()
    assert toolchain.load_kernels(*{LIKELIHOOD}).vaebench_bernoulli
    print("built" if built else "kept")
"""


def _in_mounts(
    mounts: dict[Path, str], cache: Path, **env: str
) -> "subprocess.CompletedProcess[str]":
    """Load a kernel twice, as two processes would, where folders are mounted as told."""
    allowed = ["unshare", "-rm", "true"]
    if not shutil.which("unshare") or subprocess.run(allowed, capture_output=True).returncode:
        pytest.skip("this process may not mount")
    lines = []
    for folder, how in mounts.items():
        folder.mkdir()
        lines.append(f"mount -t tmpfs -o {how} none {folder}")
        if folder == cache and how == "ro":  # its own folder in it is there
            lines[-1:] = [
                f"mount -t tmpfs none {folder}",
                f"mkdir {folder}/vaebench",
                f"mount -o remount,ro {folder}",
            ]
    lines.append(shlex.join(["exec", sys.executable, "-c", LOAD_TWICE]))
    words = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(cache), **env}
    return subprocess.run(
        ["unshare", "-rm", "sh", "-ec", "\n".join(lines)],
        capture_output=True, text=True, timeout=120, env=words,
    )  # fmt: skip


def test_a_compiler_that_speaks_another_language(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its errors are looked for in English."""
    compiler = tmp_path / "german"
    compiler.write_text(
        "#!/bin/sh\n[ $1 = --version ] && exit\n"
        'echo "kernel.cpp:1: $([ $LC_ALL = C ] && echo error || echo Fehler): wrong" >&2\nexit 1\n'
    )
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    with pytest.raises(CompileError, match=r"german failed: kernel.cpp:1: error: wrong"):
        load_kernels(*LIKELIHOOD)


def test_without_a_compiler_training_is_eager_and_says_so(
    strokes: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.warns(UserWarning, match="apt install g\\+\\+; .*training eagerly"):
        history = fit(
            VAE(hidden_dims=(20,), latent_dim=6), strokes[:64], epochs=1, batch_size=32,
            device="cpu", compile=True,
        )  # fmt: skip
    assert history.actual["compile"] is history.actual["native"] is False
    assert torch.tensor(history.epochs[-1].train_elbo).isfinite()
