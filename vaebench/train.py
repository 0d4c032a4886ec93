"""``python -m vaebench.train``: arguments -> data, model, fit -> a run folder and a summary."""

import argparse
import dataclasses
import logging
import os
import signal
import sys
import time
import types
import typing
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from vaebench.config import WORKLOADS, TrainConfig
from vaebench.errors import InputError, TrainingError

if TYPE_CHECKING:
    import torch

    from vaebench.checkpoint import RunFolder
    from vaebench.data import Dataset
    from vaebench.trainer import EpochRecord, History


class _Parser(argparse.ArgumentParser):
    """Reports a bad argument as everything else is reported: one line."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (--help lists the options)")


def parse(argv: list[str]) -> TrainConfig:
    """Turn command-line arguments into a TrainConfig, on top of the workload's own defaults.

    Raises:
        InputError: an unknown flag, or a value that cannot be.
    """
    parser = _Parser(
        prog="python -m vaebench.train",
        description="Train a VAE on MNIST-like images, fast.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    kinds = typing.get_type_hints(TrainConfig)
    for field in dataclasses.fields(TrainConfig):
        parser.add_argument(
            "--" + field.name.replace("_", "-"),
            default=argparse.SUPPRESS,
            **_argparse_words(field, kinds[field.name]),
        )
    given = vars(parser.parse_args(argv))
    if "hidden_dim" in given:
        given["hidden_dim"] = tuple(given["hidden_dim"])
    recipe = WORKLOADS.get(given.get("workload", "mlp"), {})
    return TrainConfig(**{**recipe, **given})


def _argparse_words(field: "dataclasses.Field[Any]", kind: Any) -> dict[str, Any]:
    words = dict(field.metadata)
    shown = " ".join(map(str, field.default)) if isinstance(field.default, tuple) else field.default
    if field.default is not None and field.default is not False:
        words["help"] += f" (default: {shown})"
    if field.name == "workload":
        words["choices"] = tuple(WORKLOADS)
    if field.name == "amp":
        del words["choices"]  # TrainConfig refuses more helpfully
        words["metavar"] = "auto|bf16"
    if kind is bool:
        words["action"] = argparse.BooleanOptionalAction
        return words
    if isinstance(kind, types.UnionType):  # "X | None": parsed as X
        kind = typing.get_args(kind)[0]
    if typing.get_origin(kind) is tuple:
        kind = typing.get_args(kind)[0]
    return {"type": kind, **words}


def main(argv: list[str] | None = None) -> int:
    """Run the command line; give its exit status.

    0: done. 1: the training went wrong by its numbers. 2: bad input. 130: interrupted.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: finish the epoch
    warnings.showwarning = lambda message, *_, **__: print(f"vaebench: {message}", file=sys.stderr)
    logging.basicConfig(format="vaebench: %(message)s")
    # It warns of a missing CUDA wherever something is compiled, on machines without a GPU too.
    logging.getLogger("torch.utils.cpp_extension").setLevel("ERROR")
    try:
        config = parse(sys.argv[1:] if argv is None else argv)
        logging.getLogger("vaebench").setLevel("WARNING" if config.quiet else "INFO")
        return train(config)
    except InputError as error:
        print(f"vaebench: {error}", file=sys.stderr)
        return 2
    except TrainingError as error:
        print(f"vaebench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("vaebench: interrupted; epochs that were finished are kept", file=sys.stderr)
        sys.stdout.flush()
        # Not by way of the interpreter's end: the training thread may still be computing, and
        # torch aborts when it is torn down under way.
        os._exit(130)


def train(config: TrainConfig) -> int:
    """Run one training: data, model, fit, run folder, summary; give the exit status.

    Raises:
        InputError, TrainingError: as :func:`vaebench.fit` does. No run folder is left.
    """
    import torch

    from vaebench.checkpoint import RunFolder
    from vaebench.data import load_dataset
    from vaebench.machine import available_cpus, process_age, resolve_device
    from vaebench.trainer import TrainingInterrupted

    device = resolve_device(config.device)
    torch.set_num_threads(config.threads or available_cpus())
    out = config.out or f"runs/{config.workload}-{time.strftime('%Y%m%d-%H%M%S')}"
    with RunFolder(out) as folder:
        data = load_dataset(config.data, config.data_dir)
        if data.notice:
            print(f"vaebench: {data.notice}", file=sys.stderr)
        startup = process_age()
        try:
            history, status = _fit(config, data, device, folder), 0
        except TrainingInterrupted as stopped:
            print(f"vaebench: {stopped}; what was trained is in {folder.path}", file=sys.stderr)
            history, status = stopped.history, 130
        result = _result(config, data, history, startup)
        folder.write_result(result)
    if not config.quiet:
        print(describe(result))
        print(f"run folder: {folder.path}")
    if config.plot:
        _plot(folder.path, config)
    return status


def _plot(run: Path, config: TrainConfig) -> None:
    from vaebench.pictures import Options, draw

    for picture in draw(run, options=Options(data_dir=config.data_dir)):
        if not config.quiet:
            print(f"picture: {picture}")


def _fit(
    config: TrainConfig, data: "Dataset", device: "torch.device", folder: "RunFolder"
) -> "History":
    from torch import manual_seed
    from tqdm.auto import tqdm

    from vaebench.networks import make_network
    from vaebench.trainer import fit

    recipe: dict[str, Any] = {
        "kind": config.network,
        "image_shape": tuple(data.train.images.shape[1:]),
        "hidden_dims": config.hidden_dim,
        "latent_dim": config.latent_dim,
        "activation": config.activation,
        "likelihood": config.likelihood,
    }
    manual_seed(config.seed)
    model = make_network(recipe)
    folder.write_config(dataclasses.asdict(config), recipe)

    def on_epoch(record: "EpochRecord") -> None:
        folder.add_metrics(dataclasses.asdict(record))
        folder.write_model(model)
        if not config.quiet:
            tqdm.write(_epoch_line(record))

    return fit(
        model,
        data.train.images,
        epochs=config.epochs,
        batch_size=config.batch_size,
        lr=config.lr,
        sigma=config.sigma,
        beta=config.beta,
        seed=config.seed,
        device=device,
        compile=config.compile,
        amp=config.amp,
        engine=config.engine,
        products=config.products,
        flush_denormal=config.flush_denormal,
        test_images=data.test.images,
        progress=not config.quiet,
        on_epoch=on_epoch,
    )


def _epoch_line(record: "EpochRecord") -> str:
    return (
        f"epoch {record.epoch:3d}  train ELBO {record.train_elbo:8.2f} "
        f"(recon {record.recon:.2f}, kl {record.kl:.2f})  test ELBO {record.test_elbo:8.2f}  "
        f"{record.seconds:.2f} s  {record.images_per_second:,.0f} images/s"
    )


def _result(
    config: TrainConfig, data: "Dataset", history: "History", startup: float
) -> dict[str, Any]:
    """Gather result.json: ELBOs in nats per image, times in seconds, rates in FLOP/s."""
    import torch

    from vaebench.machine import fingerprint, peak_flops, process_age

    device = torch.device(history.actual["device"])
    peak = peak_flops(device)
    last = history.epochs[-1]
    rate = history.images_per_second
    return {
        "dataset": data.name,
        "notice": data.notice,
        "workload": config.workload,
        "epochs": last.epoch,
        "test_elbo": last.test_elbo,
        "train_elbo": last.train_elbo,
        "eval_samples": 1,
        "test_images": len(data.test),
        "images_per_second": rate,
        "seconds": {"total": process_age(), "startup": startup, **history.seconds},
        "flops_per_image": history.flops_per_image,
        "peak_flops": peak,
        "peak_share": rate * history.flops_per_image / peak,
        "requested": {**history.requested, "device": config.device, "data": config.data},
        "actual": {**history.actual, "data": data.name},
        "notes": history.notes,
        "machine": fingerprint(device),
    }


def describe(result: dict[str, Any]) -> str:
    """Put a result in words for a person, a few lines."""
    seconds, asked, ran = result["seconds"], result["requested"], result["actual"]
    lines = [
        f"{result['workload']} on {result['dataset']}, {result['epochs']} epochs: "
        f"test ELBO {result['test_elbo']:.2f} nats per image "
        f"({result['test_images']:,} images, {result['eval_samples']} z each), "
        f"train ELBO {result['train_elbo']:.2f}",
        f"steady training: {result['images_per_second']:,.0f} images/s, "
        f"{result['peak_share']:.0%} of this machine's measured float32 matrix-product peak of "
        f"{result['peak_flops'] / 1e9:,.0f} GFLOP/s",
        f"time: {seconds['total']:.1f} s = start-up {seconds['startup']:.1f} + "
        f"compile {seconds['compile']:.1f} + training {seconds['train']:.1f} + "
        f"evaluation {seconds['eval']:.1f} + "
        f"other {seconds['total'] - sum(v for k, v in seconds.items() if k != 'total'):.1f}",
        f"asked for: {_words(asked)}",
        f"ran:       {_words(ran)}",
    ]
    return "\n".join([*lines, *(f"  {note}" for note in result["notes"])])


def _words(mode: dict[str, Any]) -> str:
    compiled = "compiled" if mode["compile"] else "eager"
    precision = f"amp {mode['amp']}" if mode["amp"] else "no amp"
    return f"{mode['engine']} engine, {compiled}, {precision}, on {mode['device']}, {mode['data']}"


if __name__ == "__main__":
    sys.exit(main())
