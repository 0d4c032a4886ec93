"""``vaebench verify``: is every fast path the plain training, on this machine?"""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from vaebench.cli.arguments import config_from, option_parser
from vaebench.cli.command import run
from vaebench.cli.streams import say
from vaebench.cli.train import build_model
from vaebench.config import TrainConfig

if TYPE_CHECKING:
    from vaebench.proof.report import Report

DESCRIPTION = """\
Hold every technique, alone and all together, to plain eager PyTorch on this machine: losses,
gradients and updated parameters, beside float64. With a technique that is not on by default, such
as --compile, those are verified that such a training would try; without one, all that there are.
Exit status 0: equal; 1: not."""
# What does not matter where nothing is trained.
_WITHOUT = (
    *("epochs", "batch_sizes", "patience", "schedule", "warmup", "beta_schedule", "beta_epochs"),
    *("holdout", "engine", "out", "checkpoint_every", "resume", "plot", "film"),
)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; give its exit status, see :func:`vaebench.cli.command.run`."""
    return run(_main, argv, interrupted="interrupted")


def _main(argv: list[str]) -> int:
    logging.getLogger("torch.utils.cpp_extension").setLevel("ERROR")
    parser = option_parser("vaebench verify", DESCRIPTION, _WITHOUT)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every comparison there")
    given = vars(parser.parse_args(argv))
    path = given.pop("json")
    report = _verify(config_from(given))
    if path:
        from vaebench.runs.folder import write_json

        write_json(path, report.as_json())
    return 0 if report.passed else 1


def _verify(config: TrainConfig) -> "Report":
    """Verify the workload's own model; print as it goes on."""
    import torch

    from vaebench.data.binarize import binarize
    from vaebench.data.load import load_dataset
    from vaebench.proof.report import HEADING, row
    from vaebench.proof.verify import verify
    from vaebench.system.device import resolve_device
    from vaebench.system.random import TRAINING_PIXELS
    from vaebench.system.threads import available_cpus

    device = resolve_device(config.run.device)
    torch.set_num_threads(config.run.threads or available_cpus())
    data = load_dataset(config.data.source, config.data.data_dir)
    quiet = config.run.quiet
    if data.notice and not quiet:
        say(data.notice)
    model, _ = build_model(config, data, device)
    images = data.train.images
    if config.data.binarize != "none":
        images = binarize(images, config.data.binarize, TRAINING_PIXELS)
    if not quiet:
        say(HEADING)
    report = verify(
        model,
        images,
        labels=data.train.labels if config.network.conditional else None,
        config=config,
        progress=None if quiet else lambda checks: say(row(checks)),
    )
    say(f"{report.verdict()}, {report.seconds:.0f} s")
    return report
