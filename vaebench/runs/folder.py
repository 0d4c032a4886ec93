"""A run folder: what a training writes, and how a model comes back from it.

    config.json         the TrainConfig, and how to rebuild the model
    checkpoint-*        all that a training needs to go on; see vaebench.runs.checkpoints
    metrics.jsonl       one line per epoch
    model.safetensors   the parameters and buffers, replaced whole after every epoch
    best.safetensors    those of the epoch that scored best on the images held out, if there are any
    frames/             with --film, a picture of the same latent points after every epoch
    result.json         the summary, written at the end

An epoch is finished when its checkpoint is there; its line and its model are written after that,
and going on makes them anew from the checkpoint. So a process killed between any two of these
leaves no gap and no double. Nothing in the folder can run code when it is loaded. Files are
replaced atomically: a reader, or a crash, finds the old one or the new one.
"""

import contextlib
import errno
import itertools
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load_file

from vaebench.errors import InputError
from vaebench.models.networks import Network, make_network
from vaebench.runs.settings import CONFIG as CONFIG
from vaebench.runs.settings import RESULT as RESULT
from vaebench.runs.settings import read_json as read_json
from vaebench.runs.storage import (
    replacing,
    temporaries,
    to_json,
    write_tensors,
    writing,
)

METRICS, MODEL, BEST = "metrics.jsonl", "model.safetensors", "best.safetensors"
LOCK, FRAMES = ".vaebench.lock", "frames"
# What a file system without locks answers.
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


class RunFolder:
    """Writes a run folder: one that did not exist or was empty, or one to go on with.

    It is this process's alone until the context manager is left. Left by an exception before the
    first epoch was kept, a new folder is taken back, with everything in it.

    Args:
        path: the folder.
        resume: go on with one that was written before.
        next_free: if there is one of that name, make another: ``path-2``, or ``path-3``, and so on.

    Raises:
        InputError: the folder holds something, cannot be written, or is being written by another.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, resume: bool = False, next_free: bool = False
    ) -> None:
        self.path, self.resume = Path(path), resume
        self.made: list[Path] = []
        try:
            self.made = [p for p in (self.path, *self.path.parents) if not p.exists()]
            if next_free:
                self.path = _make_next_free(self.path)
                self.made = [self.path, *(p for p in self.made if p in self.path.parents)]
            elif not resume:
                self.path.mkdir(parents=True, exist_ok=True)
            if not resume:
                self._check_free()
            self.lock = _lock(self.path)
            for left in temporaries(self.path):
                left.unlink()
        except (OSError, ValueError) as error:  # ValueError: a name that no file can have
            if isinstance(error, InputError):
                raise
            self._take_back()
            flag = "--resume" if resume else "--out"
            reason = error.strerror if isinstance(error, OSError) else error
            raise InputError(
                f"{flag} {self.path} cannot be written ({reason}): choose another folder"
            ) from error
        if not resume:
            try:
                self._check_free()  # nobody may have come before the lock was ours
            except InputError:
                self._unlock()
                raise

    def _check_free(self) -> None:
        """Refuse a folder in which anything lies but what a process killed at once leaves."""
        if {*self.path.iterdir()} - {self.path / LOCK, *temporaries(self.path)}:
            raise InputError(
                f"--out {self.path} is not empty: choose a new folder, or remove that one; or go "
                f"on with the run in it, --resume {self.path}"
            )

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        in_vain = kind is not None and not self.resume and not self.kept()
        if in_vain:
            for name in (CONFIG, METRICS):
                with contextlib.suppress(OSError):
                    (self.path / name).unlink()
            with contextlib.suppress(OSError):
                (self.path / FRAMES).rmdir()
        self._unlock()
        if in_vain:
            self._take_back()

    def kept(self) -> str | None:
        """Name the file that holds the last finished epoch; None if no epoch was finished."""
        names = [p.name for p in self.path.glob("checkpoint-*.safetensors")]
        model = [MODEL] if (self.path / MODEL).exists() else []
        return max(names, default=None) or next(iter(model), None)

    def _unlock(self) -> None:
        """Let others write. The file goes first: it must not go once it is someone else's."""
        with contextlib.suppress(OSError):
            (self.path / LOCK).unlink()
        self.lock.release()

    def _take_back(self) -> None:
        for folder in self.made:
            with contextlib.suppress(OSError, ValueError):
                folder.rmdir()

    def write_config(
        self,
        config: Mapping[str, Any],
        model: Mapping[str, Any],
        images: Mapping[str, Any] | None = None,
    ) -> None:
        """Write what is needed to rebuild the model and repeat the training."""
        self._write_json(CONFIG, {**config, "model": model, "images": images or {}})

    def write_metrics(self, lines: bytes) -> None:
        """Write the lines of the epochs so far in place of those there are."""
        with replacing(self.path / METRICS) as file:
            file.write(lines)

    def add_metrics(self, record: Mapping[str, Any]) -> None:
        """Append one epoch's line."""
        with writing(self.path / METRICS), open(self.path / METRICS, "ab") as file:
            file.write(metrics_line(record))
            file.flush()
            os.fsync(file.fileno())

    def write_model(self, tensors: Mapping[str, torch.Tensor], *, best: bool = False) -> None:
        """Replace the model's parameters and buffers, or those of the best epoch."""
        with replacing(self.path / (BEST if best else MODEL)) as file:
            write_tensors(file, {name: t.cpu() for name, t in tensors.items()})

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Write the summary."""
        self._write_json(RESULT, result)

    def _write_json(self, name: str, value: Mapping[str, Any]) -> None:
        write_json(self.path / name, value)


def _make_next_free(path: Path) -> Path:
    for number in itertools.count(2):
        try:
            path.mkdir(parents=True)
            return path
        except FileExistsError:
            if not os.path.lexists(path):  # it is a parent that is there, and no folder
                raise
        stem = path.name if number == 2 else path.name.rpartition("-")[0]
        path = path.with_name(f"{stem}-{number}")
    raise AssertionError("counted to the end")


def _lock(folder: Path) -> FileLock:
    """Take the right to write to a folder; the system takes it back when this process dies.

    A file carries it, and is removed at the end. One that a killed process left carries nothing.

    Raises:
        InputError: another process has it.
        OSError: the file cannot be made.
    """
    lock = FileLock(folder / LOCK, mode=0o644)
    try:
        lock.acquire(timeout=0.2)  # not 0: its last owner may just be removing the file
    except Timeout:
        raise InputError(
            f"another training is writing to {folder}: wait for its end, or choose another folder"
        ) from None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        warnings.warn(
            "files cannot be locked here: see to it yourself that no second training writes to "
            "this folder",
            stacklevel=2,
        )
    return lock


def tidy(run: str | os.PathLike[str]) -> None:
    """Remove what a process killed at its very end left in the folder of a finished run.

    A folder that another process writes, or that cannot be written, is let be.
    """
    with contextlib.suppress(InputError), RunFolder(run, resume=True):
        pass


class NoFolder(RunFolder):
    """Stands in for a run folder in a process that is not to write it: nothing comes of it."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path, self.made = Path(path), []

    def __exit__(self, *_: object) -> None:
        """Nothing was made."""

    def write_metrics(self, lines: bytes) -> None:
        """Write nothing."""

    def add_metrics(self, record: Mapping[str, Any]) -> None:
        """Write nothing."""

    def write_model(self, tensors: Mapping[str, torch.Tensor], *, best: bool = False) -> None:
        """Write nothing."""

    def _write_json(self, name: str, value: Mapping[str, Any]) -> None:
        """Write nothing."""


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write an object, or replace it whole."""
    with replacing(path) as file:
        file.write((to_json(value, indent=2) + "\n").encode())


def metrics_line(record: Mapping[str, Any]) -> bytes:
    """An epoch's record as its line of ``metrics.jsonl``."""
    return to_json(record).encode() + b"\n"


def load(run_dir: str | os.PathLike[str], *, best: bool = False) -> Network:
    """Load a run's model, on the CPU and in eval mode, ready to encode, decode and sample.

    Args:
        run_dir: the run folder.
        best: take the epoch that scored best on the images held out, not the last.

    Raises:
        InputError: the folder is no run folder, or is damaged; or has no best epoch.
    """
    if not isinstance(run_dir, str | os.PathLike) or not os.fspath(run_dir):
        raise InputError(f"a run folder is given by its path, not by {run_dir!r}")
    folder = Path(os.fsdecode(run_dir))
    settings = read_json(folder / CONFIG)
    try:
        with torch.device("meta"):  # no memory yet, whatever sizes a damaged file may name
            model = make_network(settings["model"])
        tensors = _read_tensors(folder / (BEST if best else MODEL))
        _check_tensors(tensors, model.state_dict())
        model.load_state_dict(tensors, assign=True)
    except FileNotFoundError:
        if best and (folder / MODEL).exists():
            raise InputError(
                f"{folder} holds no {BEST}: no images were held out to judge epochs by; train with "
                "--holdout N, or take the last epoch"
            ) from None
        raise InputError(
            f"{folder} holds no {MODEL}: its training ended before the first epoch did"
        ) from None
    except (ArithmeticError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise _damaged(folder, error) from error
    except (SafetensorError, OSError) as error:
        raise _damaged(folder, error) from error
    return model.eval()


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
