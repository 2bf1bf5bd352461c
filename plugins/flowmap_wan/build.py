"""Networks for the roles: one frozen base with sets of adapters, or a whole network a role."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from flowmap_diffusers.drawn import drawn
from flowmap_diffusers.folder import files
from flowmap_diffusers.loading import stored
from flowmap_lora.quantised import linear, made_of, replace
from flowmap_lora.start import Copies, added
from torch import nn

from flowmap._types import Role
from flowmap.model import origin, require_fit

from .bases import began
from .directory import ready
from .experts import within
from .network import Bidirectional, WanFlowMap
from .outline import checked_class, dtype_of, empty, exact, rebuilt, style, two_times
from .streaming import Source
from .targets import LARGE

if TYPE_CHECKING:
    from .settings import WanSettings


def build(
    spec: WanSettings, roles: frozenset[Role], *, device: torch.device, dtype: torch.dtype
) -> Mapping[Role, WanFlowMap]:
    """With adapters, one lifted base serves every role; without, the student is lifted, the others are as they came.

    Teacher and critic of a diffusion model are bidirectional whatever the student is; the teacher of a distilled one is
    that student as it was.
    """
    ready(spec)
    meta = device.type == "meta"
    net = (empty(spec, dtype) if meta else pretrained(spec, dtype)).requires_grad_(False)
    known = two_times(net.config)  # a distilled network: every role reads both times
    if "gate_value" in net.config and "critic" in roles:
        raise ValueError(
            f"{spec.path} is a distilled student, and the critic must start as a diffusion model, such as the one that "
            "it was distilled from: give that one as Recipe.critic, or as Recipe.teacher for teacher and critic"
        )
    if spec.lora is not None:
        nets = dict.fromkeys(sorted(roles), low(spec, lift(spec, net), dtype))
    else:
        nets = {role: lift(spec, copy.deepcopy(net)) if spec.as_student(role) else copy.deepcopy(net) for role in roles}
    for own in () if meta else nets.values():
        own.to(device)
    whole = type(net).__name__ == spec.transformers[-1]  # a student already, whatever its role here
    built = {
        role: flow_map(spec, own, role, two_times=known or like, student=whole or like)
        for role, own in nets.items()
        for like in [spec.as_student(role)]
    }
    for u in built.values():
        u.copies = {} if known else copies(u.net)
    for role, u in built.items():
        u.guidance, u.history_noise = (own := spec.sampling()).guidance, own.history_noise
        if role != "teacher":
            u.thaw()
        if not meta:
            began(spec, u)
    return built


def low(spec: WanSettings, net: Any, dtype: torch.dtype) -> Any:
    """`net`, lifted, with its base as `spec.base` says."""
    if spec.base is not None:
        replace(net, linear(net, LARGE), spec.base)
        made_of(net, lambda: Source.of(spec, dtype).rows)
    return net


def flow_map(spec: WanSettings, net: Any, role: Role, *, two_times: bool, student: bool) -> WanFlowMap:
    """The network of a role on `net`, frozen; student: made as the spec's student is, or bidirectional."""
    settings: dict[str, Any] = {
        "two_times": two_times,
        "lora": spec.lora,
        "text_length": spec.text_length,
        "checkpointing": spec.checkpointing,
    }
    made = spec.student(net, role, **settings) if student else Bidirectional(net, role, **settings)
    made.within = within(spec.path, spec.expert)
    return made


def pretrained(spec: WanSettings, dtype: torch.dtype) -> Any:
    """The transformer at `spec.path`: a `WanTransformer3DModel`, or a distilled one that the spec can start from.

    On the CPU. Random weights are drawn a tensor at a time, `flowmap_diffusers.drawn`.
    """

    if spec.path is None or not spec.pretrained:
        net = empty(spec, dtype)
        tensors = drawn(net, spec.seed)
        for prefix, layer in net.named_modules():
            for name, p in list(layer.named_parameters(recurse=False)):
                value = tensors[f"{prefix}.{name}" if prefix else name][:]
                layer.register_parameter(name, nn.Parameter(value.to(p.dtype)))
        return styled(spec, net, tensors)
    if weights := files(Path(spec.path), spec.part):
        require_fit(weights, empty(spec, dtype), more=True)  # diffusers would make up what is missing
    given = {"subfolder": spec.part, "dtype": dtype, "use_safetensors": True}  # and no pickles where there are none
    cls = checked_class(spec)
    loader: Any = type(cls.__name__, (cls,), {"_keep_in_fp32_modules": exact(cls)})
    net = loader.from_pretrained(spec.path, **given)
    net.__class__ = cls  # the other one was for loading: it has no name that diffusers could write down
    net.register_to_config(_name_or_path=origin(spec.path))
    return styled(spec, net.eval(), {} if spec.fuse is None else stored(spec.path, spec.part))


@torch.no_grad()
def styled(spec: WanSettings, net: Any, tensors: Mapping[str, Any]) -> Any:
    """`net` with that in it; tensors: its weights as they are stored, so that the sum is rounded once."""
    for layer, pair in style(spec).items():
        p = net.get_parameter(f"{layer}.weight")
        p.copy_(added(tensors[f"{layer}.weight"], pair, p.dtype)(slice(None)))
    return net


SHAPE = (
    *("patch_size", "num_attention_heads", "attention_head_dim", "in_channels", "out_channels", "text_dim"),
    *("freq_dim", "ffn_dim", "num_layers", "cross_attn_norm", "eps", "image_dim", "rope_max_seq_len"),
)


def lift(spec: WanSettings, net: Any) -> Any:
    """The student's transformer with the weights of `net`; the second time embedder is a copy of the first."""
    import diffusers

    known = two_times(net.config)
    if type(net).__name__ == spec.transformers[-1]:
        return net if known else opened(spec, net)
    config = {key: net.config[key] for key in SHAPE}
    config |= {"gate_value": net.config["gate_value"] if known else spec.gamma}
    config |= {"deltatime_type": net.config["deltatime_type"] if known else spec.delta}
    with torch.device("meta"):
        lifted = getattr(diffusers, spec.transformers[-1])(**config, **spec.extra_config())
    state = dict(net.state_dict())
    if not known:
        state |= second_embedder(state)
    extra = spec.extra_state(state)
    state |= {name: value.to(dtype_of(name, type(lifted), value.dtype)) for name, value in extra.items()}
    lifted.load_state_dict(state, strict=True, assign=True)
    device = None if net.device.type == "meta" else net.device
    if device is None:
        lifted.rope = rebuilt(lifted.rope)
    lifted.condition_embedder.delta_emb_gate = torch.tensor([config["gate_value"]], device=device)
    return lifted.eval().requires_grad_(False)


def opened(spec: WanSettings, net: Any) -> Any:
    """`net`, of a student's class with gate 0, lifted in place: the diagonal is kept, and r has a say."""
    net.register_to_config(gate_value=spec.gamma, deltatime_type=spec.delta)
    gate = torch.tensor([spec.gamma], device=None if net.device.type == "meta" else net.device)
    net.condition_embedder.delta_emb_gate = gate
    net.load_state_dict(second_embedder(net.state_dict()), strict=False, assign=True)
    return net.requires_grad_(False)


def second_embedder(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A copy of the first, by its own names."""
    first = {name: value for name, value in state.items() if ".time_embedder." in name}
    return {name.replace(".time_embedder.", ".delta_embedder."): value.clone() for name, value in first.items()}


def copies(net: nn.Module) -> Copies:
    """The layers of both embedders, in a lifted network, by the name of the one that a LoRA of a plain one knows."""
    first = [n for n, m in net.named_modules() if ".time_embedder." in n and isinstance(m, nn.Linear)]
    return {name: (name, name.replace(".time_embedder.", ".delta_embedder.")) for name in first}
