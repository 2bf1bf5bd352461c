"""Tensors on disk, whole or in one piece a rank: torch.distributed.checkpoint, in safetensors files, without a pickle.

What was written by some number of ranks is read by any other, exactly. Of a `DTensor` each rank writes and reads the
piece that it holds; of any other tensor, which is the same on all ranks, one writes and all read.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping
from math import prod
from pathlib import Path

from torch import Tensor

from ...faults import reach
from ..ranks.agree import ranks, said

PLACES = "DCP_SHARDING_INFO"
"""Where torch notes, in the head of a file, the offsets of its pieces."""


class ShardError(Exception):
    """Shards could not be written or read; the same error on every rank."""


def write(tensors: Mapping[str, Tensor], folder: Path) -> None:
    """One file a rank in `folder`, each synchronised to the disk."""
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
    from torch.distributed.checkpoint.state_dict_saver import save
    from torch.distributed.checkpoint.storage import WriteResult
    from torch.futures import Future

    class Writer(HuggingFaceStorageWriter):
        def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
            reach("save.shard")
            return super().write_data(plan, planner)

    state = {name: value.detach().contiguous() for name, value in tensors.items()}
    writer = Writer(str(folder), save_distributed=True)
    _together(lambda: save(state, storage_writer=writer, no_dist=ranks() == 1))


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
