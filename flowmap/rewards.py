"""What videos are to have more of: one reward or several at once, and the advantages that training is told of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

import torch
from attrs import field, frozen
from torch import Tensor, nn

from . import validators
from ._types import Cond, Latent, Shared
from .model import Codec, FlowMapSpec

Spread: TypeAlias = Literal["batch", "prompt"]
SMALL = 1e-4
"""Beside a standard deviation."""


@runtime_checkable
class Reward(Protocol):
    """A judge of videos; a value, like everything in a recipe. differentiable: whether its gradient means something."""

    @property
    def name(self) -> str: ...

    @property
    def differentiable(self) -> bool: ...

    def __call__(self, videos: Tensor, prompts: Sequence[str]) -> Tensor:
        """[B], more is better, of videos [B, frames, 3, H, W] in [0, 1] and of their prompts, each "" if not known."""


@frozen
class ModuleReward:
    """A reward by any network: `make()` gives it, once a device, and it is called as net(videos, prompts) -> [B].

    make: a function at the top of a module, so that a run can say what it is; the network is frozen and in eval mode.
    """

    name: str = field(validator=validators.instance_of(str))
    make: Callable[[], nn.Module] = field(validator=validators.is_callable())
    differentiable: bool = True
    _made: dict[torch.device, nn.Module] = field(factory=dict, init=False, repr=False, eq=False)

    def __call__(self, videos: Tensor, prompts: Sequence[str]) -> Tensor:
        if videos.device not in self._made:
            self._made[videos.device] = self.make().to(videos.device).eval().requires_grad_(False)
        found: Tensor = self._made[videos.device](videos, prompts)
        return found


def _weighed(instance: object, attribute: Any, rewards: Sequence[Any]) -> None:
    for i, one in enumerate(rewards):
        pair = isinstance(one, (tuple, list)) and len(one) == 2
        if not pair or not isinstance(one[0], (int, float)) or not isinstance(one[1], Reward):
            raise TypeError(f"Scores.rewards[{i}] = {validators.shown(one)}: must be a pair (weight, reward)")


@frozen
class Scores:
    """Latents judged as videos: decoded by the codec of `backbone`, then by each of `rewards`, (weight, reward).

    prompts: the texts that conditions were made of, for rewards that read them: a sample's is known by its condition,
    the nearest of all. Without, every prompt is "". backbone: None judges what it is given, in place of videos.
    """

    backbone: FlowMapSpec | None
    rewards: tuple[tuple[float, Reward], ...] = field(validator=[validators.min_len(1), _weighed])
    prompts: tuple[str, ...] = ()
    _codecs: dict[torch.device, tuple[Codec, Cond]] = field(factory=dict, init=False, repr=False, eq=False)

    def __call__(self, x: Latent, cond: Cond) -> Tensor:
        """[R, B] float32, with a graph where x has one; a ValueError that names a reward of another shape."""
        videos, texts = x, [""] * len(x)
        if self.backbone is not None:
            codec, table = self._codec(self.backbone, x.device)
            videos, texts = codec.decode(x), self._texts(cond, table) if table else texts
        found = []
        for _, reward in self.rewards:
            scores = reward(videos, texts)
            if scores.shape != (len(x),):
                raise ValueError(f"reward {reward.name!r} gave {list(scores.shape)}: must be [{len(x)}], one a video")
            found.append(scores.float())
        return torch.stack(found)

    @property
    def weights(self) -> tuple[float, ...]:
        return tuple(weight for weight, _ in self.rewards)

    def _codec(self, backbone: FlowMapSpec, device: torch.device) -> tuple[Codec, Cond]:
        if device not in self._codecs:
            codec = backbone.codec(device=device, dtype=torch.float32)
            self._codecs[device] = codec, codec.encode_prompts(self.prompts) if self.prompts else {}
        return self._codecs[device]

    def _texts(self, cond: Cond, table: Cond) -> list[str]:
        off = sum(
            (cond[name].detach().float().flatten(1)[:, None] - value.float().flatten(1)[None]).square().sum(-1)
            for name, value in table.items()
            if value.is_floating_point()
        )
        assert isinstance(off, Tensor)
        return [self.prompts[i] for i in off.argmin(1).tolist()]


def advantages(
    scores: Tensor, weights: Sequence[float], shared: Shared, spread: Spread = "batch", agree: bool = False
) -> Tensor:
    """[K, n] of scores [R, K, n], K samples of each of n prompts: each reward normalised, then added by weight:

        A_r = (R - mean of its prompt) / (std + 1e-4),        A = Σ w_r A_r / Σ |w_r|.

    std: of the whole batch, or of each prompt; with the latter a prompt whose rewards are nearly equal tells noise.
    agree: a sample on which two rewards have different signs has A = 0.
    """
    off = scores - scores.mean(1, keepdim=True)
    if spread == "prompt":
        std = off.square().mean(1, keepdim=True).sqrt()
    else:
        of = torch.eye(len(scores), dtype=torch.bool, device=scores.device).repeat_interleave(scores[0].numel(), 0)
        mean = shared.mean("reward", scores.flatten(), of).reshape(-1, 1, 1)
        std = shared.mean("spread", (scores - mean).square().flatten(), of).reshape(-1, 1, 1).sqrt()
    w = torch.tensor(weights, dtype=scores.dtype, device=scores.device).reshape(-1, 1, 1)
    each = off / (std + SMALL)
    found = (w * each).sum(0) / w.abs().sum()
    if agree:
        signs = (w * each).sign()
        found = torch.where((signs.amax(0) * signs.amin(0)) < 0, torch.zeros_like(found), found)
    return found
