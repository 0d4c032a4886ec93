"""A child that builds one technique of the GPU's report and trains an epoch, and says how it went.

A kernel that goes wrong on a GPU takes its process along: every later call there fails, or none
ever returns. What may do so is tried here first.
"""

import json
import sys

import torch

from benchmarks.cuda_report import SIZES, Setting, build_one
from benchmarks.processes import reply
from benchmarks.rungs import load_data
from benchmarks.state import numbers
from vaebench.system.device import synchronize
from vaebench.system.threads import available_cpus


def main() -> None:
    """Answer with why the technique was refused, or null."""
    task = json.loads(sys.argv[1])
    torch.set_num_threads(available_cpus())
    device = torch.device(task["device"])
    data = load_data(task["data"], task["images"])
    setting = Setting(device, SIZES["full"], data)
    row, engine = build_one(task["name"], setting, task["batch"])
    if engine is not None:
        engine.epoch(*numbers(len(setting.images), len(setting.images), device))
        synchronize(device)
    reply({"refused": row["refused"]})


if __name__ == "__main__":
    main()
