"""Which role's adapters the running call uses, for all layers of a network at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class Sets:
    """Which set of adapters the layers of a network use, None for none: one value for all of them."""

    def __init__(self) -> None:
        self.name: str | None = None

    @contextmanager
    def using(self, name: str | None) -> Iterator[None]:
        before, self.name = self.name, name
        try:
            yield
        finally:
            self.name = before
