"""Command-line arguments, from the fields of TrainConfig. No torch here."""

import argparse
import dataclasses
import textwrap
import types
import typing
from collections.abc import Collection
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
    parser = option_parser("python -m vaebench.train", "Train a VAE on MNIST-like images, fast.")
    given = vars(parser.parse_args(argv))
    run = given.pop("resume", None)
    return config_from(given) if run is None else resumed(run, _tidied(given))


def option_parser(prog: str, description: str, without: Collection[str] = ()) -> Parser:
    """A parser of TrainConfig's options, but for some; what is not given is not in its result."""
    parser = Parser(
        prog=prog,
        description=description,
        epilog=_recipes(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    for name, field in FIELDS.items():
        if name not in without:
            flag = "--" + name.replace("_", "-")
            parser.add_argument(
                flag, dest=name, default=argparse.SUPPRESS, **_argparse_kwargs(name, field)
            )
    return parser


def config_from(given: dict[str, Any]) -> TrainConfig:
    """Make a config of options that were given, on top of their workload's."""
    given = _tidied(given)
    config = recipe(given.pop("workload", "mlp"), **given)
    if config.objective.likelihood is None:
        config = config.replace(likelihood="bernoulli")
    return config


def _tidied(given: dict[str, Any]) -> dict[str, Any]:
    return {n: tuple(value) if isinstance(value, list) else value for n, value in given.items()}


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
