"""How the learning rate changes from epoch to epoch. No torch in this room."""

from vaebench.config import SCHEDULES


def lr_factor(schedule: str, epoch: int) -> float:
    """What the learning rate is multiplied by in this epoch; epochs count from 1.

    ``"constant"``: 1. ``"iwae"`` (Burda et al. 2015, section 5): 10^(-i/7) for 3^i epochs, i = 0
    to 7, then as at last. ``"pythae"`` (its examples/scripts/reproducibility/vae.py): 10^(-1/5)
    more after each of 200, 350, 500, 750 and 1000 epochs.
    """
    assert schedule in SCHEDULES
    if schedule == "iwae":
        # Stage i begins after 1 + 3 + ... + 3^(i-1) = (3^i - 1) / 2 epochs.
        return float(10 ** (-max(i for i in range(8) if (3**i - 1) // 2 < epoch) / 7))
    if schedule == "pythae":
        return float(10 ** (-sum(epoch > end for end in (200, 350, 500, 750, 1000)) / 5))
    return 1.0
