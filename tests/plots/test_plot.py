"""Pictures: each kind is drawn, holds what it says, is the same every time, and fails clearly."""

import importlib.util
import json
import logging
import math
import os
import subprocess
import sys
from dataclasses import asdict
from itertools import combinations
from pathlib import Path
from types import ModuleType
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from torch import Tensor

import vaebench
from vaebench.data.strokes import make_strokes
from vaebench.errors import InputError
from vaebench.plots import KINDS, Options, draw, style
from vaebench.plots.manifold import round_values
from vaebench.plots.options import UnsuitedError, choose
from vaebench.plots.plane import densest, find_plane
from vaebench.plots.run import Run, picture_shape
from vaebench.plots.sheets import pick_by_class, spherical
from vaebench.runs.folder import RunFolder

LATENTS = (2, 20)
PLAIN = [kind for kind in KINDS if kind not in ("styles", "film")]  # without labels or frames
IMAGES = [kind for kind in PLAIN if kind != "explore"]
PLOT = Path(__file__).parents[2] / "scripts" / "plot.py"
Pixels = npt.NDArray[Any]


def make_run(
    folder: Path,
    latent_dim: int,
    *,
    images: Tensor | None = None,
    labels: Tensor | None = None,
    likelihood: str = "bernoulli",
    activation: str = "relu",
    hidden_dim: int = 24,
    conditional: bool = False,
) -> Path:
    """Train a tiny model for one epoch, on strokes unless told otherwise; give its run folder."""
    if images is None:
        images, labels = make_strokes(300, seed=0)
    data = folder.with_suffix(".npz")
    arrays = {"x_train": images[:200].numpy(), "x_test": images[200:].numpy()}
    if labels is not None:
        arrays |= {"y_train": labels[:200].numpy(), "y_test": labels[200:].numpy()}
    np.savez(data, allow_pickle=False, **arrays)
    torch.manual_seed(0)
    recipe: dict[str, Any] = {
        "image_shape": tuple(images.shape[1:]),
        "hidden_dims": (hidden_dim,),
    }
    recipe |= {"latent_dim": latent_dim, "likelihood": likelihood, "activation": activation}
    given: dict[str, Any] = {}
    test: Any = images[200:]
    if conditional and labels is not None:
        recipe["classes"] = int(labels.max()) + 1
        given, test = {"labels": labels[:200]}, (images[200:], labels[200:])
    model = vaebench.VAE(**recipe)
    config = vaebench.TrainConfig.of(data=str(data), latent_dim=latent_dim, likelihood=likelihood)
    with RunFolder(folder) as run:
        run.write_config(config.options(), recipe)
        history = vaebench.fit(
            model, images[:200], epochs=1, batch_size=10, lr=1e-2, device="cpu",
            test_images=test, on_epoch=lambda record: run.add_metrics(asdict(record)),
            **given,
        )  # fmt: skip
        run.write_model(model.state_dict())
        run.write_result({"dataset": data.name, "test_elbo": history.epochs[-1].test_elbo})
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """A run folder by latent size."""
    folder = tmp_path_factory.mktemp("runs")
    return {latent: make_run(folder / f"z{latent}", latent) for latent in (1, *LATENTS)}


@pytest.fixture(scope="module")
def plot() -> ModuleType:
    """The program, as a module."""
    spec = importlib.util.spec_from_file_location("plot", PLOT)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pixels(file: Path) -> Pixels:
    return np.asarray(Image.open(file).convert("RGB"))


@pytest.mark.parametrize("latent", LATENTS)
@pytest.mark.parametrize("kind", IMAGES)
def test_a_picture_is_drawn_and_again_the_same(
    kind: str, latent: int, runs: dict[int, Path], tmp_path: Path
) -> None:
    files = [draw(runs[latent], [kind], tmp_path / name)[0] for name in "ab"]
    assert files[0] == tmp_path / "a" / f"{kind}.png"
    assert files[0].read_bytes() == files[1].read_bytes()
    with Image.open(files[0]) as image:
        assert image.info == {}  # pixels only: no date, no program
    shown = pixels(files[0])
    height, width = shown.shape[:2]
    assert 900 <= width <= 1400
    assert 300 <= height <= 2000
    margin = 12
    assert (shown[:, :margin] == 255).all()  # nothing runs over the edges
    assert (shown[:, -margin:] == 255).all()
    inside = shown[style.HEADING : -100, margin:-margin]
    assert inside.std() > 5


@pytest.mark.parametrize("latent", LATENTS)
def test_manifold_shows_what_the_decoder_gives(
    latent: int, runs: dict[int, Path], tmp_path: Path
) -> None:
    shown = pixels(draw(runs[latent], ["manifold"], tmp_path, Options(grid=5))[0])
    scale, left, top = 8, 120, style.HEADING  # 1120 pixels are 5 x 28 x 8
    run = Run(runs[latent])
    edge = math.sqrt(2) * float(torch.erfinv(torch.tensor(0.9)))  # the prior's quantile 0.95
    for row, column, point in ((0, 0, (-1, 1)), (0, 4, (1, 1)), (4, 0, (-1, -1)), (2, 2, (0, 0))):
        z = edge * torch.tensor([point], dtype=torch.float32) @ run.plane.basis[:, :2].T
        wanted = run.model.pixels(run.model.decode(z)).detach().numpy()[0]
        step = 28 * scale
        cell = shown[top + row * step :, left + column * step :][:step:scale, :step:scale, 0]
        assert np.abs(cell / 255 - wanted).max() < 1.01 / 255


def test_reconstructions_show_test_images(runs: dict[int, Path], tmp_path: Path) -> None:
    shown = pixels(draw(runs[2], ["reconstructions"], tmp_path)[0])[..., 0]
    test, scale = Run(runs[2]).test, 4
    assert test.labels is not None
    left = int((shown[style.HEADING + 4] == 0).argmax())  # the first image's black corner
    for column in range(10):
        start = left + column * (28 * scale + 2)
        cell = shown[style.HEADING :, start:][: 28 * scale : scale, : 28 * scale : scale]
        same = [n for n, image in enumerate(test.images) if (image.numpy() == cell).all()]
        assert [int(test.labels[n]) for n in same] == [column]


def test_all_draws_every_kind_beside_the_run(runs: dict[int, Path]) -> None:
    files = draw(runs[2])
    assert [file.stem for file in files] == PLAIN
    assert {file.parent for file in files} == {runs[2] / "pictures"}


def test_options_change_pictures(runs: dict[int, Path], tmp_path: Path) -> None:
    for kind, options in (
        ("manifold", Options(percentiles=(0.2, 0.7))),
        ("latent", Options(latent="sample")),
        ("samples", Options(seed=1)),
        ("interpolate", Options(seed=1)),
        ("traverse", Options(percentiles=(0.2, 0.7))),
    ):
        plain = draw(runs[2], [kind], tmp_path / "plain")[0].read_bytes()
        assert draw(runs[2], [kind], tmp_path, options)[0].read_bytes() != plain


def test_curves_of_several_runs(runs: dict[int, Path], tmp_path: Path) -> None:
    one = pixels(draw(runs[2], ["curves"], tmp_path / "one")[0])
    both = pixels(draw([runs[2], runs[20]], ["curves"], tmp_path)[0])
    assert len(both) > len(one)  # a line more in legend and caption
    with pytest.raises(InputError, match="only curves"):
        draw([runs[2], runs[20]], ["samples"], tmp_path)


def test_latent_size_1_has_no_plane(
    runs: dict[int, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "vaebench"):
        drawn = {file.stem for file in draw(runs[1], out=tmp_path)}
    assert drawn == set(PLAIN) - {"manifold", "latent", "explore"}
    assert "manifold is left out: a latent space of size 1 has no plane" in caplog.text
    with pytest.raises(UnsuitedError, match="has no plane"):
        draw(runs[1], ["manifold"], tmp_path)


@pytest.mark.slow
def test_other_images(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    colour = torch.rand(300, 3, 6, 8, generator=generator)
    kinds = ("latent", "reconstructions", "interpolate", "samples", "explore")  # without labels
    assert len(draw(make_run(tmp_path / "colour", 2, images=colour), kinds, tmp_path / "a")) == 5
    assert len(np.unique(pixels(tmp_path / "a" / "samples.png").reshape(-1, 3), axis=0)) > 300
    # Flat squares of any range, of three classes, one of which has no test image but one.
    flat = 3 * torch.randn(300, 49, generator=generator)
    labels = torch.arange(300) % 2
    labels[299] = 7
    run = make_run(
        tmp_path / "flat", 3, images=flat, labels=labels, likelihood="gaussian", activation="tanh"
    )
    for kind in ("latent", "reconstructions", "interpolate", "explore"):
        assert draw(run, [kind], tmp_path / "b")[0].exists()
    low, high = Run(run).pixel_range
    assert low < -3
    assert high > 3


def test_what_is_no_picture() -> None:
    assert picture_shape((7, 9)) == (1, 7, 9)
    assert picture_shape((3, 7, 9)) == (3, 7, 9)
    for shape in ((8,), (2, 5, 5), (1, 1, 5, 5)):
        with pytest.raises(UnsuitedError, match="cannot be shown"):
            picture_shape(shape)


def test_caption_says_what_was_trained(runs: dict[int, Path]) -> None:
    run = Run(runs[20])
    elbo = run.epochs[-1]["test_elbo"]
    assert run.caption() == (
        f"mlp on z20.npz, latent size 20, 1 epoch, test ELBO −{-elbo:.2f} nats per image."
    )
    run.result = {"dataset": "strokes"}
    assert "not MNIST" in run.caption()


def test_data_is_what_the_result_says(
    runs: dict[int, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []
    monkeypatch.setattr("vaebench.plots.run.load_dataset", lambda data: asked.append(data))
    run = Run(runs[2], data_dir=str(tmp_path / "absent"))
    run.config["data"], run.result = "auto", {"dataset": "strokes"}
    with pytest.raises(AttributeError):  # the stand-in gives no data
        _ = run.test
    assert asked == ["strokes"]
    run.result = {"dataset": "mnist"}
    with pytest.raises(InputError, match=r"trained on it: name its folder by --data-dir$"):
        _ = run.test
    assert not (tmp_path / "absent").exists()  # nothing was downloaded
    run.result = {}
    with pytest.raises(InputError, match="what data auto came to"):
        _ = run.test


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{empty}"], "is no run folder"),
        (["{run}", "sample"], "is neither a kind of picture"),
        (["{run}", "samples", "--out", "{file}"], "cannot be written"),
        (["{run}", "--grid", "1"], "--grid is 1"),
        (["{run}", "--grid", "x"], "invalid int value"),
        (["{run}", "--percentiles", "0.9", "0.1"], "--percentiles are"),
        (["{run}", "--latent", "median"], "--latent is 'median'"),
        (["{run}", "--seed", "-1"], "--seed is -1"),
        (["{run}", "{run}"], "only curves can show several runs"),
        ([], "required: RUN"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    words: list[str],
    message: str,
    runs: dict[int, Path],
    tmp_path: Path,
    plot: ModuleType,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    places = {"run": runs[2], "empty": tmp_path / "empty", "file": tmp_path / "file"}
    assert plot.main([word.format(**places) for word in words]) == 2
    complaint = capsys.readouterr().err
    assert complaint.startswith("vaebench: ")
    assert message in complaint
    assert complaint.count("\n") == 1


@pytest.mark.parametrize("content", ["", "no json\n"])
def test_damaged_metrics(content: str, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", 2)
    (run / "metrics.jsonl").write_text(content)
    with pytest.raises(InputError, match=r"metrics\.jsonl"):
        draw(run, ["curves"], tmp_path)


def test_data_of_another_shape(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", 2)
    config = json.loads((run / "config.json").read_text())
    np.savez(config["data"], x_train=np.zeros((9, 5, 5), np.uint8))
    with pytest.raises(InputError, match="put back what it was trained on"):
        draw(run, ["latent"], tmp_path)


def test_the_program_needs_no_display_and_no_pyplot(runs: dict[int, Path], tmp_path: Path) -> None:
    script = (
        "import sys, runpy\n"
        "import vaebench, vaebench.plots\n"
        "assert not {'torch', 'matplotlib'} & set(sys.modules)\n"
        f"sys.argv = ['plot.py', {str(runs[2])!r}, 'curves', '--out', {str(tmp_path)!r}]\n"
        f"try: runpy.run_path({str(PLOT)!r}, run_name='__main__')\n"
        "except SystemExit as end: assert end.code == 0\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        env={"PATH": "", "MPLBACKEND": "tkagg", "HOME": str(tmp_path)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == f"{tmp_path / 'curves.png'}\n"


def test_the_users_own_style_neither_shows_nor_suffers(
    runs: dict[int, Path], tmp_path: Path
) -> None:
    plain = draw(runs[2], ["curves"], tmp_path / "a")[0].read_bytes()
    theirs = {"font.size": 30.0, "axes.grid": True, "figure.dpi": 50.0}
    with matplotlib.rc_context(theirs):  # type: ignore[arg-type]
        assert draw(runs[2], ["curves"], tmp_path / "b")[0].read_bytes() == plain
        assert matplotlib.rcParams["font.size"] == 30


def test_kinds() -> None:
    assert choose(()) == choose(("all",)) == choose(("curves", "all")) == KINDS
    assert choose(("curves", "latent", "curves")) == ("curves", "latent")


def test_plane_is_orthonormal_and_widest() -> None:
    generator = torch.Generator().manual_seed(0)
    mu = torch.randn(500, 6, generator=generator) * torch.tensor([1, 5, 1, 1, 3, 1.0])
    plane = find_plane(mu)
    torch.testing.assert_close(plane.basis.T @ plane.basis, torch.eye(6))
    assert plane.basis.abs().argmax(0)[:2].tolist() == [1, 4]
    assert float(plane.shares.sum()) == pytest.approx(1)
    points = torch.randn(9, 2, generator=generator)
    torch.testing.assert_close(plane.project(plane.lift(points)), points)
    torch.testing.assert_close(find_plane(mu[:, :2]).basis, torch.eye(2))


def test_small_parts() -> None:
    start, end = torch.tensor([3.0, 0, 0]), torch.tensor([0, 5.0, 0])
    way = spherical(start, end, torch.tensor([[0.0], [0.5], [1.0]]))
    torch.testing.assert_close(way[[0, 2]], torch.stack([start, end]))
    torch.testing.assert_close(way[1], torch.tensor([1.0, 1, 0]) * 4 / math.sqrt(2))
    torch.testing.assert_close(spherical(start, -start, torch.tensor([[0.5]]))[0], torch.zeros(3))
    two_groups = torch.tensor([[0.0, 0], [9, 9], [9, 9.1], [9.1, 9]])
    assert densest(two_groups).tolist() == [9, 9]
    values, places = round_values(torch.special.ndtri(torch.linspace(0.05, 0.95, 21)))
    assert values == [-1.5, -1, -0.5, 0, 0.5, 1, 1.5]
    assert places[3] == pytest.approx(10)
    labels = torch.tensor([2, 0, 2, 0, 1])
    assert [labels[row].tolist() for row in pick_by_class(labels, 5, 3, seed=0)] == [[0, 1, 2]] * 3
    assert len(pick_by_class(None, 4, 1, seed=0)[0]) == 10


# Linear RGB as seen with no long-, no middle- and no short-wave cones: Machado, Oliveira and
# Fernandes (2009), "A physiologically-based model for simulation of color vision deficiency".
SIGHTS = (
    np.eye(3),
    [[0.1523, 1.0526, -0.2049], [0.1145, 0.7863, 0.0992], [-0.0039, -0.0481, 1.0520]],
    [[0.3673, 0.8606, -0.2280], [0.2801, 0.6725, 0.0474], [-0.0118, 0.0429, 0.9689]],
    [[1.2555, -0.0767, -0.1788], [-0.0784, 0.9308, 0.1476], [0.0047, 0.6914, 0.3039]],
)


def oklab(rgb: Pixels) -> Pixels:
    """Oklab (N, 3) of linear RGB (N, 3), after B. Ottosson's definition."""
    cones = [[0.41222147, 0.53633254, 0.05144599], [0.2119035, 0.68069954, 0.10739696]]
    cones += [[0.08830246, 0.28171884, 0.6299787]]
    opponents = [[0.21045426, 0.7936178, -0.00407205], [1.9779985, -2.4285922, 0.4505937]]
    opponents += [[0.0259040, 0.78277177, -0.80867577]]
    seen = np.cbrt(np.clip(rgb, 0, 1) @ np.asarray(cones).T)
    return np.asarray(seen @ np.asarray(opponents).T)


@pytest.mark.parametrize(("colours", "least"), [(style.CLASSES, 0.12), (style.LINES[:5], 0.12)])
def test_colour_blind_people_tell_the_colours_apart(colours: tuple[str, ...], least: float) -> None:
    srgb = np.array([[int(c[k : k + 2], 16) / 255 for k in (1, 3, 5)] for c in colours])
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    for sight in SIGHTS:
        seen = oklab(linear @ np.asarray(sight).T)
        assert min(np.linalg.norm(a - b) for a, b in combinations(seen, 2)) > least


@pytest.mark.slow
def test_a_name_that_the_locale_cannot_write(tmp_path: Path) -> None:
    run = make_run(tmp_path / "é", 2)
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    words = [sys.executable, str(PLOT), str(run), "curves"]
    done = subprocess.run(words, capture_output=True, env={**os.environ, **plain}, timeout=120)
    assert done.returncode == 0, done.stderr
    assert (run / "pictures" / "curves.png").stat().st_size > 1000
