"""vaebench: train variational autoencoders fast, and prove that nothing but time has changed.

The public names below are loaded on first use (PEP 562), so that ``import vaebench`` and
``python -m vaebench.train --help`` cost milliseconds: no torch, no CUDA start-up, no torchvision.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vaebench.checkpoint import load as load
    from vaebench.config import TrainConfig as TrainConfig
    from vaebench.conv import ConvVAE as ConvVAE
    from vaebench.data import Dataset as Dataset
    from vaebench.data import load_dataset as load_dataset
    from vaebench.data import load_mnist as load_mnist
    from vaebench.errors import InputError as InputError
    from vaebench.evaluation import Evaluation as Evaluation
    from vaebench.evaluation import evaluate as evaluate
    from vaebench.fast.loader import DeviceLoader as DeviceLoader
    from vaebench.history import EpochRecord as EpochRecord
    from vaebench.history import History as History
    from vaebench.history import TrainingInterrupted as TrainingInterrupted
    from vaebench.imported import load_state_dict_from as load_state_dict_from
    from vaebench.model import VAE as VAE
    from vaebench.resume import Checkpoints as Checkpoints
    from vaebench.state import TrainState as TrainState
    from vaebench.trainer import fit as fit

__version__ = "0.1.0"

_HOME = {
    "Checkpoints": "resume",
    "ConvVAE": "conv",
    "Dataset": "data",
    "DeviceLoader": "fast.loader",
    "EpochRecord": "history",
    "Evaluation": "evaluation",
    "History": "history",
    "InputError": "errors",
    "TrainConfig": "config",
    "TrainState": "state",
    "TrainingInterrupted": "history",
    "VAE": "model",
    "evaluate": "evaluation",
    "fit": "trainer",
    "load": "checkpoint",
    "load_dataset": "data",
    "load_mnist": "data",
    "load_state_dict_from": "imported",
}

__all__ = [
    "VAE",
    "Checkpoints",
    "ConvVAE",
    "Dataset",
    "DeviceLoader",
    "EpochRecord",
    "Evaluation",
    "History",
    "InputError",
    "TrainConfig",
    "TrainState",
    "TrainingInterrupted",
    "evaluate",
    "fit",
    "load",
    "load_dataset",
    "load_mnist",
    "load_state_dict_from",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'vaebench' has no attribute {name!r}")
    value = getattr(import_module(f"vaebench.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
