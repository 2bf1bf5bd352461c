"""FlowMap and FlowMapSpec, what a backbone plugin implements."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, Self, TypeAlias, runtime_checkable

import torch
from attrs import define, frozen
from torch import Tensor, nn

from ._types import Cache, Cond, Latent, Rng, Role, Time, concat, nullify, require_null, select
from .casting import changed
from .context_parallel import Context
from .path import data_from_velocity, expand
from .window import Window


class ConditionError(ValueError):
    """A network was given a condition that it does not read, or in a form that it cannot."""


class WeightsError(ValueError):
    """A file's weights are not those of the network that they are for."""


Kind: TypeAlias = Literal["euler", "flow_map", "consistency", "phased"]
"""How a network makes samples: by Euler steps of its velocity, along the flow, by jumps to data, or, of two experts, by
jumps to the end of each one's phase, `flowmap.experts.phased_step`."""


HistoryNoise: TypeAlias = float | Literal["last"]
"""Of finished chunks as later ones see them: the time that they are noised to again; or "last", what the call that made
a chunk kept of its own input, z_t at its (t, r), so that none is made to remember it."""


@frozen
class Sampling:
    """What a sampler must know of networks as they come.

    kind: "euler" of a diffusion model; the others of a student. guidance: what is built in, so that one call a step is
    guided; 1 is none, and None some, of a scale that nobody wrote down. times: the noise levels, decreasing, before 0,
    that a student was made for, where it was not made for any number of steps. history_noise: of finished chunks as
    later ones see them, `flowmap.rollout.generate`.
    """

    kind: Kind = "euler"
    guidance: float | None = 1.0
    times: tuple[float, ...] | None = None
    history_noise: HistoryNoise = 0.0

    @classmethod
    def of(cls, student: Path) -> Sampling:
        """What `distill` wrote beside the student in this directory; of another's student, as far as is known."""
        file = student / "flowmap.json"
        facts = json.loads(file.read_text()) if file.is_file() else {}
        times = facts.get("times")
        levels, noise = None if times is None else tuple(times), facts.get("history_noise", 0.0)
        return cls(facts.get("sampler", "flow_map"), facts.get("guidance"), levels, noise)


def guided_twice(built_in: float | None, w: float) -> str | None:
    """What is wrong with guidance w of a network that has guidance `built_in`; None if nothing is."""
    if w == 1.0 or built_in == 1.0:
        return None
    has = "guidance" if built_in is None else f"guidance {built_in:g}"
    return f"has {has} built in, and guidance {w:g} would come on top of it: take 1, which is none"


@define(eq=False)
class Kept:
    """What of `samples`, places in the batch of a teacher-forced call, depends neither on z nor on the times.

    Given as `cache` to that call, which fills `memory`, and then to calls of these samples alone, once or several times
    over, under the same condition. Those are made with the same weights, and build no graph: what was kept has none.
    """

    samples: Tensor
    memory: Sequence[Any] = ()


@define(eq=False)
class Recorded:
    """Given as `cache` to the last call of a chunk: it is that after `before`, and keeps what `extend` would, of its
    own input z_t at its own (t, r), without a graph. after: then the snapshot with the chunk appended; None where the
    network cannot have it like that, which is an error if there is another chunk."""

    before: Cache
    after: Cache = None


@frozen(eq=False)
class Spans:
    """Stretches of time to have the mean velocities of, all from one call: given as `cache` to a flow map that can,
    which then gives [K, B, ...].

    starts, ends: [K, B]. The first has the call's graph; the others none.
    """

    starts: Time
    ends: Time


class FlowMap(nn.Module, ABC):
    """The mean velocity u_θ(z_t, t, r | c), and the map it defines,

        Φ_{r←t}(z_t) = z_t - (t - r) u_θ(z_t, t, r | c).

    On the diagonal r = t it is the instantaneous velocity v_θ, so a teacher and a critic are flow maps too. Only
    `forward` must be written. `chunks`, `extend`, `bound`, `teacher_forcing` and `packed` describe a network that
    generates all frames at once, and a causal network overrides them, and `extend_noisy` where it can be told of noise;
    `precision`, `blocks`, `trained` and `thaw` say how the network is built. The rest is final.
    """

    guidance: float | None = 1.0
    """What is built in, `Sampling.guidance`: more of it is an error."""
    history_noise: HistoryNoise = 0.0
    """Of finished chunks as later ones see them, `flowmap.rollout.generate`: what a student was made with."""
    boundary: float | None = None
    """A time at which one network gives way to another, `flowmap.experts`: every sampler's grid has it."""
    within: tuple[float, float] = (0.0, 1.0)
    """The times that it serves: of one of two experts, not all. It is walked along them alone."""

    @abstractmethod
    def forward(self, z: Latent, t: Time, r: Time, cond: Cond, cache: Cache = None) -> Latent:
        """u_θ(z_t, t, r | cond), of z's shape and dtype. z is float32 in training: cast inside, never the times."""

    def chunks(self, frames: int) -> tuple[int, ...]:
        """How `frames` are generated: in one piece, or chunk after chunk."""
        return (frames,)

    def extend(self, cache: Cache, x: Latent, cond: Cond) -> Cache:
        """A new snapshot: the history with a finished chunk appended. Never changes `cache`."""
        return None

    def extend_noisy(self, cache: Cache, z: Latent, t: Time, cond: Cond) -> Cache:
        """`extend` with a finished chunk that was noised again, z_t, whose t [B] the network is told; at t = 0 it is
        `extend`. A ValueError where the network remembers clean chunks alone."""
        raise ValueError(f"history_noise: this {type(self).__name__} remembers clean chunks alone: must be 0")

    def bound(self, window: Window) -> None:
        """From now on `extend` remembers what `window` keeps, of videos without end. A ValueError where it cannot."""
        raise ValueError(
            f"{window}: this {type(self).__name__} takes no window: it makes all frames at once, or forgets none"
        )

    def teacher_forcing(self, x: Latent, cond: Cond, rng: Rng) -> tuple[Latent, Cond]:
        """Choose the frames to train on, and put their clean history into `cond`."""
        return x, cond

    def packed(self, x: Latent, cond: Cond) -> Cond | None:
        """`cond` with the clean history of every chunk of x: u of all noisy chunks together is then that of each after
        the snapshot of those before it. None where there is no such call."""
        return None

    def keeping(self, samples: Tensor) -> Kept | None:
        """A `Kept` for the `cache` of a teacher-forced call; None where there is nothing to keep."""
        return None

    def recording(self, cache: Cache) -> Recorded | None:
        """A `Recorded` after `cache`, for a chunk's last call; None where calls keep nothing of their own input."""
        return None

    def unrecorded(self, frames: int) -> str | None:
        """Why chunks of a video of `frames` cannot be remembered by what their last calls kept, and what is allowed;
        None where they can. A network whose `recording` is not for all videos says it here."""
        if self.recording(None) is not None:
            return None
        return f"this {type(self).__name__} keeps nothing of the call that makes a chunk: must be a number"

    @property
    def precision(self) -> torch.dtype:
        """What it computes in: the narrowest type of its weights, but codes of a byte, unless it says otherwise."""
        types = {p.dtype for p in self.parameters() if p.is_floating_point() and p.itemsize > 1}
        return min(types, key=lambda dtype: dtype.itemsize, default=torch.float32)

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """The repeated blocks: the unit of sharding, checkpointing and compilation."""
        return ()

    def trained(self) -> Mapping[str, nn.Parameter]:
        """What this role trains, by names that do not depend on the role: for optimisers, averages, checkpoints."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    def thaw(self) -> None:
        """Make a frozen network trainable: the teacher, for a stage that fine-tunes it."""
        self.requires_grad_(True)

    # ------------------------------------------------------------------ final
    def jump(self, z: Latent, t: Time, r: Time, cond: Cond, cache: Cache = None) -> Latent:
        """Φ_{r←t}(z)."""
        return z - expand(t - r, z) * self(z, t, r, cond, cache)

    def velocity(self, z: Latent, t: Time, cond: Cond, null: Cond | None = None, w: float = 1.0) -> Latent:
        """v_θ(z_t, t), with classifier-free guidance v_∅ + w (v_c - v_∅); both branches in one call."""
        v, v_null = self.branches(z, t, cond, null, w)
        return v if v is v_null else v_null + w * (v - v_null)

    def branches(
        self, z: Latent, t: Time, cond: Cond, null: Cond | None, w: float, asked: Tensor | None = None
    ) -> tuple[Latent, Latent]:
        """(v_c, v_∅) of what `velocity` is made of, in one call; twice the same where guidance needs only one.

        asked: [K] the samples whose v_∅ is asked for, where that of the others is v_c, since they have no prompt.
        """
        if cond:
            require_null(null, w)
        if not null or w == 1.0:  # without conditions the branches are one
            v = self(z, t, t, cond)
            return v, v
        self.require_unguided(w)
        if asked is None:
            t2 = torch.cat([t, t])
            v, v_null = self(torch.cat([z, z]), t2, t2, concat(cond, nullify(cond, null))).chunk(2)
            return v, v_null
        t2 = torch.cat([t, t[asked]])
        both = self(torch.cat([z, z[asked]]), t2, t2, concat(cond, select(nullify(cond, null), asked)))
        v, v_null = both[: len(z)], both[: len(z)].clone()
        v_null[asked] = both[len(z) :]
        return v, v_null

    def denoise(self, z: Latent, t: Time, cond: Cond, null: Cond | None = None, w: float = 1.0) -> Latent:
        """E[x | z_t] = z_t - t v_θ(z_t, t)."""
        return data_from_velocity(z, self.velocity(z, t, cond, null, w), t)

    def require_unguided(self, w: float) -> None:
        """A ValueError where guidance w would come on top of what is built in."""
        if (twice := guided_twice(self.guidance, w)) is not None:
            raise ValueError(f"this {type(self).__name__} {twice}")


class Wrapped(FlowMap, ABC):
    """A network made of another, `u`, that it is like in all but `forward`: what it overrides beyond that, it says."""

    def __init__(self, u: FlowMap) -> None:
        super().__init__()
        self.u, self.guidance, self.boundary, self.within = u, u.guidance, u.boundary, u.within
        self.history_noise = u.history_noise

    def chunks(self, frames: int) -> tuple[int, ...]:
        return self.u.chunks(frames)

    def extend(self, cache: Cache, x: Latent, cond: Cond) -> Cache:
        return self.u.extend(cache, x, cond)

    def extend_noisy(self, cache: Cache, z: Latent, t: Time, cond: Cond) -> Cache:
        return self.u.extend_noisy(cache, z, t, cond)

    def recording(self, cache: Cache) -> Recorded | None:
        return self.u.recording(cache)

    def unrecorded(self, frames: int) -> str | None:
        return self.u.unrecorded(frames)

    def bound(self, window: Window) -> None:
        self.u.bound(window)

    def packed(self, x: Latent, cond: Cond) -> Cond | None:
        return self.u.packed(x, cond)

    def teacher_forcing(self, x: Latent, cond: Cond, rng: Rng) -> tuple[Latent, Cond]:
        return self.u.teacher_forcing(x, cond, rng)

    @property
    def precision(self) -> torch.dtype:
        return self.u.precision

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return self.u.blocks

    def trained(self) -> Mapping[str, nn.Parameter]:
        return self.u.trained()

    def thaw(self) -> None:
        self.u.thaw()


class Codec(Protocol):
    """From what people see to what networks see: prompts and videos to conditions and latents, and back."""

    def encode_prompts(self, prompts: Sequence[str]) -> Cond:
        """Every entry [len(prompts), ...]; "" is the null prompt."""

    def encode(self, videos: Tensor) -> Latent:
        """[B, frames, 3, height, width] in [0, 1] -> [B, F, C, H, W]."""

    def decode(self, x: Latent) -> Tensor:
        """The inverse of `encode`, clamped to [0, 1]; with a graph where x has one, as rewards need."""

    def decode_chunks(self, chunks: Iterable[Latent]) -> Iterator[Tensor]:
        """`decode` of videos that arrive in chunks of frames: each chunk's frames as soon as it is there."""

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """(F, C, H, W) of a video of that size; an error that says which sizes there are, where it has none."""


@runtime_checkable
class ImageCodec(Codec, Protocol):
    """A codec that may be of networks which are told the first frame of the video that they make."""

    def encode_images(self, images: Tensor, frames: int) -> Cond:
        """images [B, 3, height, width] in [0, 1], each the first of a video of `frames` frames -> the entries
        `FlowMapSpec.images`, each [B, ...]: latents, features, masks; none of networks that take no image."""


@runtime_checkable
class CountingCodec(Codec, Protocol):
    """A codec that knows how many tokens its text encoder reads."""

    def tokens_cut(self, prompts: Sequence[str]) -> Sequence[int]:
        """Of each prompt, how many tokens are not read, since it has too many."""


@runtime_checkable
class LimitedCodec(Codec, Protocol):
    """A codec that refuses long prompts, and knows it without encoding them."""

    def require_short(self, prompts: Sequence[str]) -> None:
        """A `ConditionError` that says how many of them are too long, if some are."""


def require_short(codec: Codec, prompts: Sequence[str]) -> None:
    """`LimitedCodec.require_short`, before a long work begins; nothing of a codec without."""
    if isinstance(codec, LimitedCodec):
        codec.require_short(prompts)


def tokens_cut(codec: Codec, prompts: Sequence[str]) -> Sequence[int]:
    """`CountingCodec.tokens_cut`; none of a codec that does not count."""
    return codec.tokens_cut(prompts) if isinstance(codec, CountingCodec) else [0 for _ in prompts]


def conditions_of_images(codec: Codec, images: Tensor, frames: int) -> Cond:
    """`ImageCodec.encode_images`; no entries of a codec without."""
    return codec.encode_images(images, frames) if isinstance(codec, ImageCodec) else {}


@frozen
class About:
    """What people want to know of a backbone. name: of what it starts from; model: its hub id, if it has one.

    licence: as a short SPDX name. citations: BibTeX.
    """

    name: str
    model: str | None = None
    licence: str | None = None
    citations: tuple[str, ...] = ()


def origin(path: str | Path) -> str:
    """What a file that goes elsewhere says of where something came from: a hub id, or a directory's own name.

    Of those that every run has, such as student, with the run's: `quickstart/student`. The folders above have the names
    of people and machines, and say nothing anywhere else.
    """
    there = Path(path)
    if not there.is_absolute() and not there.is_dir():
        return str(path)
    there = there.absolute()
    return f"{there.parent.name}/{there.name}" if there.name in ("student", "teacher") else there.name


@frozen
class Usual:
    """size: frames, height and width of a model's videos; guidance: w of its diffusion sampler, where none is built in;
    as it was published. None: nobody knows."""

    size: tuple[int, int, int] | None = None
    guidance: float | None = None


class FlowMapSpec(ABC):
    """A recipe for flow maps: a frozen value, cheap to import, written into the checkpoint."""

    @property
    def shift(self) -> float:
        """Of the grid that samples are made on, `flowmap.times.euler_grid`; a field of that name will do."""
        return 1.0

    @property
    def boundary(self) -> float | None:
        """Of its students, `FlowMap.boundary`."""
        return None

    @abstractmethod
    def build(self, roles: frozenset[Role], *, device: torch.device, dtype: torch.dtype) -> Mapping[Role, FlowMap]:
        """The networks of all `roles` at once, so that they may share weights. Only the teacher is frozen."""

    @abstractmethod
    def tiny(self) -> Self:
        """The same architecture with random weights, small enough for a laptop."""

    @abstractmethod
    def example(self, batch: int = 2) -> tuple[Latent, Cond]:
        """(z, cond) that the networks of this spec accept. The conformance kit asks `tiny().example()`."""

    @property
    def images(self) -> tuple[str, ...]:
        """The entries of a condition that are made of an image, the first frame; all others are of its text.

        Guidance leaves them as they are in both branches, and the codec is an `ImageCodec`.
        """
        return ()

    def null(self, cond: Cond) -> Cond:
        """A null condition for guidance, each entry [1, ...], made up where neither data nor codec gives one.

        By default zeros for every floating-point entry of the text; the others, such as masks and class labels, are not
        replaced. Override it where zeros are no valid condition: a float mask of zeros often divides by zero.
        """
        texts = {name: value for name, value in cond.items() if name not in self.images}
        return {name: torch.zeros_like(value[:1]) for name, value in texts.items() if value.is_floating_point()}

    def outline(self) -> FlowMapSpec:
        """The same networks at full size with random weights, without a file: what `--plan` builds without memory.

        Itself where it reads no file; a ValueError where the size is not known without one.
        """
        return self

    def sampling(self) -> Sampling:
        """How its networks are sampled as they come: a diffusion model's, unless it says otherwise."""
        return Sampling()

    def takes_history(self, role: Role) -> bool:
        """Whether the network of a role can be asked about noisy frames after a clean history, as a student in chunks
        is trained: so that a teacher that cannot is refused before it is built. False also where it is not known."""
        return False

    @property
    def records(self) -> bool:
        """Whether its students may keep what the call that made a chunk was given, `FlowMap.recording`: so that others
        are refused before they are built. True also where it is not known."""
        return True

    @property
    def two_times(self) -> bool:
        """Whether its networks read r as they come, before any is given a second time: a student's do."""
        return self.sampling().kind != "euler"

    def usual(self) -> Usual:
        """What videos it makes, and how, where nobody says otherwise."""
        return Usual()

    def frame_rate(self) -> float | None:
        """Frames a second of the videos that it was trained on; None where it has no opinion."""
        return None

    def validate(self) -> None:
        """Raise a ValueError for what is known to be wrong without loading anything, such as a missing directory."""
        return

    def about(self) -> About:
        """Name, licence, citations."""
        return About(type(self).__name__)

    def fingerprint(self) -> str | None:
        """What tells the weights from others where the fields do not: a run is resumed on the same ones alone."""
        return None

    def encoders(self) -> Mapping[str, str]:
        """Hashes of what `codec` encodes with, by name, such as "vae" and "text": other data than theirs is refused.

        Without what is not known.
        """
        return {}

    def save(self, u: FlowMap, path: Path, *, dtype: torch.dtype = torch.float32) -> None:
        """Write the student, weights in `dtype`, to be used without flowmap; by default as safetensors."""
        from safetensors.torch import save_model

        path.mkdir(parents=True, exist_ok=True)
        with changed(u, lambda p: p.to(dtype)):
            save_model(u, str(path / "model.safetensors"))

    def contents(self, path: Path) -> Mapping[str, str]:
        """What is in a directory that `save` wrote, by name, and how it is used: for the model card."""
        return {"model.safetensors": f"the weights: `{type(self).__name__}(...).load(DIR, ...)` reads them"}

    def load(self, path: Path, *, device: torch.device, dtype: torch.dtype) -> FlowMap:
        """The student that `save` wrote."""
        from safetensors.torch import load_model

        student = self.build(frozenset[Role]({"student"}), device=device, dtype=dtype)["student"]
        require_fit(path / "model.safetensors", student)
        load_model(student, path / "model.safetensors")
        student.guidance, student.history_noise = (own := Sampling.of(path)).guidance, own.history_noise
        return student

    def codec(self, *, device: torch.device, dtype: torch.dtype) -> Codec:
        """What turns prompts and videos into conditions and latents."""
        raise NotImplementedError(f"{type(self).__name__} has no codec: give it conditions and latents")

    def has_codec(self) -> bool:
        """Whether `codec` has something to load, known without loading it; random weights, say, have no VAE."""
        return type(self).codec is not FlowMapSpec.codec

    def decoder(self, *, device: torch.device, dtype: torch.dtype) -> Codec:
        """A codec that need only decode, beside networks in training; with text encoders by default."""
        return self.codec(device=device, dtype=dtype)


Rows: TypeAlias = Callable[[slice], Tensor]
"""A tensor that is read in part: its rows, by the first dimension."""
Put: TypeAlias = Callable[[Tensor, Rows], None]
"""Takes for a parameter what this process holds of it."""


class Streamed(FlowMapSpec, ABC):
    """A spec whose `build` makes networks without numbers on the device "meta", which are filled afterwards.

    So several processes that share a network never hold more of it than their pieces, and what is being read.
    """

    @abstractmethod
    def fill(self, nets: Mapping[Role, FlowMap], put: Put, *, dtype: torch.dtype) -> None:
        """Put into every parameter what `build(..., dtype=dtype)` gives it elsewhere, bit for bit, one by one."""


class Splits(FlowMapSpec, ABC):
    """A spec whose networks can work on a sample on several ranks, each of which has some of its tokens."""

    @abstractmethod
    def splits(self, ranks: int) -> None:
        """Raise a ValueError where so many cannot share them, as far as that is known without loading anything."""

    @abstractmethod
    def split(self, nets: Mapping[Role, FlowMap], context: Context) -> None:
        """From now on `nets`, which `build` made, work together with the context's other ranks; a ValueError where
        they cannot.

        They are called with whole samples, and give out whole ones, all the same on each of these ranks.
        """


def require_fit(files: Path | Sequence[Path], u: nn.Module, *, more: bool = False) -> None:
    """A `WeightsError` where the tensors of safetensors files are not, by name and shape, those of `u`.

    more: there may be others beside them. `u` may be on the meta device.
    """
    files = [files] if isinstance(files, Path) else files
    theirs = {name: (file, shape) for file in files for name, shape in _shapes(file).items()}
    ours = u.state_dict(keep_vars=True)
    there = {id(value) for name, value in ours.items() if name in theirs}  # what is shared is kept under one name
    wrong = []
    for name, value in sorted(ours.items()):
        file, shape = theirs.get(name, (files[0], None))
        if shape is None and id(value) not in there:
            wrong.append(f"{file if len(files) == 1 else file.parent}: there is no {name}, which the network has")
        elif shape is not None and shape != list(value.shape):
            wrong.append(f"{file}: {name} is {shape}: must be {list(value.shape)}")
    wrong += (
        []
        if more
        else [f"{theirs[name][0]}: {name} is not in the network" for name in sorted(theirs) if name not in ours]
    )
    if wrong:
        rest = f" (and {len(wrong) - 1} more tensors do not fit)" if len(wrong) > 1 else ""
        raise WeightsError(f"{wrong[0]}{rest}")


def _shapes(file: Path) -> dict[str, list[int]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as opened:
            return {name: list(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise WeightsError(f"{file}: is damaged: {error}") from None


def sha256(tensors: Mapping[str, Tensor]) -> str:
    """Of names, types, shapes and values."""
    found = hashlib.sha256()
    for name in sorted(tensors):  # one at a time: a mapping may gather them as they are asked for
        value = tensors[name]
        found.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        found.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()
