"""The directory of a diffusers pipeline around a transformer: what was not trained is carried over, file by file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Mapping
from inspect import signature
from pathlib import Path
from typing import Any

from flowmap_diffusers.folder import downloaded

INDEX = "model_index.json"
CARRIED = (".json", ".safetensors", ".model", ".txt")
"""Suffixes of what a part is read from: no pickles."""


def write(base: str, out: Path, own: Mapping[str, Any], kind: str | None = None, without: Collection[str] = ()) -> None:
    """The pipeline at `base`, a directory or hub id, with the parts `own`, by name, in place of its own.

    kind: the class of pipeline that it becomes, with the parts and settings that this one takes; that of `base`.
    without: parts that are left out.
    The other parts are neither loaded nor rounded, and are in the types in which `base` has them.
    """
    import diffusers

    folder = _local(base)
    index = json.loads((folder / INDEX).read_text())
    kind = kind or index["_class_name"]
    takes = signature(getattr(diffusers, kind).__init__).parameters
    index = {name: value for name, value in index.items() if name in takes}
    for name, part in own.items():
        part.save_pretrained(out / name)
        index[name] = ["diffusers", type(part).__name__]
    for name in index.keys() - own.keys() - {*without}:
        if (folder / name).is_dir():
            _carry(folder / name, out / name)
    about = {"_class_name": kind, "_diffusers_version": diffusers.__version__}
    (out / INDEX).write_text(json.dumps(about | dict(sorted(index.items())), indent=2) + "\n")


def _carry(part: Path, to: Path) -> None:
    to.mkdir(parents=True)
    for file in part.iterdir():
        if file.suffix in CARRIED:
            shutil.copyfile(file, to / file.name)


def _local(base: str) -> Path:
    if Path(base).is_dir():
        return Path(base)
    wanted = [INDEX, *(f"*/*{suffix}" for suffix in CARRIED)]
    return downloaded(base, allow_patterns=wanted, ignore_patterns=["transformer*/*"])
