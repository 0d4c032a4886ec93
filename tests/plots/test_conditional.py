"""Pictures of conditional runs: each image under its label, and one style in every class."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.plots.test_plot import make_run, pixels
from vaebench.data.strokes import make_strokes
from vaebench.errors import InputError
from vaebench.plots import KINDS, Options, draw, style
from vaebench.plots.options import UnsuitedError
from vaebench.plots.run import Run
from vaebench.plots.sheets import HEADS


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "given", 3, conditional=True)


def _grey(run: Run, z: Tensor, label: int) -> Tensor:
    """What the decoder makes of z (Z,) under a label, in grey levels."""
    with torch.no_grad():
        output = run.model.decode(z[None], torch.tensor([label]))
        return 255 * run.model.pixels(output)[0]


def test_all_kinds_but_the_explorer_are_drawn(
    run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "vaebench"):
        drawn = [file.stem for file in draw(run, out=tmp_path)]
    assert drawn == [kind for kind in KINDS if kind not in ("explore", "film")]
    assert "explore is left out: the explorer decodes z alone" in caplog.text
    for kind in drawn:
        assert pixels(tmp_path / f"{kind}.png").std() > 5


def test_a_row_holds_one_style_in_every_class(run: Path, tmp_path: Path) -> None:
    shown = pixels(draw(run, ["styles"], tmp_path)[0])[..., 0]
    scale = round(1000 / (11 * 28))
    top, step = style.HEADING + HEADS, 28 * scale + 2
    left = int((shown[top + 4] == 0).argmax())  # the first image's black corner
    its = Run(run)

    def cell(row: int, column: int) -> Tensor:
        at = shown[top + row * step :, left + column * step :]
        return torch.from_numpy(at[: 28 * scale : scale, : 28 * scale : scale].astype(np.float32))

    assert its.y is not None
    for row in range(10):
        index = next(
            n for n, image in enumerate(its.test.images) if torch.equal(image, cell(row, 0))
        )
        assert its.y[index] == row  # one test image of each class
        for label in range(10):
            wanted = _grey(its, its.codes[0][index], label)
            assert (cell(row, 1 + label) - wanted).abs().max() < 1.01
    assert not torch.equal(cell(0, 1), cell(0, 2))


def test_codes_are_those_of_image_and_label(run: Path) -> None:
    its = Run(run)
    assert its.y is not None
    with torch.no_grad():
        mu, _ = its.model.encode(its.x, its.y)
        other, _ = its.model.encode(its.x, (its.y + 1) % 10)
    torch.testing.assert_close(its.codes[0], mu)
    assert not torch.allclose(mu, other)


def test_the_manifold_is_of_one_class(run: Path, tmp_path: Path) -> None:
    files = [
        draw(run, ["manifold"], tmp_path / str(label), Options(grid=4, label=label))[0]
        for label in (0, 7)
    ]
    assert files[0].read_bytes() != files[1].read_bytes()
    with pytest.raises(InputError, match=r"label is 10: .* was trained on 10 classes"):
        draw(run, ["manifold"], tmp_path, Options(label=10))


def test_runs_without_labels_have_no_styles(tmp_path: Path) -> None:
    plain = make_run(tmp_path / "plain", 2)
    with pytest.raises(UnsuitedError, match=r"takes no labels, .* train with --conditional"):
        draw(plain, ["styles"], tmp_path)
    with pytest.raises(InputError, match=r"label is 3: .* was trained on none"):
        draw(plain, ["manifold"], tmp_path, Options(label=3))
    with pytest.raises(InputError, match="--label is -1"):
        Options(label=-1)


@pytest.mark.parametrize("classes", [2, 25])
def test_few_and_many_classes(classes: int, tmp_path: Path) -> None:
    images, _ = make_strokes(300, seed=0)
    labels = torch.arange(300) % classes
    run = make_run(tmp_path / "run", 2, images=images, labels=labels, conditional=True)
    kinds = ["styles", "samples", "interpolate", "reconstructions", "traverse", "manifold"]
    for file in draw(run, kinds, tmp_path):
        with Image.open(file) as image:
            assert image.width > 300


def test_labels_that_are_gone(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", 2, conditional=True)
    data = np.load(tmp_path / "run.npz")
    np.savez(tmp_path / "run.npz", x_train=data["x_train"], x_test=data["x_test"])
    with pytest.raises(InputError, match="was trained on labels, and its data now holds none"):
        draw(run, ["samples", "latent"], tmp_path)
