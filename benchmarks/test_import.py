"""What `import flowmap.distill` costs over `import torch`, each in a fresh interpreter."""

from __future__ import annotations

import subprocess
import sys

import pytest

from .paired import Paired

REPEATS, LIMIT = 11, 1.0


def seconds_to_import(name):
    code = f"import time; start = time.perf_counter(); import {name}; print(time.perf_counter() - start)"

    def run(case):
        return float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)

    return run


@pytest.mark.benchmark(group="import_time")
def test_over_torch(benchmark):
    found = Paired.measure(benchmark, seconds_to_import("flowmap.distill"), seconds_to_import("torch"), repeats=REPEATS)
    benchmark.extra_info |= {
        "subject": "import flowmap.distill",
        "reference": "import torch",
        **found.summary(),
        "seconds_over_torch": found.difference,
    }
    assert found.difference <= LIMIT
