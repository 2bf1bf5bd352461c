#!/usr/bin/env bash
# Expected: a .pt2 package of AOTInductor holds the compiled network and its weights, and nothing of the machine it
# was made on, since it is a file to publish.
# Seen: its shared library and the sources beside it hold absolute paths: the folder of the Python environment, and
# the folder of Inductor's cache, which by default is named after the user (/tmp/torchinductor_NAME).
# Hurts: whoever publishes a package, and cares for user or project names; and whoever wants the same bytes from two
# builds.
# Do: compile in a container whose folders and user name may be known, and look into the file before sharing it.
# (A C++ compiler is needed.)
set -euo pipefail
directory=$(mktemp -d)
trap 'rm -rf "$directory"' EXIT
cd "$directory"
python3 -m venv venv
venv/bin/pip install --quiet torch==2.13.0 numpy==2.4.6 setuptools==84.2.1
venv/bin/python - <<'PYTHON'
import getpass
import os
import sys
import tempfile
import zipfile

import torch
from torch._inductor import aoti_compile_and_package
from torch._inductor.runtime.cache_dir_utils import default_cache_dir

print(f"torch {torch.__version__}")
print("default cache names the user:", default_cache_dir().endswith(f"torchinductor_{getpass.getuser()}"))
cache = tempfile.mkdtemp(prefix="name_of_a_user_", dir=os.getcwd())
os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
net = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.SiLU()).eval()
program = torch.export.export(net, (torch.randn(4, 8),))
found = {}
with zipfile.ZipFile(aoti_compile_and_package(program, package_path="net.pt2")) as package:
    for name in package.namelist():
        data = package.read(name)
        found[name] = data.count(cache.encode()), data.count(sys.prefix.encode())
for name, (caches, prefixes) in found.items():
    if caches or prefixes:
        print(f"*{os.path.splitext(name)[1]}: the cache's folder {caches} times, the environment's {prefixes} times")
libraries = [count for name, count in found.items() if name.endswith(".so")]
if not libraries or not any(caches for caches, _ in libraries):
    sys.exit("AOTInductor's packages no longer hold the folders that they were made in.")
PYTHON
