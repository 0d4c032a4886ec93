"""``python -m vaebench.train``: arguments -> data, model, fit -> a run folder and a summary."""

import argparse
import dataclasses
import logging
import os
import signal
import sys
import textwrap
import time
import types
import typing
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from vaebench.config import WORKLOADS, TrainConfig, recipe
from vaebench.errors import InputError, ResourceError, TrainingError
from vaebench.runs.settings import check_images, deciding, is_complete, resumed

if TYPE_CHECKING:
    import torch

    from vaebench.data.load import Dataset
    from vaebench.models.networks import Network
    from vaebench.runs.checkpoints import Checkpoints
    from vaebench.runs.folder import RunFolder
    from vaebench.training.history import EpochRecord, History
    from vaebench.training.state import TrainState


class Parser(argparse.ArgumentParser):
    """Reports a bad argument as everything else is reported: one line."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (--help lists the options)")


def parse(argv: list[str]) -> TrainConfig:
    """Turn command-line arguments into a TrainConfig, on top of the workload's own defaults.

    With ``--resume``, on top of the run's own settings instead.

    Raises:
        InputError: an unknown flag, or a value that cannot be.
    """
    parser = Parser(
        prog="python -m vaebench.train",
        description="Train a VAE on MNIST-like images, fast.",
        epilog=_recipes(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
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
    run = given.pop("resume", None)
    if run is not None:
        return resumed(run, given)
    return recipe(given.pop("workload", "mlp"), **given)


def _recipes() -> str:
    """List the workloads: source, and the options that each sets."""
    lines = ["workloads (the options they set; what is given beside --workload goes before):"]
    for name, entry in WORKLOADS.items():
        lines += textwrap.wrap(f"{name}: {entry.source}", 96, initial_indent="  ", **_HANGING)
        flags = " ".join(f"--{k.replace('_', '-')} {_shown(v)}" for k, v in entry.settings.items())
        lines += textwrap.wrap(flags or "the defaults", 96, initial_indent="      ", **_HANGING)
    return "\n".join(lines)


_HANGING: Any = {"subsequent_indent": "      ", "break_on_hyphens": False}


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _argparse_words(field: "dataclasses.Field[Any]", kind: Any) -> dict[str, Any]:
    words = dict(field.metadata)
    if field.default is not None and field.default is not False:
        words["help"] += f" (default: {_shown(field.default)})"
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

    0: done. 1: the training went wrong by its numbers. 2: bad input. 3: the machine could not go
    on, its disk or memory being full. 130: interrupted.
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
        _complain(error)
        return 2
    except TrainingError as error:
        _complain(error)
        return 1
    except ResourceError as error:
        _complain(error)
        return 3
    except KeyboardInterrupt:
        print("vaebench: interrupted; epochs that were finished are kept", file=sys.stderr)
        sys.stdout.flush()
        # Not by way of the interpreter's end: the training thread may still be computing, and
        # torch aborts when it is torn down under way.
        os._exit(130)


def _complain(error: Exception) -> None:
    # One write, so that the lines of several processes do not mix.
    who = f"process {os.environ['RANK']}: " if os.environ.get("RANK", "0") != "0" else ""
    sys.stderr.write(f"vaebench: {who}{error}\n")


def train(config: TrainConfig) -> int:
    """Run one training: data, model, fit, run folder, summary; give the exit status.

    Raises:
        InputError: as :func:`vaebench.fit` does. No new run folder is left.
        TrainingError, ResourceError: the same; the message says what is kept.
    """
    if config.resume and is_complete(config.resume, config.epochs):
        print(
            f"vaebench: {config.resume} is complete: its {config.epochs} epochs are trained; "
            "more: --epochs N",
            file=sys.stderr,
        )
        return 0
    import torch

    from vaebench.runs.folder import NoFolder, RunFolder
    from vaebench.system.device import resolve_device
    from vaebench.system.distributed import joined, leads, local_count, own_device
    from vaebench.system.threads import available_cpus

    device = resolve_device(own_device(config.device))
    torch.set_num_threads(config.threads or max(1, available_cpus() // local_count()))
    out = config.resume or config.out
    out = out or f"runs/{config.workload}-{time.strftime('%Y%m%d-%H%M%S')}"
    if not leads():
        config = dataclasses.replace(config, quiet=True, plot=False)
    resume = config.resume is not None
    with joined(), RunFolder(out, resume=resume) if leads() else NoFolder(out) as folder:
        try:
            status, result = _run(config, device, folder)
        except (TrainingError, ResourceError) as error:
            raise type(error)(f"{error}; {_kept(folder)}") from error
    if not config.quiet:
        _say(describe(result))
        _say(f"run folder: {folder.path}")
    if config.plot:
        _plot(folder.path, config)
    return status


def _say(text: str) -> None:
    """Print on stdout, beside a progress bar; if nobody can hear it any more, go on in silence."""
    from tqdm.auto import tqdm

    try:
        tqdm.write(text)
        sys.stdout.flush()
    except OSError as error:
        print(
            f"vaebench: stdout cannot be written ({error.strerror}): going on without it",
            file=sys.stderr,
        )
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run(
    config: TrainConfig, device: "torch.device", folder: "RunFolder"
) -> tuple[int, dict[str, Any]]:
    """Train in a folder that is ours; give the exit status and the result, which is written."""
    from vaebench.data.load import load_dataset
    from vaebench.system.distributed import in_turn, leads
    from vaebench.system.timing import process_age
    from vaebench.training.history import TrainingInterrupted

    with in_turn():
        data = load_dataset(config.data, config.data_dir)
    if data.notice and leads():
        print(f"vaebench: {data.notice}", file=sys.stderr)
    startup = process_age()
    try:
        history, status = _fit(config, data, device, folder), 0
    except TrainingInterrupted as stopped:
        if not stopped.history.epochs:
            raise KeyboardInterrupt from None  # nothing to sum up
        if leads():
            print(
                f"vaebench: {stopped}; what was trained is in {folder.path}, and "
                f"--resume {folder.path} goes on with it",
                file=sys.stderr,
            )
        history, status = stopped.history, 130
    if not leads():
        return status, {}
    result = _result(config, data, history, startup)
    folder.write_result(result)
    return status, result


def _kept(folder: "RunFolder") -> str:
    """Say what is left when a training could not go on."""
    kept = folder.kept()
    if kept is None:
        return "no epoch was finished before"
    return f"the last good epoch is in {folder.path / kept}"


def _plot(run: Path, config: TrainConfig) -> None:
    from vaebench.plots import Options, draw

    for picture in draw(run, options=Options(data_dir=config.data_dir)):
        if not config.quiet:
            _say(f"picture: {picture}")


def _fit(
    config: TrainConfig, data: "Dataset", device: "torch.device", folder: "RunFolder"
) -> "History":
    from vaebench.runs.checkpoints import Checkpoints, mark_of
    from vaebench.system.distributed import leads
    from vaebench.training.fit import fit
    from vaebench.training.history import TrainingInterrupted

    model, recipe = _build(config, data, device)
    mark = mark_of(data.train.images, data.test.images)
    checkpoints = Checkpoints(folder.path, {**deciding(config), "model": recipe, "images": mark})
    state = None
    if config.resume:
        check_images(config.resume, mark)
        state = checkpoints.newest()
        if state:
            state.check(config.epochs, config.engine, device)
            model.load_state_dict(state.model)
            folder.write_model(model)
        folder.write_metrics(checkpoints.metrics)
    stored = {n: v for n, v in dataclasses.asdict(config).items() if n != "resume"}
    folder.write_config(stored, recipe, {"name": data.name, "mark": mark})
    keeper = _Keeper(config, folder, model, checkpoints)
    try:
        history = fit(
            model,
            _trained_on(data, config.holdout),
            epochs=config.epochs,
            batch_size=config.batch_size,
            lr=config.lr,
            optimizer=config.optimizer,
            adam_eps=config.adam_eps,
            schedule=config.schedule,
            sigma=config.sigma,
            beta=config.beta,
            objective=config.objective,
            samples=config.samples,
            binarize=config.binarize,
            seed=config.seed,
            device=device,
            compile=config.compile,
            amp=config.amp,
            engine=config.engine,
            native=config.native,
            triton=config.triton,
            persistent=config.persistent,
            tf32=config.tf32,
            sparse=config.sparse,
            fused_likelihood=config.fused_likelihood,
            products=config.products,
            graph=config.graph,
            flush_denormal=config.flush_denormal,
            test_images=data.test.images,
            progress=not config.quiet,
            on_state=keeper.keep if leads() else None,
            resume=state,
        )
    except TrainingInterrupted:
        if leads():
            keeper.close()
        raise
    if leads():
        keeper.close()
    return history


def _build(
    config: TrainConfig, data: "Dataset", device: "torch.device"
) -> tuple["Network", dict[str, Any]]:
    """Make the model with its seed's weights; give it and what it takes to make it again."""
    from torch import manual_seed

    from vaebench.models.networks import make_network
    from vaebench.system.device import require_memory

    recipe: dict[str, Any] = {
        "kind": config.network,
        "image_shape": tuple(data.train.images.shape[1:]),
        "hidden_dims": config.hidden_dim,
        "latent_dim": config.latent_dim,
        "activation": config.activation,
        "likelihood": config.likelihood,
    }
    manual_seed(config.seed)
    require_memory(lambda: make_network(recipe), device)
    return make_network(recipe), recipe


def _trained_on(data: "Dataset", holdout: int) -> "torch.Tensor":
    images = data.train.images
    if holdout >= len(images):
        raise InputError(
            f"--holdout is {holdout}, which leaves none of the {len(images)} training images: "
            "make it smaller"
        )
    return images[: len(images) - holdout]


class _Keeper:
    """Writes what each epoch leaves in the run folder.

    The checkpoint first: with it the epoch is finished, and all else can be made from it.
    """

    def __init__(
        self,
        config: TrainConfig,
        folder: "RunFolder",
        model: "torch.nn.Module",
        checkpoints: "Checkpoints",
    ) -> None:
        self.config, self.folder, self.model = config, folder, model
        self.checkpoints = checkpoints
        self.unsaved: TrainState | None = None

    def keep(self, state: "TrainState") -> None:
        """Keep an epoch."""
        self.unsaved = state
        if self.config.checkpoint_every and len(state.epochs) % self.config.checkpoint_every == 0:
            self.close()
        self.folder.add_metrics(dataclasses.asdict(state.epochs[-1]))
        self.folder.write_model(self.model)
        if not self.config.quiet:
            _say(_epoch_line(state.epochs[-1]))

    def close(self) -> None:
        """Write the checkpoint of the last epoch, if that is still to be done."""
        if self.unsaved:
            self.checkpoints.save(self.unsaved)
            self.unsaved = None
        self.checkpoints.prune()


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

    from vaebench.data.binarize import meaning
    from vaebench.system.info import fingerprint
    from vaebench.system.timing import peak_flops, process_age

    device = torch.device(history.actual["device"])
    peak = peak_flops(device) * history.actual.get("processes", 1)
    last = history.epochs[-1]
    rate = history.images_per_second
    return {
        "dataset": data.name,
        "notice": data.notice,
        "workload": config.workload,
        "epochs": last.epoch,
        "test_elbo": last.test_elbo,
        "train_elbo": last.train_elbo,
        "meaning": meaning(config.likelihood, data.test.images, config.binarize),
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
        f"train ELBO {result['train_elbo']:.2f}; {result['meaning']}",
        f"steady training: {result['images_per_second']:,.0f} images/s; its dense arithmetic, "
        f"done or left out, at {result['peak_share']:.0%} of torch's measured float32 peak here of "
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
