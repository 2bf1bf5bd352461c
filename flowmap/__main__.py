"""python -m flowmap, also under torchrun."""

from __future__ import annotations

import os
import sys

from .cli import main

if __name__ == "__main__":
    code = main()
    if "RANK" in os.environ:
        from .training.ranks.distributed import leave

        leave(code)
    sys.exit(code)
