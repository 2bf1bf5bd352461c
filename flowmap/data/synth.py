"""Prompt-latent pairs from a teacher: what AnyFlow's stage 1 trains on, arXiv:2605.13724."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from math import prod
from pathlib import Path

import torch
from attrs import asdict, evolve, field, frozen, validators
from torch import Tensor

from .._types import Cond, Latent, Rng, Role, concat
from ..doing import tell
from ..guidance import Guided
from ..model import Codec, FlowMap, FlowMapSpec, Sampling, conditions_of_images, guided_twice, require_short
from ..rollout import STEPS, Step, walk
from ..times import grid_of
from .decode import frames_of
from .format import DataError, Plan
from .shards import LatentShards
from .writer import Made, Progress, stored, write

SYNTH = 0x5A3D1E
ELEMENTS = 1 << 21
"""Of latents in one call of the teacher: one video of Wan's size."""
STEPS_OF_DIFFUSION, STEPS_OF_STUDENT = 50, 4
MOST_PROMPTS = 1 << 30
"""Bytes of a file of prompts."""
positive = validators.ge(1)


def _strings(values: Sequence[str]) -> tuple[str, ...]:
    return tuple(values)


def _shape(shape: Sequence[int] | None) -> tuple[int, ...] | None:
    return None if shape is None else tuple(shape)


@frozen
class Synthesis:
    """`each` samples of every prompt: `steps` Euler steps of the teacher's ODE under guidance w = `guidance`.

    By default as the networks are sampled as they come: a diffusion model in 50 steps under its `usual` w; a student
    in 4 of its own steps or as many as it was made for, along the flow or by jumps to data, and without further
    guidance: it has its own.

    The noise of sample k is a function of (seed, k) alone, so a part of the samples, another order or another machine
    gives the same. shape: of the videos, (frames, height, width), by default the teacher's `usual`; or of the latents,
    (F, C, h, w). shift: of the grid, by default the backbone's; null_prompt: of guidance's unconditional branch. shard:
    samples in a file. images: files, one a prompt, of the first frames that a teacher from
    images to videos begins with; scaled and cut about the centre.
    """

    prompts: tuple[str, ...] = field(converter=_strings, validator=validators.min_len(1), repr=False)
    shape: tuple[int, ...] | None = field(default=None, converter=_shape)
    steps: int | None = field(default=None, validator=validators.optional(positive))
    guidance: float | None = field(default=None, validator=validators.optional(validators.ge(1.0)))
    shift: float | None = field(default=None, validator=validators.optional(validators.gt(0.0)))
    null_prompt: str = ""
    each: int = field(default=1, validator=positive)
    seed: int = 0
    shard: int = field(default=16, validator=positive)
    images: tuple[str, ...] = field(default=(), converter=_strings, repr=False)

    @shape.validator
    def _sizes(self, attribute: object, shape: tuple[int, ...] | None) -> None:
        if shape is not None and (len(shape) not in (3, 4) or not all(isinstance(n, int) and n >= 1 for n in shape)):
            raise ValueError(f"Synthesis.shape = {shape}: must be (frames, height, width) or a latent's (F, C, h, w)")

    @images.validator
    def _as_many(self, attribute: object, images: tuple[str, ...]) -> None:
        if images and len(images) != len(self.prompts):
            raise ValueError(f"{len(images)} images for {len(self.prompts)} prompts: must be one a prompt")
        if images and self.shape is not None and len(self.shape) == 4:
            raise ValueError(f"Synthesis.shape = {self.shape}: with images it must be (frames, height, width)")

    def run(
        self,
        teacher: FlowMapSpec,
        out: Path,
        *,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        part: tuple[int, int] = (1, 1),
        progress: Callable[[Progress], None] = lambda _: None,
    ) -> LatentShards | None:
        """Write into the directory `out`, or what is left to write, as `writer.write` does.

        dtype: of the networks, and of texts on the disk; the state of the sampler and the latents are float32.
        """
        settled = self.settled(teacher)
        prompts = hashlib.sha256(json.dumps(self.prompts).encode()).hexdigest()
        own = asdict(settled, filter=lambda a, _: a.name not in ("prompts", "shard", "images"))
        made_from = {"teacher": repr(teacher), "weights": teacher.fingerprint(), "dtype": str(dtype)}
        made_from |= {"images": _hash(self.images)} if self.images else {}
        plan = Plan(
            self.each * len(self.prompts),
            self.shard,
            {**made_from, "prompts": prompts, "synthesis": own},
            teacher.encoders(),
        )
        return write(out, plan, lambda: settled._open(teacher, device, dtype), part=part, progress=progress)

    def settled(self, teacher: FlowMapSpec) -> Synthesis:
        """With everything said that the teacher says by default; a `DataError` where it would be guided twice."""
        if bool(self.images) != bool(teacher.images):
            does = "begins with an image: give one a prompt" if teacher.images else "takes no image: leave them out"
            raise DataError(f"{teacher.about().name} {does} (Synthesis.images, --context)")
        own, usual, name = teacher.sampling(), teacher.usual(), teacher.about().name
        if (shape := self.shape or usual.size) is None:
            raise DataError(f"{name} says no size of its videos: give one (Synthesis.shape, --size)")
        if (w := self.guidance or (usual.guidance if own == Sampling() else 1.0)) is None:
            asked = "give one, 1 for none (Synthesis.guidance, --guidance)"
            raise DataError(f"{name} says no guidance of its sampler: {asked}")
        diffusion = own.kind == "euler"
        found = evolve(
            self,
            steps=self.steps or (STEPS_OF_DIFFUSION if diffusion else len(own.times or range(STEPS_OF_STUDENT))),
            shape=shape,
            guidance=w,
            shift=self.shift or teacher.shift,
        )
        if (twice := guided_twice(own.guidance, w)) is not None:
            raise DataError(f"{name} {twice}")
        return found

    def _open(self, teacher: FlowMapSpec, device: torch.device, dtype: torch.dtype) -> Generator:
        tell("loading the teacher")
        try:
            codec = teacher.codec(device=device, dtype=dtype)
            assert self.shape is not None  # settled
            shape = self.shape if len(self.shape) == 4 else codec.latent_shape(*self.shape)
            require_short(codec, [*dict.fromkeys([*self.prompts, self.null_prompt])])
            u = teacher.build(frozenset[Role]({"teacher"}), device=device, dtype=dtype)["teacher"]
        except (ValueError, NotImplementedError) as error:
            raise DataError(str(error)) from error
        assert self.steps is not None and self.shift is not None and self.guidance is not None  # settled
        own = teacher.sampling()
        grid, step = grid_of(own, self.steps, self.shift, u.boundary), STEPS[own.kind]
        return Generator(self, u.eval(), self.guidance, grid.to(device), step, codec, shape, device, dtype)


@frozen(eq=False)
class Generator:
    """Makes samples of prompts, each down `grid` by `step`, under guidance w."""

    asked: Synthesis
    u: FlowMap
    w: float
    grid: Tensor
    step: Step
    codec: Codec
    shape: tuple[int, ...]
    device: torch.device
    dtype: torch.dtype

    def null(self) -> Cond:
        return self.codec.encode_prompts([self.asked.null_prompt])

    def first_frames(self, k: int) -> Cond:
        """What the teacher is told of the image of sample k, entries [1, ...] on the device."""
        if not self.asked.images:
            return {}
        assert self.asked.shape is not None  # settled
        frames, height, width = self.asked.shape
        image = frames_of(Path(self.asked.images[k // self.asked.each]), 1, (height, width))
        made = conditions_of_images(self.codec, image, frames)
        return {name: value.to(self.device) for name, value in made.items()}

    @torch.no_grad()
    def samples(self, first: int, last: int) -> Made:
        prompts = [self.asked.prompts[k // self.asked.each] for k in range(first, last)]
        distinct = [*dict.fromkeys(prompts)]
        texts = {name: value.to(self.device) for name, value in self.codec.encode_prompts(distinct).items()}
        null = {name: value.to(self.device) for name, value in self.null().items()}
        if uneven := [name for name in null if self.w != 1.0 and null[name].shape[1:] != texts[name].shape[1:]]:
            ours, other = (list(made[uneven[0]].shape[1:]) for made in (texts, null))
            raise DataError(
                f"cond[{uneven[0]!r}] is {ours} for the prompts and {other} for the null prompt, and guidance compares "
                "them: texts of this model are as long as they are written, so give a null prompt and prompts of as "
                "many tokens"
            )
        u = self.u if self.w == 1.0 else Guided(self.u, self.w, null)
        own = concat(*(self.first_frames(k) for k in range(first, last)))
        most, made = max(1, ELEMENTS // prod(self.shape)), []
        tell("sampling", 0, last - first)
        for start in range(first, last, most):
            numbers = range(start, min(start + most, last))
            rows = [distinct.index(prompts[k - first]) for k in numbers]
            cond = {name: value[rows] for name, value in texts.items()}
            cond |= {name: value[start - first :][: len(rows)] for name, value in own.items()}
            made.append(self._walk(u, numbers, cond).cpu())
            tell("sampling", numbers.stop - first, last - first)
        x = torch.cat(made)
        if not bool(x.isfinite().all()):
            raise DataError(f"the teacher made values that are not finite, among samples {first} to {last - 1}")
        return stored(Made(x, prompts, texts, own=own), torch.float32, self.dtype)

    def _walk(self, u: FlowMap, numbers: Sequence[int], cond: Cond) -> Latent:
        """Noise from the CPU's generator, so that every device starts from the same."""
        rngs = [Rng.seeded(self.asked.seed, SYNTH, k) for k in numbers]
        noise = torch.cat([rng.noise_like(torch.zeros(1, *self.shape)) for rng in rngs]).to(self.device)
        return walk(u, noise, cond, self.grid, None, step=self.step)


def _hash(files: Sequence[str]) -> str:
    found = hashlib.sha256()
    for file in files:
        try:
            found.update(hashlib.sha256(Path(file).read_bytes()).digest())
        except OSError as error:
            raise DataError(f"{file}: {error.strerror}") from None
    return found.hexdigest()


def read_prompts(path: Path) -> tuple[str, ...]:
    """A prompt a line; empty lines are left out, and those that begin with #."""
    try:
        if path.stat().st_size > MOST_PROMPTS:
            raise DataError(f"{path} has more than {MOST_PROMPTS} bytes")
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is no text in UTF-8: {error}") from None
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from None
    if not (prompts := tuple(line for line in lines if line and not line.startswith("#"))):
        raise DataError(f"{path} has no prompts: must have one a line")
    return prompts
