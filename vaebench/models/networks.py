"""The networks there are by name, and how one is made from what a run folder says of it."""

from collections.abc import Mapping
from typing import Any

from vaebench.errors import InputError
from vaebench.models.conv import ConvVAE
from vaebench.models.mlp import VAE

Network = VAE | ConvVAE
# The names are those of ``vaebench.config.NETWORKS``.
KINDS: Mapping[str, type[VAE] | type[ConvVAE]] = {"mlp": VAE, "conv": ConvVAE}


def make_network(recipe: Mapping[str, Any]) -> Network:
    """Make a network, with fresh weights, from a run folder's ``model`` entry.

    Args:
        recipe: the network's arguments, and its name as ``kind``; without one, ``"mlp"``: run
            folders did not name it when there was only that.

    Raises:
        InputError: there is no such network, or it refuses its arguments.
        TypeError: no mapping, or an argument that the network does not have.
    """
    if not isinstance(recipe, Mapping):
        raise TypeError(f"the model's entry is {recipe!r}: it must be an object")
    kwargs = dict(recipe)
    kind = kwargs.pop("kind", "mlp")
    if kind not in KINDS:
        raise InputError(f"the network is {kind!r}: choose from {', '.join(KINDS)}")
    return KINDS[kind](**kwargs)
