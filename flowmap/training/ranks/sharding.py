"""Networks in pieces, one on each rank: FSDP2, by the blocks that a network names and what is outside of them.

Roles may share a network, such as a frozen base with a set of adapters for each. So it is networks that are sharded,
and not roles: those that have a parameter in common stand under one root, each block is sharded once, and a role is
called through its root, which gathers what is outside of the blocks for the duration of the call.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..._types import Cache, Cond, Latent, Role, Time
from ...model import FlowMap, FlowMapSpec, Kept, Rows, Streamed, Wrapped
from ...objectives import Networks
from ...pieces import in_pieces
from .agree import rank
from .reduction import local

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


class Root(nn.Module):
    """Roles that share parameters, as the one module that FSDP calls."""

    def __init__(self, roles: Mapping[Role, FlowMap]) -> None:
        super().__init__()
        self.roles = nn.ModuleDict({str(role): u for role, u in roles.items()})

    def forward(self, call: Callable[..., Any], *given: Any) -> Any:
        return call(*given)


class Sharded(Wrapped):
    """`u`, of whose parameters this rank holds a part; all ranks must make the same calls in the same order."""

    def __init__(self, u: FlowMap, root: Root) -> None:
        super().__init__(u)
        self._root = (root,)  # u is in it: not a part of this

    @property
    def root(self) -> Root:
        return self._root[0]

    def forward(self, z: Latent, t: Time, r: Time, cond: Cond, cache: Cache = None) -> Latent:
        out: Latent = self.root(self.u, z, t, r, cond, cache)
        return out

    def keeping(self, samples: Tensor) -> Kept | None:
        return self.u.keeping(samples)

    def extend(self, cache: Cache, x: Latent, cond: Cond) -> Cache:
        return self.root(self.u.extend, cache, x, cond)

    def extend_noisy(self, cache: Cache, z: Latent, t: Time, cond: Cond) -> Cache:
        return self.root(self.u.extend_noisy, cache, z, t, cond)


def pieces(
    spec: FlowMapSpec,
    build: Callable[[torch.device], Networks],
    mesh: DeviceMesh,
    device: torch.device,
    dtype: torch.dtype,
) -> Networks:
    """The networks that `build` makes of `spec` on a device, in pieces on `device`.

    Of a `Streamed` spec no process holds more than its pieces and the tensor that is being read; of another each builds
    the whole on the CPU first.
    """
    nets = build(torch.device("meta" if isinstance(spec, Streamed) else "cpu"))
    found = sharded(nets, mesh)
    if isinstance(spec, Streamed):
        materialise(found, device)
        spec.fill(nets, put, dtype=dtype)
    return found


def sharded(nets: Networks, mesh: DeviceMesh) -> dict[Role, FlowMap]:
    """The networks in pieces, in place; gradients are summed over all ranks. On meta tensors nothing is allocated."""
    from torch.distributed.fsdp import FSDPModule, fully_shard

    # An in-place change of a view would lose the gathering before a backward pass; nobody changes a block's output.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    roots = [Root({role: nets[role] for role in group}) for group in _families(nets)]
    for root in roots:
        blocks = {id(block): block for u in root.roles.values() for block in _flow_map(u).blocks}
        for module in (*blocks.values(), root):
            fully_shard(module, mesh=mesh, reshard_after_forward=True)
        for block in blocks.values():
            block.register_forward_hook(_Returning(root))
        for module in root.modules():
            if isinstance(module, FSDPModule):  # plain sums: the loss is divided by the global batch already
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)
    # No share_comm_ctx: roots would have one order of prefetching, which the end of a backward pass clears, that of a
    # critic inside of the student's, too.
    return {role: Sharded(nets[role], root) for root in roots for role in nets if role in root.roles}


def materialise(nets: Networks, device: torch.device) -> None:
    """Memory for the pieces of networks in pieces that were built on the meta device; buffers that have numbers keep
    them."""
    for root in {id(u.root): u.root for u in nets.values() if isinstance(u, Sharded)}.values():
        buffers = {name: b.clone() for name, b in root.named_buffers() if not b.is_meta}
        root.to_empty(device=device)
        for name, b in root.named_buffers():
            b.copy_(buffers[name])


class _Returning:
    """Gathers what is outside of the blocks when the gradient comes back to a block.

    FSDP does it when it comes back to what the network gave out; but a head may look at a block's tokens alone.
    """

    def __init__(self, root: Root) -> None:
        self.root = root

    def __call__(self, block: nn.Module, given: Any, out: Any) -> None:
        from torch.distributed.fsdp import FSDPModule

        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, Tensor) and tensor.requires_grad and isinstance(self.root, FSDPModule):
                tensor.register_hook(self._gather)

    def _gather(self, gradient: Tensor) -> None:
        from torch.distributed.fsdp import FSDPModule

        assert isinstance(self.root, FSDPModule)
        self.root.unshard()


@torch.no_grad()
def put(p: Tensor, rows: Rows) -> None:
    """This rank's rows of a parameter; only they are read."""
    part, (first, last) = local(p), held(p)
    if part.numel():
        part.copy_(rows(slice(first, last)))


def held(p: Tensor) -> tuple[int, int]:
    """The rows of p that this rank holds: the last ranks have fewer, or none."""
    if not in_pieces(p):
        return 0, len(p)
    mesh = p.device_mesh
    size, place = -(-len(p) // mesh.size(mesh.ndim - 1)), mesh.get_local_rank(mesh.ndim - 1)
    return min(place * size, len(p)), min((place + 1) * size, len(p))


def whole(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """On the CPU of rank 0, put together from all ranks, a tensor at a time; nothing on the others."""
    found = {}
    for name, value in tensors.items():
        value = value.detach()
        value = value.full_tensor() if in_pieces(value) else value
        if rank() == 0:
            found[name] = value.cpu()
    return found


def _families(nets: Networks) -> list[list[Role]]:
    """Roles that have a parameter in common, directly or through others."""
    found: list[tuple[list[Role], set[int]]] = []
    for role in sorted(nets):
        members, ids = [role], {id(p) for p in nets[role].parameters()}
        rest = []
        for others, theirs in found:
            if ids & theirs:
                members, ids = [*others, *members], ids | theirs
            else:
                rest.append((others, theirs))
        found = [*rest, (members, ids)]
    return [members for members, _ in found]


def _flow_map(u: nn.Module) -> FlowMap:
    assert isinstance(u, FlowMap)
    return u
