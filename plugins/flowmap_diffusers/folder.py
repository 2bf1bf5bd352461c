"""Where the files of a pipeline are, in a directory or in what was downloaded of the hub."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flowmap.mistaken import CHECKPOINTS, INDEX

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
WEIGHTS: Mapping[str, str] = {
    "transformer": "diffusion_pytorch_model",
    "transformer_2": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
}
"""By part, the name of its files before `.safetensors`, a shard's number and a variant's name."""


def files(folder: Path, part: str = "transformer") -> list[Path]:
    """The weights of a part of the pipeline in `folder`, without those of variants."""
    name = re.compile(rf"{WEIGHTS[part]}(-\d+-of-\d+)?\.safetensors")
    return sorted(file for file in listing(folder / part) if name.fullmatch(file.name))


def local(path: str) -> Path | None:
    """Where the files of a directory or of a hub id that was downloaded before are."""
    if Path(path).exists() or not HUB_ID.fullmatch(path) or Path(path).suffix in CHECKPOINTS:
        return Path(path)
    from huggingface_hub import try_to_load_from_cache

    try:
        index = try_to_load_from_cache(path, INDEX)
    except ValueError:  # it looks like a hub id and is none
        return Path(path)
    return Path(index).parent if isinstance(index, str) else None


def fetch(path: str) -> Path:
    """`local`, where need be with the settings of the parts downloaded, without weights."""
    if (found := local(path)) is not None:
        return found
    return downloaded(path, allow_patterns=[INDEX, "*/*config.json"])


def downloaded(name: str, **patterns: Any) -> Path:
    """The files of a hub id, from there or from an earlier time; a ValueError where they are not to be had."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, **patterns))
    except OSError as error:
        why = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"{name!r} is no directory here, and cannot be fetched from the hub ({type(error).__name__}: {why}): give "
            "a directory, or go online"
        ) from error


def listing(folder: Path) -> list[Path]:
    return [*folder.iterdir()] if folder.is_dir() else []
