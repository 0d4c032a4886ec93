"""Models trained elsewhere: the state_dicts of danielwang7/MNIST-VAE, as ``torch.save`` wrote them.

Files are read with ``weights_only=True``: tensors come in, code does not.
"""

import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vaebench.errors import InputError
from vaebench.models.conv import ConvVAE

_ADVICE = "give a file written by torch.save(model.state_dict(), path)"


def load_state_dict_from(
    path: str | os.PathLike[str], image_shape: tuple[int, ...] = (1, 28, 28)
) -> ConvVAE:
    """Load a state_dict of danielwang7/MNIST-VAE into a ``conv`` model, on the CPU, in eval mode.

    The latent size is the file's. As in the original, x lies in [0, 1] and images are (B, 1, 28,
    28); ``encode`` takes (B, 28, 28) too.

    Args:
        path: what ``torch.save(model.state_dict(), path)`` wrote.
        image_shape: shape of the images that ``decode`` and ``sample`` give: ``(1, 28, 28)``,
            ``(28, 28)`` or ``(784,)``.

    Raises:
        InputError: no such file, no state_dict, one of another model (the message names the key),
            or a file that holds code.
    """
    path = Path(path)
    state = _read(path)
    head = state.get("fc_mu.weight")
    if head is None:
        raise InputError(f"{path} is no state_dict of MNIST-VAE: fc_mu.weight is missing")
    if head.dim() != 2 or len(head) < 1:
        raise InputError(
            f"{path} does not fit: fc_mu.weight has the shape {tuple(head.shape)}, and not "
            "(latents, 512)"
        )
    model = ConvVAE(image_shape, latent_dim=len(head))
    _check_fits(path, state, model.state_dict())
    model.load_state_dict(state)
    return model.eval()


def _read(path: Path) -> dict[str, Tensor]:
    try:
        value = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror or error}): {_ADVICE}") from error
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path} holds more than tensors, or is damaged: code in files is not run; {_ADVICE}"
        ) from error
    except Exception as error:  # torch raises many kinds at what is not its own
        raise InputError(f"{path} was not written by torch.save, or is damaged: {_ADVICE}") from (
            error
        )
    return _state_dict(path, value)


def _state_dict(path: Path, value: Any) -> dict[str, Tensor]:
    if not isinstance(value, Mapping) or not value:
        raise InputError(f"{path} holds a {type(value).__name__}, no state_dict: {_ADVICE}")
    for key, tensor in value.items():
        if not isinstance(key, str) or not isinstance(tensor, Tensor):
            raise InputError(f"{path} is no state_dict: {key!r} is no tensor; {_ADVICE}")
    return dict(value)


def _check_fits(path: Path, state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    for key, tensor in expected.items():
        if key not in state:
            raise InputError(f"{path} is no state_dict of MNIST-VAE: {key} is missing")
        found = state[key]
        if found.shape != tensor.shape:
            raise InputError(
                f"{path} does not fit: {key} has the shape {tuple(found.shape)}, and not "
                f"{tuple(tensor.shape)}"
            )
        if found.is_floating_point() != tensor.is_floating_point():
            raise InputError(f"{path} does not fit: {key} holds {found.dtype}, not {tensor.dtype}")
    for key in state:
        if key not in expected:
            raise InputError(f"{path} is no state_dict of MNIST-VAE: {key} is none of its keys")
