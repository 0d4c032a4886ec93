"""A run folder, read back: its model, its numbers, and the test images that pictures are of."""

import json
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vaebench.data.images import to_unit
from vaebench.data.labels import check_labels
from vaebench.data.load import ImageSet, load_dataset, load_mnist
from vaebench.errors import InputError, one_line
from vaebench.models.protocol import prior_of
from vaebench.plots.options import UnsuitedError
from vaebench.plots.plane import Plane, find_plane
from vaebench.runs.folder import CONFIG, METRICS, RESULT, load, read_json

MAX_IMAGES = 10_000  # of a test set; more points only cover one another
_NAMES = {
    "mnist": "MNIST",
    "mnist5k": "5,000 MNIST images",
    "strokes": "built-in strokes (not MNIST)",
}


class Run:
    """One training. What takes time (data, encoding) is done when first asked for.

    Args:
        folder: the run folder.
        data_dir: where MNIST is looked for; default: where the training found it.

    Raises:
        InputError: no run folder, or a damaged one.
    """

    def __init__(self, folder: Path, data_dir: str | None = None) -> None:
        self.folder = folder
        self.data_dir = data_dir
        self.model = load(folder)
        self.config = read_json(folder / CONFIG)
        self.result = read_json(folder / RESULT) if (folder / RESULT).exists() else {}
        _check_texts(folder / CONFIG, self.config, ("workload", "data"))
        _check_texts(folder / RESULT, self.result, ("dataset",) if self.result else ())
        self.name = one_line(folder.resolve().name)  # which may not be text

    @property
    def classes(self) -> int:
        """How many classes of labels the model takes; 0 if it takes none."""
        return self.model.classes or 0

    @cached_property
    def epochs(self) -> list[dict[str, Any]]:
        """The epochs' records, as :class:`vaebench.EpochRecord`, at least one."""
        try:
            lines = (self.folder / METRICS).read_text(encoding="utf-8").splitlines()
            records = [json.loads(line) for line in lines]
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(f"{self.folder / METRICS} cannot be read: {error}") from error
        if not records:
            raise InputError(f"{self.folder / METRICS} is empty: its training did no epoch")
        for record in records:
            _check_record(self.folder / METRICS, record)
        return records

    @cached_property
    def test(self) -> ImageSet:
        """The test images the run was measured on, at most :data:`MAX_IMAGES`."""
        found = self._find_data()
        if found.images.shape[1:] != self.model.image_shape:
            raise InputError(
                f"{self.folder} was trained on images of shape {self.model.image_shape}, but its "
                f"data now holds {tuple(found.images.shape[1:])}: put back what it was trained on"
            )
        labels = None if found.labels is None else found.labels[:MAX_IMAGES]
        if self.classes and labels is None:
            raise InputError(
                f"{self.folder} was trained on labels, and its data now holds none: put back what "
                "it was trained on"
            )
        return ImageSet(found.images[:MAX_IMAGES], labels)

    def _find_data(self) -> ImageSet:
        # "auto" says what was wished for; only the result knows what it came to. Looking again
        # could find other data, and may not download: drawing is no reason to.
        data = self.result.get("dataset") if self.config["data"] == "auto" else self.config["data"]
        if data is None:
            raise InputError(
                f"{self.folder} has no {RESULT}, which would say what data auto came to: "
                "let its training end"
            )
        if data != "mnist":
            return load_dataset(data).test
        try:
            return load_mnist(self.data_dir or self.config.get("data_dir"), download=False).test
        except InputError as error:
            raise InputError(
                f"{error.args[0].split(';')[0]}; the run was trained on it: name its folder by "
                "--data-dir"
            ) from error

    @cached_property
    def x(self) -> Tensor:
        """The test images as the model takes them: (N, ...) float32."""
        return to_unit(self.test.images)

    @cached_property
    def y(self) -> Tensor | None:
        """The test images' labels (N,) as the model takes them; None if it takes none."""
        labels = self.test.labels
        if not self.classes or labels is None:
            return None
        return check_labels(labels, len(labels), classes=self.classes)

    @cached_property
    def codes(self) -> tuple[Tensor, Tensor]:
        """(mu, logvar) of the test images, each (N, Z)."""
        given = [t.split(1000) for t in (self.x, self.y) if t is not None]
        with torch.no_grad():
            parts = [self.model.encode(*part) for part in zip(*given, strict=True)]
        return torch.cat([mu for mu, _ in parts]), torch.cat([logvar for _, logvar in parts])

    @cached_property
    def plane(self) -> Plane:
        """The plane through latent space that pictures show."""
        if self.model.latent_dim < 2:
            raise UnsuitedError("a latent space of size 1 has no plane: it needs 2 or more")
        return find_plane(self.codes[0])

    @property
    def normal(self) -> str:
        """What to call N(0, I)."""
        return "the prior" if prior_of(self.model) is None else "N(0, I)"

    @cached_property
    def pixel_range(self) -> tuple[float, float]:
        """The values shown as black and as full brightness: 0 and 1, or the data's own ends."""
        low, high = (float(end) for end in self.x.aminmax())
        return min(low, 0.0), max(high, 1.0)

    @torch.no_grad()
    def decode(self, z: Tensor, y: int | Tensor | None = None) -> Tensor:
        """Mean images of z (N, Z), made showable: (N, C, H, W) in [0, 1].

        Args:
            z: codes.
            y: where the model takes labels, one for all, or (N,) of them.
        """
        given = [z] if y is None else [z, torch.as_tensor(y).expand(len(z))]
        parts = zip(*(t.split(1000) for t in given), strict=True)
        return self.showable(
            torch.cat([self.model.pixels(self.model.decode(*part)) for part in parts])
        )

    def showable(self, x: Tensor) -> Tensor:
        """Turn images (N, ...) of the model's shape into (N, C, H, W) in [0, 1], C 1 or 3."""
        channels, height, width = picture_shape(self.model.image_shape)
        low, high = self.pixel_range
        return ((x - low) / (high - low)).clamp(0, 1).reshape(-1, channels, height, width)

    def caption(self) -> str:
        """What every picture says of its run: workload, data, epochs, test ELBO."""
        data = self.result.get("dataset") or self.config["data"]
        last = self.epochs[-1]
        name = _NAMES.get(data, one_line(Path(data).name))
        given = " given labels" if self.classes else ""
        words = (
            f"{self.config['workload']}{given} on {name}, latent size "
            f"{self.model.latent_dim}, {last['epoch']} epoch{'s' * (last['epoch'] > 1)}"
        )
        if last["test_elbo"] is not None:
            words += f", test ELBO {last['test_elbo']:.2f} nats per image".replace("-", "−")
        return words + "."


def picture_shape(image_shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Give (C, H, W) of an image: of (H, W), (C, H, W) with 1 or 3 channels, or a square's D.

    Raises:
        UnsuitedError: it cannot be shown as a picture.
    """
    if len(image_shape) == 1 and round(image_shape[0] ** 0.5) ** 2 == image_shape[0]:
        side = round(image_shape[0] ** 0.5)
        return 1, side, side
    if len(image_shape) == 2:
        return 1, image_shape[0], image_shape[1]
    if len(image_shape) == 3 and image_shape[0] in (1, 3):
        return image_shape[0], image_shape[1], image_shape[2]
    raise UnsuitedError(
        f"images of shape {image_shape} cannot be shown: (H, W), (1, H, W) and (3, H, W) can"
    )


def _check_texts(path: Path, values: dict[str, Any], names: tuple[str, ...]) -> None:
    for name in names:
        if not isinstance(values.get(name), str):
            raise InputError(
                f"{path} is damaged: {name} is {values.get(name)!r}, not a text; train again"
            )


def _check_record(path: Path, record: object) -> None:
    """Raise InputError unless a line of metrics holds an epoch's numbers."""
    names = ("epoch", "train_elbo", "test_elbo", "recon", "kl", "seconds")
    for name in names:
        value = record.get(name) if isinstance(record, dict) else None
        absent = value is None and name == "test_elbo" and isinstance(record, dict)
        if not absent and (not isinstance(value, int | float) or isinstance(value, bool)):
            raise InputError(f"{path} is damaged: {name} is {value!r}, not a number; train again")
