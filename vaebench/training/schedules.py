"""How the learning rate and the KL's weight change while training. No torch in this room.

A schedule is a function of the time since training began, in epochs: 1.5 is the middle of the
second. Both are set twenty times an epoch, at the same steps whatever the engine.
"""

import math
from collections.abc import Callable, Sequence

from vaebench.config import BETA_SCHEDULES, SCHEDULES
from vaebench.errors import InputError, check_real

Schedule = Callable[[float], float]
# Of one-cycle: where it begins, relative to the top, and the share of the training that it rises.
ONE_CYCLE = 1 / 25, 0.3
# Where a warm-up of the learning rate begins.
COLD = 0.01


def lr_factor(schedule: str, time: float, epochs: int = 1, warmup: float = 0.0) -> float:
    """What the learning rate is multiplied by.

    - ``"constant"``: 1.
    - ``"linear"``, ``"cosine"``: down to 0 at the end of the last epoch.
    - ``"one-cycle"`` (Smith & Topin 2017, as in torch's OneCycleLR): up from 1/25 for three tenths
      of the training, then down to 0, both along a cosine.
    - ``"iwae"`` (Burda et al. 2015, section 5): 10^(-i/7) for 3^i epochs, i = 0 to 7, then as at
      last. ``"pythae"`` (its examples/scripts/reproducibility/vae.py): 10^(-1/5) more after each of
      200, 350, 500, 750 and 1000 epochs.

    Args:
        schedule: its name.
        time: epochs since training began, fractions included.
        epochs: of the whole training.
        warmup: epochs for which the factor also rises, in proportion to time, from a hundredth.
    """
    assert schedule in SCHEDULES
    rising = min(1.0, COLD + (1 - COLD) * time / warmup) if warmup else 1.0
    whole, share = int(time), min(1.0, time / epochs)
    if schedule == "iwae":
        # Stage i begins after 1 + 3 + ... + 3^(i-1) = (3^i - 1) / 2 epochs.
        return rising * float(10 ** (-max(i for i in range(8) if (3**i - 1) // 2 <= whole) / 7))
    if schedule == "pythae":
        return rising * float(10 ** (-sum(whole >= e for e in (200, 350, 500, 750, 1000)) / 5))
    if schedule == "linear":
        return rising * (1 - share)
    if schedule == "cosine":
        return rising * _cosine(share)
    if schedule == "one-cycle":
        low, up = ONE_CYCLE
        if share < up:
            return rising * (1 - (1 - low) * _cosine(share / up))
        return rising * _cosine((share - up) / (1 - up))
    return rising


def _cosine(share: float) -> float:
    """From 1 down to 0 along half a cosine."""
    return (1 + math.cos(math.pi * share)) / 2


def beta_factor(schedule: str, time: float, length: float) -> float:
    """What the KL's weight is multiplied by.

    ``"constant"``: 1. ``"warmup"`` (Bowman et al. 2016, Sonderby et al. 2016): from 0, in
    proportion to time, to 1 after ``length`` epochs. ``"cyclical"`` (Fu et al. 2019): every
    ``length`` epochs anew from 0, to 1 at half of them.
    """
    assert schedule in BETA_SCHEDULES
    if schedule == "warmup":
        return min(1.0, time / length)
    if schedule == "cyclical":
        return min(1.0, 2 * (time % length) / length)
    return 1.0


def as_schedule(name: str, value: object, *, zero: bool = False) -> Schedule | None:
    """The schedule that a caller gave as a function of time, or as a number for each epoch.

    Args:
        name: what it is of, for messages.
        value: a function; a sequence, whose last number holds for all later epochs; or anything
            else, of which None is made.
        zero: whether 0 is a value that can be.

    Raises:
        InputError: a sequence without numbers, or a value, also a later one, that cannot be.
    """

    def checked(number: object, where: str) -> float:
        return check_real(f"{name} {where}", number, zero=zero)

    if callable(value):
        return lambda time: checked(value(time), f"after {time:g} epochs")
    if not isinstance(value, Sequence) or isinstance(value, str):
        return None
    if not value:
        raise InputError(f"{name} is an empty list: give a number for each epoch")
    numbers = [checked(number, f"of epoch {i + 1}") for i, number in enumerate(value)]
    return lambda time: numbers[min(int(time), len(numbers) - 1)]
