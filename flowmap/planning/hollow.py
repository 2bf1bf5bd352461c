"""Tensors without data, so that a real training step of a network of any size runs on a laptop.

A `Hollow` has shape, strides, dtype and device, and no elements. An operation with a hollow argument is done on torch's
meta device, by the rules that torch itself has for it, and its results are hollow; operations on ordinary tensors are
done. So times, choices and masks, which decide what a step does, are real, and what weighs gigabytes is not there.
What a step asks of a hollow tensor's value, such as whether a norm is finite, is answered with 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from attrs import frozen
from torch import Tensor, nn

CPU, META = torch.device("cpu"), torch.device("meta")


class HollowError(Exception):
    """A step needs the value of a tensor that has none."""


class Hollow(Tensor):
    """`meta`: the tensor on the meta device that stands behind it; views of one share its storage."""

    meta: Tensor

    @staticmethod
    def __new__(cls, meta: Tensor) -> Hollow:
        made: Hollow = Tensor._make_wrapper_subclass(
            cls,
            meta.size(),
            strides=meta.stride(),
            storage_offset=meta.storage_offset(),
            dtype=meta.dtype,
            device=CPU,
        )
        made.meta = meta
        return made

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"Hollow({tuple(self.shape)}, {self.dtype})"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, operation: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if operation is torch.ops.aten._local_scalar_dense.default:
            return torch.ones((), dtype=args[0].dtype).item()
        if operation._schema.is_mutable:  # neither shape nor memory changes
            return _written(operation, args, kwargs)
        if operation in _INDEXED:
            args = args[0], [*_counted(args[1])], *args[2:]
        kwargs = {name: _to_meta(value) for name, value in kwargs.items()}
        if "device" in kwargs:
            kwargs["device"] = META
        return _to_hollow(_result(operation, _to_meta(args), kwargs))


def hollowed(modules: Iterable[nn.Module]) -> None:
    """Make parameters and buffers that are on the meta device hollow, those that are shared once."""
    made: dict[int, tuple[Tensor, Tensor]] = {}  # with the old ones, so that none takes another's place
    for module in modules:
        for part in module.modules():
            for tensors in (part._parameters, part._buffers):
                for name, tensor in tensors.items():
                    if tensor is None or not tensor.is_meta or isinstance(tensor, Hollow):
                        continue
                    if id(tensor) not in made:
                        new: Tensor = Hollow(tensor.detach())
                        if isinstance(tensor, nn.Parameter):
                            new = nn.Parameter(new, tensor.requires_grad)
                        made[id(tensor)] = new, tensor
                    tensors[name] = made[id(tensor)][0]  # type: ignore[assignment]


def behind(tensor: Tensor) -> Tensor:
    """The tensor whose storage tells what it shares with others."""
    return tensor.meta if isinstance(tensor, Hollow) else tensor


# ------------------------------------------------------------------ what torch's rules say
@frozen
class _Like:
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype


@frozen
class _Constant:
    """1, 1.0 and True are equal and not the same."""

    kind: type
    value: Any


_found: dict[Any, Any] = {}


def _result(operation: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Most of torch's rules are written in Python: of operations that make new memory, what they said is remembered."""
    if any(result.alias_info for result in operation._schema.returns):
        return operation(*args, **kwargs)
    key = operation, _like(args), _like(tuple(kwargs.items()))
    if key not in _found:
        try:
            result = operation(*args, **kwargs)
        except NotImplementedError as error:
            raise HollowError(f"{operation}: what it gives depends on the values of a tensor that has none") from error
        _found[key] = _like(result)
        return result
    return _empty(_found[key])


def _like(value: Any) -> Any:
    if isinstance(value, Tensor):
        return _Like(tuple(value.shape), value.stride(), value.dtype)
    if isinstance(value, (list, tuple)):
        return tuple(map(_like, value))
    return _Constant(type(value), value)


def _empty(like: Any) -> Any:
    if isinstance(like, _Like):
        return torch.empty_strided(like.shape, like.stride, dtype=like.dtype, device=META)
    return like.value if isinstance(like, _Constant) else tuple(map(_empty, like))


def _to_meta(value: Any) -> Any:
    """Hundreds of thousands of times in a step: faster than torch's own walk through trees."""
    if isinstance(value, Hollow):
        return value.meta
    if isinstance(value, Tensor):
        return value.to(META)
    if isinstance(value, (list, tuple)):
        return type(value)([_to_meta(v) for v in value])
    return value


_INDEXED = torch.ops.aten.index.Tensor, torch.ops.aten.index_put.default


def _counted(indices: Iterable[Tensor | None]) -> Iterator[Tensor | None]:
    """Masks with values as the places where they are true, on which the result's shape depends."""
    for index in indices:
        if index is None or isinstance(index, Hollow) or index.dtype != torch.bool:
            yield index
        else:
            yield from index.nonzero().unbind(1)


def _to_hollow(value: Any) -> Any:
    if isinstance(value, Tensor):
        return Hollow(value)
    return type(value)(_to_hollow(v) for v in value) if isinstance(value, (list, tuple)) else value


def _written(operation: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """What an operation in place returns: the arguments that it writes, as they are."""
    names = [argument.name for argument in operation._schema.arguments]
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    written = [given[a.name] for a in operation._schema.arguments if a.alias_info is not None and a.alias_info.is_write]
    if not operation._schema.returns:
        return None
    return written[0] if len(operation._schema.returns) == 1 else tuple(written)
