"""A training that was stopped goes on to the bits of one that was not."""

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import vaebench
from tests.engines import make_engine
from vaebench.cli.train import main, parse, train
from vaebench.data.strokes import make_strokes
from vaebench.errors import InputError
from vaebench.objective import Objective
from vaebench.runs import checkpoints as resume_module
from vaebench.runs.checkpoints import Checkpoints, find, mark_of, read
from vaebench.runs.folder import LOCK, METRICS, MODEL, RunFolder
from vaebench.runs.storage import write_tensors
from vaebench.training.fit import Training, fit
from vaebench.training.follow import Follower

TIMES = ("seconds", "images_per_second")


class Normed(vaebench.VAE):
    """Its batch norm remembers more than parameters."""

    def __init__(self) -> None:
        super().__init__(hidden_dims=(48,), latent_dim=6)
        self.norm = nn.BatchNorm1d(784)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return super().encode(self.norm(x.flatten(1)))


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """For such small models a second one costs time where processors are shared."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def _fit(model: nn.Module, images: Tensor, **words: Any) -> vaebench.History:
    words = {"batch_size": 64, "device": "cpu", "seed": 5, **words}
    return fit(model, images[:900], test_images=images[900:], **words)


def _model(kind: type[vaebench.VAE] = vaebench.VAE) -> vaebench.VAE:
    torch.manual_seed(2)
    return Normed() if kind is Normed else vaebench.VAE(hidden_dims=(48,), latent_dim=6)


def _untimed(records: Any) -> list[dict[str, Any]]:
    return [
        {n: v for n, v in dataclasses.asdict(record).items() if n not in TIMES}
        for record in records
    ]


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ({}, vaebench.VAE),
        ({"engine": "reference"}, vaebench.VAE),
        ({"compile": True}, vaebench.VAE),
        ({"amp": "bf16"}, Normed),
    ],
    ids=["fast", "reference", "compile", "amp, batch norm"],
)
def test_the_same_bits(
    strokes: Tensor, tmp_path: Path, words: dict[str, Any], kind: type[vaebench.VAE]
) -> None:
    whole = _model(kind)
    want = _fit(whole, strokes, epochs=3, **words)

    _fit(_model(kind), strokes, epochs=2, on_state=Checkpoints(tmp_path).save, **words)
    other = kind() if kind is Normed else vaebench.VAE(hidden_dims=(48,), latent_dim=6)
    state = Checkpoints(tmp_path).newest()
    got = _fit(other, strokes, epochs=3, resume=state, **words)

    assert _untimed(got.epochs) == _untimed(want.epochs)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor), name
    assert got.notes[-1].startswith("went on after epoch 2")
    assert not [note for note in got.notes if "rounding" in note]


def test_state_of_every_engine_is_by_name_and_refuses_anothers(strokes: Tensor) -> None:
    def engine(hidden: int) -> Any:
        model = vaebench.VAE(hidden_dims=(hidden,), latent_dim=6)
        return make_engine(model, strokes, Objective(), 64, 1e-3, torch.device("cpu")).engine

    ours, theirs = engine(48), engine(20)
    before = {name: t.clone() for name, t in ours.state().items()}
    with pytest.raises(InputError, match=r"in shape .* another model's"):
        ours.load_state(theirs.state())
    with pytest.raises(InputError, match=r"lacks 'm\.0'"):
        ours.load_state({})
    with pytest.raises(InputError, match="should not, 'x'"):
        ours.load_state({**before, "x": torch.zeros(1)})
    assert all(torch.equal(t, before[name]) for name, t in ours.state().items())


def test_a_state_refuses_what_cannot_go_on(strokes: Tensor, tmp_path: Path) -> None:
    _fit(_model(), strokes, epochs=1, on_state=Checkpoints(tmp_path).save)
    state = Checkpoints(tmp_path).newest()
    assert state is not None
    for words, said in (
        ({"epochs": 2, "engine": "reference"}, "began with engine 'fast', not 'reference'"),
        ({"epochs": 0}, "epochs is 0"),
    ):
        with pytest.raises(InputError, match=said):
            _fit(_model(), strokes, resume=state, **words)
    with pytest.raises(InputError, match="does not fit"):
        _fit(vaebench.VAE(hidden_dims=(20,), latent_dim=6), strokes, epochs=2, resume=state)
    with pytest.raises(InputError, match="began on cuda:0"):
        dataclasses.replace(state, actual={**state.actual, "device": "cuda:0"}).check(
            2, "fast", torch.device("cpu")
        )
    with pytest.raises(InputError, match="trained already"):
        state.check(0, "fast", torch.device("cpu"))


def test_what_auto_decided_holds_and_what_changed_is_said(strokes: Tensor) -> None:
    states: list[vaebench.TrainState] = []
    _fit(_model(), strokes, epochs=1, on_state=states.append)
    began = dataclasses.replace(
        states[0], actual={**states[0].actual, "amp": "bf16", "threads": 77}
    )
    history = _fit(_model(), strokes, epochs=2, amp="auto", resume=began)
    assert history.actual["amp"] == "bf16"
    assert history.requested["amp"] == "auto"
    assert any("with threads" in note and "before it was 77" in note for note in history.notes)
    began.actual["amp"] = "float32"
    assert began.amp("auto") is None
    assert began.amp("bf16") == "bf16"


# Checkpoints as files


@pytest.fixture(scope="module")
def state() -> vaebench.TrainState:
    """A tiny training after two epochs."""
    states: list[vaebench.TrainState] = []
    model = vaebench.VAE((2, 2), hidden_dims=(3,), latent_dim=2)
    x = torch.rand(9, 2, 2)
    fit(model, x, epochs=2, batch_size=4, device="cpu", on_state=states.append)
    return states[1]


def _same(a: vaebench.TrainState, b: vaebench.TrainState) -> bool:
    return (a.epochs, a.actual) == (b.epochs, b.actual) and all(
        torch.equal(ours, getattr(b, part)[name])
        for part in ("model", "engine", "random")
        for name, ours in getattr(a, part).items()
    )


def test_a_checkpoint_comes_back(state: vaebench.TrainState, tmp_path: Path) -> None:
    path = Checkpoints(tmp_path, {"lr": 0.1, "hidden_dim": (3,)}).save(state)
    assert path.name == "checkpoint-000002.safetensors"
    got, stored = read(path)
    assert _same(state, got)
    assert set(got.engine) == {"step", *(f"{m}.{i}" for m in "mv" for i in range(10))}
    assert stored == {"lr": 0.1, "hidden_dim": [3]}


def test_only_the_last_two_are_kept(state: vaebench.TrainState, tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    for n in (1, 2, 3, 4):
        checkpoints.save(dataclasses.replace(state, epochs=state.epochs[:1] * n))
    assert [p.name[11:17] for p in find(tmp_path)] == ["000003", "000004"]
    assert checkpoints.metrics.count(b"\n") == 4


def test_a_damaged_one_falls_back_and_is_replaced(
    state: vaebench.TrainState, tmp_path: Path
) -> None:
    first = dataclasses.replace(state, epochs=state.epochs[:1])
    Checkpoints(tmp_path).save(first)
    newest = Checkpoints(tmp_path)
    newest.kept = find(tmp_path)
    damaged = newest.save(state)
    data = bytearray(damaged.read_bytes())
    data[-5] ^= 4
    damaged.write_bytes(data)
    checkpoints = Checkpoints(tmp_path)
    with pytest.warns(UserWarning, match=r"000002.* its checksum .*; going back to .*000001"):
        got = checkpoints.newest()
    assert got is not None
    assert _same(first, got)
    third = dataclasses.replace(state, epochs=(*state.epochs, state.epochs[1]))
    checkpoints.save(third)
    assert [p.name[11:17] for p in find(tmp_path)] == ["000001", "000003"]

    for path in find(tmp_path):
        path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(InputError, match="no other is there: remove"):
        Checkpoints(tmp_path).newest()
    assert Checkpoints(tmp_path / "nowhere").newest() is None


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_no_damage_passes(data: st.DataObject, tmp_path_factory: Any) -> None:
    """A flipped bit or a cut is found, or, in the header's blanks, makes no difference."""
    folder = tmp_path_factory.getbasetemp() / "damage"
    whole, state = _small_checkpoint(folder)
    content = bytearray(whole)
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    else:
        at = data.draw(st.integers(0, len(content) - 1))
        content[at] ^= 1 << data.draw(st.integers(0, 7))
    path = folder / "damaged.safetensors"
    path.write_bytes(content)
    try:
        got, _ = read(path)
    except InputError as error:
        said = str(error)
    else:
        said = "" if _same(state, got) else "another state was read"
    assert not said or ("is damaged" in said and "\n" not in said)


def _small_checkpoint(folder: Path) -> tuple[bytes, vaebench.TrainState]:
    path = folder / "checkpoint-000001.safetensors"
    if not path.exists():
        folder.mkdir()
        model = vaebench.VAE((2,), hidden_dims=(2,), latent_dim=1)
        x = torch.rand(4, 2)
        fit(model, x, epochs=1, batch_size=2, device="cpu", on_state=Checkpoints(folder).save)
    return path.read_bytes(), read(path)[0]


def test_other_settings_and_formats_are_refused(
    state: vaebench.TrainState, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Checkpoints(tmp_path, {"lr": 0.1}).save(state)
    with pytest.raises(InputError, match=r"with lr 0\.1, not 0\.2"):
        Checkpoints(tmp_path, {"lr": 0.2}).newest()
    monkeypatch.setattr(resume_module, "FORMAT", "2")
    with pytest.raises(InputError, match="has format 1, and this version reads 2"):
        read(find(tmp_path)[0])


def test_tensors_are_written_as_safetensors_writes_them(tmp_path: Path) -> None:
    from safetensors.torch import save

    tensors = {
        "b": torch.randn(3, 2).t(),
        "a/é": torch.arange(5),
        "scalar": torch.tensor(1.5),
        "empty": torch.zeros(0, 3),
        "half": torch.ones(3, dtype=torch.bfloat16),
        "bytes": torch.arange(7, dtype=torch.uint8),
        "flag": torch.tensor([True, False]),
    }
    for metadata in (None, {"x": "1"}):
        with open(tmp_path / "file", "wb") as file:
            write_tensors(file, tensors, metadata)
        contiguous = {name: t.contiguous() for name, t in tensors.items()}
        assert (tmp_path / "file").read_bytes() == save(contiguous, metadata)


def test_images_are_known_again() -> None:
    x = torch.arange(24, dtype=torch.uint8).reshape(2, 3, 4)
    assert mark_of(x, x[:1]).startswith("2x3x4 uint8 ")
    assert mark_of(x) == mark_of(x.clone())
    assert len({mark_of(x), mark_of(x + 1), mark_of(x.flatten()), mark_of(x.short())}) == 4


# The command line, in this process


@pytest.fixture(scope="module")
def npz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    images = make_strokes(300, seed=3)[0].numpy()
    path = tmp_path_factory.mktemp("data") / "small.npz"
    np.savez(path, x_train=images[:260], x_test=images[260:])
    return path


@contextlib.contextmanager
def _as_we_were() -> Iterator[None]:
    threads, handler = torch.get_num_threads(), signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        signal.signal(signal.SIGTERM, handler)


def _main(*args: object) -> int:
    with _as_we_were():
        return main([str(arg) for arg in args])


SMALL = "--device cpu --threads 1 --hidden-dim 24 --latent-dim 3 --batch-size 64 --quiet".split()


def _train(npz: Path, out: Path, *args: object) -> int:
    return _main("--data", npz, "--out", out, *SMALL, *args)


@pytest.fixture(scope="module")
def whole(npz: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three epochs."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    assert _train(npz, out, "--epochs", 3) == 0
    return out


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(whole, tmp_path / "run"))


def _equal(run: Path, whole: Path) -> None:
    assert (run / MODEL).read_bytes() == (whole / MODEL).read_bytes()
    lines = [
        [
            {n: v for n, v in json.loads(line).items() if n not in TIMES}
            for line in (folder / METRICS).read_text().splitlines()
        ]
        for folder in (run, whole)
    ]
    assert lines[0] == lines[1]
    assert sorted(p.name for p in run.iterdir()) == sorted(p.name for p in whole.iterdir())


def test_a_longer_run(npz: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert _train(npz, out, "--epochs", 1) == 0
    assert _main("--resume", out, "--epochs", 3) == 0
    _equal(out, whole)
    result = json.loads((out / "result.json").read_text())
    assert result["epochs"] == 3
    assert result["notes"] == ["went on after epoch 1: times are those of the last part alone"]
    assert json.loads((out / "config.json").read_text())["epochs"] == 3


@pytest.mark.parametrize(
    "left",
    ["nothing trained", "metrics and model ahead", "metrics cut", "no result", "metrics lost"],
)
def test_whatever_a_kill_left(left: str, run: Path, whole: Path) -> None:
    names = [p.name for p in find(run)]
    assert names == ["checkpoint-000002.safetensors", "checkpoint-000003.safetensors"]
    if left != "no result":
        (run / names[1]).unlink()
    (run / "result.json").unlink()
    if left == "nothing trained":
        for name in (names[0], METRICS, MODEL):
            (run / name).unlink()
    elif left == "metrics cut":
        (run / METRICS).write_bytes((run / METRICS).read_bytes()[:-30])
    elif left == "metrics lost":
        (run / METRICS).unlink()
    (run / ".vaebench-metrics.jsonl.tmp").write_text("{")
    assert _main("--resume", run) == 0
    if left == "nothing trained":
        assert len(find(run)) == 2
    elif left == "no result":
        assert json.loads((run / "result.json").read_text())["epochs"] == 3
    _equal(run, whole)


def test_options_are_the_runs_own(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for args, said in (
        (["--lr", "0.01"], "--lr 0.01 (its own: 0.001)"),
        (["--hidden-dim", "24", "9", "--compile"], "--hidden-dim 24 9 (its own: 24), --compile"),
        (["--device", "auto"], "--device auto (its own: cpu)"),
        (["--out", "elsewhere"], "--out cannot be given with --resume"),
        (["--epochs", "2"], "epochs is 2, but 3 are trained already"),
        (["--epochs", "0"], "--epochs is 0"),
    ):
        assert _main("--resume", run, *args) == 2
        errors = capsys.readouterr().err
        assert said in errors
        assert errors.count("\n") == 1
    assert _main("--resume", run, "--lr", "0.001", "--seed", "0") == 0
    assert "is complete: its 3 epochs are trained" in capsys.readouterr().err


def test_no_run_and_damaged_settings(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = (run / "config.json").read_text()
    for content, said in (
        (config.replace('"epochs": 3', '"epochs": "many"'), "is damaged: --epochs is 'many'"),
        (config[:-9], "is damaged or unreadable"),
        (config.replace('"lr": 0.001', '"lr": 0.1'), "was written with lr 0.001, not 0.1"),
        (config.replace("260x28x28", "9x28x28"), "these are not the images that"),
    ):
        (run / "config.json").write_text(content)
        (run / "result.json").unlink(missing_ok=True)
        assert _main("--resume", run) == 2
        errors = capsys.readouterr().err
        assert said in errors
        assert errors.count("\n") == 1
    for path in (tmp_path, tmp_path / "nowhere", run / "config.json"):
        assert _main("--resume", path) == 2
        assert "is no run folder" in capsys.readouterr().err


def test_other_images_are_refused_and_a_moved_file_is_not(
    npz: Path, run: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / find(run)[1].name).unlink()
    (run / "result.json").unlink()
    images = make_strokes(300, seed=4)[0].numpy()
    np.savez(tmp_path / "other.npz", x_train=images[:260], x_test=images[260:])
    assert _main("--resume", run, "--data", tmp_path / "other.npz") == 2
    assert "these are not the images" in capsys.readouterr().err
    moved = shutil.copy(npz, tmp_path / "moved.npz")
    assert _main("--resume", run, "--data", moved) == 0
    _equal(run, whole)


def test_interrupted_between_checkpoints(
    npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C after the third of 100,000 epochs, a checkpoint every 1,000: one is written then."""
    from vaebench.cli.train import _Keeper

    keep = _Keeper.keep

    def keep_then_stop(self: _Keeper, state: vaebench.TrainState) -> None:
        keep(self, state)
        if len(state.epochs) == 3:
            os.kill(os.getpid(), signal.SIGINT)

    out = tmp_path / "run"
    monkeypatch.setattr(_Keeper, "keep", keep_then_stop)
    assert _train(npz, out, "--epochs", 100000, "--checkpoint-every", 1000) == 130
    said = capsys.readouterr().err
    assert f"--resume {out} goes on" in said
    lines = (out / METRICS).read_text().splitlines()
    (path,) = find(out)
    assert len(read(path)[0].epochs) == len(lines) >= 3
    more = len(lines) + 2
    assert _main("--resume", out, "--epochs", more) == 0
    assert len((out / METRICS).read_text().splitlines()) == more


def test_interrupted_before_the_first_epoch(
    npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = Training._build

    def interrupted(*args: Any) -> Follower:
        os.kill(os.getpid(), signal.SIGINT)
        return build(*args)

    monkeypatch.setattr(Training, "_build", interrupted)
    config = parse(["--data", str(npz), "--out", str(tmp_path / "run")])
    with pytest.raises(KeyboardInterrupt) as caught, _as_we_were():
        train(config)
    assert type(caught.value) is KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("left", [".vaebench.lock", ".vaebench-result.json.tmp"])
def test_a_finished_run_is_tidied(left: str, run: Path, whole: Path) -> None:
    """What a kill after the last word leaves goes; what is another's stays."""
    (run / left).write_text("")
    (run / "notes.txt").write_text("mine")
    before = {p.name: p.read_bytes() for p in whole.iterdir()}
    assert _main("--resume", run) == 0
    after = {p.name: p.read_bytes() for p in run.iterdir()}
    assert after.pop("notes.txt") == b"mine"
    assert after == before


def test_a_finished_run_that_another_process_still_holds_is_let_be(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with RunFolder(run, resume=True):
        assert _main("--resume", run) == 0
        assert (run / LOCK).exists()
    assert "is complete" in capsys.readouterr().err


def test_killed_after_the_last_word(npz: Path, tmp_path: Path, whole: Path) -> None:
    """Between writing the result and giving the lock back."""
    out = tmp_path / "run"
    code = (
        "import os, signal; from vaebench.runs.folder import RunFolder\n"
        "def die(self): os.kill(os.getpid(), signal.SIGKILL)\n"
        "RunFolder._unlock = die\n"
        "from vaebench.cli.train import main; main()"
    )
    words = ["--data", npz, "--out", out, *SMALL, "--epochs", 3]
    done = subprocess.run([sys.executable, "-c", code, *map(str, words)], timeout=120)
    assert done.returncode == -signal.SIGKILL
    assert (out / LOCK).exists()
    assert _main("--resume", out) == 0
    _equal(out, whole)


@pytest.mark.slow
def test_killed_at_random_moments() -> None:
    """A small number of what ``scripts/kill.py`` does a hundred times."""
    script = Path(__file__).parents[2] / "scripts" / "kill.py"
    done = subprocess.run(
        [sys.executable, script, "--kills", "2", "--epochs", "15"],
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    assert "2 kills" in done.stdout
