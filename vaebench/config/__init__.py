"""TrainConfig: every knob of a training has its one home, its default and its help text here.

It is made of groups, one for each thing that is settled: data, network, objective, optimizer, fast,
run. Each leaf is one option of the command line and one keyword of :func:`vaebench.fit`, under a
name of its own, so that a flat list of options makes a config (:meth:`TrainConfig.of`) and a config
can be written down as one (:meth:`TrainConfig.options`). No torch in this room: the command line is
checked before torch is loaded.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from vaebench.config.fields import check_amp as check_amp
from vaebench.config.fields import flag_of, option
from vaebench.config.groups import ACTIVATIONS as ACTIVATIONS
from vaebench.config.groups import BETA_SCHEDULES as BETA_SCHEDULES
from vaebench.config.groups import BINARIZE as BINARIZE
from vaebench.config.groups import LIKELIHOODS as LIKELIHOODS
from vaebench.config.groups import NETWORKS as NETWORKS
from vaebench.config.groups import OPTIMIZERS as OPTIMIZERS
from vaebench.config.groups import PRIORS as PRIORS
from vaebench.config.groups import SCHEDULES as SCHEDULES
from vaebench.config.groups import TO_THE_END as TO_THE_END
from vaebench.config.groups import WITH_MOMENTUM as WITH_MOMENTUM
from vaebench.config.groups import DataConfig as DataConfig
from vaebench.config.groups import FastConfig as FastConfig
from vaebench.config.groups import NetworkConfig as NetworkConfig
from vaebench.config.groups import ObjectiveConfig as ObjectiveConfig
from vaebench.config.groups import OptimizerConfig as OptimizerConfig
from vaebench.config.groups import RunConfig as RunConfig
from vaebench.config.groups import asks_for as asks_for
from vaebench.config.groups import without as without
from vaebench.errors import InputError, check_choice
from vaebench.fast.register import TECHNIQUES
from vaebench.workloads import WORKLOADS as WORKLOADS


@dataclass(frozen=True, init=False)
class TrainConfig:
    """One training, complete; see the groups for what there is to settle.

    Made of groups, of options by their flat names, or of both:
    ``TrainConfig(epochs=3, run=RunConfig(seed=1))``.

    Raises:
        InputError: a value that cannot be.
        TypeError: no such option; names it.
    """

    workload: str = option("mlp", "named recipe that sets the defaults of the options below")
    data: DataConfig = DataConfig()
    network: NetworkConfig = NetworkConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    fast: FastConfig = FastConfig()
    run: RunConfig = RunConfig()

    def __init__(self, **given: Any) -> None:
        groups: dict[str, Any] = {each.name: each.default for each in dataclasses.fields(self)}
        for name, default in groups.items():
            if name in given and type(given[name]) is type(default) and name != "workload":
                groups[name] = given.pop(name)
        changes: dict[str, dict[str, Any]] = {}
        for name, value in given.items():
            if name not in OPTIONS:
                raise TypeError(f"there is no option {name!r}")
            group, leaf = OPTIONS[name]
            changes.setdefault(group, {})[leaf] = value
        groups |= changes.pop("", {})
        groups |= {g: dataclasses.replace(groups[g], **c) for g, c in changes.items()}
        for name, value in groups.items():
            object.__setattr__(self, name, value)
        self._check()

    def _check(self) -> None:
        check_choice("--workload", self.workload, tuple(WORKLOADS))
        if self.objective.likelihood not in (None, "gaussian") and self.objective.sigma != 1:
            raise InputError(
                f"--sigma {self.objective.sigma} belongs to the Gaussian likelihood: "
                "add --likelihood gaussian, or drop --sigma"
            )
        if self.optimizer.patience and not self.data.holdout:
            raise InputError(
                f"--patience is {self.optimizer.patience}, and no images are set aside to judge "
                "epochs by: add --holdout N, or drop --patience"
            )
        if self.run.engine == "reference":
            asked = [t.name for t in TECHNIQUES if not t.default and asks_for(self.fast, t.name)]
            if asked:
                raise InputError(
                    f"--engine reference is plain eager float32: drop "
                    f"{' and '.join(map(flag_of, asked))}, or use --engine fast"
                )

    @classmethod
    def of(cls, **options: Any) -> "TrainConfig":
        """Make a config of options by their flat names, as on the command line.

        Raises:
            InputError: a value that cannot be.
            TypeError: no such option; names it.
        """
        return cls(**options)

    def replace(self, **options: Any) -> "TrainConfig":
        """Give this config with other values for some options; raises as :meth:`of`."""
        return type(self)(**{**self.options(), **options})

    def options(self) -> dict[str, Any]:
        """All options by their flat names."""
        return {
            name: getattr(getattr(self, group) if group else self, leaf)
            for name, (group, leaf) in OPTIONS.items()
        }


def _leaves() -> Iterable[tuple[str, str, "dataclasses.Field[Any]"]]:
    """(option, group, field) of every leaf, in the order of the command line's help."""
    for each in dataclasses.fields(TrainConfig):
        if not dataclasses.is_dataclass(each.default):
            yield each.name, "", each
            continue
        for leaf in dataclasses.fields(each.default):
            yield leaf.metadata["option"] or leaf.name, each.name, leaf


FIELDS: Mapping[str, "dataclasses.Field[Any]"] = {name: leaf for name, _, leaf in _leaves()}
# Where each option lives: (group, field); the group of TrainConfig's own is "".
OPTIONS: Mapping[str, tuple[str, str]] = {n: (group, leaf.name) for n, group, leaf in _leaves()}


def recipe(workload: str, **given: Any) -> TrainConfig:
    """Make the config of a named workload, with ``given`` fields in place of the recipe's.

    Raises:
        InputError: no such workload, or a value that cannot be.
    """
    check_choice("--workload", workload, tuple(WORKLOADS))
    return TrainConfig.of(**{"workload": workload, **WORKLOADS[workload].settings, **given})
