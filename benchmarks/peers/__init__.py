"""What vaebench is measured against, each contender as its own users would run it; a file each.

All get the same arrays, the same initial weights, the same threads and batch size, and but for
``--amp`` float32. Those that can take order and noise are given vaebench's, so that their ELBO must
equal its own; the others draw their own, so that their ELBO is only near. Of the PyTorch peers none
flushes denormals, since their users do not; XLA always does. To add one, write a file with a
``make`` and give it a line in PEERS.
"""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from benchmarks.harness import Child
from benchmarks.rungs import RungError


class Contender(Protocol):
    """Something that trains: ``restore`` to the initial state, then an ``epoch``."""

    def restore(self) -> None:
        """Put the initial weights and optimiser state back."""

    def epoch(self) -> float:
        """Train on ``count`` images; give the mean ELBO, having waited for the device."""


@dataclass(frozen=True)
class Peer:
    """Where a contender is, and what is known of it.

    Args:
        module: of this folder, with ``make(images, count, device, **words) -> Contender``.
        agrees: largest relative difference from vaebench's ELBO: rounding, or other random numbers.
        beside: the contender of vaebench's that it is set beside.
        share: the part of the other peers' images that it is given: its steps take longer.
        flush: whether denormals are flushed.
        words: further arguments of ``make``.
    """

    module: str
    agrees: float = 1e-3
    beside: str = "vaebench"
    share: float = 1.0
    flush: bool = False
    words: Mapping[str, Any] | None = None


# Still thousands of images: of fewer, what an epoch begins with would weigh more than in practice.
CONV_SHARE = 1 / 5
# In the order of the table. The first against itself shows what the instrument cannot tell apart.
PEERS: dict[str, Peer] = {
    "vaebench": Peer("ours", flush=True),
    "vaebench --amp": Peer("ours", 2e-3, flush=True, words={"rung": "amp"}),
    "pytorch/examples": Peer("pytorch_examples", 0.05),
    "eager, resident": Peer("eager"),
    "torch.compile(model)": Peer("eager", words={"compile": True}),
    "jax": Peer("jax_scan"),
    # Another workload. Its loop does not ask for flushing; if anything, it gains by it.
    "danielwang7/MNIST-VAE": Peer("mnist_vae", 5e-3, "vaebench, conv", CONV_SHARE, flush=True),
    "danielwang7/MNIST-VAE, beside --amp": Peer(
        "mnist_vae", 5e-3, "vaebench, conv --plain+compile+amp", CONV_SHARE, flush=True
    ),
}
CONV = "danielwang7/MNIST-VAE"
_CONV = Peer(
    "ours", share=CONV_SHARE, flush=True, words={"workload": "conv", "rung": "plain+compile"}
)
MAIN = tuple(name for name, peer in PEERS.items() if peer.beside == "vaebench")


def peer_of(name: str) -> Peer:
    """Describe a contender; ``vaebench --RUNG`` is vaebench on any rung, as ``vaebench, conv``."""
    if name in PEERS:
        return PEERS[name]
    whose, _, rung = name.partition(" --")
    ours = _CONV if whose == "vaebench, conv" else Peer("ours", flush=True)
    return replace(ours, words={**(ours.words or {}), **({"rung": rung} if rung else {})})


def make(name: str, images: Tensor, count: int, device: torch.device) -> Contender:
    """Build a contender; its first epoch may still compile."""
    peer = peer_of(name)
    module = importlib.import_module(f"benchmarks.peers.{peer.module}")
    contender: Contender = module.make(images, count, device, **(peer.words or {}))
    return contender


class Running:
    """A contender in a process of its own; a context manager, which waits until it is warmed up.

    ``count`` is how many images an epoch has, ``elbo`` that of its warm-up epoch, once it is ready.
    """

    elbo: float

    def __init__(
        self,
        name: str,
        device: str,
        data: str,
        images: int | None,
        count: int,
        limit: float | None = None,
    ) -> None:
        peer = peer_of(name)
        self.count = max(min(count, 200), int(count * peer.share))
        self.child = Child(
            "child:compete",
            {"peer": name, "device": device, "data": data, "images": images,
             "count": self.count, "flush": peer.flush},
            limit=limit,
        )  # fmt: skip
        self.name, self.is_ready = name, False

    def ready(self) -> "Running":
        """Wait until it is warmed up; one that cannot be is ended.

        Raises:
            RungError: it is one of vaebench's, and not what its name says.
            ChildError: it does not run.
        """
        if self.is_ready:
            return self
        try:
            answer = self.child.answer()
            if answer["refused"]:
                raise RungError(f"{self.name}: {answer['refused']}")
        except BaseException:
            self.close()
            raise
        self.elbo, self.is_ready = answer["elbo"], True
        return self

    def __enter__(self) -> "Running":
        return self.ready()

    def __exit__(self, *_: object) -> None:
        self.close()

    def restore(self) -> None:
        """Have its start put back, and wait."""
        self._do("restore")

    def epoch(self) -> None:
        """Have it train an epoch, and wait."""
        self._do("epoch")

    def _do(self, word: str) -> None:
        self.child.tell(word)
        self.child.answer()

    def close(self) -> None:
        """Let it end."""
        self.child.close()
