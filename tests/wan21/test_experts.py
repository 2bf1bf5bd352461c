"""Wan2.2 A14B: a pipeline of two experts is one flow map, trained one expert a run, and its student is a pipeline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from attrs import evolve
from diffusers import DiffusionPipeline, WanPipeline
from flowmap_digits import TINY_WAN
from flowmap_digits.data import MovingDigits
from flowmap_digits.evaluation import curve
from flowmap_wan21 import Experts, Wan21
from torch import Tensor

from flowmap import AdamW, FlowMap, Recipe, Rng, Stage, backbone, distill, export, load, sample
from flowmap.cli import main
from flowmap.experts import TwoExperts
from flowmap.method import Method
from flowmap.methods import anyflow
from flowmap.recipe import RecipeError
from tests.wan21 import pipelines

CPU = torch.device("cpu")
B, SHIFT = 0.875, 5.0
HIGH, LOW = (B, 1.0), (0.0, B)
PROMPT = "a seven moving up quickly"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two networks that are not the same."""
    folder = tmp_path_factory.mktemp("base") / "wan22"
    pipelines.two_experts(folder)
    return folder


def stages(within: tuple[float, float], guidance: float) -> tuple[Stage, ...]:
    told: dict[str, Any] = {"shift": SHIFT, "guidance": guidance, "within": within}
    forward, on_policy = anyflow.forward(**told), anyflow.on_policy(**told, teacher_guidance=guidance, steps=(2, 4))

    def stage(method: Method) -> Stage:
        return Stage(method, steps=2, batch=4, optimizer=AdamW(1e-2), ema=None)

    return stage(anyflow.teacher(shift=SHIFT, within=within)), stage(forward), stage(on_policy)


def high_recipe(base: Path, **settings: Any) -> Recipe:
    spec = Wan21(base, expert="high", shift=SHIFT, text_tokens=12, **settings)
    return Recipe(spec, stages(HIGH, 4.0), data=MovingDigits(count=8), name="high")


def low_recipe(base: Path, high: Path, **settings: Any) -> Recipe:
    spec = Experts(
        Wan21(high, expert="high", shift=SHIFT, lora=None, text_tokens=12),
        Wan21(base, expert="low", shift=SHIFT, text_tokens=12, **settings),
    )
    return Recipe(spec, stages(LOW, 3.0), data=MovingDigits(count=8), name="low")


@pytest.fixture(scope="module")
def runs(base: Path) -> Path:
    """The high expert, then the low one on top of its student; whole networks."""
    out = base.parent
    distill(high_recipe(base, lora=None), out=out / "high", device="cpu")
    distill(low_recipe(base, out / "high" / "student", lora=None), out=out / "low", device="cpu")
    return out


def cond(n: int = 2) -> dict[str, Tensor]:
    return {"text": Rng.seeded(5).noise_like(torch.zeros(n, 512, 32))}


def noise(n: int = 2, frames: int = 5) -> Tensor:
    return Rng.seeded(4).noise_like(torch.zeros(n, frames, 4, 8, 8))


# ---------------------------------------------------------------------- the pair of teachers
def test_a_directory_of_two_experts_is_their_pair(base: Path) -> None:
    """Each is asked at its own times, as `WanPipeline` asks them: at the boundary the high one."""
    spec = backbone(str(base))
    assert spec == Experts(Wan21(base, expert="high"), Wan21(base, expert="low")) and spec.boundary == B
    u = spec.build(frozenset({"teacher"}), device=CPU, dtype=torch.float32)["teacher"]
    pipe = WanPipeline.from_pretrained(base)
    assert isinstance(u, TwoExperts) and u.boundary == B
    for t, net in (
        (1.0, pipe.transformer),
        (B, pipe.transformer),
        (0.8, pipe.transformer_2),
        (0.1, pipe.transformer_2),
    ):
        at = torch.full((2,), t)
        with torch.no_grad():
            ours = u(noise(), at, at, cond())
            theirs = net(noise().transpose(1, 2), 1000 * at, cond()["text"]).sample.transpose(1, 2)
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_one_of_them_alone_is_asked_for_by_name(base: Path) -> None:
    with pytest.raises(
        ValueError, match=r"two experts, as Wan2\.2 A14B\), and one of them alone would be another model: "
    ):
        Wan21(base).validate()
    Wan21(base, expert="low").validate()
    with pytest.raises(ValueError, match=r"has one network and no boundary_ratio: leave expert = 'high' out"):
        Wan21(TINY_WAN, expert="high").validate()
    with pytest.raises(ValueError, match=r"Experts.low = Wan21\(.*: must be a spec with expert = 'low'"):
        Experts(Wan21(base, expert="high"), Wan21(base, expert="high"))


def test_a_low_student_goes_on_from_a_high_student(base: Path) -> None:
    with pytest.raises(ValueError, match=r"is a diffusion model: a student of the low expert goes on from the student"):
        backbone(str(base)).build(frozenset({"student"}), device=CPU, dtype=torch.float32)


def test_an_evaluation_in_one_step_is_refused_before_work(base: Path, runs: Path) -> None:
    recipe = low_recipe(base, runs / "high" / "student")
    with pytest.raises(RecipeError, match=r"the evaluation has steps = \(1, 2\): must be at least 2, as a student"):
        evolve(recipe, evaluation=curve(guidance=1.0, steps=(1, 2))).validate()
    evolve(recipe, evaluation=curve(guidance=1.0, steps=(2, 4))).validate()


def test_experts_that_do_not_meet_are_refused(base: Path, runs: Path, tmp_path: Path) -> None:
    pipelines.two_experts(tmp_path / "other", boundary_ratio=0.9)
    spec = Experts(Wan21(runs / "high" / "student", expert="high"), Wan21(tmp_path / "other", expert="low"))
    with pytest.raises(ValueError, match=r"ends at t = 0\.875, and the low one, .* begins at 0\.9: must be of one"):
        spec.validate()
    with pytest.raises(ValueError, match=r"Experts.high has shift = 5, low has 3: must be the same"):
        Experts(
            Wan21(runs / "high" / "student", expert="high"), Wan21(base, expert="low", shift=3.0), boundary=B
        ).validate()


# ---------------------------------------------------------------------- a run an expert
def same(a: FlowMap, b: FlowMap) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_a_run_trains_its_expert_and_leaves_the_other(base: Path, runs: Path) -> None:
    half = load(runs / "high" / "student")
    pair = load(runs / "low" / "student")
    assert isinstance(pair, TwoExperts) and same(pair.high, half)
    before = Wan21(base, expert="low", lora=None).build(frozenset({"student"}), device=CPU, dtype=torch.float32)
    assert not same(pair.low, before["student"])
    assert (pair.high.guidance, pair.low.guidance, pair.guidance) == (4.0, 3.0, None)
    assert (half.within, pair.within) == (HIGH, (0.0, 1.0))


def test_half_a_student_makes_no_videos(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    half = runs / "high" / "student"
    assert backbone(str(half)) == Wan21(half, expert="high")
    assert main(["sample", str(half), "--prompt", PROMPT, "--out", str(tmp_path / "a.gif")]) == 2
    assert (
        "is the high expert alone, for t from 0.875 to 1: half of a student, which no sampler takes until the low one"
        in capsys.readouterr().err
    )
    pipe = DiffusionPipeline.from_pretrained(half, trust_remote_code=True)
    with pytest.raises(ValueError, match="one of two experts alone"):
        pipe(PROMPT)


# ---------------------------------------------------------------------- the pair on disk
@pytest.mark.parametrize("steps", [2, 4, 8])
def test_diffusers_alone_makes_the_same_latents(runs: Path, steps: int) -> None:
    folder = runs / "low" / "student"
    spec = backbone(str(folder))
    assert isinstance(spec, Experts)
    u = spec.load(folder, device=CPU, dtype=torch.float32)
    codec = spec.codec(device=CPU, dtype=torch.float32)
    ours = sample(u, noise(1), codec.encode_prompts([PROMPT]), steps, shift=SHIFT)
    pipe = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
    assert isinstance(pipe, WanPipeline)
    pipe.set_progress_bar_config(disable=True)
    given = {"height": 32, "width": 32, "num_frames": 9, "latents": noise(1).transpose(1, 2), "output_type": "latent"}
    theirs = pipe(PROMPT, num_inference_steps=steps, **given).frames.transpose(1, 2)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_diffusers_refuses_one_step_and_guidance(runs: Path) -> None:
    pipe = DiffusionPipeline.from_pretrained(runs / "low" / "student", trust_remote_code=True)
    with pytest.raises(ValueError, match="num_inference_steps = 1: must be at least 2, one an expert"):
        pipe(PROMPT, num_inference_steps=1)
    with pytest.raises(ValueError, match="guidance is built in"):
        pipe(PROMPT, guidance_scale=4.0)


def test_the_directory_is_sampled_and_its_card_says_how(runs: Path, tmp_path: Path, capsys: Any) -> None:
    folder = runs / "low" / "student"
    made = tmp_path / "seven.gif"
    assert main(["sample", str(folder), "--prompt", PROMPT, "--steps", "2", "4", "--out", str(made)]) == 0
    assert made.is_file()
    capsys.readouterr()
    assert main(["sample", str(folder), "--prompt", PROMPT, "--steps", "1", "--out", str(made)]) == 2
    assert "steps = 1: must be at least 2, as this network is two experts" in capsys.readouterr().err
    card = (folder / "README.md").read_text()
    assert "trust_remote_code=True" in card and "`transformer_2/`: the low expert" in card
    index = json.loads((folder / "model_index.json").read_text())
    assert index["boundary_ratio"] == B and index["transformer_2"] == ["student", "Student"]


@pytest.mark.slow
def test_it_is_exported_as_a_graph_an_expert(runs: Path, tmp_path: Path) -> None:
    """Which compose as they do; parity is measured from 2 steps on."""
    out = tmp_path / "graphs"
    report = export(runs / "low" / "student", "torch-export", out, sizes={"text": 12})
    assert [graph.name for graph in report.manifest.graphs] == ["high", "low"] and report.worst < 1e-4
    u, made = load(runs / "low" / "student"), export.flow_map(out)
    given = noise(1), {"text": cond(1)["text"][:, :12]}
    with torch.no_grad():
        torch.testing.assert_close(sample(made, *given, 4), sample(u, *given, 4), atol=1e-4, rtol=1e-4)
    assert made.boundary == B


@pytest.mark.slow
def test_with_adapters_too(base: Path, tmp_path: Path) -> None:
    """Student, critic and teacher of the low run share one base; the pair is whole on disk."""
    distill(high_recipe(base), out=tmp_path / "high", device="cpu")
    u = distill(low_recipe(base, tmp_path / "high" / "student"), out=tmp_path / "low", device="cpu")
    found = load(tmp_path / "low" / "student")
    given = noise(), {"text": cond()["text"][:, :12]}
    with torch.no_grad():
        torch.testing.assert_close(sample(found, *given, 2), sample(u, *given, 2), atol=1e-4, rtol=1e-4)
    assert isinstance(u, TwoExperts) and set(u.trained()) == set(u.low.trained()) and not u.high.trained()
