"""Command-line arguments, from the fields of TrainConfig. No torch here."""

import argparse
import dataclasses
import textwrap
import types
import typing
from typing import Any, NoReturn

from vaebench.config import FIELDS, TrainConfig, recipe
from vaebench.errors import InputError
from vaebench.runs.settings import resumed
from vaebench.workloads import WORKLOADS


class Parser(argparse.ArgumentParser):
    """Reports a bad argument as everything else is reported: one line."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (--help lists the options)")


def parse(argv: list[str]) -> TrainConfig:
    """Turn command-line arguments into a TrainConfig, on top of the workload's own defaults.

    With ``--resume``, on top of the run's own settings instead.

    Raises:
        InputError: an unknown flag, or a value that cannot be.
    """
    parser = Parser(
        prog="python -m vaebench.train",
        description="Train a VAE on MNIST-like images, fast.",
        epilog=_recipes(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    for name, field in FIELDS.items():
        flag = "--" + name.replace("_", "-")
        parser.add_argument(
            flag, dest=name, default=argparse.SUPPRESS, **_argparse_kwargs(name, field)
        )
    given = vars(parser.parse_args(argv))
    if "hidden_dim" in given:
        given["hidden_dim"] = tuple(given["hidden_dim"])
    run = given.pop("resume", None)
    if run is not None:
        return resumed(run, given)
    config = recipe(given.pop("workload", "mlp"), **given)
    if config.objective.likelihood is None:
        config = config.replace(likelihood="bernoulli")
    return config


def _recipes() -> str:
    """List the workloads: source, and the options that each sets."""
    lines = ["workloads (the options they set; what is given beside --workload goes before):"]
    for name, entry in WORKLOADS.items():
        lines += textwrap.wrap(f"{name}: {entry.source}", 96, initial_indent="  ", **_HANGING)
        flags = " ".join(f"--{k.replace('_', '-')} {_shown(v)}" for k, v in entry.settings.items())
        lines += textwrap.wrap(flags or "the defaults", 96, initial_indent="      ", **_HANGING)
    return "\n".join(lines)


_HANGING: Any = {"subsequent_indent": "      ", "break_on_hyphens": False}


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _argparse_kwargs(name: str, field: "dataclasses.Field[Any]") -> dict[str, Any]:
    kwargs = {key: value for key, value in field.metadata.items() if key != "option"}
    kind: Any = field.type
    if field.default is not None and field.default is not False:
        kwargs["help"] += f" (default: {_shown(field.default)})"
    if name == "workload":
        kwargs["choices"] = tuple(WORKLOADS)
    if "const" in kwargs:  # an option whose value may be left out
        return {"type": str, **kwargs}
    if kind is bool:
        kwargs["action"] = argparse.BooleanOptionalAction
        return kwargs
    if isinstance(kind, types.UnionType):  # "X | None": parsed as X
        kind = typing.get_args(kind)[0]
    if typing.get_origin(kind) is tuple:
        kind = typing.get_args(kind)[0]
    return {"type": kind, **kwargs}
