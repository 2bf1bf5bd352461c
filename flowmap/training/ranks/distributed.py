"""The processes of torchrun: their group, their devices, and how a run is spread over them."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from itertools import count
from typing import TypeVar

import torch
from attrs import field, frozen
from torch import distributed
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from ... import validators
from .agree import LostRankError, during, lost, rank, ranks

T = TypeVar("T")
_joined = count()
TIMEOUT = 1800.0  # seconds
DAYS = 7  # for what one rank does alone while the others wait, such as encoding a data set


@frozen
class Distribution:
    """How a run is spread over processes. It changes no result, and is no part of a recipe.

    shard: each rank holds its part of every network, by blocks, which are put together as they run (FSDP2); False keeps
    a copy of everything on each. group: of hybrid sharding, how many ranks share a copy, neighbours such as those of
    one machine, whose link is fast; None is all. timeout: of an exchange, in seconds, after which the run ends; None
    is what FLOWMAP_TIMEOUT in the environment says, and without it half an hour.
    context: how many ranks, neighbours too, have the same samples and share their tokens: for videos whose activations
    are too large for one, and for more ranks than samples.
    """

    shard: bool = True
    group: int | None = field(default=None, validator=validators.optional(validators.ge(2)))
    timeout: float | None = field(default=None, validator=validators.optional(validators.gt(0.0)))
    context: int = field(default=1, validator=validators.ge(1))

    def __attrs_post_init__(self) -> None:
        if self.group is not None and not self.shard:
            raise ValueError(f"Distribution.group = {self.group} with shard = False: nothing is sharded; leave it out")

    def check(self, world: int, batches: Sequence[int]) -> None:
        """A ValueError where `world` processes cannot share the global batches, or form no whole groups."""
        _ = self.seconds
        if world > 1 and self.group is not None and world % self.group:
            raise ValueError(
                f"Distribution.group = {self.group}: does not divide {world} processes; must be one of "
                f"{_said(n for n in range(2, world + 1) if world % n == 0)}"
            )
        if world % self.context:
            raise ValueError(
                f"Distribution.context = {self.context}: so many processes share a sample, and there "
                f"{'is 1' if world == 1 else f'are {world}'}; start a multiple of {self.context} with torchrun"
            )
        for number, batch in enumerate(batches):
            if batch % (world // self.context):
                fits = (n for n in range(1, min(batches) + 1) if not any(b % n for b in batches))
                raise ValueError(
                    f"batch = {batch} of stage {number} does not divide over {world} processes"
                    + (f", {self.context} of which share a sample" if self.context > 1 else "")
                    + f": start {_said(n * self.context for n in fits)}, or change the batch"
                )

    @property
    def seconds(self) -> float:
        """Of the timeout."""
        if self.timeout is not None:
            return self.timeout
        given = os.environ.get("FLOWMAP_TIMEOUT", str(TIMEOUT))
        try:
            if (seconds := float(given)) > 0 and math.isfinite(seconds):
                return seconds
        except ValueError:
            pass
        raise ValueError(f"FLOWMAP_TIMEOUT = {given!r}: must be a number of seconds > 0")

    def mesh(self, device: torch.device) -> DeviceMesh:
        """Of all ranks; its last dimension is the one over which a network is sharded."""
        if self.group is None:
            return init_device_mesh(device.type, (ranks(),), mesh_dim_names=("shard",))
        shape = (ranks() // self.group, self.group)
        return init_device_mesh(device.type, shape, mesh_dim_names=("copy", "shard"))


def world() -> int:
    """How many processes torchrun started; 1 without it."""
    return ranks() if distributed.is_initialized() else int(os.environ.get("WORLD_SIZE", "1"))


def own_device(device: torch.device | str | None) -> torch.device:
    """The device of this process: CUDA where there is one, and of several processes on a machine each its own."""
    chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if chosen.type == "cuda" and chosen.index is None and world() > 1:
        chosen = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        if chosen.index >= (there := torch.cuda.device_count()):
            raise ValueError(f"{there} CUDA devices are here, too few for local rank {chosen.index}: start fewer")
    return chosen


@contextmanager
def joined(distribution: Distribution, device: torch.device) -> Iterator[None]:
    """While entered, the processes of torchrun are a group: NCCL on CUDA, gloo on the CPU. One process needs none.

    A group that was there before is used, and stays.
    """
    if world() == 1 or distributed.is_initialized():
        yield
        return
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.set_device(device)
    number, seconds = int(os.environ.get("RANK", "0")), distribution.seconds
    during("its start")
    try:
        store, rank, size = next(rendezvous("env://", timeout=timedelta(seconds=seconds)))
        distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if cuda else "gloo",
            store=PrefixStore(f"flowmap{_attempt()}.{next(_joined)}", store),  # a store outlives its groups
            rank=rank,
            world_size=size,
            timeout=timedelta(seconds=seconds),
            device_id=device if cuda else None,
        )
        during("the preparation of networks and data")
        yield
    except BaseException as error:
        if not cuda and distributed.is_initialized():
            # NCCL would wait for ranks that are not coming; the process ends now, and takes it along
            distributed.destroy_process_group()
        if lost(error):
            raise LostRankError(error, number, seconds) from error
        raise
    distributed.destroy_process_group()


def leave(code: int = 0) -> None:
    """The end of a process that is not the first, at once and without Python's own.

    A thread of gloo's sometimes aborts it there (torch 2.13, one exit in eight), which torchrun takes for a failure and
    stops the first process while that is still judging the student. In the first process, or without torchrun, nothing.
    """
    if int(os.environ.get("RANK", "0")) > 0:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _attempt() -> str:
    """Which start by torchrun this is: what an earlier one left in the store are addresses of processes that are gone.

    Machines count their own failures alone, so with several of them the count may differ, and is left out.
    """
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") if os.environ.get("GROUP_WORLD_SIZE") == "1" else "0"


def first_alone(work: Callable[[], T]) -> T:
    """What `work` gives: on rank 0 first, and then on the others, which find what it left on the disk."""
    if ranks() == 1:
        return work()
    group = distributed.new_group(backend="gloo", timeout=timedelta(days=DAYS))
    if rank() == 0:
        found = work()
        distributed.barrier(group)
    else:
        distributed.barrier(group)
        found = work()
    distributed.destroy_process_group(group)
    return found


def _said(numbers: Iterator[int]) -> str:
    *most, last = map(str, numbers)
    return f"{', '.join(most)} or {last}" if most else last
