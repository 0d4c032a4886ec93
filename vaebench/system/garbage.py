"""When garbage is collected."""

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def no_collection() -> Iterator[None]:
    """Collect no garbage meanwhile.

    What frees memory of a device would end a recording; and what is called after each collection
    would be taken for a part of what is watched.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
