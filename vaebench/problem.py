"""A problem: what is trained on what, for what. It is checked once, and then known to be sound."""

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vaebench.config import OptimizerConfig
from vaebench.data.images import to_unit
from vaebench.data.streaming import explained, fits
from vaebench.errors import InputError
from vaebench.models.adapt import Adapted, adapted
from vaebench.models.code import Deeds, deeds
from vaebench.models.fingerprint import Fingerprint, changes, fingerprint
from vaebench.models.protocol import EncoderDecoder, as_vae, explaining, latent_size
from vaebench.models.snapshot import others_random, untouched
from vaebench.objective import Objective, loss_terms


@dataclass(frozen=True)
class Problem:
    """A model and its images on the device, and what is to be maximised.

    Args:
        model: the caller's module, whose parameters are trained in place.
        vae: what encodes and decodes: the model itself, or an adapter around it.
        images: (N, ...) uint8 or float32; on the device, or on the host if they are streamed.
        labels: (N, ...) handed to ``encode`` and ``decode`` beside images and z, or None; on the
            device.
        objective: what is maximised.
        optimizer: its rule and settings.
        device: where the model is.
        latent_dim: Z.
        params: those that the loss depends on, and that want a gradient.
        sample_batch: (2, ...) float32, the first images as the model takes them; a copy.
        resident: whether the images are kept where the model is; else they are streamed.
        unsteady: what a step does, in words, that only the model's own code does, run step by step:
            it changes more than tensors, or draws numbers that are not torch's; "" if nothing.
        told, stored: what a step of the model's own code does beside computing, in words; see
            :class:`vaebench.models.code.Deeds`.
        kept: names of what it keeps tensors in that it computes, as in a fingerprint's memory.
        given: the caller's own optimiser, in place of that rule; None: there is none.
        notes: a line for each thing that was found out, and that the user should know.
    """

    model: nn.Module
    vae: EncoderDecoder
    images: Tensor
    labels: Tensor | None
    objective: Objective
    optimizer: OptimizerConfig
    device: torch.device
    latent_dim: int
    params: list[Tensor]
    sample_batch: Tensor
    resident: bool = True
    unsteady: str = ""
    told: tuple[str, ...] = ()
    stored: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    given: torch.optim.Optimizer | None = None
    notes: tuple[str, ...] = ()

    @property
    def adapted(self) -> bool:
        """Whether something stands between the model and the objective."""
        return id(self.vae) != id(self.model)

    @property
    def steady(self) -> bool:
        """Whether code that was made of a step does what each step does."""
        return not self.unsteady

    @property
    def varies(self) -> bool:
        """Whether one step may leave parameters out that another uses.

        The model's code may choose by what it looks at, counts or draws.
        """
        return bool(self.told) or not self.steady

    def keepers(self) -> list[tuple[nn.Module, str]]:
        """The modules that keep a tensor that they computed, and the attributes that do."""
        modules = dict(self.model.named_modules())
        found = [name.rpartition(".") for name in self.kept]
        return [(modules[path], name) for path, _, name in found if path in modules]

    def fingerprint(self) -> Fingerprint:
        """Tell the model from what it is later; see :mod:`vaebench.models.fingerprint`."""
        return _fingerprint(self.model, self.vae)

    @property
    def batch_size(self) -> int:
        """Images of a step."""
        return self.optimizer.batch_size

    @property
    def batch_sizes(self) -> list[int]:
        """Those of an epoch: the full one, and the short last one if there is one."""
        n = len(self.images)
        return [s for s in (min(self.batch_size, n), n % self.batch_size) if s]

    @classmethod
    def of(
        cls,
        model: nn.Module,
        images: Tensor,
        objective: Objective,
        optimizer: OptimizerConfig,
        device: torch.device,
        *,
        labels: Tensor | None = None,
        resident: bool | None = None,
        given: torch.optim.Optimizer | None = None,
    ) -> "Problem":
        """Move model and images to the device, and try the model out; it is left as it was.

        The arguments are as above; the images are checked. ``resident`` says whether to keep them
        on the device; None: if its memory holds them.

        Raises:
            InputError: the model does not fit the images, or cannot be trained.
        """
        device_of(model)
        model.to(device)
        if resident is None:
            resident = fits(images, device)
        notes = [] if resident else [explained(images, device)]
        images = images.to(device) if resident else images
        labels = None if labels is None else labels.to(device)
        x = to_unit(images[:2].to(device)).clone()
        y = () if labels is None else (labels[:2],)
        vae, understood = adapted(model, x, objective.likelihood, *y)
        notes += understood
        with untouched(vae), torch.enable_grad():  # which its code may want
            latent_dim = latent_size(vae, x[:1], *(t[:1] for t in y))
        n, batch_size = len(images), optimizer.batch_size
        probe = _Probe(model, as_vae(vae), objective, x, y, latent_dim)
        found = probe.run({min(batch_size, n, 2), min(n % batch_size, 2)} - {0})
        if found.unsteady:
            notes.append(f"{type(model).__name__} {found.unsteady}: trained eagerly, step by step")
        return cls(
            model, as_vae(vae), images, labels, objective, optimizer, device, latent_dim,
            found.params, x, resident=resident, unsteady=found.unsteady,
            told=tuple(sorted(found.deeds.told)), stored=tuple(sorted(found.deeds.stored)),
            kept=tuple(found.kept), given=given, notes=tuple(notes),
        )  # fmt: skip

    def again(self, batch_size: int | None = None) -> "Problem":
        """The same problem, for a model that has been changed since; raises as :meth:`of`.

        Args:
            batch_size: if that changes too.
        """
        return Problem.of(
            self.model,
            self.images,
            self.objective,
            replace(self.optimizer, batch_size=batch_size or self.batch_size),
            self.device,
            labels=self.labels,
            resident=self.resident,
            given=self.given,
        )


def device_of(model: nn.Module) -> torch.device:
    """Give the device of a model's parameters.

    Raises:
        InputError: it has none, or they hold no values.
    """
    device = next((p.device for p in model.parameters()), None)
    if device is None:
        raise InputError(
            f"{model._get_name()} has no parameters: give a model that has something to train"
        )
    if any(p.is_meta for p in model.parameters()):
        raise InputError(
            f"{model._get_name()} has parameters on device 'meta', which hold no values: "
            "give them some, as by model.to_empty(device='cpu') and an initialisation"
        )
    return device


def _fingerprint(model: nn.Module, vae: EncoderDecoder) -> Fingerprint:
    sources = vae.sources if isinstance(vae, Adapted) else [vae.encode, vae.decode]
    return fingerprint(model, sources)


class _Found(NamedTuple):
    """What a probe finds: the parameters that the loss depends on, and what a step does else.

    ``unsteady`` says why only its own code, run step by step, does what it does, if so; ``kept``
    names what it puts tensors in.
    """

    params: list[Tensor]
    unsteady: str
    kept: list[str]
    deeds: Deeds


class _Probe(NamedTuple):
    """A model to be run forward and backward on a few images."""

    model: nn.Module
    vae: EncoderDecoder
    objective: Objective
    x: Tensor
    y: tuple[Tensor, ...]
    latent_dim: int

    def run(self, sizes: set[int]) -> _Found:
        """Run it on batches of these sizes: some models (batch norm) do not train on one image.

        Raises:
            InputError: it cannot be trained.
        """
        if not any(p.requires_grad for p in self.model.parameters()):
            raise InputError(
                f"every parameter of {type(self.model).__name__} is frozen: set requires_grad on "
                "some"
            )
        for size in sorted(sizes):
            name, images = self.model._get_name(), f"{size} image{'s' * (size > 1)}"
            message = f"{name} cannot be trained on a batch of {images}: it raised"
            with explaining(message), untouched(self.model):
                self.model.train()
                start = _fingerprint(self.model, self.vae)
                self._step(size)  # the tensors that it keeps are there after one
                before, drawn = _fingerprint(self.model, self.vae), others_random()
                with deeds() as found:
                    params = self._step(size)
                after, others = _fingerprint(self.model, self.vae), others_random() != drawn
        unsteady = "draws random numbers that are not torch's" if others else ""
        changed = changes(start.state, before.state, but=before.memory)
        if changed := changed or changes(before.state, after.state):
            what = ", ".join(changed[:3])
            unsteady = f"keeps Python state that changes from step to step ({what})"
        if unsteady or found.told:  # then the next step may use other ones
            params = [p for p in self.model.parameters() if p.requires_grad]
        kept = [name for name, t in after.memory.items() if t != before.memory.get(name)]
        return _Found(params, unsteady, kept, found)

    def _step(self, size: int) -> list[Tensor]:
        """Give the parameters that the loss of a batch depends on.

        A part that is not used to encode and decode (a classifier's head) has no gradient, and an
        optimiser leaves it as it is.
        """
        params: list[Tensor] = [p for p in self.model.parameters() if p.requires_grad]
        eps = torch.zeros(self.objective.noise_shape(size, self.latent_dim), device=self.x.device)
        x, y = self.x[:size].clone(), [t[:size] for t in self.y]
        loss, _, _ = loss_terms(self.vae, self.objective, x, eps, *y)
        grads = torch.autograd.grad(loss, params, allow_unused=True)
        return [p for p, grad in zip(params, grads, strict=True) if grad is not None]
