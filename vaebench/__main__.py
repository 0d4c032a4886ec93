"""``python -m vaebench COMMAND``, and the console script ``vaebench``: the door to all commands."""

import sys
from importlib import import_module

from vaebench import __version__
from vaebench.cli.command import alone, run
from vaebench.errors import InputError

# Each is the module of this name in vaebench/cli, whose ``main`` takes the arguments after it.
COMMANDS = {
    "train": "train a VAE on MNIST-like images, fast; writes a run folder",
    "evaluate": "estimate a run's log-likelihood, with everything that it depends on",
    "verify": "hold every fast path to plain eager PyTorch, on this machine",
    "plot": "draw pictures of a run: manifold, samples, curves and others",
}


def main(argv: list[str] | None = None) -> int:
    """Run the command that the first argument names; give its exit status."""
    argv = sys.argv[1:] if argv is None else argv
    if argv and argv[0] in COMMANDS:
        status: int = import_module(f"vaebench.cli.{argv[0]}").main(argv[1:])
        return status
    return run(_answer, argv, interrupted="interrupted")


def _answer(argv: list[str]) -> int:
    """Say what there is, to whoever names no command."""
    if argv in (["-h"], ["--help"]):
        print("usage: vaebench COMMAND [options]\n")
        print("\n".join(f"  {name:10}{what}" for name, what in COMMANDS.items()))
        print("\nvaebench COMMAND --help lists a command's options; --version tells the version.")
        return 0
    if argv == ["--version"]:
        print(f"vaebench {__version__}")
        return 0
    named = f"{argv[0]!r} is no command" if argv else "a command is missing"
    raise InputError(f"{named}: choose from {', '.join(COMMANDS)} (--help says what each does)")


def entry() -> int:
    """Be the console script."""
    return alone(main)


if __name__ == "__main__":
    sys.exit(entry())
