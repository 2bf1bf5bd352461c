"""In how few bits a frozen base may be."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias, get_args

from flowmap import validators

Bits: TypeAlias = Literal["int8", "fp8", "nf4"]
BITS: tuple[Bits, ...] = get_args(Bits)


def low_base(spec: Any, attribute: Any, bits: Any) -> None:
    """None, or one of `BITS` under adapters: what has few bits cannot be trained."""
    validators.optional(validators.in_(BITS))(spec, attribute, bits)
    if bits is not None and spec.lora is None:
        name = type(spec).__name__
        raise ValueError(f"{name}.base = {bits!r}: is frozen, under adapters: must be None where {name}.lora is None")
