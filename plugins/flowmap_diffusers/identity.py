"""What tells a pipeline's parts from others.

Of a VAE or a text encoder: the hash of its tensors and of the settings that its output has. Of a transformer: the hash
of its files.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import torch
from flowmap_lora import Lora
from flowmap_lora.files import WHOLE_FILE
from flowmap_lora.roles import INIT
from flowmap_lora.start import CONFIG, located

from .folder import local

TEXT = tuple(f"{part}{number}" for part in ("text_encoder", "tokenizer") for number in ("", "_2", "_3"))
IMAGE = ("image_encoder", "image_processor", "feature_extractor")
PARTS: Mapping[str, tuple[str, ...]] = {"vae": ("vae",), "text": TEXT, "image": IMAGE}
UNSEEN = ("_class_name", "_diffusers_version", "_name_or_path", "transformers_version", "torch_dtype", "dtype")
"""Settings that differ between copies of the same network."""
BESIDE = (WHOLE_FILE, CONFIG)
"""A LoRA file: what else its numbers are made of."""
JSON = ("config.json", "tokenizer.json", "preprocessor_config.json")


def encoders(path: str) -> Mapping[str, str]:
    """sha256 of "vae", "text", "image" of the pipeline at `path`, a directory or a hub id that was downloaded before.

    Without what is not there, so that nothing is compared with it. The tensors are read, the networks not built.
    """
    folder = local(path)
    found = {} if folder is None else {name: _hash(_stamps(folder, parts)) for name, parts in PARTS.items()}
    return {name: value for name, value in found.items() if value is not None}


Stamps = tuple[tuple[str, int, int], ...]


def _stamps(folder: Path, parts: tuple[str, ...]) -> Stamps:
    """The files that matter, with size and time, so that a hash is made once."""
    files = [
        file
        for part in parts
        if (folder / part).is_dir()
        for file in sorted((folder / part).iterdir())
        if file.suffix == ".safetensors" or file.name in JSON
    ]
    return tuple((str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files)


@lru_cache(maxsize=16)
def _hash(files: Stamps) -> str | None:
    """None without weights. Names of files do not matter, so another cut into files is the same network."""
    from safetensors import safe_open

    weights = {Path(name) for name, _, _ in files if name.endswith(".safetensors")}
    if not weights:
        return None
    lines: list[str] = []
    for file in weights:
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118, a file is no mapping
                value = tensors.get_tensor(name)
                digest = hashlib.sha256(value.contiguous().flatten().view(torch.uint8).numpy().data).hexdigest()
                lines.append(f"{name} {value.dtype} {tuple(value.shape)} {digest}")
    for name, _, _ in files:
        if not name.endswith(".safetensors"):
            config = json.loads(Path(name).read_text())
            lines.append(json.dumps({k: v for k, v in config.items() if k not in UNSEEN}, sort_keys=True))
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


def transformer_hash(folder: Path, *more: Path, part: str = "transformer") -> str:
    """Of the files of a pipeline's transformer, and more. part: its name there."""
    files = sorted(p for p in (folder / part).iterdir() if p.suffix in (".safetensors", ".json"))
    return _hash_of([*files, *more])


def with_loras(base: str | None, lora: Lora | None, fuse: str | None) -> str | None:
    """The hash of a network together with the contents of the LoRA files that are put into it."""
    init = None if lora is None else lora.init
    if init is None and fuse is None:
        return base
    parts = [base or ""]
    for owner, path in ((INIT, init), ("fuse", fuse)):
        file = None if path is None else located(path, owner)
        beside = [] if file is None else [more for n in BESIDE if (more := file.with_name(n)).is_file()]
        parts.append("" if file is None else _hash_of([file, *beside]))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _hash_of(files: Sequence[Path]) -> str:
    return _files_hash(tuple((str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files))


@lru_cache(maxsize=8)
def _files_hash(files: tuple[tuple[str, int, int], ...]) -> str:
    found = hashlib.sha256()
    for name, _, _ in files:
        with open(name, "rb") as file:
            found.update(hashlib.file_digest(file, "sha256").digest())
    return found.hexdigest()
