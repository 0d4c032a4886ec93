"""``python -m vaebench plot RUN [KIND ...]``: pictures of a training, without a display.

Writes a PNG per kind, and for ``explore`` an HTML file that decodes in the browser.
"""

import argparse
from pathlib import Path

from vaebench.cli.arguments import Parser
from vaebench.cli.command import run
from vaebench.cli.streams import say
from vaebench.errors import InputError
from vaebench.plots import KINDS, Options, draw


def parse(argv: list[str]) -> argparse.Namespace:
    """Read the arguments; InputError if one cannot be."""
    default = Options()
    parser = Parser(
        prog="python -m vaebench plot",
        description="Draw pictures of a training, without a display.",
        usage="%(prog)s RUN [KIND ...] [options]\n       %(prog)s RUN RUN ... curves [options]",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("run", metavar="RUN", help="a folder that python -m vaebench.train wrote")
    parser.add_argument(
        "more", metavar="KIND", nargs="*", help=f"any of {', '.join(KINDS)}, all (the default)"
    )
    parser.add_argument("--out", metavar="DIR", help="folder to write to (default: RUN/pictures)")
    parser.add_argument(
        "--grid", type=int, default=default.grid, metavar="N", help="manifold: images per side"
    )
    parser.add_argument(
        "--percentiles", type=float, nargs=2, default=default.percentiles, metavar=("LOW", "HIGH"),
        help="manifold, traverse: the prior's, between which the pictures run",
    )  # fmt: skip
    parser.add_argument("--latent", default=default.latent, help="latent: mean or sample")
    parser.add_argument(
        "--label", type=int, default=default.label, metavar="N",
        help="manifold of a conditional run: the class to show",
    )  # fmt: skip
    parser.add_argument(
        "--seed", type=int, default=default.seed, metavar="N", help="of samples and test images"
    )
    parser.add_argument("--data-dir", metavar="DIR", help="MNIST's folder, if it has moved")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; give its exit status, see :func:`vaebench.cli.command.run`."""
    return run(_main, argv, interrupted="interrupted; pictures that were finished are kept")


def _main(argv: list[str]) -> int:
    given = parse(argv)
    # A name of no kind is that of a further run; ./samples is a run of that name.
    kinds = [name for name in given.more if name in (*KINDS, "all")]
    runs = [given.run, *(name for name in given.more if name not in kinds)]
    for name in runs[1:]:
        if not Path(name).is_dir():
            raise InputError(
                f"{name!r} is neither a kind of picture ({', '.join(KINDS)}, all) nor a folder"
            )
    low, high = given.percentiles
    options = Options(
        given.grid, (low, high), given.latent, given.label, given.seed, given.data_dir
    )
    for path in draw(runs, kinds, given.out, options):
        say(str(path))
    return 0
