"""Networks for the roles: one frozen base with sets of adapters, or a whole network a role."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from flowmap._types import Role

from .network import Wan21FlowMap

if TYPE_CHECKING:
    from .spec import Wan21


def build(
    spec: Wan21, roles: frozenset[Role], *, device: torch.device, dtype: torch.dtype
) -> Mapping[Role, Wan21FlowMap]:
    """With adapters, one lifted base serves every role; without, the student is lifted, the others are as they came."""
    net = pretrained(spec, dtype).to(device).requires_grad_(False)
    known = "gate_value" in net.config  # a distilled network: every role reads both times
    if spec.lora is not None:
        nets = dict.fromkeys(sorted(roles), lift(spec, net))
    else:
        nets = {role: lift(spec, copy.deepcopy(net)) if role == "student" else copy.deepcopy(net) for role in roles}
    return {role: flow_map(spec, own, role, two_times=known or role == "student") for role, own in nets.items()}


def flow_map(spec: Wan21, net: Any, role: Role, *, two_times: bool) -> Wan21FlowMap:
    return Wan21FlowMap(
        net,
        role,
        two_times=two_times,
        lora=spec.lora,
        text_length=spec.text_length,
        checkpointing=spec.checkpointing,
    )


def pretrained(spec: Wan21, dtype: torch.dtype) -> Any:
    """The transformer at `spec.path`: a `WanTransformer3DModel`, or an `AnyFlowTransformer3DModel`."""
    from diffusers import AnyFlowTransformer3DModel, WanTransformer3DModel

    if spec.path is None or not spec.pretrained:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(spec.seed)
            net = WanTransformer3DModel(**spec.config).eval()
        return net if dtype == torch.float32 else net.to(dtype)
    classes = {"WanTransformer3DModel": WanTransformer3DModel, "AnyFlowTransformer3DModel": AnyFlowTransformer3DModel}
    name = WanTransformer3DModel.load_config(spec.path, subfolder="transformer")["_class_name"]
    if name not in classes:
        raise ValueError(f"{spec.path}: its transformer is a {name}: must be one of {', '.join(classes)}")
    return classes[name].from_pretrained(spec.path, subfolder="transformer", dtype=dtype).eval()


SHAPE = (
    *("patch_size", "num_attention_heads", "attention_head_dim", "in_channels", "out_channels", "text_dim"),
    *("freq_dim", "ffn_dim", "num_layers", "cross_attn_norm", "eps", "image_dim", "rope_max_seq_len"),
)


def lift(spec: Wan21, net: Any) -> Any:
    """An `AnyFlowTransformer3DModel` with Wan's weights; the second time embedder is a copy of the first."""
    from diffusers import AnyFlowTransformer3DModel

    if isinstance(net, AnyFlowTransformer3DModel):
        return net
    config = {key: net.config[key] for key in SHAPE}
    with torch.device("meta"):
        lifted = AnyFlowTransformer3DModel(**config, gate_value=spec.gamma, deltatime_type=spec.delta)
    state = dict(net.state_dict())
    for key in [key for key in state if ".time_embedder." in key]:
        state[key.replace(".time_embedder.", ".delta_embedder.")] = state[key].clone()
    lifted.load_state_dict(state, strict=True, assign=True)
    lifted.condition_embedder.delta_emb_gate = torch.tensor([spec.gamma], device=net.device)
    return lifted.eval().requires_grad_(False)
