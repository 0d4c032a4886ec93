"""Building native kernels: once, whole, and with one clear line where it cannot be done."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from vaebench import VAE, fit
from vaebench.fast import fused_likelihood, native, sparse
from vaebench.system import toolchain
from vaebench.system.toolchain import CompileError, load_kernels

LIKELIHOOD = ("vectors.h", "bernoulli.h", "likelihood.cpp")


@pytest.fixture(autouse=True)
def _as_in_a_new_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing is built or loaded yet."""
    loaded = (load_kernels, native._kernel, sparse._kernel, fused_likelihood._kernel)
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
    assert library.name.startswith("likelihood-")
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


def test_a_folder_that_cannot_be_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "file"))
    assert load_kernels(*LIKELIHOOD).vaebench_bernoulli


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
