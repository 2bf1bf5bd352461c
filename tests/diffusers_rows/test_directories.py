"""From a pipeline's directory to a student that diffusers alone runs: of each row here, by its own text encoders."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from inspect import signature
from itertools import pairwise
from pathlib import Path
from typing import Any

import flowmap_diffusers
import pytest
import torch
from attrs import evolve, frozen
from flowmap_diffusers import Diffusers
from flowmap_diffusers.codec import DiffusersCodec
from flowmap_diffusers.rows import ROWS
from safetensors.torch import load_file, save_file

from flowmap import FlowMap, Rng, sample
from flowmap.data.folder import foreign
from flowmap.model import Codec
from flowmap.plugins import backbone, manager
from flowmap.testing.kit_helpers import perturb

from . import toys

CPU: dict[str, Any] = {"device": torch.device("cpu"), "dtype": torch.float32}
PLUGINS = manager(flowmap_diffusers, entry_points=False)
PROMPTS = ["a seven", 'the letters "xyz"', ""]
STEPS = (1, 4, 8)


def letters() -> Any:
    """A tokenizer of bytes, one a token."""
    from transformers import Qwen2Tokenizer
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    vocab = {sign: at for at, sign in enumerate(bytes_to_unicode().values())}
    made = Qwen2Tokenizer(vocab={**vocab, "<|endoftext|>": 256}, merges=[])
    made.chat_template = "{% for m in messages %}{{ m['content'] }};{% endfor %}"
    return made


QWEN: Mapping[str, Any] = {
    "vocab_size": 257,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 2048,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]},
}


def qwen_image() -> Mapping[str, Any]:
    from diffusers import AutoencoderKLQwenImage
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16}
    config = Qwen2_5_VLConfig(text_config=dict(QWEN), vision_config=vision)
    levels = {"dim_mult": [1, 1, 1, 1], "num_res_blocks": 1, "temperal_downsample": [False, True, True]}
    said = {"latents_mean": [-1.0, 0.0, 0.5, 1.0], "latents_std": [0.5, 1.0, 1.5, 2.0]}
    return {
        "text_encoder": Qwen2_5_VLForConditionalGeneration(config),
        "tokenizer": letters(),
        "vae": AutoencoderKLQwenImage(base_dim=8, z_dim=4, **levels, **said),
    }


def hunyuan_video15() -> Mapping[str, Any]:
    from diffusers import AutoencoderKLHunyuanVideo15, ClassifierFreeGuidance
    from transformers import ByT5Tokenizer, T5Config, T5EncoderModel
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLTextConfig, Qwen2_5_VLTextModel

    glyphs = T5Config(vocab_size=384, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    return {
        "text_encoder": Qwen2_5_VLTextModel(Qwen2_5_VLTextConfig(**{**QWEN, "num_hidden_layers": 3})),
        "tokenizer": letters(),
        "text_encoder_2": T5EncoderModel(glyphs),
        "tokenizer_2": ByT5Tokenizer(),
        "vae": AutoencoderKLHunyuanVideo15(latent_channels=4, block_out_channels=(8,) * 5, layers_per_block=1),
        "guider": ClassifierFreeGuidance(guidance_scale=6.0),
    }


def z_image() -> Mapping[str, Any]:
    from diffusers import AutoencoderKL
    from transformers import Qwen3Config, Qwen3Model

    sizes = {"block_out_channels": (8,) * 4, "layers_per_block": 1, "norm_num_groups": 4, "latent_channels": 4}
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4}
    return {
        "text_encoder": Qwen3Model(Qwen3Config(**{**QWEN, "rope_parameters": None, "head_dim": 8})),
        "tokenizer": letters(),
        "vae": AutoencoderKL(**sizes, **blocks, scaling_factor=0.36, shift_factor=0.12, use_quant_conv=False),
    }


def easyanimate() -> Mapping[str, Any]:
    from diffusers import AutoencoderKLMagvit
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    vision = {"depth": 1, "embed_dim": 16, "hidden_size": 16, "num_heads": 2}
    return {
        "text_encoder": Qwen2VLForConditionalGeneration(Qwen2VLConfig(text_config=dict(QWEN), vision_config=vision)),
        "tokenizer": letters(),
        "vae": AutoencoderKLMagvit(latent_channels=4, block_out_channels=(8,) * 4, norm_num_groups=4),
    }


def kandinsky5() -> Mapping[str, Any]:
    from diffusers import AutoencoderKLHunyuanVideo
    from transformers import CLIPTextConfig, CLIPTextModel, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    words = toys.tokenizer()  # of pieces: behind 128 of them its prompts begin
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16}
    qwen = Qwen2_5_VLConfig(text_config={**QWEN, "vocab_size": len(words)}, vision_config=vision)
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    clip = CLIPTextConfig(vocab_size=len(words), bos_token_id=None, eos_token_id=words.eos_token_id, **sizes)
    levels = {"block_out_channels": (8,) * 4, "layers_per_block": 1, "norm_num_groups": 4}
    return {
        "text_encoder": Qwen2_5_VLForConditionalGeneration(qwen),
        "tokenizer": words,
        "text_encoder_2": CLIPTextModel(clip),
        "tokenizer_2": words,
        "vae": AutoencoderKLHunyuanVideo(latent_channels=4, **levels),
    }


def flux2() -> Mapping[str, Any]:
    from diffusers import AutoencoderKLFlux2
    from transformers import Mistral3Config, Mistral3ForConditionalGeneration

    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2}
    text = {**sizes, "num_hidden_layers": 30, "num_key_value_heads": 1, "vocab_size": 257, "head_dim": 4}
    vision = {**sizes, "model_type": "pixtral", "num_hidden_layers": 1, "image_size": 28, "patch_size": 14}
    config = Mistral3Config(text_config={"model_type": "mistral", **text}, vision_config=vision)
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4}
    levels = {"block_out_channels": (8,) * 4, "layers_per_block": 1, "norm_num_groups": 4, "latent_channels": 4}
    vae = AutoencoderKLFlux2(**levels, **blocks)
    vae.bn.running_mean.copy_(torch.linspace(-1, 1, 16))
    vae.bn.running_var.copy_(torch.linspace(0.5, 2, 16))
    return {"text_encoder": Mistral3ForConditionalGeneration(config), "tokenizer": letters(), "vae": vae}


@frozen
class Case:
    """size: what the pipeline is told, of the latents of the row's example. dynamic: its schedule looks at the size."""

    parts: Callable[[], Mapping[str, Any]]
    size: Mapping[str, int]
    dynamic: bool = False


CASES = {
    "hunyuan_video": Case(toys.hunyuan_video, {"num_frames": 9, "height": 32, "width": 48}),
    "cogvideox": Case(toys.cogvideox, {"num_frames": 9, "height": 32, "width": 48}),
    "motif_video": Case(toys.motif_video, {"num_frames": 9, "height": 32, "width": 48}, dynamic=True),
    "sd3": Case(toys.sd3, {"height": 64, "width": 48}),
    "flux": Case(toys.flux, {"height": 32, "width": 48}, dynamic=True),
    "qwen_image": Case(qwen_image, {"height": 32, "width": 48}, dynamic=True),
    "skyreels_v2": Case(toys.skyreels_v2, {"num_frames": 9, "height": 32, "width": 48}),
    "sana_video": Case(toys.sana_video, {"frames": 9, "height": 32, "width": 64}),
    "mochi": Case(toys.mochi, {"num_frames": 13, "height": 32, "width": 48}),
    "flux2": Case(flux2, {"height": 32, "width": 48}, dynamic=True),
    "z_image": Case(z_image, {"height": 32, "width": 48}, dynamic=True),
    "easyanimate": Case(easyanimate, {"num_frames": 9, "height": 32, "width": 48}),
    "kandinsky5": Case(kandinsky5, {"num_frames": 9, "height": 32, "width": 48}),
    "hunyuan_video15": Case(hunyuan_video15, {"height": 64, "width": 96, "num_frames": 9}),
}


@pytest.fixture(scope="module", params=CASES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def folder(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(family, tmp_path_factory.mktemp(family) / "pipeline")


def made(family: str, path: Path, like: str | None = None, case: Case | None = None) -> Path:
    """A pipeline's directory, by diffusers alone. like: the family whose parts it has; case: or these."""
    import diffusers

    row, case = ROWS[family], case or CASES[like or family]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = getattr(diffusers, row.transformer)(**row.tiny)
        for p in net.parameters():
            if not p.any():
                torch.nn.init.normal_(p, std=0.1)  # what is zero at first hides the times
        parts = {name: p.eval() if isinstance(p, torch.nn.Module) else p for name, p in case.parts().items()}
        schedule = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=case.dynamic)
        parts = {"scheduler": schedule, "transformer": net.eval(), **parts}
        getattr(diffusers, row.pipeline)(**parts).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def spec(family: str, folder: Path) -> Diffusers:
    found = backbone(str(folder), PLUGINS)
    assert isinstance(found, Diffusers) and found.family == family and found.lora is not None
    found.validate()
    return evolve(found, lora=evolve(found.lora, rank=4, alpha=4.0), guidance=6.0)


@pytest.fixture(scope="module")
def codec(spec: Diffusers) -> Codec:
    return spec.codec(**CPU)


def test_prompts_are_encoded_as_the_pipeline_does_whatever_their_number(spec: Diffusers, codec: Codec) -> None:
    """Text and masks of one prompt are the same beside another."""
    together = codec.encode_prompts(PROMPTS)
    for i, prompt in enumerate(PROMPTS):
        alone = codec.encode_prompts([prompt])
        assert {*alone} == {*spec.row.example} - {"z"}
        assert spec.row.tokens in (None, alone["text"].shape[1])
        for name, value in alone.items():
            torch.testing.assert_close(together[name][i : i + 1], value, rtol=1e-4, atol=1e-5)


class SeenError(Exception):
    pass


def test_the_network_hears_of_a_prompt_what_the_codec_says(
    spec: Diffusers, codec: Codec, family: str, folder: Path
) -> None:
    """A pipeline's call has other defaults than its `encode_prompt`."""
    from diffusers import DiffusionPipeline

    pipe, handed = DiffusionPipeline.from_pretrained(folder), dict[str, Any]()

    def look(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        handed.update(signature(type(module).forward).bind(module, *args, **kwargs).arguments)
        raise SeenError

    pipe.set_progress_bar_config(disable=True)
    pipe.transformer.register_forward_pre_hook(look, with_kwargs=True)
    assert isinstance(codec, DiffusersCodec)
    told = {**CASES[family].size, **spec.row.call({"guidance": torch.tensor([6.0])}, codec.positions)}
    with pytest.raises(SeenError):
        pipe(prompt="a seven", num_inference_steps=2, output_type="latent", **told)
    cond = codec.encode_prompts(["a seven"])
    text = torch.stack([*(handed["cap_feats"] if "cap_feats" in handed else handed["encoder_hidden_states"])])
    length = cond["text"].shape[1] if spec.row.tokens is None else text.shape[1]
    torch.testing.assert_close(cond["text"][:, :length], text)
    assert not cond["text"][:, length:].any()


TRUE: Mapping[str, Any] = {"true_cfg_scale": 3.0, "negative_prompt": ""}
GUIDED: Mapping[str, Mapping[str, Any]] = {
    **dict.fromkeys(("qwen_image", "hunyuan_video", "flux"), TRUE),
    **{family: {} for family in ("hunyuan_video15", "motif_video")},  # by a guider
    "z_image": {"guidance_scale": 2.0},
}


def test_the_empty_prompt_is_the_pipeline_s_unconditional_branch(
    spec: Diffusers, codec: Codec, family: str, folder: Path
) -> None:
    from diffusers import DiffusionPipeline

    if family == "flux2":
        pytest.skip("its pipeline has no unconditional branch")
    pipe, heard = DiffusionPipeline.from_pretrained(folder), list[dict[str, Any]]()

    def look(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        heard.append(signature(type(module).forward).bind(module, *args, **kwargs).arguments)

    pipe.set_progress_bar_config(disable=True)
    pipe.transformer.register_forward_pre_hook(look, with_kwargs=True)
    assert isinstance(codec, DiffusersCodec)
    told = {**CASES[family].size, **spec.row.call({"guidance": torch.tensor([6.0])}, codec.positions)}
    told |= GUIDED.get(family, {"guidance_scale": 3.0, "negative_prompt": ""})
    pipe(prompt="a seven", num_inference_steps=2, output_type="latent", **told)
    cond = codec.encode_prompts([""])

    def same(text: torch.Tensor, mask: torch.Tensor | None) -> bool:
        near = torch.allclose(cond["text"][0, : len(text)], text, atol=1e-4)
        return near and (mask is None or torch.equal(mask.long(), cond["mask"][0, : len(mask)]))

    branches = []
    for call in heard:
        texts = [*(call["cap_feats"] if "cap_feats" in call else call["encoder_hidden_states"])]
        mask = call.get("encoder_attention_mask")
        branches += zip(texts, [None] * len(texts) if mask is None else mask, strict=True)
    assert [same(*branch) for branch in branches].count(True) == len(branches) // 2


def test_a_decoder_decodes_alike_and_holds_no_text_encoder(spec: Diffusers, codec: Codec) -> None:
    decoder = spec.decoder(**CPU)
    assert isinstance(decoder, DiffusersCodec) and isinstance(codec, DiffusersCodec)
    held = {name for name, part in decoder.pipeline.components.items() if isinstance(part, torch.nn.Module)}
    assert held == {"vae"} < {n for n, part in codec.pipeline.components.items() if isinstance(part, torch.nn.Module)}
    z = torch.zeros(1, *spec.row.example["z"])
    torch.testing.assert_close(decoder.decode(z), codec.decode(z), rtol=0, atol=0)


def test_latents_are_those_of_the_pipeline(spec: Diffusers, codec: Codec, family: str, folder: Path) -> None:
    """What the pipeline shows of a latent is what the codec decodes it to; and encoding is its inverse."""
    import diffusers

    row, size = spec.row, CASES[family].size
    frames, height, width = size.get("num_frames", size.get("frames", 1)), size["height"], size["width"]
    assert codec.latent_shape(frames, height, width) == row.example["z"]
    if row.image:
        with pytest.raises(
            ValueError, match=f"5x{height}x{width} is no size of this model: frames must be 1, height and"
        ):
            codec.latent_shape(5, height, width)
    pipe = getattr(diffusers, row.pipeline).from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    z = Rng.seeded(1).noise_like(torch.zeros(1, *row.example["z"]))
    asked: dict[str, Any] = {"prompt": "a seven", "num_inference_steps": 2, "return_dict": False, **size}
    assert isinstance(codec, DiffusersCodec)
    asked |= row.call({"guidance": torch.tensor([6.0])}, codec.positions) | {"latents": row.latents.to(z)}
    latent = row.latents.back(pipe(**asked, output_type="latent")[0], z.shape)
    shown = pipe(**asked, output_type="pt")[0]
    made = codec.decode(latent)
    torch.testing.assert_close(made, shown[:, None] if row.image else shown, rtol=1e-4, atol=1e-4)
    videos = torch.rand(2, frames, 3, height, width)
    x = codec.encode(videos)
    assert x.shape[1:] == row.example["z"]
    wanted = torch.cat([shown_from(pipe, one) for one in videos.split(1)])
    torch.testing.assert_close(codec.decode(x), wanted, rtol=1e-4, atol=1e-4)


def shown_from(pipe: Any, videos: torch.Tensor) -> torch.Tensor:
    """Through the VAE alone, in its own units."""
    x = 2 * videos - 1
    flat = not any(isinstance(layer, torch.nn.Conv3d) for layer in pipe.vae.modules())
    with torch.no_grad():
        raw = pipe.vae.encode(x[:, 0] if flat else x.transpose(1, 2)).latent_dist.mode()
        y = pipe.vae.decode(raw, return_dict=False)[0]
    return ((y[:, None] if flat else y.transpose(1, 2)) / 2 + 0.5).clamp(0, 1)


def load(path: Path) -> FlowMap:
    return backbone(str(path), PLUGINS).load(path, **CPU)


def test_buffers_of_a_file_are_read(tmp_path: Path) -> None:
    """The positions of SD3, which are no parameters."""
    file = made("sd3", tmp_path / "pipeline") / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors["pos_embed.pos_embed"] += 1.0
    save_file(tensors, file, {"format": "pt"})
    net = backbone(str(tmp_path / "pipeline"), PLUGINS).build(frozenset({"teacher"}), **CPU)["teacher"].net
    assert torch.equal(net.pos_embed.pos_embed, tensors["pos_embed.pos_embed"])  # type: ignore[operator, union-attr]


def test_an_empty_prompt_changes_no_other(tmp_path: Path) -> None:
    """MochiPipeline makes zeros of every text of a call whose last prompt is empty, where its directory asks for it."""
    index = made("mochi", tmp_path / "pipeline") / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "force_zeros_for_empty_prompt": True}))
    codec = backbone(str(index.parent), PLUGINS).codec(**CPU)
    together = codec.encode_prompts(PROMPTS)
    assert together["mask"].any(1).tolist() == [True, True, False]
    for i, prompt in enumerate(PROMPTS):
        for name, value in codec.encode_prompts([prompt]).items():
            assert torch.equal(together[name][i : i + 1], value), (prompt, name)


@pytest.mark.parametrize("part", ["text_encoder", "text_encoder_2", "transformer/guidance"])
def test_data_of_another_encoder_or_guidance_is_refused(part: str, tmp_path: Path) -> None:
    """Any of a pipeline's text encoders, and the guidance that is written into the condition."""
    spec = backbone(str(made("flux", tmp_path / "pipeline")), PLUGINS)
    assert isinstance(spec, Diffusers) and foreign(spec.encoders(), spec) == []
    had = spec.encoders()
    if part == "transformer/guidance":
        assert foreign(had, evolve(spec, guidance=6.0)) == [
            "it has what another guidance made: 3.5, and the backbone's is 6; encode the data with this backbone"
        ]
        return
    file = tmp_path / "pipeline" / part / "model.safetensors"
    save_file({name: value + 1 for name, value in load_file(file).items()}, file, {"format": "pt"})
    (said,) = foreign(had, spec)
    assert said.startswith("it has texts of another text encoder: ")


@pytest.mark.filterwarnings("ignore:`torch_dtype` is deprecated:FutureWarning")
def test_a_student_is_told_its_own_step_where_its_pipeline_rounds_times(tmp_path: Path) -> None:
    """Of 10 steps shifted by 50 some are one in bfloat16, in which these pipelines hand times over."""
    from diffusers import DiffusionPipeline

    spec = evolve(backbone(str(made("hunyuan_video15", tmp_path / "base")), PLUGINS), shift=50.0)  # type: ignore[misc]
    spec.save(spec.build(frozenset({"student"}), **CPU)["student"], tmp_path / "student")
    given: dict[str, Any] = {"trust_remote_code": True, "torch_dtype": torch.bfloat16}
    pipe, heard = DiffusionPipeline.from_pretrained(tmp_path / "student", **given), list[list[float]]()
    pipe.set_progress_bar_config(disable=True)
    net = pipe.transformer
    net.register_forward_hook(lambda net, args, made: heard.append([float(s) for s in net.times[:2]]))
    pipe("a seven", num_inference_steps=10, output_type="latent", **CASES["hunyuan_video15"].size)
    times = (1000 * pipe.scheduler.sigmas).tolist()
    assert len({*torch.tensor(times[:-1]).bfloat16().tolist()}) < 10
    assert heard == [[t, r] for t, r in pairwise(times)]
    pipe.scheduler.set_timesteps(10)
    with pytest.raises(RuntimeError, match=r"t = 0.5: step 0 of the schedule begins at 1: walk along its steps"):
        net(**dict.fromkeys(signature(net.forward).parameters, torch.tensor([500.0])))


@pytest.mark.slow
def test_a_student_in_diffusers_alone_is_flowmap_s(spec: Diffusers, family: str, tmp_path: Path) -> None:
    """Moved off the teacher, both embedders too, as training does; in a process that cannot import flowmap."""
    u = spec.build(frozenset({"student"}), **CPU)["student"]
    perturb(u, 0, 0.1)
    student = tmp_path / "student"
    spec.save(u, student)
    row, loaded = spec.row, load(student)
    z, t = Rng.seeded(2).noise_like(torch.zeros(1, *row.example["z"])), torch.tensor([0.7])
    found = backbone(str(student), PLUGINS)
    cond = found.codec(**CPU).encode_prompts(["a seven"])
    with torch.no_grad():
        torch.testing.assert_close(loaded(z, t, t / 2, cond), u(z, t, t / 2, cond))
        assert (loaded(z, t, t / 2, cond) - loaded(z, t, t, cond)).abs().max() > 1e-3
    if row.vp:
        return  # its pipeline takes the steps of DDIM
    torch.save(row.latents.to(z), tmp_path / "noise.pt")
    code = f"""
import sys
sys.modules["flowmap"] = sys.modules["flowmap_diffusers"] = None
import torch
from diffusers import DiffusionPipeline
asked = dict(prompt="a seven", output_type="latent", return_dict=False)
asked.update({dict(CASES[family].size)})
noise = torch.load("noise.pt")  # some write into what they are given
made = dict()
for dtype in (torch.bfloat16, torch.float32):
    pipe = DiffusionPipeline.from_pretrained({str(student)!r}, trust_remote_code=True, torch_dtype=dtype)
    pipe.set_progress_bar_config(disable=True)
    made[dtype] = {{n: pipe(num_inference_steps=n, latents=noise.clone(), **asked)[0] for n in {STEPS}}}
torch.save(made, "out.pt")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    made = torch.load(tmp_path / "out.pt")
    for steps in STEPS:
        ours = sample(loaded, z, cond, steps=steps, shift=found.shift)
        for dtype, close in ((torch.float32, 1e-5), (torch.bfloat16, 0.1)):
            error = (row.latents.back(made[dtype][steps].float(), z.shape) - ours).abs().max() / ours.abs().max()
            assert float(error) < close, (steps, dtype, float(error))
