"""What stands for a value that could not be made, so that the rest of a file can be judged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping


class Broken:
    """What a failed call would have given: anything made from it is as broken, and no second error."""

    def __getattr__(self, name: str) -> Broken:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __call__(self, *arguments: object, **named: object) -> Broken:
        return self

    def __getitem__(self, key: object) -> Broken:
        return self

    def __iter__(self) -> Iterator[Broken]:
        return iter(())


BROKEN = Broken()


def broken(value: object) -> bool:
    """Whether it is, or holds, what could not be made."""
    if isinstance(value, Mapping):
        return any(map(broken, value.values()))
    return isinstance(value, Broken) or (isinstance(value, (tuple, list, set)) and any(map(broken, value)))
