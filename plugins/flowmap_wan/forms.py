"""A student of the family as a pipeline of diffusers, and as a LoRA file of peft."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from attrs import evolve, frozen
from flowmap_diffusers.folder import files
from flowmap_lora.files import write
from flowmap_lora.start import LORA_FILE

from flowmap.export.errors import ExportError
from flowmap.export.forms import Written
from flowmap.export.spec import DTYPES
from flowmap.export.verify import TIMES
from flowmap.model import origin, require_fit, sha256
from flowmap.times import euler_grid

from . import adapters, extract, readme, unrounded
from .build import pretrained
from .checkpoints import fused
from .fidelity import load
from .narrowed import narrowed
from .network import WanFlowMap
from .outline import empty

if TYPE_CHECKING:
    from flowmap.export.forms import Saved
    from flowmap.export.spec import Asked

    from .settings import WanSettings


@frozen
class Pipeline:
    """`diffusers`: the whole pipeline, adapters fused, averaged weights, the transformer in the precision asked for.

    Text encoder, tokenizer and VAE are copied as they are: bfloat16 costs a VAE its details. `flowmap.json` says how
    the student is sampled. What was written is loaded and compared with the student: `narrowed`.
    """

    def check(self, student: Saved, asked: Asked) -> None:
        asked.known("diffusers", ())
        name = transformer_of(student.folder)["_class_name"]
        if name == "WanTransformer3DModel":
            raise ExportError(f"{student.folder}: its transformer is a {name}, which has one time: not a student")
        require_fit(files(student.folder), empty(_at(student), torch.float32))

    def write(self, student: Saved, asked: Asked, out: Path) -> Written:
        spec, dtype = _at(student), DTYPES[asked.precision]
        u = unrounded.of(spec, student.folder, device=torch.device("cpu"), dtype=dtype)
        net = pretrained(spec, dtype) if u is None else fused(u, dtype)
        del u
        net.save_pretrained(out / "transformer")
        require_fit(files(out), net)
        weights = sha256(net.state_dict())
        del net
        index = json.loads((student.folder / "model_index.json").read_text())
        for name in index:
            if name != "transformer" and (student.folder / name).is_dir():
                shutil.copytree(student.folder / name, out / name)
                for own in (out / name).glob("*config.json"):
                    rename(own)
        for name in ("model_index.json", "README.md"):
            if (student.folder / name).is_file():
                shutil.copyfile(student.folder / name, out / name)
        rename(out / "model_index.json")
        sampler = student.sampler
        (out / "flowmap.json").write_text(json.dumps({**student.facts, **_known(sampler)}, indent=2) + "\n")
        config: dict[str, Any] = {"pipeline": index["_class_name"]}
        if (found := narrowed(student, asked, out)) is None:
            return Written(weights, sampler, config)
        if found.rounded_state:
            config["rounded_state"] = dict(found.rounded_state)
        return Written(weights, sampler, config, found.worst)


def rename(config: Path) -> None:
    """A config of diffusers or transformers as it is, but for the folder that it was once loaded from."""
    found = json.loads(config.read_text()) if config.is_file() else {}
    if named := {key: origin(found[key]) for key in ("_name_or_path", "name_or_path") if found.get(key)}:
        config.write_text(json.dumps({**found, **named}, indent=2) + "\n")


@frozen
class PeftLora:
    """`lora`: the adapters as peft and diffusers have them, for the lifted base: `pipe.load_lora_weights(DIR)`.

    Options: base, to compare with; rank, to extract adapters of it from student - base. peft holds matrices and their
    biases: of a student that was trained whole, norms and modulation tables are left out, and counted as error.
    """

    def check(self, student: Saved, asked: Asked) -> None:
        asked.known("lora", (adapters.BASE, adapters.RANK))
        adapters.check(student, asked)

    def write(self, student: Saved, asked: Asked, out: Path) -> Written:
        from diffusers import AnyFlowPipeline

        every, extracted = adapters.of(student, asked)
        found = every.biases().to(DTYPES[asked.precision])
        if extracted is None:
            worst, told = adapters.compared(found, student, asked), {}
        else:
            base, shift = adapters.named_base(student, asked), student.sampler["shift"]
            grids = [euler_grid(n, shift).tolist() for n in (1, 4)]
            told = extracted.told(sorted(every.rest.keys() - found.rest.keys()))
            worst = adapters.measured(student, asked, partial(lifted, student, base, found), TIMES, grids, told)
        tensors = found.tensors()
        AnyFlowPipeline.save_lora_weights(
            out, transformer_lora_layers=dict(tensors), transformer_lora_adapter_metadata=dict(found.about)
        )
        if found.base:
            write(out / LORA_FILE, dict(found.base))
        gate, delta = (transformer_of(student.folder)[key] for key in ("gate_value", "deltatime_type"))
        of = {"path": found.base.get("path"), "gate_value": gate, "deltatime_type": delta}
        (out / "README.txt").write_text(readme.lora(student, of) + readme.extracted(told))
        return Written(sha256(tensors), student.sampler, {"base": of, **found.about, **told}, worst)


@torch.no_grad()
def lifted(student: Saved, base: Path, found: adapters.Adapters) -> WanFlowMap:
    """The base as a student of its kind, with the changes in `found`."""
    u, source = load(student), extract.source(student, base)
    assert isinstance(u, WanFlowMap)
    for name, p in u.net.named_parameters():
        p.copy_(source.rows(name)(slice(None)))
        if (change := found.of(name)) is not None:
            p += change
    return u


def transformer_of(folder: Path) -> dict[str, Any]:
    """The config of its transformer."""
    found: dict[str, Any] = json.loads((folder / "transformer" / "config.json").read_text())
    return found


def _at(student: Saved) -> WanSettings:
    from .settings import WanSettings

    assert isinstance(student.spec, WanSettings)
    return evolve(student.spec, path=str(student.folder), pretrained=True)


def _known(sampler: dict[str, Any]) -> dict[str, Any]:
    told = {"shift": sampler["shift"], "sampler": sampler["sampler"], "steps": sampler["steps"]}
    return told | ({} if sampler["built_in_guidance"] is None else {"guidance": sampler["built_in_guidance"]})
