"""The model card of a student: what it is, how to sample it, how good it is, how that was measured."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import torch

from .. import values
from .._types import Role
from ..atomic import write_text
from ..data import Data
from ..kind import kind
from ..method import Method, Sampler
from ..model import HistoryNoise
from ..objectives import Objective
from ..objectives.distribution_matching import DistributionMatching
from ..objectives.flow_map_matching import FlowMapMatching
from ..objectives.mixture import Mixture
from ..recipe import Recipe, describe, digest
from ..training.run import environment
from . import records, rounding, use, vbench
from .sampling import video_size

FILE = "flowmap.json"
"""Beside the student's weights, what they are; written last."""


def known(student: Path) -> dict[str, Any] | None:
    """What was written beside the weights in that directory; None where they are not whole."""
    file = student / FILE
    return json.loads(file.read_text()) if file.is_file() else None


def saved(student: Path) -> str | None:
    """In what the weights are saved, and what that loses; None where it was not asked."""
    found = known(student)
    if found is None or "bfloat16" not in found:
        return None
    return rounding.sentence(found, f"{student.name}/", (student / "lora").is_dir())


def facts(recipe: Recipe, data: Data) -> dict[str, Any]:
    """What a sampler must know of the student and its weights do not say."""
    sample = data.batch([0])
    return {
        "recipe": Path(recipe.name).stem,
        "digest": digest(recipe),
        "latent_shape": list(sample.x.shape[1:]),
        "conditions": {name: list(value.shape[1:]) for name, value in sample.cond.items()},
        "types": {name: str(value.dtype).removeprefix("torch.") for name, value in sample.cond.items()},
        "shift": recipe.backbone.shift,
        "guidance": guidance(recipe),
        "sampler": sampler(recipe),
        **({"history_noise": noise} if (noise := history_noise(recipe)) else {}),
    }


def history_noise(recipe: Recipe, stages: int | None = None) -> HistoryNoise:
    """Of finished chunks as later ones see them: that of the last stage in which the student makes its own.

    stages: of the first so many alone.
    """
    found = [levels for stage in recipe.stages[:stages] if (levels := [*values.found(stage, "history_noise")])]
    if not found:
        return recipe.backbone.sampling().history_noise
    return "last" if "last" in found[-1] else max(found[-1])


def guidance(recipe: Recipe) -> float | None:
    """The guidance that the student has built in; 1 is none, None is its teacher's own, which nobody wrote down."""
    found = recipe.backbone.sampling().guidance
    for stage in recipe.stages:
        forward = "forward_teacher" in stage.method.calls(recipe.forward_teacher is not None)
        of_teacher = recipe.spec_of("forward_teacher" if forward else "teacher").sampling().guidance
        for w, taught in _learnt(stage.method):
            found = of_teacher if taught and w == 1.0 else w
    return found


def _learnt(method: Method) -> list[tuple[float, bool]]:
    """Under which guidance a student learns, and whether it is of a teacher, whose own it has without any."""
    matching = [o for o in _objectives(method) if isinstance(o, FlowMapMatching) and o.role == "student"]
    found = [(o.guidance.w, o.velocity == "teacher") for o in matching]
    if method.guidance is not None:
        return [(method.guidance, "teacher" in method.needs)]
    return found or [(w, True) for w in method.guides.values()]


def sampler(recipe: Recipe) -> Sampler:
    """How the student is sampled: as the last stage that trains it says."""
    found = [stage.method.sampler for stage in recipe.stages if "student" in stage.method.trains]
    return found[-1] if found else "flow_map"


def write(recipe: Recipe, out: Path) -> Path:
    """`README.md` in the student's directory under `out`, with the evaluation there, if there is one."""
    from huggingface_hub import ModelCardData

    about, student = recipe.backbone.about(), out / recipe.result
    data = ModelCardData(
        base_model=about.model,
        license=about.licence,
        library_name="diffusers" if kind(student) == "pipeline" else "flowmap",
        pipeline_tag=use.task(recipe.backbone, known(student) or {}),
        tags=["flowmap", "flow-map", *(["any-step"] if sampler(recipe) == "flow_map" else []), "distillation"],
    )
    body = "\n\n".join(
        [
            _head(recipe),
            *_use(recipe, out),
            *_files(recipe, out),
            *_weights(recipe, out),
            _training(recipe),
            *_evaluation(recipe, out),
            *_vbench(out),
            _cite(recipe),
        ]
    )
    path = out / recipe.result / "README.md"
    write_text(path, f"---\n{data.to_yaml().strip()}\n---\n\n{body}\n")
    return path


def _head(recipe: Recipe) -> str:
    about, name = recipe.backbone.about(), Path(recipe.name).stem
    made = {"flow_map": "An any-step student", "consistency": "A consistency student"}[sampler(recipe)]
    what = made if recipe.result == "student" else "A teacher"
    licence = f" Licence of the base model: {about.licence}." if about.licence else ""
    by = f" by the recipe `{name}`" if name else ""
    return f"# {name or about.name}\n\n{what} of `{about.name}`, made with flowmap{by}.{licence}"


def _use(recipe: Recipe, out: Path) -> list[str]:
    if recipe.result != "student":
        return []
    student, video = out / recipe.result, trained_at(recipe, out)
    few = sampler(recipe) == "consistency"
    return use.sections(recipe.backbone, student, known(student) or {}, guidance(recipe), few, _manifest(out), video)


def trained_at(recipe: Recipe, out: Path) -> tuple[int, int, int] | None:
    """(frames, height, width) of the videos that the student was trained on, by the codec; None where it cannot say."""
    latent, manifest = (known(out / recipe.result) or {}).get("latent_shape", ()), _manifest(out)
    if manifest is not None and manifest["shape"].get("latent") == latent:
        frames, _, height, width = manifest["shape"]["video"]
        return frames, height, width
    if len(latent) != 4 or not use.prompted(recipe.backbone):
        return None
    try:
        codec = recipe.backbone.decoder(device=torch.device("cpu"), dtype=torch.float32)
        return video_size(codec, latent)
    except (RuntimeError, ValueError, OSError, ImportError, MemoryError):  # a card without it is better than none
        return None


def _files(recipe: Recipe, out: Path) -> list[str]:
    """What is in the directory: a network may lie there more than once, in forms that must not be put together."""
    if recipe.result != "student":
        return []
    told = {
        **recipe.backbone.contents(out / recipe.result),
        "flowmap.json": "the recipe's name, the latents' size, the shift, the guidance and the sampler",
    }
    return ["## Files\n\n" + "\n".join(f"* `{name}`: {text}" for name, text in told.items())]


def _weights(recipe: Recipe, out: Path) -> list[str]:
    said = saved(out / recipe.result)
    return [] if said is None else [f"## Weights\n\n`{recipe.result}/`{said.removeprefix(f'{recipe.result}/')}."]


def _training(recipe: Recipe) -> str:
    rows = ["| stage | method | steps | batch | trained |", "|---|---|---|---|---|"]
    for number, stage in enumerate(recipe.stages):
        roles = ", ".join(sorted(stage.method.trains))
        rows.append(f"| {number} | {stage.method.name} | {stage.steps} | {stage.batch} | {roles} |")
    objectives = (o for stage in recipe.stages for o in _objectives(stage.method))
    teacher = sorted({o.w for o in objectives if isinstance(o, DistributionMatching)})
    matched = f" The teacher whose distribution it matches has guidance {teacher[-1]:g}." if teacher else ""
    others = [(role, recipe.spec_of(role)) for role in get_args(Role) if role in recipe.roles]
    named = "".join(f" The {role} is `{s.about().name}`." for role, s in others if s != recipe.backbone)
    data = "given to `distill`" if recipe.data is None else f"`{_short(recipe.data)}`"
    told = f"\n\nData: {data}. Seed: {recipe.seed}.{matched}{named}"
    changed = ", ".join(f"`{_settled(one)}`" for one in recipe.settings)
    return (
        "## Training\n\n" + "\n".join(rows) + told + (f" Settings beside the recipe's: {changed}." if changed else "")
    )


def _settled(setting: str) -> str:
    """Without a value that may be a path of this machine."""
    field, _, value = setting.partition("=")
    return field if "/" in value or os.sep in value else setting


def _evaluation(recipe: Recipe, out: Path) -> list[str]:
    manifest = _manifest(out)
    if recipe.result != "student" or manifest is None:
        return []
    found = [records.Record(**one) for one in json.loads((out / "evaluation" / "nfe.json").read_text())]
    teacher = manifest["teacher"]
    fine = f"at {teacher['reference_steps']} steps"
    beside = {
        "before": "the student that was fine-tuned, one call a step",
        "paired error against": f"the student before, {fine}",
    }
    if teacher["sampler"] == "euler":
        beside = {
            "teacher": f"Euler, guidance {teacher['guidance']:g}, two calls a step",
            "paired error against": f"the teacher {fine}",
        }
    told = {
        "prompts": f"{manifest['prompts']['count']}, sha256 `{manifest['prompts']['sha256'][:16]}…`",
        "seeds": ", ".join(map(str, manifest["seeds"])),
        "samples a seed": manifest["samples_per_seed"],
        **beside,
        "versions": ", ".join(f"{k} {v}" for k, v in environment()["packages"].items() if v != "not installed"),
    }
    lines = "\n".join(f"* {name}: {value}" for name, value in told.items())
    return [
        "## Quality against the number of steps\n\nMean ± spread over seeds, at each number of steps:\n\n"
        f"{records.markdown(found)}\n\n{lines}"
    ]


def _vbench(out: Path) -> list[str]:
    return [vbench.section(vbench.read(out / vbench.FILE))] if (out / vbench.FILE).is_file() else []


def add_vbench(run: Path, results: Path) -> Path:
    """Keep VBench's results of the student's videos with the run, and write them into its card, whose path it gives.

    A `VBenchError` where the file is none of VBench's, or the run has no card yet.
    """
    scores, path = vbench.read(results), run / "student" / "README.md"
    if not path.is_file():
        raise vbench.VBenchError(f"{run}: there is no card in it, {path}: a run that has finished has one")
    write_text(run / vbench.FILE, results.read_text(encoding="utf-8"))
    write_text(path, vbench.placed(path.read_text(encoding="utf-8"), vbench.section(scores)))
    return path


def _cite(recipe: Recipe) -> str:
    return "## Citations\n\n```bibtex\n" + "\n\n".join(citations(recipe)) + "\n```"


def citations(recipe: Recipe) -> tuple[str, ...]:
    """BibTeX of every method and of the backbone, each once."""
    of_methods = [entry for stage in recipe.stages for entry in stage.method.citations]
    return tuple(dict.fromkeys([*of_methods, *recipe.backbone.about().citations]))


def _manifest(out: Path) -> dict[str, Any] | None:
    file = out / "evaluation" / "manifest.json"
    return json.loads(file.read_text()) if file.is_file() else None


def _short(data: object) -> str:
    """`MovingDigits(count=2048, seed=0)`: the fields that fit into a line."""
    told = describe(data)
    fields = {} if not isinstance(told, dict) else {k: v for k, v in told.items() if isinstance(v, (int, float))}
    return f"{type(data).__name__}({', '.join(f'{k}={v}' for k, v in fields.items())})"


def _objectives(method: Method) -> Iterator[Objective]:
    """Those of a mixture one by one."""
    for update in method.updates:
        for _, objective in update.terms:
            yield from (o for _, o in objective.parts) if isinstance(objective, Mixture) else (objective,)
