"""What stands at a path that was given for a backbone and is none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .validators import article

RUN, EXPORT = "status.json", "manifest.json"
"""Files by which a directory is known that is taken for a student's."""
INDEX, MODULAR = "model_index.json", "modular_model_index.json"
"""What a diffusers pipeline consists of, in a file of its directory."""
ADAPTERS = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors", "adapter_config.json")
"""Files of a LoRA as diffusers and peft write them."""
CHECKPOINTS = (".safetensors", ".gguf", ".ckpt", ".pt", ".pth", ".bin", ".sft")
FUSE = "`pipe.load_lora_weights(...)`, `pipe.fuse_lora()`, `pipe.unload_lora_weights()`, `pipe.save_pretrained(DIR)`"


def what(path: Path) -> str | None:
    """A clause with what to do, such as `is a run: its student is 'runs/x/student'`.

    None where there is nothing, or what nobody knows.
    """
    if path.is_file():
        return _file(path)
    if (path / "student").is_dir():
        return f"is a run: its student is {str(path / 'student')!r}"
    if (path / RUN).is_file():
        return f"is a run that has not finished: it has no student yet; `flowmap status {path}` says how it goes"
    if (path / INDEX).is_file():
        return None
    if (path / EXPORT).is_file():
        return "is an export, not a student: give the student that it was made of"
    if any((path / name).is_file() for name in ADAPTERS):
        return _adapter(path)
    if (path / MODULAR).is_file():
        return "is a modular pipeline of diffusers: save it as an ordinary one, with a model_index.json"
    return _component(path)


def _file(path: Path) -> str:
    if path.suffix in CHECKPOINTS:
        return (
            "is a checkpoint in one file: give the directory of a diffusers pipeline; `flowmap import` makes one of "
            "Wan's, diffusers' `from_single_file` and the pipeline's `save_pretrained` of others'"
        )
    return "is a file, not a student's directory"


def _adapter(path: Path) -> str:
    if (path.parent / INDEX).is_file():
        return f"is the adapters of {path.parent}, which has them fused: give that directory"
    return f"is an adapter and no network: fuse it into its base and give that directory: {FUSE}"


def _component(path: Path) -> str | None:
    """Of a pipeline, given on its own."""
    if (kind := read(path / "config.json").get("_class_name")) is None:
        return None
    if (path.parent / INDEX).is_file():
        return f"is the {path.name} of a pipeline: give the pipeline's directory, {str(path.parent)!r}"
    return f"is {article(str(kind))} alone: give the directory of a diffusers pipeline that has it"


def read(file: Path) -> dict[str, Any]:
    """What a JSON file holds; nothing, where it is not there. A ValueError where it is no JSON object."""
    if not file.is_file():
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file}: is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{file}: is {article(type(found).__name__)}: must be a JSON object")
    return found
