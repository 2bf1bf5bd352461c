"""One thread: the networks here are so small that threads cost more than they save."""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start, too

import torch
from hypothesis import settings

torch.set_num_threads(1)
torch.set_warn_always(True)  # a warning given once a process fails whichever test comes first

pytest_plugins = ["pytester"]

# Loaded machines are slow machines: no test fails for the time one example took.
settings.register_profile("flowmap", deadline=None, max_examples=30, derandomize=True)
settings.load_profile("flowmap")
