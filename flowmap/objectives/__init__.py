"""What is minimised."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol, TypeAlias, runtime_checkable

from attrs import field, frozen
from torch import Tensor

from .._types import Batch, Mean, Rng, Role, Shared
from ..model import FlowMap

# "student" is distilled, "teacher" is frozen, "critic" models the student's samples ("fake score"); "forward_teacher"
# is a frozen causal network that takes the teacher's place in some objectives, see `taught`.
Networks: TypeAlias = Mapping[Role, FlowMap]


@frozen
class Loss:
    """value: [] what is differentiated. logs: means by name, merged over micro-batches and ranks.

    finite: [B] which samples' own parts of the value are finite, so that a run that stops can say where to look; None
    where the objective does not tell, and then it is all of a batch whose value is not. Nothing else depends on it.
    nonfinite: what `nonfinite` says of the outputs that it compares. Samples of it count as zero where the value is
    finite; where no sample is left, the step is skipped as one whose value is not finite.
    """

    value: Tensor
    logs: Mapping[str, Mean] = field(factory=dict)
    finite: Tensor | None = None
    nonfinite: Mapping[str, Mean] = field(factory=dict)


def nonfinite(**outputs: Tensor) -> dict[str, Mean]:
    """By network, or "data": the share of samples whose part of what it gave [B, ...] is the first that is not finite.

    In the order of the computation: what is made of numbers that are not finite is none of its own.
    """
    found, blamed = dict[str, Mean](), None
    for name, output in outputs.items():
        bad = ~output.detach().reshape(len(output), -1).isfinite().all(1)
        found[name] = Mean.of((bad if blamed is None else bad & ~blamed).float())
        blamed = bad if blamed is None else bad | blamed
    return found


def within(place: str | int, parts: Mapping[str, Mean]) -> dict[str, Mean]:
    """What a part of an objective says by name, as names of the whole."""
    return {f"{place}/{name}": mean for name, mean in parts.items()}


class Objective(Protocol):
    @property
    def needs(self) -> frozenset[Role]:
        """The networks it calls."""

    def __call__(self, nets: Networks, batch: Batch, rng: Rng, shared: Shared) -> Loss: ...


class Ordered(ABC):
    """An objective that weighs samples by what others of the global batch show.

    Where the batch is in several micro-batches those others come first, so that the gradient is that of the whole.
    """

    __slots__ = ()

    @abstractmethod
    def first(self, n: int, rng: Rng) -> Tensor:
        """[n] on the CPU: whether a sample of the global batch of n comes first. rng: what the call has, of all n."""


@runtime_checkable
class Guides(Protocol):
    """An objective or an evaluation that asks networks for their velocity under classifier-free guidance."""

    @property
    def guides(self) -> Mapping[Role, float]:
        """With which w, by role; without those that it asks for none."""


def guides(parts: Iterable[object]) -> Mapping[Role, float]:
    """The largest w by role, of those that guide."""
    found: dict[Role, float] = {}
    for part in parts:
        for role, w in part.guides.items() if isinstance(part, Guides) else ():
            found[role] = max(w, found.get(role, 1.0))
    return found


@runtime_checkable
class TellsData(Protocol):
    """An objective that says whether it learns from the latents of a batch. Not a part of `Objective`: one that does
    not say, does.
    """

    @property
    def from_data(self) -> bool:
        """Else it takes of a batch the conditions and the size of the latents, and never their values."""


def from_data(parts: Iterable[object]) -> bool:
    """Whether one of them learns from the latents of a batch."""
    return any(part.from_data if isinstance(part, TellsData) else True for part in parts)


# (network, one sample to look at) -> a network that has what an objective calls; a frozen value. Where it has an
# attribute `as_flow_map` that is true, what it makes calls that network as a flow map alone, none of its blocks, and so
# a plan can count it.
Equip: TypeAlias = Callable[[FlowMap, Batch], FlowMap]


class Equips(ABC):
    """An objective that calls more of a network than a backbone has, such as a head that tells samples from data.

    Before training, each network that it names is replaced by what `equips` makes of it; what that has to train goes
    into its `trained()`. Only the networks of training change: the student that a run writes is the backbone's own.
    """

    __slots__ = ()

    @property
    @abstractmethod
    def equips(self) -> Mapping[Role, Equip]:
        """How, by role. Objectives of one run that name the same role must give equal values."""


class OnTrajectories:
    """An objective that follows whole trajectories of the teacher's own, after no history: a bidirectional teacher can
    be asked, too."""

    __slots__ = ()


def united(of: str, parts: Iterable[Mapping[Role, Equip]]) -> Mapping[Role, Equip]:
    """All of them, each role equipped once; a ValueError that begins with `of` where two differ."""
    found: dict[Role, Equip] = {}
    for part in parts:
        for role, new in part.items():
            if (old := found.setdefault(role, new)) != new:
                raise ValueError(f"{of} equips the {role} as {old} and as {new}: must be one and the same")
    return found


def equipped(nets: Networks, equips: Mapping[Role, Equip], sample: Batch) -> Networks:
    """The networks, those of `equips` with what objectives need of them."""
    return {role: equips[role](u, sample) if role in equips else u for role, u in nets.items()}


def taught_forward(needs: frozenset[Role]) -> bool:
    """Of an objective by its `needs`: whether it follows the teacher's trajectories rather than its distribution.

    It asks the teacher and no critic. A causal student learns from a causal teacher there: the trajectory of a teacher
    that makes all frames at once ends in no function of a chunk's history and its own noise, so that a regression on it
    is of a conditional mean, of less variance than the data. Causal Forcing, arXiv:2602.02214, arXiv:2606.25473.
    """
    return "teacher" in needs and "critic" not in needs


def taught(nets: Networks, objective: Objective) -> Networks:
    """The networks as `objective` sees them: "forward_teacher", where there is one, as the teacher it follows."""
    if "forward_teacher" in nets and taught_forward(objective.needs):
        return {**nets, "teacher": nets["forward_teacher"]}
    return nets
