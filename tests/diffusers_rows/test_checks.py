"""What is wrong with a directory, and what a network has built in, is said before anything is loaded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flowmap_diffusers
import pytest
import torch
from attrs import evolve
from flowmap_diffusers import Diffusers

from flowmap import Recipe, Stage, TensorData
from flowmap.methods import anyflow
from flowmap.plugins import PluginError, backbone, manager

PLUGINS = manager(flowmap_diffusers, entry_points=False)


@pytest.fixture
def ltx(tmp_path: Path) -> Path:
    """A transformer and a scheduler of diffusers', and the index of a pipeline with them."""
    from diffusers import FlowMatchEulerDiscreteScheduler, LTXVideoTransformer3DModel

    folder = tmp_path / "ltx"
    LTXVideoTransformer3DModel(**Diffusers(family="ltx").row.tiny).save_pretrained(folder / "transformer")
    FlowMatchEulerDiscreteScheduler(shift=3.0).save_pretrained(folder / "scheduler")
    parts = {"transformer": "LTXVideoTransformer3DModel", "scheduler": "FlowMatchEulerDiscreteScheduler"}
    write(folder / "model_index.json", {"_class_name": "LTXPipeline"} | {n: ["diffusers", k] for n, k in parts.items()})
    return folder


def write(file: Path, content: Any) -> None:
    file.write_text(json.dumps(content))


def change(file: Path, **entries: Any) -> None:
    write(file, {**json.loads(file.read_text()), **entries})


def as_pickle(folder: Path) -> None:
    weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))


def as_variant(folder: Path) -> None:
    weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_name("diffusion_pytorch_model.fp16.safetensors"))


WRONG: dict[str, tuple[Callable[[Path], object], str]] = {
    "another component": (
        lambda folder: change(folder / "model_index.json", transformer_2=["diffusers", "LTXVideoTransformer3DModel"]),
        r"its LTXPipeline has transformer_2 \(LTXVideoTransformer3DModel\), which flowmap does not read",
    ),
    "another pipeline": (
        lambda folder: change(folder / "model_index.json", _class_name="LTXImageToVideoPipeline"),
        r"is a LTXImageToVideoPipeline: must be a LTXPipeline",
    ),
    "another transformer": (
        lambda folder: change(folder / "transformer" / "config.json", _class_name="FluxTransformer2DModel"),
        r"its transformer is a FluxTransformer2DModel, and 'ltx' is a LTXVideoTransformer3DModel",
    ),
    "quantised": (
        lambda folder: change(folder / "transformer" / "config.json", quantization_config={"quant_method": "torchao"}),
        r"its transformer is quantised \(torchao\): give the one that it was made of",
    ),
    "pickle": (as_pickle, r"the weights of its transformer are in diffusion_pytorch_model.bin, which is not read"),
    "variant": (
        as_variant,
        r"are of the variant .fp16.: save them without, `LTXPipeline.from_pretrained\(DIR",
    ),
    "adapter beside": (
        lambda folder: write(folder / "adapter_config.json", {}),
        r"adapter_config.json is an adapter that is not fused, which is not read",
    ),
    "no scheduler": (
        lambda folder: (folder / "scheduler" / "scheduler_config.json").unlink(),
        r"has no scheduler/scheduler_config.json: must be the directory of a whole diffusers pipeline",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_directory_that_is_not_what_is_read(case: str, ltx: Path) -> None:
    spec = backbone(str(ltx), PLUGINS)
    make, said = WRONG[case]
    make(ltx)
    with pytest.raises(ValueError, match=said):
        spec.validate()
    if case != "another pipeline":
        with pytest.raises(PluginError, match=said):
            backbone(str(ltx), PLUGINS)


def test_the_shift_is_the_directory_s_unless_that_depends_on_the_size(ltx: Path) -> None:
    assert backbone(str(ltx), PLUGINS).shift == Diffusers(ltx, family="ltx").shift == 3.0
    assert Diffusers(ltx, family="ltx", shift=2.0).shift == 2.0
    write(ltx / "scheduler" / "scheduler_config.json", {"flow_shift": 5.0})  # as UniPC calls it
    assert Diffusers(ltx, family="ltx").shift == 5.0
    change(ltx / "scheduler" / "scheduler_config.json", use_dynamic_shifting=True)
    assert backbone(str(ltx), PLUGINS).shift == Diffusers(family="ltx").shift == Diffusers(family="ltx").row.shift


def test_another_schedule_is_another_run(ltx: Path) -> None:
    """Where it says the shift; not where the shift was given."""
    before, given = Diffusers(ltx, family="ltx").fingerprint(), Diffusers(ltx, family="ltx", shift=2.0).fingerprint()
    change(ltx / "scheduler" / "scheduler_config.json", shift=4.0)
    assert Diffusers(ltx, family="ltx").fingerprint() not in (before, None)
    assert Diffusers(ltx, family="ltx", shift=2.0).fingerprint() == given
    of_steps = Diffusers(ltx, family="cogvideox", shift=1.0)
    known = of_steps.fingerprint()
    change(ltx / "scheduler" / "scheduler_config.json", snr_shift_scale=3.0)
    assert of_steps.fingerprint() != known


def test_a_name_of_the_hub_is_its_row_s() -> None:
    found = backbone("Lightricks/LTX-Video", PLUGINS)
    assert isinstance(found, Diffusers) and found.family == "ltx"
    with pytest.raises(PluginError, match="no plugin knows the backbone 'nobody/nothing'"):
        backbone("nobody/nothing", PLUGINS)


def both() -> tuple[Any, ...]:
    """With and without guidance of the teacher; both co-train on data, under the default w."""
    return anyflow.on_policy(teacher_guidance=1.0), anyflow.on_policy()


def test_a_directory_that_is_called_like_a_backbone(ltx: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ltx.parent)
    with pytest.raises(PluginError, match=r"'ltx' is a registered backbone, and a pipeline's directory here: write"):
        backbone("ltx", PLUGINS)
    found = backbone("./ltx", PLUGINS)
    assert isinstance(found, Diffusers) and found.path == "./ltx"


def test_what_cannot_be_fetched_is_named() -> None:
    spec = Diffusers("nobody/nothing", family="ltx")
    with pytest.raises(ValueError, match=r"'nobody/nothing' is no directory here, and cannot be fetched from the hub"):
        spec.build(frozenset({"teacher"}), device=torch.device("cpu"), dtype=torch.float32)


def recipe(family: str, w: float, **said: Any) -> Recipe:
    spec = Diffusers(family=family, **said)
    z, cond = spec.example(4)
    data = TensorData(z, cond, spec.null(cond))
    return Recipe(spec, (Stage(anyflow.forward(guidance=w, velocity="teacher"), 2, batch=4),), data=data)


@pytest.mark.parametrize("family", ["hunyuan_video", "flux"])
def test_guidance_of_a_network_that_has_it_built_in_is_refused(family: str) -> None:
    """methods_2026 7: there is no null branch, and guidance 3 would come on top of the embedded one."""
    own = Diffusers(family=family).guidance
    assert recipe(family, 1.0).wrong() == ()
    (said,) = recipe(family, 3.0).wrong()
    assert said.startswith("stage 0 (anyflow_forward) guides the teacher, random weights")
    assert said.endswith(
        f"has guidance {own:g} built in, and guidance 3 would come on top of it: take 1, which is none"
    )
    assert recipe(family, 3.0, config={"guidance_embeds": False}).wrong() == ()
    on_data = evolve(recipe(family, 1.0), stages=tuple(Stage(m, 2, batch=4) for m in (anyflow.forward(), *both())))
    assert [said.partition(" guides the ")[0] for said in on_data.wrong()] == [
        "stage 0 (anyflow_forward)", "stage 1 (anyflow_on_policy)", "stage 2 (anyflow_on_policy)",
        "stage 2 (anyflow_on_policy)",
    ]  # fmt: skip
    assert all(f"has guidance {own:g} built in" in said for said in on_data.wrong())
    assert recipe("ltx", 3.0).wrong() == ()


def test_built_networks_know_what_is_built_in() -> None:
    for family, wanted in {"hunyuan_video": 4.5, "ltx": 1.0}.items():
        spec = Diffusers(family=family, guidance=4.5)
        u = spec.build(frozenset({"teacher"}), device=torch.device("cpu"), dtype=torch.float32)["teacher"]
        assert u.guidance == wanted
