"""Students on disk: diffusers runs all three tasks from them, and flowmap takes them and published ones back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from attrs import evolve
from diffusers import AnyFlowFARPipeline, AnyFlowFARTransformer3DModel, FlowMapEulerDiscreteScheduler
from flowmap_digits import TINY_WAN
from flowmap_digits.videos import clips
from flowmap_far import Far, Lora
from flowmap_lora.start import LORA_FILE
from flowmap_wan.checkpoints import WHOLE_FILE
from flowmap_wan.codec import components
from flowmap_wan21 import Wan21

from flowmap import FlowMap, Rng, Stage, backbone, distill, sample
from flowmap.data import TensorData
from flowmap.distill import RecipeError
from flowmap.methods import anyflow
from flowmap.recipe import Recipe
from tests.far.test_network import CPU, LORA, R, T, shake

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
PARTITION = (1, 1, 1, 1, 1)
DIGITS = Far(TINY_WAN, lora=Lora(rank=4, alpha=8.0), text_tokens=12, shift=1.0, partition=PARTITION)
PROMPT = "a three moving left slowly"


def student_of(spec: Far) -> Any:
    u: Any = spec.build(frozenset({"student"}), device=CPU, dtype=torch.float32)["student"]
    shake(u, size=0.02)
    return u


def load(spec: Far, path: Path) -> FlowMap:
    return spec.load(path, device=CPU, dtype=torch.float32)


@pytest.mark.parametrize("spec", [LORA, Far(lora=None).tiny()], ids=["lora", "full"])
@torch.no_grad()
def test_the_directory_gives_back_the_student(spec: Far, tmp_path: Path) -> None:
    x, c = spec.example(3)
    student = student_of(spec)
    spec.save(student, tmp_path)
    again: Any = load(evolve(spec, partition=None, full=None), tmp_path)
    assert (again.partition, again.full) == ((1, 2, 1, 2, 1), 3)
    torch.testing.assert_close(sample(again, x, c, 2), sample(student, x, c, 2), atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_the_lora_file_comes_with_what_is_trained_in_full(tmp_path: Path) -> None:
    x, c = LORA.example(3)
    student = student_of(LORA)
    LORA.save(student, tmp_path)
    assert (tmp_path / "lora" / WHOLE_FILE).is_file()
    assert torch.equal(sample(load(LORA, tmp_path / "lora"), x, c, 2), sample(student, x, c, 2))
    (tmp_path / "lora" / WHOLE_FILE).unlink()
    with pytest.raises(ValueError, match="do not match the adapters"):
        load(LORA, tmp_path / "lora" / LORA_FILE)


@pytest.mark.parametrize("task", ["text", "image", "video"])
@torch.no_grad()
def test_diffusers_runs_every_task_from_the_directory(task: str, tmp_path: Path) -> None:
    """At 512 tokens a frame, 128 compressed: its cached path pads to multiples of 128, and sees the padding."""
    student = student_of(DIGITS)
    DIGITS.save(student, tmp_path)
    pipe = AnyFlowFARPipeline.from_pretrained(tmp_path)
    pipe.set_progress_bar_config(disable=True)
    noise = Rng.seeded(0).noise_like(torch.zeros(1, 5, 4, 32, 64))
    codec = DIGITS.codec(device=CPU, dtype=torch.float32)
    frames = {"text": 0, "image": 1, "video": 5}[task]
    video = clips(1, 0)[0][:, :frames].repeat(1, 1, 1, 4, 8) if frames else None
    made = pipe(
        PROMPT,
        video=video,
        height=128,
        width=256,
        num_frames=9,
        num_inference_steps=2,
        latents=noise.transpose(1, 2),
        output_type="pt",
    ).frames
    context = None if video is None else codec.encode(video)
    ours = codec.decode(sample(student, noise, codec.encode_prompts([PROMPT]), 2, shift=1.0, context=context))
    torch.testing.assert_close(made, ours, atol=2e-3, rtol=1e-2)


def published(path: Path, partition: tuple[int, ...]) -> Any:
    """A directory as diffusers writes it, with a network that flowmap never saw."""
    spec = evolve(DIGITS, lora=None)
    student = student_of(spec)
    config = {k: v for k, v in student.net.config.items() if not k.startswith("_")}
    net = AnyFlowFARTransformer3DModel(**{**config, "chunk_partition": list(partition)})
    net.load_state_dict(student.net.state_dict())
    parts = components(str(TINY_WAN), torch.float32)
    AnyFlowFARPipeline(transformer=net, scheduler=FlowMapEulerDiscreteScheduler(shift=3.0), **parts).save_pretrained(
        path
    )
    return student


def test_a_published_directory_is_a_student_and_a_backbone(tmp_path: Path) -> None:
    theirs = published(tmp_path / "published", (1, 2, 2))
    spec = backbone(str(tmp_path / "published"))
    assert type(spec) is Far
    assert spec.shift == 3.0
    spec = evolve(spec, text_tokens=12)
    again: Any = load(spec, tmp_path / "published")
    assert again.chunks(5) == (1, 2, 2)
    x = Rng.seeded(0).noise_like(torch.zeros(3, 5, 4, 8, 8))
    c = spec.codec(device=CPU, dtype=torch.float32).encode_prompts([PROMPT] * 3)
    with torch.no_grad():
        torch.testing.assert_close(again(x, T, R, c), theirs(x, T, R, c), atol=2e-5, rtol=1e-4)
    # continued training: adapters on the published weights, the teacher from where it came
    recipe = Recipe(
        backbone=evolve(spec, lora=Lora(rank=2, alpha=2.0)),
        teacher=Wan21(TINY_WAN, lora=Lora(rank=2, alpha=2.0), text_tokens=12),
        stages=(Stage(anyflow.on_policy(steps=(2,)), steps=1, batch=2),),
    )
    data = TensorData(x, dict(c), {name: value[:1] * 0 for name, value in c.items()})
    distill(recipe, data, out=tmp_path / "run")
    spec = evolve(spec, lora=None)
    more = load(spec, tmp_path / "run" / "student")
    with torch.no_grad():
        assert not torch.allclose(more(x, T, R, c), again(x, T, R, c), atol=1e-7)
        torch.testing.assert_close(more(x, T, R, c), again(x, T, R, c), atol=1e-2, rtol=1e-1)


@torch.no_grad()
def test_a_partition_of_ones_own_is_saved(tmp_path: Path) -> None:
    published(tmp_path / "published", (1, 2, 2))
    spec = evolve(DIGITS, path=str(tmp_path / "published"), lora=None, partition=PARTITION, full=2)
    student = student_of(spec)
    spec.save(student, tmp_path / "mine")
    again: Any = load(evolve(spec, partition=None, full=None), tmp_path / "mine")
    assert (again.partition, again.full) == (PARTITION, 2)
    x, c = Rng.seeded(0).noise_like(torch.zeros(2, 5, 4, 8, 8)), {"text": torch.zeros(2, 12, 32)}
    torch.testing.assert_close(sample(again, x, c, 2), sample(student, x, c, 2), atol=2e-5, rtol=1e-4)


def test_a_student_from_disk_is_frozen_and_of_the_type_asked_for(tmp_path: Path) -> None:
    spec = Far(lora=None).tiny()
    spec.save(student_of(spec), tmp_path)
    u = spec.load(tmp_path, device=CPU, dtype=torch.bfloat16)
    assert not any(p.requires_grad for p in u.parameters())
    assert {p.dtype for name, p in u.named_parameters() if "attn1" in name} == {torch.bfloat16}
    x, c = spec.example(1)
    cache = u.extend(None, x[:, :1], c)
    assert {k.dtype for piece in cache.memory for k, _ in piece} == {torch.bfloat16}


@pytest.mark.parametrize("change", [{"gamma": 0.5}, {"partition": (2, 2, 1)}, {"full": 2}])
def test_a_lora_file_knows_its_base(change: dict[str, Any], tmp_path: Path) -> None:
    LORA.save(student_of(LORA), tmp_path)
    with pytest.raises(ValueError, match="give the one it was made with"):
        load(evolve(LORA, **change), tmp_path / "lora")


def test_a_distilled_student_is_no_critic(tmp_path: Path) -> None:
    published(tmp_path, (1, 2, 2))
    with pytest.raises(ValueError, match=r"give that one as Recipe\.critic, or as Recipe\.teacher for"):
        Far(tmp_path).build(frozenset({"student", "critic"}), device=CPU, dtype=torch.float32)
    recipe = Recipe(Far(tmp_path), (Stage(anyflow.on_policy(teacher_guidance=1.0), steps=1, batch=2),))
    x, c = Rng.seeded(0).noise_like(torch.zeros(2, 5, 4, 8, 8)), {"text": torch.zeros(2, 12, 32)}
    with pytest.raises(RecipeError, match=r"give that one as Recipe\.critic, or as Recipe\.teacher for"):
        distill(recipe, TensorData(x, c, {"text": torch.zeros(1, 12, 32)}))


def test_a_bidirectional_teacher_is_not_asked_about_a_clean_history() -> None:
    spec = Far(lora=None).tiny()
    x, c = spec.example(4)
    stage = Stage(anyflow.forward(velocity="teacher"), steps=1, batch=4)
    with pytest.raises(ValueError, match="which makes all frames at once, about frames after a history"):
        distill(Recipe(spec, (stage,)), TensorData(x, dict(c), {"text": torch.zeros(1, *c["text"].shape[1:])}))


@torch.no_grad()
def test_the_teacher_of_a_distilled_directory_is_that_student_as_it_was(tmp_path: Path) -> None:
    """Fine-tuning compares with it."""
    published(tmp_path, (1, 2, 2))
    for lora in (None, Lora(rank=2, alpha=2.0)):
        spec = Far(tmp_path, lora=lora, text_tokens=12)
        nets = spec.build(frozenset({"student", "teacher"}), device=CPU, dtype=torch.float32)
        x, c = Rng.seeded(0).noise_like(torch.zeros(2, 5, 4, 8, 8)), {"text": torch.zeros(2, 12, 32)}
        theirs = load(spec, tmp_path)
        for u in nets.values():
            torch.testing.assert_close(sample(u, x, c, 2), sample(theirs, x, c, 2), atol=2e-5, rtol=1e-4)
        assert not nets["teacher"].trained()


def test_a_directory_of_another_kind_is_refused_before_work(tmp_path: Path) -> None:
    published(tmp_path, (1, 2, 2))
    with pytest.raises(ValueError, match="its transformer is an AnyFlowFARTransformer3DModel"):
        Wan21(tmp_path).validate()
