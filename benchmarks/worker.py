"""A child that keeps one contender ready and trains an epoch whenever it is told to.

Words it takes, a line each: ``restore`` and ``epoch``; each is answered when it is done.
"""

import json
import sys
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.peers import Contender, make
from benchmarks.processes import reply
from benchmarks.rungs import load_data
from vaebench.fast import flush_denormal
from vaebench.system.threads import available_cpus
from vaebench.system.worker import run_apart


def main() -> None:
    """Build, warm up by an epoch that also compiles, then obey."""
    task = json.loads(sys.argv[1])
    torch.set_num_threads(available_cpus())
    # One thread for all of it: the switch for denormals is inherited by the threads it makes.
    flush = task["peer"].startswith("vaebench")
    run_apart(lambda: obey(task), *[flush_denormal.enter] * flush)


def obey(task: dict[str, Any]) -> None:
    """Answer each word until there are no more."""
    data = load_data(task["data"], task["images"])
    device = torch.device(task["device"])
    contender = make(task["peer"], data.train.images, task["count"], device)
    answer = {"elbo": warm_up(contender), "data": data.name}
    torch.compiler.set_stance("fail_on_recompile")
    reply(answer)
    words: dict[str, Callable[[], Any]] = {
        "restore": contender.restore,
        "epoch": contender.epoch,
    }
    for line in sys.stdin:
        reply({"elbo": words[line.strip()]()})


def warm_up(contender: Contender) -> float:
    """Train one epoch from the initial state and put that back; give the epoch's ELBO."""
    contender.restore()
    found = contender.epoch()
    contender.restore()
    return found


if __name__ == "__main__":
    main()
