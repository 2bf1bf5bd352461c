"""The forms `lora` and `diffusers`, and what no form can hold."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from attrs import evolve
from diffusers import AnyFlowFARPipeline, AnyFlowPipeline, AnyFlowTransformer3DModel
from flowmap_digits import TINY_WAN
from flowmap_wan import forms
from flowmap_wan21 import Wan21
from safetensors.torch import load_file, save_file

import flowmap
from flowmap.cli import main
from flowmap.export.errors import ExportError, ParityError
from flowmap.export.manifest import Manifest
from flowmap.export.spec import DTYPES, Target
from flowmap.plugins import PluginError
from tests.export.students import CPU, F32, shaken
from tests.export.test_api import DIGITS, FAR_DIGITS, PROMPT, VIDEO
from tests.export.test_forms import LORA, NOISE, off, ours

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's directory: a student, and what `distill` writes beside it."""
    out = tmp_path_factory.mktemp("run")
    LORA.save(shaken(LORA), out / "student")
    facts = {"recipe": "mine", "latent_shape": [5, 4, 8, 8], "shift": 3.0, "guidance": 2.5, "sampler": "flow_map"}
    (out / "student" / "flowmap.json").write_text(json.dumps(facts))
    (out / "recipe.json").write_text(json.dumps({"backbone": {"path": str(TINY_WAN)}}))
    return out


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    """A student that may be damaged."""
    shutil.copytree(run / "student", tmp_path / "student")
    return tmp_path / "student"


def latents(pipe: Any, n: int = 3) -> torch.Tensor:
    pipe.set_progress_bar_config(disable=True)
    made: torch.Tensor = pipe(PROMPT, num_inference_steps=n, guidance_scale=1.0, latents=NOISE, **VIDEO).frames
    return made.transpose(1, 2)


# ---------------------------------------------------------------------- diffusers
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_pipeline_is_whole_and_is_the_student(precision: Any, run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    report = flowmap.export(run, "diffusers", out, precision=precision)
    _, info = AnyFlowTransformer3DModel.from_pretrained(
        out, subfolder="transformer", output_loading_info=True, dtype=torch.float32
    )
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"))
    stored = {w.dtype for w in load_file(next((out / "transformer").glob("*.safetensors"))).values()}
    assert stored == ({F32} if precision == "float32" else {F32, torch.bfloat16})  # times and norms stay exact
    assert report.worst == 0.0 if precision == "float32" else 1e-4 < report.worst < 5e-2
    assert load_file(out / "vae" / "diffusion_pytorch_model.safetensors").popitem()[1].dtype == F32
    error = off(*(latents(AnyFlowPipeline.from_pretrained(path)) for path in (out, run / "student")))
    assert error == 0.0 if precision == "float32" else 1e-4 < error < 5e-2
    assert precision == "bf16" or off(latents(AnyFlowPipeline.from_pretrained(out)), ours(3)) < 1e-5
    facts = json.loads((out / "flowmap.json").read_text())
    assert facts == {
        "recipe": "mine",
        "latent_shape": [5, 4, 8, 8],
        "shift": 3.0,
        "guidance": 2.5,
        "sampler": "flow_map",
        "steps": "any",
    }
    assert not (out / "lora").exists() and report.manifest.config["pipeline"] == "AnyFlowPipeline"
    manifest = Manifest.read(out)
    manifest.verify(out)
    assert manifest.precision == precision and "model_index.json" in manifest.files and len(manifest.weights) == 64


def test_a_causal_one_too(tmp_path: Path) -> None:
    FAR_DIGITS.save(shaken(FAR_DIGITS), tmp_path / "student")
    flowmap.export(tmp_path / "student", "diffusers", tmp_path / "out")
    made = [latents(AnyFlowFARPipeline.from_pretrained(tmp_path / name)) for name in ("out", "student")]
    assert off(*made) < 1e-6


def test_a_pipeline_is_a_students_directory_again(run: Path, tmp_path: Path) -> None:
    flowmap.export(run, "diffusers", tmp_path / "out")
    z, cond, t = NOISE.transpose(1, 2), LORA.codec(device=CPU, dtype=F32).encode_prompts([PROMPT]), torch.tensor([0.7])
    both = [flowmap.load(path)(z, t, 0.5 * t, cond) for path in (run / "student", tmp_path / "out")]
    torch.testing.assert_close(*both, atol=0, rtol=0)
    asked = ["--prompt", PROMPT, "--size", "9x32x32", "--steps", "1", "--out", str(tmp_path / "a.png")]
    assert main(["sample", str(tmp_path / "out"), *asked]) == 0
    flowmap.export(tmp_path / "out", "diffusers", tmp_path / "again")


@pytest.mark.parametrize("spec", [LORA, FAR_DIGITS])
def test_a_pipeline_that_is_not_the_student(spec: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec.save(shaken(spec), tmp_path / "student")
    read = forms.pretrained

    def damaged(*args: Any) -> Any:
        net = read(*args)
        last = net.far_patch_embedding if spec is FAR_DIGITS else net.condition_embedder.delta_embedder.linear_2
        with torch.no_grad():
            last.weight *= 2.0
        return net

    monkeypatch.setattr(forms, "pretrained", damaged)
    with pytest.raises(ParityError, match=r"the export is not the student: .* is allowed in float32; nothing was"):
        flowmap.export(tmp_path / "student", "diffusers", tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["student"]
    assert flowmap.export(tmp_path / "student", "diffusers", tmp_path / "out", check=False).worst is None


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_both_time_embedders_of_a_narrow_pipeline_are_exact(precision: Any, run: Path, tmp_path: Path) -> None:
    out, dtype = tmp_path / "out", DTYPES[precision]
    flowmap.export(run, "diffusers", out, precision=precision)
    ours, theirs = (load_file(next((p / "transformer").glob("*.safetensors"))) for p in (out, run / "student"))
    exact = [name for name in ours if "time_embedder" in name or "delta_embedder" in name]
    assert len(exact) == 8 and all(torch.equal(ours[name], theirs[name]) for name in exact)
    assert ours["proj_out.weight"].dtype == dtype
    loaded = AnyFlowTransformer3DModel.from_pretrained(out, subfolder="transformer", dtype=dtype)
    embedders = loaded.condition_embedder  # as docs/deploy.md says of plain diffusers
    assert embedders.time_embedder.linear_1.weight.dtype == F32
    assert embedders.delta_embedder.linear_1.weight.dtype == dtype


@pytest.mark.parametrize("to", ["lora", "comfyui"])
def test_the_lines_that_load_it_have_the_size_of_its_videos(to: str, run: Path, copy: Path, tmp_path: Path) -> None:
    flowmap.export(run, to, tmp_path / "a")
    assert 'pipe("a prompt", height=32, width=32, num_frames=9, num_' in (tmp_path / "a" / "README.txt").read_text()
    (copy / "flowmap.json").unlink()
    flowmap.export(copy, to, tmp_path / "b")
    assert 'pipe("a prompt", num_inference_steps=4, ' in (tmp_path / "b" / "README.txt").read_text()


# ---------------------------------------------------------------------- lora
def test_the_lora_on_the_lifted_base_is_the_student(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As its README says, line by line."""
    report = flowmap.export(run, "lora", tmp_path / "out")
    assert report.worst is not None and report.worst < 1e-6
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        *("pytorch_lora_weights.safetensors", "base.json", "README.txt", "manifest.json")
    }
    assert not any(".student." in name for name in load_file(tmp_path / "out" / "pytorch_lora_weights.safetensors"))
    assert {k: report.manifest.config[k] for k in ("r", "lora_alpha")} == {"r": 6, "lora_alpha": 9.0}
    code = [line[4:] for line in (tmp_path / "out" / "README.txt").read_text().splitlines() if line.startswith("    ")]
    lines = [line for line in code if not line.startswith("video")]
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec("\n".join(lines).replace("this directory", "out").replace("'tiny_wan'", repr(str(TINY_WAN))), names)
    pipe = names["pipe"]
    assert off(latents(pipe), ours(3)) < 1e-5
    pipe.disable_lora()
    assert off(latents(pipe), ours(3)) > 1e-2


def test_base_and_adapters_that_are_not_the_student(copy: Path, tmp_path: Path) -> None:
    file = copy / "lora" / "pytorch_lora_weights.safetensors"
    tensors = load_file(file)
    tensors["transformer.blocks.0.attn1.to_q.lora_B.weight"] *= 1.01
    from safetensors import safe_open

    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
    save_file(tensors, file, metadata=metadata)
    for to in ("lora", "comfyui"):
        with pytest.raises(ParityError, match=r"is not the student: blocks\.0\.attn1\.to_q\.weight is off by"):
            flowmap.export(copy, to, tmp_path / "out", options={"base": TINY_WAN})
    assert [p.name for p in tmp_path.iterdir()] == ["student"]
    assert flowmap.export(copy, "lora", tmp_path / "out", options={"base": TINY_WAN}, check=False).worst is None


def test_a_base_that_is_not_here_is_not_compared(copy: Path, tmp_path: Path) -> None:
    file = copy / "lora" / "base.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "path": "someone/Wan"}))
    assert flowmap.export(copy, "lora", tmp_path / "a").worst is None
    assert flowmap.export(copy, "lora", tmp_path / "b", options={"base": str(TINY_WAN)}).worst < 1e-6
    assert "someone/Wan" in (tmp_path / "a" / "README.txt").read_text()


# ---------------------------------------------------------------------- what cannot be
@pytest.mark.parametrize(
    "to, options, said",
    [
        ("comfyui", {"steps": 0}, "steps = 0: must be an integer from 1 to 100"),
        ("comfyui", {"steps": 2.0}, r"steps = 2\.0: must be an integer"),
        ("comfyui", {"steps": True}, "steps = True: must be an integer"),
        ("comfyui", {"shift": -1.0}, r"shift = -1\.0: must be a number above 0"),
        ("comfyui", {"shift": True}, "shift = True: must be a number above 0"),
        ("comfyui", {"shift": float("inf")}, "shift = inf: must be a number above 0"),
        ("comfyui", {"times": (0.5, 0.7)}, r"times = \(0\.5, 0\.7\): must be numbers that decrease"),
        ("comfyui", {"times": (1.0, 0.0, 0.5)}, r"times = \(1\.0, 0\.0, 0\.5\): must be numbers that decrease"),
        ("comfyui", {"times": (1.0, 0.0, 0.0)}, "must be numbers that decrease"),
        ("comfyui", {"times": (1.5, 0.5)}, "must be numbers that decrease"),
        ("comfyui", {"times": (1.0, float("nan"))}, "must be numbers that decrease"),
        ("comfyui", {"times": "10"}, "times = '10': must be numbers that decrease"),
        ("comfyui", {"times": (0.0,)}, "must be numbers that decrease"),
        ("comfyui", {"times": ()}, "must be numbers that decrease"),
        ("comfyui", {"times": (1.0, 0.5), "shift": 3.0}, "times and shift were both given"),
        ("comfyui", {"step": 4}, "comfyui has no option 'step'; it has steps, shift, times, base"),
        ("lora", {"steps": 4}, "lora has no option 'steps'; it has base"),
        ("lora", {"base": "nowhere"}, "base = 'nowhere': has no transformer/"),
        ("diffusers", {"steps": 4}, "diffusers has no option 'steps'; it has none"),
    ],
)
def test_an_option_that_is_wrong(to: str, options: dict[str, Any], said: str, run: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=said):
        flowmap.export(run, to, tmp_path / "out", options=options)
    assert not list(tmp_path.iterdir())


def test_what_a_form_does_not_take(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(ExportError, match="lora does not read sizes: it writes what a directory has"):
        flowmap.export(run, "lora", out, sizes={"batch": 1})
    with pytest.raises(ExportError, match="diffusers is files for any machine"):
        flowmap.export(run, "diffusers", out, target=Target("cuda"))
    with pytest.raises(ExportError, match="lora is written from a student's directory, and a network was given"):
        flowmap.export(shaken(Wan21().tiny()), "lora", out)
    with pytest.raises(PluginError, match=r"no exporter is called 'lorra': .*did you mean 'lora'"):
        flowmap.export(run, "lorra", out)
    with pytest.raises(FileNotFoundError, match="there is no such directory"):
        flowmap.export(tmp_path / "nowhere", "lora", out)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("to", ["lora", "comfyui"])
def test_what_no_lora_can_hold(to: str, copy: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    DIGITS.save(shaken(DIGITS), tmp_path / "whole")
    with pytest.raises(ExportError, match=r"has no adapters .*were trained whole, or .* export it --to diffusers"):
        flowmap.export(tmp_path / "whole", to, out)
    far = evolve(FAR_DIGITS, lora=LORA.lora)
    far.save(shaken(far), tmp_path / "far")
    said = {"lora": "far_patch_embedding is trained in full beside", "comfyui": "a causal student makes a video in"}
    with pytest.raises(ExportError, match=f"{said[to]}.* export it --to diffusers"):
        flowmap.export(tmp_path / "far", to, out)
    assert not out.exists()


def test_what_no_fixed_step_lora_can_hold(copy: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (copy / "flowmap.json").write_text(json.dumps({"sampler": "consistency"}))
    with pytest.raises(ExportError, match=r"a consistency student jumps to data .* export it --to diffusers"):
        flowmap.export(copy, "comfyui", out)
    flowmap.export(copy, "diffusers", tmp_path / "d")
    assert json.loads((tmp_path / "d" / "flowmap.json").read_text())["steps"] == [1]
    second = evolve(LORA, path=str(copy))  # trained on a student, whose two embedders have parted
    second.save(shaken(second), tmp_path / "second")
    with pytest.raises(ExportError, match="its adapters sit on a student and not on plain Wan"):
        flowmap.export(tmp_path / "second", "comfyui", out)
    flowmap.export(tmp_path / "second", "lora", out)  # but with its base it is whole


def test_times_that_the_base_does_not_tell_apart(run: Path, tmp_path: Path) -> None:
    times = tuple(1.0 - 1e-7 * i for i in range(4))
    with pytest.raises(ExportError, match="steps = 4: the time embedder of the base does not tell so many apart"):
        flowmap.export(run, "comfyui", tmp_path / "out", options={"times": times})
    assert not list(tmp_path.iterdir())


def test_a_teacher_is_no_student(tmp_path: Path) -> None:
    for to in ("diffusers", "comfyui"):
        with pytest.raises(ExportError, match="its transformer is a WanTransformer3DModel, which has one time"):
            flowmap.export(TINY_WAN, to, tmp_path / "out")


def test_nobody_calls_one(run: Path, tmp_path: Path) -> None:
    flowmap.export(run, "comfyui", tmp_path / "out")
    for call in (flowmap.export.load, flowmap.export.flow_map):
        with pytest.raises(ExportError, match="a comfyui export is files for other programs, and nothing to call"):
            call(tmp_path / "out")


@pytest.mark.parametrize("to", ["comfyui", "diffusers"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_one_that_is_broken_off_leaves_nothing(
    to: str, error: Any, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*args: Any, **more: Any) -> None:
        raise error

    monkeypatch.setattr(Path, "write_text", stop)  # the last but the manifest
    with pytest.raises((OSError, KeyboardInterrupt)):
        flowmap.export(run, to, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_killed(run: Path, tmp_path: Path) -> None:
    code = f"import flowmap; flowmap.export({str(run)!r}, 'comfyui', {str(tmp_path / 'out')!r})"
    fault = {**os.environ, "FLOWMAP_FAULT": "export.built"}
    found = subprocess.run([sys.executable, "-c", code], env=fault, cwd=ROOT, capture_output=True)
    assert found.returncode == -signal.SIGKILL and not (tmp_path / "out").exists()
    flowmap.export(run, "comfyui", tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_on_the_command_line(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["export", str(run), "--to", "comfyui", "--steps", "2", "--shift", "5", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert f"{out / 'fixed_2_steps.safetensors'}" in said and "largest error beside the student: " in said
    assert Manifest.read(out).sampler["sigmas"] == pytest.approx([1.0, 5 / 6, 0.0])
    assert main(["export", str(run), "--to", "onnx", "--steps", "2", "--out", str(tmp_path / "b")]) == 2
    assert main(["export", str(run), "--to", "lora", "--steps", "2", "--out", str(tmp_path / "c")]) == 2
    assert "lora has no option 'steps'" in capsys.readouterr().err
    assert main(["plugins"]) == 0
    assert "comfyui of far, far_14b, wan21, wan21_14b" in " ".join(capsys.readouterr().out.split())
