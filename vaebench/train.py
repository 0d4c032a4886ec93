"""``python -m vaebench.train``: see :mod:`vaebench.cli.train`."""

import sys

from vaebench.cli.command import alone
from vaebench.cli.train import main

if __name__ == "__main__":
    sys.exit(alone(main))
