"""The engine that trains, kept true to the model: what is changed between epochs is followed.

An engine is made for the model as it is. A callback, or the model's own code, may change anything
between two epochs: an attribute, a mode, a hook, a frozen layer, a parameter's memory. So the model
is looked through as each epoch begins, and if it is not as the last one left it, an engine is made
anew for what it is now, from the optimiser's state on.
"""

from typing import Any, cast

from torch import nn

from vaebench.config import WITH_MOMENTUM, FastConfig, OptimizerConfig, TrainConfig, without
from vaebench.engine import Engine
from vaebench.fast.build import make_engine
from vaebench.fast.register import TECHNIQUES
from vaebench.fast.step import StepEngine
from vaebench.models.fingerprint import changes
from vaebench.problem import Problem
from vaebench.reference import ReferenceEngine
from vaebench.system.distributed import Group

# Engines made anew with all techniques; a model that is changed more often is trained by its own
# code, step by step, which follows it without being made anew.
MOST_TIMES = 2


class Follower:
    """An engine for a problem; :meth:`follow` before every epoch, :meth:`left` after it.

    Args:
        problem: what is trained on what.
        config: which engine, and what is asked of the fast one.
        group: the processes that train together; None: this one.
    """

    def __init__(self, problem: Problem, config: TrainConfig, group: Group | None) -> None:
        self.problem, self.config, self.group = problem, config, group
        self.times = 0
        self.notes: list[str] = list(problem.notes)
        self.actual: dict[str, Any] = {}
        self.engine: Engine
        if config.run.engine == "reference":
            self.engine = reference_of(problem)
            self.actual = {t.name: t.idle for t in TECHNIQUES if t.kind != "thread"}
        else:
            built = make_engine(problem, config.fast, group)
            self.engine, self.actual = built.engine, built.actual
            self.notes += built.notes
        self.left()

    def resize(self, batch_size: int) -> list[str]:
        """Train in batches of this size from now on; say in lines what is new.

        Raises:
            InputError: the model cannot be trained so.
        """
        if batch_size == self.problem.batch_size:
            return []
        self.problem = self.problem.again(batch_size)
        if isinstance(self.engine, ReferenceEngine):
            self.engine.batch_size = batch_size
            return []
        return self._make_anew(self.config.fast if self.times <= MOST_TIMES else self._plain())

    def left(self) -> None:
        """Remember the model as the training leaves it."""
        self.before = self.problem.fingerprint()

    def follow(self) -> list[str]:
        """Make an engine for the model as it is now, if it is not as it was left; say so in lines.

        Raises:
            InputError: the model can no longer be trained.
        """
        now = self.problem.fingerprint()
        changed = changes(self.before.state, now.state)
        if self.engine.holds_tensors:
            others = changes(self.before.memory, now.memory, but=self.problem.kept)
            changed += [name for name in others if name not in changed]
        if not changed:
            return []
        self.times += 1
        what = ", ".join(changed[:3]) + f" and {len(changed) - 3} more" * (len(changed) > 3)
        self.problem = self.problem.again()
        if isinstance(self.engine, ReferenceEngine):
            self.engine.follow(self.problem.params)
            return []
        fast, how = self.config.fast, "an engine was made anew"
        if self.times > MOST_TIMES:
            fast = self._plain()
            how = (
                "trained eagerly from here on, which follows every change (a buffer changed "
                "in place needs no other engine)"
            )
        told = [] if self.times > MOST_TIMES + 1 else [f"the model was changed ({what}): {how}"]
        return told + self._make_anew(fast)

    def _make_anew(self, fast: FastConfig) -> list[str]:
        """Make an engine that goes on from the optimiser's state; give the notes that are new."""
        before = cast(StepEngine, self.engine).optimizer
        optimizer = before.following(self.problem.params, apart=self.problem.varies)
        built = make_engine(self.problem, fast, self.group, optimizer)
        self.engine = built.engine
        new = [note for note in built.notes if note not in self.notes]
        self.notes += new
        self.actual |= built.actual
        return new

    def _plain(self) -> FastConfig:
        """Nothing but the plain step, in the precision that was asked for."""
        beside = (t.name for t in TECHNIQUES if t.kind != "thread" and not t.rounds)
        return without(self.config.fast, *beside)


def reference_of(problem: Problem) -> ReferenceEngine:
    """The reference engine for a problem."""
    objective, optimizer = problem.objective, problem.optimizer
    return ReferenceEngine(
        cast(nn.Module, problem.vae),
        problem.images,
        labels=problem.labels,
        batch_size=optimizer.batch_size,
        lr=optimizer.lr,
        likelihood=objective.likelihood,
        sigma=objective.sigma,
        beta=objective.beta,
        device=problem.device,
        bound=objective.bound,
        free_bits=objective.free_bits,
        optimizer=problem.given or optimizer.name,
        words=torch_words(optimizer),
        clip_norm=optimizer.clip_norm,
        clip_value=optimizer.clip_value,
    )


def torch_words(optimizer: OptimizerConfig) -> dict[str, Any]:
    """What torch.optim's class of that name is told."""
    words: dict[str, Any] = {"weight_decay": optimizer.weight_decay}
    if optimizer.name in WITH_MOMENTUM:
        words["momentum"] = optimizer.momentum
    if optimizer.name in ("adam", "adamw", "adamax"):
        words |= {"betas": optimizer.adam_betas, "eps": optimizer.adam_eps}
    return words
