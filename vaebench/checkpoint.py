"""A run folder: what a training writes, and how a model comes back from it.

    config.json         the TrainConfig, and how to rebuild the model
    metrics.jsonl       one line per epoch
    model.safetensors   the parameters and buffers, replaced whole after every epoch
    result.json         the summary, written at the end

Nothing in it can run code when it is loaded. Files are replaced atomically: a reader, or a crash,
finds the old one or the new one.
"""

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from vaebench.errors import InputError
from vaebench.networks import Network, make_network

CONFIG, METRICS, MODEL, RESULT = (
    "config.json",
    "metrics.jsonl",
    "model.safetensors",
    "result.json",
)


class RunFolder:
    """Writes a run folder: one that did not exist, or was empty.

    A context manager: left by an exception before the first epoch's model was written, it takes
    back everything it made.

    Raises:
        InputError: the folder holds something, or cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.made = [p for p in (self.path, *self.path.parents) if not p.exists()]
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            occupied = any(self.path.iterdir())
            with tempfile.TemporaryFile(dir=self.path):
                pass
        except OSError as error:
            self._take_back()
            raise InputError(
                f"--out {self.path} cannot be written ({error.strerror}): choose another folder"
            ) from error
        if occupied:
            raise InputError(
                f"--out {self.path} is not empty: choose a new folder, or remove that one"
            )

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and not (self.path / MODEL).exists():
            for name in (CONFIG, METRICS):
                (self.path / name).unlink(missing_ok=True)
            self._take_back()

    def _take_back(self) -> None:
        for folder in self.made:
            with contextlib.suppress(OSError):
                folder.rmdir()

    def write_config(self, config: Mapping[str, Any], model: Mapping[str, Any]) -> None:
        """Write what is needed to rebuild the model and repeat the training."""
        self._write_json(CONFIG, {**config, "model": model})

    def add_metrics(self, record: Mapping[str, Any]) -> None:
        """Append one epoch's line."""
        with open(self.path / METRICS, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def write_model(self, model: torch.nn.Module) -> None:
        """Replace the model's parameters and buffers."""
        tensors = {name: t.detach().cpu().contiguous() for name, t in model.state_dict().items()}
        with _replacing(self.path / MODEL) as temporary:
            temporary.write_bytes(save(tensors))

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Write the summary."""
        self._write_json(RESULT, result)

    def _write_json(self, name: str, value: Mapping[str, Any]) -> None:
        with _replacing(self.path / name) as temporary:
            temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def load(run_dir: str | os.PathLike[str]) -> Network:
    """Load a run's model, on the CPU and in eval mode, ready to encode, decode and sample.

    Raises:
        InputError: the folder is no run folder, or is damaged.
    """
    folder = Path(run_dir)
    settings = _read_json(folder / CONFIG)
    try:
        model = make_network(settings["model"])
        model.load_state_dict(load_file(folder / MODEL))
    except FileNotFoundError:
        raise InputError(
            f"{folder} holds no {MODEL}: its training ended before the first epoch did"
        ) from None
    except (KeyError, TypeError, RuntimeError, SafetensorError, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{folder} is damaged: {reason}; train again") from error
    return model.eval()


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(
            f"{path.parent} is no run folder: it holds no {path.name}; give a folder that "
            "python -m vaebench.train wrote"
        ) from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise InputError(f"{path} is damaged: it holds no object; train again")
    return value


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Give a temporary file's path; at the end put that file, whole and on disk, in place."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
