"""One thread: the networks here are so small that threads cost more than they save."""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start, too

import torch  # noqa: E402

torch.set_num_threads(1)

pytest_plugins = ["pytester"]
