"""What consistency objectives move along: the guided teacher's velocity, or that of the data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeAlias

from flowmap._types import Role

Along: TypeAlias = Literal["teacher", "data"]
ALONG: tuple[Along, ...] = ("teacher", "data")


class AlongVelocity:
    """A base of objectives with the fields velocity and w: guidance of the teacher; of the data, 1."""

    __slots__ = ()
    velocity: Along
    w: float

    def __attrs_post_init__(self) -> None:
        if self.velocity == "data" and self.w != 1.0:
            raise ValueError(f"{type(self).__name__}.w = {self.w} with velocity = 'data': guides a teacher; must be 1")

    @property
    def needs(self) -> frozenset[Role]:
        return frozenset({"student", "teacher"} if self.velocity == "teacher" else {"student"})

    @property
    def guides(self) -> Mapping[Role, float]:
        return {"teacher": self.w} if self.velocity == "teacher" else {}
