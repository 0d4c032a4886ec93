"""``python -m vaebench.train``: arguments -> data, model, fit -> a run folder and a summary."""

import dataclasses
import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vaebench.cli.arguments import parse as parse
from vaebench.cli.command import run
from vaebench.cli.streams import complain, say
from vaebench.cli.summary import describe, epoch_line, summary
from vaebench.config import TrainConfig
from vaebench.errors import ResourceError, TrainingError
from vaebench.runs.settings import check_images, deciding, is_complete

if TYPE_CHECKING:
    import torch

    from vaebench.data.load import Dataset
    from vaebench.models.networks import Network
    from vaebench.runs.checkpoints import Checkpoints
    from vaebench.runs.folder import RunFolder
    from vaebench.training.callbacks import Frames
    from vaebench.training.history import History
    from vaebench.training.state import TrainState


def main(argv: list[str] | None = None) -> int:
    """Run the command line; give its exit status, see :func:`vaebench.cli.command.run`."""
    return run(_main, argv, interrupted="interrupted; epochs that were finished are kept")


def _main(argv: list[str]) -> int:
    # It warns of a missing CUDA wherever something is compiled, on machines without a GPU too.
    logging.getLogger("torch.utils.cpp_extension").setLevel("ERROR")
    config = parse(argv)
    logging.getLogger("vaebench").setLevel("WARNING" if config.run.quiet else "INFO")
    return train(config)


def train(config: TrainConfig) -> int:
    """Run one training: data, model, fit, run folder, summary; give the exit status.

    Raises:
        InputError: as :func:`vaebench.fit` does. No new run folder is left.
        TrainingError, ResourceError: the same; the message says what is kept.
    """
    if config.run.resume and (complete := is_complete(config)):
        _tidy(config.run.resume)
        complain(f"{config.run.resume} is complete: {complete}")
        return 0
    import torch

    from vaebench.system.device import resolve_device
    from vaebench.system.distributed import is_main_process, joined, local_count, own_device
    from vaebench.system.threads import available_cpus

    device = resolve_device(own_device(config.run.device))
    torch.set_num_threads(config.run.threads or max(1, available_cpus() // local_count()))
    if not is_main_process():
        config = config.replace(quiet=True, plot=False)
    with joined(), _open_folder(config) as folder:
        try:
            status, result = _run(config, device, folder)
        except (TrainingError, ResourceError) as error:
            raise type(error)(f"{error}; {_kept(folder)}") from error
    if not config.run.quiet:
        say(describe(result))
        say(f"run folder: {folder.path}")
    if config.run.plot:
        _plot(folder.path, config)
    return status


def _run(
    config: TrainConfig, device: "torch.device", folder: "RunFolder"
) -> tuple[int, dict[str, Any]]:
    """Train in a folder that is ours; give the exit status and the result, which is written."""
    from vaebench.data.load import load_dataset
    from vaebench.system.distributed import is_main_process, main_process_first
    from vaebench.system.timing import process_age
    from vaebench.training.history import TrainingInterrupted

    with main_process_first():
        data = load_dataset(config.data.source, config.data.data_dir)
    if data.notice and is_main_process():
        complain(data.notice)
    startup = process_age()
    try:
        history, status = _fit(config, data, device, folder), 0
    except TrainingInterrupted as stopped:
        if not stopped.history.epochs:
            raise KeyboardInterrupt from None  # nothing to sum up
        if is_main_process():
            complain(
                f"{stopped}; what was trained is in {folder.path}, and --resume {folder.path} goes "
                "on with it"
            )
        history, status = stopped.history, 130
    if not is_main_process():
        return status, {}
    result = summary(config, data, history, startup)
    folder.write_result(result)
    return status, result


def _open_folder(config: TrainConfig) -> "RunFolder":
    """Make the run folder, or open the one to go on with; only the leading process writes one."""
    from vaebench.runs.folder import NoFolder, RunFolder
    from vaebench.system.distributed import is_main_process

    named = config.run.resume or config.run.out
    path = named or f"runs/{config.workload}-{time.strftime('%Y%m%d-%H%M%S')}"
    if not is_main_process():
        return NoFolder(path)
    return RunFolder(path, resume=config.run.resume is not None, next_free=named is None)


def _tidy(run: str) -> None:
    """Remove what a process that was killed at its very end left in a finished run's folder."""
    if any(Path(run).glob(".vaebench*")):  # seldom, and torch is loaded only then
        from vaebench.runs.folder import tidy

        tidy(run)


def _kept(folder: "RunFolder") -> str:
    """Say what is left when a training could not go on."""
    kept = folder.kept()
    if kept is None:
        return "no epoch was finished before"
    return f"the last good epoch is in {folder.path / kept}"


def _plot(run: Path, config: TrainConfig) -> None:
    from vaebench.plots import Options, draw

    for picture in draw(run, options=Options(data_dir=config.data.data_dir)):
        if not config.run.quiet:
            say(f"picture: {picture}")


def _fit(
    config: TrainConfig, data: "Dataset", device: "torch.device", folder: "RunFolder"
) -> "History":
    from vaebench.data.labels import contents
    from vaebench.runs.checkpoints import Checkpoints, mark_of
    from vaebench.system.distributed import is_main_process
    from vaebench.training.fit import fit
    from vaebench.training.history import TrainingInterrupted

    model, recipe = build_model(config, data, device)
    conditional = config.network.conditional
    mark = mark_of(*contents(data, conditional=conditional))
    checkpoints = Checkpoints(folder.path, {**deciding(config), "model": recipe, "images": mark})
    state = None
    if config.run.resume:
        check_images(config.run.resume, mark)
        state = checkpoints.newest()
        if state:
            state.check(config.optimizer.epochs, config.run.engine, device)
            model.load_state_dict(state.model)
            folder.write_model(state.weights)
            if state.best:
                folder.write_model(state.best, best=True)
        folder.write_metrics(checkpoints.metrics)
    stored = {n: v for n, v in config.options().items() if n != "resume"}
    folder.write_config(stored, recipe, {"name": data.name, "mark": mark})
    keeper = _Keeper(config, folder, checkpoints)
    try:
        history = fit(
            model,
            data.train.images,
            labels=data.train.labels if conditional else None,
            test_images=(data.test.images, data.test.labels if conditional else None),
            config=config.replace(device=str(device)),
            progress=not config.run.quiet,
            on_epoch=_film(config, data, folder) if is_main_process() else None,
            on_state=keeper.keep if is_main_process() else None,
            resume=state,
        )
    except TrainingInterrupted:
        if is_main_process():
            keeper.close()
        raise
    if is_main_process():
        keeper.close()
    return history


def _film(config: TrainConfig, data: "Dataset", folder: "RunFolder") -> "Frames | None":
    """What keeps pictures for a film, a hundred at most, if that was asked for."""
    if not config.run.film:
        return None
    from torch import arange

    from vaebench.data.labels import count_classes
    from vaebench.runs.folder import FRAMES
    from vaebench.training.callbacks import Frames

    points = Frames.ACROSS**2
    classes = count_classes(data) if config.network.conditional else 0
    return Frames(
        folder.path / FRAMES,
        data.train.images.shape[1:],
        y=arange(points) % classes if classes else None,
        every=-(-config.optimizer.epochs // 100),
    )


def build_model(
    config: TrainConfig, data: "Dataset", device: "torch.device"
) -> tuple["Network", dict[str, Any]]:
    """Make the model with its seed's weights; give it and what it takes to make it again."""
    from torch import manual_seed

    from vaebench.data.labels import count_classes
    from vaebench.models.networks import make_network
    from vaebench.system.device import require_memory

    recipe: dict[str, Any] = {
        "kind": config.network.kind,
        "image_shape": tuple(data.train.images.shape[1:]),
        "hidden_dims": config.network.hidden_dim,
        "latent_dim": config.network.latent_dim,
        "activation": config.network.activation,
        "likelihood": config.objective.likelihood,
    }
    network = config.network
    if network.logvar_range:
        recipe["logvar_range"] = network.logvar_range
    if network.prior != "standard":
        recipe |= {"prior": network.prior, "pseudo_inputs": network.pseudo_inputs}
    if network.conditional:
        recipe["classes"] = count_classes(data)
    manual_seed(config.run.seed)
    require_memory(lambda: make_network(recipe), device)
    return make_network(recipe), recipe


class _Keeper:
    """Writes what each epoch leaves in the run folder.

    The checkpoint first: with it the epoch is finished, and all else can be made from it.
    """

    def __init__(
        self,
        config: TrainConfig,
        folder: "RunFolder",
        checkpoints: "Checkpoints",
    ) -> None:
        self.config, self.folder = config, folder
        self.checkpoints = checkpoints
        self.unsaved: TrainState | None = None

    def keep(self, state: "TrainState") -> None:
        """Keep an epoch."""
        self.unsaved = state
        if (
            self.config.run.checkpoint_every
            and len(state.epochs) % self.config.run.checkpoint_every == 0
        ):
            self.close()
        self.folder.add_metrics(dataclasses.asdict(state.epochs[-1]))
        self.folder.write_model(state.weights)
        best = state.best_so_far()
        if best and best.epoch == len(state.epochs):
            self.folder.write_model(best.weights, best=True)
        if not self.config.run.quiet:
            say(epoch_line(state.epochs[-1]))

    def close(self) -> None:
        """Write the checkpoint of the last epoch, if that is still to be done."""
        if self.unsaved:
            self.checkpoints.save(self.unsaved)
            self.unsaved = None
        self.checkpoints.prune()
