"""Both experts of Wan2.2 A14B as one flow map: the spec."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from attrs import evolve, field, frozen

from flowmap._types import Role
from flowmap.experts import TwoExperts
from flowmap.mistaken import INDEX, read
from flowmap.model import About, Codec, FlowMap, Put, Sampling, Splits, Streamed

from . import experts, pipelines
from .experts import Expert
from .spec import WanSpec

if TYPE_CHECKING:
    from flowmap._types import Cond, Latent
    from flowmap.context_parallel import Context

    from .network import WanFlowMap

CPU = torch.device("cpu")


def _of(instance: Any, attribute: Any, spec: Any) -> None:
    if not isinstance(spec, WanSpec) or spec.expert != attribute.name:
        raise ValueError(f"Experts.{attribute.name} = {spec!r}: must be a spec with expert = {attribute.name!r}")


def _inside(instance: Any, attribute: Any, boundary: float | None) -> None:
    if boundary is not None and not 0.0 < boundary < 1.0:
        raise ValueError(f"Experts.boundary = {boundary}: must be above 0 and below 1")


@frozen
class Experts(Streamed, Splits):
    """Two experts as one flow map by composition at their boundary, `flowmap.experts.TwoExperts`.

    high: as it is, frozen. low: the one that a recipe trains. boundary: None is what the pipeline of `low` says.

    In the run that trains the low expert, `high` is the student of the run that trained the high one, so that the low
    student learns on the states which that one makes. Its result is the pair, a whole pipeline. The student is then a
    pair; the teacher is one too where both are diffusion models or both are students, and else the low expert alone,
    as the critic is: they are asked below the boundary.
    """

    high: WanSpec = field(validator=_of)
    low: WanSpec = field(validator=_of)
    _boundary: float | None = field(default=None, validator=_inside)

    @classmethod
    def at(cls, kind: type[WanSpec], path: str) -> Experts:
        """Those of one pipeline."""
        return cls(kind(path, expert="high"), kind(path, expert="low"))

    @property
    def boundary(self) -> float:
        if self._boundary is not None:
            return self._boundary
        found = None if self.low.path is None else experts.boundary(self.low.path)
        if found is None:
            raise ValueError(f"Experts.boundary = None, and {self.low.path!r} has no boundary_ratio: give one")
        return found

    @property
    def shift(self) -> float:
        return self.low.shift

    def validate(self) -> None:
        self.high.validate()
        self.low.validate()
        theirs = None if self.high.path is None else experts.boundary(self.high.path)
        if theirs is not None and theirs != self.boundary:
            raise ValueError(
                f"the high expert, {self.high.path}, ends at t = {theirs:g}, and the low one, {self.low.path}, begins "
                f"at {self.boundary:g}: must be of one pipeline"
            )
        if self.high.shift != self.shift:
            raise ValueError(f"Experts.high has shift = {self.high.shift:g}, low has {self.shift:g}: must be the same")

    def build(self, roles: frozenset[Role], *, device: torch.device, dtype: torch.dtype) -> Mapping[Role, FlowMap]:
        kinds = [spec.sampling().kind for spec in (self.high, self.low)]
        if "student" in roles and kinds[0] == "euler" and self.high.path is not None:
            raise ValueError(
                f"Experts.high, {self.high.path}, is a diffusion model: a student of the low expert goes on from the "
                "student of the high one; distil that one first, and give its directory"
            )
        nets = dict(self.low.build(roles, device=device, dtype=dtype))
        pairs = {role for role in roles if role == "student" or (role == "teacher" and kinds[0] == kinds[1])}
        if pairs:
            high = self.high.build(frozenset[Role]({"teacher"}), device=device, dtype=dtype)["teacher"]
            high.guidance = self._guidance(self.high)
            for role in pairs:
                nets[role].guidance = self._guidance(self.low)
                nets[role] = TwoExperts(high, nets[role], self.boundary)
        return nets

    def fill(self, nets: Mapping[Role, FlowMap], put: Put, *, dtype: torch.dtype) -> None:
        for high in {id(u.high): u.high for u in nets.values() if isinstance(u, TwoExperts)}.values():
            self.high.fill({"teacher": high}, put, dtype=dtype)
        self.low.fill({role: _low(u) for role, u in nets.items()}, put, dtype=dtype)

    def splits(self, ranks: int) -> None:
        self.low.splits(ranks)

    def split(self, nets: Mapping[Role, FlowMap], context: Context) -> None:
        for high in {id(u.high): u.high for u in nets.values() if isinstance(u, TwoExperts)}.values():
            self.high.split({"teacher": high}, context)
        self.low.split({role: _low(u) for role, u in nets.items()}, context)

    def tiny(self) -> Self:
        return evolve(self, high=self.high.tiny(), low=self.low.tiny(), boundary=self.boundary)

    def outline(self) -> Experts:
        """The high one as the low one where its size is not known: a student that is still to be trained."""
        low = self.low.outline()
        try:
            high = self.high.outline()
        except ValueError:
            high = evolve(low, expert="high", lora=None, base=None)
        return evolve(self, high=high, low=low, boundary=self.boundary)

    def example(self, batch: int = 2) -> tuple[Latent, Cond]:
        return self.low.example(batch)

    def sampling(self) -> Sampling:
        """As the low one's: the one that is trained. Guidance that is not the same in both is some, of no one scale."""
        high, low = self.high.sampling(), self.low.sampling()
        if high.kind != low.kind or low.kind == "euler":
            return low
        own = {self._guidance(self.high), self._guidance(self.low)}
        return evolve(low, guidance=own.pop() if len(own) == 1 else None)

    def about(self) -> About:
        return self.low.about()

    def fingerprint(self) -> str | None:
        found = self.high.fingerprint(), self.low.fingerprint()
        return None if None in found else " ".join(map(str, found))

    def encoders(self) -> Mapping[str, str]:
        return self.low.encoders()

    def codec(self, *, device: torch.device, dtype: torch.dtype) -> Codec:
        return self.low.codec(device=device, dtype=dtype)

    def has_codec(self) -> bool:
        return self.low.has_codec()

    def decoder(self, *, device: torch.device, dtype: torch.dtype) -> Codec:
        return self.low.decoder(device=device, dtype=dtype)

    def save(self, u: FlowMap, path: Path, *, dtype: torch.dtype = torch.float32) -> None:
        """A whole pipeline of both, adapters fused in; without one to take the rest from, an expert a directory."""
        from .checkpoints import fused

        high, low = _networks(u)
        if self.low.path is None:
            self.high.save(high, path / "high", dtype=dtype)
            self.low.save(low, path / "low", dtype=dtype)
            return
        networks: dict[Expert, Any] = {"high": fused(high, dtype, CPU), "low": fused(low, dtype, CPU)}
        if "gate_value" not in networks["low"].config:  # a fine-tuned teacher remains the pipeline that it was
            pipelines.write(self.low.path, path, {experts.PARTS[name]: net for name, net in networks.items()})
            return
        # what a run says of the pair is of what it trained
        guidance: dict[Expert, float | None] = {
            "high": high.guidance,
            "low": low.guidance if u.guidance is None else u.guidance,
        }
        experts.write(self.low.path, path, networks, self.shift, guidance)

    def load(self, path: Path, *, device: torch.device, dtype: torch.dtype) -> FlowMap:
        """The pair that `save` wrote as a pipeline."""
        own = {
            expert: evolve(spec, path=str(path), pretrained=True, lora=None, base=None, fuse=None)
            for expert, spec in (("high", self.high), ("low", self.low))
        }
        nets = {expert: spec.load(Path(path), device=device, dtype=dtype) for expert, spec in own.items()}
        for expert, u in nets.items():
            u.guidance = self._guidance(own[expert])
        return TwoExperts(nets["high"], nets["low"], self.boundary)

    def contents(self, path: Path) -> Mapping[str, str]:
        own = {expert: f"the {expert} expert" for expert in experts.PARTS}
        told = {f"{experts.PARTS[expert]}/": text for expert, text in own.items()}
        if (path / INDEX).is_file():
            whole = "`DiffusionPipeline.from_pretrained(DIR, trust_remote_code=True)`, 2 steps or more"
            told = {".": f"the whole pipeline, {whole}; `student.py` is its code", **told}
        return told

    def changes(self, u: FlowMap) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        return self.low.changes(_networks(u)[1])

    def rounded(self, u: FlowMap, dtype: torch.dtype) -> FlowMap:
        """With the high expert as it is, which was not trained."""
        high, low = _networks(u)
        return TwoExperts(high, self.low.rounded(low, dtype), self.boundary)

    @staticmethod
    def _guidance(spec: WanSpec) -> float | None:
        """What a student of one or both experts has built in."""
        return experts.guidance(spec.path, spec.expert, spec.sampling().guidance)


def _networks(u: FlowMap) -> tuple[WanFlowMap, WanFlowMap]:
    from .network import WanFlowMap

    if not isinstance(u, TwoExperts) or not isinstance(u.high, WanFlowMap) or not isinstance(u.low, WanFlowMap):
        raise TypeError(f"a {type(u).__name__} is not a pair of experts of Wan's family")
    return u.high, u.low


def _low(u: FlowMap) -> FlowMap:
    return u.low if isinstance(u, TwoExperts) else u


def resolve(kind: type[WanSpec], name: str, hub: re.Pattern[str]) -> Experts | None:
    """Of a pipeline of two experts, or of students of both; None where it is another's."""
    if (Path(name) / INDEX).is_file():
        index = read(Path(name) / INDEX)
        own = index.get("_class_name") in (kind.pipelines[0], experts.STUDENT)
        return Experts.at(kind, name) if own and len(experts.experts(index)) == len(experts.PARTS) else None
    return Experts.at(kind, name) if hub.fullmatch(name) else None
