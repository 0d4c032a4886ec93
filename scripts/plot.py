"""Draw pictures of a training, without a display: ``python scripts/plot.py RUN [KIND ...]``.

The same as ``python -m vaebench plot``: see :mod:`vaebench.cli.plot`.
"""

import sys

from vaebench.cli.plot import main

if __name__ == "__main__":
    sys.exit(main())
