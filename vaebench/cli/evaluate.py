"""``python -m vaebench.evaluate RUN``: a run's log-likelihood, with everything it depends on."""

import dataclasses
import os
import signal
import sys
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vaebench.cli.train import Parser
from vaebench.errors import InputError, check_count, check_seed

if TYPE_CHECKING:
    import argparse

    from torch import Tensor

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
        ("--batch-size", 1000, "images at a time (default: 1000)"),
        ("--threads", None, "CPU threads (default: what there are)"),
    ):
        parser.add_argument(flag, type=int, default=default, help=help, metavar="N")
    parser.add_argument("--split", choices=SPLITS, default="test", help="which images")
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


def main(argv: list[str]) -> int:
    """Run the command line; give its exit status: 0, 2 for bad input, 130 interrupted."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    warnings.showwarning = lambda message, *_, **__: print(f"vaebench: {message}", file=sys.stderr)
    try:
        evaluate_run(parse(argv))
    except InputError as error:
        print(f"vaebench: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("vaebench: interrupted; nothing was written", file=sys.stderr)
        sys.stdout.flush()
        os._exit(130)  # the computing thread may still run; see vaebench.train
    return 0


def evaluate_run(args: "argparse.Namespace") -> None:
    """Evaluate as the arguments say; write and print the result."""
    import torch

    from vaebench.data.binarize import NOTES, meaning
    from vaebench.evaluation import evaluate
    from vaebench.fast.flush_denormal import run_flushed
    from vaebench.runs.folder import CONFIG, RESULT, load, read_json, write_json
    from vaebench.system.device import resolve_device
    from vaebench.system.info import fingerprint
    from vaebench.system.threads import available_cpus

    out = args.out or args.run / "evaluation.json"
    model, config = load(args.run), read_json(args.run / CONFIG)
    trained = read_json(args.run / RESULT) if (args.run / RESULT).exists() else {}
    if not os.access(out.parent, os.W_OK) or out.is_dir():
        raise InputError(f"{out} cannot be written: name another file by --out")
    device = resolve_device(args.device)
    torch.set_num_threads(args.threads or available_cpus())
    dataset, images = _images(args, config, trained)
    start = time.perf_counter()
    found = run_flushed(
        lambda: evaluate(
            model.to(device),
            images,
            samples=args.samples,
            likelihood=config["likelihood"],
            sigma=config["sigma"],
            seed=args.seed,
            batch_size=args.batch_size,
            progress=not args.quiet,
        ),
        flush=device.type == "cpu",
    )
    how = config.get("binarize", "none")
    result = {
        "run": str(args.run),
        "workload": config["workload"],
        "epochs": trained.get("epochs"),
        "training_seed": config["seed"],
        "dataset": dataset,
        "split": args.split,
        "binarize": how,
        "binarization": NOTES.get(how, "pixels as they are in the data"),
        "meaning": meaning(config["likelihood"], images, how),
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
        print(describe(result, found))
        print(f"result: {out}")


def _images(
    args: "argparse.Namespace", config: dict[str, Any], trained: dict[str, Any]
) -> tuple[str, "Tensor"]:
    """(name of the data, images): the split of the run's own data, its pixels as it had them."""
    from vaebench.data.binarize import binarize
    from vaebench.data.load import load_dataset
    from vaebench.system.random import TEST_PIXELS, TRAINING_PIXELS

    # "auto" says what was wished for; only the result knows what it came to.
    known = trained.get("dataset") if config["data"] == "auto" else config["data"]
    name = args.data or known
    if name is None:
        raise InputError(
            f"{args.run} does not say what --data auto came to: its training has not ended; "
            "name the data by --data"
        )
    data = load_dataset(name, args.data_dir or config["data_dir"])
    holdout, how = config.get("holdout", 0), config.get("binarize", "none")
    images = data.test.images if args.split == "test" else data.train.images
    if how != "none":
        images = binarize(images, how, TEST_PIXELS if args.split == "test" else TRAINING_PIXELS)
    if args.split != "test":
        edge = max(0, len(images) - holdout)
        images = images[:edge] if args.split == "train" else images[edge:]
    if not len(images):
        raise InputError(f"{args.run} has no {args.split} images: choose another --split")
    return data.name, images[: args.images]


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
    lines = [
        f"{result['workload']} on {result['dataset']}, {passes}: importance-weighted "
        f"{'score' if grey else 'log-likelihood'} {found.log_likelihood:.2f} ± "
        f"{found.standard_error:.2f} nats per image ({found.images:,} {result['split']} images, "
        f"{found.samples:,} z each; ± is the standard error over images)",
        f"ELBO {found.elbo:.2f} = recon {found.recon:.2f} - kl {found.kl:.2f}; "
        f"{found.active_units} of {len(found.kl_per_latent)} latents active",
        f"{result['binarization']}; {result['meaning']}",
        f"{result['seconds']:.1f} s",
    ]
    return "\n".join(lines)
