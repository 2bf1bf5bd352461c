"""The model card of a student: what it is, how to sample it, how good it is, how that was measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..data import Data
from ..objectives.distribution_matching import DistributionMatching
from ..objectives.flow_map_matching import FlowMapMatching
from ..recipe import Recipe, digest
from ..training.run import environment, write_text
from . import records


def facts(recipe: Recipe, data: Data) -> dict[str, Any]:
    """What a sampler must know of the student and its weights do not say."""
    return {
        "recipe": recipe.name,
        "digest": digest(recipe),
        "latent_shape": list(data.batch([0]).x.shape[1:]),
        "shift": recipe.backbone.shift,
        "guidance": guidance(recipe),
    }


def guidance(recipe: Recipe) -> float:
    """The guidance that the student has built in; 1 is none."""
    found = [o.guidance.w for o in _objectives(recipe) if isinstance(o, FlowMapMatching) and o.role == "student"]
    return found[-1] if found else 1.0


def write(recipe: Recipe, out: Path) -> Path:
    """`README.md` in the student's directory under `out`, with the evaluation there, if there is one."""
    from huggingface_hub import ModelCardData

    about = recipe.backbone.about()
    data = ModelCardData(
        base_model=about.model,
        license=about.licence,
        library_name="diffusers",
        pipeline_tag="text-to-video",
        tags=["flowmap", "flow-map", "any-step", "distillation"],
    )
    body = "\n\n".join([_head(recipe), _use(recipe), _training(recipe), *_evaluation(recipe, out), _cite(recipe)])
    path = out / recipe.result / "README.md"
    write_text(path, f"---\n{data.to_yaml().strip()}\n---\n\n{body}\n")
    return path


def _head(recipe: Recipe) -> str:
    about, what = recipe.backbone.about(), "An any-step student" if recipe.result == "student" else "A teacher"
    licence = f" Licence of the base model: {about.licence}." if about.licence else ""
    return (
        f"# {recipe.name or about.name}\n\n{what} of `{about.name}`, distilled with "
        f"[flowmap](https://arxiv.org/abs/2605.13724) by the recipe `{recipe.name or 'of a script'}`.{licence}"
    )


def _use(recipe: Recipe) -> str:
    if recipe.result != "student":
        return "Fine-tuned on the data that its students see."
    return (
        "## Sampling\n\n"
        f"Guidance {guidance(recipe):g} is built in: use `guidance_scale=1.0`, one call of the network a step. Any number "
        f"of steps will do; the grid is shifted by {recipe.backbone.shift:g}, which the scheduler here knows."
    )


def _training(recipe: Recipe) -> str:
    rows = ["| stage | method | steps | batch | trained |", "|---|---|---|---|---|"]
    for number, stage in enumerate(recipe.stages):
        roles = ", ".join(sorted(stage.method.trains))
        rows.append(f"| {number} | {stage.method.name} | {stage.steps} | {stage.batch} | {roles} |")
    teacher = sorted({o.w for o in _objectives(recipe) if isinstance(o, DistributionMatching)})
    matched = f" The teacher whose distribution it matches has guidance {teacher[-1]:g}." if teacher else ""
    data = "given to `distill`" if recipe.data is None else f"`{type(recipe.data).__name__}`"
    return "## Training\n\n" + "\n".join(rows) + f"\n\nData: {data}. Seed: {recipe.seed}.{matched}"


def _evaluation(recipe: Recipe, out: Path) -> list[str]:
    folder = out / "evaluation"
    if recipe.result != "student" or not (folder / "manifest.json").is_file():
        return []
    found = [records.Record(**one) for one in json.loads((folder / "nfe.json").read_text())]
    manifest = json.loads((folder / "manifest.json").read_text())
    told = {
        "prompts": f"{manifest['prompts']['count']}, sha256 `{manifest['prompts']['sha256'][:16]}…`",
        "seeds": ", ".join(map(str, manifest["seeds"])),
        "samples a seed": manifest["samples_per_seed"],
        "teacher": f"Euler, guidance {manifest['teacher']['guidance']:g}, two calls a step",
        "paired error against": f"the teacher at {manifest['teacher']['reference_steps']} steps",
        "versions": ", ".join(f"{k} {v}" for k, v in environment()["packages"].items() if v != "not installed"),
    }
    lines = "\n".join(f"* {name}: {value}" for name, value in told.items())
    return [
        "## Quality against the number of steps\n\nMean ± spread over seeds, at each number of steps:\n\n"
        f"{records.markdown(found)}\n\n{lines}"
    ]


def _cite(recipe: Recipe) -> str:
    return "## Citations\n\n```bibtex\n" + "\n\n".join(citations(recipe)) + "\n```"


def citations(recipe: Recipe) -> tuple[str, ...]:
    """BibTeX of every method and of the backbone, each once."""
    of_methods = [entry for stage in recipe.stages for entry in stage.method.citations]
    return tuple(dict.fromkeys([*of_methods, *recipe.backbone.about().citations]))


def _objectives(recipe: Recipe) -> list[Any]:
    return [o for stage in recipe.stages for update in stage.method.updates for _, o in update.terms]
