"""LoRA files of others and of one's own, as a start: of a student's adapters, or added into the base of every role.

    W x + s B A x,     s = alpha / rank

of each layer that the file names. Layouts: diffusers' (`transformer.`), peft's (`base_model.model.`), and whatever the
LoRA loader of the family's pipeline in diffusers turns into its own, such as ComfyUI's (`diffusion_model.`).
"""

from __future__ import annotations

import json
import re
import struct
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from flowmap.model import Rows

Pairs: TypeAlias = "Mapping[str, tuple[Tensor, Tensor]]"
"""(A [rank, in], s B [out, rank]) by layer."""
Copies: TypeAlias = Mapping[str, tuple[str, ...]]
"""The layers of a lifted network that are copies of one of the plain network, by the name of that."""

LORA_FILE = "pytorch_lora_weights.safetensors"
PLACES = (LORA_FILE, f"lora/{LORA_FILE}", "adapter_model.safetensors")
"""In a directory: diffusers', a student's, peft's."""
CONFIG = "adapter_config.json"
PREFIXES = re.compile(r"^(base_model\.model\.|transformer\.|diffusion_model\.)+")
PART = re.compile(r"(.+)\.(?:lora_|lora\.)(A|B|down|up)(?:\.(?!weight)\w+)?\.weight")
FIRST = ("A", "down")
MORE = re.compile(r"dora|magnitude|\.diff(_b)?$|\.bias$")
"""What a layout may have beside pairs, and some loaders leave out."""


def located(path: str, owner: str) -> Path:
    """The file at `path`, which may be the directory that it is in; a ValueError where there is none."""
    there = Path(path)
    if there.is_dir():
        there = next((file for name in PLACES if (file := there / name).is_file()), there)
    if not there.is_file() or there.suffix != ".safetensors":
        raise ValueError(
            f"{owner} = {path!r}: {'has no' if there.is_dir() else 'is no'} LoRA file: must be a .safetensors file, or "
            f"a directory with one of {', '.join(PLACES)}"
        )
    return there


def said(file: Path) -> dict[str, Any]:
    """What the file, or the settings beside it, tells peft: r, lora_alpha, rank_pattern, alpha_pattern."""
    if file.with_name(CONFIG).is_file() and file.name == PLACES[-1]:
        found: dict[str, Any] = json.loads(file.with_name(CONFIG).read_text())
        return found
    found = json.loads(_header(file).get("__metadata__", {}).get("lora_adapter_metadata", "{}"))
    return {PREFIXES.sub("", name): value for name, value in found.items()}


def usual(path: str, owner: str) -> tuple[int, float]:
    """(rank, alpha) that most of the layers have; alpha is the rank where nothing says so. Reads the head alone."""
    file = located(path, owner)
    ranks = Counter(
        value["shape"][0]
        for name, value in _header(file).items()
        if (part := PART.fullmatch(name)) and part[2] in FIRST
    )
    if not ranks:
        raise ValueError(f"{owner} = {path!r}: has no layer with lora_A or lora_down: is no LoRA")
    rank = int(ranks.most_common(1)[0][0])
    about = said(file)
    return rank, float(about["lora_alpha"] / about["r"] * rank) if "lora_alpha" in about else float(rank)


def _header(file: Path) -> dict[str, Any]:
    with open(file, "rb") as opened:
        (size,) = struct.unpack("<Q", opened.read(8))
        found: dict[str, Any] = json.loads(opened.read(size))
    return found


def pairs(path: str, net: nn.Module, pipeline: str, owner: str, copies: Copies) -> Pairs:
    """Of the file at `path`, float32, for the linear layers of `net`, which may be on the meta device.

    pipeline: the class of diffusers whose loader knows the other layouts. copies: each has the pair of the plain layer,
    but for those that the file names. A ValueError where the file has more than pairs, a layer that `net` has not, or
    one of another size.
    """
    from safetensors.torch import load_file
    from torch import nn

    file = located(path, owner)
    tensors = {PREFIXES.sub("", name): value for name, value in load_file(file).items()}
    if more := sorted(name for name, value in tensors.items() if MORE.search(name) and value.any()):
        raise ValueError(f"{owner} = {path!r}: has {more[0]}, which is no A or B of a linear layer: cannot be read")
    layers = {n.replace(".base_layer", ""): m for n, m in net.named_modules() if isinstance(m, nn.Linear)}
    plain = {name: layers[into[0]] for name, into in copies.items()} | layers
    if not all((part := PART.fullmatch(name)) and part[1] in plain for name in tensors if not name.endswith(".alpha")):
        tensors = _converted(file, pipeline, f"{owner} = {path!r}") or tensors
    found: dict[str, dict[bool, Tensor]] = {}
    for name, value in tensors.items():
        part = PART.fullmatch(name)
        if part is None and not name.endswith(".alpha"):
            raise ValueError(f"{owner} = {path!r}: has {name}, which is no A or B of a linear layer: cannot be read")
        if part is not None:
            found.setdefault(part[1], {})[part[2] in FIRST] = value.float()
    about, made = said(file), {}
    for name in ("use_dora", "lora_bias"):
        if about.get(name):
            raise ValueError(f"{owner} = {path!r}: has {name}, which is not read: must be plain LoRA")
    for layer, two in found.items():
        wanted = plain.get(layer)
        shape = [tuple(two[first].shape) if first in two else None for first in (True, False)]
        if wanted is None:
            raise ValueError(
                f"{owner} = {path!r}: its {layer} is no linear layer of {type(net).__name__}: was it made for another "
                f"network? There are {', '.join([*layers][:4])} and {max(0, len(layers) - 4)} more"
            )
        rank = shape[0][0] if shape[0] else 0
        if shape != [(rank, wanted.in_features), (wanted.out_features, rank)]:
            raise ValueError(
                f"{owner} = {path!r}: its {layer} has A {shape[0]} and B {shape[1]}: must be (rank, "
                f"{wanted.in_features}) and ({wanted.out_features}, rank), as in {type(net).__name__}"
            )
        scale = _scale(layer, rank, about, tensors)
        made[layer] = two[True], two[False] if scale == 1.0 else scale * two[False]
    copied = {copy: made[name] for name, into in copies.items() if name in made for copy in into}
    return copied | {layer: pair for layer, pair in made.items() if layer in layers}


def _scale(layer: str, rank: int, about: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> float:
    """alpha / rank, with the patterns as peft matches them."""
    if (alpha := tensors.get(f"{layer}.alpha")) is not None:
        return float(alpha) / rank
    if "lora_alpha" not in about:
        return 1.0
    own = about.get("alpha_pattern", {})
    given = next((own[key] for key in own if re.match(rf"(.*\.)?({PREFIXES.sub('', key)})$", layer)), None)
    return float(about["lora_alpha"] if given is None else given) / (rank**0.5 if about.get("use_rslora") else rank)


def _converted(file: Path, pipeline: str, owner: str) -> dict[str, Tensor] | None:
    """By the loader of the pipeline, where it has one; scales that a layout has of its own are in the tensors then."""
    import diffusers

    read = getattr(getattr(diffusers, pipeline), "lora_state_dict", None)
    if read is None:
        return None
    try:
        tensors: dict[str, Tensor] = read(str(file))
    except (ValueError, KeyError, AttributeError) as error:  # layouts that it does not know
        raise ValueError(f"{owner}: the LoRA loader of {pipeline} does not read it: {error}") from error
    return {PREFIXES.sub("", name): value for name, value in tensors.items()}


def added(part: Rows | Any, pair: tuple[Tensor, Tensor], dtype: torch.dtype) -> Rows:
    """W + s B A of a weight that is read in rows, rounded once: the sum in float64, whatever rows are asked for."""
    rows: Callable[[slice], Tensor] = part if callable(part) else part.__getitem__
    change: list[Tensor] = []

    def summed(which: slice) -> Tensor:
        if not change:
            change.append(pair[1].double() @ pair[0].double())
        return (rows(which).double() + change[0][which]).to(dtype)

    return summed
