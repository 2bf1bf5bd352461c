"""What is wrong with the directory of a pipeline, seen before anything of it is loaded: each a clause.

Everything there that changes the function and that nobody here reads is refused by name: a second expert taken for one
is another model, and nothing in its training would say so.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowmap.mistaken import ADAPTERS, EXPORT, FUSE, INDEX, read, what
from flowmap.validators import article, listed

from .folder import WEIGHTS, files, listing

if TYPE_CHECKING:
    from .row import Row

PARTS = re.compile(
    r"transformer|scheduler|vae|guider|image_encoder|image_processor|feature_extractor|(text_encoder|tokenizer)(_\d)?"
)
"""Of a pipeline, that the codec holds or that change nothing of what a prompt alone gives."""
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".gguf")
PLAIN = frozenset({"F64", "F32", "F16", "BF16"})
"""As what a weight can stand in a file; any other needs the scales of whoever quantised it."""


def wrong(folder: Path, row: Row, family: str) -> Iterator[str]:
    """Of a directory that is to be `family`'s."""
    if not (folder / INDEX).is_file():
        yield (
            what(folder)
            or f"has no {INDEX}; must be the directory of a diffusers pipeline, or a hub id such as "
            f"{row.hub or 'OWNER/NAME'!r}"
        )
        return
    if (steps := read(folder / EXPORT).get("sampler", {}).get("steps")) is not None:
        yield f"is an export for {steps} steps, which knows no others: give the student that it was made of"
    index, config = read(folder / INDEX), read(folder / "transformer" / "config.json")
    yield from missing(folder, ("transformer", "scheduler"))
    if (kind := config.get("_class_name")) != row.transformer:
        yield (
            f"its transformer is {article(str(kind))}, and {family!r} is {article(row.transformer)}; "
            "flowmap.backbone(path) takes the right family"
        )
    yield from unread(index, row)
    if config.get("image_dim") is not None and (index.get("image_encoder") or [None])[-1] is None:
        yield "its transformer hears the features of an image (image_dim), and it has no image_encoder to make them"
    yield from quantised(config)
    yield from weights(folder, "transformer", row.pipeline)
    yield from beside(folder)
    yield from tensors(files(folder))


def unread(index: Mapping[str, Any], row: Row) -> Iterator[str]:
    """What `model_index.json` names beyond what the pipeline of the row has."""
    if (kind := index.get("_class_name")) not in (row.pipeline, *row.also):
        yield f"is {article(str(kind))}: must be {article(row.pipeline)}"
        return
    for name, value in row.index.items():
        if (index.get(name) or None) != value:
            yield f"its {INDEX} has {name} = {index.get(name)!r}: must be {value!r}"
            return
    more = [
        f"{name} ({value[-1]})"
        for name, value in index.items()
        if isinstance(value, list) and value[-1] is not None and not PARTS.fullmatch(name)
    ]
    if more:
        yield (
            f"its {kind} has {' and '.join(more)}, which flowmap does not read, so its teacher would be another model: "
            "give a pipeline of one transformer"
        )


def quantised(config: Mapping[str, Any]) -> Iterator[str]:
    if (how := config.get("quantization_config")) is not None:
        method = how.get("quant_method", "unknown") if isinstance(how, dict) else how
        yield f"its transformer is quantised ({method}): give the one that it was made of, in bfloat16 or float32"


def missing(folder: Path, parts: Collection[str]) -> Iterator[str]:
    for part in parts:
        told = {"tokenizer": "", "scheduler": "/scheduler_config.json"}.get(part, "/config.json")
        if not (folder / f"{part}{told}").exists():
            yield (
                f"has no {part}{told}: must be the directory of a whole diffusers pipeline, whose other parts a "
                "student is saved with"
            )


def weights(folder: Path, part: str, pipeline: str) -> Iterator[str]:
    if files(folder, part):
        return
    there = listing(folder / part)
    found = (re.search(r"\.([\w-]+?)(-\d+-of-\d+)?\.safetensors$", file.name) for file in there)
    if variants := sorted({match[1] for match in found if match}):
        yield (
            f"the weights of its {part} are of the variant {listed(variants)}: save them without, "
            f"`{pipeline}.from_pretrained(DIR, variant={variants[0]!r}).save_pretrained(NEW)`, and give NEW"
        )
    elif pickles := [file.name for file in there if file.suffix in PICKLES]:
        yield (
            f"the weights of its {part} are in {pickles[0]}, which is not read: save the pipeline with diffusers' "
            "`save_pretrained`, which writes safetensors"
        )
    else:
        yield f"its {part} has no weights: there is no {part}/{WEIGHTS[part]}.safetensors"


def beside(folder: Path, part: str = "transformer") -> Iterator[str]:
    """Adapters that nothing loads."""
    for place in (folder, folder / part):
        for name in ADAPTERS:
            if (place / name).is_file():
                yield (
                    f"{(place / name).relative_to(folder)} is an adapter that is not fused, which is not read: fuse it "
                    f"and give what is saved then, {FUSE}; or move it away to do without"
                )


def tensors(weights: Collection[Path]) -> Iterator[str]:
    """What only the files' headers say: peft's layers, numbers that need a scale."""
    from safetensors import SafetensorError, safe_open

    for file in weights:
        try:
            with safe_open(file, framework="pt") as opened:
                names = [*opened.keys()]
                types = {opened.get_slice(name).get_dtype(): name for name in names}
        except SafetensorError:
            return  # who reads it says what is wrong with it
        if any(".lora_A." in name or ".base_layer." in name for name in names):
            yield (
                f"{file.parent.name}/{file.name} has adapters that are not fused: load the pipeline, "
                "`pipe.fuse_lora()`, `pipe.unload_lora_weights()`, `pipe.save_pretrained(DIR)`, and give DIR"
            )
        if strange := sorted(types.keys() - PLAIN):
            yield (
                f"{file.parent.name}/{file.name} has {types[strange[0]]} as {strange[0]}: the weights are quantised; "
                "give those that they were made of, in bfloat16 or float32"
            )
