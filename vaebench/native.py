"""Native kernels, built by the toolchain that torch.compile uses."""

from functools import cache
from pathlib import Path
from typing import Any


@cache
def load_kernels(source: Path) -> Any:
    """Build a C++ source, or find it built, in torch's cache of compiled code; give its functions.

    Raises:
        torch._inductor.exc.CppCompileError and others: it cannot be built.
    """
    # Imported here: it takes longer than the rest of torch.
    from torch._inductor.codecache import CppCodeCache

    text = source.read_text(encoding="utf-8")
    return CppCodeCache.load(text, extra_flags=("-ffp-contract=fast", "-fopenmp"))
