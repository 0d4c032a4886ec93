"""What fit() is given to train on and to judge by: checked once, split, and made binary."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from vaebench.config import TrainConfig
from vaebench.data.arrays import checked
from vaebench.data.binarize import Sampler, binarize
from vaebench.data.images import Images
from vaebench.data.labels import check_labels
from vaebench.data.streaming import fits
from vaebench.errors import InputError
from vaebench.models.adapt import classes_of
from vaebench.system.distributed import count
from vaebench.system.random import TEST_PIXELS, TRAINING_PIXELS

Test = Tensor | tuple[Tensor, Tensor | None] | None


class Judged(NamedTuple):
    """Images that are not trained on, with their labels if the model takes them."""

    images: Images
    labels: Tensor | None


class Inputs:
    """Images and labels of one training.

    ``images`` and ``labels`` are trained on; ``test`` and ``held_out`` are evaluated; ``resident``
    says whether the device holds the images; ``sampler`` draws new binary pixels for each epoch.

    Args:
        config: the settings.
        model: that takes the images.
        images: see :func:`vaebench.fit`, as for labels and test_images.
        unit_interval: whether pixels must lie in [0, 1].
        device: where it trains.

    Raises:
        InputError: something that cannot be; says what, and what is accepted.
    """

    def __init__(
        self,
        config: TrainConfig,
        model: nn.Module,
        images: Tensor,
        labels: Tensor | None,
        test_images: Test,
        *,
        unit_interval: bool,
        device: torch.device,
    ) -> None:
        self.config, self.model = config, model
        self.images = checked(images, "images", unit_interval=unit_interval).pixels
        self.labels = self._check_labels(labels, self.images, "labels")
        test, test_labels = test_images if isinstance(test_images, tuple) else (test_images, None)
        self.test: Judged | None = None
        if test is not None:
            tested = checked(test, "test_images", unit_interval=unit_interval)
            given = self._check_labels(test_labels, tested, "the test images' labels")
            self.test = Judged(tested, given)
        self._check_test()
        kept = self._check_sizes()
        self.resident = self._fits(self.images[:kept], device)
        self.sampler = self._binarize(config.data.binarize, kept, device)
        self.held_out: Judged | None = None
        if kept < len(self.images):
            images, labels = self.images, self.labels
            held = Images(images[kept:], unit_interval or images.dtype == torch.uint8)
            self.held_out = Judged(held, None if labels is None else labels[kept:])
            self.images, self.labels = images[:kept], None if labels is None else labels[:kept]

    def _check_labels(self, labels: object, images: Tensor | Images, name: str) -> Tensor | None:
        if labels is None:
            return None
        return check_labels(labels, len(images), classes=classes_of(self.model), name=name)

    def _check_test(self) -> None:
        if self.config.network.conditional and self.labels is None:
            raise InputError("conditional is set, and there are no labels: give labels=...")
        if self.test is None:
            return
        if self.test.images.pixels.shape[1:] != self.images.shape[1:]:
            raise InputError(
                f"test_images are of shape {tuple(self.test.images.pixels.shape[1:])} each, images "
                f"of {tuple(self.images.shape[1:])}: make them alike"
            )
        if (self.labels is None) != (self.test.labels is None):
            raise InputError(
                "labels are given for the images or for the test images, not for both: give "
                "labels=..., test_images=(images, labels)"
            )

    def _check_sizes(self) -> int:
        """Give how many of the images are trained on."""
        n, batch_size = len(self.images), self.config.optimizer.largest
        kept = n - self.config.data.holdout
        if kept < 1:
            raise InputError(
                f"holdout is {self.config.data.holdout}, which leaves none of the {n} training "
                "images: make it smaller"
            )
        if batch_size > kept:
            raise InputError(
                f"batch_size is {batch_size}, more than the {kept} images: make it smaller"
            )
        return kept

    def _fits(self, images: Tensor, device: torch.device) -> bool:
        together = count() > 1 or self.config.run.engine == "reference"
        return together or fits(images, device)

    def _binarize(self, how: str, kept: int, device: torch.device) -> Sampler | None:
        if how == "none":
            return None
        sampler = None
        if how == "dynamic":
            # New pixels are drawn where the images are kept: what does not fit on the device, on
            # the host.
            where = device if self.resident else self.images.device
            sampler = Sampler(self.images[:kept], self.config.run.seed, where)
        self.images = binarize(self.images, how, TRAINING_PIXELS)
        if self.test is not None:
            pixels = binarize(self.test.images.pixels, how, TEST_PIXELS)
            self.test = self.test._replace(images=Images(pixels, unit_interval=True))
        return sampler
