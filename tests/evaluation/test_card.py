"""The model card says what was done, in a form that the hub reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from attrs import evolve
from flowmap_digits import TINY_WAN
from flowmap_wan21 import Wan21
from huggingface_hub import ModelCard

from flowmap import AdamW, Recipe, Stage, TensorData, distill
from flowmap.evaluation import card, use
from flowmap.methods import anyflow, finetune, flow_matching
from flowmap.methods.citations import ANYFLOW, FLOW_MATCHING
from tests.evaluation.exact import SHAPE, Exact, curve

DATA = TensorData(torch.zeros(4, *SHAPE), {"label": torch.ones(4)}, {"label": torch.zeros(1)})
RECIPE = Recipe(
    Exact(),
    (Stage(anyflow.forward(shift=2.0, guidance=3.0), 2, batch=4, optimizer=AdamW(lr=1e-9)),),
    data=DATA,
    evaluation=curve(),
    name="mine/of_mine.py",
)


def test_a_card_has_the_table_and_the_manifest(tmp_path: Path) -> None:
    distill(RECIPE, out=tmp_path)
    loaded = ModelCard.load(tmp_path / "student" / "README.md")
    assert loaded.data.library_name == "flowmap"
    assert loaded.data.pipeline_tag == "text-to-video"
    for said in (
        "# of_mine",
        "Guidance 3 is built in",
        "shifted by 2",
        "| 0 | anyflow_forward | 2 | 4 | student |",
        "TensorData()",
        "| brightness | student | 0.",
        "prompts: 2, sha256",
        "seeds: 0, 1, 2",
        "the teacher at 64 steps",
        ANYFLOW,
    ):
        assert said in loaded.text, said


def test_the_card_of_a_fine_tuned_student_compares_with_the_one_before(tmp_path: Path) -> None:
    stage = Stage(finetune.finetune(shift=2.0, guidance=3.0), 1, batch=4, optimizer=AdamW(lr=1e-9))
    distill(evolve(RECIPE, stages=(stage,), evaluation=curve(teacher_sampler="flow_map")), out=tmp_path)
    text = (tmp_path / "student" / "README.md").read_text()
    assert "Guidance 3 is built in" in text
    assert "| 0 | finetune | 1 | 4 | student |" in text
    assert "before: the student that was fine-tuned, one call a step" in text
    assert "paired error against: the student before, at 64 steps" in text
    assert "| brightness | before | " in text and "| brightness | after | " in text
    assert "Euler" not in text


def test_the_card_of_a_student_that_jumps_to_data_says_how_it_is_sampled() -> None:
    forward = anyflow.forward(shift=2.0, guidance=3.0)
    few = Stage(evolve(forward, name="few", sampler="consistency", guidance=5.0), 1, batch=4)
    both = evolve(RECIPE, stages=(*RECIPE.stages, few))
    facts = card.facts(both, DATA)
    assert (facts["sampler"], facts["guidance"]) == ("consistency", 5.0)
    (text,) = card._use(both, Path("nowhere"))
    assert "Guidance 5 is built in" in text and "A step jumps to data" in text
    assert "Any number of steps" not in text
    facts = card.facts(RECIPE, DATA)
    assert (facts["sampler"], facts["guidance"]) == ("flow_map", 3.0)


def test_without_an_evaluation_there_is_no_table(tmp_path: Path) -> None:
    distill(evolve(RECIPE, evaluation=None), out=tmp_path)
    text = (tmp_path / "student" / "README.md").read_text()
    assert "Guidance 3 is built in" in text
    assert "Quality" not in text


def test_a_fine_tuned_teacher_has_a_card_of_its_own(tmp_path: Path) -> None:
    stage = Stage(flow_matching.flow_matching(), 1, batch=4, optimizer=AdamW(lr=1e-9))
    distill(Recipe(Exact(), (stage,), data=DATA), out=tmp_path)
    text = (tmp_path / "teacher" / "README.md").read_text()
    assert "A teacher of `Exact`" in text
    assert "built in" not in text


def test_citations_come_once(tmp_path: Path) -> None:
    both = evolve(RECIPE, stages=(*RECIPE.stages, *RECIPE.stages, Stage(flow_matching.flow_matching(), 1)))
    found = card.citations(both)
    assert len(set(found)) == len(found)
    assert {ANYFLOW, FLOW_MATCHING} <= {*found}


def test_the_card_of_a_pipeline_keeps_its_latents_exact(tmp_path: Path) -> None:
    manifest = {"shape": {"video": [9, 3, 32, 32]}, "prompts": {"first": "a three"}}
    for name, told in (("student/model_index", {"_class_name": "AnyFlowPipeline"}), ("evaluation/manifest", manifest)):
        file = tmp_path / f"{name}.json"
        file.parent.mkdir()
        file.write_text(json.dumps(told))
    _, narrow = card._use(RECIPE, tmp_path)
    assert use.EXACT_LATENTS in narrow


def test_a_card_says_how_its_student_is_loaded_without_an_evaluation_too(tmp_path: Path) -> None:
    """A student without a pipeline by flowmap; one with, by diffusers, at the size that it was trained at."""
    distill(evolve(RECIPE, evaluation=None), out=tmp_path)
    text = (tmp_path / "student" / "README.md").read_text()
    assert 'u = flowmap.load("path/of/this/directory")' in text
    assert "It was trained at 2 frames of height 4 and width 6." in text
    (tmp_path / "student" / "model_index.json").write_text(json.dumps({"_class_name": "WanPipeline"}))
    text = card.write(evolve(RECIPE, evaluation=None), tmp_path).read_text()
    assert "It was trained at 2 frames of height 4 and width 6." in text
    code = text.partition("```python\n")[2].partition("```")[0]
    assert "pipe = WanPipeline.from_pretrained(" in code and 'size = {"num_frames": 2, "height": 4, "width": 6}' in code
    assert "pipe('a prompt', num_inference_steps=4, guidance_scale=1.0, **size).frames[0]" in code


def test_the_size_of_a_card_is_the_training_s_whatever_was_judged(tmp_path: Path) -> None:
    distill(evolve(RECIPE, evaluation=evolve(curve(steps=(1,), reference=1), shape=(3, 3, 8, 8))), out=tmp_path)
    (tmp_path / "student" / "model_index.json").write_text(json.dumps({"_class_name": "WanPipeline"}))
    text = card.write(RECIPE, tmp_path).read_text()
    assert "It was trained at 2 frames of height 4 and width 6." in text
    assert 'size = {"num_frames": 2, "height": 4, "width": 6}' in text and "pipe('left', " in text


def test_where_nobody_knows_the_size_a_card_has_that_of_the_latents(tmp_path: Path) -> None:
    class Lost(Exact):
        def decoder(self, *, device: torch.device, dtype: torch.dtype) -> NoReturn:
            raise OSError("no VAE on this machine")

    student = tmp_path / "student"
    student.mkdir()
    (student / "flowmap.json").write_text(json.dumps({"latent_shape": [2, 3, 4, 6]}))
    (student / "model_index.json").write_text(json.dumps({"_class_name": "WanPipeline"}))
    text = card.write(evolve(RECIPE, backbone=Lost(), evaluation=None), tmp_path).read_text()
    assert "It was trained on latents [2, 3, 4, 6], [F, C, H, W]: tell the pipeline the size of such videos." in text
    assert "pipe('a prompt', num_inference_steps=4, guidance_scale=1.0).frames[0]" in text


@pytest.mark.parametrize("video", [(9, 32, 48), (1, 64, 32)])
def test_the_size_of_wan_s_latents_is_that_of_the_videos_that_were_encoded(video: Any, tmp_path: Path) -> None:
    spec = Wan21(TINY_WAN, text_tokens=12)
    latent = spec.decoder(device=torch.device("cpu"), dtype=torch.float32).latent_shape(*video)
    (tmp_path / "student").mkdir()
    (tmp_path / "student" / "flowmap.json").write_text(json.dumps({"latent_shape": latent}))
    assert card.trained_at(evolve(RECIPE, backbone=spec), tmp_path) == video
