"""Students on disk: an `AnyFlowPipeline` directory that diffusers loads alone, and the adapters as a LoRA file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from attrs import evolve

from flowmap import FlowMap

from .build import build, flow_map, pretrained
from .codec import components, no_bar
from .lora import fuse
from .network import Wan21FlowMap

if TYPE_CHECKING:
    from .spec import Wan21

LORA_FILE = "pytorch_lora_weights.safetensors"


def save(spec: Wan21, u: FlowMap, path: Path) -> None:
    """`path/`: model_index.json, transformer, and from `spec.path` text encoder, tokenizer and VAE; `path/lora/`.

    A student becomes an `AnyFlowPipeline`, a fine-tuned teacher a `WanPipeline`. Without a pipeline to take the rest
    from (`spec.path` None) only transformer and scheduler are written.
    """
    from diffusers import (
        AnyFlowPipeline,
        FlowMapEulerDiscreteScheduler,
        FlowMatchEulerDiscreteScheduler,
        WanPipeline,
    )

    if not isinstance(u, Wan21FlowMap):
        raise TypeError(f"save: a {type(u).__name__} is not a Wan2.1 network")
    transformer = fused(u)
    lifted = "gate_value" in transformer.config
    scheduler = FlowMapEulerDiscreteScheduler if lifted else FlowMatchEulerDiscreteScheduler
    parts = {"transformer": transformer, "scheduler": scheduler(shift=spec.shift)}
    if spec.path is None:
        for name, part in parts.items():
            part.save_pretrained(path / name)
    else:
        parts |= components(spec.path, transformer.dtype)
        with no_bar():
            (AnyFlowPipeline if lifted else WanPipeline)(**parts).save_pretrained(path)
    if u.lora is not None and u.role == "student":
        save_lora(u, path / "lora")


def fused(u: Wan21FlowMap) -> Any:
    """The network of this role on its own, adapters added into the weights: with two times if it reads two."""
    from diffusers import AnyFlowTransformer3DModel, WanTransformer3DModel

    config = {key: value for key, value in u.net.config.items() if not key.startswith("_")}
    state = fuse(u.net, u.adapter)
    if not u.two_times:
        config = {k: v for k, v in config.items() if k not in ("gate_value", "deltatime_type")}
        state = {k: v for k, v in state.items() if ".delta_embedder." not in k}
    with torch.device("meta"):
        network: Any = (AnyFlowTransformer3DModel if u.two_times else WanTransformer3DModel)(**config)
    network.load_state_dict(state, strict=True, assign=True)
    if u.two_times:
        network.condition_embedder.delta_emb_gate = torch.tensor([u.gamma])
    network.rope = type(network.rope)(config["attention_head_dim"], config["patch_size"], config["rope_max_seq_len"])
    return network


def save_lora(u: Wan21FlowMap, path: Path) -> None:
    """In the layout of diffusers and peft, rank and alpha as metadata: for a pipeline with an AnyFlow transformer.

    Plain Wan has no `delta_embedder`, so this file does not fit it.
    """
    from diffusers import AnyFlowPipeline

    assert u.lora is not None
    layers = {name: p.detach().contiguous() for name, p in u.trained().items()}
    targets = sorted({name.rpartition(".lora_")[0] for name in layers})
    metadata = {"r": u.lora.rank, "lora_alpha": u.lora.alpha, "target_modules": targets}
    AnyFlowPipeline.save_lora_weights(
        path, transformer_lora_layers=layers, transformer_lora_adapter_metadata=metadata, weight_name=LORA_FILE
    )


def load(spec: Wan21, path: Path, *, device: torch.device, dtype: torch.dtype) -> FlowMap:
    """A student from a directory that `save` wrote, or from its LoRA file on top of `spec.path`."""
    file = path / LORA_FILE if path.is_dir() else path
    if (path / "transformer").is_dir():
        net = pretrained(evolve(spec, path=str(path), pretrained=True), dtype).to(device)
        if "gate_value" not in net.config:
            raise ValueError(f"{path}: its transformer is a {type(net).__name__}, which has one time: not a student")
        return flow_map(evolve(spec, lora=None), net, "student", two_times=True)
    if not file.is_file():
        raise FileNotFoundError(f"{path}: neither a pipeline directory (transformer/) nor a LoRA file ({LORA_FILE})")
    return load_lora(spec, file, device=device, dtype=dtype)


def _check_scale(spec: Wan21, file: Path) -> None:
    """Rank and alpha are the file's to say: with others the same tensors are another student."""
    from safetensors import safe_open

    assert spec.lora is not None
    with safe_open(file, framework="pt") as opened:
        said = json.loads((opened.metadata() or {}).get("lora_adapter_metadata", "{}"))
    for name, ours in (("r", spec.lora.rank), ("lora_alpha", spec.lora.alpha)):
        if (theirs := said.get(f"transformer.{name}", ours)) != ours:
            raise ValueError(f"{file}: its {name} is {theirs}, Wan21.lora has {ours}: give the one it was made with")


def load_lora(spec: Wan21, file: Path, *, device: torch.device, dtype: torch.dtype) -> FlowMap:
    """The base at `spec.path`, lifted, with the adapters in `file`: every tensor must find its place."""
    from safetensors.torch import load_file

    if spec.lora is None:
        raise ValueError(f"{file}: Wan21.lora = None, but this is a LoRA file; give its rank and alpha")
    student = build(spec, frozenset({"student"}), device=device, dtype=dtype)["student"]
    _check_scale(spec, file)
    tensors = {name.removeprefix("transformer."): value for name, value in load_file(file).items()}
    trained = student.trained()
    if unknown := sorted(tensors.keys() ^ trained.keys()):
        raise ValueError(f"{file}: {len(unknown)} tensors do not match the adapters of {spec}, such as {unknown[0]!r}")
    with torch.no_grad():
        for name, p in trained.items():
            if p.shape != tensors[name].shape:
                raise ValueError(f"{file}: {name} is {tuple(tensors[name].shape)}: must be {tuple(p.shape)}")
            p.copy_(tensors[name])
    return student
