"""The film: the same latent points after each epoch, from the pictures that a training kept."""

import io

from PIL import Image, ImageDraw

from vaebench.plots.options import UnsuitedError
from vaebench.plots.run import Run
from vaebench.runs.folder import FRAMES

SIDE = 560  # pixels that the film's longer side is near, in whole pixels per image pixel
LONGEST = 20.0  # seconds
BELOW = 22  # pixels for the words
HOLD = 6  # times as long as any other does the last picture stay


def make_film(run: Run) -> bytes:
    """An animated GIF, a picture an epoch, as bytes.

    Raises:
        UnsuitedError: the training kept no pictures, or one of them is damaged.
    """
    paths = sorted((run.folder / FRAMES).glob("epoch-*.png"))
    if not paths:
        raise UnsuitedError(f"{run.folder} holds no pictures of its epochs: train with --film")
    try:
        frames = [_frame(Image.open(path), int(path.stem.split("-")[1])) for path in paths]
    except (OSError, ValueError) as error:
        raise UnsuitedError(f"{run.folder / FRAMES} is damaged: {error}") from error
    milliseconds = round(1000 * min(0.25, LONGEST / len(frames)))
    out = io.BytesIO()
    frames[0].save(
        out, "GIF", save_all=True, append_images=frames[1:], loop=0,
        duration=[milliseconds] * (len(frames) - 1) + [HOLD * milliseconds],
    )  # fmt: skip
    return out.getvalue()


def _frame(sheet: Image.Image, epoch: int) -> Image.Image:
    """A sheet enlarged, with its epoch in words below."""
    scale = max(1, round(SIDE / max(sheet.size)))
    width, height = sheet.width * scale, sheet.height * scale
    frame = Image.new(sheet.mode, (width, height + BELOW))
    frame.paste(sheet.resize((width, height), Image.Resampling.NEAREST), (0, 0))
    white = 255 if sheet.mode == "L" else (255, 255, 255)
    ImageDraw.Draw(frame).text((6, height + 5), f"epoch {epoch}", fill=white)
    return frame
