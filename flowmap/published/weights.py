"""What is in a file of published weights: tensors by name, without what a trainer put around them."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from attrs import evolve, field, frozen
from torch import Tensor

from ..model import WeightsError
from ..validators import article

WRAPPERS = ("generator_ema", "generator", "model", "state_dict", "module")
"""Keys under which checkpoints have their weights, beside critics and optimisers; the first that is there is taken."""
TRAINER = re.compile(r"(?:^|(?<=\.))(?:_fsdp_wrapped_module|_checkpoint_wrapped_module|_orig_mod)\.")
"""Parts of a name that PyTorch's wrappers put there, anywhere in it."""
PREFIXES = ("model.diffusion_model.", "diffusion_model.", "module.", "model.", "generator.", "transformer.")
"""Before every name of a file, several after each other."""
SECOND = "transformer_2"
"""The other network of a pipeline that has two."""
PICKLES = (".pt", ".pth", ".bin", ".ckpt")


@frozen(eq=False)
class Weights:
    """The tensors of a file, by name without what a trainer put around; dictionaries in it are joined by dots.

    notes: what else is in it. taken: the keys that the tensors lay under; prefix: what stood before every name.
    second: of a pipeline of two networks, the other's tensors.
    """

    file: Path
    tensors: Mapping[str, Tensor]
    notes: Mapping[str, Any]
    taken: tuple[str, ...] = ()
    prefix: str = ""
    second: Mapping[str, Tensor] = field(factory=dict)


def read(file: Path) -> Weights:
    """The tensors of a safetensors file, a directory of them, or a checkpoint of PyTorch, of which nothing is run.

    A directory may be that of a network in several files, or of a pipeline, whose transformers are read.
    """
    if not file.exists():
        raise WeightsError(f"{file}: there is no such file")
    found: Any
    if file.is_dir():
        if (file / SECOND).is_dir():
            own = [_named(file, _shards(file / part), {}, ()) for part in ("transformer", SECOND)]
            return evolve(own[0], second=own[1].tensors)
        found = _shards(file / "transformer" if (file / "transformer").is_dir() else file)
    elif file.suffix == ".safetensors":
        found = _safetensors(file)
    elif file.suffix in PICKLES:
        found = _unpickled(file)
    else:
        raise WeightsError(f"{file}: must be a directory, or end in .safetensors, {', '.join(PICKLES)}")
    taken = []
    while isinstance(found, dict) and (key := next((k for k in WRAPPERS if isinstance(found.get(k), dict)), None)):
        found = found[key]
        taken.append(key)
    if not isinstance(found, dict):
        raise WeightsError(f"{file}: holds {article(type(found).__name__)}: must be tensors by name")
    tensors, notes = _flat(found)
    if not tensors:
        raise WeightsError(f"{file}: has no tensors, but {', '.join(map(repr, [*notes][:5])) or 'nothing'}")
    return _named(file, tensors, notes, tuple(taken))


def _flat(found: Mapping[Any, Any], under: str = "") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of dictionaries in dictionaries, and what else is there, by names joined by dots."""
    tensors: dict[str, Tensor] = {}
    notes: dict[str, Any] = {}
    for key, value in found.items():
        name = f"{under}{key}"
        if isinstance(value, Tensor):
            tensors[name] = value
        elif isinstance(value, Mapping):
            more, told = _flat(value, f"{name}.")
            tensors, notes = tensors | more, notes | told
        else:
            notes[name] = value
    return tensors, notes


def _named(file: Path, found: Mapping[str, Tensor], notes: Mapping[str, Any], taken: tuple[str, ...]) -> Weights:
    own = {name: TRAINER.sub("", name) for name in found}
    prefix = ""
    while add := next((p for p in PREFIXES if all(name.startswith(prefix + p) for name in own.values())), None):
        prefix += add
    tensors: dict[str, Tensor] = {}
    for name, short in own.items():
        if (short := short.removeprefix(prefix)) in tensors:
            raise WeightsError(f"{file}: two of its tensors are called {short}, one of them {name}")
        tensors[short] = found[name]
    return Weights(file, tensors, notes, taken, prefix)


def _shards(folder: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        part = _safetensors(file)
        if twice := found.keys() & part.keys():
            raise WeightsError(f"{folder}: {min(twice)} is in two of its files: give one of them")
        found |= part
    if not found:
        raise WeightsError(f"{folder}: there is no .safetensors in it")
    return found


def _safetensors(file: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except SafetensorError as error:
        raise WeightsError(f"{file}: is damaged: {error}") from None


def _unpickled(file: Path) -> Any:
    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except pickle.UnpicklingError as error:
        asks = re.search(r"GLOBAL ([\w.]+)", str(error))
        if asks is None:  # what is no pickle at all, or asks for no name
            raise WeightsError(f"{file}: is damaged, or no checkpoint of tensors alone: refused") from None
        raise WeightsError(
            f"{file}: holds more than tensors, {asks[1]}, which only running what it says could make: refused. Ask its "
            "publisher for tensors alone, best as safetensors"
        ) from None
    except (RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        if isinstance(error, OSError) and error.filename is not None:
            raise  # of the file as a whole; PyTorch's own have none: a file that was cut gives "Invalid argument"
        raise WeightsError(
            f"{file}: is damaged, or no checkpoint of PyTorch: {str(error).partition(chr(10))[0]}"
        ) from None
