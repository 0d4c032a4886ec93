"""Anything at all: it is taken, or refused by one line."""

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import vaebench
from tests.bad_input.refusal import pixels, small_vae
from vaebench.cli.train import parse
from vaebench.config import OPTIONS, TrainConfig
from vaebench.data.idx import read_idx
from vaebench.errors import InputError, TrainingError
from vaebench.runs.folder import CONFIG, MODEL

FUZZ = settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
FLAGS = sorted(f"--{name.replace('_', '-')}" for name in TrainConfig.__dataclass_fields__)
VALUES = ["0", "1", "-1", "nan", "cpu", "auto", "relu", "bf16", "1e9", "", "--", "gaussian", "mlp"]
ANYTHING = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5),
    st.binary(max_size=5), st.lists(st.integers(-3, 500), max_size=3),
    st.tuples(st.integers(-3, 500)),
)  # fmt: skip


def done_or_refused(work: Callable[[], object], *words: str) -> None:
    """The call ends, or it raises an InputError of one line that holds the words."""
    said = None
    try:
        work()
    except InputError as error:
        said = str(error)
    assert said is None or said.isprintable()
    assert said is None or all(word in said for word in words)


@FUZZ
@given(st.lists(st.one_of(st.sampled_from(FLAGS), st.sampled_from(VALUES), st.text(max_size=8))))
def test_any_arguments_are_a_config_or_refused(words: list[str]) -> None:
    assume(not {"-h", "--help"} & set(words))  # it leaves at once
    done_or_refused(lambda: parse(words))


@FUZZ
@given(st.dictionaries(st.sampled_from(list(OPTIONS)), ANYTHING))
def test_any_values_are_a_config_or_refused(words: dict[str, Any]) -> None:
    # A run folder can hold it.
    done_or_refused(lambda: json.dumps(TrainConfig.of(**words).options()))


def test_widths_are_kept_as_a_tuple() -> None:
    config = TrainConfig.of(hidden_dim=range(3, 5))
    assert config.network.hidden_dim == (3, 4)


@settings(FUZZ, max_examples=40)
@given(
    st.sampled_from(["epochs", "batch_size", "lr", "sigma", "beta", "seed", "likelihood", "amp"]),
    ANYTHING,
)
def test_any_value_trains_or_is_refused(name: str, value: Any) -> None:
    if name == "epochs" and isinstance(value, int):
        value = min(value, 2)
    words = {"batch_size": 20, "epochs": 1, "device": "cpu", name: value}
    with contextlib.suppress(TrainingError):  # a number too large to train with
        done_or_refused(lambda: vaebench.fit(small_vae(), pixels(), **words), name)


@FUZZ
@given(
    st.sampled_from([CONFIG, MODEL]),
    st.lists(st.tuples(st.integers(0, 10**4), st.integers(0, 255)), min_size=1, max_size=4),
    st.integers(0, 10**4),
)
def test_any_damage_to_a_run_is_found_or_harmless(
    sound_run: dict[str, bytes], run_folder: Path, name: str, spoilt: list[tuple[int, int]],
    length: int,
) -> None:  # fmt: skip
    whole = bytearray(sound_run[name])
    for at, value in spoilt:
        whole[at % len(whole)] = value
    for file, sound in sound_run.items():
        (run_folder / file).write_bytes(sound if file != name else bytes(whole)[: length or None])
    done_or_refused(lambda: vaebench.load(run_folder).sample(1), str(run_folder))


@FUZZ
@given(content=st.binary(max_size=200).map(lambda b: b"\0\0" + b))
def test_any_bytes_are_idx_or_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "own").write_bytes(content)
    done_or_refused(lambda: read_idx(tmp_path / "own").numel(), "own")
