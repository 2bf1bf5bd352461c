"""What every spec of the family does. It is cheap to import: diffusers, peft and transformers load in `build`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Self, TypeVar

import torch
from attrs import evolve, frozen
from flowmap_lora.roles import Lora

from flowmap.mistaken import INDEX, read
from flowmap.model import About, Sampling, origin

from . import experts
from .settings import TINY, WanSettings
from .sizes import PUBLISHED, SCHEDULER, SIZES

if TYPE_CHECKING:
    from flowmap import FlowMap
    from flowmap._types import Cond, Role
    from flowmap.context_parallel import Context
    from flowmap.export.forms import Form
    from flowmap.model import Codec, Put

    from .network import WanFlowMap


@frozen
class WanSpec(WanSettings):
    __doc__ = WanSettings.__doc__

    def validate(self) -> None:
        from .directory import check

        check(self, shift=self._shift is None)
        if self.fuse is not None or (self.lora is not None and self.lora.init is not None):
            from . import loras

            loras.check(self)

    def sampling(self) -> Sampling:
        from .directory import sampling

        return Sampling() if self.path is None or not self.pretrained else sampling(self.path, self.part)

    @property
    def records(self) -> bool:
        """It makes all frames at once."""
        return False

    def about(self) -> About:
        here = self.path is None or Path(self.path).is_dir()
        name = "random weights" if self.path is None else origin(self.path)
        return About(name, None if here else self.path, "apache-2.0", self.citations)

    def build(self, roles: frozenset[Role], *, device: torch.device, dtype: torch.dtype) -> Mapping[Role, FlowMap]:
        from .build import build

        return build(self, roles, device=device, dtype=dtype)

    def tiny(self) -> Self:
        lora, tokens = None if self.lora is None else Lora(rank=4, alpha=4), min(self.text_tokens, 8)
        return evolve(self, path=None, fuse=None, lora=lora, text_length=16, text_tokens=tokens, config=dict(TINY))

    def fill(self, nets: Mapping[Role, FlowMap], put: Put, *, dtype: torch.dtype) -> None:
        from .streaming import fill

        fill(self, nets, put, dtype)

    def splits(self, ranks: int) -> None:
        from .context_parallel import divides

        try:
            heads = self.outline().config.get("num_attention_heads", ranks)
        except ValueError:
            return  # a size that is in no file here: `split` looks again
        divides(ranks, heads)

    def split(self, nets: Mapping[Role, FlowMap], context: Context) -> None:
        from .context_parallel import split

        split(nets, context)

    def outline(self) -> Self:
        """Of a published network, whose size is known, or of a directory's `transformer/config.json`."""
        if self.path is None or not self.pretrained:
            return evolve(self, path=None, fuse=None)
        file = Path(self.path) / self.part / "config.json"
        if file.is_file():
            known = json.loads(file.read_text())
            return evolve(self, path=None, fuse=None, config={key: known[key] for key in SIZES if key in known})
        if self.path not in PUBLISHED:
            raise ValueError(
                f"{type(self).__name__}.path = {self.path!r}: the size of this network is not known without its files; "
                f"known are {', '.join(PUBLISHED)}, and directories with a transformer/config.json"
            )
        return evolve(self, path=None, fuse=None, config=dict(PUBLISHED[self.path]))

    def fingerprint(self) -> str | None:
        """Of the transformer's files, where they are local, of a shift that is theirs, and of LoRA files that are put
        in: others make another run."""
        from flowmap_diffusers.identity import transformer_hash, with_loras

        base = None
        if self.path is not None and self.pretrained and (here := Path(self.path)).is_dir():
            own = [here / SCHEDULER] if self._shift is None and (here / SCHEDULER).is_file() else []
            base = transformer_hash(here, *own, part=self.part)
        return with_loras(base, self.lora, self.fuse)

    def encoders(self) -> Mapping[str, str]:
        """Of VAE and text encoder, where they are local."""
        from flowmap_diffusers.identity import encoders

        return {} if self.path is None else encoders(self.path)

    def save(self, u: FlowMap, path: Path, *, dtype: torch.dtype = torch.float32) -> None:
        """A pipeline directory, adapters fused in, and the adapters on their own under `lora/`."""
        from .checkpoints import save

        save(self, u, path, dtype)

    def changes(self, u: WanFlowMap) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        from .checkpoints import changes

        return changes(self, u)

    def rounded(self, u: WanFlowMap, dtype: torch.dtype) -> WanFlowMap:
        from .checkpoints import rounded

        return rounded(self, u, dtype)

    def contents(self, path: Path) -> Mapping[str, str]:
        from .checkpoints import contents

        return contents(self, path)

    def load(self, path: Path, *, device: torch.device, dtype: torch.dtype) -> FlowMap:
        from .unrounded import load

        return load(self, path, device=device, dtype=dtype)

    def forms(self) -> Mapping[str, Form]:
        from .comfyui import FixedStepLora
        from .forms import PeftLora, Pipeline

        return {"comfyui": FixedStepLora(), "diffusers": Pipeline(), "lora": PeftLora()}

    def codec(self, *, device: torch.device, dtype: torch.dtype) -> Codec:
        from .codec import WanCodec
        from .directory import ready

        ready(self)
        return WanCodec.of(self, device=device, dtype=dtype)

    def has_codec(self) -> bool:
        return self.path is not None

    def decoder(self, *, device: torch.device, dtype: torch.dtype) -> Codec:
        from .codec import WanCodec
        from .directory import ready

        ready(self)
        return WanCodec.of(self, device=device, dtype=dtype, texts=False)


def example(shape: tuple[int, ...], tokens: int) -> tuple[torch.Tensor, Cond]:
    """Noise of `shape`, and a text of the tiny network whose last positions are padding."""
    from flowmap import Rng

    rng = Rng.seeded(7)
    z, text = (rng.noise_like(torch.zeros(s)) for s in (shape, (shape[0], tokens, TINY["text_dim"])))
    text[:, -2:] = 0
    return z, {"text": text}


Spec = TypeVar("Spec", bound=WanSpec)


def resolve(kind: type[Spec], name: str, pipelines: tuple[str, ...], hub: re.Pattern[str]) -> Spec | None:
    """The spec of a directory of one of `pipelines`, or of a hub id that matches `hub`; None where it is another's."""
    if not (Path(name) / INDEX).is_file():
        return kind(name) if hub.fullmatch(name) else None
    index = read(Path(name) / INDEX)
    there, own = experts.experts(index), index.get("_class_name")
    if own == experts.STUDENT and len(there) == 1:
        net = read(Path(name) / experts.PARTS[there[0]] / "config.json").get("_class_name")
        return kind(name, expert=there[0]) if net == kind.transformers[-1] else None
    return kind(name) if own in pipelines else None
