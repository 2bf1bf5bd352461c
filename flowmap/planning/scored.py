"""Rewards in a plan: what is decoded and judged is counted, and not computed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import attrs
from attrs import evolve, frozen
from torch import Tensor

from ..method import Method
from ..rewards import Reward, Scores
from .trace import replaced

DECODED, JUDGED, GRADIENT = "videos decoded", "judged by {}", ", with a gradient"


def silent(method: Method, counts: Counter[str]) -> Method:
    """`method`, whose `Scores` decode nothing and ask no reward: `counts` is told of how many samples they would."""
    return replaced(method, lambda objective: _silent(objective, counts))


@frozen
class Told:
    """In the place of a reward: of any latents a number that has their graph. decodes: of whether they come from a
    codec, the first reward is told."""

    name: str
    differentiable: bool
    decodes: bool
    counts: Counter[str]

    def __call__(self, videos: Tensor, prompts: Sequence[str]) -> Tensor:
        kind = GRADIENT if videos.requires_grad else ""
        self.counts[JUDGED.format(self.name) + kind] += len(videos)
        self.counts[DECODED + kind] += self.decodes * len(videos)
        return videos.flatten(1).mean(1)


def _silent(value: Any, counts: Counter[str]) -> Any:
    if isinstance(value, Scores):
        return Scores(None, tuple((w, _told(value, k, r, counts)) for k, (w, r) in enumerate(value.rewards)))
    if isinstance(value, tuple):
        return tuple(_silent(one, counts) for one in value)
    if not attrs.has(type(value)):
        return value
    own = {f: getattr(value, f.name) for f in attrs.fields(type(value)) if f.init}
    changed = {f.alias: new for f, old in own.items() if (new := _silent(old, counts)) != old}
    return evolve(value, **changed) if changed else value


def _told(scores: Scores, number: int, reward: Reward, counts: Counter[str]) -> Told:
    return Told(reward.name, reward.differentiable, number == 0 and scores.backbone is not None, counts)
