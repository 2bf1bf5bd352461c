"""Forms for other programs: what diffusers makes of them is the student, and nothing is left over."""

from __future__ import annotations

import json
from inspect import signature
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from attrs import evolve
from diffusers import (
    FlowMapEulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers
from flowmap_digits import TINY_WAN
from flowmap_wan21 import Lora, Wan21
from safetensors import safe_open
from safetensors.torch import load_file

import flowmap
from flowmap import sample
from flowmap.export.errors import ExportError
from flowmap.export.manifest import Manifest
from flowmap.export.spec import Target
from flowmap.path import expand
from tests.export.students import CPU, F32, shaken
from tests.export.test_api import PROMPT, VIDEO

LORA = Wan21(TINY_WAN, lora=Lora(rank=6, alpha=9.0), text_tokens=12, shift=3.0)
NOISE = torch.randn(1, 4, 5, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("saved") / "student"
    LORA.save(shaken(LORA), out)
    return out


def student() -> Any:
    return shaken(LORA)


def ours(n: int, times: tuple[float, ...] | None = None, noise: torch.Tensor = NOISE) -> torch.Tensor:
    """What flowmap samples on its own grid, or on another."""
    u, cond, z = student(), LORA.codec(device=CPU, dtype=F32).encode_prompts([PROMPT]), noise.transpose(1, 2)
    if times is None:
        return sample(u, z, cond, n, shift=LORA.shift)
    with torch.no_grad():
        for t, r in pairwise(times):
            ts = torch.tensor([t]), torch.tensor([r])
            z = z - expand(ts[0] - ts[1], z) * u(z, *ts, cond)
    return z


def plain(scheduler: Any, n: int, lora: Path | None = None) -> torch.Tensor:
    """Of the base, in diffusers' own pipeline of it."""
    pipe = WanPipeline.from_pretrained(TINY_WAN)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = scheduler
    if lora is not None:
        pipe.load_lora_weights(lora)
    made = pipe(PROMPT, num_inference_steps=n, guidance_scale=1.0, latents=NOISE, **VIDEO)
    return made.frames.transpose(1, 2)


def off(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


def comfy(saved: Path, out: Path, **options: Any) -> Path:
    flowmap.export(saved, "comfyui", out, options=options)
    return out


# ---------------------------------------------------------------------- what is asked of a form
UNREAD: dict[str, Any] = {
    "sizes": {"frames": 5},
    "example": (NOISE, {}),
    "compile": True,
    "rollouts": (1, 8),
    "backbone": LORA,
}


@pytest.mark.parametrize("to", ["diffusers", "lora", "comfyui"])
@pytest.mark.parametrize("name", [*UNREAD, "target"])
def test_a_form_refuses_every_argument_that_it_does_not_read(to: str, name: str, saved: Path, tmp_path: Path) -> None:
    given = {"target": Target("cuda")} if name == "target" else {name: UNREAD[name]}
    said = "takes no device" if name == "target" else f"{to} does not read {name}: "
    with pytest.raises(ExportError, match=said):
        flowmap.export(saved, to, tmp_path / "out", **given)
    assert not list(tmp_path.iterdir())


def test_every_argument_of_an_export_is_read_or_refused() -> None:
    """A new one is given a place here, and in the test above where forms do not read it."""
    read = {"student", "to", "out", "precision", "target", "check", "options", "pm"}
    assert {*signature(flowmap.export.__call__).parameters} == read | UNREAD.keys()


# ---------------------------------------------------------------------- plain Wan at a fixed number of steps
@pytest.mark.parametrize("n", [1, 4, 8])  # 8 is more than the rank of the adapters
def test_plain_wan_with_the_lora_is_the_student_at_its_number_of_steps(n: int, saved: Path, tmp_path: Path) -> None:
    lora = comfy(saved, tmp_path / "lora", steps=n)
    made = plain(FlowMapEulerDiscreteScheduler(shift=LORA.shift), n, lora)
    assert off(made, ours(n)) < 1e-5
    flow = FlowMatchEulerDiscreteScheduler(shift=LORA.shift)
    flow.sigma_min = 1 / n  # its own grid is another: it goes down to a thousandth, shifts that, and does so twice
    assert off(plain(flow, n, lora), ours(n)) < 1e-5
    if n > 1:
        assert off(plain(FlowMapEulerDiscreteScheduler(shift=LORA.shift), n), ours(n)) > 1e-2


def test_a_student_that_is_told_t_minus_r(tmp_path: Path) -> None:
    spec = evolve(LORA, delta="t-r", gamma=0.4)
    u = shaken(spec)
    spec.save(u, tmp_path / "student")
    lora = comfy(tmp_path / "student", tmp_path / "lora", steps=2)
    cond = spec.codec(device=CPU, dtype=F32).encode_prompts([PROMPT])
    wanted = sample(u, NOISE.transpose(1, 2), cond, 2, shift=3.0)
    assert off(plain(FlowMapEulerDiscreteScheduler(shift=3.0), 2, lora), wanted) < 1e-5


def test_another_number_of_steps_or_another_shift_is_another_student(saved: Path, tmp_path: Path) -> None:
    lora = comfy(saved, tmp_path / "lora")
    assert Manifest.read(lora).sampler["steps"] == 4  # by default
    assert off(plain(FlowMapEulerDiscreteScheduler(shift=LORA.shift), 3, lora), ours(3)) > 1e-3
    assert off(plain(FlowMapEulerDiscreteScheduler(shift=1.0), 4, lora), ours(4, (1.0, 0.75, 0.5, 0.25, 0.0))) > 1e-3


def test_times_of_any_sampler_can_be_frozen_in(saved: Path, tmp_path: Path) -> None:
    flow = FlowMatchEulerDiscreteScheduler(shift=LORA.shift)
    flow.set_timesteps(4)
    times = tuple(flow.sigmas.tolist())
    lora = comfy(saved, tmp_path / "lora", times=times)
    assert off(plain(FlowMatchEulerDiscreteScheduler(shift=LORA.shift), 4, lora), ours(4, times)) < 1e-5


@pytest.mark.parametrize("n", [3, 4])
def test_comfyuis_layout_and_grid_give_the_student_too(n: int, saved: Path, tmp_path: Path) -> None:
    """W + up @ down on Wan's own names, whatever diffusers' LoRA loader makes of them."""
    table = [LORA.shift * u / (1 + (LORA.shift - 1) * u) for u in ((k + 1) / 1000 for k in range(1000))]
    sigmas = (*(table[-1 - int(i * (1000 / n))] for i in range(n)), 0.0)
    found = comfy(saved, tmp_path / "lora", steps=n)
    assert Manifest.read(found).sampler["sigmas"] == pytest.approx(sigmas, abs=1e-12)
    tensors = load_file(found / f"fixed_{n}_steps.safetensors")
    layers = {name.rpartition(".lora_")[0] for name in tensors}
    assert {f"{name}.lora_{x}.weight" for name in layers for x in ("up", "down")} == tensors.keys()
    assert {name.partition(".")[0] for name in layers} == {"diffusion_model"}
    change = {
        f"{name.removeprefix('diffusion_model.')}.weight": tensors[f"{name}.lora_up.weight"]
        @ tensors[f"{name}.lora_down.weight"]
        for name in layers
    }
    pipe = WanPipeline.from_pretrained(TINY_WAN)
    state = pipe.transformer.state_dict()
    for name, delta in convert_wan_transformer_to_diffusers(change).items():
        state[name] += delta
    text = torch.nn.functional.pad(
        LORA.codec(device=CPU, dtype=F32).encode_prompts([PROMPT])["text"], (0, 0, 0, 512 - 12)
    )
    z = NOISE
    with torch.no_grad():
        for t, r in pairwise(sigmas):
            z = z - (t - r) * pipe.transformer(z, torch.tensor([1000 * t]), text).sample
    assert off(z.transpose(1, 2), ours(n, sigmas)) < 1e-5


def test_every_key_finds_its_layer_and_every_layer_its_key(saved: Path, tmp_path: Path) -> None:
    file = comfy(saved, tmp_path / "lora") / "fixed_4_steps.safetensors"
    tensors = WanPipeline.lora_state_dict(str(file))  # raises where a key is left over
    assert len(tensors) == len(load_file(file))
    network = WanTransformer3DModel.from_pretrained(TINY_WAN, subfolder="transformer")
    network.load_lora_adapter(tensors)
    there = {name.replace(".default_0.", ".") for name, _ in network.named_parameters() if ".lora_" in name}
    assert {f"transformer.{name}" for name in there} == tensors.keys()
    assert {tuple(config.alpha_pattern) for config in network.peft_config.values()} == {()}  # one rank for all
    with safe_open(file, framework="pt") as opened:
        told = json.loads(opened.metadata()["flowmap"])
    assert told["sigmas"] == pytest.approx([1.0, 0.9, 0.75, 0.5, 0.0]) and told["cfg"] == 1.0
    assert (told["sampler"], told["scheduler"], told["shift"]) == ("euler", "simple", 3.0)
    said = (file.parent / "README.txt").read_text()
    assert "euler, 4 steps, shift 3, scheduler simple, cfg 1" in said and "1, 0.9, 0.75, 0.5, 0" in said


def test_bfloat16_keeps_the_time_exact(saved: Path, tmp_path: Path) -> None:
    flowmap.export(saved, "comfyui", tmp_path / "lora", precision="bf16")
    tensors = load_file(tmp_path / "lora" / "fixed_4_steps.safetensors")
    exact = {name for name, w in tensors.items() if w.dtype == F32}
    assert exact == {f"diffusion_model.time_embedding.2.lora_{x}.weight" for x in ("up", "down")}
    assert {w.dtype for w in tensors.values()} == {F32, torch.bfloat16}
    made = plain(FlowMapEulerDiscreteScheduler(shift=LORA.shift), 4, tmp_path / "lora")
    assert 1e-5 < off(made, ours(4)) < 1e-2
