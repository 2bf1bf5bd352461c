"""Any backbone with a student of many heads."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from attrs import Factory, evolve, field, frozen

from flowmap import FlowMap, FlowMapSpec, validators
from flowmap.model import Sampling, Streamed, Usual

from . import heads_file

if TYPE_CHECKING:
    import torch

    from flowmap._types import Cond, Latent, Role
    from flowmap.model import About, Codec

    from .decoder import Decoder


def _own(spec: Decoded) -> float:
    return spec.backbone.shift


@frozen
class Decoded(FlowMapSpec):
    """`backbone` whose student has `heads` of them on the grid `euler_grid(heads, shift)`, a `Decoder`; or on `times`.

    shift: the backbone's own unless given. layer: the path of the last linear layer in the student, where it is not the
    one that is defined last. A student's directory has `heads.safetensors` and, in `network/`, the backbone's own,
    which alone is no student.
    """

    backbone: FlowMapSpec = field(validator=validators.instance_of(FlowMapSpec))
    heads: int = field(default=128, validator=validators.ge(1))
    shift: float = field(default=Factory(_own, takes_self=True), validator=validators.gt(0.0))
    layer: str | None = None
    times: tuple[float, ...] | None = None

    def __attrs_post_init__(self) -> None:
        if self.times is not None and len(self.times) != self.heads + 1:
            raise ValueError(f"Decoded.times has {len(self.times)}: must have heads + 1 = {self.heads + 1}")

    def build(self, roles: frozenset[Role], *, device: torch.device, dtype: torch.dtype) -> Mapping[Role, FlowMap]:
        import torch

        outer = torch.device("cpu") if isinstance(self.backbone, Streamed) else nullcontext()  # its tables have numbers
        with outer:
            nets = dict(self.backbone.build(roles, device=device, dtype=dtype))
        if "student" in nets:
            nets["student"] = self._with_heads(nets["student"])
        return nets

    def _with_heads(self, u: FlowMap) -> Decoder:
        import torch

        from flowmap.times import euler_grid

        from .decoder import Decoder, last_linear

        with torch.device("cpu"):  # whatever is built without numbers
            times = self.times or euler_grid(self.heads, self.shift).tolist()
        return Decoder(u, self.layer or last_linear(u), times)

    def save(self, u: FlowMap, path: Path, *, dtype: torch.dtype | None = None) -> None:
        import torch

        from .decoder import Decoder

        assert isinstance(u, Decoder)
        path.mkdir(parents=True, exist_ok=True)
        self.backbone.save(u.u, path / heads_file.NETWORK, dtype=dtype or torch.float32)
        heads_file.write(u, self.shift, path / heads_file.FILE)

    def load(self, path: Path, *, device: torch.device, dtype: torch.dtype) -> FlowMap:
        network = self.backbone.load(path / heads_file.NETWORK, device=device, dtype=dtype)
        found = resolved(path, self.backbone)._with_heads(network)
        heads_file.read(found, path)
        found.guidance = Sampling.of(path).guidance
        return found

    def contents(self, path: Path) -> Mapping[str, str]:
        told = "the heads: `flowmap.load(DIR)` reads them with the rest, which is no student without them"
        inner = self.backbone.contents(path / heads_file.NETWORK)
        return {heads_file.FILE: told, **{f"{heads_file.NETWORK}/{name}": text for name, text in inner.items()}}

    def forms(self) -> Mapping[str, Any]:
        from .decoded_export import FusedHeads

        return {"fused-heads": FusedHeads()}

    def tiny(self) -> Self:
        return evolve(self, backbone=self.backbone.tiny(), heads=8, times=None)

    def outline(self) -> FlowMapSpec:
        return evolve(self, backbone=self.backbone.outline())

    def example(self, batch: int = 2) -> tuple[Latent, Cond]:
        return self.backbone.example(batch)

    @property
    def images(self) -> tuple[str, ...]:
        return self.backbone.images

    def null(self, cond: Cond) -> Cond:
        return self.backbone.null(cond)

    def usual(self) -> Usual:
        return self.backbone.usual()

    def frame_rate(self) -> float | None:
        return self.backbone.frame_rate()

    def sampling(self) -> Sampling:
        return self.backbone.sampling()

    @property
    def two_times(self) -> bool:
        return self.backbone.two_times

    def validate(self) -> None:
        self.backbone.validate()
        if self.backbone.boundary is not None:
            raise ValueError("Decoded.backbone is two experts: must be one network")

    def about(self) -> About:
        return self.backbone.about()

    def fingerprint(self) -> str | None:
        return self.backbone.fingerprint()

    def encoders(self) -> Mapping[str, str]:
        return self.backbone.encoders()

    def codec(self, *, device: torch.device, dtype: torch.dtype) -> Codec:
        return self.backbone.codec(device=device, dtype=dtype)

    def has_codec(self) -> bool:
        return self.backbone.has_codec()


def resolved(path: Path, backbone: FlowMapSpec) -> Decoded:
    """What the file of heads in a student's directory says of them."""
    told = heads_file.told(path)
    return Decoded(backbone, len(told["times"]) - 1, told["shift"], told["layer"], tuple(told["times"]))
