"""A training goes on from a checkpoint to the bits of one that was not stopped."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import vaebench
from tests.engines import make_engine
from vaebench.errors import InputError
from vaebench.objective import Objective
from vaebench.runs import checkpoints as resume_module
from vaebench.runs.checkpoints import Checkpoints, find, mark_of, read
from vaebench.runs.storage import write_tensors
from vaebench.training.fit import fit

TIMES = ("seconds", "images_per_second")


class Normed(vaebench.VAE):
    """Its batch norm remembers more than parameters."""

    def __init__(self) -> None:
        super().__init__(hidden_dims=(48,), latent_dim=6)
        self.norm = nn.BatchNorm1d(784)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return super().encode(self.norm(x.flatten(1)))


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
