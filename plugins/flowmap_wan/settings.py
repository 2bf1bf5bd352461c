"""What is said of a network of the family: a frozen value, before anything is built of it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from attrs import field, frozen
from flowmap_lora import Lora
from flowmap_lora.bits import Bits, low_base

from flowmap import validators
from flowmap.methods.citations import WAN
from flowmap.model import Splits, Streamed, Usual
from flowmap.recomputing import Checkpointing, checked

from .experts import PARTS, Expert
from .sizes import shift

if TYPE_CHECKING:
    from flowmap._types import Role

    from .network import WanFlowMap

# Random weights of the real architecture, a few thousand of them.
TINY: Mapping[str, Any] = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": 16,
    "freq_dim": 32,
    "ffn_dim": 48,
    "num_layers": 2,
    "rope_max_seq_len": 64,
}


FPS = 16.0
"""Frames a second of the videos that Wan's networks were trained on."""


def _path(path: str | Path | None) -> str | None:
    return None if path is None else str(path)


@frozen
class WanSettings(Streamed, Splits):
    """Wan2.1, lifted to two times as AnyFlow does, arXiv:2605.13724.

    path: the directory or hub id of a diffusers pipeline of one of `pipelines`; None for a network of random weights
    alone. pretrained: False takes everything but the transformer from `path`, and that random, from `config`.
    lora: adapters on one frozen base that serves every role; None trains whole networks, one a role.
    gamma, delta: how r enters the time embedding of a network that is lifted; a distilled one keeps its own. With
    "t-r" a fresh student is not the teacher on the diagonal: e'(0) is not e'(t).
    checkpointing: recompute each block in the backward pass; "selective": all of it but self-attention.
    text_length: the positions that the text encoder pads to.
    text_tokens: how many of them are kept; the rest, all padding, are attended as one key of their multiplicity: in
    float32 the same function at a fraction of the cost; in bfloat16 the weight of padding is rounded, by up to 2 %.
    shift: of the sampling grid, which is saved with a student; None is that of the pipeline's own scheduler, and 5 for
    a network of random weights alone; a fine-tuned teacher keeps its scheduler. seed: of random weights.
    fuse: a LoRA file, or its directory, added into the base before anything else: for teacher, student and critic.
    base: the frozen weights of attention and feed-forward in "int8", "fp8" or "nf4", `flowmap_lora.quantised`; all else
    is as it was, and a student is saved with the weights before that. None is in the type of the run.
    expert: of a pipeline of two, Wan2.2 A14B, which one: "high", for times above its boundary, or "low". Its student is
    half of a pipeline, `flowmap_wan.pair.Experts`.
    """

    transformers: ClassVar[tuple[str, ...]]
    """The diffusers classes that a student can start from; the last is what it is."""
    pipelines: ClassVar[tuple[str, ...]]
    """Likewise of pipelines; the first is the teacher's."""
    citations: ClassVar[tuple[str, ...]] = (WAN,)
    """BibTeX."""

    path: str | None = field(default=None, converter=_path)
    pretrained: bool = True
    lora: Lora | None = Lora()
    gamma: float = field(default=0.25, validator=[validators.gt(0.0), validators.lt(1.0)])
    delta: Literal["r", "t-r"] = field(default="r", validator=validators.in_(("r", "t-r")))
    checkpointing: Checkpointing = field(default=False, validator=checked)
    text_length: int = field(default=512, validator=validators.ge(1))
    text_tokens: int = field(default=512, validator=validators.ge(1))
    _shift: float | None = field(default=None, validator=validators.optional(validators.gt(0.0)))
    seed: int = 0
    config: Mapping[str, Any] = field(factory=lambda: dict(TINY))
    fuse: str | None = field(default=None, converter=_path, kw_only=True)
    expert: Expert | None = field(
        default=None, validator=validators.optional(validators.in_(("high", "low"))), kw_only=True
    )
    base: Bits | None = field(default=None, validator=low_base, kw_only=True)

    @text_tokens.validator
    def _enough(self, attribute: Any, kept: int) -> None:
        if kept > self.text_length:
            raise ValueError(
                f"{type(self).__name__}.text_tokens = {kept}: must be at most text_length, {self.text_length}"
            )

    # ------------------------------------------------------------------ what a member of the family says
    @abstractmethod
    def student(self, net: Any, role: Role, **settings: Any) -> WanFlowMap:
        """The student, in that role, on `net`, a transformer of the last of `transformers`."""

    @abstractmethod
    def extra_config(self) -> Mapping[str, Any]:
        """What the student's transformer is told beyond Wan's own shape and the time embedding."""

    @abstractmethod
    def extra_state(self, state: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """The student's tensors that a Wan transformer with the tensors `state` does not have."""

    def as_student(self, role: Role) -> bool:
        """Whether the network of a role is built as the student's is, of a diffusion model."""
        return role == "student"

    @property
    def part(self) -> str:
        """What the network is called in a pipeline."""
        return "transformer" if self.expert is None else PARTS[self.expert]

    def usual(self) -> Usual:
        return Usual((81, 480, 832), 5.0)

    def frame_rate(self) -> float:
        return FPS

    @property
    def shift(self) -> float:
        return shift(self.path) if self._shift is None else self._shift
