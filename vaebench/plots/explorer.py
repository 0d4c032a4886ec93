"""The explorer: one HTML file that holds the decoder and decodes in the browser.

The file needs no network and no server. The weights travel as float32, so that the page's pixels
are PyTorch's for any model: 2.4 MB in all for the default one. (As float16 they moved trained
MNIST models' pixels by up to 0.3 of a grey level in 255, and saved 0.9 MB.)
"""

import base64
import io
import json
import math
from importlib.resources import files
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor, nn

from vaebench.plots import style
from vaebench.plots.options import UnsuitedError
from vaebench.plots.plane import densest
from vaebench.plots.run import Run, picture_shape
from vaebench.plots.sheets import mosaic

POINTS = 2000  # test images in the page
PIXELS = 2_000_000  # of all of them together; larger images are fewer
SHEET_COLUMNS = 50

_ACTIVATIONS: dict[type[nn.Module], str] = {nn.ReLU: "relu", nn.Tanh: "tanh"}


def make_page(run: Run) -> str:
    """Make the page's text.

    Raises:
        UnsuitedError: the decoder is no chain of Linear, ReLU and Tanh layers, or takes labels.
    """
    if run.classes:
        raise UnsuitedError("the explorer decodes z alone, and this run's model takes a label too")
    if run.model.likelihood == "continuous-bernoulli":
        raise UnsuitedError("the explorer does not know the continuous Bernoulli's mean")
    layers = decoder_layers(run)
    program = "\n".join(_part(f"{name}.js") for name in ("decoder", "plane", "chart", "explorer"))
    # "<" written so can end no script element, whatever a label or a folder's name contains.
    content = json.dumps(_content(run, layers)).replace("<", "\\u003c")
    page = _part("explorer.html")
    for mark, text in (
        ("/*STYLE*/", _part("explorer.css")),
        ("/*PROGRAM*/", program),
        ("/*CONTENT*/", content),  # last: what it holds is nobody's mark
    ):
        page = page.replace(mark, text)
    return page


def _part(name: str) -> str:
    """Read one of the files that the page is made of."""
    return files("vaebench.plots").joinpath("page", name).read_text(encoding="utf-8")


def decoder_layers(run: Run) -> list[dict[str, Any]]:
    """Give the decoder's layers, first to last: sizes, activation, and weights as base64."""
    model = run.model
    modules = [*getattr(model, "decoder", []), getattr(model, "output", None)]
    layers: list[dict[str, Any]] = []
    linear: list[nn.Linear] = []
    for module in modules:
        if isinstance(module, nn.Linear):
            linear.append(module)
            layers.append({"activation": "none"})
        elif type(module) in _ACTIVATIONS and layers and layers[-1]["activation"] == "none":
            layers[-1]["activation"] = _ACTIVATIONS[type(module)]
        else:
            leaf = next(m for m in module.modules() if not list(m.children())) if module else module
            raise UnsuitedError(
                "the explorer can only decode a chain of Linear, ReLU and Tanh layers, and this "
                f"model's decoder holds {type(leaf).__name__}"
            )
    for layer, module in zip(layers, linear, strict=True):
        # Of an output with spreads, the means.
        rows = math.prod(model.image_shape) if module is modules[-1] else None
        weight, bias = module.weight[:rows], module.bias[:rows]
        layer["outputs"], layer["inputs"] = weight.shape
        layer["weight"], layer["bias"] = _base64(weight), _base64(bias)
    if model.likelihood == "bernoulli":
        layers[-1]["activation"] = "sigmoid"
    return layers


def _content(run: Run, layers: list[dict[str, Any]]) -> dict[str, Any]:
    """Gather what the page's program reads; see the page's own files."""
    channels, height, width = picture_shape(run.model.image_shape)
    count = min(POINTS, len(run.x), max(1, PIXELS // (channels * height * width)))
    labels = run.test.labels
    plane = run.plane.project(run.codes[0][:count])
    classes: list[str] = []
    index: list[int] = []
    places: list[list[float]] = []
    if labels is not None:
        found, inverse = labels[:count].unique(return_inverse=True)
        classes, index = [str(label) for label in found.tolist()], inverse.tolist()
        places = [densest(plane[inverse == k]).tolist() for k in range(len(classes))]
    return {
        "caption": run.caption(),
        "layers": layers,
        "latents": run.model.latent_dim,
        "basis": _base64(run.plane.basis),
        "shares": [round(share, 4) for share in run.plane.shares.tolist()],
        "image": {"channels": channels, "height": height, "width": width},
        "range": run.pixel_range,
        "mu": _base64(run.codes[0][:count]),
        "classes": classes,
        "labels": index,
        "places": places,
        "colours": style.CLASSES if classes else style.LINES[:1],
        "sheet": _sheet(run.showable(run.x[:count])),
        "sheetColumns": SHEET_COLUMNS,
        "epochs": [
            {key: record[key] for key in ("epoch", "train_elbo", "test_elbo")}
            for record in run.epochs
        ],
    }


def _sheet(pictures: Tensor) -> str:
    """Put pictures (N, C, H, W) on one sheet and give it as a PNG's data URL.

    A PNG holds handwritten digits in a quarter of their bytes, and browsers read it themselves.
    """
    image = Image.fromarray(mosaic(pictures, SHEET_COLUMNS))
    if pictures.shape[1] == 1:
        image = image.convert("L")
    stream = io.BytesIO()
    image.save(stream, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def _base64(tensor: Tensor) -> str:
    """Write a tensor's numbers, row by row, as base64 of little-endian float32."""
    array = tensor.detach().numpy().astype(np.dtype("<f4"))
    return base64.b64encode(array.tobytes()).decode()
