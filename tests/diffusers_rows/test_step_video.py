"""Step-Video-T2V: a directory as it was published, read, and held against its formulas written out in loops."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from attrs import evolve
from flowmap_diffusers import Diffusers, rows
from flowmap_diffusers.networks.step_video import StepVideoModel
from flowmap_lora import Lora
from safetensors.torch import save_file
from torch import Tensor

import flowmap
from flowmap import Rng
from flowmap.cli import main
from flowmap.model import WeightsError
from flowmap.path import Convention
from flowmap.plugins import PluginError
from flowmap.testing.kit_helpers import perturb
from tests.test_planted_defects import planted

CPU: dict[str, Any] = {"device": torch.device("cpu"), "dtype": torch.float32}
HEADS, HEAD, CHANNELS, LAYERS, CAPTION, CLIP = 3, 16, 4, 2, 10, 6
CONFIG: Mapping[str, Any] = {
    "_class_name": "StepVideoModel", "_diffusers_version": "0.31.0", "attention_head_dim": HEAD,
    "attention_type": "parallel", "caption_channels": [CAPTION, CLIP], "dropout": 0.0, "in_channels": CHANNELS,
    "norm_elementwise_affine": False, "norm_eps": 1e-06, "norm_type": "ada_norm_single", "num_attention_heads": HEADS,
    "num_layers": LAYERS, "out_channels": CHANNELS, "patch_size": 1, "use_additional_conditions": False,
}  # fmt: skip


def named(heads: int, head: int, channels: int, layers: int, caption: int, clip: int) -> dict[str, tuple[int, ...]]:
    """Every tensor of the published weights, with its shape."""
    d = heads * head
    made: dict[str, tuple[int, ...]] = {
        "pos_embed.proj.weight": (d, channels, 1, 1), "pos_embed.proj.bias": (d,), "scale_shift_table": (2, d),
        "adaln_single.emb.timestep_embedder.linear_1.weight": (d, 256),
        "adaln_single.emb.timestep_embedder.linear_1.bias": (d,),
        "adaln_single.emb.timestep_embedder.linear_2.weight": (d, d),
        "adaln_single.emb.timestep_embedder.linear_2.bias": (d,),
        "adaln_single.linear.weight": (6 * d, d), "adaln_single.linear.bias": (6 * d,),
        "caption_projection.linear_1.weight": (d, caption), "caption_projection.linear_1.bias": (d,),
        "caption_projection.linear_2.weight": (d, d), "caption_projection.linear_2.bias": (d,),
        "clip_projection.weight": (d, clip), "clip_projection.bias": (d,),
        "proj_out.weight": (channels, d), "proj_out.bias": (channels,),
    }  # fmt: skip
    for layer in range(layers):
        of = f"transformer_blocks.{layer}"
        made |= {
            f"{of}.scale_shift_table": (6, d),
            f"{of}.attn1.wqkv.weight": (3 * d, d), f"{of}.attn1.wo.weight": (d, d),
            f"{of}.attn1.q_norm.weight": (head,), f"{of}.attn1.k_norm.weight": (head,),
            f"{of}.attn2.wq.weight": (d, d), f"{of}.attn2.wkv.weight": (2 * d, d), f"{of}.attn2.wo.weight": (d, d),
            f"{of}.attn2.q_norm.weight": (head,), f"{of}.attn2.k_norm.weight": (head,),
            f"{of}.ff.net.0.proj.weight": (4 * d, d), f"{of}.ff.net.2.weight": (d, 4 * d),
            **{f"{of}.norm{k}.{part}": (d,) for k in (1, 2) for part in ("weight", "bias")},
        }  # fmt: skip
    return made


def weights(seed: int = 0) -> dict[str, Tensor]:
    """None of them trivial: norms' weights about 1, tables and biases not 0."""
    made = {}
    for k, (name, shape) in enumerate(named(HEADS, HEAD, CHANNELS, LAYERS, CAPTION, CLIP).items()):
        noise = Rng.seeded(seed, k).noise_like(torch.zeros(shape))
        norm = name.endswith("weight") and "norm" in name
        made[name] = 1 + 0.3 * noise if norm else noise * (shape[1] ** -0.5 if len(shape) == 2 else 0.3)
    return made


def published(folder: Path, shards: int = 3) -> Path:
    """A directory in the published layout."""
    index = {"_class_name": "StepVideoPipeline", "_diffusers_version": "0.31.0"}
    index |= {"transformer": ["stepvideo.modules.model", "StepVideoModel"]}
    index |= {"scheduler": ["stepvideo.diffusion.scheduler", "FlowMatchDiscreteScheduler"]}
    schedule = {"_class_name": "FlowMatchDiscreteScheduler", "num_train_timesteps": 1, "reverse": False}
    said = {"model_index.json": index, "scheduler/scheduler_config.json": schedule, "transformer/config.json": CONFIG}
    for name, content in said.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(content))
    tensors, where = weights(), {}
    for k in range(shards):
        file = f"diffusion_pytorch_model-{k + 1:05d}-of-{shards:05d}.safetensors"
        part = {name: tensors[name] for name in sorted(tensors)[k::shards]}
        save_file(part, folder / "transformer" / file)
        where |= dict.fromkeys(part, file)
    index_file = folder / "transformer" / "diffusion_pytorch_model.safetensors.index.json"
    index_file.write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return folder


# ------------------------------------------------------------------ the formulas, in float64, a number at a time
Array = np.ndarray


def normal(x: Array, eps: float, weight: Array | float = 1.0, bias: Array | float = 0.0) -> Array:
    return weight * (x - x.mean()) / np.sqrt(((x - x.mean()) ** 2).mean() + eps) + bias


def rms(x: Array, weight: Array) -> Array:
    return weight * x / np.sqrt((x**2).mean() + 1e-6)


def gelu(x: Array) -> Array:
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def silu(x: Array) -> Array:
    return x / (1 + np.exp(-x))


def rotate(x: Array, position: tuple[int, int, int]) -> Array:
    """Channels 0 to D/2 by the frame, to 3D/4 by the row, to D by the column."""
    y, start = x.copy(), 0
    for p, size in zip(position, (len(x) // 2, len(x) // 4, len(x) // 4), strict=True):
        for k in range(size // 2):
            angle, i, j = p / 10_000 ** (2 * k / size), start + k, start + k + size // 2
            y[i] = x[i] * np.cos(angle) - x[j] * np.sin(angle)
            y[j] = x[j] * np.cos(angle) + x[i] * np.sin(angle)
        start += size
    return y


def attend(q: Array, keys: list[Array], values: list[Array]) -> Array:
    scores = np.array([q @ k / np.sqrt(len(q)) for k in keys])
    p = np.exp(scores - scores.max())
    return sum((a / p.sum() * v for a, v in zip(p, values, strict=True)), np.zeros_like(values[0]))


def by_hand(w: Mapping[str, Tensor], z: Tensor, tau: float, text: Tensor, clip: Tensor, count: int) -> Array:
    """v of one sample: z [F, C, H, W], of whose text the first `count` tokens are heard."""
    m = {name: value.double().numpy() for name, value in w.items()}
    frames, channels, height, width = z.shape
    places = [(f, i, j) for f in range(frames) for i in range(height) for j in range(width)]
    pixels = z.double().numpy()
    x = [m["pos_embed.proj.weight"][:, :, 0, 0] @ pixels[f, :, i, j] + m["pos_embed.proj.bias"] for f, i, j in places]
    angles = 1000 * tau * np.exp(-np.log(10_000) * np.arange(128) / 128)
    waves, of = np.concatenate([np.cos(angles), np.sin(angles)]), "adaln_single.emb.timestep_embedder.linear_"
    e = m[f"{of}2.weight"] @ silu(m[f"{of}1.weight"] @ waves + m[f"{of}1.bias"]) + m[f"{of}2.bias"]
    six = (m["adaln_single.linear.weight"] @ silu(e) + m["adaln_single.linear.bias"]).reshape(6, -1)
    c = "caption_projection.linear_"
    heard = [m["clip_projection.weight"] @ one + m["clip_projection.bias"] for one in clip.double().numpy()]
    for one in text.double().numpy()[:count]:
        inner = gelu(m[f"{c}1.weight"] @ normal(one, 1e-6) + m[f"{c}1.bias"])
        heard.append(m[f"{c}2.weight"] @ inner + m[f"{c}2.bias"])
    for layer in range(LAYERS):
        b = {name.split(".", 2)[2]: v for name, v in m.items() if name.startswith(f"transformer_blocks.{layer}.")}
        shift, scale, gate, shift_ff, scale_ff, gate_ff = b["scale_shift_table"] + six
        moved = [normal(h, 1e-5, b["norm1.weight"], b["norm1.bias"]) * (1 + scale) + shift for h in x]
        joined = [[] for _ in x]  # type: list[list[Array]]
        for n in range(HEADS):
            q, k, v = (b["attn1.wqkv.weight"][(3 * n + part) * HEAD : (3 * n + part + 1) * HEAD] for part in range(3))
            keys = [rotate(rms(k @ h, b["attn1.k_norm.weight"]), p) for h, p in zip(moved, places, strict=True)]
            for out, h, p in zip(joined, moved, places, strict=True):
                out.append(attend(rotate(rms(q @ h, b["attn1.q_norm.weight"]), p), keys, [v @ h for h in moved]))
        x = [h + gate * (b["attn1.wo.weight"] @ np.concatenate(out)) for h, out in zip(x, joined, strict=True)]
        joined = [[] for _ in x]
        for n in range(HEADS):
            q = b["attn2.wq.weight"][n * HEAD : (n + 1) * HEAD]
            k, v = (b["attn2.wkv.weight"][(2 * n + part) * HEAD : (2 * n + part + 1) * HEAD] for part in range(2))
            keys = [rms(k @ s, b["attn2.k_norm.weight"]) for s in heard]
            for out, h in zip(joined, x, strict=True):
                out.append(attend(rms(q @ h, b["attn2.q_norm.weight"]), keys, [v @ s for s in heard]))
        x = [h + b["attn2.wo.weight"] @ np.concatenate(out) for h, out in zip(x, joined, strict=True)]
        for at, h in enumerate(x):
            inner = normal(h, 1e-5, b["norm2.weight"], b["norm2.bias"]) * (1 + scale_ff) + shift_ff
            x[at] = h + gate_ff * (b["ff.net.2.weight"] @ gelu(b["ff.net.0.proj.weight"] @ inner))
    shift, scale = m["scale_shift_table"] + e
    v = np.zeros((frames, channels, height, width))
    for h, (f, i, j) in zip(x, places, strict=True):
        v[f, :, i, j] = m["proj_out.weight"] @ (normal(h, 1e-6) * (1 + scale) + shift) + m["proj_out.bias"]
    return v


# ------------------------------------------------------------------ against them
def example() -> tuple[Tensor, dict[str, Tensor]]:
    noise = Rng.seeded(5)
    z, text, clip = (
        noise.fork(k).noise_like(torch.zeros(2, *s)) for k, s in enumerate(((3, 4, 2, 3), (5, 10), (3, 6)))
    )
    return z, {"text": text, "clip": clip, "mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return published(tmp_path_factory.mktemp("stepvideo"))


TIMES = torch.tensor([0.9, 0.35])


def off(folder: Path) -> float:
    """Of the teacher, from what the formulas say: v = ε - x at t is minus theirs at τ = 1 - t."""
    spec = flowmap.backbone(str(folder))
    z, cond = example()
    teacher = spec.build(frozenset({"teacher"}), **CPU)["teacher"]
    with torch.no_grad():
        v = teacher(z, TIMES, TIMES, cond).double().numpy()
    worst = 0.0
    for k, count in enumerate(cond["mask"].sum(1).tolist()):
        wanted = -by_hand(weights(), z[k], 1 - float(TIMES[k]), cond["text"][k], cond["clip"][k], count)
        worst = max(worst, float(np.abs(v[k] - wanted).max() / np.abs(wanted).max()))
    return worst


def test_a_published_directory_is_the_network_of_the_formulas(folder: Path) -> None:
    assert off(folder) < 1e-5


NETWORK = "flowmap_diffusers.networks.step_video"
DEFECTS = [
    ("q, k and v not of one head after another", "(-1, 3, self.head)).unbind(-2)", "(3, -1, self.head)).unbind(-3)"),
    ("k and v not of one head after another", "(-1, 2, self.head)).unbind(-2)", "(2, -1, self.head)).unbind(-3)"),
    ("half of the channels by the column", "(head // 2, head // 4, head // 4)", "(head // 4, head // 4, head // 2)"),
    ("neighbours turned, not halves", "a, b = part.chunk(2, -1)", "a, b = part[..., ::2], part[..., 1::2]"),
    ("turned the other way", "a * cos - b * sin, b * cos + a * sin", "a * cos + b * sin, b * cos - a * sin"),
    ("rows before frames", "x.permute(0, 1, 3, 4, 2).flatten(1, 3)", "x.permute(0, 3, 1, 4, 2).flatten(1, 3)"),
    ("scale before shift", "shift, scale, gate, shift_ff,", "scale, shift, gate, shift_ff,"),
    ("feed-forward without its gate", "x + gate_ff * self.ff", "x + self.ff"),
    ("the mask of the text, CLIP left out", "sum(1, keepdim=True) >", "sum(1, keepdim=True) - 3 >"),
    ("CLIP behind the text", "encoder_hidden_states_2), text], 1)", "encoder_hidden_states_2), text][::-1], 1)"),
    ("epsilon of another norm", "norm2 = nn.LayerNorm(width, eps=1e-5)", "norm2 = nn.LayerNorm(width, eps=1e-2)"),
    ("another half of the table first", "shift, scale = (self.scale", "scale, shift = (self.scale"),
]  # fmt: skip


@pytest.mark.parametrize("old, new", [pytest.param(old, new, id=what) for what, old, new in DEFECTS])
def test_a_mistake_is_seen(folder: Path, old: str, new: str) -> None:
    with planted(NETWORK, old, new):
        assert off(folder) > 1e-4


def test_a_time_that_is_not_scaled_is_seen(folder: Path) -> None:
    with (
        planted(NETWORK, "self.adaln_single(RESCALE * timestep,", "self.adaln_single(timestep,"),
        pytest.raises(ValueError, match="is for another time than the clock's, off by 2"),
    ):
        off(folder)


@pytest.mark.parametrize("convention", [Convention(1000.0, "t", "x-ε"), Convention(1000.0, "1-t", "ε-x")], ids=str)
def test_another_sign_or_clock_is_seen(folder: Path, convention: Convention, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        rows, "ROWS", {**rows.ROWS, "step_video": evolve(rows.ROWS["step_video"], convention=convention)}
    )
    assert off(folder) > 0.1


def test_every_weight_has_its_published_name_at_true_size() -> None:
    spec = Diffusers("stepfun-ai/stepvideo-t2v", family="step_video", lora=None).outline()
    teacher = spec.build(frozenset({"teacher"}), device=torch.device("meta"), dtype=torch.bfloat16)["teacher"]
    ours = {name.replace(".now.", "."): tuple(p.shape) for name, p in teacher.net.named_parameters()}
    assert ours == named(48, 128, 64, 48, 6144, 1024)
    with torch.device("meta"):
        assert {name: tuple(p.shape) for name, p in StepVideoModel().named_parameters()} == ours
    assert round(sum(p.numel() for p in teacher.parameters()) / 1e9, 1) == 29.3  # published as 30


def test_weights_that_are_missing_or_of_another_size_are_named(tmp_path: Path) -> None:
    folder = published(tmp_path, shards=1)
    (file,) = (folder / "transformer").glob("*.safetensors")
    rest = {name: value for name, value in weights().items() if name != "transformer_blocks.1.attn2.wkv.weight"}
    save_file(rest, file)
    with pytest.raises(WeightsError, match=r"there is no transformer_blocks.1.attn2.wkv.weight"):
        flowmap.backbone(str(folder)).build(frozenset({"teacher"}), **CPU)
    image = {**CONFIG, "use_additional_conditions": True}
    (folder / "transformer" / "config.json").write_text(json.dumps(image))
    with pytest.raises(PluginError, match="its transformer has use_additional_conditions = True: must be False"):
        flowmap.backbone(str(folder))


@pytest.mark.parametrize("lora", [Lora(4, 8.0), None], ids=["adapters", "whole"])
def test_a_student_comes_back_and_is_sampled(folder: Path, tmp_path: Path, lora: Lora | None) -> None:
    spec = evolve(flowmap.backbone(str(folder)), lora=lora)
    spec.validate()
    assert (spec.family, spec.shift, spec.about().licence) == ("step_video", 13.0, "MIT")
    u, (z, cond) = spec.build(frozenset({"student"}), **CPU)["student"], example()
    perturb(u, 0, 0.1)
    spec.save(u, tmp_path)
    found = flowmap.load(tmp_path)
    with torch.no_grad():
        wanted, again = (flowmap.sample(net, z, cond, 2, shift=spec.shift) for net in (u, found))
    torch.testing.assert_close(again, wanted, rtol=0, atol=2e-5 * float(wanted.abs().max()))
    assert flowmap.backbone(str(tmp_path)).family == "step_video"
    assert not (tmp_path / "model_index.json").exists() and not spec.forms()


def test_its_encoders_are_not_here(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Said in a sentence, before anything is made."""
    spec = flowmap.backbone(str(folder))
    spec.save(spec.build(frozenset({"student"}), **CPU)["student"], student := tmp_path / "student")
    (tmp_path / "prompts.txt").write_text("a cat\n")
    made, size = ["--out", str(tmp_path / "made.mp4")], ["--size", "17x32x48"]
    for command in (
        [
            "data",
            "synth",
            str(folder),
            "--prompts",
            str(tmp_path / "prompts.txt"),
            "--out",
            str(tmp_path / "made"),
            *size,
        ],
        ["sample", str(student), "--prompt", "a cat", *size, *made],
    ):
        assert main(command) == 2
        assert "step_video: its text encoders and its VAE are not here: take `LatentFolder`" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"student", "prompts.txt"}
