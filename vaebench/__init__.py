"""vaebench: train variational autoencoders fast, and prove that nothing but time has changed.

The public names below are loaded on first use (PEP 562), so that ``import vaebench`` and
``python -m vaebench.train --help`` cost milliseconds: no torch, no CUDA start-up, no torchvision.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from vaebench.system import fork as fork  # it is to notice a fork from here on
from vaebench.system import start as _start  # noqa: F401 (its clock begins with this import)

if TYPE_CHECKING:
    from vaebench.config import TrainConfig as TrainConfig
    from vaebench.data.load import Dataset as Dataset
    from vaebench.data.load import load_dataset as load_dataset
    from vaebench.data.load import load_mnist as load_mnist
    from vaebench.data.loader import DeviceLoader as DeviceLoader
    from vaebench.errors import InputError as InputError
    from vaebench.evaluation import Evaluation as Evaluation
    from vaebench.evaluation import evaluate as evaluate
    from vaebench.models.adapt import adapt as adapt
    from vaebench.models.conv import ConvVAE as ConvVAE
    from vaebench.models.mlp import VAE as VAE
    from vaebench.models.pretrained import load_state_dict_from as load_state_dict_from
    from vaebench.models.protocol import Gaussian as Gaussian
    from vaebench.models.protocol import Logistic as Logistic
    from vaebench.proof.pairs import assert_equal_training as assert_equal_training
    from vaebench.proof.report import Report as Report
    from vaebench.proof.verify import verify as verify
    from vaebench.runs.checkpoints import Checkpoints as Checkpoints
    from vaebench.runs.folder import load as load
    from vaebench.training.callbacks import Callback as Callback
    from vaebench.training.callbacks import CSVLog as CSVLog
    from vaebench.training.callbacks import Frames as Frames
    from vaebench.training.callbacks import TensorBoard as TensorBoard
    from vaebench.training.fit import fit as fit
    from vaebench.training.history import EpochRecord as EpochRecord
    from vaebench.training.history import History as History
    from vaebench.training.history import TrainingInterrupted as TrainingInterrupted
    from vaebench.training.state import TrainState as TrainState

__version__ = "0.1.0"

_MODULES = {
    "CSVLog": "training.callbacks",
    "Callback": "training.callbacks",
    "Checkpoints": "runs.checkpoints",
    "ConvVAE": "models.conv",
    "Dataset": "data.files",
    "DeviceLoader": "data.loader",
    "EpochRecord": "training.history",
    "Evaluation": "evaluation",
    "Frames": "training.callbacks",
    "Gaussian": "models.protocol",
    "History": "training.history",
    "InputError": "errors",
    "Logistic": "models.protocol",
    "Report": "proof.report",
    "TensorBoard": "training.callbacks",
    "TrainConfig": "config",
    "TrainState": "training.state",
    "TrainingInterrupted": "training.history",
    "VAE": "models.mlp",
    "adapt": "models.adapt",
    "assert_equal_training": "proof.pairs",
    "evaluate": "evaluation",
    "fit": "training.fit",
    "load": "runs.folder",
    "load_dataset": "data.load",
    "load_mnist": "data.load",
    "load_state_dict_from": "models.pretrained",
    "verify": "proof.verify",
}

__all__ = [
    "VAE",
    "CSVLog",
    "Callback",
    "Checkpoints",
    "ConvVAE",
    "Dataset",
    "DeviceLoader",
    "EpochRecord",
    "Evaluation",
    "Frames",
    "Gaussian",
    "History",
    "InputError",
    "Logistic",
    "Report",
    "TensorBoard",
    "TrainConfig",
    "TrainState",
    "TrainingInterrupted",
    "adapt",
    "assert_equal_training",
    "evaluate",
    "fit",
    "load",
    "load_dataset",
    "load_mnist",
    "load_state_dict_from",
    "verify",
]


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module 'vaebench' has no attribute {name!r}")
    value = getattr(import_module(f"vaebench.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
