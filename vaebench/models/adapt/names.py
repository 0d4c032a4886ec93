"""The names that authors give to mu, to the spread of q(z|x), and to a decoder's output."""

import ast
import inspect
import textwrap
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor
from torch.distributions import Bernoulli, Distribution, Independent, Normal

from vaebench.errors import InputError

# How to get from what a method gave to a part of it: keys, and names of attributes.
Step = tuple[str, Any]
Path = tuple[Step, ...]

# Words that only say of what: z_mean, fc_mu, latent_logvar_layer.
_OF = frozenset(
    "z q x latent posterior enc encoder encode dec decoder fc linear linears layer".split()
)
_OF |= frozenset("head net to out h hidden px qz pz".split())
_ROLES = {
    "mu": "mu mus mean means loc locs embedding",
    "logvar": "logvar logvars logvariance logcovariance logsigma2 logsigmasq logsigmasquared lnvar "
    "lv",
    "logstd": "logstd logstds logsigma logsigmas logscale logstddev logstdev logsd lnsigma lnstd",
    "std": "std stds sigma sigmas scale scales stddev stddevs stdev stdevs sd sds sig sigs "
    "standarddeviation deviation dev",
    "variance": "var vars variance variances sigma2 sigmasq sigmasquared std2",
    "logits": "logits logit",
    "probabilities": "probs prob probabilities probability",
    "recon": "recon recons recx reconx reconstruction reconstructions reconstructed rec hat xhat "
    "output outputs sample decoded generated",
}
_ROLE = {name: role for role, names in _ROLES.items() for name in names.split()}
ENCODERS = (
    "encode", "_encode", "encoder", "enc", "recognition", "inference", "inference_net", "posterior",
)  # fmt: skip
DECODERS = (
    "decode", "_decode", "decoder", "dec", "generator", "generative_net", "generate",
    "observation_model",
)  # fmt: skip
SPREADS = ("logvar", "logstd", "std", "variance")
# What a decoder's parts may be called, the plainest first.
OUTPUTS = ("logits", "probabilities", "recon", "mu")


def role(name: str) -> str | None:
    """What a name says a value is: ``"mu"``, ``"std"`` and so on; None if it says nothing."""
    words = name.lower().strip("_").split("_")
    telling = "".join(word for word in words if word not in _OF)
    return _ROLE.get(telling) or _ROLE.get("".join(words))


def words(text: str, accepted: tuple[str, ...], method: str) -> tuple[str, ...]:
    """Read a caller's list of roles, such as ``"mu, sigma"``; ``_`` stands for anything else.

    Raises:
        InputError: a word that is none of those accepted.
    """
    found = []
    for word in (part.strip() for part in text.split(",")):
        if word.strip("_") and role(word) not in accepted:
            raise InputError(
                f"{method} is {text!r}: {word!r} is none of {', '.join(accepted)}; name what "
                f"{method} gives in its order, _ for what is of no use"
            )
        found.append((role(word) if word.strip("_") else None) or "_")
    return tuple(found)


def parts(value: Any) -> dict[str, Step] | None:
    """The named parts of a dict, a named tuple, a dataclass, a distribution or another object."""
    if isinstance(value, Mapping):
        return {str(key): ("item", key) for key in value if value[key] is not None}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        names = list(value._fields)
    elif is_dataclass(value):
        names = [field.name for field in fields(value)]
    elif isinstance(value, Distribution):
        names = _of_distribution(value)
    elif value is None or isinstance(value, (Tensor, tuple, list, str, int, float)):
        return None
    else:
        names = list(getattr(value, "__dict__", ()))
    return {name: ("attr", name) for name in names if getattr(value, name, None) is not None}


def _of_distribution(value: Distribution) -> list[str]:
    if isinstance(value, Independent):
        return ["base_dist"]
    if isinstance(value, Normal):
        return ["loc", "scale"]
    if isinstance(value, Bernoulli):  # whichever it was made of; the other would be computed
        return ["logits" if "logits" in vars(value) else "probs"]
    return []


def follow(value: Any, path: Path) -> Any:
    """The part of ``value`` that a path leads to."""
    for how, key in path:
        value = value[key] if how == "item" else getattr(value, key)
    return value


def returned_names(method: Any, count: int) -> list[str | None]:
    """What a method's own text calls the ``count`` values that it returns; None where it is silent.

    ``return mu, self.fc_logvar(h)`` says mu and fc_logvar.
    """
    silent: list[str | None] = [None] * count
    tree = _text(getattr(method, "forward", method))
    found = [_names(node.value) for node in ast.walk(tree) if isinstance(node, ast.Return)]
    fitting = [names for names in found if names is not None and len(names) == count]
    return fitting[0] if fitting and all(names == fitting[0] for names in fitting) else silent


def received_names(model: Any, source: str, count: int) -> list[str | None]:
    """What ``forward``'s text calls the values of ``mu, sigma = self.encode(x)``; see above."""
    for node in ast.walk(_text(model.forward)):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
            names = _names(node.targets[0])
            if _name(node.value) == source and names is not None and len(names) == count:
                return names
    return []


def _text(function: Any) -> ast.AST:
    """The syntax of a function, empty if its text is not to be had."""
    try:
        return ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(function))))
    except (OSError, TypeError, SyntaxError, ValueError):
        return ast.Module([], [])


def _names(value: ast.expr | None) -> list[str | None] | None:
    return (
        [_name(item) for item in value.elts] if isinstance(value, (ast.Tuple, ast.List)) else None
    )


def _name(item: ast.expr) -> str | None:
    if isinstance(item, ast.Call):
        item = item.func
    if isinstance(item, ast.Attribute):
        return item.attr
    return item.id if isinstance(item, ast.Name) else None
