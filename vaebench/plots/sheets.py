"""Sheets of images: reconstructions, samples from the prior, styles, interpolations, traversals."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torchvision.utils import make_grid

from vaebench.plots import style
from vaebench.plots.options import Options, UnsuitedError
from vaebench.plots.run import Run

TARGET = 1000  # pixels across; the sheet is near it, in whole pixels per image pixel
GAP, BLOCK_GAP = 2, 14  # pixels between images, and between blocks of rows

PAIRS = 4  # rows of originals above their reconstructions; interpolations
STEPS = 10  # images of an interpolation, its ends' reconstructions included
COLUMNS = 11  # of a traversal
MAX_ROWS = 30  # of a traversal; a larger model's most used latents are shown
STYLES = 10  # rows of a sheet of styles
MAX_CLASSES = 20  # columns of it; of more classes the first are shown
HEADS = 26  # pixels for words above columns


@dataclass(frozen=True)
class Block:
    """Rows of images that belong together: (rows x columns, C, H, W) in [0, 1], a label a row.

    ``heads`` are words above the columns, if there are any.
    """

    pictures: Tensor
    labels: tuple[str, ...]
    heads: tuple[str, ...] = ()


def draw_reconstructions(run: Run, options: Options) -> Figure:
    """Draw test images, a class a column, each above its reconstruction from the mean code."""
    blocks = []
    for chosen in pick_by_class(run.test.labels, len(run.x), PAIRS, options.seed):
        decoded = run.decode(run.codes[0][chosen], None if run.y is None else run.y[chosen])
        pictures = torch.cat([run.showable(run.x[chosen]), decoded])
        blocks.append(Block(pictures, ("original", "decoded")))
    caption = f"{run.caption()} Below each test image: the decoder's mean at its encoded mean."
    return _lay_out(blocks, "Reconstructions", caption)


def draw_samples(run: Run, options: Options) -> Figure:
    """Draw what the decoder makes of 10 x 10 draws from the prior."""
    generator = torch.Generator().manual_seed(options.seed)
    z = run.model.draw(100, generator)
    classes = min(run.classes, 10)
    z = z[: 10 * classes] if classes else z
    y = torch.arange(classes).repeat(10) if classes else None
    caption = (
        f"{run.caption()} Decoder's means at {len(z)} draws from the prior, "
        f"{'a class a column; ' * bool(classes)}seed {options.seed}."
    )
    block = Block(run.decode(z, y), ("",) * 10, tuple(map(str, range(classes))))
    return _lay_out([block], "Samples from the prior", caption)


def draw_styles(run: Run, options: Options) -> Figure:
    """Draw test images, and beside each what its style looks like in every class.

    Source: Kingma et al., Semi-Supervised Learning with Deep Generative Models (arXiv 1406.5298),
    figure 1.

    Raises:
        UnsuitedError: the model takes no labels.
    """
    if not run.classes:
        raise UnsuitedError(
            "this run's model takes no labels, so that style and class are not told apart: train "
            "with --conditional"
        )
    chosen = torch.cat(pick_by_class(run.test.labels, len(run.x), STYLES, options.seed))[:STYLES]
    classes = min(run.classes, MAX_CLASSES)
    z = run.codes[0][chosen].repeat_interleave(classes, 0)
    decoded = run.decode(z, torch.arange(classes).repeat(len(chosen)))
    originals = run.showable(run.x[chosen])
    rows = zip(originals.split(1), decoded.split(classes), strict=True)
    pictures = torch.cat([torch.cat(row) for row in rows])
    shown = "" if classes == run.classes else f" The first {classes} of {run.classes} are shown."
    caption = (
        f"{run.caption()} First column: a test image. Beside it: the decoder's means at its "
        f"encoded mean, under each of the classes in turn.{shown}"
    )
    heads = ("image", *map(str, range(classes)))
    return _lay_out([Block(pictures, ("",) * len(chosen), heads)], "Styles", caption)


def draw_interpolations(run: Run, options: Options) -> Figure:
    """Draw the way between two encoded test images, straight and along a sphere."""
    t = torch.linspace(0, 1, STEPS).unsqueeze(1)  # (STEPS, 1)
    blocks = []
    for a, b in _pairs(run, options.seed):
        start, end = run.codes[0][a], run.codes[0][b]
        ends = run.showable(run.x[torch.stack([a, b])])  # the originals, beside both rows
        label = None if run.y is None else run.y[a]
        rows = [run.decode(way(start, end, t), label) for way in (straight, spherical)]
        pictures = torch.cat([torch.cat([ends[:1], row, ends[1:]]) for row in rows])
        blocks.append(Block(pictures, ("straight", "spherical")))
    caption = (
        f"{run.caption()} First and last column: two test images"
        f"{' of one class' * bool(run.classes)}. Between them: the decoder's "
        f"mean at {STEPS} points from one's encoded mean to the other's."
    )
    return _lay_out(blocks, "Interpolation between test images", caption)


def _pairs(run: Run, seed: int) -> Tensor:
    """Pick pairs (P, 2) of test images: of two classes, or of one where the model is told it."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.cat(pick_by_class(run.test.labels, len(run.x), 1, seed))
    chosen = chosen[torch.randperm(len(chosen), generator=generator)]
    if run.y is not None:
        order = torch.randperm(len(run.x), generator=generator)
        pairs = []
        for one in chosen[:PAIRS]:
            alike = order[run.y[order] == run.y[one]]
            pairs.append(torch.stack([one, alike[0] if alike[0] != one else alike[-1]]))
        return torch.stack(pairs)
    return chosen[: min(PAIRS, len(chosen) // 2) * 2].reshape(-1, 2)


def draw_traversals(run: Run, options: Options) -> Figure:
    """Draw what each latent does: a row a latent, the most used first."""
    mu, logvar = run.codes
    kl = 0.5 * (mu.square() + torch.expm1(logvar) - logvar).mean(0)  # (Z,) nats
    order = kl.argsort(descending=True)[:MAX_ROWS]
    generator = torch.Generator().manual_seed(options.seed)
    chosen = torch.randint(len(mu), (), generator=generator)
    low, high = options.percentiles
    z = mu[chosen].repeat(len(order), COLUMNS, 1)  # (rows, COLUMNS, Z)
    values = torch.special.ndtri(torch.linspace(low, high, COLUMNS))
    z[torch.arange(len(order)), :, order] = values
    labels = tuple(f"$z_{{{int(k) + 1}}}$  {float(kl[k]):.2f} nats" for k in order)
    shown = "" if len(order) == len(kl) else f" The {MAX_ROWS} most used of {len(kl)} are shown."
    caption = (
        f"{run.caption()} One test image's encoded mean, one latent at a time set to values from "
        f"{float(values[0]):.2f} to {float(values[-1]):.2f} ({run.normal}'s quantiles {low:g} to "
        f"{high:g}); beside it the latent's mean KL over the test set.{shown}"
    )
    pictures = run.decode(z.flatten(0, 1), None if run.y is None else run.y[chosen])
    return _lay_out([Block(pictures, labels)], "Traversals", caption.replace(" -", " −"))


def straight(start: Tensor, end: Tensor, t: Tensor) -> Tensor:
    """Points (T, Z) on the line from start (Z,) to end (Z,), at t (T, 1) from 0 to 1."""
    return start + t * (end - start)


def spherical(start: Tensor, end: Tensor, t: Tensor) -> Tensor:
    """Points (T, Z) that turn from start to end at constant speed, their lengths between both's.

    In many dimensions a normal distribution lies near a sphere, which a straight line leaves.
    """
    cosine = torch.nn.functional.cosine_similarity(start, end, dim=0).clamp(-1, 1)
    angle = torch.acos(cosine)
    if angle.sin() < 1e-4:  # the same direction, or opposite ones: no arc is the shortest
        return straight(start, end, t)
    from_start = torch.sin((1 - t) * angle) * start / start.norm()
    from_end = torch.sin(t * angle) * end / end.norm()
    length = torch.lerp(start.norm(), end.norm(), t)  # (T, 1)
    return torch.mul(length, from_start + from_end) / angle.sin()


def pick_by_class(labels: Tensor | None, count: int, rows: int, seed: int) -> list[Tensor]:
    """Pick test images at random: ``rows`` times the indices of one image of each class.

    Without labels, or with more than 12 classes, of any ten images.
    """
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    classes = [] if labels is None else labels.unique().tolist()
    if labels is None or not 1 < len(classes) <= 12:
        return [order[torch.arange(10 * row, 10 * row + 10) % count] for row in range(rows)]
    members = [order[labels[order] == label] for label in classes]
    return [torch.stack([own[row % len(own)] for own in members]) for row in range(rows)]


def mosaic(pictures: Tensor, columns: int, gap: int = 0) -> npt.NDArray[np.uint8]:
    """Put pictures (N, C, H, W) in [0, 1] on a grid, (height, width, 3) bytes, no gap around it."""
    grid = make_grid(pictures, nrow=columns, padding=gap, pad_value=1)  # makes grey images RGB
    if gap:
        grid = grid[:, gap:-gap, gap:-gap]
    return np.asarray((grid * 255).round().byte().permute(1, 2, 0).numpy())


def _lay_out(blocks: list[Block], title: str, caption: str) -> Figure:
    """Place the blocks one below another, each row with its label on the left."""
    rows = [len(block.labels) for block in blocks]
    columns = len(blocks[0].pictures) // rows[0]
    height, width = blocks[0].pictures.shape[2:]
    scale = max(1, round(TARGET / (columns * width)))
    step = height * scale + GAP
    left = style.MARGIN + max(_label_width(label) for b in blocks for label in b.labels)
    across = columns * (width * scale + GAP) - GAP
    down = sum(rows) * step - GAP * len(blocks) + BLOCK_GAP * (len(blocks) - 1)
    full_width = left + across + style.MARGIN
    top = style.HEADING + HEADS * bool(blocks[0].heads)
    fig = style.figure(full_width, top + down + style.caption_height(caption, full_width))
    for column, head in enumerate(blocks[0].heads):
        middle = left + column * (width * scale + GAP) + width * scale / 2
        style.text(fig, middle, top - 6, head, ha="center", va="bottom", fontsize=8.5)
    for block, count in zip(blocks, rows, strict=True):
        enlarged = block.pictures.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
        ax = style.axes(fig, left, top, across, count * step - GAP)
        ax.imshow(mosaic(enlarged, columns, GAP), interpolation="nearest", aspect="auto")
        ax.set_axis_off()
        for row, label in enumerate(block.labels):
            middle = top + row * step + height * scale / 2
            style.text(fig, left - 12, middle, label, ha="right", va="center", fontsize=8.5)
        top += count * step - GAP + BLOCK_GAP
    style.annotate(fig, title, caption)
    return fig


def _label_width(label: str) -> int:
    """Pixels to leave for a row's label; mathematics takes fewer letters than its source."""
    letters = len(label.replace("$", "").replace("_{", "").replace("}", ""))
    return 10 * letters + 20 if label else 0
