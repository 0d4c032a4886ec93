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
from vaebench.model import VAE

CONFIG, METRICS, MODEL, RESULT = (
    "config.json",
    "metrics.jsonl",
    "model.safetensors",
    "result.json",
)
LARGEST_JSON = 10**6  # bytes; ours are a few thousand


class RunFolder:
    """Writes a run folder: one that did not exist, or was empty.

    A context manager: left by an exception before the first epoch's model was written, it takes
    back everything it made.

    Raises:
        InputError: the folder holds something, or cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.made: list[Path] = []
        try:
            self.made = [p for p in (self.path, *self.path.parents) if not p.exists()]
            self.path.mkdir(parents=True, exist_ok=True)
            occupied = any(self.path.iterdir())
            with tempfile.TemporaryFile(dir=self.path):
                pass
        except (OSError, ValueError) as error:  # ValueError: a name that no file can have
            self._take_back()
            reason = error.strerror if isinstance(error, OSError) else error
            raise InputError(
                f"--out {self.path} cannot be written ({reason}): choose another folder"
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
            with contextlib.suppress(OSError, ValueError):
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
        write_json(self.path / name, value)


class NoFolder(RunFolder):
    """Stands in for a run folder in a process that is not to write it: nothing comes of it."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path, self.made = Path(path), []

    def __exit__(self, *_: object) -> None:
        """Nothing was made."""

    def add_metrics(self, record: Mapping[str, Any]) -> None:
        """Write nothing."""

    def write_model(self, model: torch.nn.Module) -> None:
        """Write nothing."""

    def _write_json(self, name: str, value: Mapping[str, Any]) -> None:
        """Write nothing."""


def load(run_dir: str | os.PathLike[str]) -> VAE:
    """Load a run's model, on the CPU and in eval mode, ready to encode, decode and sample.

    Raises:
        InputError: the folder is no run folder, or is damaged.
    """
    if not isinstance(run_dir, str | os.PathLike) or not os.fspath(run_dir):
        raise InputError(f"a run folder is given by its path, not by {run_dir!r}")
    folder = Path(os.fsdecode(run_dir))
    settings = read_json(folder / CONFIG)
    try:
        with torch.device("meta"):  # no memory yet, whatever sizes a damaged file may name
            model = VAE(**settings["model"])
        tensors = _read_tensors(folder / MODEL)
        _check_tensors(tensors, model.state_dict())
        model.load_state_dict(tensors, assign=True)
    except FileNotFoundError:
        raise InputError(
            f"{folder} holds no {MODEL}: its training ended before the first epoch did"
        ) from None
    except (ArithmeticError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise _damaged(folder, error) from error
    except (SafetensorError, OSError) as error:
        raise _damaged(folder, error) from error
    return model.eval()


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write an object, or replace it whole."""
    with _replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _damaged(folder: Path, error: Exception) -> InputError:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    if isinstance(error, KeyError):
        reason = f"{CONFIG} holds no {reason}"
    return InputError(f"{folder} is damaged: {reason}; train again")


def _read_tensors(path: Path) -> dict[str, torch.Tensor]:
    if path.exists() and not path.is_file():  # opening a pipe would wait for ever
        raise ValueError(f"{path.name} is not a regular file")
    return load_file(path)


def _check_tensors(found: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]) -> None:
    """Raise ValueError unless the tensors are those of the model: names, shapes, types, numbers."""
    if found.keys() != wanted.keys():
        odd = ", ".join(sorted(found.keys() ^ wanted.keys()))
        raise ValueError(f"{MODEL} and the model of {CONFIG} do not share {odd}")
    for name, tensor in found.items():
        expected = wanted[name]
        if tensor.shape != expected.shape or tensor.dtype != expected.dtype:
            raise ValueError(
                f"{name} in {MODEL} is {tensor.dtype} of shape {tuple(tensor.shape)}, not "
                f"{expected.dtype} of {tuple(expected.shape)}"
            )
        if not bool(tensor.isfinite().all()):
            raise ValueError(f"{name} in {MODEL} holds values that are NaN or infinite")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file of a run folder.

    Raises:
        InputError: it is not there, or is no JSON object.
    """
    try:
        if path.exists() and not path.is_file():  # opening a pipe would wait for ever
            raise InputError(f"{path} is not a regular file; train again")
        if path.stat().st_size > LARGEST_JSON:
            raise InputError(f"{path} is damaged: it is {path.stat().st_size} bytes; train again")
        value = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(
            f"{path.parent} is no run folder: it holds no {path.name}; give a folder that "
            "python -m vaebench.train wrote"
        ) from None
    except InputError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged or unreadable: {error}; train again") from error
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
