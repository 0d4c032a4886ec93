"""Streams of random numbers: each purpose and seed has one of its own."""

import numpy as np
import torch

# What a stream of random numbers is for; each purpose and seed has a stream of its own.
TRAINING, EVALUATION, TRAINING_PIXELS, TEST_PIXELS, MODEL, AUGMENTATION = 1, 2, 3, 4, 5, 6


def random_stream(seed: int, purpose: int, device: torch.device, part: int = 0) -> torch.Generator:
    """Make a generator on ``device`` whose stream is this seed's and this purpose's alone.

    A purpose with several streams, such as one for every epoch, numbers them by ``part``.
    Handing one seed to two generators gives one stream twice: initial weights and noise, say,
    would be the same numbers.
    """
    state = np.random.SeedSequence([seed, purpose, part]).generate_state(1, np.uint64)
    return torch.Generator(device).manual_seed(int(state[0]))
