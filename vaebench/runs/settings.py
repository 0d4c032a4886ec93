"""The settings of a run that goes on: its own, from its folder, and which of them may change.

No torch in this room: the command line is checked before torch is loaded.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vaebench.config import OPTIONS, TO_THE_END, TrainConfig
from vaebench.errors import InputError
from vaebench.fast.register import TECHNIQUES

CONFIG, RESULT = "config.json", "result.json"
LARGEST_JSON = 10**6  # bytes; ours are a few thousand

# What may be given anew with --resume, since the result of an epoch does not depend on it. Epochs
# and patience: one is the same whatever number follows, so a run may be made longer. The data's
# place: that they are the same images is checked by their contents. And a technique that changes no
# bit.
MAY_DIFFER = (
    *"epochs patience checkpoint_every data data_dir out plot film quiet resume".split(),
    *(technique.name for technique in TECHNIQUES if technique.exact),
)


def resumed(run: str, given: Mapping[str, Any]) -> TrainConfig:
    """Settings for going on with a run: its own, and on top what was given and may differ.

    Args:
        run: the run folder.
        given: the options named on the command line, without ``resume``.

    Raises:
        InputError: no run folder; or an option that is not as the run has it.
    """
    stored = read_json(Path(run) / CONFIG)
    own = {name: _tupled(stored[name]) for name in OPTIONS if name in stored}
    images = stored.get("images", {})
    if own.get("data") == "auto" and images.get("name") in ("mnist", "strokes"):
        own["data"] = images["name"]  # what auto turned out to be: it may turn out otherwise now
    if given.get("out") is not None:
        raise InputError(f"--out cannot be given with --resume, which writes to {run}: drop it")
    free = _may_differ(own.get("schedule"))
    other = {n: v for n, v in given.items() if n not in free and own.get(n, v) != v}
    if other:
        said = ", ".join(
            f"{_flag(name)} {_shown(value)} (its own: {_shown(own[name])})"
            for name, value in other.items()
        )
        raise InputError(
            f"{run} goes on with the options it began with, and these differ: {said}; drop them, "
            "or begin a new run"
        )
    try:
        return TrainConfig.of(**{**own, **given, "resume": run, "out": None})
    except (TypeError, ValueError) as error:
        raise InputError(f"{Path(run) / CONFIG} is damaged: {error}") from error


def deciding(config: TrainConfig) -> dict[str, Any]:
    """The settings that decide about the result, by name."""
    free = _may_differ(config.optimizer.schedule)
    return {n: v for n, v in config.options().items() if n not in free}


def _may_differ(schedule: object) -> set[str]:
    """Names of what may differ; not the epochs, where the learning rate depends on how many."""
    return {*MAY_DIFFER} - ({"epochs"} if schedule in TO_THE_END else set())


def is_complete(config: TrainConfig) -> str:
    """Say why there is nothing left to train in the run to go on with; "" if there is.

    Its summary is written then, and it has all its epochs, or its patience has run out.
    """
    try:
        result = read_json(Path(config.run.resume or "") / RESULT)
    except InputError:
        return ""  # not there, or damaged: it will be written anew
    epochs, stopped = config.optimizer.epochs, result.get("patience")
    if result.get("epochs") == epochs:
        return f"its {epochs} epochs are trained; more: --epochs N"
    if stopped and stopped == config.optimizer.patience:
        return (
            f"it stopped after epoch {result.get('epochs')}, its patience of {stopped} at an end; "
            "more: --patience N"
        )
    return ""


def check_images(run: str | Path, mark: str) -> None:
    """Check by their mark that images are those a run began with.

    Raises:
        InputError: they are others.
    """
    others = other_images(run, mark)
    if others:
        raise InputError(f"{others}: name those with --data or --data-dir")


def other_images(run: str | Path, mark: str) -> str | None:
    """Say how images differ, by their mark, from those a run began with; None if they do not.

    Nor if the run does not tell, having been written by a version that kept no mark.
    """
    own = read_json(Path(run) / CONFIG).get("images", {})
    if own.get("mark") in (None, mark):
        return None
    return (
        f"these are not the images that {run} began with ({own.get('name')}: {own['mark']}; now: "
        f"{mark})"
    )


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


def _tupled(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
