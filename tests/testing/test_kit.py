"""The kit passes what is right, skips what does not apply, and each check fails for the defect it is there for."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from flowmap_wan21 import Wan21
from torch import Tensor, nn

from flowmap import FlowMap, FlowMapSpec, ModuleSpec, Rng
from flowmap._types import Cache, Cond, Latent, Role, Time
from flowmap.reference import Heard, Played, Referenced
from flowmap.testing import BACKBONE_CHECKS, Skip, check_backbone, parametrize_with_backbone_checks
from flowmap.testing.kit_helpers import close, require, run
from flowmap.time_embedding import mix
from tests.toys import CHANNELS, CHUNK, GAMMA, TEXT, Linear, Net, Toy, ToyFlowMap

EVERYTHING = Toy(causal=True, shared=True, checkpointing=True)


class Long(Toy):
    """Three chunks: a history that grows."""

    def example(self, batch: int = 2) -> tuple[Latent, Cond]:
        rng = Rng.seeded(0)
        z, text = torch.zeros(batch, 3 * CHUNK, CHANNELS, 2, 2), torch.zeros(batch, TEXT)
        return rng.noise_like(z), {"text": rng.noise_like(text)}


class Window(ToyFlowMap):
    """Right: it trains on the last two chunks of a prefix, of which the first sees less than when it is generated."""

    def teacher_forcing(self, x: Latent, cond: Cond, rng: Rng) -> tuple[Latent, Cond]:
        end = CHUNK * (1 + rng.randint(x.shape[1] // CHUNK))
        return x[:, max(0, end - 2 * CHUNK) : end], {**cond, "clean": x[:, :end]}

    def mask(self, frames: int, clean: int) -> Tensor:
        mask = super().mask(frames, clean)
        mask[:-CHUNK, :clean] = False
        return mask

    def packed(self, x: Latent, cond: Cond) -> Cond | None:
        """None of its calls gives every chunk all of its history."""
        return None


class Own(FlowMap):
    """u of a width of its own."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer = nn.Linear(width, width)

    def forward(self, z: Latent, t: Time, r: Time, cond: Cond, cache: Cache = None) -> Latent:
        return self.layer(z.to(self.layer.weight.dtype)).to(z.dtype) * (1 + t + (t - r) ** 2)[:, None]


@attrs.frozen
class OwnSize(FlowMapSpec):
    """`example` follows the spec's own size, and not `tiny`'s."""

    width: int = 64

    def build(self, roles: frozenset[Role], *, device: torch.device, dtype: torch.dtype) -> Mapping[Role, FlowMap]:
        nets: dict[Role, FlowMap] = {}
        for role in roles:
            torch.manual_seed(0)
            nets[role] = Own(self.width).to(device, dtype).requires_grad_(role != "teacher")
        return nets

    def tiny(self) -> OwnSize:
        return attrs.evolve(self, width=8)

    def example(self, batch: int = 2) -> tuple[Latent, Cond]:
        return Rng.seeded(0).noise_like(torch.zeros(batch, self.width)), {}


class Pools(ToyFlowMap):
    """The mean of the tokens that a mask keeps, as text refiners have it: without one there is none."""

    def hidden(self, z: Latent, e: Tensor, cond: Cond) -> Tensor:
        mask = cond["mask"].to(self.dtype)
        return super().hidden(z, e, cond) + (mask.sum(1) / mask.sum(1))[:, None, None]


class Masked(Toy):
    """Its mask is integer, and stays as it is where the condition is replaced."""

    def example(self, batch: int = 2) -> tuple[Latent, Cond]:
        z, cond = super().example(batch)
        return z, {**cond, "mask": torch.tensor([[1, 1, 0]]).expand(batch, -1)}


class MaskedInFloat(Masked):
    """Zeros would be no mask."""

    def example(self, batch: int = 2) -> tuple[Latent, Cond]:
        z, cond = super().example(batch)
        return z, {**cond, "mask": cond["mask"].float()}

    def null(self, cond: Cond) -> Cond:
        return {"text": torch.zeros_like(cond["text"][:1]), "mask": torch.ones_like(cond["mask"][:1])}


class Sees(ToyFlowMap):
    """Its tokens hear the first frame, too."""

    def hidden(self, z: Latent, e: Tensor, cond: Cond) -> Tensor:
        return super().hidden(z, e, cond) + self.net.inp(cond["first"].flatten(1).to(self.dtype))[:, None]


class Pictured(Toy):
    """Of a network that begins with an image."""

    @property
    def images(self) -> tuple[str, ...]:
        return ("first",)

    def example(self, batch: int = 2) -> tuple[Latent, Cond]:
        z, cond = super().example(batch)
        return z, {**cond, "first": Rng.seeded(8).noise_like(z[:, 0])}


RIGHT = [Toy(), EVERYTHING, Long(causal=True, checkpointing=True), Long(causal=True, network=Window), OwnSize()]
RIGHT += [Masked(network=Pools), MaskedInFloat(network=Pools), Pictured(network=Sees)]


@parametrize_with_backbone_checks([*RIGHT, Wan21(), Wan21(lora=None, checkpointing=True)])
def test_a_right_backbone_conforms(spec: FlowMapSpec, check: Any) -> None:
    check(spec)


def outcome(spec: FlowMapSpec, check: str) -> tuple[str, str]:
    (result,) = run(spec, [function for function in BACKBONE_CHECKS if function.__name__ == f"check_{check}"])
    return result.outcome, result.message


def test_what_does_not_apply_is_skipped_with_a_reason() -> None:
    for check in ("the_past_does_not_see_the_future", "a_cache_is_a_snapshot", "cached_generation_is_what_was_trained"):
        assert outcome(Toy(), check) == ("skipped", "all frames are generated in one chunk")


@attrs.frozen
class Plain(FlowMapSpec):
    """A spec without a field `checkpointing`."""

    inner: Toy = Toy()

    def build(self, roles: frozenset[Role], *, device: torch.device, dtype: torch.dtype) -> Mapping[Role, FlowMap]:
        return self.inner.build(roles, device=device, dtype=dtype)

    def tiny(self) -> Any:
        return self

    def example(self, batch: int = 2) -> tuple[Latent, Cond]:
        return self.inner.example(batch)


def test_a_spec_without_checkpointing_skips_that_check() -> None:
    assert outcome(Plain(), "checkpointing_leaves_the_gradient") == ("skipped", "Plain has no field `checkpointing`")


# ------------------------------------------------------------------ defects of networks


class Mixes(ToyFlowMap):
    def forward(self, z: Latent, t: Time, r: Time, cond: Cond, cache: Cache = None) -> Latent:
        return super().forward(z, t, r, cond, cache) + z.mean(0, keepdim=True)


class ReturnsHalf(ToyFlowMap):
    def forward(self, z: Latent, t: Time, r: Time, cond: Cond, cache: Cache = None) -> Latent:
        return super().forward(z, t, r, cond, cache).bfloat16()


class Flattens(ToyFlowMap):
    def forward(self, z: Latent, t: Time, r: Time, cond: Cond, cache: Cache = None) -> Latent:
        return super().forward(z, t, r, cond, cache).flatten(2)


class NotANumber(ToyFlowMap):
    def forward(self, z: Latent, t: Time, r: Time, cond: Cond, cache: Cache = None) -> Latent:
        return super().forward(z, t, r, cond, cache) * torch.nan


class WritesIntoZ(ToyFlowMap):
    def forward(self, z: Latent, t: Time, r: Time, cond: Cond, cache: Cache = None) -> Latent:
        return super().forward(z.mul_(2), t, r, cond, cache)


class Random(ToyFlowMap):
    def forward(self, z: Latent, t: Time, r: Time, cond: Cond, cache: Cache = None) -> Latent:
        return nn.functional.dropout(super().forward(z, t, r, cond, cache), 0.1)


class IgnoresR(ToyFlowMap):
    def embed(self, t: Time, r: Time) -> Tensor:
        return super().embed(t, t)


class CastsTimes(ToyFlowMap):
    def embed(self, t: Time, r: Time) -> Tensor:
        return super().embed(t.to(self.dtype).float(), r.to(self.dtype).float())


class CastsScaledTimes(ToyFlowMap):
    """As 1000 t, which is what most networks were trained with."""

    def embed(self, t: Time, r: Time) -> Tensor:
        return super().embed((1000 * t).to(self.dtype).float() / 1000, (1000 * r).to(self.dtype).float() / 1000)


class CastsR(ToyFlowMap):
    def embed(self, t: Time, r: Time) -> Tensor:
        return super().embed(t, r.to(self.dtype).float())


class ForgetsToCast(ToyFlowMap):
    """Fails in a bfloat16 build."""

    def hidden(self, z: Latent, e: Tensor, cond: Cond) -> Tensor:
        return self.net.inp(z.flatten(2)) + (e + self.net.text(cond["text"]))[:, None]


class Gates(ToyFlowMap):
    """Weights one time with 1 - γ and adds the other in full: no identity on the diagonal."""

    def embed(self, t: Time, r: Time) -> Tensor:
        now = super().embed(t, t)
        return mix(now, now, GAMMA) + GAMMA * now if self.two_times else now


class Branches(ToyFlowMap):
    """Python that looks at values cannot be traced."""

    def forward(self, z: Latent, t: Time, r: Time, cond: Cond, cache: Cache = None) -> Latent:
        return super().forward(z, t, r, cond, cache) * (2 if float(t[0]) > 0.5 else 1)


class Tables:
    """What torch.export does not put back after a trace: it is no attribute of the module itself."""

    def __init__(self) -> None:
        self.traces, self.by_shape = 0, dict[Any, Tensor]()


class KeepsState(ToyFlowMap):
    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.tables = Tables()

    def forward(self, z: Latent, t: Time, r: Time, cond: Cond, cache: Cache = None) -> Latent:
        self.tables.traces += torch.compiler.is_exporting()
        return super().forward(z, t, r, cond, cache) + self.tables.traces


class KeepsATracedTensor(KeepsState):
    """A table by shape, as rotary positions are often kept: one that a trace made has no values."""

    def forward(self, z: Latent, t: Time, r: Time, cond: Cond, cache: Cache = None) -> Latent:
        if z.shape not in self.tables.by_shape:
            self.tables.by_shape[z.shape] = z.new_ones(z.shape[-1]).cumsum(0)
        return super(KeepsState, self).forward(z, t, r, cond, cache) + self.tables.by_shape[z.shape]


class ExportsSomethingElse(ToyFlowMap):
    def forward(self, z: Latent, t: Time, r: Time, cond: Cond, cache: Cache = None) -> Latent:
        return super().forward(z, t, r, cond, cache) * (2 if torch.compiler.is_exporting() else 1)


class LosesFrames(ToyFlowMap):
    def chunks(self, frames: int) -> tuple[int, ...]:
        return (2,)


class OneAdapterForAll(ToyFlowMap):
    """Chosen by what exists, not by who calls."""

    def activate(self) -> None:
        for layer in self.net.modules():
            if isinstance(layer, Linear):
                layer.active = "student"


class ActivatesLate(ToyFlowMap):
    """After the first layers have run with whatever set was used before."""

    def forward(self, z: Latent, t: Time, r: Time, cond: Cond, cache: Cache = None) -> Latent:
        h = self.hidden(z, self.embed(t, r), cond)
        self.activate()
        return self.run(h, cache, None).reshape(z.shape).to(z.dtype)


class RecomputesWithAnothersAdapter(ToyFlowMap):
    """Chooses the adapter before the checkpointed region and not inside."""

    def attend(self, h: Tensor, history: Any, mask: Tensor | None) -> Tensor:
        activate, self.activate = self.activate, lambda: None  # type: ignore[method-assign]
        try:
            return super().attend(h, history, mask)
        finally:
            self.activate = activate  # type: ignore[method-assign]


class BuildsGraphsOnOthers(ToyFlowMap):
    """no_grad does not hold where it is undone."""

    def forward(self, z: Latent, t: Time, r: Time, cond: Cond, cache: Cache = None) -> Latent:
        with torch.enable_grad():
            u = super().forward(z, t, r, cond, cache)
        if self.role == "critic":
            u.sum().backward(retain_graph=True)
        return u


class ChangesItsCache(ToyFlowMap):
    def extend(self, cache: Cache, x: Latent, cond: Cond) -> Cache:
        new = super().extend(cache, x, cond)
        if cache is not None:
            cache[0].copy_(new[0][:, -cache[0].shape[1] :])
        return new


class AppendsToItsCache(ToyFlowMap):
    """No tensor is changed in place, so autograd does not notice."""

    def extend(self, cache: Cache, x: Latent, cond: Cond) -> Cache:
        new = list(super().extend(cache, x, cond))
        if cache is None:
            return new
        cache[:] = new
        return cache


class OverwritesItsCache(ToyFlowMap):
    """And no shape either."""

    def extend(self, cache: Cache, x: Latent, cond: Cond) -> Cache:
        new = list(super().extend(None, x, cond))
        if cache is not None:
            cache[:] = new
        return new


class WritesIntoTheChunk(ToyFlowMap):
    def extend(self, cache: Cache, x: Latent, cond: Cond) -> Cache:
        return super().extend(cache, x.clamp_(-1, 1), cond)


class SeesItselfClean(ToyFlowMap):
    def mask(self, frames: int, clean: int) -> Tensor:
        mask = super().mask(frames, clean)
        mask[:, clean - frames : clean] |= torch.eye(frames, dtype=torch.bool)
        return mask


class SeesLaterNoise(ToyFlowMap):
    def mask(self, frames: int, clean: int) -> Tensor:
        mask = super().mask(frames, clean)
        mask[:, clean:] = True
        return mask


class SeesTheNextNoise(ToyFlowMap):
    """The first chunk that of the second, and nobody that of the last."""

    def mask(self, frames: int, clean: int) -> Tensor:
        mask = super().mask(frames, clean)
        mask[:CHUNK, clean : clean + 2 * CHUNK] = frames > 2 * CHUNK
        mask[:CHUNK, clean : clean + CHUNK] = True
        return mask


class SeesTheNextClean(ToyFlowMap):
    def mask(self, frames: int, clean: int) -> Tensor:
        mask = super().mask(frames, clean)
        mask[:CHUNK, CHUNK : 2 * CHUNK] = frames > 2 * CHUNK
        return mask


class ForgetsTheFirstChunk(ToyFlowMap):
    """Its cache holds the last chunk alone; in training it sees all."""

    def extend(self, cache: Cache, x: Latent, cond: Cond) -> Cache:
        return super().extend(None, x, cond)


class MissesAChunk(ToyFlowMap):
    """In training the third chunk does not see the first; its cache holds all."""

    def mask(self, frames: int, clean: int) -> Tensor:
        mask = super().mask(frames, clean)
        mask[2 * CHUNK :, :CHUNK] = False
        return mask


class RemembersWithoutAGraph(ToyFlowMap):
    def extend(self, cache: Cache, x: Latent, cond: Cond) -> Cache:
        with torch.no_grad():
            return super().extend(cache, x, cond)


class KeepsAChunkTooFew(ToyFlowMap):
    def bound(self, window: Any) -> None:
        super().bound(attrs.evolve(window, recent=window.recent - 1))


class KeepsHalfAChunk(ToyFlowMap):
    def teacher_forcing(self, x: Latent, cond: Cond, rng: Rng) -> tuple[Latent, Cond]:
        kept, forced = super().teacher_forcing(x, cond, rng)
        return kept[:, 1:], forced


class KeepsOtherFrames(ToyFlowMap):
    def teacher_forcing(self, x: Latent, cond: Cond, rng: Rng) -> tuple[Latent, Cond]:
        kept, forced = super().teacher_forcing(x, cond, rng)
        return kept.flip(1), forced


class ThawsSomethingElse(ToyFlowMap):
    def thaw(self) -> None:
        self.net.out.requires_grad_(True)


NETWORKS: list[tuple[str, Toy]] = [
    ("samples_do_not_mix", Toy(network=Mixes)),
    ("u_has_the_shape_and_dtype_of_z", Toy(network=ReturnsHalf)),
    ("u_has_the_shape_and_dtype_of_z", Toy(network=Flattens)),
    ("u_has_the_shape_and_dtype_of_z", Toy(network=NotANumber)),
    ("u_has_the_shape_and_dtype_of_z", Toy(network=WritesIntoZ)),
    ("building_twice_gives_the_same_function", Toy(network=Random)),
    ("the_student_uses_r", Toy(network=IgnoresR)),
    ("times_stay_float32", Toy(network=CastsTimes)),
    ("times_stay_float32", Toy(network=CastsScaledTimes)),
    ("times_stay_float32", Toy(network=CastsR)),
    ("times_stay_float32", Toy(network=ForgetsToCast)),
    ("the_student_starts_as_the_teacher", Toy(network=Gates)),
    ("it_exports", Toy(network=Branches)),
    ("it_exports", Toy(network=KeepsState)),
    ("it_exports", Toy(network=KeepsATracedTensor)),
    ("it_exports", Toy(network=ExportsSomethingElse)),
    ("chunks_cover_the_frames", Toy(network=LosesFrames)),
    ("roles_do_not_leak", Toy(network=OneAdapterForAll, shared=True)),
    ("roles_do_not_leak", Toy(network=ActivatesLate, shared=True)),
    ("checkpointing_leaves_the_gradient", Toy(network=RecomputesWithAnothersAdapter, shared=True)),
    ("a_student_update_reaches_the_student_alone", Toy(network=BuildsGraphsOnOthers)),
    ("a_cache_is_a_snapshot", Toy(network=ChangesItsCache, causal=True)),
    ("a_cache_is_a_snapshot", Long(network=AppendsToItsCache, causal=True)),
    ("a_cache_is_a_snapshot", Toy(network=WritesIntoTheChunk, causal=True)),
    ("replaying_leaves_the_gradient", Long(network=AppendsToItsCache, causal=True)),
    ("replaying_leaves_the_gradient", Long(network=OverwritesItsCache, causal=True)),
    ("the_past_does_not_see_the_future", Toy(network=SeesItselfClean, causal=True)),
    ("the_past_does_not_see_the_future", Toy(network=SeesLaterNoise, causal=True)),
    ("the_past_does_not_see_the_future", Long(network=SeesTheNextNoise, causal=True)),
    ("the_past_does_not_see_the_future", Long(network=SeesTheNextClean, causal=True)),
    ("the_past_does_not_see_the_future", Toy(network=KeepsOtherFrames, causal=True)),
    ("cached_generation_is_what_was_trained", Long(network=ForgetsTheFirstChunk, causal=True)),
    ("cached_generation_is_what_was_trained", Long(network=MissesAChunk, causal=True)),
    ("cached_generation_is_what_was_trained", Toy(network=KeepsHalfAChunk, causal=True)),
    ("a_packed_pass_is_cached_generation", Long(network=MissesAChunk, causal=True)),
    ("a_gradient_through_the_history_is_one_in_every_form", Toy(network=RemembersWithoutAGraph, causal=True)),
    ("a_window_is_the_whole_history_until_it_drops_some", Long(network=KeepsAChunkTooFew, causal=True)),
    ("a_thawed_teacher_trains_what_a_critic_trains", Toy(network=ThawsSomethingElse)),
]


@pytest.mark.parametrize("check, spec", NETWORKS, ids=[spec.network.__name__ for _, spec in NETWORKS])
def test_a_network_with_a_defect_fails_the_check_that_is_there_for_it(check: str, spec: Toy) -> None:
    assert outcome(attrs.evolve(spec, network=ToyFlowMap), check)[0] == "passed"
    found, message = outcome(spec, check)
    assert found == "failed" and message


# ------------------------------------------------------------------ defects of specs


class Unseeded(Toy):
    def base(self, role: Role) -> Net:
        net = super().base(role)
        nn.init.normal_(net.out.weight)
        return net


class LiftsWithARandomEmbedder(Toy):
    def base(self, role: Role) -> Net:
        net = super().base(role)
        if net.then is not None:
            nn.init.constant_(net.then[0].weight, 0.3)  # type: ignore[index, arg-type]
        return net


class TrainsTheTeacher(Toy):
    def build(self, roles: frozenset[Role], *, device: torch.device, dtype: torch.dtype) -> Mapping[Role, FlowMap]:
        nets = super().build(roles, device=device, dtype=dtype)
        for u in nets.values():
            u.requires_grad_(True)
        return nets


class FreezesTheStudent(Toy):
    def build(self, roles: frozenset[Role], *, device: torch.device, dtype: torch.dtype) -> Mapping[Role, FlowMap]:
        nets = super().build(roles, device=device, dtype=dtype)
        for u in nets.values():
            u.requires_grad_(False)
        return nets


class TiesStudentAndCritic(Toy):
    def build(self, roles: frozenset[Role], *, device: torch.device, dtype: torch.dtype) -> Mapping[Role, FlowMap]:
        nets = super().build(roles, device=device, dtype=dtype)
        if {"student", "critic"} <= {*nets}:
            nets["critic"].net.out = nets["student"].net.out  # type: ignore[union-attr]
        return nets


class LoadsAFreshStudent(Toy):
    def load(self, path: Path, *, device: torch.device, dtype: torch.dtype) -> FlowMap:
        return self.build(frozenset({"student"}), device=device, dtype=dtype)["student"]


class ToldInfinity(Toy):
    """Its condition is not finite, and so is every loss."""

    def example(self, batch: int = 2) -> tuple[Latent, Cond]:
        z, cond = super().example(batch)
        return z, {"text": cond["text"] * float("inf")}


class ZerosTheMask(MaskedInFloat):
    null = FlowMapSpec.null


class NullsTwoRows(Toy):
    def null(self, cond: Cond) -> Cond:
        return {"text": cond["text"][:2]}


class NullsInHalf(Toy):
    def null(self, cond: Cond) -> Cond:
        return {"text": cond["text"][:1].half()}


class NullsSomethingElse(Toy):
    def null(self, cond: Cond) -> Cond:
        return {"label": torch.zeros(1)}


class NullsTheImage(Pictured):
    def null(self, cond: Cond) -> Cond:
        return {name: torch.zeros_like(value[:1]) for name, value in cond.items()}


class HasNoImage(Pictured):
    def example(self, batch: int = 2) -> tuple[Latent, Cond]:
        return Toy.example(self, batch)


@attrs.define
class CanBeChanged(FlowMapSpec):
    inner: Toy = Toy()
    build, tiny, example = Plain.build, Plain.tiny, Plain.example


@attrs.frozen
class HoldsAnObject(Plain):
    make: Any = attrs.field(factory=object)


class NoValue(FlowMapSpec):
    """No attrs class."""

    build, tiny, example = Plain.build, Plain.tiny, Plain.example  # type: ignore[assignment]


@attrs.frozen
class BecomesAnother(Plain):
    def tiny(self) -> Any:
        return Toy()


@attrs.frozen
class WrongBatch(Plain):
    def example(self, batch: int = 2) -> tuple[Latent, Cond]:
        z, cond = self.inner.example(batch)
        return z, {"text": cond["text"][:1]}


@attrs.frozen
class Sampled(Toy, Referenced):
    """Has a sampler of its own, Euler. sign: of what that takes the network for; shift: of the conditions it gives."""

    sign: float = 1.0
    shift: float = 0.0

    def played(self, x: Latent, noise: Latent, cond: Cond) -> Played:
        teacher = self.build(frozenset({"teacher"}), device=torch.device("cpu"), dtype=torch.float32)["teacher"]
        z, calls, grid = noise, [], (1.0, 0.6, 0.2, 0.0)
        for t, r in pairwise(grid):
            s = torch.full((len(z),), t)
            calls.append(Heard(z, s, teacher(z, s, s, {**cond, "text": cond["text"] + self.shift})))
            z = z - (t - r) * self.sign * (z - x) / t
        return Played(z, calls)


class TwoEmbedders(nn.Module):
    """Both of sinusoids."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(2, 3), nn.Linear(2, 3)

    @staticmethod
    def waves(t: Tensor) -> Tensor:
        return torch.stack([(3 * t).cos(), (3 * t).sin()], -1)

    def forward(self, z: Tensor, t: Tensor) -> Tensor:
        return z * self.one(self.waves(t)) + self.two(self.waves(t))


def heard(*paths: str) -> ModuleSpec:
    torch.manual_seed(0)
    return ModuleSpec(TwoEmbedders(), paths, features=TwoEmbedders.waves, z=torch.ones(2, 3))


@pytest.mark.parametrize("check", ["the_sampler_ends_at_the_one_point", "u_is_the_network_as_its_sampler_calls_it"])
def test_a_sampler_of_its_own_is_a_witness(check: str) -> None:
    assert outcome(Sampled(), check)[0] == "passed"
    assert outcome(Toy(), check) == (
        "skipped",
        "Toy knows no sampler of its own: see flowmap.reference.Referenced",
    )


def test_all_embedders_read_the_clock_or_none_is_asked() -> None:
    assert outcome(heard("one", "two"), "all_of_the_time_goes_through_the_clock")[0] == "passed"
    assert outcome(Toy(), "all_of_the_time_goes_through_the_clock") == ("skipped", "no embedder reads a clock")


SPECS: list[tuple[str, FlowMapSpec]] = [
    ("the_sampler_ends_at_the_one_point", Sampled(sign=-1.0)),
    ("u_is_the_network_as_its_sampler_calls_it", Sampled(shift=0.1)),
    ("all_of_the_time_goes_through_the_clock", heard("one")),
    ("building_twice_gives_the_same_function", Unseeded()),
    ("the_student_starts_as_the_teacher", LiftsWithARandomEmbedder()),
    ("only_the_teacher_is_frozen", TrainsTheTeacher()),
    ("only_the_teacher_is_frozen", FreezesTheStudent()),
    ("only_the_teacher_is_frozen", TiesStudentAndCritic()),
    ("roles_do_not_leak", TiesStudentAndCritic()),
    ("saving_and_loading_keeps_the_student", LoadsAFreshStudent()),
    ("it_distils", ToldInfinity()),
    ("the_null_condition_is_one", ZerosTheMask(network=Pools)),
    ("the_null_condition_is_one", NullsTwoRows()),
    ("the_null_condition_is_one", NullsInHalf()),
    ("the_null_condition_is_one", NullsSomethingElse()),
    ("guidance_leaves_the_image", NullsTheImage(network=Sees)),
    ("guidance_leaves_the_image", HasNoImage()),
    ("guidance_leaves_the_image", Pictured()),  # whose network does not hear it
    ("it_distils", FreezesTheStudent()),
    ("the_spec_is_a_value", CanBeChanged()),
    ("the_spec_is_a_value", HoldsAnObject()),
    ("the_spec_is_a_value", NoValue()),
    ("the_spec_is_a_value", BecomesAnother()),
    ("u_has_the_shape_and_dtype_of_z", WrongBatch()),
]


@pytest.mark.parametrize("check, spec", SPECS, ids=[f"{type(spec).__name__}-{check}" for check, spec in SPECS])
def test_a_spec_with_a_defect_fails_the_check_that_is_there_for_it(check: str, spec: FlowMapSpec) -> None:
    found, message = outcome(spec, check)
    assert found == "failed" and message


MESSAGES: list[tuple[str, FlowMapSpec, str]] = [
    ("times_stay_float32", Toy(network=ForgetsToCast), "a bfloat16 build does not take a float32 z and condition"),
    ("it_exports", Toy(network=Branches), "torch.export cannot trace u: GuardOnDataDependentSymNode: "),
    (
        "it_exports",
        Toy(network=KeepsState),
        "torch.export changed the module, on which a forward pass must keep nothing: u, called again, gives another",
    ),
    (
        "it_exports",
        Toy(network=KeepsATracedTensor),
        "torch.export changed the module, on which a forward pass must keep nothing: u, called again, gives a Fake",
    ),
    ("it_exports", Toy(network=ExportsSomethingElse), "the exported program computes something else than u"),
    (
        "the_null_condition_is_one",
        ZerosTheMask(network=Pools),
        "the critic's u is not finite with text, mask replaced by null(cond): override `FlowMapSpec.null`",
    ),
    (
        "the_null_condition_is_one",
        NullsTwoRows(),
        "null(cond)['text'] is (2, 3), torch.float32: must be as one row of the condition, (1, 3), torch.float32",
    ),
]


@pytest.mark.parametrize("check, spec, message", MESSAGES, ids=[f"{c}-{m[:40]}" for c, _, m in MESSAGES])
def test_a_failure_says_what_is_wrong(check: str, spec: FlowMapSpec, message: str) -> None:
    assert outcome(spec, check)[1].startswith(message)


def test_without_a_null_condition_the_kit_says_that_guidance_is_not_tested() -> None:
    class Classes(Toy):
        def null(self, cond: Cond) -> Cond:
            return {}

    assert outcome(Classes(), "the_null_condition_is_one") == (
        "skipped",
        "null(cond) replaces none of text: guidance is not tested; override `FlowMapSpec.null`",
    )
    assert outcome(OwnSize(), "the_null_condition_is_one")[0] == "skipped"
    assert outcome(Classes(), "it_distils")[0] == "passed"
    assert outcome(Classes(), "a_student_update_reaches_the_student_alone")[0] == "passed"


def test_a_spec_that_imports_a_model_library_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "peft.py").write_text("")  # stands in for the real one, which takes seconds
    (tmp_path / "flowmap_eager.py").write_text("import peft\nfrom tests.toys import Toy\nclass Eager(Toy): pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    from flowmap_eager import Eager

    found, message = outcome(Eager(), "the_spec_imports_no_model_library")
    assert found == "failed" and "loads peft: import it in `build`" in message


def test_every_check_has_a_defect_that_it_finds() -> None:
    found = {check for check, _ in [*NETWORKS, *SPECS]} | {"the_spec_imports_no_model_library"}
    assert {f"check_{check}" for check in found} == {check.__name__ for check in BACKBONE_CHECKS}


def test_every_check_says_why_it_matters() -> None:
    assert all(check.__doc__ for check in BACKBONE_CHECKS)


# ------------------------------------------------------------------ running it


def test_results_name_the_check_the_outcome_and_the_message(monkeypatch: pytest.MonkeyPatch) -> None:
    def check_that_passes(spec: FlowMapSpec) -> None:
        """Nothing."""

    def check_that_fails(spec: FlowMapSpec) -> None:
        require(1 == 2, "one is not two")

    def check_that_skips(spec: FlowMapSpec) -> None:
        raise Skip("it is Monday")

    def check_that_breaks(spec: FlowMapSpec) -> None:
        raise KeyError("text")

    checks = (check_that_passes, check_that_fails, check_that_skips, check_that_breaks)
    monkeypatch.setattr("flowmap.testing.kit_checks.BACKBONE_CHECKS", checks)
    found = check_backbone(Toy())
    assert str(found).splitlines() == [
        "passed   that_passes",
        "failed   that_fails   one is not two",
        "skipped  that_skips   it is Monday",
        "failed   that_breaks  KeyError: 'text'",
        "1 passed, 2 failed, 1 skipped",
    ]
    assert found == [
        ("that_passes", "passed", ""),
        ("that_fails", "failed", "one is not two"),
        ("that_skips", "skipped", "it is Monday"),
        ("that_breaks", "failed", "KeyError: 'text'"),
    ]


@pytest.mark.parametrize("value", [1.1, torch.nan])
def test_close_says_by_how_much(value: float) -> None:
    close(torch.ones(2), torch.ones(2), "same")
    with pytest.raises(
        AssertionError, match=r"u is not v: they differ by (1.0e-01|nan) of the largest element, not 1e-05"
    ):
        close(torch.tensor([1.0, value]), torch.ones(2), "u is not v")
    with pytest.raises(AssertionError, match=r"\(2,\) is not \(3,\)"):
        close(torch.ones(2), torch.ones(3), "shape")


def test_flowmap_does_not_import_the_kit_and_the_kit_no_pytest() -> None:
    code = """
import sys
sys.modules["pytest"] = None
import flowmap
assert not [name for name in sys.modules if name.startswith("flowmap.testing")]
from flowmap.testing import check_backbone
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_adapters_start_as_nothing_and_perturbed_ones_do_something() -> None:
    from flowmap.testing.kit_helpers import perturb

    u = Toy(shared=True).build(frozenset({"student"}), device=torch.device("cpu"), dtype=torch.float32)["student"]
    z, c = Toy().example()
    t = torch.full((2,), 0.5)
    before = u(z, t, t, c)
    perturb(u, 0)
    assert not torch.allclose(u(z, t, t, c), before, atol=1e-3)
