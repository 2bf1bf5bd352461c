"""A LoRA out of student - base, for students that have no adapters on disk, and files under other programs' names."""

from __future__ import annotations

import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from attrs import evolve
from diffusers import (
    AnyFlowFARPipeline,
    AnyFlowPipeline,
    FlowMapEulerDiscreteScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers
from flowmap_diffusers.loading import stored
from flowmap_digits import TINY_WAN
from flowmap_far import Far
from flowmap_wan import adapters, comfyui, extract
from flowmap_wan.names import original
from flowmap_wan21 import Wan21
from safetensors.torch import load_file

import flowmap
from flowmap import Rng
from flowmap.cli import main
from flowmap.export.errors import ExportError, ParityError
from tests.export.students import CPU, F32, shaken
from tests.export.test_api import PROMPT
from tests.export.test_forms import LORA, NOISE, off, ours, plain
from tests.export.test_forms_lora import latents

BASE = {"base": str(TINY_WAN)}
pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")


@pytest.fixture(scope="module")
def fused(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student as one publishes it: its adapters, of rank 6, are in the weights alone."""
    out = tmp_path_factory.mktemp("fused") / "student"
    LORA.save(shaken(LORA), out)
    shutil.rmtree(out / "lora")
    return out


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that was trained whole: every tensor has moved, norms and modulation too."""
    out, spec = tmp_path_factory.mktemp("whole") / "student", evolve(LORA, lora=None)
    u = spec.build(frozenset({"student"}), device=CPU, dtype=F32)["student"]
    with torch.no_grad():
        for k, p in enumerate(u.parameters()):
            p += 0.02 * p.std().nan_to_num() * Rng.seeded(5, k).noise_like(p) + 0.002
    spec.save(u, out)
    return out


def truth(student: Path, layer: str) -> torch.Tensor:
    theirs = stored(str(TINY_WAN))[f"{layer}.weight".replace("delta_embedder", "time_embedder")][:]
    return stored(str(student))[f"{layer}.weight"][:].double() - theirs.double()


# ---------------------------------------------------------------------- a change that is of the rank
def test_a_fused_student_is_a_lora_again(fused: Path, tmp_path: Path) -> None:
    """As its README says: on the lifted base, in diffusers' own pipeline."""
    report = flowmap.export(fused, "lora", tmp_path / "out", options={**BASE, "rank": 6})
    about = report.manifest.config["extracted"]
    assert report.worst is not None and report.worst < 1e-5 and about["error"] < 1e-6 and about["rank"] == 6
    tensors = load_file(tmp_path / "out" / "pytorch_lora_weights.safetensors")
    assert {name.rpartition(".lora_")[0].removeprefix("transformer.") for name in tensors} == set(about["layers"])
    assert "condition_embedder.delta_embedder.linear_2" in about["layers"] and not about["left_out"]
    base = Wan21(TINY_WAN, lora=None, shift=LORA.shift)
    base.save(base.build(frozenset({"student"}), device=CPU, dtype=F32)["student"], tmp_path / "base")
    pipe = AnyFlowPipeline.from_pretrained(tmp_path / "base")
    pipe.load_lora_weights(tmp_path / "out")
    assert off(latents(pipe), ours(3)) < 1e-5


def test_and_one_of_plain_wan(fused: Path, tmp_path: Path) -> None:
    report = flowmap.export(fused, "comfyui", tmp_path / "out", options={**BASE, "rank": 6})
    assert report.worst is not None and report.worst < 1e-5
    made = plain(FlowMapEulerDiscreteScheduler(shift=LORA.shift), 4, tmp_path / "out" / "fixed_4_steps.safetensors")
    assert off(made, ours(4)) < 1e-5


def test_a_causal_student_needs_the_rank_of_what_it_trains_whole(tmp_path: Path) -> None:
    """The embedding of compressed tokens, of 64 numbers a token: adapters of rank 6 do not come back with rank 6."""
    spec = Far(TINY_WAN, lora=LORA.lora, text_tokens=12, shift=3.0, partition=(1,) * 5)
    spec.save(shaken(spec), tmp_path / "student")
    shutil.rmtree(tmp_path / "student" / "lora")
    with pytest.raises(ParityError, match="rank = 6: the base with what was extracted is off the student"):
        flowmap.export(tmp_path / "student", "lora", tmp_path / "out", options={**BASE, "rank": 6})
    report = flowmap.export(tmp_path / "student", "lora", tmp_path / "out", options={**BASE, "rank": 64})
    about = report.manifest.config["extracted"]
    assert report.worst is not None and report.worst < 1e-5 and about["error"] < 1e-6 and not about["left_out"]
    assert about["layers"]["far_patch_embedding"]["rank"] == 64
    base = evolve(spec, lora=None)
    base.save(base.build(frozenset({"student"}), device=CPU, dtype=F32)["student"], tmp_path / "base")
    theirs = AnyFlowFARPipeline.from_pretrained(tmp_path / "student")
    pipe = AnyFlowFARPipeline.from_pretrained(tmp_path / "base")
    assert off(latents(pipe), latents(theirs)) > 0.1
    pipe.load_lora_weights(tmp_path / "out")
    assert off(latents(pipe), latents(theirs)) < 1e-5


# ---------------------------------------------------------------------- a change that is of more
def test_what_is_left_out_is_the_tail_of_the_singular_values(fused: Path, tmp_path: Path) -> None:
    report = flowmap.export(fused, "lora", tmp_path / "out", options={**BASE, "rank": 4}, check=False)
    about = report.manifest.config["extracted"]
    tensors, tails, norms = load_file(tmp_path / "out" / "pytorch_lora_weights.safetensors"), 0.0, 0.0
    assert report.worst is None and "outputs" not in about
    for layer, told in about["layers"].items():
        change = truth(fused, layer)
        s = torch.linalg.svdvals(change)
        tail, norm = s[4:].square().sum(), s.square().sum()
        assert told["error"] == pytest.approx(float((tail / norm).sqrt()), rel=1e-6) and told["rank"] == 4
        a, b = (tensors[f"transformer.{layer}.lora_{x}.weight"].double() for x in "AB")
        nearest = (change - b @ a).norm()
        assert float(nearest) == pytest.approx(float(tail.sqrt()), rel=1e-4)
        other = b + 1e-3 * b.norm() / b.numel() ** 0.5 * Rng.seeded(1).noise_like(b.float()).double()
        assert (change - other @ a).norm() > nearest  # Eckart and Young: no other pair is nearer
        tails, norms = tails + float(tail), norms + float(norm)
    assert about["error"] == pytest.approx((tails / norms) ** 0.5, rel=1e-6)


@pytest.mark.parametrize("to", ["lora", "comfyui"])
def test_too_low_a_rank_is_no_export(to: str, fused: Path, tmp_path: Path) -> None:
    with pytest.raises(ParityError, match=r"rank = 1: the base with what was extracted is off the student by .*%"):
        flowmap.export(fused, to, tmp_path / "out", options={**BASE, "rank": 1})
    assert not list(tmp_path.iterdir())


def test_one_that_was_trained_whole_has_all_of_its_change_in_the_file_for_comfyui(whole: Path, tmp_path: Path) -> None:
    """W + up @ down, + diff and + diff_b, on Wan's own names."""
    report = flowmap.export(whole, "comfyui", tmp_path / "out", options={**BASE, "rank": 128, "steps": 2})
    assert report.worst is not None and report.worst < 1e-5
    tensors, change = load_file(tmp_path / "out" / "fixed_2_steps.safetensors"), {}
    for name, value in tensors.items():
        layer, _, kind = name.removeprefix("diffusion_model.").partition(".lora_")
        if kind == "up.weight":
            down = tensors[name.replace("lora_up", "lora_down")]
            change[f"{layer}.weight"] = (value.flatten(1) @ down.flatten(1)).unflatten(1, down.shape[1:])
        elif not kind and name.endswith(".diff_b"):
            change[layer.removesuffix(".diff_b") + ".bias"] = value
        elif not kind:
            of = layer.removesuffix(".diff")
            change[of if of.endswith("modulation") else f"{of}.weight"] = value
    pipe = WanPipeline.from_pretrained(TINY_WAN)
    state = pipe.transformer.state_dict()
    found = convert_wan_transformer_to_diffusers(change)
    assert len(found) == len(state) - 3  # all but the embedder of the time, of which one tensor stands for four
    for name, delta in found.items():
        state[name] += delta
    cond = LORA.codec(device=CPU, dtype=F32).encode_prompts([PROMPT])
    text, z = torch.nn.functional.pad(cond["text"], (0, 0, 0, 512 - 12)), NOISE
    times = report.manifest.sampler["sigmas"]
    with torch.no_grad():
        for t, r in pairwise(times):
            z = z - (t - r) * pipe.transformer(z, torch.tensor([1000 * t]), text).sample
    u = flowmap.load(whole)
    assert off(z.transpose(1, 2), flowmap.sample(u, NOISE.transpose(1, 2), cond, 2, shift=LORA.shift)) < 1e-5
    assert "diffusers 0.42 does not take this file" in (tmp_path / "out" / "README.txt").read_text()


def test_what_peft_cannot_hold_is_said_and_counted(whole: Path, tmp_path: Path) -> None:
    report = flowmap.export(whole, "lora", tmp_path / "out", options={**BASE, "rank": 128})
    about = report.manifest.config["extracted"]
    assert {name.rpartition(".")[2] for name in about["left_out"]} == {"scale_shift_table", "weight", "bias"}
    assert all("norm" in name or "table" in name for name in about["left_out"]) and about["error"] < 1e-6
    assert report.worst is not None and 1e-4 < report.worst < 0.05
    assert f"The change of {about['left_out'][0]}, " in (tmp_path / "out" / "README.txt").read_text()
    pipe = AnyFlowPipeline.from_pretrained(whole)
    wanted = latents(pipe)
    base = Wan21(TINY_WAN, lora=None, shift=LORA.shift)
    base.save(base.build(frozenset({"student"}), device=CPU, dtype=F32)["student"], tmp_path / "base")
    pipe = AnyFlowPipeline.from_pretrained(tmp_path / "base")
    pipe.load_lora_weights(tmp_path / "out")  # with biases, and a convolution
    assert off(latents(pipe), wanted) < 0.05
    pipe.disable_lora()
    assert off(latents(pipe), wanted) > 0.07


# ---------------------------------------------------------------------- rounding, and large matrices
def test_beyond_the_signal_is_rounding() -> None:
    w, pair = (
        Rng.seeded(1).noise_like(torch.zeros(256, 192)),
        [Rng.seeded(k).noise_like(torch.zeros(256, 8)) for k in (2, 3)],
    )
    change = (0.02 * w.norm() / 100) * pair[0] @ pair[1][:192].T / 256**0.5
    base = w.bfloat16()
    student = (base.float() + change).bfloat16()
    stored_change = student.double() - base.double()
    a, b = extract.nearest(stored_change, 64, extract.noise(student))
    assert len(a) == 8
    everything = extract.nearest(stored_change, 64, 0.0)
    kept, all_of_it = (float((b @ a - change.double()).norm() / change.norm()) for a, b in ((a, b), everything))
    assert kept < all_of_it / 2  # more rank is further from what was trained


def test_large_matrices_are_searched_for_their_leading_directions(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = (Rng.seeded(k).noise_like(torch.zeros(n, 12)).double() for k, n in ((1, 90), (2, 200)))
    for matrix in (x @ y.T, y @ x.T):
        exact = torch.linalg.svdvals(matrix)
        monkeypatch.setattr(extract, "WHOLE", 16)
        a, b = extract.nearest(matrix, 12, 0.0)
        assert float((matrix - b @ a).norm() / matrix.norm()) < 1e-10
        a, b = extract.nearest(matrix, 5, 0.0)
        assert float((matrix - b @ a).norm()) == pytest.approx(float(exact[5:].norm()), rel=1e-6)


# ---------------------------------------------------------------------- what is refused
@pytest.mark.parametrize(
    "options, said",
    [
        ({"rank": 0}, "rank = 0: must be an integer of at least 1"),
        ({"rank": True}, "rank = True: must be an integer"),
        ({"rank": 4, "base": None}, r"give the pipeline that it was trained from, base = \.\.\. \(--base DIR\)"),
        ({"rank": 4, "base": "small"}, r"its .* is \[.*\], the student's is \[.*\]: another network"),
        ({"rank": 4, "base": "itself"}, "no matrix of .* differs from it: is it the student"),
    ],
)
def test_what_cannot_be_extracted(options: dict[str, Any], said: str, fused: Path, tmp_path: Path) -> None:
    small = Wan21().tiny()
    small.save(small.build(frozenset({"student"}), device=CPU, dtype=F32)["student"], tmp_path / "small")
    paths = {"small": str(tmp_path / "small"), "itself": str(fused)}
    given = {name: paths.get(value, value) for name, value in ({**BASE, **options}).items() if value is not None}
    with pytest.raises(ExportError, match=said):
        flowmap.export(fused, "lora", tmp_path / "out", options=given)
    assert not (tmp_path / "out").exists()


def test_plain_wan_is_the_base_of_a_file_for_it(fused: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="is a student itself, and the file is for plain Wan"):
        flowmap.export(fused, "comfyui", tmp_path / "out", options={"base": str(fused), "rank": 4})


def without_time(made: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: w for name, w in made.items() if "time_embedding" not in name}


@pytest.mark.parametrize("defect", ["alpha", "time"])
def test_a_defect_is_no_export(defect: str, fused: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    of, carried = adapters.of, comfyui.carried
    if defect == "alpha":  # alpha / rank applied twice

        def half(*args: Any) -> Any:
            found, extracted = of(*args)
            return evolve(found, scale=0.5), extracted

        monkeypatch.setattr(adapters, "of", half)
    else:  # a file without the pair
        monkeypatch.setattr(comfyui, "carried", lambda *args, **more: without_time(carried(*args, **more)))
    with pytest.raises(ParityError, match="rank = 6: the base with what was extracted is off the student by"):
        flowmap.export(fused, "comfyui", tmp_path / "out", options={**BASE, "rank": 6})
    assert not list(tmp_path.iterdir())


def test_a_second_embedder_that_is_left_out_is_in_the_stated_error(
    fused: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its gate is a quarter, so that it may be less than the bound; what is whole is off by 1e-6."""
    of = adapters.of

    def one(*args: Any) -> Any:
        found, extracted = of(*args)
        layers = {name: pair for name, pair in found.layers.items() if "delta_embedder" not in name}
        return evolve(found, layers=layers), extracted

    monkeypatch.setattr(adapters, "of", one)
    report = flowmap.export(fused, "lora", tmp_path / "out", options={**BASE, "rank": 6})
    assert report.worst is not None and report.worst > 1e-3


# ---------------------------------------------------------------------- other programs' names
def test_every_tensor_has_wans_own_name(tmp_path: Path) -> None:
    state = WanTransformer3DModel.from_pretrained(TINY_WAN, subfolder="transformer").state_dict()
    again = convert_wan_transformer_to_diffusers({original(name): value for name, value in state.items()})
    assert again.keys() == state.keys() and all(torch.equal(again[name], state[name]) for name in state)
    for name in ("condition_embedder.delta_embedder.linear_1.weight", "blocks.0.attn2.add_k_proj.weight", "nothing"):
        with pytest.raises(ExportError, match="is no tensor of Wan's text-to-video transformer"):
            original(name)


def test_the_base_can_be_written_as_comfyui_loads_it(tmp_path: Path) -> None:
    LORA.save(shaken(LORA), tmp_path / "student")
    flowmap.export(tmp_path / "student", "comfyui", tmp_path / "out", options={**BASE, "with_base": True})
    written = load_file(tmp_path / "out" / "base_under_wans_names.safetensors")
    assert {"head.modulation", "time_embedding.2.weight", "blocks.0.cross_attn.norm_k.weight"} <= written.keys()
    state = WanTransformer3DModel.from_pretrained(TINY_WAN, subfolder="transformer").state_dict()
    again = convert_wan_transformer_to_diffusers(written)
    assert again.keys() == state.keys() and all(torch.equal(again[name], state[name]) for name in state)
    assert "base_under_wans_names.safetensors is the base" in (tmp_path / "out" / "README.txt").read_text()
    with pytest.raises(ExportError, match="with_base: the base is not here: give its pipeline"):
        flowmap.export(tmp_path / "student", "comfyui", tmp_path / "b", options={"with_base": True})


def test_the_time_can_be_whole_for_fastvideo(tmp_path: Path) -> None:
    LORA.save(shaken(LORA), tmp_path / "student")
    pair, full = ({"full_time": full} for full in (False, True))
    for name, options in (("pair", pair), ("full", full)):
        flowmap.export(tmp_path / "student", "comfyui", tmp_path / name, options=options)
    pairs, whole = (load_file(tmp_path / name / "fixed_4_steps.safetensors") for name in ("pair", "full"))
    time = {f"diffusion_model.time_embedding.2.lora_{x}.weight" for x in ("up", "down")}
    key = "diffusion_model.condition_embedder.time_embedder.linear_2.diff"
    assert pairs.keys() - whole.keys() == time and whole.keys() - pairs.keys() == {key}
    down, up = (pairs[f"diffusion_model.time_embedding.2.lora_{x}.weight"] for x in ("down", "up"))
    torch.testing.assert_close(whole[key], up @ down)
    assert "This file is for FastVideo" in (tmp_path / "full" / "README.txt").read_text()


def test_on_the_command_line(fused: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["export", str(fused), "--to", "comfyui", "--base", str(TINY_WAN), "--out", str(tmp_path / "out")]
    assert main([*asked, "--rank", "6", "--with-base"]) == 0
    said = capsys.readouterr().out
    assert "rank 6 leaves out " in said and "largest error beside the student: " in said
    assert main([*asked[:-1], str(tmp_path / "b")]) == 2
    assert "Give its base and a rank" in capsys.readouterr().err
