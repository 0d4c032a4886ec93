"""All of a training between two epochs, and how it goes on from there."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from vaebench.engine import Engine
from vaebench.errors import InputError
from vaebench.fast.register import TECHNIQUES
from vaebench.training.history import Best, EpochRecord, History


@dataclass(frozen=True)
class TrainState:
    """A training after some of its epochs; with it :func:`vaebench.fit` goes on to the same bits.

    ``model`` is the module's ``state_dict``, ``engine`` what the optimiser remembers, ``random``
    the generators' states, ``actual`` what runs, ``average`` that of the weights, if one is taken,
    ``best`` the weights of the best epoch, if images are held out. The tensors are the training's
    own, not copies: save or clone them before ``on_state`` returns.
    """

    epochs: tuple[EpochRecord, ...]
    model: dict[str, Tensor]
    engine: dict[str, Tensor]
    random: dict[str, Tensor]
    actual: dict[str, Any]
    average: dict[str, Tensor] = field(default_factory=dict)
    best: dict[str, Tensor] = field(default_factory=dict)

    @property
    def weights(self) -> dict[str, Tensor]:
        """What the model is after this epoch: averaged, if that was asked for."""
        return {**self.model, **{n: t for n, t in self.average.items() if n in self.model}}

    def best_so_far(self) -> Best | None:
        """The best epoch; None if no images are held out."""
        if not self.best:
            return None
        judged = [e for e in self.epochs if e.validation_elbo is not None]
        found = max(judged, key=lambda e: (e.validation_elbo, -e.epoch))
        assert found.validation_elbo is not None
        return Best(found.epoch, found.validation_elbo, self.best)

    @classmethod
    def of(
        cls,
        model: nn.Module,
        engine: Engine,
        random: Mapping[str, torch.Generator],
        history: History,
        average: Mapping[str, Tensor] = MappingProxyType({}),
    ) -> "TrainState":
        """The state that a training is in."""
        return cls(
            tuple(history.epochs),
            dict(model.state_dict()),
            engine.state(),
            {name: generator.get_state() for name, generator in random.items()},
            {**history.actual, **_circumstances()},
            dict(average),
            history.best.weights if history.best else {},
        )

    def check(self, epochs: int, engine: str, device: torch.device) -> None:
        """Check that a training with these settings can go on from here.

        Raises:
            InputError: it trained with another engine or on another kind of device, whose
                optimiser's state and random numbers are of another form; or is further already.
        """
        if len(self.epochs) > epochs:
            raise InputError(
                f"epochs is {epochs}, but {len(self.epochs)} are trained already: ask for more"
            )
        if self.actual["engine"] != engine:
            raise InputError(
                f"the training began with engine {self.actual['engine']!r}, not {engine!r}: "
                "go on with that"
            )
        if torch.device(self.actual["device"]).type != device.type:
            raise InputError(
                f"the training began on {self.actual['device']}, not {device}, whose random "
                "numbers are others: go on there"
            )

    def amp(self, asked: str | None) -> str | None:
        """What ``asked`` for autocast means here: ``"auto"`` was decided when the run began."""
        if asked != "auto":
            return asked
        return "bf16" if self.actual["amp"] == "bf16" else None

    def restore(
        self,
        model: nn.Module,
        engine: Engine,
        random: Mapping[str, torch.Generator],
        history: History,
    ) -> None:
        """Put model, optimiser and generators in this state, in place; note what is not as it was.

        Raises:
            InputError: the state is that of another model.
        """
        try:
            model.load_state_dict(self.model)
            engine.load_state(self.engine)
            for name, generator in random.items():
                if name in self.random or not name.startswith("model."):  # older ones lack them
                    generator.set_state(self.random[name].cpu())
        except (RuntimeError, KeyError) as error:
            reason = " ".join(str(error).split())
            raise InputError(f"the state to go on from does not fit: {reason}") from error
        history.epochs[:] = self.epochs
        history.best = self.best_so_far()
        history.notes.append(
            f"went on after epoch {len(self.epochs)}: times are those of the last part alone"
        )
        now = {**history.actual, **_circumstances()}
        for name, before in self.actual.items():
            if name in _WITHOUT_EFFECT:
                continue
            if now.get(name) != before and name == LR_ENDS:
                history.notes.append(
                    f"the learning rate was to be 0 after {before} epochs, and now is after "
                    f"{now.get(name)}: not what a training of so many from the start gives"
                )
            elif now.get(name) != before:
                history.notes.append(
                    f"went on with {name} {now.get(name)}, before it was {before}: equal to an "
                    "uninterrupted training within rounding, not to the bit"
                )


# After how many epochs a schedule brings the learning rate to 0.
LR_ENDS = "lr_ends"
# What runs, but the same bits come out of it.
_WITHOUT_EFFECT = tuple(technique.name for technique in TECHNIQUES if technique.exact)


def _circumstances() -> dict[str, Any]:
    """What is nobody's choice, and decides about the last bits."""
    return {"threads": torch.get_num_threads(), "torch": torch.__version__}
