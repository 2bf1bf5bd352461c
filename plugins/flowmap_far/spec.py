"""FAR: the spec."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from attrs import evolve, field, frozen
from flowmap_wan.directory import class_name
from flowmap_wan.spec import WanSpec, example

from flowmap import Window, validators
from flowmap.methods.citations import FAR, WAN

if TYPE_CHECKING:
    import torch
    from flowmap_wan.network import WanFlowMap

    from flowmap._types import Cond, Latent, Role

HUB = re.compile(r"[\w.-]+/[\w.-]*AnyFlow-FAR[\w.-]*")
PARTITION = (1, 3, 3, 3, 3, 3, 3, 2)
COMPRESSED_PATCH = (1, 4, 4)


def _sizes(value: Sequence[int] | None) -> tuple[int, ...] | None:
    return None if value is None else tuple(value)


def _positive(instance: object, attribute: Any, value: tuple[int, ...] | None) -> None:
    if value is not None and (not value or min(value) < 1):
        raise ValueError(f"Far.{attribute.name} = {value}: must name at least one chunk, each of at least 1 frame")


share = [validators.ge(0.0), validators.le(1.0)]


@frozen
class Far(WanSpec):
    """A causal student on Wan2.1: FAR with two times, arXiv:2503.19325 and arXiv:2605.13724, section 3.

    partition: frames of each chunk of a training video, (1, 3, 3, 3, 3, 3, 3, 2) for 21 latent frames; None is that, or
    what a distilled directory says. full: the chunks at full resolution, the one being made among them; older ones
    are compressed, a token for 4 × 4 latents. None is 3, or what a distilled directory says. long: the share of
    iterations on a prefix of random length, so that the network learns to read compressed history. bidirectional: the
    share that trains on all frames as one chunk (the reference adds such a pass, on the diagonal alone, to one
    iteration in ten of stage 1). area: start the embedding of compressed tokens divided by the number of tokens that
    one stands for, so that a constant image looks the same to both; False is the reference.
    attention: "dense" takes a mask in full, "spans" one call without a mask for each chunk of queries, both with any
    kernel; "flex" is one call of flex attention, which trains on CUDA alone, needs heads of 16 or more, and has no
    forward-mode derivative. "auto" is dense where the sequence is short, else spans. keep_history: the derivative of
    stage 1 reuses the keys and values of the clean history, which depend on neither z nor the times; None is unless
    blocks are recomputed, beside whose inputs they are large. window: what rollouts and samples remember,
    `flowmap.Window`, so that stage 2 learns what it is sampled with; a teacher-forced pass is of a whole clip.

    causal_critic: make the critic as the student is, on weights of its own, for a discriminator of chunks
    (`flowmap_consistency.aapt`). Else teacher and critic are bidirectional, on the same weights; the teacher of a
    distilled directory is that student as it was. The other fields are those of `Wan21`.
    """

    transformers: ClassVar[tuple[str, ...]] = (
        "WanTransformer3DModel",
        "AnyFlowTransformer3DModel",
        "AnyFlowFARTransformer3DModel",
    )
    pipelines: ClassVar[tuple[str, ...]] = ("WanPipeline", "AnyFlowPipeline", "AnyFlowFARPipeline")
    citations: ClassVar[tuple[str, ...]] = (WAN, FAR)

    partition: tuple[int, ...] | None = field(default=None, converter=_sizes, validator=_positive)
    full: int | None = field(default=None, validator=validators.optional(validators.ge(1)))
    long: float = field(default=0.5, validator=share)
    bidirectional: float = field(default=0.0, validator=share)
    area: bool = True
    attention: Literal["auto", "dense", "spans", "flex"] = field(
        default="auto", validator=validators.in_(("auto", "dense", "spans", "flex"))
    )
    keep_history: bool | None = None
    window: Window | None = field(default=None, validator=validators.optional(validators.instance_of(Window)))
    causal_critic: bool = field(default=False, kw_only=True)

    @causal_critic.validator
    def _own_base(self, attribute: Any, causal: bool) -> None:
        if causal and self.lora is not None:
            raise ValueError(
                "Far.causal_critic = True: student and critic would share an embedding of compressed tokens that is "
                "trained in full: must be False with adapters, or lora = None"
            )

    def as_student(self, role: Role) -> bool:
        return role == "student" or (role == "critic" and self.causal_critic)

    def takes_history(self, role: Role) -> bool:
        """Of the teacher where it is a student of this kind, as it was."""
        if self.as_student(role) or role == "forward_teacher":
            return True
        known = role == "teacher" and self.path is not None and self.pretrained
        return known and class_name(str(self.path), self.part) in ("", self.transformers[-1])

    @property
    def records(self) -> bool:
        return True

    def splits(self, ranks: int) -> None:
        if self.window is not None:
            raise ValueError(f"Far.window = {self.window}: must be None where {ranks} ranks share a sample's tokens")
        super().splits(ranks)

    def student(self, net: Any, role: Role, **settings: Any) -> WanFlowMap:
        from .network import FarFlowMap

        own, wide, side = net.config, net.config.compressed_patch_size, net.config.patch_size[-1]
        if wide[0] != 1 or wide[1] != wide[2] or wide[1] % side or wide[1] // side > 6:
            raise ValueError(f"compressed_patch_size = {tuple(wide)}: must be (1, n, n), n at most 6 times {side}")
        partition, full = self.partition or tuple(own.chunk_partition), self.full or own.full_chunk_limit
        net.register_to_config(chunk_partition=partition, full_chunk_limit=full)  # what is saved is what is trained
        u = FarFlowMap(
            net,
            role,
            partition=partition,
            full=full,
            long=self.long,
            bidirectional=self.bidirectional,
            attention=self.attention,
            keep_history=self.keep_history,
            **settings,
        )
        if self.window is not None:
            u.bound(self.window)
        return u

    def extra_config(self) -> Mapping[str, Any]:
        return {
            "compressed_patch_size": COMPRESSED_PATCH,
            "full_chunk_limit": self.full or 3,
            "chunk_partition": self.partition or PARTITION,
        }

    def extra_state(self, state: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """The kernel of a token enlarged to that of a compressed one."""
        from torch.nn import functional as F

        small = state["patch_embedding.weight"]
        large = F.interpolate(small.float(), size=COMPRESSED_PATCH, mode="trilinear", align_corners=False)
        if self.area:
            large = large * (small[0, 0].numel() / large[0, 0].numel())
        bias = state["patch_embedding.bias"]
        return {"far_patch_embedding.weight": large.to(small.dtype), "far_patch_embedding.bias": bias.clone()}

    def tiny(self) -> Self:
        return evolve(super().tiny(), partition=(1, 2, 1, 2, 1), full=self.full or 3, bidirectional=0.0)

    def example(self, batch: int = 2) -> tuple[Latent, Cond]:
        return example((batch, 7, 4, 8, 8), self.tiny().text_tokens)
