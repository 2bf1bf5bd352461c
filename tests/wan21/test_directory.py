"""What is in a pipeline's directory is read, or refused by name before anything is loaded."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from attrs import evolve
from diffusers import WanPipeline
from flowmap_diffusers.folder import files
from flowmap_digits import TINY_WAN
from flowmap_digits.data import MovingDigits
from flowmap_far import Far
from flowmap_wan21 import Experts, Wan21
from peft import LoraConfig
from safetensors.torch import load_file, save_file

from flowmap import Recipe, Stage, backbone, distill
from flowmap.cli import main
from flowmap.methods import anyflow
from flowmap.plugins import PluginError
from flowmap.recipe import RecipeError
from tests.wan21 import pipelines

CPU = torch.device("cpu")
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


@pytest.fixture
def wan(tmp_path: Path) -> Path:
    """A copy of the shipped pipeline, to be spoilt."""
    shutil.copytree(TINY_WAN, tmp_path / "wan")
    return tmp_path / "wan"


def edit(file: Path, **settings: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


def refused(path: Path | str, said: str) -> None:
    """In one sentence, in the same words by whoever takes a directory, before work."""
    for spec in (Wan21(path), Far(path)):
        with pytest.raises(ValueError, match=re.escape(said)) as caught:
            spec.validate()
        told = str(caught.value)
        assert told.startswith(f"{type(spec).__name__}.path = ") and "\n" not in told
        for use in (
            lambda spec=spec: spec.build(frozenset({"teacher"}), device=CPU, dtype=torch.float32),
            lambda spec=spec: spec.codec(device=CPU, dtype=torch.float32),
        ):
            with pytest.raises(ValueError, match=re.escape(told)):
                use()


def test_the_shipped_pipeline_is_whole(wan: Path) -> None:
    for spec in (Wan21(wan), Far(wan), Wan21(wan, pretrained=False)):
        spec.validate()
    assert backbone(str(wan)) == Wan21(wan)


# ---------------------------------------------------------------- pipelines of other functions
EXPERTS = "its WanPipeline has transformer_2 (WanTransformer3DModel) and boundary_ratio = 0.875 (two experts"
KINDS: dict[Callable[[Path], Any], tuple[str, str]] = {
    pipelines.image_to_video: (
        "is a WanImageToVideoPipeline: must be one of WanPipeline, AnyFlowPipeline",
        "its transformer hears the features of an image (image_dim), and it has no image_encoder to make them",
    ),
    pipelines.channels_beside: ("its transformer takes 12 channels and makes 4",) * 2,
    pipelines.vace: ("its transformer is a WanVACETransformer3DModel", "is a WanVACEPipeline, which no plugin"),
    pipelines.skyreels: (
        "its transformer is a SkyReelsV2Transformer3DModel",
        "is a SkyReelsV2DiffusionForcingPipeline, which no plugin here takes",
    ),
}


def test_one_of_two_experts_is_not_taken_for_both(tmp_path: Path) -> None:
    """Which of them is to be said; `backbone` takes the pair."""
    pipelines.two_experts(tmp_path / "wan")
    refused(tmp_path / "wan", EXPERTS)
    recipe = Recipe(Wan21(tmp_path / "wan"), (Stage(anyflow.forward(shift=1.0), steps=1),), data=MovingDigits(count=2))
    with pytest.raises(RecipeError, match=re.escape(EXPERTS)):
        distill(recipe, out=tmp_path / "run")
    assert isinstance(backbone(str(tmp_path / "wan")), Experts)


@pytest.mark.parametrize("make, said", KINDS.items(), ids=lambda x: getattr(x, "__name__", ""))
def test_another_function_is_refused_by_name(make: Any, said: tuple[str, str], tmp_path: Path, capsys: Any) -> None:
    make(tmp_path / "wan")
    refused(tmp_path / "wan", said[0])
    with pytest.raises((PluginError, ValueError), match=re.escape(said[1])):
        backbone(str(tmp_path / "wan")).validate()
    (tmp_path / "p.txt").write_text("a seven moving up\n")
    asked = ["--prompts", str(tmp_path / "p.txt"), "--out", str(tmp_path / "data"), "--size", "9x32x32", "--steps", "1"]
    capsys.readouterr()
    assert main(["data", "synth", str(tmp_path / "wan"), *asked]) == 2
    told = capsys.readouterr().err
    assert said[1] in told and told.count("\n") == 1 and not (tmp_path / "data").exists()
    recipe = Recipe(Wan21(tmp_path / "wan"), (Stage(anyflow.forward(shift=1.0), steps=1),), data=MovingDigits(count=2))
    with pytest.raises(RecipeError, match=re.escape(said[0])):
        distill(recipe, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


SETTINGS: dict[str, tuple[dict[str, Any], str]] = {
    "model_index.json": ({"boundary_ratio": 0.9}, "its WanPipeline has boundary_ratio = 0.9, which flowmap does not"),
    "model_index.json ": ({"image_encoder": ["transformers", "CLIPVisionModel"]}, "image_encoder (CLIPVisionModel)"),
    "model_index.json  ": (
        {"text_encoder": ["transformers", "T5EncoderModel"]},
        "its text_encoder is a T5EncoderModel",
    ),
    "model_index.json   ": ({"vae": [None, None]}, "its model_index.json has no vae"),
    "transformer/config.json": ({"image_dim": 1280}, "its transformer has image_dim = 1280, so it reads an image too"),
    "transformer/config.json ": ({"qk_norm": None}, "has qk_norm = None: must be 'rms_norm_across_heads'"),
    "transformer/config.json  ": (
        {"quantization_config": {"quant_method": "torchao", "quant_type": "int8wo"}},
        "its transformer is quantised (torchao)",
    ),
    "vae/config.json": ({"latents_mean": None}, "its VAE has no latents_mean: must have 4 numbers"),
    "vae/config.json ": ({"latents_std": [1.0] * 16}, "its VAE has 16 latents_std: must have 4 numbers"),
    "vae/config.json  ": (
        {"z_dim": 3, "latents_mean": [0.0] * 3, "latents_std": [1.0] * 3},
        "its transformer makes 4 channels, its VAE takes 3",
    ),
    "scheduler/scheduler_config.json": ({"prediction_type": "epsilon"}, "has prediction_type = 'epsilon': must be"),
    "scheduler/scheduler_config.json ": ({"num_train_timesteps": 500}, "num_train_timesteps = 500: must be 1000"),
    "scheduler/scheduler_config.json  ": ({"use_dynamic_shifting": True}, "give one shift for all"),
}


@pytest.mark.parametrize("file, change", SETTINGS.items())
def test_a_setting_that_is_not_read_is_named(file: str, change: tuple[dict[str, Any], str], wan: Path) -> None:
    edit(wan / file.strip(), **change[0])
    refused(wan, change[1])


@pytest.mark.parametrize("kind", [Wan21, Far])
def test_the_shift_is_the_directorys_unless_another_is_given(kind: Any, wan: Path) -> None:
    """By directory, by class, of either kind of scheduler; a run whose scheduler was exchanged is another run."""
    for config, right in (({"shift": 7.0}, 7.0), ({"shift": None, "flow_shift": 3.0}, 3.0)):
        file = wan / "scheduler" / "scheduler_config.json"
        file.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
        assert kind(wan).shift == kind(str(wan), pretrained=False).shift == evolve(kind(wan), lora=None).shift == right
        assert backbone(str(wan)).shift == right and backbone(str(wan)) == Wan21(wan)
        assert kind(wan, shift=2.0).shift == evolve(kind(wan), shift=2.0).shift == 2.0
    before = kind(wan).fingerprint(), kind(wan, shift=2.0).fingerprint()
    edit(file, flow_shift=4.0)
    assert kind(wan).fingerprint() != before[0] and kind(wan, shift=2.0).fingerprint() == before[1]
    edit(file, use_dynamic_shifting=True)
    kind(wan, shift=2.0).validate()
    with pytest.raises(ValueError, match=rf"{kind.__name__}\.shift = 0: must be > 0"):
        kind(wan, shift=0)


def test_the_shift_of_what_is_not_here() -> None:
    assert Wan21().shift == Far().tiny().shift == 5.0
    assert Wan21("Wan-AI/Wan2.1-T2V-1.3B-Diffusers").shift == backbone("far_14b").shift == 3.0
    assert backbone("Wan-AI/Wan2.2-TI2V-5B-Diffusers").shift == 5.0


def test_settings_that_change_nothing_pass(wan: Path) -> None:
    edit(wan / "model_index.json", boundary_ratio=None, expand_timesteps=True, something=None, _new="x")
    backbone(str(wan)).validate()


# ---------------------------------------------------------------- weights
def test_a_variant_says_how_to_do_without(wan: Path) -> None:
    """Beside plain weights it is not read."""
    half = wan.parent / "half"
    WanPipeline.from_pretrained(wan).save_pretrained(half, variant="fp16")
    said = "WanPipeline.from_pretrained(DIR, variant='fp16').save_pretrained(NEW)"
    refused(half, f"the weights of its transformer are of the variant 'fp16': save them without, `{said}`")
    shutil.copy(half / "transformer" / "diffusion_pytorch_model.fp16.safetensors", wan / "transformer")
    Wan21(wan).validate()
    assert [file.name for file in files(wan)] == [Path(WEIGHTS).name]
    vae = wan / "vae" / "diffusion_pytorch_model.safetensors"
    vae.rename(vae.with_name("diffusion_pytorch_model.bf16.safetensors"))
    refused(wan, "the weights of its vae are of the variant 'bf16'")


def test_other_files_of_weights_say_what_to_do(wan: Path) -> None:
    (wan / WEIGHTS).unlink()
    refused(wan, "its transformer has no weights: there is no transformer/diffusion_pytorch_model.safetensors")
    (wan / "transformer" / "wan-Q4_K_M.gguf").write_bytes(b"GGUF")
    refused(wan, "the weights of its transformer are in wan-Q4_K_M.gguf, which is not read")


def test_an_adapter_that_is_not_fused_is_refused(wan: Path) -> None:
    """peft keeps the base's weights under other names; a LoRA beside the pipeline is read by nobody."""
    shutil.copytree(wan, beside := wan.parent / "beside")
    pipe = WanPipeline.from_pretrained(wan)
    pipe.transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q"]))
    pipe.transformer.save_pretrained(wan / "transformer")
    refused(
        wan, "diffusion_pytorch_model.safetensors has adapters that are not fused: load the pipeline, `pipe.fuse_lora"
    )
    pipe.transformer.save_lora_adapter(beside)
    refused(beside, "pytorch_lora_weights.safetensors is an adapter that is not fused, which is not read: fuse it")
    (beside / "pytorch_lora_weights.safetensors").unlink()
    backbone(str(beside))


def test_quantised_weights_are_refused(wan: Path) -> None:
    """Numbers of 8 bits are cast without a word by who does not know their scales."""
    tensors = load_file(wan / WEIGHTS)
    tensors["blocks.0.ffn.net.2.weight"] = tensors["blocks.0.ffn.net.2.weight"].to(torch.float8_e4m3fn)
    save_file(tensors, wan / WEIGHTS)
    refused(wan, f"{WEIGHTS} has blocks.0.ffn.net.2.weight as F8_E4M3: the weights are quantised")


# ---------------------------------------------------------------- what is no pipeline
def test_what_is_no_pipeline_says_what_it_is(wan: Path, tmp_path: Path) -> None:
    (one := tmp_path / "wan2.1_t2v_1.3B.safetensors").write_bytes(b"")
    (adapter := tmp_path / "adapter").mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    (modular := tmp_path / "modular").mkdir()
    (modular / "modular_model_index.json").write_text("{}")
    shutil.copytree(wan / "transformer", alone := tmp_path / "alone")
    (tmp_path / "empty").mkdir()
    (wan / "lora").mkdir()
    (wan / "lora" / "pytorch_lora_weights.safetensors").write_bytes(b"")
    for path, said in {
        one: "is a checkpoint in one file: give the directory of a diffusers pipeline",
        adapter: "is an adapter and no network: fuse it into its base",
        modular: "is a modular pipeline of diffusers",
        alone: "is a WanTransformer3DModel alone: give the directory of a diffusers pipeline that has it",
        wan / "transformer": f"is the transformer of a pipeline: give the pipeline's directory, {str(wan)!r}",
        wan / "lora": f"is the adapters of {wan}, which has them fused: give that directory",
    }.items():
        refused(path, said)
        with pytest.raises(PluginError, match=re.escape(f"{path}: {said}")):
            backbone(str(path))
    refused(tmp_path / "empty", "has no model_index.json; must be the directory of a diffusers pipeline")
    refused("models/wan-Q4_K_M.gguf", "there is no such file")


@pytest.mark.parametrize("part", ["vae", "text_encoder", "tokenizer", "scheduler"])
def test_a_student_is_saved_with_the_other_parts_so_they_must_be_there(part: str, wan: Path) -> None:
    shutil.rmtree(wan / part)
    refused(wan, f"has no {part}")


def test_a_broken_index_is_named(wan: Path) -> None:
    (wan / "model_index.json").write_text("{")
    with pytest.raises(PluginError, match=r"model_index\.json: is not JSON"):
        backbone(str(wan))


# ---------------------------------------------------------------- hub ids
def test_a_hub_id_that_was_downloaded_is_looked_at(tmp_path: Path, monkeypatch: Any) -> None:
    """Of one that was not, the settings are fetched before the weights."""
    pipelines.two_experts(tmp_path / "wan")
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: str(tmp_path / "wan" / "model_index.json"))
    refused("somebody/Wan2.1-T2V-mine", EXPERTS)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)
    Wan21("somebody/Wan2.1-T2V-mine").validate()
    asked = []

    def download(name: str, allow_patterns: Any) -> str:
        asked.append((name, allow_patterns))
        monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: f"{tmp_path}/wan/model_index.json")
        return str(tmp_path / "wan")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    with pytest.raises(ValueError, match="transformer_2"):
        Wan21("somebody/Wan2.1-T2V-mine").build(frozenset({"teacher"}), device=CPU, dtype=torch.float32)
    assert asked == [("somebody/Wan2.1-T2V-mine", ["model_index.json", "*/*config.json"])]
