"""Whether this process was forked off another, whose threads it does not have. No torch here."""

import os

_forks: list[int] = []
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: _forks.append(os.getpid()))


def forked() -> bool:
    """Whether it was, after vaebench was imported."""
    return os.getpid() in _forks
