"""What stands in a pipeline's directory, seen before anything of it is loaded.

Everything there that changes the function and that nobody here reads is refused by name: a second expert taken for one
is another model, and nothing in its training would say so.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowmap_diffusers import checks
from flowmap_diffusers.folder import WEIGHTS, fetch, files, local

from flowmap.mistaken import CHECKPOINTS, INDEX, read, what
from flowmap.model import Sampling
from flowmap.validators import article

from . import experts
from .sizes import SCHEDULER

if TYPE_CHECKING:
    from .settings import WanSettings

DIFFUSION = "WanTransformer3DModel"
"""The class of the only networks that are no student's."""
PARTS: Mapping[str, str | None] = {
    "transformer": None,
    "scheduler": None,
    "tokenizer": None,
    "text_encoder": "UMT5EncoderModel",
    "vae": "AutoencoderKLWan",
}
"""What a pipeline must have; of which class, where `codec` reads no other. The transformer's is the spec's to say."""
SAME = ("expand_timesteps",)
"""Settings that leave text-to-video as it is: every token is told the same time."""
PLAIN_WAN: Mapping[str, Any] = {
    "image_dim": None,
    "added_kv_proj_dim": None,
    "pos_embed_seq_len": None,
    "qk_norm": "rms_norm_across_heads",
}
"""Settings of a `WanTransformer3DModel` that no student's class has, as text-to-video has them."""
ONE = "expert='high' or expert='low'"
SCALE = 1000
"""Training times of a scheduler: what t is multiplied with."""
CHANNELS = 16
"""Of a VAE that does not say: what diffusers takes."""


def ready(spec: WanSettings) -> None:
    """Validate it, a hub id before its weights are downloaded."""
    if spec.path is not None:
        fetch(spec.path)
    spec.validate()


def class_name(path: str, part: str) -> str:
    """Of the transformer in a pipeline; of a hub id that is not here "", what is not known."""
    folder = local(path)
    found: str = "" if folder is None else read(folder / part / "config.json").get("_class_name", DIFFUSION)
    return found


def sampling(path: str, part: str) -> Sampling:
    """Of the network in a pipeline; of a hub id that is not here, what its name says."""
    folder = local(path)
    if folder is None:
        return Sampling("flow_map", None) if "AnyFlow" in path else Sampling()
    kind = read(folder / part / "config.json").get("_class_name", DIFFUSION)
    return Sampling() if kind == DIFFUSION else Sampling.of(folder)


def check(spec: WanSettings, *, shift: bool) -> None:
    """A ValueError that says what of `spec.path` is not to be had or not read, as far as its files are here.

    shift: whether the sampling grid is to be the directory's.
    """
    if spec.path is None or (folder := local(spec.path)) is None:
        return
    try:
        wrong = None if folder is None else next(_wrong(spec, folder, folder == Path(spec.path), shift), None)
    except ValueError as error:
        wrong = str(error)
    if wrong is not None:
        raise ValueError(f"{type(spec).__name__}.path = {spec.path!r}: {wrong}")


def _wrong(spec: WanSettings, folder: Path, whole: bool, shift: bool) -> Iterator[str]:
    """whole: a directory, where what is not there cannot be downloaded."""
    if folder.suffix in CHECKPOINTS and not folder.exists():
        yield "there is no such file"
    if not (folder / INDEX).is_file():
        yield what(folder) or (
            f"has no {INDEX}; must be the directory of a diffusers pipeline, or a hub id such as "
            "'Wan-AI/Wan2.1-T2V-1.3B-Diffusers'"
            + ("; `flowmap distill` leaves a student there" if folder.name == "student" else "")
        )
        return
    index = read(folder / INDEX)
    named, config = (spec.part if part == "transformer" else part for part in PARTS), folder / spec.part / "config.json"
    parts = [part for part in named if part != spec.part or spec.pretrained]
    if whole:
        yield from checks.missing(folder, parts)
    if spec.pretrained:
        yield from _class(read(config), spec.transformers)
    yield from _unread(index, spec)
    yield from _scheduler(read(folder / SCHEDULER), shift)
    for part in parts:
        if part in WEIGHTS and whole:
            yield from checks.weights(folder, part, str(index.get("_class_name")))
    yield from checks.beside(folder, spec.part)
    vae = read(folder / "vae" / "config.json")
    yield from _statistics(vae)
    if spec.pretrained:
        yield from _transformer(read(config), vae)
        yield from checks.tensors(files(folder, spec.part))


def _class(config: Mapping[str, Any], transformers: Collection[str]) -> Iterator[str]:
    kind = config.get("_class_name")
    if config and kind not in transformers:
        yield (
            f"its transformer is {article(str(kind))}: must be one of {', '.join(transformers)}; "
            "flowmap.backbone(path) takes the right spec"
        )


def _unread(index: Mapping[str, Any], spec: WanSettings) -> Iterator[str]:
    """What `model_index.json` names beyond what is read."""
    pipelines, there = spec.pipelines, experts.experts(index)
    if spec.expert is not None and spec.expert not in there:
        yield (
            f"has no {spec.expert} expert: there is {there[0]!r} alone, half of a student"
            if there
            else f"has one network and no boundary_ratio: leave expert = {spec.expert!r} out"
        )
    if (kind := index.get("_class_name")) not in pipelines and not (there and kind == experts.STUDENT):
        yield (
            f"is {article(str(kind))}: must be one of {', '.join(pipelines)}, which make a video of a prompt alone: "
            "conditions such as images are not read"
        )
    of_pair = ("boundary_ratio", *experts.PARTS.values()) if spec.expert in there else ()
    named = {name: value for name, value in index.items() if not name.startswith("_") and name not in of_pair}
    classes = {name: value[-1] for name, value in named.items() if isinstance(value, list) and value}
    settings = {name: value for name, value in named.items() if name not in classes and name not in SAME}
    more = [f"{name} ({kind})" for name, kind in classes.items() if kind is not None and name not in PARTS]
    more += [f"{name} = {value!r}" for name, value in settings.items() if value not in (None, False)]
    if more:
        two = (
            f" (two experts, as Wan2.2 A14B), and one of them alone would be another model: say which, {ONE}, or take "
            "both, flowmap.backbone(path)"
        )
        other = (
            ", which flowmap does not read, so its teacher would be another model: give a pipeline of one transformer, "
            "such as Wan2.1-T2V or Wan2.2-TI2V-5B"
        )
        yield f"its {kind} has {' and '.join(more)}{two if len(there) == 2 else other}"
    for name, wanted in PARTS.items():
        if classes.get(name) is None and name != "transformer":
            yield f"its {INDEX} has no {name}: must be a whole pipeline, whose other parts a student is saved with"
        elif wanted is not None and classes[name] != wanted:
            yield f"its {name} is {article(str(classes[name]))}: must be {article(wanted)}"


def _scheduler(config: Mapping[str, Any], shift: bool) -> Iterator[str]:
    """What the network was trained to say, and at which times, is the scheduler's to know."""
    if (kind := config.get("prediction_type", "flow_prediction")) != "flow_prediction":
        yield f"its scheduler has prediction_type = {kind!r}: must be 'flow_prediction', a velocity"
    if (times := config.get("num_train_timesteps", SCALE)) != SCALE:
        yield f"its scheduler has num_train_timesteps = {times}: must be {SCALE}, by which Wan's networks scale t"
    if shift and config.get("use_dynamic_shifting"):
        yield "its scheduler has use_dynamic_shifting, a shift of its own for every size: give one shift for all"


def _statistics(vae: Mapping[str, Any]) -> Iterator[str]:
    channels = vae.get("z_dim", CHANNELS)
    for name in ("latents_mean", "latents_std"):
        value = vae.get(name, [0.0] * CHANNELS)
        if not isinstance(value, list) or len(value) != channels:
            has = "no" if name not in vae or value is None else f"{len(value) if isinstance(value, list) else value!r}"
            yield (
                f"its VAE has {has} {name}: must have {channels} numbers, one a channel of its latents, in "
                "vae/config.json; the mean and the deviation of latents of many videos will do"
            )


def _transformer(config: Mapping[str, Any], vae: Mapping[str, Any]) -> Iterator[str]:
    yield from checks.quantised(config)
    said = {name: config.get(name, plain) for name, plain in PLAIN_WAN.items()}
    for name, value in said.items():
        if value != PLAIN_WAN[name]:
            image = ", so it reads an image too" if name != "qk_norm" else ""
            yield f"its transformer has {name} = {value!r}{image}: must be {PLAIN_WAN[name]!r}, as in text-to-video"
    taken, made = (config.get(f"{way}_channels", CHANNELS) for way in ("in", "out"))
    if taken != made:
        yield (
            f"its transformer takes {taken} channels and makes {made}, so it reads a condition beside the latents: "
            "must be one of text-to-video"
        )
    if vae and made != (latents := vae.get("z_dim", CHANNELS)):
        yield f"its transformer makes {made} channels, its VAE takes {latents}: must be of one model"
