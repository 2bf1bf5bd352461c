"""What is asked of an export: which sizes, which precision, which machines."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeAlias

import torch
from attrs import field, frozen

from .. import validators
from .errors import ExportError

Precision: TypeAlias = Literal["float32", "bf16", "fp16", "fp8"]
DTYPES: Mapping[Precision, torch.dtype] = {
    "float32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp8": torch.float16,
}
"""Of the network; in fp8 of all but the layers that `flowmap.export.fp8` replaces."""


@frozen
class Range:
    """least <= usual <= most: what a dimension may be, and what a back end tunes for."""

    least: int = field(validator=validators.ge(1))
    usual: int
    most: int

    def __attrs_post_init__(self) -> None:
        if not self.least <= self.usual <= self.most:
            raise ExportError(f"{self.least}:{self.usual}:{self.most}: must not decrease, as least:usual:most")

    @classmethod
    def parse(cls, text: str) -> Range:
        """`8` or `4:8:16`."""
        parts = text.split(":")
        if len(parts) not in (1, 3) or not all(part.isdecimal() and int(part) for part in parts):
            raise ExportError(f"{text!r}: must be one size, or least:usual:most such as 4:8:16")
        numbers = [int(part) for part in parts]
        return cls(numbers[0], numbers[len(numbers) // 2], numbers[-1])

    @classmethod
    def of(cls, value: int | tuple[int, int, int] | Range) -> Range:
        if isinstance(value, Range):
            return value
        return cls(value, value, value) if isinstance(value, int) else cls(*value)

    @property
    def fixed(self) -> bool:
        return self.least == self.most

    def __contains__(self, size: object) -> bool:
        return isinstance(size, int) and self.least <= size <= self.most

    def __str__(self) -> str:
        return str(self.usual) if self.fixed else f"{self.least}:{self.usual}:{self.most}"


@frozen
class Outside:
    """The dimension `name` has the size `found`, and must be in `range` and a multiple of `multiple`."""

    name: str
    found: int
    range: Range
    multiple: int = 1

    def allowed(self, unit: int = 1) -> str:
        """In parts of the dimension: pixels of a latent one, where `unit` is how many it stands for."""
        if self.range.fixed:
            return str(unit * self.range.usual)
        of = f", a multiple of {unit * self.multiple}" if unit * self.multiple > 1 else ""
        return f"{unit * self.range.least} to {unit * self.range.most}{of}"


def _ranges(dims: Mapping[str, int | tuple[int, int, int] | Range]) -> Mapping[str, Range]:
    return {name: Range.of(value) for name, value in dims.items()}


@frozen
class ShapeProfile:
    """A range for each named dimension of the inputs: batch, frames, height, width (of latents), text, ..."""

    dims: Mapping[str, Range] = field(converter=_ranges)

    def __getitem__(self, name: str) -> Range:
        return self.dims[name]

    @property
    def fixed(self) -> bool:
        return all(r.fixed for r in self.dims.values())

    def usual(self) -> dict[str, int]:
        return {name: r.usual for name, r in self.dims.items()}

    def only(self, names: Iterable[str]) -> ShapeProfile:
        return ShapeProfile({name: self.dims[name] for name in names})


@frozen
class Target:
    """device: where the export runs. capabilities: of the GPUs it is built for ahead of time, such as "8.9"."""

    device: Literal["cpu", "cuda"] = field(default="cpu", validator=validators.in_(("cpu", "cuda")))
    capabilities: tuple[str, ...] = field(default=(), converter=tuple)

    @capabilities.validator
    def _known(self, attribute: object, value: tuple[str, ...]) -> None:
        for name in value:
            major, _, minor = name.partition(".")
            if not (major.isdecimal() and minor.isdecimal()):
                raise ExportError(f"compute capability {name!r} (--capability): must be as 8.9")


@frozen
class Asked:
    """How an export is to be; check: whether it is compared with the student. options: of the back end."""

    precision: Precision = "float32"
    target: Target = Target()
    options: Mapping[str, Any] = field(factory=dict)
    check: bool = True

    def known(self, to: str, options: Iterable[str], *, fp8: bool = False, ahead: bool = False) -> None:
        """An error that names an option which the back end `to` does not have.

        fp8: whether it has that precision. ahead: whether it builds for GPUs that are named by compute capability.
        """
        if self.target.capabilities and not ahead:
            raise ExportError(
                f"{to} is not built for GPUs that are named: leave the compute capability "
                f"{' '.join(self.target.capabilities)} out"
            )
        if self.precision == "fp8" and not fp8:
            raise ExportError(f"{to} has no fp8: take onnx or tensorrt-rtx for it, or another precision")
        if unknown := sorted(self.options.keys() - {*options}):
            raise ExportError(f"{to} has no option {unknown[0]!r}; it has {', '.join(options) or 'none'}")
