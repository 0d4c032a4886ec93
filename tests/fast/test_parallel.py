"""Several processes that train together: the result of one, and what happens when one is lost."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import vaebench
from tests.tiers import first
from vaebench.data.strokes import make_strokes
from vaebench.errors import InputError
from vaebench.fast.parallel import exchange
from vaebench.system.distributed import Group, joined, own_device
from vaebench.training.fit import _check_processes

# 901 images in batches of 45: two processes' parts differ, and the last of 21 steps has one image,
# so that one process has none.
# Seconds after which a process is given up: many, for a busy machine, and far below the patience
# of processes that wait for each other.
WAITED = 240
SMALL = "--device cpu --epochs 4 --hidden-dim 48 --latent-dim 6 --batch-size 45 --threads 1"
# The command line, with less patience for a process that does not answer, in a step and at the end
# of an epoch: which of the two waits depends on when a process is stopped.
PROGRAM = (
    "import sys; from datetime import timedelta; from vaebench.cli import train; "
    "from vaebench.system import distributed as processes; "
    "processes.STEP = timedelta(seconds=3); processes.PATIENCE = timedelta(seconds=60); "
    "sys.exit(train.main())"
)


@pytest.fixture(scope="module")
def npz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    images = make_strokes(1000, seed=3)[0].numpy()
    path = tmp_path_factory.mktemp("data") / "small.npz"
    np.savez(path, x_train=images[:901], x_test=images[901:])
    return path


# Of the library: what one process's callback asks for, all do.
STOPPING = """
import os, torch, vaebench
from vaebench.data.strokes import make_strokes
torch.set_num_threads(1)
torch.distributed.init_process_group("gloo")
class Stopping(vaebench.Callback):
    def on_epoch(self, training, record):
        if os.environ["RANK"] == "1" and record.epoch == 2:
            training.stop("enough")
images = make_strokes(200, seed=3)[0]
model = vaebench.VAE(hidden_dims=(16,), latent_dim=3)
words = {"epochs": 5, "batch_size": 50, "device": "cpu", "on_epoch": Stopping()}
history = vaebench.fit(model, images, **words)
print(len(history.epochs), history.notes[-1])
torch.distributed.destroy_process_group()
"""


@contextmanager
def processes(
    *commands: list[str], program: str = PROGRAM
) -> Iterator[list["subprocess.Popen[str]"]]:
    """Start a program, the command line, once for every list of arguments, as torchrun would."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    known = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    known |= {"WORLD_SIZE": str(len(commands)), "LOCAL_WORLD_SIZE": str(len(commands))}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", program, *words],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**known, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank, words in enumerate(commands)
    ]  # fmt: skip
    try:
        yield started
    finally:
        for process in started:
            process.kill()
            process.communicate()


def test_two_processes_are_one(npz: Path, tmp_path: Path) -> None:
    """L3: 84 steps across four short last batches."""
    out = tmp_path / "run"
    words = ["--data", str(npz), *SMALL.split(), "--out", str(out)]
    with processes(words, words) as pair:
        said = [process.communicate(timeout=WAITED) for process in pair]
    assert [process.returncode for process in pair] == [0, 0], said
    assert [errors for _, errors in said] == ["", ""]
    assert said[0][0].count("test ELBO") == 5
    assert said[1][0] == ""
    assert [p.name for p in tmp_path.iterdir()] == ["run"]

    data = np.load(npz)
    torch.manual_seed(0)
    model = vaebench.VAE(hidden_dims=(48,), latent_dim=6)
    alone = vaebench.fit(
        model, data["x_train"], epochs=4, batch_size=45, device="cpu", test_images=data["x_test"]
    )
    together = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    for record, one in zip(together, alone.epochs, strict=True):
        for name in ("train_elbo", "test_elbo", "recon"):
            assert record[name] == pytest.approx(getattr(one, name), rel=1e-5), name
    found = load_file(out / "model.safetensors")
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-2, atol=1e-3)
    result = json.loads((out / "result.json").read_text())
    assert result["actual"]["processes"] == 2
    assert result["notes"] == ["2 processes took parts of each batch of 45"]


@pytest.mark.parametrize(("lost", "number"), first(1, [(0, signal.SIGKILL), (1, signal.SIGSTOP)]))
def test_one_that_is_lost_ends_the_others(
    lost: int, number: int, npz: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    words = ["--data", str(npz), *SMALL.split(), "--epochs", "1000000", "--out", str(out)]
    with processes(words, words) as pair:
        give_up = time.monotonic() + WAITED
        while not (out / "model.safetensors").exists() and time.monotonic() < give_up:
            time.sleep(0.05)
        pair[lost].send_signal(number)
        start = time.monotonic()
        _, errors = pair[1 - lost].communicate(timeout=WAITED)
        assert time.monotonic() - start < WAITED / 2
    assert pair[1 - lost].returncode == 1
    assert errors.count("\n") == 1
    assert "another of the 2 processes ended or did not answer" in errors
    assert vaebench.load(out).latent_dim == 6
    assert len((out / "metrics.jsonl").read_text().splitlines()) >= 1


def test_what_stops_one_stops_all() -> None:
    with processes([], [], program=STOPPING) as pair:
        said = [process.communicate(timeout=WAITED) for process in pair]
    told = [out.strip() for out, _ in said]
    assert told[0] == "2 stopped after epoch 2: a callback of another process asked for it", said
    assert told[1] == "2 stopped after epoch 2: enough", said


def test_processes_must_agree(npz: Path, tmp_path: Path) -> None:
    words = ["--data", str(npz), *SMALL.split(), "--out", str(tmp_path / "run")]
    with processes(words, [*words, "--seed", "1"]) as pair:
        said = [process.communicate(timeout=WAITED)[1] for process in pair]
    assert [process.returncode for process in pair] == [2, 2]
    for errors in said:
        assert errors.startswith("vaebench: ")
        assert errors.count("\n") == 1
        assert "the 2 processes differ in their settings" in errors
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"batch_size": 3}, "at least one image"),
        ({"engine": "reference"}, "trains in one process"),
        ({"model": nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))}, "has batch norm"),
    ],
)
def test_what_only_one_process_can_do(words: dict[str, object], said: str) -> None:
    sound = {"model": nn.Linear(2, 2), "batch_size": 4, "engine": "fast"}
    _check_processes(4, **sound)  # type: ignore[arg-type]
    _check_processes(1, **{**sound, **words})  # type: ignore[arg-type]
    with pytest.raises(InputError, match=said):
        _check_processes(4, **{**sound, **words})  # type: ignore[arg-type]


ENVIRONMENT = {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("WORLD_SIZE", "two"),
        ("WORLD_SIZE", "0"),
        ("WORLD_SIZE", ""),
        ("RANK", None),
        ("RANK", "2"),
        ("RANK", "-1"),
        ("RANK", "first"),
        ("MASTER_ADDR", None),
        ("MASTER_PORT", None),
        ("MASTER_PORT", "0"),
        ("MASTER_PORT", "99999"),
    ],
)
def test_an_environment_that_names_no_group(
    name: str, value: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for known, good in ENVIRONMENT.items():
        monkeypatch.setenv(known, good)
    if value is None:
        monkeypatch.delenv(name)
    else:
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=f"{name}.*unset WORLD_SIZE"), joined():
        pass


def test_others_that_do_not_come(monkeypatch: pytest.MonkeyPatch) -> None:
    from datetime import timedelta

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    for name, value in {**ENVIRONMENT, "MASTER_PORT": port}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("vaebench.system.distributed.MEETING", timedelta(seconds=1))
    with pytest.raises(InputError, match="the 2 processes did not meet at 127"), joined():
        pass


def test_each_process_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    assert own_device("cuda:1") == "cuda:1"
    for name, value in {"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    assert own_device("cuda") == "cuda:1"
    assert own_device("cpu") == "cpu"
    with pytest.raises(InputError, match="names one GPU for 2 processes"):
        own_device("cuda:0")


def test_gradients_are_weighted_by_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes of 2 and 3 images, and one of none: the gradient is that of the mean over 5."""
    per_image = [torch.randn(5, 3, 4), torch.randn(5, 2)]
    parts = [slice(0, 2), slice(2, 5), slice(5, 5)]
    sent: list[torch.Tensor] = []
    for receiving in (False, True):

        def all_reduce(flat: torch.Tensor, receiving: bool = receiving) -> None:
            if receiving:
                flat.copy_(torch.stack(sent).sum(0))
            else:
                sent.append(flat.clone())

        monkeypatch.setattr("vaebench.fast.parallel.all_reduce", all_reduce)
        for part in parts:
            own = [g[part] for g in per_image]
            mean = tuple(g.mean(0) if len(g) else torch.zeros(g.shape[1:]) for g in own)
            updated = exchange(mean, len(own[0]))
            if receiving:
                for found, g in zip(updated, per_image, strict=True):
                    torch.testing.assert_close(found, g.mean(0))


def test_the_exchange_is_a_part_of_a_compiled_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """Captured without a break, and done anew at each run: with a process that has the same."""

    class Twin:
        def all_reduce(self, flat: torch.Tensor) -> None:
            flat.mul_(2)
            done.append(flat.numel())

    done: list[int] = []
    monkeypatch.setattr("vaebench.system.distributed._active", [Twin()])
    captured = torch.compile(exchange, backend="aot_eager", fullgraph=True)
    grads = (torch.randn(3, 4), torch.randn(5))
    for _ in range(2):
        for found, grad in zip(captured(grads, 7), grads, strict=True):
            torch.testing.assert_close(found, grad)
    assert done == [18, 18]


@pytest.mark.parametrize("n", [0, 1, 2, 5, 60, 61])
def test_shares_are_parts_of_a_whole(n: int) -> None:
    parts = []
    for rank in range(4):
        group = Group.__new__(Group)
        group.rank, group.world_size = rank, 4
        parts.append(list(range(n))[group.share(n)])
    assert [i for part in parts for i in part] == list(range(n))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
