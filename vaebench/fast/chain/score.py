"""Log p(x|z) of many z by the native kernel: decoder and likelihood in one pass over tiles.

An importance-weighted estimate decodes thousands of z for each image, and wants one number of each
z. A library writes all pixels' logits to memory and reads them again, several times; here
(``native_score.h``) a tile of them stays in registers until its likelihood has been added up, and
threads take blocks of images, so that they never wait for one another.

It is C++, built in seconds when it is first used; the CPU only.
"""

from ctypes import byref

import torch
from torch import Tensor, nn

from vaebench.data.images import to_unit
from vaebench.fast.chain.kernel import ALIGNMENT, LIKELIHOODS, describe, kernel
from vaebench.fast.chain.layers import Chain
from vaebench.fast.chain.read import as_numbers, read_of
from vaebench.models.protocol import EncoderDecoder, is_altered
from vaebench.objective import Objective

ROWS = 128  # images of a block, as sparse.h has it


class Scores:
    """Scores z by the kernel.

    Args:
        chain: the model's layers; float32, on the CPU.
        objective: of a likelihood that the kernel knows.
        images: (N, ...) uint8 or float32.
        labels: (N, ...) that the decoder takes too, if it does.

    Raises:
        vaebench.system.toolchain.CompileError: the kernel cannot be built.
    """

    def __init__(
        self, chain: Chain, objective: Objective, images: Tensor, labels: Tensor | None
    ) -> None:
        self.net = describe(chain, objective)
        self.keep = chain  # the kernel goes by addresses
        self.labels = None if labels is None else as_numbers(labels, chain.labels)
        pixels = images.flatten(1)
        whole = pixels.new_zeros(-(-len(pixels) // ROWS) * ROWS, pixels.shape[1])
        whole[: len(pixels)] = pixels
        blocks = whole.unflatten(0, (-1, ROWS))
        self.pixels = blocks.transpose(1, 2).contiguous()  # (blocks, D, ROWS)
        self.threads = torch.get_num_threads()
        floats = self.threads * kernel().vaebench_native_score_workspace(byref(self.net))
        workspace = torch.empty(floats + ALIGNMENT // 4)
        self.workspace = workspace[-workspace.data_ptr() % ALIGNMENT // 4 :]

    def __call__(self, z: Tensor) -> Tensor:
        """Log p(x|z), (N,), of a z for each image, (N, Z)."""
        if self.labels is not None:
            z = torch.cat([z, self.labels], 1)
        z, recon = z.float().contiguous(), torch.empty(len(z))
        kernel().vaebench_native_scores(
            byref(self.net),
            self.workspace.data_ptr(),
            len(z),
            self.pixels.element_size(),
            *(t.data_ptr() for t in (self.pixels, z, recon)),
            self.threads,
        )
        return recon


def scores_of(
    model: nn.Module,
    vae: EncoderDecoder,
    objective: Objective,
    images: Tensor,
    labels: Tensor | None,
    latent_dim: int,
) -> Scores | None:
    """Give the kernel for a model as it is; None if it is not for it, or cannot be built.

    Args:
        model: whose modes stay as they are.
        vae: what encodes and decodes: the model, or an adapter around it.
        objective: the likelihood.
        images: (N, ...).
        labels: (N, ...) or None.
        latent_dim: Z.
    """
    plain = images.device.type == "cpu" and images.dtype in (torch.uint8, torch.float32)
    if not plain or objective.likelihood not in LIKELIHOODS:
        return None
    if any(is_altered(module) for module in model.modules()):
        return None
    x = to_unit(images[:2]).clone()
    y = () if labels is None else (labels[:2],)
    try:
        chain = read_of(model, vae, x, y, latent_dim)
        if chain is None or not all(_is_plain(p) for each in chain.in_order() for p in each[:2]):
            return None
        return Scores(chain, objective, images, labels)
    except torch.OutOfMemoryError:
        raise
    except Exception:  # whatever a model may be: it can score itself
        return None


def _is_plain(param: Tensor) -> bool:
    return param.dtype == torch.float32 and param.is_contiguous()
