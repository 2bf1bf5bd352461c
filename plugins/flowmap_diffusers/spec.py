"""The spec of every row. It is cheap to import: diffusers, peft and transformers load in `build`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from attrs import evolve, frozen
from flowmap_lora import Lora

from flowmap.mistaken import INDEX, read
from flowmap.model import About, Sampling
from flowmap.reference import Played

from . import checks
from .folder import fetch, local
from .settings import STUDENT, Settings
from .sizes import PUBLISHED

if TYPE_CHECKING:
    from flowmap import FlowMap
    from flowmap._types import Cond, Latent, Role
    from flowmap.export.forms import Form
    from flowmap.model import Codec, Put

    from .network import DiffusersFlowMap


@frozen
class Diffusers(Settings):
    __doc__ = Settings.__doc__

    def validate(self) -> None:
        if self.path is None:
            self.network()
            self._files()
            return
        if (folder := local(self.path)) is None:
            return
        found = () if self.is_student else checks.wrong(folder, self.row, self.family)
        if (wrong := next(iter(found), None)) is not None:
            raise ValueError(f"Diffusers.path = {self.path!r}: {wrong}")
        self.network()
        self._files()

    def _files(self) -> None:
        if self.fuse is not None or (self.lora is not None and self.lora.init is not None):
            from .loras import check

            check(self)

    def sampling(self) -> Sampling:
        """A network that guidance was distilled into has it built in: more would be guided twice."""
        if self.is_student:
            return Sampling.of(Path(str(self.path)))
        return Sampling(guidance=self.guidance if self.distilled else 1.0)

    @property
    def records(self) -> bool:
        return False

    @property
    def two_times(self) -> bool:
        return self.is_student or bool(self.row.second)

    def about(self) -> About:
        here = self.path is None or Path(self.path).is_dir()
        name = f"random weights ({self.family})" if self.path is None else Path(self.path).name
        return About(name, None if here else self.path, self.row.licence)

    def build(self, roles: frozenset[Role], *, device: torch.device, dtype: torch.dtype) -> Mapping[Role, FlowMap]:
        from .build import build

        return build(self, roles, device=device, dtype=dtype)

    def fill(self, nets: Mapping[Role, FlowMap], put: Put, *, dtype: torch.dtype) -> None:
        from .build import fill

        fill(self, nets, put, dtype)

    def tiny(self) -> Diffusers:
        lora = None if self.lora is None else Lora(rank=4, alpha=4)
        return evolve(self, path=None, fuse=None, lora=lora, config={})

    def example(self, batch: int = 2) -> tuple[Latent, Cond]:
        import torch

        from flowmap import Rng

        rng = Rng.seeded(7)
        made = {name: rng.noise_like(torch.zeros(batch, *shape)) for name, shape in self.row.example.items()}
        made |= {name: torch.ones_like(made[name], dtype=torch.int64) for name in self.row.masks}
        if "guidance" in made:
            made["guidance"] = torch.linspace(2.0, 6.0, batch)
        return made.pop("z"), made

    def null(self, cond: Cond) -> Cond:
        """Zeros for what a prompt is made into; masks and embedded guidance are not replaced."""
        import torch

        return {name: torch.zeros_like(cond[name][:1]) for name in self.row.null if name in cond}

    def played(self, x: Latent, noise: Latent, cond: Cond) -> Played:
        from .witness import played

        return played(self, x, noise, cond)

    def outline(self) -> Diffusers:
        """Of a directory's `transformer/config.json`, or of a published network, whose size is known."""
        if self.path is None:
            return evolve(self, fuse=None)
        folder = local(self.path)
        if folder is not None and (folder / "transformer" / "config.json").is_file():
            return evolve(self, path=None, fuse=None, config=dict(self.network()))
        if self.path not in PUBLISHED:
            raise ValueError(
                f"Diffusers.path = {self.path!r}: the size of this network is not known without its files; known are "
                f"{', '.join(PUBLISHED)}, and directories with a transformer/config.json"
            )
        return evolve(self, path=None, fuse=None, config=dict(PUBLISHED[self.path]))

    def fingerprint(self) -> str | None:
        """Of the transformer's files, where they are local, of the schedule where u or its grid is made of it, and of
        LoRA files that are put in."""
        from .identity import transformer_hash, with_loras

        base = None
        if self.path is not None and (here := Path(self.path)).is_dir():
            schedule = here / "scheduler" / "scheduler_config.json"
            own = self.row.vp or self._shift is None
            base = transformer_hash(here, *([schedule] if own and schedule.is_file() else []))
        return with_loras(base, self.lora, self.fuse)

    def encoders(self) -> Mapping[str, str]:
        """With the guidance that the codec writes into the condition, where the network reads one."""
        from .identity import encoders

        if self.path is None:
            return {}
        told = {"guidance": f"{self.guidance:g}"} if self.distilled else {}
        return {**encoders(self.path), **told}

    def save(self, u: FlowMap, path: Path, *, dtype: torch.dtype = torch.float32) -> None:
        """A pipeline directory that diffusers loads with the code beside it, adapters fused in; those under `lora/`."""
        from .students import save

        save(self, u, path, dtype)

    def changes(self, u: DiffusersFlowMap) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        from .students import changes

        return changes(self, u)

    def rounded(self, u: DiffusersFlowMap, dtype: torch.dtype) -> FlowMap:
        from .students import rounded

        return rounded(u, dtype)

    def contents(self, path: Path) -> Mapping[str, str]:
        from .students import contents

        return contents(self, path)

    def forms(self) -> Mapping[str, Form]:
        from .forms import FixedSteps, FixedStepsLora

        if self.row.latents_only:  # these are for a pipeline
            return {}
        return {"fixed-steps": FixedSteps(), "lora": FixedStepsLora()}

    def load(self, path: Path, *, device: torch.device, dtype: torch.dtype) -> FlowMap:
        from .students import load

        return load(self, path, device=device, dtype=dtype)

    def codec(self, *, device: torch.device, dtype: torch.dtype) -> Codec:
        return self._codec(device, dtype, texts=True)

    def decoder(self, *, device: torch.device, dtype: torch.dtype) -> Codec:
        return self._codec(device, dtype, texts=False)

    def has_codec(self) -> bool:
        return self.path is not None and not self.row.latents_only

    def _codec(self, device: torch.device, dtype: torch.dtype, *, texts: bool) -> Codec:
        from .codec import DiffusersCodec

        if self.row.latents_only:
            raise ValueError(
                f"{self.family}: its text encoders and its VAE are not here: take `LatentFolder` with latents and "
                "texts that were made elsewhere, as docs/backbones.md says, and `flowmap.sample` for latents"
            )
        return DiffusersCodec.of(self, device=device, dtype=dtype, texts=texts)


def resolve(name: str) -> Diffusers | None:
    """The spec of a row's pipeline, a directory or hub id, or of a student of one; None where it is another's."""
    if (Path(name) / STUDENT).is_file():
        return Diffusers(name, **json.loads((Path(name) / STUDENT).read_text()))
    from .rows import ROWS

    for family, row in ROWS.items():
        if name == row.hub:
            return Diffusers(name, family=family)
    if (folder := _found(name)) is None or not (folder / INDEX).is_file():
        return None
    index, config = read(folder / INDEX), read(folder / "transformer" / "config.json")
    found = {family: row for family, row in ROWS.items() if row.pipeline == index.get("_class_name")}
    fits = {
        family: sum(config.get(name) == value for name, value in row.only.items())
        + sum((index.get(name) or None) == value for name, value in row.index.items())
        for family, row in found.items()
    }
    return Diffusers(name, family=max(fits, key=fits.__getitem__)) if fits else None


def _found(name: str) -> Path | None:
    """The settings of a directory, or of what the hub has under that name."""
    try:
        return fetch(name)
    except (OSError, ValueError):  # no such name there, or no way to ask
        return None
