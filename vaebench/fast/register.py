"""The register of techniques: one line each, in the order in which they are tried. No torch here.

From this list alone come the fields of :class:`vaebench.config.FastConfig`, the command line's
switches and their help, the order of admission, the ladder's rungs, the rows of the GPU's report,
the cases of the equivalence tests and the table in ``vaebench/fast/README.md``. A technique is its
line here and its file or folder; without both, everything else goes on working, but for what needs
it, which then is left out too.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Technique:
    """One way to be fast.

    Args:
        name: its one word: field, switch, rung and row are called so.
        help: what it does, in a line.
        devices: kinds of device on which it can do anything.
        default: the value of its field; False or None: it must be asked for.
        needs: the technique that it does nothing without.
        kind: ``"engine"``: it makes an engine of the one below; ``"part"``: a change of the step
            that is tried within the technique it needs; ``"thread"``: a setting of threads.
        option: further keyword arguments of the command line's option, if it is no plain switch.
        exact: whether the results are those without it, to the bit.
        rounds: whether products are rounded more than float32's; results then say so.
        idle: what a result says of it where it does not run.
    """

    name: str
    help: str
    devices: tuple[str, ...] = ("cpu", "cuda")
    default: bool | None = True
    needs: str | None = None
    kind: str = "engine"
    option: Mapping[str, Any] = field(default_factory=dict)
    exact: bool = False
    rounds: bool = False
    idle: bool | str = False

    @property
    def module(self) -> str:
        """Where it lives."""
        return f"vaebench.fast.{self.name}"

    @property
    def flag(self) -> str:
        """Its switch."""
        return "--" + self.name.replace("_", "-")

    @property
    def where(self) -> str:
        """On which devices, and with what, in words that follow ``help``."""
        only = f"; on {self.devices[0].upper().replace('CPU', 'the CPU')}"
        return (f"; with --{self.needs}" if self.needs else "") + only * (len(self.devices) == 1)


CPU, CUDA = ("cpu",), ("cuda",)
AMP_MODES = ("auto", "bf16")
_AMP = {"nargs": "?", "const": "auto", "metavar": "auto|bf16"}

# fmt: off
_ALL = (
    Technique("flush_denormal", "treat denormal numbers as zero", CPU, kind="thread"),
    Technique("tf32", "float32 products with factors of 10 bits; faster, not equal to float32", CUDA, default=False, rounds=True),
    Technique("triton", "compile the fully connected network by six Triton kernels a step", CUDA, needs="compile"),
    Technique("joint_update", "update all parameters by one Triton kernel, where that pays", CUDA),
    Technique("amp", "autocast: auto (the default of the bare flag) uses bf16 where this device gains from it by measurement; bf16 forces it", default=None, option=_AMP, rounds=True, idle="float32"),
    Technique("products", "convolve small images by kernels, where that pays", CPU),
    Technique("batch_norm", "compute batch norm and the activation after it in two passes, where that pays", CPU, needs="products"),
    Technique("tape", "call a step's operators from a list, past Python and autograd, where that pays", CPU, needs="products", exact=True),
    Technique("native", "compile the fully connected network by a kernel written for it", CPU, needs="compile"),
    Technique("sparse", "let the first layer leave out dark pixels where they are many", CPU, needs="compile", kind="part"),
    Technique("fused_likelihood", "compute a Bernoulli likelihood and its gradient in one pass", CPU, needs="compile", kind="part"),
    Technique("compile", "compile the whole training step into one graph", default=False),
    Technique("graph", "replay many steps at once from a CUDA graph, where that is measured to pay", CUDA, exact=True),
)
# fmt: on
TECHNIQUES = tuple(t for t in _ALL if t.needs is None or t.needs in {each.name for each in _ALL})
