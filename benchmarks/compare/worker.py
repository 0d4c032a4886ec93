"""One training in one environment: ``python worker.py TASK``; its answers are lines of JSON.

There is one after each epoch, and one at the end. Between epochs it waits for a line, so that two
workers can take turns. It is run by the Python, and on the tree, that are compared, older ones too:
so it knows nothing but the public names that every version has.
"""

import importlib.metadata
import json
import platform
import resource
import sys
import time
from typing import Any


def train(task: dict[str, Any]) -> dict[str, Any]:
    """Train as the task says; give the seconds of each epoch, and what they depend on.

    Args:
        task: ``images`` (a .npy file), ``model`` and ``network`` (a public class and its
            arguments), ``options`` (of ``vaebench.fit``), ``threads``, ``begun`` (when the process
            was started, by the clock of the day).
    """
    import numpy as np
    import torch

    import vaebench

    torch.set_num_threads(task["threads"])
    torch.manual_seed(0)
    model = getattr(vaebench, task["model"])(**task["network"])
    images = torch.from_numpy(np.load(task["images"]))
    ends: list[float] = []

    def wait(record: Any) -> None:
        ends.append(time.time())
        print(json.dumps({"epoch": record.epoch}), flush=True)
        if record.epoch < task["options"]["epochs"] and not sys.stdin.readline():
            sys.exit("nobody waits for this any more")

    history = vaebench.fit(model, images, on_epoch=wait, **task["options"])
    elbos = [record.train_elbo for record in history.epochs]
    return {
        "epoch_seconds": [record.seconds for record in history.epochs],
        "first_epoch_after": ends[0] - task["begun"],
        "elbo": elbos[-1],
        "actual": {name: str(value) for name, value in history.actual.items()},
        "notes": list(history.notes),
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "vaebench": str(vaebench.__file__),
        "torch": torch.__version__,
    }


def environment() -> dict[str, Any]:
    """What this environment is made of."""
    found = {d.metadata["Name"]: d.version for d in importlib.metadata.distributions()}
    return {"python": platform.python_version(), "packages": dict(sorted(found.items()))}


if __name__ == "__main__":
    print(
        json.dumps(
            environment() if sys.argv[1] == "environment" else train(json.loads(sys.argv[1]))
        )
    )
