"""Students on disk: what diffusers makes of them, and what comes back."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from attrs import evolve
from diffusers import (
    AnyFlowPipeline,
    AnyFlowTransformer3DModel,
    FlowMapEulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
    WanPipeline,
)
from flowmap_digits import TINY_WAN
from flowmap_lora.files import fingerprint
from flowmap_lora.files import of as of_base
from flowmap_lora.start import LORA_FILE
from flowmap_wan.network import Bidirectional
from flowmap_wan21 import Lora, Wan21
from safetensors.torch import load_file, save_file

from flowmap import FlowMap, Recipe, Rng, Stage, backbone, sample
from flowmap.evaluation import card
from flowmap.guidance import guided_euler_step
from flowmap.methods import anyflow
from flowmap.times import euler_grid
from tests.wan21.test_network import CPU, LORA, R, T, build, shake

DIGITS = Wan21(TINY_WAN, lora=Lora(rank=4, alpha=8.0), text_tokens=12, shift=1.0)


def load(spec: Wan21, path: Path) -> FlowMap:
    return spec.load(path, device=CPU, dtype=torch.float32)


@pytest.mark.parametrize("spec", [LORA, Wan21(lora=None).tiny()], ids=["lora", "full"])
def test_the_directory_gives_back_the_student(spec: Wan21, tmp_path: Path) -> None:
    z, c = spec.example(3)
    student = build(spec)["student"]
    shake(student)
    spec.save(student, tmp_path)
    torch.testing.assert_close(load(spec, tmp_path)(z, T, R, c), student(z, T, R, c), atol=2e-5, rtol=1e-4)


def test_the_lora_file_gives_back_the_student(tmp_path: Path) -> None:
    z, c = LORA.example(3)
    student = build(LORA)["student"]
    shake(student)
    LORA.save(student, tmp_path)
    again = load(LORA, tmp_path / "lora")
    assert torch.equal(again(z, T, R, c), student(z, T, R, c))


def test_diffusers_loads_the_lora_with_no_key_left_over(tmp_path: Path) -> None:
    student = build(LORA)["student"]
    shake(student)
    LORA.save(student, tmp_path)
    base = build(LORA)["teacher"].net.config
    network = AnyFlowTransformer3DModel(**{k: v for k, v in base.items() if not k.startswith("_")})
    tensors, metadata = AnyFlowPipeline.lora_state_dict(str(tmp_path / "lora"), return_lora_metadata=True)
    network.load_lora_adapter(tensors, prefix="transformer", metadata=metadata)
    theirs = {name.replace(".default_0.", "."): p for name, p in network.named_parameters() if ".lora_" in name}
    assert theirs.keys() == student.trained().keys()
    for name, p in student.trained().items():
        assert torch.equal(theirs[name], p)


def test_a_lora_that_does_not_fit_is_named(tmp_path: Path) -> None:
    student = build(LORA)["student"]
    LORA.save(student, tmp_path)
    file = tmp_path / "lora" / LORA_FILE
    with pytest.raises(ValueError, match=r"its r is 4, Wan21\.lora has 8"):
        load(evolve(LORA, lora=Lora(rank=8)), file)
    with pytest.raises(ValueError, match=r"its lora_alpha is 4, Wan21\.lora has 8"):
        load(evolve(LORA, lora=Lora(rank=4, alpha=8.0)), file)
    tensors = load_file(file)
    tensors["transformer.blocks.7.attn1.to_q.lora_A.weight"] = tensors.popitem()[1]
    save_file(tensors, file)
    with pytest.raises(ValueError, match="do not match the adapters"):
        load(LORA, file)
    with pytest.raises(FileNotFoundError, match="neither a pipeline directory"):
        load(LORA, tmp_path / "nothing")


def pipeline_student(spec: Wan21, path: Path) -> Bidirectional:
    student: Bidirectional = spec.build(frozenset({"student"}), device=CPU, dtype=torch.float32)["student"]  # type: ignore[assignment]
    shake(student)
    spec.save(student, path)
    return student


def test_a_pipeline_directory_samples_what_flowmap_samples(tmp_path: Path) -> None:
    student = pipeline_student(DIGITS, tmp_path)
    pipe = AnyFlowPipeline.from_pretrained(tmp_path)
    pipe.set_progress_bar_config(disable=True)
    noise = torch.randn(1, 4, 5, 8, 8, generator=torch.Generator().manual_seed(0))
    prompt = "a three moving left slowly"
    theirs = pipe(prompt, height=32, width=32, num_frames=9, num_inference_steps=3, latents=noise, output_type="latent")
    codec = DIGITS.codec(device=CPU, dtype=torch.float32)
    ours = sample(student, noise.transpose(1, 2), codec.encode_prompts([prompt]), 3, shift=DIGITS.shift)
    torch.testing.assert_close(theirs.frames.transpose(1, 2), ours, atol=2e-4, rtol=1e-3)
    video = pipe(prompt, height=32, width=32, num_frames=9, num_inference_steps=3, latents=noise, output_type="pt")
    torch.testing.assert_close(video.frames, codec.decode(ours), atol=2e-3, rtol=1e-2)


def test_the_lora_on_a_fresh_pipeline_is_the_student(tmp_path: Path) -> None:
    fresh: Bidirectional = DIGITS.build(frozenset({"student"}), device=CPU, dtype=torch.float32)["student"]  # type: ignore[assignment]
    DIGITS.save(fresh, tmp_path / "fresh")
    student = pipeline_student(DIGITS, tmp_path / "student")
    pipe = AnyFlowPipeline.from_pretrained(tmp_path / "fresh")
    pipe.load_lora_weights(tmp_path / "student" / "lora")
    z = torch.randn(3, 5, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    c = DIGITS.codec(device=CPU, dtype=torch.float32).encode_prompts(["a one moving up slowly"] * 3)
    text = torch.nn.functional.pad(c["text"], (0, 0, 0, DIGITS.text_length - DIGITS.text_tokens))
    t, r = (1000 * s[:, None].expand(-1, 5) for s in (T, R))
    with torch.no_grad():
        torch.testing.assert_close(pipe.transformer(z, t, r, text).sample, student(z, T, R, c), atol=2e-4, rtol=1e-3)


def test_adapters_know_their_base(tmp_path: Path) -> None:
    """On the student that they came with they would count twice; the file says so wherever it lies."""
    student = pipeline_student(DIGITS, tmp_path / "student")
    z, c = Rng.seeded(0).noise_like(torch.zeros(3, 5, 4, 8, 8)), {"text": torch.ones(3, 12, 32)}
    shutil.copy(tmp_path / "student" / "lora" / LORA_FILE, tmp_path / "alone.safetensors")
    pipe = WanPipeline.from_pretrained(TINY_WAN)
    pipe.to(torch.bfloat16).save_pretrained(tmp_path / "half")
    evolve(DIGITS, lora=None).save(build(evolve(DIGITS, lora=None))["student"], tmp_path / "lifted")
    lifted = AnyFlowPipeline.from_pretrained(tmp_path / "lifted").transformer
    assert fingerprint(lifted) == of_base(tmp_path / "alone.safetensors")["fingerprint"]
    with torch.no_grad():
        pipe.transformer.blocks[0].attn2.to_q.weight[0, 0] += 0.1
    pipe.save_pretrained(tmp_path / "other")
    for file in (tmp_path / "student" / "lora", tmp_path / "alone.safetensors"):
        assert torch.equal(load(DIGITS, file)(z, T, R, c), student(z, T, R, c))
        for same in ("half", "lifted"):
            load(evolve(DIGITS, path=str(tmp_path / same)), file)
        for other in ("student", "other"):
            said = rf"trained on other weights than those of {tmp_path / other} .*tiny_wan'; a student's directory has"
            with pytest.raises(ValueError, match=said):
                load(evolve(DIGITS, path=str(tmp_path / other)), file)


@torch.no_grad()
def test_the_card_says_which_directory_is_what(tmp_path: Path) -> None:
    """And what comes of adapters on top of themselves, which diffusers loads without a word."""
    student = pipeline_student(DIGITS, tmp_path / "student")
    z, c = Rng.seeded(0).noise_like(torch.zeros(3, 5, 4, 8, 8)), {"text": torch.ones(3, DIGITS.text_length, 32)}
    pipe = AnyFlowPipeline.from_pretrained(tmp_path / "student")
    pipe.load_lora_weights(tmp_path / "student" / "lora")
    t, r = (1000 * s[:, None].expand(-1, 5) for s in (T, R))
    right = student(z, T, R, c)
    assert float((pipe.transformer(z, t, r, c["text"]).sample - right).norm() / right.norm()) > 0.05
    recipe = Recipe(DIGITS, (Stage(anyflow.forward(), steps=1),))
    text = card.write(recipe, tmp_path).read_text()
    assert "* `.`: the whole pipeline, `AnyFlowPipeline.from_pretrained(DIR)`" in text
    assert "* `transformer/`: the network, with its adapters fused" in text
    assert "* `lora/`: the same adapters on their own" in text and "they would count twice" in text
    assert "`Wan21(BASE, lora=Lora(4, 8), ...).load(DIR / 'lora', ...)`" in text
    whole = evolve(recipe, backbone=evolve(DIGITS, lora=None))
    assert "lora/" not in card.write(whole, tmp_path).read_text()


def test_a_distilled_directory_is_a_backbone_again(tmp_path: Path) -> None:
    student = pipeline_student(DIGITS, tmp_path)
    spec = evolve(DIGITS, path=str(tmp_path))
    assert type(backbone(str(tmp_path))) is Wan21
    nets = spec.build(frozenset({"student", "teacher"}), device=CPU, dtype=torch.float32)
    z = torch.randn(3, 5, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    c = DIGITS.codec(device=CPU, dtype=torch.float32).encode_prompts(["a one moving up slowly"] * 3)
    torch.testing.assert_close(nets["student"](z, T, R, c), student(z, T, R, c), atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(nets["teacher"](z, T, T, c), student(z, T, T, c), atol=2e-5, rtol=1e-4)


def fine_tuned(spec: Wan21, path: Path) -> Bidirectional:
    """A teacher whose weights have moved, saved."""
    teacher: Bidirectional = spec.build(frozenset({"teacher"}), device=CPU, dtype=torch.float32)["teacher"]  # type: ignore[assignment]
    teacher.thaw()
    shake(teacher)
    spec.save(teacher, path)
    return teacher


def test_a_fine_tuned_teachers_pipeline_samples_what_flowmap_samples(tmp_path: Path) -> None:
    spec = evolve(DIGITS, lora=None)
    teacher = fine_tuned(spec, tmp_path)
    pipe = WanPipeline.from_pretrained(tmp_path)
    pipe.set_progress_bar_config(disable=True)
    noise = torch.randn(1, 4, 5, 8, 8, generator=torch.Generator().manual_seed(0))
    asked = {"negative_prompt": "", "guidance_scale": 3.0, "height": 32, "width": 32, "num_frames": 9}
    prompt = "a three moving left slowly"
    theirs = pipe(prompt, num_inference_steps=4, latents=noise, output_type="latent", **asked).frames
    codec = spec.codec(device=CPU, dtype=torch.float32)
    cond, null = codec.encode_prompts([prompt]), codec.encode_prompts([""])
    ours = sample(teacher, noise.transpose(1, 2), cond, 4, step=guided_euler_step(3.0, null), shift=spec.shift)
    torch.testing.assert_close(theirs.transpose(1, 2), ours, atol=2e-4, rtol=1e-3)
    torch.testing.assert_close(pipe.scheduler.sigmas.float(), euler_grid(4, spec.shift))


@pytest.mark.parametrize(
    "scheduler",
    [
        FlowMapEulerDiscreteScheduler(shift=3.0),
        FlowMatchEulerDiscreteScheduler(shift=3.0),
        UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
    ],
    ids=lambda scheduler: type(scheduler).__name__,
)
def test_a_fine_tuned_teacher_keeps_the_scheduler_of_its_base(scheduler: Any, tmp_path: Path) -> None:
    pipe = WanPipeline.from_pretrained(TINY_WAN)
    pipe.scheduler = scheduler
    pipe.save_pretrained(tmp_path / "base")
    fine_tuned(evolve(DIGITS, path=str(tmp_path / "base"), lora=None), tmp_path / "made")
    made = WanPipeline.from_pretrained(tmp_path / "made").scheduler
    assert type(made) is type(scheduler)
    for one in (made, scheduler):
        one.set_timesteps(4)
    assert torch.equal(made.sigmas, scheduler.sigmas) and torch.equal(made.timesteps, scheduler.timesteps)


def test_a_teacher_without_a_base_shifts_its_times_once(tmp_path: Path) -> None:
    spec = evolve(Wan21(lora=None).tiny(), shift=5.0)
    fine_tuned(spec, tmp_path)
    made = FlowMapEulerDiscreteScheduler.from_pretrained(tmp_path, subfolder="scheduler")
    made.set_timesteps(4)
    torch.testing.assert_close(made.sigmas.float(), euler_grid(4, 5.0))
    assert not list(tmp_path.rglob("scheduler_config.json"))[1:]


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_what_was_not_trained_is_carried_over_as_it_is(role: str, tmp_path: Path) -> None:
    """To the byte, whatever the weights are in; no pickle, and no name of a directory of this machine."""
    base = Path(shutil.copytree(TINY_WAN, tmp_path / "base"))
    (base / "vae" / "diffusion_pytorch_model.bin").write_bytes(b"a pickle")
    spec = evolve(DIGITS, path=str(base))
    u = spec.build(frozenset({role}), device=CPU, dtype=torch.bfloat16)[role]  # type: ignore[arg-type]
    spec.save(u, tmp_path / "made")
    for part in ("text_encoder", "tokenizer", "vae"):
        theirs = {file.name: file.read_bytes() for file in (Path(TINY_WAN) / part).iterdir()}
        assert {file.name: file.read_bytes() for file in (tmp_path / "made" / part).iterdir()} == theirs
    assert str(base) not in (tmp_path / "made" / "model_index.json").read_text()


def test_a_prompt_too_long_for_what_is_kept_is_refused() -> None:
    codec = evolve(DIGITS, text_tokens=6).codec(device=CPU, dtype=torch.float32)
    with pytest.raises(
        ValueError, match=r"too long for text_tokens = 6, .* has 8: give the backbone text_tokens=9 or more"
    ):
        codec.encode_prompts(["a three moving left slowly, bouncing"])


def test_latents_are_standard_and_come_back_as_the_video() -> None:
    from flowmap_digits.videos import clips

    codec = DIGITS.codec(device=CPU, dtype=torch.float32)
    videos, _ = clips(16, 3)
    x = codec.encode(videos)
    assert x.shape == (16, 5, 4, 8, 8)
    assert 0.8 < float(x.std()) < 1.2
    assert float((codec.decode(x) - videos).square().mean()) < 2e-3
