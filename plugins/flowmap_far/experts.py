"""Two causal networks of one time that share the noise levels, as FastVideo's CausalWan2.2."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, Self

from attrs import evolve, field, frozen
from flowmap_wan.codec import WanCodec
from flowmap_wan.experts import PARTS
from flowmap_wan.sizes import SCHEDULER, shift

from flowmap import FlowMap, FlowMapSpec, validators
from flowmap.experts import TwoExperts
from flowmap.methods.citations import FAR, WAN
from flowmap.mistaken import INDEX, read
from flowmap.model import About, Sampling, Usual, origin

from .spec import Far

if TYPE_CHECKING:
    import torch

    from flowmap._types import Cond, Latent, Role
    from flowmap.model import Codec

PIPELINE = "CausalExpertsPipeline"
"""What the directory calls itself: a class that diffusers has not, since its own would leave an expert out."""


@frozen
class CausalExperts(FlowMapSpec):
    """Two causal students of one time in one directory that `flowmap import` wrote; sampled, not trained on.

    The high one was distilled to jump to the boundary b, the low one to data, and neither knows an r: of the flow map
    that they are together (`flowmap.experts.TwoExperts`) these jumps are known, and none to another r. Their sampler,
    `flowmap.experts.phased_step`, asks for no other.

    path: the directory. text_length, text_tokens: as in `Far`.
    """

    path: str
    text_length: int = field(default=512, validator=validators.ge(1))
    text_tokens: int = field(default=512, validator=validators.ge(1))

    @property
    def shift(self) -> float:
        return shift(self.path)

    @property
    def boundary(self) -> float:
        return float(read(self._at(INDEX))["boundary_ratio"])

    def validate(self) -> None:
        parts = (SCHEDULER, *(f"{part}/config.json" for part in PARTS.values()))
        if missing := [name for name in parts if not self._at(name).is_file()]:
            raise ValueError(f"CausalExperts.path = {self.path!r}: there is no {', '.join(missing)}: import it again")

    def sampling(self) -> Sampling:
        return Sampling.of(Path(self.path))

    def about(self) -> About:
        return About(origin(self.path), None, "apache-2.0", (WAN, FAR))

    def build(self, roles: frozenset[Role], *, device: torch.device, dtype: torch.dtype) -> Mapping[Role, FlowMap]:
        if roles != {"teacher"}:
            self._sampled_alone()
        return {"teacher": self.load(Path(self.path), device=device, dtype=dtype)}

    def usual(self) -> Usual:
        return evolve(self._far().usual(), guidance=None)

    def frame_rate(self) -> float:
        return self._far().frame_rate()

    def load(self, path: Path, *, device: torch.device, dtype: torch.dtype) -> FlowMap:
        high, low = (evolve(self._far(), expert=e).load(path, device=device, dtype=dtype) for e in PARTS)
        return TwoExperts(high, low, float(read(path / INDEX)["boundary_ratio"]))

    def codec(self, *, device: torch.device, dtype: torch.dtype) -> Codec:
        return WanCodec.of(self._far(), device=device, dtype=dtype)

    def decoder(self, *, device: torch.device, dtype: torch.dtype) -> Codec:
        return WanCodec.of(self._far(), device=device, dtype=dtype, texts=False)

    def _far(self) -> Far:
        return Far(self.path, lora=None, text_length=self.text_length, text_tokens=self.text_tokens)

    def fingerprint(self) -> str:
        from flowmap_diffusers.identity import transformer_hash

        low = [p for p in self._at(PARTS["low"]).iterdir() if p.suffix in (".safetensors", ".json")]
        return transformer_hash(Path(self.path), *sorted(low))

    def encoders(self) -> Mapping[str, str]:
        from flowmap_diffusers.identity import encoders

        return encoders(self.path)

    def tiny(self) -> Self:
        self._sampled_alone()

    def example(self, batch: int = 2) -> tuple[Latent, Cond]:
        self._sampled_alone()

    def _sampled_alone(self) -> NoReturn:
        raise ValueError(f"{self.path}: two experts of one time are sampled, and not trained on: give one network")

    def _at(self, name: str) -> Path:
        return Path(self.path) / name
