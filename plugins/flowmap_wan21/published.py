"""Wan's own files, and ComfyUI's of the same names, as a teacher's directory."""

from __future__ import annotations

from pathlib import Path

from attrs import frozen

from flowmap.published.layout import Brought
from flowmap.published.weights import Weights

from .spec import Wan21

COMFYUI = "model.diffusion_model."
"""Before every name of a checkpoint that ComfyUI wrote."""


@frozen
class Teacher:
    """A bidirectional text-to-video Wan, a diffusion model: a fine-tune, a merge, what another trainer left."""

    about: str

    def claims(self, found: Weights) -> bool:
        return found.prefix.startswith(COMFYUI)

    def write(self, found: Weights, base: str, out: Path) -> None:
        import diffusers
        import torch
        from flowmap_wan import pipelines
        from flowmap_wan.directory import ready
        from flowmap_wan.outline import rebuilt
        from flowmap_wan.published import fitted

        ready(spec := Wan21(base))
        config = spec.outline().config
        (state,) = fitted(found, config, base)
        with torch.device("meta"):
            net = diffusers.WanTransformer3DModel(**config)
        net.load_state_dict(state, strict=True, assign=True)
        net.rope = rebuilt(net.rope)
        pipelines.write(base, out, {"transformer": net}, Wan21.pipelines[0])


WAN = Teacher("a bidirectional Wan2.1 in one file, as Wan or ComfyUI names it: a teacher")


@frozen
class Reinforced:
    """What reinforcement learning left of an AnyFlow student: a LoRA, and its second embedder whole.

    The base is that student, bidirectional or causal. times: alpha / rank, where the file does not say alpha.
    """

    about: str
    times: float

    def claims(self, found: Weights) -> bool:
        return all(any(part in name for name in found.tensors) for part in ("lora_A", "delta_embedder"))

    def write(self, found: Weights, base: str, out: Path) -> Brought:
        from flowmap_wan import pipelines
        from flowmap_wan.reinforced import fused

        network, student = fused(found, base, self.times)
        pipelines.write(base, out, {"transformer": network})
        return student


ANYFLOW_RL = Reinforced(
    "AnyFlow after reinforcement learning: a LoRA and the second embedder, for an AnyFlow base", 2.0
)
"""Rank 32, alpha 64."""
