"""What a backbone must be to the sampler that its network comes with."""

from __future__ import annotations

import torch

from ..._types import Cond, Latent, Rng
from ...model import FlowMapSpec
from ...reference import Played, Referenced
from ..kit_helpers import Skip, build, close, require


def check_the_sampler_ends_at_the_one_point(spec: FlowMapSpec) -> None:
    """A wrong sign, clock or scale of the time trains a student of something else, and teacher and critic agree."""
    x, _, played = _played(spec)
    close(played.end, x, "the model's own sampler, given the exact velocity of one point, does not end there", 1e-4)


def check_u_is_the_network_as_its_sampler_calls_it(spec: FlowMapSpec) -> None:
    """Positions, masks or units that differ from those of sampling make another network, a few per cent off."""
    _, cond, played = _played(spec)
    require(played.calls, "the model's own sampler does not call the network")
    two = any(call.u is not None for call in played.calls)
    u = build(spec, "teacher", "student") if two else build(spec, "teacher")
    with torch.no_grad():
        for call in played.calls:
            at = f"at t = {float(call.t[0]):.3f} the teacher is not the network as the model's own sampler calls it"
            own = {**cond, **played.images}
            close(u["teacher"](call.z, call.t, call.t, own), call.v, at, 1e-4)
            if call.r is not None and call.u is not None:
                at = f"at t, r = {float(call.t[0]):.3f}, {float(call.r[0]):.3f} the student is not the network's own u"
                close(u["student"](call.z, call.t, call.r, own), call.u, at, 1e-4)


def _played(spec: FlowMapSpec) -> tuple[Latent, Cond, Played]:
    tiny = spec.tiny()
    if not isinstance(tiny, Referenced):
        raise Skip(f"{type(spec).__name__} knows no sampler of its own: see flowmap.reference.Referenced")
    x, cond = tiny.example(1)
    with torch.no_grad():
        return x, cond, tiny.played(x, Rng.seeded(11).noise_like(x), cond)
