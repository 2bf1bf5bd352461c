"""Tensors on disk, whole or in one piece a rank: safetensors files of torch.distributed.checkpoint, without a pickle.

What was written by some number of ranks is read by any other, exactly. Of a `DTensor` each rank writes and reads the
piece that it holds; of any other tensor, which is the same on all ranks, one writes and all read.

Writing is our own, since torch's is one exchange between ranks from end to end, and reads nothing back: here a rank
copies its pieces while the training waits, and writes and hashes them in one pass while it goes on.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from math import prod
from pathlib import Path

import torch
from attrs import frozen
from torch import Tensor

from ...faults import reach
from ...pieces import in_pieces
from ..ranks.agree import rank, ranks, said
from ..ranks.reduction import local
from ..ranks.sharding import held
from .manifest import Sum, hashed

PLACES = "DCP_SHARDING_INFO"
"""Where torch notes, in the head of a file, the offsets of its pieces."""
TYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


class ShardError(Exception):
    """Shards could not be read; the same error on every rank."""


@frozen(eq=False)
class Piece:
    """value: on the CPU; offsets: of its first element in the whole tensor."""

    name: str
    value: Tensor
    offsets: tuple[int, ...]

    @property
    def bytes(self) -> memoryview:
        return self.value.reshape(-1).view(torch.uint8).numpy().data


def copied(tensors: Mapping[str, Tensor]) -> list[Piece]:
    """What this rank writes of `tensors`, as they are now. The largest first, so that none is aligned badly."""
    found = []
    for name, (value, offsets) in _own(tensors).items():
        found.append(Piece(name, value.detach().to("cpu", copy=True).contiguous(), offsets))
    return sorted(found, key=lambda piece: (-piece.value.element_size(), piece.name))


def write(pieces: Sequence[Piece], folder: Path, number: int) -> dict[str, Sum]:
    """This rank's file in `folder`, synchronised to the disk; size and sha256 of what was written, by its name."""
    reach("save.shard")
    folder.mkdir(exist_ok=True)
    if not pieces:
        return {}
    file = folder / f"shard-{number + 1:05d}-model-00001-of-00001.safetensors"
    return {file.name: hashed(file, [_head(pieces), *(piece.bytes for piece in pieces)])}


def _own(tensors: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, tuple[int, ...]]]:
    """This rank's pieces and their offsets. What all ranks have is spread over them by size."""
    found, load = {}, [0] * ranks()
    for name, value in sorted(tensors.items(), key=lambda item: (-item[1].numel(), item[0])):
        if in_pieces(value):
            piece, mesh = local(value), value.device_mesh
            copies = [mesh.get_local_rank(n) for n in range(mesh.ndim - 1)]
            if piece.numel() and not any(copies):
                found[name] = piece, (held(value)[0], *[0] * (value.ndim - 1))
            continue
        least = load.index(min(load))
        load[least] += value.numel() * value.element_size()
        if least == rank():
            found[name] = value, (0,) * value.ndim
    return found


def _head(pieces: Sequence[Piece]) -> bytes:
    """Of a safetensors file: a length, and what is where as JSON, to a multiple of 8 bytes."""
    places = json.dumps({piece.name: {"saved_offsets": piece.offsets} for piece in pieces})
    head: dict[str, object] = {"__metadata__": {PLACES: places, "DCP_VERSION": "1.0", "format": "pt"}}
    end = 0
    for piece in pieces:
        first, end = end, end + piece.bytes.nbytes
        shape = list(piece.value.shape)
        head[piece.name] = {"dtype": TYPES[piece.value.dtype], "shape": shape, "data_offsets": [first, end]}
    text = json.dumps(head).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def read(tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Fill `tensors` in place, of the names and shapes that were written."""
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    state = {name: value.detach() for name, value in tensors.items()}
    reader = HuggingFaceStorageReader(str(folder))
    _together(lambda: load(state, storage_reader=reader, no_dist=ranks() == 1))


def complaints(folder: Path, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """What is wrong with the shards in `folder`: the pieces must be readable, and make up whole tensors of `shapes`.

    torch would fill what it finds and leave the rest as it was.
    """
    from safetensors import SafetensorError, safe_open

    pieces: dict[str, set[tuple[tuple[int, ...], tuple[int, ...]]]] = {name: set() for name in shapes}
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, "pt") as shard:
                places = json.loads((shard.metadata() or {})[PLACES])
                for name in shard.keys():  # noqa: SIM118
                    shape = tuple(shard.get_slice(name).get_shape())
                    pieces[name].add((tuple(places[name]["saved_offsets"]), shape))
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            return [f"{file.name} is no shard: {said(error)}"]
    found = {name: sum(prod(shape) for _, shape in its) for name, its in pieces.items()}
    return [
        f"{name} has {found[name]} of {prod(shape)} values"
        for name, shape in shapes.items()
        if found[name] != prod(shape)
    ]


def _together(work: Callable[[], object]) -> None:
    from torch.distributed.checkpoint.api import CheckpointException

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")
        try:
            work()
        except CheckpointException as error:  # a BaseException
            failed = sorted(error.failures.items())
            raise ShardError("; ".join(f"rank {rank}: {said(cause)}" for rank, (cause, _) in failed)) from None
