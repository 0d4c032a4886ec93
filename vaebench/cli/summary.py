"""What a training leaves to be read: result.json, and its few lines for a person."""

import math
from typing import TYPE_CHECKING, Any

from vaebench.config import TrainConfig

if TYPE_CHECKING:
    from vaebench.data.files import Dataset
    from vaebench.training.history import EpochRecord, History


def epoch_line(record: "EpochRecord") -> str:
    """Put an epoch's record in a line."""
    elbo = record.validation_elbo
    held_out = "" if elbo is None else f"held-out {elbo:8.2f}  "
    return (
        f"epoch {record.epoch:3d}  train ELBO {record.train_elbo:8.2f} "
        f"(recon {record.recon:.2f}, kl {record.kl:.2f})  test ELBO {record.test_elbo:8.2f}  "
        f"{held_out}{record.seconds:.2f} s  {record.images_per_second:,.0f} images/s"
    )


def summary(
    config: TrainConfig, data: "Dataset", history: "History", startup: float
) -> dict[str, Any]:
    """Gather result.json: ELBOs in nats per image, times in seconds, rates in FLOP/s."""
    import torch

    from vaebench.data.binarize import meaning
    from vaebench.system.info import fingerprint
    from vaebench.system.timing import peak_flops, process_age

    device = torch.device(history.actual["device"])
    peak = peak_flops(device) * history.actual.get("processes", 1)
    kind = config.objective.likelihood or "bernoulli"
    last, best = history.epochs[-1], history.best
    rate = history.images_per_second
    return {
        "dataset": data.name,
        "notice": data.notice,
        "workload": config.workload,
        "conditional": config.network.conditional,
        "epochs": last.epoch,
        "test_elbo": last.test_elbo,
        "train_elbo": last.train_elbo,
        "best": best and {"epoch": best.epoch, "validation_elbo": best.elbo},
        "patience": config.optimizer.patience if history.stopped_early else None,
        "meaning": meaning(kind, data.test.images, config.data.binarize),
        "eval_samples": 1,
        "test_images": len(data.test),
        "images_per_second": rate,
        "seconds": {"total": process_age(), "startup": startup, **history.seconds},
        "flops_per_image": history.flops_per_image,
        "peak_flops": peak,
        "peak_share": rate * history.flops_per_image / peak,
        "requested": {**history.requested, "device": config.run.device, "data": config.data.source},
        "actual": {**history.actual, "data": data.name},
        "notes": history.notes,
        "machine": fingerprint(device),
    }


def describe(result: dict[str, Any]) -> str:
    """Put a result in words for a person, a few lines."""
    seconds, asked, ran = result["seconds"], result["requested"], result["actual"]
    arithmetic = (
        "its arithmetic could not be counted"
        if math.isnan(result["peak_share"])
        else f"its dense arithmetic, done or left out, at {result['peak_share']:.0%} of torch's "
        f"measured float32 peak here of {result['peak_flops'] / 1e9:,.0f} GFLOP/s"
    )
    lines = [
        f"{result['workload']}{' given labels' * result['conditional']} on {result['dataset']}, "
        f"{result['epochs']} epochs: "
        f"test ELBO {result['test_elbo']:.2f} nats per image "
        f"({result['test_images']:,} images, {result['eval_samples']} z each), "
        f"train ELBO {result['train_elbo']:.2f}; {result['meaning']}",
        *_best_line(result),
        f"steady training: {result['images_per_second']:,.0f} images/s; {arithmetic}",
        f"time: {seconds['total']:.1f} s = start-up {seconds['startup']:.1f} + "
        f"compile {seconds['compile']:.1f} + training {seconds['train']:.1f} + "
        f"evaluation {seconds['eval']:.1f} + "
        f"other {seconds['total'] - sum(v for k, v in seconds.items() if k != 'total'):.1f}",
        f"asked for: {_mode_line(asked)}",
        f"ran:       {_mode_line(ran)}",
    ]
    return "\n".join([*lines, *(f"  {note}" for note in result["notes"])])


def _best_line(result: dict[str, Any]) -> list[str]:
    best = result["best"]
    if not best:
        return []
    return [
        f"best epoch by the images held out: {best['epoch']}, with ELBO "
        f"{best['validation_elbo']:.2f} (best.safetensors; vaebench evaluate RUN --best)"
    ]


def _mode_line(mode: dict[str, Any]) -> str:
    compiled = "compiled" if mode.get("compile") else "eager"
    precision = f"amp {amp}" if (amp := mode.get("amp")) else "no amp"
    return f"{mode['engine']} engine, {compiled}, {precision}, on {mode['device']}, {mode['data']}"
