"""What a causal network remembers of a video that has no end."""

from __future__ import annotations

from typing import Literal, TypeAlias

from attrs import field, frozen

from . import validators

Positions: TypeAlias = Literal["top", "contiguous"]


@frozen
class Window:
    """The first `sink` chunks of a video and the last `recent` finished ones; what lies between is dropped.

    A policy of `FlowMap.extend`, given to a network by `FlowMap.bound`: the snapshot that `extend` returns has at most
    sink + recent chunks, and no latent frame has a position beyond those that the network knows, however long the
    video. What a chunk heard when it was remembered stays in it, dropped chunks among that. Until the first is dropped,
    before chunk sink + recent + 1 is made, everything is as without a window.

    positions: where the frames stand in time once some were dropped. "top": the sink at its own places, all later ones
    moved back together so that the newest is the last of a training video, as Self Gradient Forcing samples,
    arXiv:2607.20368: distances are those of training, and no longer change once that length is reached. "contiguous":
    numbered as if nothing had been between. A network that knows differences of positions alone has the two the same
    without a sink. int8: keys and values of finished chunks in a byte each, which is then not exact.
    """

    sink: int = field(default=1, validator=validators.ge(0))
    recent: int = field(default=4, validator=validators.ge(1))
    positions: Positions = field(default="top", validator=validators.in_(("top", "contiguous")))
    int8: bool = False

    @property
    def chunks(self) -> int:
        """The most that is remembered."""
        return self.sink + self.recent

    def keeps(self, chunk: int, finished: int) -> bool:
        """Whether chunk number `chunk`, from 0, is remembered where `finished` were made."""
        return chunk < self.sink or chunk >= finished - self.recent

    def moved(self, dropped: int, end: int, trained: int) -> int:
        """By how many frames all but the sink stand earlier than they came.

        dropped: frames that are remembered no more; end: frames of the video up to the newest, which is counted;
        trained: of a training video.
        """
        return dropped if self.positions == "contiguous" else min(dropped, max(0, end - trained))
