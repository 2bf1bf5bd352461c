"""Whether networks and data fit, found with one sample before any training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from attrs import define, frozen
from torch import Tensor, distributed, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from ..._types import Batch, Rng, Role
from ...faults import reach
from ...model import ConditionError, FlowMap
from ...objectives import Networks
from ...recipe import RecipeError
from ...validators import listed
from .agree import lost, rank, ranks
from .distributed import TIMEOUT

T, R = 0.75, 0.25
PATIENT = 60.0  # seconds that a rank with an error waits for the others to hear of it; one without waits longer


def check(nets: Networks, sample: Batch, made_of: Mapping[Role, str], source: str, seconds: float = TIMEOUT) -> None:
    """A `RecipeError` with what each network says to `sample`, one sample of the data: one forward pass a role.

    made_of: where each network comes from; source: where the data does, both for the message. seconds: that a rank may
    need longer than another. Every rank must call it, and all raise the same, or end.
    """
    wrong = _null(sample, source)
    exchange = Exchange.new(seconds)
    for role in () if wrong else sorted(nets):
        by = nets["student"] if role == "forward_teacher" and "student" in nets else nets[role]
        errors = exchange(_forward(nets[role], sample, by))
        if (error := _together(errors)) is not None:
            wrong.append(f"the {role} ({made_of[role]}) does not take the data ({source}: {_shapes(sample)}): {error}")
        if not all(errors) and error is not None:
            break  # ranks are in different places
    if wrong:
        raise RecipeError(*wrong)


def _null(sample: Batch, source: str) -> list[str]:
    """What guidance would put in place of a condition must be shaped as that is."""
    wrong = []
    for name, value in sample.null.items():
        if name not in sample.cond:
            there = listed([*sample.cond]) if sample.cond else "no entry"
            wrong.append(f"null[{name!r}] of the data ({source}): cond has {there}")
        elif value.shape[1:] != sample.cond[name].shape[1:]:
            wrong.append(
                f"null[{name!r}] of the data ({source}) is {_shape(value)}: must be as cond[{name!r}], "
                f"{_shape(sample.cond[name])}, in all but samples"
            )
    return wrong


@torch.no_grad()
def _forward(u: FlowMap, sample: Batch, by: FlowMap) -> str | None:
    """What is wrong with a forward pass on `sample`, after the history of the network `by`; None if nothing is."""
    last = Last()
    try:
        z, cond = by.teacher_forcing(sample.x, sample.cond, Rng.seeded(0))
        t = torch.full((len(z),), T, device=z.device)
        reach("fits.before")
        with _watched(last):
            made = u(z, t, t * (R / T), cond)
        reach("fits.after")
    except ConditionError as error:
        return str(error)
    except (RuntimeError, ValueError, TypeError, KeyError, IndexError) as error:
        if isinstance(error, torch.OutOfMemoryError) or lost(error):
            raise
        said = str(error).strip().partition("\n")[0]
        return f"{last.told(u)}{type(error).__name__}: {said}"
    if made.shape != z.shape:
        return f"it gives {_shape(made)} for {_shape(z)}: must be the same"
    return None


@frozen
class Exchange:
    """What each rank has to say, to all: by a group of its own, for the others may be waiting in the network's.

    They are where a rank has failed alone, before it was through. Nobody comes to the exchange then, and that rank, but
    no other, gives up after `PATIENT` seconds: it says what it has and ends, from which the others learn that it is
    gone.
    """

    group: Any = None
    seconds: float = TIMEOUT

    @classmethod
    def new(cls, seconds: float) -> Exchange:
        """Every rank must ask for it."""
        if ranks() == 1:
            return cls()
        return cls(distributed.new_group(backend="gloo", timeout=timedelta(seconds=seconds)), seconds)

    def __call__(self, error: str | None) -> list[str | None]:
        """By rank."""
        outcomes: list[str | None] = [None] * ranks()
        outcomes[rank()] = error
        if ranks() > 1:
            try:
                self._meet(timedelta(seconds=self.seconds if error is None else PATIENT))
                distributed.all_gather_object(outcomes, error, self.group)
            except RuntimeError:
                if error is None:
                    raise
        return outcomes

    def _meet(self, most: timedelta) -> None:
        """All are here; a RuntimeError where one is not, after `most`.

        By messages: of what a group does together and was given up, the end of the process waits for the others.
        """
        others = [k for k in range(ranks()) if k != rank()]
        here = torch.zeros(1)
        sent = [distributed.isend(here, k, self.group) for k in others]
        heard = [distributed.irecv(torch.zeros(1), k, self.group) for k in others]
        for message in (*heard, *sent):
            assert message is not None
            message.wait(most)


def _together(errors: Sequence[str | None]) -> str | None:
    """What is wrong on all ranks, or who says what; None if nothing is."""
    if len({*errors}) == 1:
        return errors[0]
    return "; ".join(f"rank {k} alone: {error}" for k, error in enumerate(errors) if error is not None)


@define
class Last:
    """The innermost layer with weights that was entered, and what it was given."""

    layer: nn.Module | None = None
    given: tuple[Tensor, ...] = ()

    def __call__(self, module: nn.Module, arguments: tuple[object, ...]) -> None:
        if next(module.parameters(recurse=False), None) is not None:
            self.layer, self.given = module, tuple(a for a in arguments if isinstance(a, Tensor))

    def told(self, u: FlowMap) -> str:
        """`net.text: weight is [16, 3], and it was given [1, 4]: `"""
        name = next((name for name, module in u.named_modules() if module is self.layer), None)
        if self.layer is None or name is None:
            return ""
        weights = ", ".join(f"{key} is {_shape(p)}" for key, p in self.layer.named_parameters(recurse=False))
        return f"{name}: {weights}, and it was given {', '.join(map(_shape, self.given)) or 'nothing'}: "


@contextmanager
def _watched(last: Last) -> Iterator[None]:
    handle = register_module_forward_pre_hook(last)
    try:
        yield
    finally:
        handle.remove()


def _shapes(sample: Batch) -> str:
    cond = [f"cond[{name!r}] {_shape(value)}" for name, value in sample.cond.items()]
    return ", ".join([f"x {_shape(sample.x)}", *cond])


def _shape(value: Tensor) -> str:
    return str(list(value.shape))
