"""MAGI-1's published files as a directory that its row reads."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SAMPLED = {"chunk_width": "chunk_width", "clean_range": "clean_chunk_kvrange", "clean_t": "clean_t"}
"""Settings of the network here, and what the published `runtime_config` calls them."""
UNREAD = ("model_name", "params_dtype", "cond_gating_ratio")


def directory(weights: str | Path, config: str | Path, out: str | Path) -> Path:
    """Write `out`, which `flowmap.backbone` reads, of a published `inference_weight` directory and its configuration.

    weights: with `model.safetensors.index.json` and shards, which are linked where that is possible and copied where
    not; those of fp8 or of the distilled network are others. config: such as `4.5B_base_config.json`.
    """
    weights, out, said = Path(weights), Path(out), json.loads(Path(config).read_text())
    index = weights / "model.safetensors.index.json"
    if not index.is_file():
        raise FileNotFoundError(f"{weights} has no {index.name}: must be a published `inference_weight` directory")
    names = sorted({*json.loads(index.read_text())["weight_map"].values()})
    if missing := [name for name in names if not (weights / name).is_file()]:
        packed = (weights / f"{missing[0]}.zst").is_file()
        raise FileNotFoundError(f"{weights / missing[0]} is missing{': unpack its .zst' if packed else ''}")
    (out / "transformer").mkdir(parents=True)
    (out / "scheduler").mkdir()
    for k, name in enumerate(names, 1):
        place = out / "transformer" / f"diffusion_pytorch_model-{k:05d}-of-{len(names):05d}.safetensors"
        try:
            os.link(weights / name, place)
        except OSError:  # another disk, or one without links
            shutil.copyfile(weights / name, place)
    schedule = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}
    parts = {"transformer": ["magi", "MagiModel"], "scheduler": ["diffusers", schedule["_class_name"]]}
    _write(out / "scheduler" / "scheduler_config.json", schedule)
    _write(out / "transformer" / "config.json", {"_class_name": "MagiModel", **network(said)})
    _write(out / "model_index.json", {"_class_name": "MagiPipeline", **parts})
    return out


def network(said: Mapping[str, Any]) -> dict[str, Any]:
    """What `MagiModel` is told, of a published configuration."""
    model, runtime = said["model_config"], said["runtime_config"]
    found = {name: value for name, value in model.items() if name not in UNREAD}
    found |= {name: runtime[theirs] for name, theirs in SAMPLED.items()}
    return {**found, "noise_range": max(runtime["noise2clean_kvrange"])}


def _write(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")
