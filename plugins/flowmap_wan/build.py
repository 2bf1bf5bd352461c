"""Networks for the roles: one frozen base with sets of adapters, or a whole network a role."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from flowmap._types import Role

from .network import Bidirectional, WanFlowMap

if TYPE_CHECKING:
    from .spec import WanSpec


def build(
    spec: WanSpec, roles: frozenset[Role], *, device: torch.device, dtype: torch.dtype
) -> Mapping[Role, WanFlowMap]:
    """With adapters, one lifted base serves every role; without, the student is lifted, the others are as they came.

    Teacher and critic of a diffusion model are bidirectional whatever the student is; the teacher of a distilled one is
    that student as it was.
    """
    net = pretrained(spec, dtype).to(device).requires_grad_(False)
    known = "gate_value" in net.config  # a distilled network: every role reads both times
    if known and "critic" in roles:
        raise ValueError(
            f"{spec.path} is a distilled student: teacher and critic must start as the diffusion model that it was "
            "distilled from; give that one as Recipe.teacher"
        )
    if spec.lora is not None:
        nets = dict.fromkeys(sorted(roles), lift(spec, net))
    else:
        nets = {role: lift(spec, copy.deepcopy(net)) if role == "student" else copy.deepcopy(net) for role in roles}
    whole = type(net).__name__ == spec.transformers[-1]  # a student already, whatever its role here
    built = {
        role: flow_map(spec, own, role, two_times=known or role == "student", student=whole or role == "student")
        for role, own in nets.items()
    }
    for role, u in built.items():
        if role != "teacher":
            u.thaw()
    return built


def flow_map(spec: WanSpec, net: Any, role: Role, *, two_times: bool, student: bool) -> WanFlowMap:
    """The network of a role on `net`, frozen; student: made as the spec's student is, or bidirectional."""
    settings: dict[str, Any] = {
        "two_times": two_times,
        "lora": spec.lora,
        "text_length": spec.text_length,
        "checkpointing": spec.checkpointing,
    }
    return spec.student(net, role, **settings) if student else Bidirectional(net, role, **settings)


def pretrained(spec: WanSpec, dtype: torch.dtype) -> Any:
    """The transformer at `spec.path`: a `WanTransformer3DModel`, or a distilled one that the spec can start from."""
    import diffusers

    if spec.path is None or not spec.pretrained:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(spec.seed)
            net = diffusers.WanTransformer3DModel(**spec.config).eval()
        return net if dtype == torch.float32 else net.to(dtype)
    name = diffusers.WanTransformer3DModel.load_config(spec.path, subfolder="transformer")["_class_name"]
    if name not in spec.transformers:
        raise ValueError(f"{spec.path}: its transformer is a {name}: must be one of {', '.join(spec.transformers)}")
    return getattr(diffusers, name).from_pretrained(spec.path, subfolder="transformer", dtype=dtype).eval()


SHAPE = (
    *("patch_size", "num_attention_heads", "attention_head_dim", "in_channels", "out_channels", "text_dim"),
    *("freq_dim", "ffn_dim", "num_layers", "cross_attn_norm", "eps", "image_dim", "rope_max_seq_len"),
)


def lift(spec: WanSpec, net: Any) -> Any:
    """The student's transformer with the weights of `net`; the second time embedder is a copy of the first."""
    import diffusers

    if type(net).__name__ == spec.transformers[-1]:
        return net
    config = {key: net.config[key] for key in SHAPE}
    config |= {"gate_value": net.config.get("gate_value", spec.gamma)}
    config |= {"deltatime_type": net.config.get("deltatime_type", spec.delta)}
    with torch.device("meta"):
        lifted = getattr(diffusers, spec.transformers[-1])(**config, **spec.extra_config())
    state = dict(net.state_dict())
    if "gate_value" not in net.config:
        for key in [key for key in state if ".time_embedder." in key]:
            state[key.replace(".time_embedder.", ".delta_embedder.")] = state[key].clone()
    lifted.load_state_dict({**state, **spec.extra_state(state)}, strict=True, assign=True)
    lifted.condition_embedder.delta_emb_gate = torch.tensor([config["gate_value"]], device=net.device)
    return lifted.eval().requires_grad_(False)
