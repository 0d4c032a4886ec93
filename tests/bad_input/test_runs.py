"""Run folders, damaged in any way, for whoever loads them and for ``scripts/plot.py``."""

import importlib.util
import json
import math
import os
import shlex
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import vaebench
from tests.bad_input.refusal import FLOAT, HELP, INT, PATIENCE, refusal, small_vae
from vaebench.runs.folder import CONFIG, METRICS, MODEL, RESULT


def config_of(**model: Any) -> Callable[[Path], None]:
    def damage(run: Path) -> None:
        config = json.loads((run / CONFIG).read_text())
        config["model"] |= model
        (run / CONFIG).write_text(json.dumps(config))

    return damage


def content(name: str, new: bytes) -> Callable[[Path], Any]:
    return lambda run: (run / name).write_bytes(new)


def tensors(change: Callable[[dict[str, Tensor]], Any]) -> Callable[[Path], None]:
    def damage(run: Path) -> None:
        found = load_file(run / MODEL)
        change(found)
        save_file(found, run / MODEL)

    return damage


def instead(name: str, make: Callable[[Path], Any]) -> Callable[[Path], None]:
    """Something else than a file under this name."""

    def damage(run: Path) -> None:
        (run / name).unlink()
        make(run / name)

    return damage


def cut(name: str, at: int) -> Callable[[Path], Any]:
    return lambda run: (run / name).write_bytes((run / name).read_bytes()[:at])


NAN = torch.full((2,), math.nan)
RUNS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no config": (lambda run: (run / CONFIG).unlink(), "no run folder"),
    "no model": (lambda run: (run / MODEL).unlink(), "before the first epoch"),
    "config a folder": (instead(CONFIG, Path.mkdir), "not a regular file"),
    "config a pipe": (instead(CONFIG, os.mkfifo), "not a regular file"),
    "config endless": (instead(CONFIG, lambda p: p.symlink_to("/dev/zero")), "not a regular file"),
    "config a link to itself": (instead(CONFIG, lambda p: p.symlink_to(p)), "config.json"),
    "config a link to nothing": (instead(CONFIG, lambda p: p.symlink_to("x")), "no run folder"),
    "config empty": (content(CONFIG, b""), "config.json"),
    "config cut": (cut(CONFIG, 60), "config.json"),
    "config not text": (content(CONFIG, b"\xff\xfe\0"), "config.json"),
    "config of nulls": (content(CONFIG, bytes(500)), "config.json"),
    "config a number": (content(CONFIG, b"3"), "no object"),
    "config a list": (content(CONFIG, b"[{}]"), "no object"),
    "config null": (content(CONFIG, b"null"), "no object"),
    "config nested deeply": (content(CONFIG, b'{"model":' + b"[" * 10**5), "config.json"),
    "config with an endless number": (content(CONFIG, b'{"model":' + b"9" * 9999), "config.json"),
    "config of megabytes": (content(CONFIG, b" " * (10**6 + 1)), "bytes"),
    "config with another quote": (content(CONFIG, b"{'model': {}}"), "config.json"),
    "config of two objects": (content(CONFIG, b"{}{}"), "config.json"),
    "config without a model": (content(CONFIG, b'{"epochs": 3}'), "model"),
    "model null": (content(CONFIG, b'{"model": null}'), "damaged"),
    "model a list": (content(CONFIG, b'{"model": [1]}'), "damaged"),
    "model a text": (content(CONFIG, b'{"model": "mlp"}'), "damaged"),
    "model nameless": (content(CONFIG, b'{"model": {"": 1}}'), "damaged"),
    "an unknown word": (config_of(depth=3), "depth"),
    "latent size a text": (config_of(latent_dim="2"), "latent_dim"),
    "latent size null": (config_of(latent_dim=None), "latent_dim"),
    "latent size a fraction": (config_of(latent_dim=2.0), "latent_dim"),
    "latent size 0": (config_of(latent_dim=0), "latent_dim"),
    "latent size another": (config_of(latent_dim=3), "shape"),
    "latent size absurd": (config_of(latent_dim=10**15), "latent_dim"),
    "latent size vast": (config_of(latent_dim=2**20, hidden_dims=[2**20]), "shape"),
    "images a number": (config_of(image_shape=16), "image_shape"),
    "images of no size": (config_of(image_shape=[]), "image_shape"),
    "images of absurd size": (config_of(image_shape=[10**15, 10**15]), "damaged"),
    "images a text": (config_of(image_shape="44"), "image_shape"),
    "hidden a number": (config_of(hidden_dims=5), "hidden_dims"),
    "hidden nested": (config_of(hidden_dims=[[5]]), "hidden_dims"),
    "one more layer": (config_of(hidden_dims=[5, 5]), "encoder.2"),
    "activation unknown": (config_of(activation="gelu"), "activation"),
    "activation a list": (config_of(activation=["relu"]), "activation"),
    "likelihood unknown": (config_of(likelihood="laplace"), "likelihood"),
    "tensors a folder": (instead(MODEL, Path.mkdir), "not a regular file"),
    "tensors a pipe": (instead(MODEL, os.mkfifo), "not a regular file"),
    "tensors empty": (content(MODEL, b""), "damaged"),
    "tensors cut in the header": (cut(MODEL, 20), "damaged"),
    "tensors cut in the body": (cut(MODEL, -1), "damaged"),
    "tensors with more behind": (
        lambda run: (run / MODEL).write_bytes((run / MODEL).read_bytes() + b"x"),
        "damaged",
    ),
    "tensors with an absurd header": (content(MODEL, b"\xff" * 8 + b"{}"), "damaged"),
    "tensors a pickle": (
        lambda run: torch.save(small_vae().state_dict(), run / MODEL),
        "damaged",
    ),
    "tensors garbage": (content(MODEL, os.urandom(3000)), "damaged"),
    "a tensor missing": (tensors(lambda t: t.pop("mu.bias")), "mu.bias"),
    "a tensor too many": (tensors(lambda t: t.update(extra=torch.zeros(1))), "extra"),
    "a tensor of another name": (tensors(lambda t: t.update(nu=t.pop("mu.bias"))), "nu"),
    "no tensors": (tensors(lambda t: t.clear()), "mu.bias"),
    "a tensor of another shape": (tensors(lambda t: t.update({"mu.bias": torch.ones(3)})), "(3,)"),
    "a tensor laid flat": (tensors(lambda t: t.update({"mu.bias": torch.ones(1, 2)})), "(1, 2)"),
    "a tensor of halves": (tensors(lambda t: t.update({"mu.bias": torch.ones(2).half()})), "16"),
    "a tensor of whole numbers": (
        tensors(lambda t: t.update({"mu.bias": torch.ones(2, dtype=torch.int64)})),
        "int64",
    ),
    "NaN in a tensor": (tensors(lambda t: t.update({"mu.bias": NAN})), "NaN"),
}
PLACES: dict[str, tuple[Any, str]] = {
    "nothing": ("absent", "no run folder"),
    "a file": (__file__, "no run folder"),
    "the empty path": ("", "by its path"),
    "None": (None, "by its path"),
    "a number": (3, "by its path"),
    "a null": ("a\0b", ""),
    "a line break": ("a\nb", "no run folder"),
    "a long name": ("x" * 9999, ""),
    "no text": ("\ud800", ""),
}


@pytest.mark.parametrize("name", RUNS)
def test_runs(name: str, run_folder: Path) -> None:
    damage, said = RUNS[name]
    damage(run_folder)
    refusal(lambda: vaebench.load(run_folder), str(run_folder), said)


@pytest.mark.parametrize("name", PLACES)
def test_places_without_a_run(name: str) -> None:
    place, said = PLACES[name]
    refusal(lambda: vaebench.load(place), said)


# scripts/plot.py


@pytest.fixture(scope="module")
def plot() -> ModuleType:
    path = Path(__file__).parents[2] / "scripts" / "plot.py"
    spec = importlib.util.spec_from_file_location("plot_program", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def metrics(line: str) -> Callable[[Path], Any]:
    return content(METRICS, line.encode())


def untouched(run: Path) -> None:
    """Leave the run folder as it is."""


PLOTS: dict[str, tuple[Callable[[Path], Any], str, str]] = {
    "no run": (untouched, "", "RUN"),
    "a run that is not there": (untouched, "absent", "no run folder"),
    "a kind in the run's place": (untouched, "samples", "no run folder"),
    "an unknown kind": (untouched, "{run} sample", "neither a kind of picture"),
    "an unknown option": (untouched, "{run} --colour red", HELP),
    "an option cut short": (untouched, "{run} --perc 0.1 0.9", HELP),
    **{f"grid {v}": (untouched, f"{{run}} --grid {v}", "2 .. 100") for v in (0, 1, -5, 101)},
    **{f"grid {v}": (untouched, f"{{run}} --grid {v}", INT) for v in ("x", "2.5", "''")},
    **{
        f"percentiles {v}": (untouched, f"{{run}} --percentiles {v}", "0.05 0.95")
        for v in ("0 1", "0.9 0.1", "0.5 0.5", "nan 0.9", "0.1 inf", "-1 0.5")
    },
    "percentiles a text": (untouched, "{run} --percentiles a b", FLOAT),
    "one percentile": (untouched, "{run} --percentiles 0.5", "expected 2"),
    **{f"latent {v}": (untouched, f"{{run}} --latent {v}", "choose") for v in ("median", "''")},
    **{f"seed {v}": (untouched, f"{{run}} --seed {v}", "2**63") for v in ("-1", str(2**63))},
    "seed a text": (untouched, "{run} --seed x", INT),
    "out a file": (untouched, "{run} samples --out {file}", "choose another folder"),
    "out nowhere": (untouched, "{run} samples --out /proc/x", "choose another folder"),
    "out too long": (untouched, "{run} samples --out " + "x" * 300, "choose another folder"),
    "several runs, one picture": (untouched, "{run} {run} samples", "only curves"),
    "config without data": (content(CONFIG, b'{"model": {}}'), "{run}", "data"),
    "data a number": (
        lambda run: (run / CONFIG).write_bytes((run / CONFIG).read_bytes().replace(b'"mlp"', b"5")),
        "{run} curves",
        "workload is 5",
    ),
    "data that has gone": (
        lambda run: (run / CONFIG).write_bytes(
            (run / CONFIG).read_bytes().replace(b"small.npz", b"gone.npz")
        ),
        "{run} latent",
        "gone.npz",
    ),
    "no metrics": (lambda run: (run / METRICS).unlink(), "{run} curves", METRICS),
    "metrics empty": (metrics(""), "{run} curves", "no epoch"),
    "metrics no JSON": (metrics("epoch 1"), "{run} curves", METRICS),
    "metrics cut": (cut(METRICS, 20), "{run} curves", METRICS),
    "metrics a number": (metrics("5"), "{run} curves", "epoch is None"),
    "metrics an empty object": (metrics("{}"), "{run} curves", "epoch is None"),
    "metrics of texts": (metrics('{"epoch": "1"}'), "{run} curves", "epoch is '1'"),
    "metrics nested deeply": (metrics("[" * 10**5), "{run} curves", METRICS),
    "metrics not text": (content(METRICS, b"\xff\xfe"), "{run} curves", METRICS),
    "result no JSON": (content(RESULT, b"x"), "{run} curves", RESULT),
    "result a list": (content(RESULT, b"[]"), "{run} curves", "no object"),
    "dataset a number": (content(RESULT, b'{"dataset": 5}'), "{run} curves", "dataset is 5"),
}


@pytest.mark.parametrize("name", PLOTS)
def test_plots(
    name: str, plot: ModuleType, run_folder: Path, as_a_program: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    damage, words, said = PLOTS[name]
    damage(run_folder)
    before = sorted(as_a_program.iterdir())
    start = time.monotonic()
    status = plot.main([w.format(run=run_folder, file=__file__) for w in shlex.split(words)])
    assert time.monotonic() - start < PATIENCE
    captured = capsys.readouterr()
    assert status == 2
    assert captured.err.startswith("vaebench: ")
    assert captured.err[:-1].isprintable()
    assert said in captured.err
    assert captured.out == ""
    assert sorted(as_a_program.iterdir()) == before
