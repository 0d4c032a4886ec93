"""``python -m vaebench.evaluate RUN``: a run's log-likelihood, with everything it depends on."""

import dataclasses
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vaebench.cli.arguments import Parser
from vaebench.cli.command import run
from vaebench.cli.streams import complain, say
from vaebench.config import FastConfig
from vaebench.errors import InputError, check_count, check_seed

if TYPE_CHECKING:
    import argparse

    from vaebench.data.load import Dataset, ImageSet
    from vaebench.evaluation import Evaluation

SPLITS = ("test", "holdout", "train")
COVERS = (
    "the choice of images: not the bias of the estimate, which is low by what more samples would "
    "add, and not the spread of trainings"
)


def parse(argv: list[str]) -> "argparse.Namespace":
    """Read the arguments; InputError if one cannot be."""
    parser = Parser(
        prog="python -m vaebench.evaluate",
        description="Estimate a trained run's log-likelihood by importance weighting, on the data "
        "and with the pixels that it was trained for.",
        allow_abbrev=False,
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="run folder")
    for flag, default, help in (
        ("--samples", 5000, "z drawn per image (default: 5000)"),
        ("--images", None, "only the first N images (default: all)"),
        ("--seed", 0, "seed of the noise (default: 0)"),
        ("--batch-size", None, "images at a time (default: as many as are fast)"),
        ("--threads", None, "CPU threads (default: what there are)"),
    ):
        parser.add_argument(flag, type=int, default=default, help=help, metavar="N")
    parser.add_argument("--split", choices=SPLITS, default="test", help="which images")
    parser.add_argument(
        "--best", action="store_true", help="the epoch best on the images held out, not the last"
    )
    parser.add_argument("--data", help="in place of the run's own, as in vaebench.train")
    parser.add_argument("--data-dir", metavar="DIR", help="folder of MNIST's files")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--out", metavar="FILE", type=Path, help="(default: RUN/evaluation.json)")
    parser.add_argument("--quiet", action="store_true", help="print nothing")
    args = parser.parse_args(argv)
    for name in ("samples", "images", "batch_size", "threads"):
        if getattr(args, name) is not None:
            check_count("--" + name.replace("_", "-"), getattr(args, name))
    check_seed("--seed", args.seed)
    return args


def main(argv: list[str] | None = None) -> int:
    """Run the command line; give its exit status, see :func:`vaebench.cli.command.run`."""
    return run(_main, argv, interrupted="interrupted; nothing was written")


def _main(argv: list[str]) -> int:
    evaluate_run(parse(argv))
    return 0


def evaluate_run(args: "argparse.Namespace") -> None:
    """Evaluate as the arguments say; write and print the result."""
    import torch

    from vaebench.evaluation import evaluate
    from vaebench.fast.threads import thread_settings
    from vaebench.runs.folder import CONFIG, RESULT, load, read_json, write_json
    from vaebench.system.device import resolve_device
    from vaebench.system.info import fingerprint
    from vaebench.system.threads import available_cpus
    from vaebench.system.worker import Worker

    model, config = load(args.run, best=args.best), read_json(args.run / CONFIG)
    out = _writable(args.out or args.run / "evaluation.json")
    trained = read_json(args.run / RESULT) if (args.run / RESULT).exists() else {}
    device = resolve_device(args.device)
    torch.set_num_threads(args.threads or available_cpus())
    data = _data(args, config, trained)
    own = _are_its_own(args, config, data)
    split = _split(args, config, data)
    start = time.perf_counter()
    prepare, _ = thread_settings(FastConfig(), device)
    with Worker(prepare) as worker:
        found = worker.run(
            lambda: evaluate(
                model.to(device),
                split.images,
                labels=split.labels,
                samples=args.samples,
                likelihood=config["likelihood"],
                sigma=config["sigma"],
                seed=args.seed,
                batch_size=args.batch_size,
                progress=not args.quiet,
            )
        )
    result = {
        "run": str(args.run),
        "workload": config["workload"],
        "best": args.best,
        "epochs": _epochs(args, trained),
        "training_seed": config["seed"],
        "latents": config["latent_dim"],
        "dataset": data.name,
        "images_of_the_run": own,
        "split": args.split,
        "conditional": split.labels is not None,
        **_meaning(config, split),
        "seed": args.seed,
        "elbo": found.elbo,
        **dataclasses.asdict(found),
        "standard_error_covers": COVERS,
        "seconds": time.perf_counter() - start,
        "peak_bytes": _peak_bytes(),
        "machine": fingerprint(device),
    }
    write_json(out, result)
    if not args.quiet:
        say(f"{describe(result, found)}\nresult: {out}")


def _epochs(args: "argparse.Namespace", trained: dict[str, Any]) -> int | None:
    """How many epochs made the model; None if that is not told yet."""
    told = (trained.get("best") or {}).get("epoch") if args.best else trained.get("epochs")
    return None if told is None else int(told)


def _writable(out: Path) -> Path:
    if not os.access(out.parent, os.W_OK) or out.is_dir():
        raise InputError(f"{out} cannot be written: name another file by --out")
    return out


def _data(args: "argparse.Namespace", config: dict[str, Any], trained: dict[str, Any]) -> "Dataset":
    """Load the run's own data, or what was named in its place."""
    from vaebench.data.load import load_dataset

    # "auto" says what was wished for; only the result knows what it came to.
    known = trained.get("dataset") if config["data"] == "auto" else config["data"]
    name = args.data or known
    if name is None:
        raise InputError(
            f"{args.run} does not say what --data auto came to: its training has not ended; "
            "name the data by --data"
        )
    return load_dataset(name, args.data_dir or config["data_dir"])


def _are_its_own(
    args: "argparse.Namespace", config: dict[str, Any], data: "Dataset"
) -> bool | None:
    """Whether the data are those that the run began with; None if it does not tell.

    Others are refused, unless they were named: then it is said.

    Raises:
        InputError: the run's own data are no longer what they were.
    """
    from vaebench.data.labels import contents
    from vaebench.runs.checkpoints import mark_of
    from vaebench.runs.settings import check_images, other_images

    mark = mark_of(*contents(data, conditional=config.get("conditional", False)))
    if args.data is None and args.data_dir is None:
        check_images(args.run, mark)
    others = other_images(args.run, mark)
    if others:
        complain(f"{others}: the result is for the images named")
        return False
    return True if config.get("images", {}).get("mark") else None


def _split(args: "argparse.Namespace", config: dict[str, Any], data: "Dataset") -> "ImageSet":
    """Take the split that was asked for: its pixels as the run had them, labels if it had any."""
    from vaebench.data.binarize import binarize
    from vaebench.data.load import ImageSet
    from vaebench.system.random import TEST_PIXELS, TRAINING_PIXELS

    holdout, how = config.get("holdout", 0), config.get("binarize", "none")
    part = data.test if args.split == "test" else data.train
    images, labels = part.images, part.labels if config.get("conditional") else None
    if labels is None and config.get("conditional"):
        raise InputError(
            f"{args.run} was trained on labels, and {data.name} has none for its {args.split} "
            "images: name data with labels by --data"
        )
    if how != "none":
        images = binarize(images, how, TEST_PIXELS if args.split == "test" else TRAINING_PIXELS)
    edge = max(0, len(images) - holdout)
    rows = {"test": slice(None), "train": slice(edge), "holdout": slice(edge, None)}[args.split]
    images, labels = images[rows][: args.images], None if labels is None else labels[rows]
    if not len(images):
        raise InputError(f"{args.run} has no {args.split} images: choose another --split")
    return ImageSet(images, None if labels is None else labels[: args.images])


def _meaning(config: dict[str, Any], split: "ImageSet") -> dict[str, str]:
    """Say what was made of the pixels, and what their score means."""
    from vaebench.data.binarize import NOTES, meaning

    how = config.get("binarize", "none")
    return {
        "binarize": how,
        "binarization": NOTES.get(how, "pixels as they are in the data"),
        "meaning": meaning(config["likelihood"], split.images, how),
    }


def _peak_bytes() -> int | None:
    """Most memory that this process held; None where the system does not tell."""
    try:
        import resource
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def describe(result: dict[str, Any], found: "Evaluation") -> str:
    """Put a result in words for a person."""
    grey = result["meaning"].startswith("score")
    passes = f"{result['epochs']} epochs" if result["epochs"] else "training not ended"
    others = ""
    if result["images_of_the_run"] is False:
        others = " (not the images that it was trained on)"
    spread, means = f" ± {found.standard_error:.2f}", "; ± is the standard error over images"
    if found.images == 1:
        spread, means = "", "; a single image has no standard error"
    lines = [
        f"{result['workload']}{' given labels' * result['conditional']} on {result['dataset']}"
        f"{others}, {passes}: importance-weighted "
        f"{'score' if grey else 'log-likelihood'} {found.log_likelihood:.2f}{spread} nats per "
        f"image ({found.images:,} {result['split']} images, {found.samples:,} z each{means})",
        f"ELBO {found.elbo:.2f} = recon {found.recon:.2f} - kl {found.kl:.2f}; "
        f"{found.active_units} of {result['latents']} latents active",
        f"{result['binarization']}; {result['meaning']}",
        f"{result['seconds']:.1f} s",
    ]
    return "\n".join(lines)
