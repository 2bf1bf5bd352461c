"""CPU seconds until a command has answered, and of the imports, beside another checkout.

python -m benchmarks.startup --other DIR [--out FILE]
"""

from __future__ import annotations

import argparse
from pathlib import Path

from .against import beside, write

COMMANDS = r"""
import json, os, subprocess, sys, tempfile
from pathlib import Path

def seconds(*call):
    before = os.times()
    subprocess.run([sys.executable, *call], check=True, capture_output=True)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system

with tempfile.TemporaryDirectory() as run:
    (Path(run) / "status.json").write_text(json.dumps({"state": "finished", "host": "here", "pid": 1}))
    torch = seconds("-c", "import torch")
    every = "import flowmap\nfor name in flowmap.__all__: getattr(flowmap, name)"
    print(json.dumps({
        "flowmap --help": seconds("-m", "flowmap", "--help"),
        "flowmap status": seconds("-m", "flowmap", "status", run),
        "flowmap plugins": seconds("-m", "flowmap", "plugins"),
        "import flowmap": seconds("-c", "import flowmap"),
        "import torch": torch,
        "every public name, over torch": seconds("-c", every) - torch,
    }))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--other", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/startup.json"))
    options = parser.parse_args()
    write(options.out, options.other, beside(options.other.resolve(), COMMANDS, rounds=options.rounds))


if __name__ == "__main__":
    main()
