"""Checkpoints: all of a training, in one file an epoch, from which it goes on to the same bits.

A checkpoint is a safetensors file. Its tensors are the model's (``model.``), the optimiser's
(``engine.``), the generators' states (``random.``), the average of the weights and the best epoch's
if there are any (``average.``, ``best.``) and, as bytes, the lines of ``metrics.jsonl`` so far; its
header holds the epoch, the settings and a SHA-256 of it all, as JSON. Nothing in it can run code
when it is loaded.
"""

import contextlib
import dataclasses
import json
import re
import warnings
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vaebench.config import FIELDS
from vaebench.errors import InputError
from vaebench.runs.folder import metrics_line
from vaebench.runs.storage import as_bytes, digest, replacing, to_json, write_tensors
from vaebench.training.history import EpochRecord
from vaebench.training.state import TrainState

FORMAT = "1"
_NAME = re.compile(r"checkpoint-(\d{6,})\.safetensors")
_PARTS = ("model", "engine", "random", "average", "best")


class Checkpoints:
    """The checkpoints in a folder, of which the last two are kept.

    The last but one is there for when the last is damaged.

    Args:
        folder: where they lie; it must exist. One training at a time writes there.
        settings: what decides about the result, as JSON can hold it; stored, and compared when a
            checkpoint is read.

    Example:
        >>> checkpoints = Checkpoints("runs/mine")
        >>> fit(model, images, epochs=50, on_state=checkpoints.save, resume=checkpoints.newest())
    """

    def __init__(self, folder: str | Path, settings: Mapping[str, Any] | None = None) -> None:
        self.folder = Path(folder)
        self.settings = json.loads(to_json(settings or {}))
        self.kept: list[Path] = []  # the last one is known to be whole
        self.lines: list[bytes] = []  # of metrics.jsonl, kept so that none is made twice

    def save(self, state: TrainState) -> Path:
        """Write a checkpoint, whole and on the disk, and remove all but the one before.

        Raises:
            ResourceError: it cannot be written; those that were there still are.
        """
        for record in state.epochs[len(self.lines) :]:
            self.lines.append(metrics_line(dataclasses.asdict(record)))
        tensors = {"metrics": torch.frombuffer(bytearray(self.metrics), dtype=torch.uint8)}
        for part in _PARTS:
            named: dict[str, Tensor] = getattr(state, part)
            tensors |= {f"{part}.{name}": t.detach().cpu() for name, t in named.items()}
        metadata = {
            "format": FORMAT,
            "epoch": str(len(state.epochs)),
            "actual": to_json(state.actual),
            "settings": to_json(self.settings),
        }
        path = self.folder / f"checkpoint-{len(state.epochs):06d}.safetensors"
        with replacing(path) as file:
            write_tensors(file, tensors, {**metadata, "checksum": digest(tensors, metadata)})
        self.kept = [*(p for p in self.kept if p != path), path][-2:]
        self.prune()
        return path

    def prune(self) -> None:
        """Remove what is not to be kept; a process killed before it came to that left one more."""
        for path in find(self.folder):
            if path not in self.kept:
                with contextlib.suppress(OSError):
                    path.unlink()

    def newest(self) -> TrainState | None:
        """Read the newest checkpoint that is whole; None if there is none at all.

        Each damaged one passed over is told in a warning.

        Raises:
            InputError: all are damaged, or it belongs to a training with other settings.
        """
        damaged = []
        for path in reversed(find(self.folder)):
            try:
                state, settings = read(path)
            except InputError as error:
                damaged.append(str(error))
                continue
            for said in damaged:
                warnings.warn(f"{said}; going back to {path.name}", stacklevel=2)
            self._compare(settings, path)
            self.kept = [p for p in find(self.folder) if p.name <= path.name][-2:]
            self.lines = [metrics_line(dataclasses.asdict(record)) for record in state.epochs]
            return state
        if damaged:
            raise InputError(
                f"{'; '.join(damaged)}; no other is there: remove what is damaged to begin again "
                "with the first epoch"
            )
        return None

    @property
    def metrics(self) -> bytes:
        """``metrics.jsonl`` up to the checkpoint written or read last."""
        return b"".join(self.lines)

    def _compare(self, settings: Mapping[str, Any], path: Path) -> None:
        for name in sorted({*settings, *self.settings}):
            # One that there was not yet had the value that is now the default.
            mine, its = (s.get(name, _default(name)) for s in (self.settings, settings))
            if mine != its:
                raise InputError(
                    f"{path} was written with {name} {its}, not {mine}: go on with the settings "
                    "that it began with"
                )


def _default(name: str) -> Any:
    default = FIELDS[name].default if name in FIELDS else None
    return list(default) if isinstance(default, tuple) else default


def find(folder: Path) -> list[Path]:
    """The checkpoints in a folder, damaged ones too, oldest first."""
    found = [(match, p) for p in folder.glob("checkpoint-*") if (match := _NAME.fullmatch(p.name))]
    return [path for _, path in sorted((int(match[1]), path) for match, path in found)]


def read(path: Path) -> tuple[TrainState, dict[str, Any]]:
    """Read a checkpoint and the settings stored in it.

    Raises:
        InputError: it is damaged, or of a format that this version does not know.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path} is damaged: {reason}") from error
    checksum = metadata.pop("checksum", None)
    if checksum != digest(tensors, metadata):
        raise InputError(f"{path} is damaged: its checksum is not that of its content")
    if metadata.get("format") != FORMAT:
        raise InputError(
            f"{path} has format {metadata.get('format')}, and this version reads {FORMAT}: use "
            "the version of vaebench that wrote it"
        )
    return _state(tensors, metadata), json.loads(metadata["settings"])


def _state(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> TrainState:
    lines = bytes(as_bytes(tensors["metrics"])).splitlines()
    parts = {
        part: {
            name.removeprefix(f"{part}."): tensor
            for name, tensor in tensors.items()
            if name.startswith(f"{part}.")
        }
        for part in _PARTS
    }
    return TrainState(
        epochs=tuple(EpochRecord(**json.loads(line)) for line in lines),
        actual=json.loads(metadata["actual"]),
        **parts,
    )


def mark_of(*arrays: Tensor) -> str:
    """A mark by which to know data again: shapes, dtypes and CRC-32 of the contents.

    MNIST takes 15 ms.
    """
    parts = []
    for array in arrays:
        shape = "x".join(map(str, array.shape))
        kind = str(array.dtype).removeprefix("torch.")
        parts.append(f"{shape} {kind} {zlib.crc32(as_bytes(array)):08x}")
    return ", ".join(parts)
