"""A student of the family as a pipeline of diffusers, and as a LoRA file of peft."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from attrs import evolve, frozen

from flowmap.export.errors import ExportError
from flowmap.export.forms import Written
from flowmap.export.spec import DTYPES
from flowmap.model import origin, require_fit, sha256

from . import adapters
from .build import empty, pretrained
from .narrowed import narrowed

if TYPE_CHECKING:
    from flowmap.export.forms import Saved
    from flowmap.export.spec import Asked

    from .spec import WanSpec


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
        require_fit(_files(student.folder), empty(_at(student), torch.float32))

    def write(self, student: Saved, asked: Asked, out: Path) -> Written:
        net = pretrained(_at(student), DTYPES[asked.precision])
        net.save_pretrained(out / "transformer")
        require_fit(_files(out), net)
        weights = sha256(net.state_dict())
        del net
        index = json.loads((student.folder / "model_index.json").read_text())
        for name in index:
            if name != "transformer" and (student.folder / name).is_dir():
                shutil.copytree(student.folder / name, out / name)
                rename(out / name / "config.json")
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
    if "_name_or_path" in found:
        config.write_text(json.dumps({**found, "_name_or_path": origin(found["_name_or_path"])}, indent=2) + "\n")


@frozen
class PeftLora:
    """`lora`: the adapters as peft and diffusers have them, for the lifted base: `pipe.load_lora_weights(DIR)`."""

    def check(self, student: Saved, asked: Asked) -> None:
        asked.known("lora", (adapters.BASE,))
        adapters.require(student.folder)
        adapters.base_of(student, asked)

    def write(self, student: Saved, asked: Asked, out: Path) -> Written:
        from diffusers import AnyFlowPipeline

        found = adapters.Adapters.read(student.folder).to(DTYPES[asked.precision])
        worst = adapters.compared(found, student, asked)
        tensors = found.tensors()
        AnyFlowPipeline.save_lora_weights(
            out, transformer_lora_layers=dict(tensors), transformer_lora_adapter_metadata=dict(found.about)
        )
        gate, delta = (transformer_of(student.folder)[key] for key in ("gate_value", "deltatime_type"))
        base = {"path": found.base.get("path"), "gate_value": gate, "deltatime_type": delta}
        (out / "README.txt").write_text(_lora_text(student, base))
        return Written(sha256(tensors), student.sampler, {"base": base, **found.about}, worst)


def _lora_text(student: Saved, base: dict[str, Any]) -> str:
    kind, index = type(student.spec).__name__, json.loads((student.folder / "model_index.json").read_text())
    path, package = base["path"] or "PATH OF THE BASE", type(student.spec).__module__.partition(".")[0]
    return f"""A LoRA for a lifted Wan transformer (two times), not for plain Wan, which has no delta_embedder.

Its base is {path}, lifted with gate {base["gate_value"]:g} and delta {base["deltatime_type"]!r}; made once, from its
hub id or the directory where you have it:

    import torch
    from pathlib import Path
    from {package} import {kind}

    base = {kind}({str(path)!r}, lora=None, gamma={base["gate_value"]!r}, delta={base["deltatime_type"]!r},
        shift={student.sampler["shift"]!r})
    nets = base.build(frozenset({{"student"}}), device=torch.device("cpu"), dtype=torch.float32)
    base.save(nets["student"], Path("base"))

Then:

    from diffusers import {index["_class_name"]}

    pipe = {index["_class_name"]}.from_pretrained("base")
    pipe.load_lora_weights("this directory")
    video = pipe("a prompt", {size_of(student)}num_inference_steps=4, guidance_scale=1.0).frames[0]
"""


def size_of(student: Saved) -> str:
    """The size of the videos that it was trained on, as a pipeline is told it; empty where `distill` did not say."""
    if "latent_shape" not in student.facts:
        return ""
    file = student.folder / "vae" / "config.json"
    vae = json.loads(file.read_text()) if file.is_file() else {}
    frames, _, *sides = student.facts["latent_shape"]
    height, width = (n * int(vae.get("scale_factor_spatial", 8)) for n in sides)
    frames = (frames - 1) * int(vae.get("scale_factor_temporal", 4)) + 1
    return f"height={height}, width={width}, num_frames={frames}, "


def transformer_of(folder: Path) -> dict[str, Any]:
    """The config of its transformer."""
    found: dict[str, Any] = json.loads((folder / "transformer" / "config.json").read_text())
    return found


def _at(student: Saved) -> WanSpec:
    from .spec import WanSpec

    assert isinstance(student.spec, WanSpec)
    return evolve(student.spec, path=str(student.folder), pretrained=True)


def _files(folder: Path) -> list[Path]:
    return sorted((folder / "transformer").glob("diffusion_pytorch_model*.safetensors"))


def _known(sampler: dict[str, Any]) -> dict[str, Any]:
    told = {"shift": sampler["shift"], "sampler": sampler["sampler"], "steps": sampler["steps"]}
    return told | ({} if sampler["built_in_guidance"] is None else {"guidance": sampler["built_in_guidance"]})
