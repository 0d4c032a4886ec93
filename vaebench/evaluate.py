"""``python -m vaebench.evaluate``: see :mod:`vaebench.cli.evaluate`.

Importing this module would put it in the place of the function of this name, and is refused.
"""

if __name__ != "__main__":
    raise ImportError(
        "vaebench.evaluate is a function: from vaebench import evaluate; this module is the "
        "command python -m vaebench.evaluate, and is not to be imported"
    )

import sys

from vaebench.cli.command import alone
from vaebench.cli.evaluate import main

sys.exit(alone(main))
