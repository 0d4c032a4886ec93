"""What the world does to a training: one clear line, a status, and nothing finished is lost."""

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch._inductor.config
from torch import Tensor

import vaebench
from tests.engines import make_engine
from vaebench.cli.train import main
from vaebench.data.strokes import make_strokes
from vaebench.errors import ResourceError, TrainingError
from vaebench.models.networks import KINDS
from vaebench.objective import Objective
from vaebench.runs.checkpoints import find, read
from vaebench.runs.folder import METRICS, MODEL
from vaebench.system.random import TRAINING, random_stream
from vaebench.training.divergence import is_finite
from vaebench.training.memory import ran_out

EPOCHS = 3


@pytest.fixture(autouse=True)
def _as_we_were() -> Iterator[None]:
    threads, handler = torch.get_num_threads(), signal.getsignal(signal.SIGTERM)
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture(scope="module")
def npz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    images = make_strokes(200, seed=3)[0].numpy()
    path = tmp_path_factory.mktemp("data") / "small.npz"
    np.savez(path, x_train=images[:170], x_test=images[170:])
    return path


SMALL = "--device cpu --threads 1 --hidden-dim 24 --latent-dim 3 --batch-size 64 --quiet".split()


def _train(npz: Path, out: Path, *args: str) -> int:
    words = ["--data", str(npz), "--out", str(out), *SMALL, "--epochs", str(EPOCHS)]
    return main([*words, *args])


@pytest.fixture(scope="module")
def whole(npz: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same training, undisturbed."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    assert _train(npz, out) == 0
    return out


def _one_line(capsys: pytest.CaptureFixture[str]) -> str:
    errors = capsys.readouterr().err
    assert errors.startswith("vaebench: ")
    assert errors.count("\n") == 1, errors
    return errors


# A disk that fails at one moment and is well again: every moment in turn. A training of three
# epochs forces files, or a folder's names, to the disk this many times: the settings, the
# checkpoint, the line and the model of each epoch, the result.
FORCED = 2 + (2 + 1 + 2) * EPOCHS + 2


@pytest.mark.parametrize("at", [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 14, FORCED - 1, FORCED])
def test_a_disk_full_at_any_moment(
    at: int,
    npz: Path,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    calls, real, out = [0], os.fsync, tmp_path / "run"

    def failing(handle: int) -> None:
        calls[0] += 1
        if calls[0] == at:
            raise OSError(28, "No space left on device")
        real(handle)

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", failing)
        assert _train(npz, out) == 3
    said = _one_line(capsys)
    assert "cannot be written: No space left on device" in said
    if not out.exists():
        assert "no epoch was finished before" in said
        assert at <= 3
        return
    assert f"the last good epoch is in {out}" in said
    read(find(out)[-1])
    vaebench.load(out) if (out / MODEL).exists() else None
    assert main(["--resume", str(out)]) == 0
    assert (out / MODEL).read_bytes() == (whole / MODEL).read_bytes()
    epochs = [json.loads(line)["epoch"] for line in (out / METRICS).read_text().splitlines()]
    assert epochs == [1, 2, 3]
    assert sorted(p.name for p in out.iterdir()) == sorted(p.name for p in whole.iterdir())


def test_the_moments_above_are_all_there_are(
    npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, real = [0], os.fsync

    def counting(handle: int) -> None:
        calls[0] += 1
        real(handle)

    monkeypatch.setattr("os.fsync", counting)
    assert _train(npz, tmp_path / "run") == 0
    assert calls[0] == FORCED


def _remove(folder: Path) -> None:
    shutil.rmtree(folder)


def _lock_up(folder: Path) -> None:
    folder.chmod(stat.S_IRUSR | stat.S_IXUSR)


@pytest.mark.parametrize(
    ("fault", "said"), [(_remove, "its folder is gone"), (_lock_up, "Permission denied")]
)
def test_a_folder_taken_away(
    fault: Callable[[Path], None],
    said: str,
    npz: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if fault is _lock_up and os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    from vaebench.cli.train import _Keeper

    keep, out = _Keeper.keep, tmp_path / "run"

    def keep_then_fail(self: _Keeper, state: vaebench.TrainState) -> None:
        keep(self, state)
        if len(state.epochs) == 2:
            fault(out)

    monkeypatch.setattr(_Keeper, "keep", keep_then_fail)
    assert _train(npz, out) == 3
    error = _one_line(capsys)
    assert said in error
    if fault is _lock_up:
        out.chmod(0o700)
        assert "checkpoint-000002" in error
        assert main(["--resume", str(out)]) == 0


def test_a_real_full_disk(npz: Path, tmp_path: Path) -> None:
    """A file system of 300 KB, in a name space of its own."""
    allowed = ["unshare", "-rm", "true"]
    if not shutil.which("unshare") or subprocess.run(allowed, capture_output=True).returncode:
        pytest.skip("this process may not mount")
    out, disk = tmp_path / "disk" / "run", tmp_path / "disk"
    disk.mkdir()
    words = ["--data", npz, "--out", out, *SMALL, "--epochs", "3"]
    train = " ".join([sys.executable, "-m", "vaebench.train", *map(str, words)])
    script = f"mount -t tmpfs -o size=900k none {disk} && {{ {train}; echo $?; ls -A {out}; }}"
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script], capture_output=True, text=True, timeout=120
    )
    assert done.stderr.count("\n") == 1, done.stderr
    assert "cannot be written: No space left on device" in done.stderr
    status, *left = done.stdout.split()
    assert status == "3"
    assert "checkpoint-000001.safetensors" in left
    assert not [name for name in left if name.endswith(".tmp")]


# Numbers that go wrong


@pytest.mark.parametrize("engine", ["fast", "reference"])
def test_the_step_is_named_and_the_model_is_as_before(engine: str) -> None:
    """One image of 300 is infinite where squared: its step is known from the order."""
    torch.manual_seed(0)
    x = torch.rand(300, 6)
    x[77, 2] = 1e30
    model = vaebench.VAE((6,), hidden_dims=(5,), latent_dim=2, likelihood="gaussian")
    before = [p.detach().clone() for p in model.parameters()]
    stream = random_stream(4, TRAINING, torch.device("cpu"))
    position = torch.randperm(300, generator=stream).tolist().index(77)
    assert position >= 16  # not in the first step, which would prove little
    with pytest.raises(TrainingError) as caught:
        vaebench.fit(model, x, batch_size=16, seed=4, device="cpu", engine=engine)
    assert f"in epoch 1 from step {position // 16 + 1} of 19 on" in str(caught.value)
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))


def test_parameters_that_are_not_finite_are_no_good_epoch(
    strokes: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last step's update spoils them, after its ELBO was computed: the sums are finite."""
    seen: list[int] = []
    monkeypatch.setattr("vaebench.training.loop.is_finite", lambda model: len(seen) < 1)
    model = vaebench.VAE(hidden_dims=(9,), latent_dim=2)
    with pytest.raises(TrainingError, match=r"parameters are not finite after the 8 .*epoch 2"):
        vaebench.fit(
            model,
            strokes,
            device="cpu",
            epochs=3,
            on_state=lambda state: seen.append(len(state.epochs)),
        )
    assert seen == [1]
    assert is_finite(model)
    model.output.bias.data[3] = torch.nan
    assert not is_finite(model)


def test_divergence_names_the_last_good_checkpoint(
    npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from vaebench.cli.train import _Keeper

    keep, out = _Keeper.keep, tmp_path / "run"

    def keep_then_spoil(self: _Keeper, state: vaebench.TrainState) -> None:
        keep(self, state)
        if len(state.epochs) == 2:
            with torch.no_grad():
                state.model["output.bias"].fill_(torch.nan)

    monkeypatch.setattr(_Keeper, "keep", keep_then_spoil)
    assert _train(npz, out) == 1
    said = _one_line(capsys)
    assert "nan in epoch 3 from step 1 of 3 on" in said
    assert f"the last good epoch is in {out / 'checkpoint-000002.safetensors'}" in said
    assert is_finite(vaebench.load(out))


# Memory


class Greedy(vaebench.VAE):
    """Asks for memory as a device short of it would refuse: above 40 images."""

    limit = 40

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if len(x) > self.limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nMore")
        return super().encode(x)


def test_out_of_memory_says_what_fits(strokes: Tensor) -> None:
    model = Greedy(hidden_dims=(9,), latent_dim=2)
    with pytest.raises(ResourceError) as caught:
        vaebench.fit(model, strokes, batch_size=200, device="cpu")
    assert str(caught.value) == (
        "out of memory on cpu: a step of 200 images does not fit; one of 25 does, as was tried: "
        "make the batch size at most that"
    )
    vaebench.fit(model, strokes, batch_size=25, epochs=1, device="cpu")


def test_out_of_memory_with_nothing_that_fits(
    strokes: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Greedy, "limit", 0)
    with pytest.raises(ResourceError, match="nor does one of a single image"):
        vaebench.fit(Greedy(hidden_dims=(9,), latent_dim=2), strokes, device="cpu")

    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError

    model = vaebench.VAE(hidden_dims=(9,), latent_dim=2)
    monkeypatch.setattr(model, "to", full)
    with pytest.raises(ResourceError, match=r"the 1000 images \(0\.00 GiB\) do not fit"):
        vaebench.fit(model, strokes, device="cpu")


def test_only_memory_is_taken_for_memory(strokes: Tensor) -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50)  # 4 PiB: the machine's own refusal
    assert ran_out(caught.value)
    assert not ran_out(RuntimeError("shapes cannot be multiplied"))

    class Broken(vaebench.VAE):
        def decode(self, z: Tensor) -> Any:
            if torch.is_grad_enabled():
                raise RuntimeError("shapes cannot be multiplied")
            return super().decode(z)

    with pytest.raises(vaebench.InputError, match="cannot be multiplied"):
        vaebench.fit(Broken(hidden_dims=(9,), latent_dim=2), strokes, device="cpu")


def test_out_of_memory_on_the_command_line(
    npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(KINDS, "mlp", Greedy)
    assert _train(npz, tmp_path / "run") == 3
    assert "one of 32 does" in _one_line(capsys)
    assert not (tmp_path / "run").exists()


# The compiler


@pytest.mark.parametrize("works", ["never", "for its version only"])
def test_a_broken_compiler_is_named_and_trained_around(
    works: str, strokes: Tensor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    torch._dynamo.reset()
    broken = tmp_path / "g++"
    asked = 'case "$1" in --version) echo "g++ (GCC) 12.2.0"; exit 0;; esac\n'
    broken.write_text(f"#!/bin/sh\n{asked if works != 'never' else ''}echo crash >&2; exit 4\n")
    broken.chmod(0o755)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("CXX", str(broken))
    model = vaebench.VAE(hidden_dims=(20,), latent_dim=6)
    words: dict[str, Any] = {"compile": True, "native": False}
    with (
        torch._inductor.config.patch({"cpp.cxx": (None, str(broken))}),
        pytest.warns(UserWarning, match="compile.* training eagerly") as warned,
    ):
        built = make_engine(model, strokes, Objective(), 64, 1e-3, torch.device("cpu"), **words)
    assert built.actual["compile"] is False
    assert len(built.notes) == 1
    assert "\n" not in str(warned[0].message)
    if works == "never":
        assert f"which CXX names ({broken}), does not work" in built.notes[0]
    n = len(strokes)
    assert built.engine.epoch(torch.arange(n), torch.zeros(n, 6)).images == n


# The terminal


def test_a_training_outlives_its_output(npz: Path, tmp_path: Path) -> None:
    """As under ``| head``: the reader goes away, the training goes on."""
    words = ["--data", npz, "--out", tmp_path / "run", *SMALL, "--no-quiet", "--epochs", "3"]
    command = [sys.executable, "-m", "vaebench.train", *map(str, words)]
    read_end, write_end = os.pipe()
    os.close(read_end)
    done = subprocess.run(command, stdout=write_end, stderr=subprocess.PIPE, text=True, timeout=120)
    os.close(write_end)
    assert done.returncode == 0
    assert done.stderr.count("\n") == 1
    assert "stdout cannot be written (Broken pipe): going on without it" in done.stderr
    assert json.loads((tmp_path / "run" / "result.json").read_text())["epochs"] == 3


# The long way


@pytest.mark.slow
def test_soak(strokes: Tensor, tmp_path: Path) -> None:
    """300 epochs, checkpoints and all: no memory grows, no file is wrong.

    ``scripts/soak.py`` does 1,000 and times them.
    """
    checkpoints = vaebench.Checkpoints(tmp_path)
    resident: list[int] = []

    def keep(state: vaebench.TrainState) -> None:
        checkpoints.save(state)
        resident.append(_resident())

    model = vaebench.VAE(hidden_dims=(16,), latent_dim=2)
    vaebench.fit(model, strokes[:100], epochs=300, device="cpu", on_state=keep, batch_size=50)
    assert [p.name[11:17] for p in find(tmp_path)] == ["000299", "000300"]
    state, _ = read(find(tmp_path)[-1])
    assert [record.epoch for record in state.epochs] == list(range(1, 301))
    if resident[0]:
        assert resident[-1] - resident[49] < 8 << 20


def _resident() -> int:
    """Bytes of memory that this process holds; 0 where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
