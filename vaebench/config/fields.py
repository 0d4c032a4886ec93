"""Fields that are options too, and how groups of options check their values."""

from dataclasses import field
from typing import Any

from vaebench.errors import (
    WIDEST,
    InputError,
    check_choice,
    check_count,
    check_real,
    check_share,
    check_text,
)
from vaebench.fast.register import AMP_MODES

_MAY_BE_ZERO = ("beta", "free_bits", "warmup", "weight_decay")
# What would take years or every thread there is, and is a slip of the finger.
_MOST = {"epochs": 10**9, "latent_dim": WIDEST, "threads": 1024}


def check_amp(amp: str | None) -> None:
    """Raise InputError unless ``amp`` is None, ``"auto"`` or ``"bf16"``."""
    if amp in ("fp16", "float16", "half"):
        raise InputError(
            f"--amp {amp} is not offered: float16 needs a loss scaler, and exp(logvar) overflows "
            "it; use --amp bf16"
        )
    if amp is not None:
        chosen("amp", amp, AMP_MODES)


def flag_of(name: str) -> str:
    """How the command line calls an option."""
    return "--" + name.replace("_", "-")


def chosen(name: str, value: str, accepted: tuple[str, ...]) -> None:
    """Check a field that is one of some words."""
    check_choice(flag_of(name), value, accepted)


def counted(config: Any, *names: str) -> None:
    """Check fields that count something, and keep them as plain ints, whatever int was given."""
    for name in names:
        value = check_count(flag_of(name), getattr(config, name), most=_MOST.get(name))
        object.__setattr__(config, name, value)


def check_text_or_none(name: str, value: str | None) -> None:
    """Check a field that is a text, or left out."""
    if value is not None:
        check_text(flag_of(name), value)


def measured(config: Any, *names: str) -> None:
    """Check fields that are real numbers, and keep them as plain floats; some may be zero."""
    for name in names:
        value = check_real(flag_of(name), getattr(config, name), zero=name in _MAY_BE_ZERO)
        object.__setattr__(config, name, value)


def two_shares(name: str, value: Any) -> tuple[float, float]:
    """Give two shares, of whatever sequence they were given in."""
    try:
        first, second = value
    except (TypeError, ValueError):
        raise InputError(f"{name} is {value!r}: it must be two numbers") from None
    return check_share(name, first), check_share(name, second)


def option(default: Any, help: str, *, flag: str | None = None, **argparse_kwargs: Any) -> Any:
    """Declare a field that is also an option, called ``flag`` where that is not the field's name.

    Further keyword arguments are those of ``argparse.add_argument``.
    """
    return field(default=default, metadata={"help": help, "option": flag, **argparse_kwargs})
