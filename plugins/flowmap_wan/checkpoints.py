"""Students on disk: a pipeline directory that diffusers loads alone, and the adapters as a LoRA file."""

from __future__ import annotations

from collections.abc import Iterator
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from attrs import evolve
from flowmap_lora.files import WHOLE_FILE, check_scale, described, of, put, write
from flowmap_lora.files import load as load_tensors
from flowmap_lora.roles import parts
from flowmap_lora.start import LORA_FILE

from flowmap import FlowMap
from flowmap.model import Sampling

from . import bases, experts, pipelines
from .build import build, flow_map, pretrained
from .network import Bidirectional, WanFlowMap
from .outline import dtype_of, rebuilt
from .streaming import Source

if TYPE_CHECKING:
    from .settings import WanSettings

NARROW = torch.bfloat16


def save(spec: WanSettings, u: FlowMap, path: Path, dtype: torch.dtype = torch.float32) -> None:
    """`path/`: model_index.json, the transformer, and text encoder, tokenizer and VAE of `spec.path`; `path/lora/`.

    dtype: of the transformer, but for what stays float32. The adapters on their own are float32.
    A student becomes a pipeline of `spec.pipelines[-1]`, with the scheduler of flow maps; a fine-tuned teacher remains
    the pipeline that it was, with the scheduler that it had. Without a pipeline to take the rest from (`spec.path`
    None) only transformer and scheduler are written.
    """
    import diffusers

    if not isinstance(u, WanFlowMap):
        raise TypeError(f"save: a {type(u).__name__} is not a network of Wan's family")
    transformer = fused(u, dtype, torch.device("cpu"))
    if spec.expert is not None and spec.path is not None and "gate_value" in transformer.config:
        guidance = {spec.expert: u.guidance}
        return experts.write(spec.path, path, {spec.expert: transformer}, spec.shift, guidance)
    # of both: FlowMatchEulerDiscreteScheduler would shift its times twice
    parts = {spec.part: transformer, "scheduler": diffusers.FlowMapEulerDiscreteScheduler(shift=spec.shift)}
    if spec.path is None:
        for name, part in parts.items():
            part.save_pretrained(path / name)
    elif "gate_value" in transformer.config:
        pipelines.write(spec.path, path, parts, spec.pipelines[-1])
    else:
        pipelines.write(spec.path, path, {spec.part: transformer})
    if u.lora is not None and u.role == "student":
        save_lora(u, path / "lora", spec.path, spec.fuse)


def contents(spec: WanSettings, path: Path) -> dict[str, str]:
    """Of a directory that `save` wrote: `WanSettings.contents`."""
    if spec.expert is not None:
        return {f"{spec.part}/": f"the {spec.expert} expert, half of a pipeline: `Experts` puts both together"}
    told, kind = {}, spec.pipelines[-1]
    if (path / "model_index.json").is_file():
        told["."] = f"the whole pipeline, `{kind}.from_pretrained(DIR)`"
    adapters = (path / "lora" / LORA_FILE).is_file() and spec.lora is not None
    told["transformer/"] = "the network" + (", with its adapters fused" if adapters else "")
    if adapters:
        assert spec.lora is not None
        made = f"{type(spec).__name__}(BASE, lora=Lora({spec.lora.rank}, {spec.lora.alpha:g}), ...)"
        told["lora/"] = (
            f"the same adapters on their own, for the base that they were trained on, lifted to two times, and for no "
            f"other network: `{made}.load(DIR / 'lora', ...)` puts them there and refuses another base by its "
            f"fingerprint; `flowmap export DIR --to lora` says how diffusers gets them. Do not load them into the "
            f"pipeline above, which has them: they would count twice, and diffusers says nothing"
        )
    return told


def changes(spec: WanSettings, u: WanFlowMap) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """(W, ΔW) of every weight that was trained and does not stay float32, one by one."""
    if u.lora is not None:
        for name, base, change in parts(u.net, u.adapter):
            if change is not None and dtype_of(name, type(u.net), NARROW) == NARROW:
                yield base.float() + change, change
        return
    source = Source.of(spec, u.dtype)
    for name, p in u.trained().items():
        if dtype_of(name, type(u.net), NARROW) == NARROW:
            weight = p.detach().float()
            yield weight, weight - source.rows(name)(slice(None)).to(weight)


def rounded(spec: WanSettings, u: WanFlowMap, dtype: torch.dtype) -> WanFlowMap:
    """The network that is saved in `dtype`, computing in float32; on the CPU."""
    net = fused(u, dtype, torch.device("cpu")).requires_grad_(False).float()
    own = not isinstance(u, Bidirectional)
    return flow_map(evolve(spec, lora=None, base=None), net, u.role, two_times=u.two_times, student=own)


def fused(u: WanFlowMap, dtype: torch.dtype | None = None, device: torch.device | None = None) -> Any:
    """The network of this role on its own, adapters added into the weights: with two times if it reads two.

    dtype: of the weights, but for those that stay float32; None is as they are. device: None is as they are, too.
    """
    import diffusers

    config = {key: value for key, value in u.net.config.items() if not key.startswith("_")}
    cls = type(u.net)
    state = {}
    for key, base, change in parts(u.net, u.adapter):
        weight = base if change is None else base.float() + change
        state[key] = weight.to(device, base.dtype if dtype is None else dtype_of(key, cls, dtype), copy=True)
    chunked = not isinstance(u, Bidirectional)  # with one time, behind gate 0, the class of two
    if chunked and not u.two_times:
        config["gate_value"] = 0.0
    name = type(u.net).__name__ if u.two_times or chunked else "WanTransformer3DModel"
    with torch.device("meta"):
        empty: Any = getattr(diffusers, name)
        keys = signature(empty.__init__).parameters
        network: Any = empty(**{key: value for key, value in config.items() if key in keys})
    network.load_state_dict({k: v for k, v in state.items() if k in network.state_dict()}, strict=True, assign=True)
    if "gate_value" in network.config:
        network.condition_embedder.delta_emb_gate = torch.tensor([network.config["gate_value"]])
    network.rope = rebuilt(network.rope)
    return network


def save_lora(u: WanFlowMap, path: Path, base: str | None = None, fuse: str | None = None) -> None:
    """In the layout of diffusers and peft, rank and alpha as metadata: for a pipeline with an AnyFlow transformer.

    Plain Wan has no `delta_embedder`, so this file does not fit it. base: what it fits, once that is lifted and
    has `fuse` in it.
    """
    from diffusers import AnyFlowPipeline
    from safetensors.torch import save_file

    assert u.lora is not None
    tensors = {name: p.detach().contiguous() for name, p in u.trained().items()}
    layers = {name: p for name, p in tensors.items() if ".lora_" in name}
    metadata = described(layers, u.lora)
    AnyFlowPipeline.save_lora_weights(
        path, transformer_lora_layers=layers, transformer_lora_adapter_metadata=metadata, weight_name=LORA_FILE
    )
    if whole := {name: p for name, p in tensors.items() if name not in layers}:
        save_file(whole, path / WHOLE_FILE)
    write(path / LORA_FILE, bases.about(u, base, fuse))


def load(spec: WanSettings, path: Path, *, device: torch.device, dtype: torch.dtype) -> FlowMap:
    """A student from a directory that `save` wrote, or from its LoRA file on top of `spec.path`."""
    file = path / LORA_FILE if path.is_dir() else path
    if (path / spec.part).is_dir():
        net = pretrained(evolve(spec, path=str(path), pretrained=True), dtype).to(device).requires_grad_(False)
        if "gate_value" not in net.config:
            raise ValueError(f"{path}: its transformer is a {type(net).__name__}, which has one time: not a student")
        student = flow_map(evolve(spec, lora=None, base=None), net, "student", two_times=True, student=True)
        student.guidance, student.history_noise = (own := Sampling.of(path)).guidance, own.history_noise
        return student
    if not file.is_file():
        raise FileNotFoundError(f"{path}: neither a pipeline directory (transformer/) nor a LoRA file ({LORA_FILE})")
    return load_lora(spec, file, device=device, dtype=dtype)


def load_lora(spec: WanSettings, file: Path, *, device: torch.device, dtype: torch.dtype) -> FlowMap:
    """The base at `spec.path`, lifted, with the adapters in `file`: every tensor must find its place."""
    from safetensors.torch import load_file

    if spec.lora is None:
        raise ValueError(f"{file}: {type(spec).__name__}.lora = None, but this is a LoRA file; give its rank and alpha")
    student = build(spec, frozenset({"student"}), device=device, dtype=dtype)["student"]
    check_scale(file, spec.lora, type(spec).__name__)
    bases.check(spec, student, file)
    student.guidance = of(file).get("guidance")
    tensors = load_tensors(file)
    if (whole := file.with_name(WHOLE_FILE)).is_file():
        tensors |= load_file(whole)
    put(file, tensors, student.trained(), str(spec))
    return student
