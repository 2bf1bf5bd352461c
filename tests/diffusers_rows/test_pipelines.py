"""From a pipeline directory that diffusers alone has made to a student that diffusers alone runs."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import flowmap_diffusers
import flowmap_digits
import pytest
import torch
from attrs import evolve
from flowmap_diffusers import Diffusers
from flowmap_diffusers.rows import ROWS

from flowmap import FlowMap, Rng, sample
from flowmap.plugins import backbone, manager

CPU: dict[str, Any] = {"device": torch.device("cpu"), "dtype": torch.float32}
TINY = Path(flowmap_digits.__file__).parent / "assets" / "tiny_wan"
PLUGINS = manager(flowmap_diffusers, entry_points=False)
PROMPTS = ["a seven", ""]
VAE: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "block_out_channels": (8, 8, 8, 8),
    "decoder_block_out_channels": (8, 8, 8),
    "layers_per_block": (1, 1, 1, 1, 1),
    "patch_size": 1,
    "patch_size_t": 1,
    "decoder_layers_per_block": (1, 1, 1, 1),
    "spatio_temporal_scaling": (True, True, False, False),
    "decoder_spatio_temporal_scaling": (True, True, False),
    "decoder_inject_noise": (False,) * 4,
    "upsample_residual": (False,) * 3,
    "upsample_factor": (1,) * 3,
}
"""4 frames to one and 4 pixels of a side, unlike the published one."""


@pytest.fixture(scope="module")
def ltx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LTX-Video at toy size, with a text encoder and a tokenizer of T5."""
    from diffusers import (
        AutoencoderKLLTXVideo,
        FlowMatchEulerDiscreteScheduler,
        LTXPipeline,
        LTXVideoTransformer3DModel,
    )
    from transformers import AutoTokenizer, T5Config, T5EncoderModel

    folder = tmp_path_factory.mktemp("ltx") / "pipeline"
    tokenizer = AutoTokenizer.from_pretrained(TINY, subfolder="tokenizer")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        text = T5Config(vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
        vae = AutoencoderKLLTXVideo(**VAE)
        vae.latents_mean.copy_(torch.linspace(-1, 1, 4))
        vae.latents_std.copy_(torch.linspace(0.5, 2, 4))
        LTXPipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, base_shift=0.95, max_shift=2.05),
            vae=vae.eval(),
            text_encoder=T5EncoderModel(text).eval(),
            tokenizer=tokenizer,
            transformer=LTXVideoTransformer3DModel(**ROWS["ltx"].tiny).eval(),
        ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def spec(ltx: Path) -> Diffusers:
    found = backbone(str(ltx), PLUGINS)
    assert isinstance(found, Diffusers) and found.family == "ltx"
    return evolve(found, lora=evolve(found.lora, rank=4, alpha=4.0))


def test_positions_are_those_of_the_directory_s_own_vae(spec: Diffusers) -> None:
    from flowmap_diffusers.build import positions_of

    found = positions_of(spec)
    assert (found.temporal, found.spatial, found.fps) == (4, 4, 25.0)


def test_the_codec_is_the_pipeline_s(spec: Diffusers, ltx: Path) -> None:
    from diffusers import LTXPipeline

    codec, pipe = spec.codec(**CPU), LTXPipeline.from_pretrained(ltx)
    text, mask, *_ = pipe.encode_prompt(PROMPTS, do_classifier_free_guidance=False)
    cond = codec.encode_prompts(PROMPTS)
    torch.testing.assert_close(cond["text"], text)
    assert torch.equal(cond["mask"], mask.long())
    assert codec.latent_shape(9, 32, 32) == (3, 4, 8, 8)
    x = Rng.seeded(1).noise_like(torch.zeros(2, 3, 4, 8, 8))
    raw = pipe._denormalize_latents(x.transpose(1, 2), pipe.vae.latents_mean, pipe.vae.latents_std)
    with torch.no_grad():
        frames = pipe.vae.decode(raw, None, return_dict=False)[0]
        torch.testing.assert_close(codec.decode(x), (frames.transpose(1, 2) / 2 + 0.5).clamp(0, 1))
        videos = torch.rand(2, 9, 3, 32, 32)
        raw = pipe.vae.encode((2 * videos - 1).transpose(1, 2)).latent_dist.mode()
        wanted = pipe._normalize_latents(raw, pipe.vae.latents_mean, pipe.vae.latents_std).transpose(1, 2)
        torch.testing.assert_close(codec.encode(videos), wanted)
    with pytest.raises(ValueError, match=r"9x30x32 is no size of this model: .* 4, height and width multiples of 4"):
        codec.latent_shape(9, 30, 32)


@pytest.fixture(scope="module")
def student(spec: Diffusers, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Moved off the teacher, both embedders too, as training does."""
    from flowmap.testing.kit_helpers import perturb

    path = tmp_path_factory.mktemp("student")
    u = spec.build(frozenset({"student"}), **CPU)["student"]
    perturb(u, 0, 0.1)
    spec.save(u, path)
    z, cond, t = _noise(), spec.codec(**CPU).encode_prompts(["a seven"]), torch.tensor([0.7])
    with torch.no_grad():
        loaded = load(path)
        torch.testing.assert_close(loaded(z, t, t / 2, cond), u(z, t, t / 2, cond))
        assert (loaded(z, t, t / 2, cond) - loaded(z, t, t, cond)).abs().max() > 1e-3
    return path


def load(path: Path) -> FlowMap:
    return backbone(str(path), PLUGINS).load(path, **CPU)


def _noise() -> torch.Tensor:
    return Rng.seeded(2).noise_like(torch.zeros(1, 3, 4, 8, 8))


STEPS = (1, 4, 8)


def test_a_student_in_diffusers_alone_is_flowmap_s(student: Path, tmp_path: Path) -> None:
    """In a process that cannot import flowmap."""
    spec = backbone(str(student), PLUGINS)
    cond = spec.codec(**CPU).encode_prompts(["a seven"])
    torch.save(_noise(), tmp_path / "noise.pt")
    code = f"""
import sys
sys.modules["flowmap"] = sys.modules["flowmap_diffusers"] = None
import torch
from diffusers import DiffusionPipeline
from diffusers.pipelines.ltx.pipeline_ltx import LTXPipeline
pipe = DiffusionPipeline.from_pretrained({str(student)!r}, trust_remote_code=True)
z = LTXPipeline._pack_latents(torch.load("noise.pt").transpose(1, 2), 1, 1)
pipe.set_progress_bar_config(disable=True)
size = dict(height=32, width=32, num_frames=9, output_type="latent")
made = {{n: pipe("a seven", latents=z, num_inference_steps=n, return_dict=False, **size)[0] for n in {STEPS}}}
torch.save({{n: LTXPipeline._unpack_latents(z, 3, 8, 8, 1, 1).transpose(1, 2) for n, z in made.items()}}, "out.pt")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    made, u = torch.load(tmp_path / "out.pt"), load(student)
    for steps in STEPS:
        ours = sample(u, _noise(), cond, steps=steps, shift=spec.shift)
        assert float((made[steps] - ours).abs().max() / ours.abs().max()) < 1e-5, steps


def test_the_plain_class_does_not_load_a_student(student: Path) -> None:
    from diffusers import LTXVideoTransformer3DModel

    with pytest.raises(OSError, match=r"no file named diffusion_pytorch_model\."):
        LTXVideoTransformer3DModel.from_pretrained(student, subfolder="transformer")


def test_another_file_s_tensors_are_refused(ltx: Path, tmp_path: Path) -> None:
    from flowmap.model import WeightsError

    other = tmp_path / "other"
    shutil.copytree(ltx, other)
    config = other / "transformer" / "config.json"
    config.write_text(config.read_text().replace('"num_layers": 2', '"num_layers": 3'))
    with pytest.raises(WeightsError, match=r"there is no transformer_blocks\.2\."):
        backbone(str(other), PLUGINS).build(frozenset({"student"}), **CPU)
