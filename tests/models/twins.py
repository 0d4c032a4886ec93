"""Another's model beside the plain one, with the same weights; see ``test_adapt_others.py``."""

from typing import Any

import torch
from torch import Tensor, nn

from tests.models import others
from tests.models.others import Plain
from vaebench.models.adapt import Adapted, adapt, adapted
from vaebench.objective import Objective, loss_terms


def twins(kind: type[nn.Module]) -> tuple[nn.Module, Plain]:
    """A model and the plain one, with the same weights."""
    plain = Plain()
    torch.manual_seed(1)
    with torch.no_grad():
        for p in plain.parameters():
            p.copy_(0.2 * torch.randn(p.shape))
    model = kind()
    for part in (model.Encoder, model.Decoder) if isinstance(model, others.Parts) else (model,):
        with torch.no_grad():
            for name, p in _by_role(part).items():
                p.copy_(dict(plain.named_parameters())[name])
    return model, plain


def _by_role(model: nn.Module) -> dict[str, nn.Parameter]:
    """A model's parameters by the names that they have in the plain one."""
    renamed = {"fc_mu": "mean", "fc_var": "spread", "encoder.0": "fc1", "decoder.0": "fc3"}
    renamed |= {"decoder.2": "fc4"}
    found = {}
    for name, p in model.named_parameters():
        layer, _, kind = name.rpartition(".")
        found[f"{renamed.get(layer, layer)}.{kind}"] = p
    return found


def brought_in(model: nn.Module, x: Tensor, likelihood: str = "bernoulli") -> Any:
    said = getattr(model, "said", {})
    return adapted(adapt(model, **said) if said else model, x, likelihood)[0]


def terms(model: Any, x: Tensor, **kwargs: Any) -> list[Tensor]:
    """Recon and kl of each image, and the gradients of the loss, by names of the plain model."""
    eps = torch.randn(len(x), others.LATENTS, generator=torch.Generator().manual_seed(2))
    loss, recon, kl = loss_terms(model, Objective(**kwargs), x, eps)
    inner = model.model if isinstance(model, Adapted) else model
    params: dict[str, Any] = {}
    if isinstance(inner, others.Parts):
        params = (
            _by_role(inner.Decoder)
            | {  # each half trains its own layers
                name: p
                for name, p in _by_role(inner.Encoder).items()
                if name[:3] not in ("fc3", "fc4")
            }
        )
    else:
        params = _by_role(inner)
    used = [params[name] for name, _ in Plain().named_parameters()]
    return [recon, kl, *torch.autograd.grad(loss, used)]
