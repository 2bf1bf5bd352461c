"""The transformer of a spec without numbers: its class, its shapes, and what of it stays float32."""

from __future__ import annotations

from collections.abc import Mapping
from inspect import signature
from typing import TYPE_CHECKING, Any

import torch
from flowmap_lora.start import Pairs, pairs

from .targets import PIPELINE

if TYPE_CHECKING:
    from .settings import WanSettings


def two_times(config: Mapping[str, Any]) -> bool:
    """Whether r has a say in a network: not in plain Wan, nor behind gate 0, as in a causal student of one time."""
    return bool(config.get("gate_value"))


def style(spec: WanSettings) -> Pairs:
    """What `spec.fuse` adds to the layers of the network at `spec.path`."""
    return {} if spec.fuse is None else pairs(spec.fuse, empty(spec, torch.float32), PIPELINE, FUSE, {})


def checked_class(spec: WanSettings) -> Any:
    """The diffusers class of the transformer at `spec.path`, one that the spec can start from."""
    import diffusers

    name = diffusers.WanTransformer3DModel.load_config(spec.path, subfolder=spec.part)["_class_name"]
    if name not in spec.transformers:
        raise ValueError(f"{spec.path}: its transformer is a {name}: must be one of {', '.join(spec.transformers)}")
    return getattr(diffusers, name)


def empty(spec: WanSettings, dtype: torch.dtype) -> Any:
    """`pretrained` on the meta device: shapes and types. What is no parameter, such as positions, has its numbers."""
    import diffusers

    with torch.device("meta"):
        if spec.path is None or not spec.pretrained:
            net: Any = diffusers.WanTransformer3DModel(**spec.config)
        else:
            cls = checked_class(spec)
            net = cls.from_config(cls.load_config(spec.path, subfolder=spec.part))
    for name, p in net.named_parameters():
        p.data = p.data.to(dtype_of(name, type(net), dtype))
    net.rope = rebuilt(net.rope)
    if "gate_value" in net.config:
        net.condition_embedder.delta_emb_gate = torch.tensor([net.config["gate_value"]])
    return net.eval()


def dtype_of(name: str, cls: Any, dtype: torch.dtype) -> torch.dtype:
    """What a tensor of `cls` is in when asked for `dtype`: what is `exact` stays float32."""
    return torch.float32 if {*name.split(".")} & {*exact(cls)} else dtype


FUSE = "fuse"


EXACT = ("delta_embedder", "far_patch_embedding")
"""Float32 in a student that is trained, so in one that is loaded, too; diffusers' own list has neither. The second
embedder, as the first, and what a causal one trains in full beside its adapters."""


def exact(cls: Any) -> list[str]:
    """What stays float32: times, norms and modulation, as diffusers has it, and `EXACT`."""
    return [*(cls._keep_in_fp32_modules or ()), *EXACT]


def rebuilt(rope: Any) -> Any:
    """The rotary module of a network made on the meta device, with its tables: the arguments are its attributes."""
    return type(rope)(
        **{name: getattr(rope, name) for name in signature(type(rope).__init__).parameters if name in vars(rope)}
    )


PATCH = ("patch_embedding.weight", "patch_embedding.bias")
"""All that `WanSettings.extra_state` reads."""
