"""Which operators of a traced program a back end can take, found out without building anything."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from attrs import frozen
from torch.export import ExportedProgram


@frozen
class Support:
    """operators: calls in the program as the back end lowers it. missing: of these, the ones that it cannot take, by
    name. engines: into how many it would cut the program. by: which library said so."""

    by: str
    operators: int
    missing: Mapping[str, int]
    engines: int

    @property
    def convertible(self) -> int:
        return self.operators - sum(self.missing.values())

    @property
    def whole(self) -> bool:
        """Every operator, in one engine."""
        return not self.missing and self.engines == 1

    def problem(self) -> str:
        """Why the program does not become one engine."""
        if self.missing:
            names = ", ".join(f"{name} ({count})" for name, count in self.missing.items())
            return f"it has no converter for {names}"
        return f"it would become {self.engines} engines"


@runtime_checkable
class Foresees(Protocol):
    """An `Exporter` that knows ahead what it can build."""

    def supports(self, program: ExportedProgram) -> Support:
        """Weights may be on the meta device; a `MissingPackageError` where there is nobody to ask."""
