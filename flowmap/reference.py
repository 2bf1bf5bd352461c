"""A model's own sampler as a witness of its backbone: what teacher and student share, they cannot judge in each other.

A data set of one point x has the exact velocity E[ε - x | z_t] = (z_t - x) / t. A sampler whose network is replaced by
it ends at x, whatever its steps, if sign, direction, scale and clock are read as the sampler means them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from attrs import field, frozen

from ._types import Cond, Latent, Time
from .model import FlowMapSpec


@frozen(eq=False)
class Heard:
    """One call that a sampler made of its network, as the backbone reads it: z_t, t, and the velocity that the plain
    network gives for what it was handed, positions and conditions included.

    u: of a network that has two times of its own, what the plain one gives at (t, r), for some r < t.
    """

    z: Latent
    t: Time
    v: Latent
    r: Time | None = None
    u: Latent | None = None


@frozen(eq=False)
class Played:
    """Where the sampler ended, and the calls that it made. images: the entries `FlowMapSpec.images` as the backbone's
    codec makes them of the image that the sampler was given, and made its own of."""

    end: Latent
    calls: Sequence[Heard]
    images: Cond = field(factory=dict)


class Referenced(FlowMapSpec, ABC):
    """A spec of a network that has a sampler of its own, such as a pipeline of diffusers."""

    @abstractmethod
    def played(self, x: Latent, noise: Latent, cond: Cond) -> Played:
        """Run that sampler from `noise`, without guidance, on the network of `tiny`, whose output is replaced by the
        exact velocity of the one point x at the time that it is handed; what the network itself gives is written down.

        `x` and `noise` are one sample, as `example(1)` has it.
        """
