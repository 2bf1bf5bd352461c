"""What is said of a network of a row: a frozen value, before anything is built of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import field, frozen
from flowmap_lora import Lora
from flowmap_lora.bits import Bits, low_base

from flowmap import validators
from flowmap.mistaken import read
from flowmap.model import Streamed, Usual
from flowmap.recomputing import Checkpointing, checked
from flowmap.reference import Referenced
from flowmap.validators import near

from .folder import fetch, local

if TYPE_CHECKING:
    from .row import Row

STUDENT = "family.json"
"""Beside the student's `model_index.json`: what `Diffusers` is told to load it."""

GUIDANCE = 6.0
"""That is embedded, where a row does not say it."""


def _path(path: str | Path | None) -> str | None:
    return None if path is None else str(path)


@frozen
class Settings(Streamed, Referenced):
    """A transformer of diffusers, lifted to two times as AnyFlow does, arXiv:2605.13724.

    path: the directory or hub id of a pipeline, or a student's directory; None for random weights of `config`, by
    default a few thousand of them. family: its row. lora: adapters on one frozen base that serves every role; None
    trains whole networks, one a role. gamma: how r enters the time embedding. checkpointing: recompute each block in
    the backward pass; "selective": all of it but the attention of its tokens. fps: frames of video a second, where
    positions depend on it; None is what the family was trained with. guidance: what `codec` writes into the condition
    of a network that guidance was distilled into; None is what the family is sampled with. shift: of the
    sampling grid; None is that of the directory's scheduler, and the family's where there is none, or one of another
    shift for every size. seed: of random weights. fuse: a LoRA file, or its directory, added into the base before
    anything else: for teacher, student and critic.
    base: the frozen weights of attention and feed-forward in "int8", "fp8" or "nf4", `flowmap_lora.quantised`; all else
    is as it was, and a student is saved with the weights before that. None is in the type of the run.
    """

    path: str | None = field(default=None, converter=_path)
    family: str = field(kw_only=True)
    lora: Lora | None = Lora()
    gamma: float = field(default=0.25, validator=[validators.gt(0.0), validators.lt(1.0)])
    checkpointing: Checkpointing = field(default=False, validator=checked)
    fps: float | None = field(default=None, validator=validators.optional(validators.gt(0.0)))
    _guidance: float | None = field(default=None, validator=validators.optional(validators.gt(0.0)))
    _shift: float | None = field(default=None, validator=validators.optional(validators.gt(0.0)))
    seed: int = 0
    config: Mapping[str, Any] = field(factory=dict)
    fuse: str | None = field(default=None, converter=_path, kw_only=True)
    base: Bits | None = field(default=None, validator=low_base, kw_only=True)

    @family.validator
    def _known(self, attribute: Any, family: object) -> None:
        from .rows import ROWS

        if family not in ROWS:
            raise ValueError(f"Diffusers.family = {family!r}: must be one of {', '.join(ROWS)}{near(family, ROWS)}")

    @property
    def row(self) -> Row:
        from .rows import ROWS

        return ROWS[self.family]

    @property
    def images(self) -> tuple[str, ...]:
        return tuple(self.row.images)

    @property
    def is_student(self) -> bool:
        return self.path is not None and (Path(self.path) / STUDENT).is_file()

    @property
    def guidance(self) -> float:
        return self._guidance or self.row.guidance or GUIDANCE

    def usual(self) -> Usual:
        return Usual(self.row.size, None if self.distilled else self.row.guidance)

    @property
    def shift(self) -> float:
        if self._shift is not None:
            return self._shift
        folder = None if self.path is None else local(self.path)
        config = {} if folder is None else read(folder / "scheduler" / "scheduler_config.json")
        own = self.row.shift
        return float(own if config.get("use_dynamic_shifting") else config.get("shift", config.get("flow_shift", own)))

    def frame_rate(self) -> float | None:
        if self.row.image:
            return None
        saved = read(Path(self.path) / STUDENT)["fps"] if self.is_student and self.path is not None else None
        return float(self.fps or saved or self.row.fps)

    @property
    def distilled(self) -> bool:
        """Whether guidance was distilled into the network, which reads it as a condition."""
        if "guidance" not in self.row.example:
            return False
        folder = None if self.path is None else local(self.path)
        known = {**self.row.tiny, **self.config} if folder is None else read(folder / "transformer" / "config.json")
        return bool(known.get("guidance_embeds", True))

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Of a sample, z and conditions: as a student's directory says, else as the row's example has them."""
        known = read(Path(self.path) / "flowmap.json") if self.is_student and self.path is not None else {}
        told = {"z": known["latent_shape"], **known["conditions"]} if "conditions" in known else self.row.example
        return {name: tuple(told[name]) for name in self.row.example}

    def network(self) -> Mapping[str, Any]:
        """What the class is told."""
        config: Mapping[str, Any] = {**self.row.tiny, **self.config}
        if self.path is not None:
            config = read(fetch(self.path) / "transformer" / "config.json")
        for name in self.row.needs:
            if config.get(name) is None:
                raise ValueError(
                    f"Diffusers(family={self.family!r}): its transformer has no {name}: another network of the class"
                )
        for name, value in self.row.only.items():
            own = config[name] if name in config else value if self.path is None else self.row.default(name)
            if own != value:
                raise ValueError(
                    f"Diffusers(family={self.family!r}): its transformer has {name} = {own!r}: must be {value!r}, "
                    "other networks of the class are not read by this family"
                )
        return {key: value for key, value in config.items() if not key.startswith("_")}
