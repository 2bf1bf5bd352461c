#!/usr/bin/env bash
# Expected: `pipe.encode_prompt(text)` gives what `pipe(text)` uses, so that embeddings can be stored once.
# Seen: in the pipelines of Wan, SkyReels-V2 and Helios, `max_sequence_length` is 226 by default in `encode_prompt`
# and 512 in `__call__`. Shorter texts are padded with zeros up to it, and these networks attend to the zeros: they
# take no mask.
# Hurts: whoever stores text embeddings for a training: the network is trained on another length than it samples
# with.
# Do: pass `max_sequence_length=512` to `encode_prompt`.
set -euo pipefail
directory=$(mktemp -d)
trap 'rm -rf "$directory"' EXIT
cd "$directory"
python3 -m venv venv
venv/bin/pip install --quiet torch==2.13.0 diffusers==0.42.1 transformers==5.24.0 accelerate==1.15.0
venv/bin/python - <<'PYTHON'
import inspect
import sys

import diffusers
import torch

print(f"diffusers {diffusers.__version__}, torch {torch.__version__}")
names = ("WanPipeline", "WanVACEPipeline", "SkyReelsV2Pipeline", "SkyReelsV2DiffusionForcingPipeline", "HeliosPipeline")
seen = set()
for name in names:
    pipe = getattr(diffusers, name)
    lengths = tuple(inspect.signature(method).parameters["max_sequence_length"].default
                    for method in (pipe.encode_prompt, pipe.__call__))
    print(f"{name}: encode_prompt {lengths[0]}, __call__ {lengths[1]}")
    seen.add(lengths)
for name in ("WanTransformer3DModel", "SkyReelsV2Transformer3DModel", "HeliosTransformer3DModel"):
    arguments = inspect.signature(getattr(diffusers, name).forward).parameters
    print(f"{name}.forward takes a mask:", any("mask" in argument for argument in arguments))
if seen != {(226, 512)}:
    sys.exit("encode_prompt and __call__ no longer differ in their default of max_sequence_length.")
PYTHON
