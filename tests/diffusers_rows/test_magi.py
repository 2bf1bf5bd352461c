"""MAGI-1: a directory of its published layout, read, and held against its formulas written out in loops."""

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
from flowmap_diffusers.networks.magi import MagiModel
from flowmap_diffusers.networks.magi_files import directory, network
from flowmap_lora import Lora
from safetensors.torch import save_file
from torch import Tensor

import flowmap
from flowmap import FlowMap, Rng, Window
from flowmap.path import Convention
from flowmap.testing.kit_helpers import perturb
from tests.diffusers_rows.test_step_video import Array, attend, normal, silu
from tests.test_planted_defects import planted

CPU: dict[str, Any] = {"device": torch.device("cpu"), "dtype": torch.float32}
D, QUERIES, GROUPS, HEAD, FFN, TOLD, CAPTION, LENGTH, LAYERS, WIDTH, REACH = 24, 4, 2, 16, 40, 6, 10, 7, 2, 2, 3
CONFIG: Mapping[str, Any] = {
    "model_config": {
        "model_name": "videodit_ardf", "num_layers": LAYERS, "hidden_size": D, "ffn_hidden_size": FFN,
        "num_attention_heads": QUERIES, "num_query_groups": GROUPS, "kv_channels": HEAD, "layernorm_epsilon": 1e-06,
        "apply_layernorm_1p": True, "x_rescale_factor": 1, "half_channel_vae": False, "params_dtype": "torch.bfloat16",
        "patch_size": 2, "t_patch_size": 1, "in_channels": 4, "out_channels": 4, "cond_hidden_ratio": 0.25,
        "caption_channels": CAPTION, "caption_max_length": LENGTH, "xattn_cond_hidden_ratio": 1.0,
        "cond_gating_ratio": 1.0, "gated_linear_unit": False,
    },
    "runtime_config": {
        "noise2clean_kvrange": [REACH, 2], "clean_chunk_kvrange": 1, "clean_t": 0.9999, "chunk_width": WIDTH,
    },
}  # fmt: skip


def named(
    d: int, q: int, kv: int, head: int, ffn: int, told: int, caption: int, length: int, layers: int, c: int
) -> Any:
    """Every tensor of the published weights, with its shape."""
    made: dict[str, tuple[int, ...]] = {
        "x_embedder.weight": (d, c, 1, 2, 2), "t_embedder.mlp.0.weight": (told, 256), "t_embedder.mlp.0.bias": (told,),
        "t_embedder.mlp.2.weight": (told, told), "t_embedder.mlp.2.bias": (told,),
        "y_embedder.y_proj_xattn.0.weight": (d, caption), "y_embedder.y_proj_xattn.0.bias": (d,),
        "y_embedder.y_proj_adaln.0.weight": (told, caption), "y_embedder.y_proj_adaln.0.bias": (told,),
        "y_embedder.null_caption_embedding": (length, caption), "rope.bands": (head // 8,),
        "videodit_blocks.final_layernorm.weight": (d,), "videodit_blocks.final_layernorm.bias": (d,),
        "final_linear.linear.weight": (4 * c, d),
    }  # fmt: skip
    for layer in range(layers):
        of = f"videodit_blocks.layers.{layer}"
        norms = {
            "self_attention.linear_qkv.layer_norm": d,
            "self_attn_post_norm": d,
            "mlp.layer_norm": d,
            "mlp_post_norm": d,
        }
        norms |= {f"self_attention.{k}_layernorm{x}": head for k in "qk" for x in ("", "_xattn")}
        made |= {f"{of}.{name}.{part}": (n,) for name, n in norms.items() for part in ("weight", "bias")}
        made |= {
            f"{of}.ada_modulate_layer.proj.0.weight": (2 * d, told), f"{of}.ada_modulate_layer.proj.0.bias": (2 * d,),
            **{f"{of}.self_attention.linear_qkv.{n}.weight": (q, d) for n in ("q", "qx")},
            **{f"{of}.self_attention.linear_qkv.{n}.weight": (kv, d) for n in ("k", "v")},
            f"{of}.self_attention.linear_kv_xattn.weight": (2 * kv, d),
            f"{of}.self_attention.linear_proj.weight": (d, 2 * q),
            f"{of}.mlp.linear_fc1.weight": (ffn, d), f"{of}.mlp.linear_fc2.weight": (d, ffn),
        }  # fmt: skip
    return made


def weights() -> dict[str, Tensor]:
    made, sizes = {}, (D, QUERIES * HEAD, GROUPS * HEAD, HEAD, FFN, TOLD, CAPTION, LENGTH, LAYERS, 4)
    for k, (name, shape) in enumerate(named(*sizes).items()):
        noise = Rng.seeded(3, k).noise_like(torch.zeros(shape))
        if name == "rope.bands":
            made[name] = torch.tensor([1.1, 0.2])
            continue
        plain = name.endswith("weight") and ".layer_norm." in name
        made[name] = 1 + 0.3 * noise if plain else noise * (shape[1] ** -0.5 if len(shape) == 2 else 0.3)
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of files in their published places, three shards."""
    place, tensors, where = tmp_path_factory.mktemp("magi"), weights(), {}
    (place / "inference_weight").mkdir()
    for k in range(3):
        part = {name: tensors[name] for name in sorted(tensors)[k::3]}
        save_file(part, place / "inference_weight" / f"model-{k + 1:05d}-of-00003.safetensors")
        where |= dict.fromkeys(part, f"model-{k + 1:05d}-of-00003.safetensors")
    index = place / "inference_weight" / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": where}))
    (place / "config.json").write_text(json.dumps(CONFIG))
    return directory(place / "inference_weight", place / "config.json", place / "out")


# ------------------------------------------------------------------ the formulas, in float64, a token at a time
def less1(x: Array, m: Mapping[str, Array], name: str) -> Array:
    return normal(x, 1e-6, 1 + m[f"{name}.weight"], m[f"{name}.bias"])


def gelu(x: Array) -> Array:
    from math import erf

    return np.array([0.5 * a * (1 + erf(a / 2**0.5)) for a in x])


def rotate(x: Array, place: tuple[int, float, float], bands: Array) -> Array:
    angles = [p * band for p in place for band in bands]
    y = x.copy()
    for k, angle in enumerate(angles):
        j = k + len(angles)
        y[k] = x[k] * np.cos(angle) - x[j] * np.sin(angle)
        y[j] = x[j] * np.cos(angle) + x[k] * np.sin(angle)
    return y


def by_hand(
    w: Mapping[str, Tensor], history: Tensor, z: Tensor, tau: float, text: Tensor, count: int, prompted: float
) -> Array:
    """v of z [F, C, H, W] after the clean frames `history`."""
    m = {name: value.double().numpy() for name, value in w.items()}
    video = torch.cat([history, z]).double().numpy()
    frames, channels, height, width = video.shape
    high, wide, clean = height // 2, width // 2, len(history)
    scale = np.sqrt(high * wide) / 16
    places, x, chunk, own, told = [], [], [], [], []

    def condition(at: float, has: float) -> Array:
        angles = 1000 * at * np.exp(-np.log(10_000) * np.arange(128) / 128)
        waves = np.concatenate([np.cos(angles), np.sin(angles)])
        inner = silu(m["t_embedder.mlp.0.weight"] @ waves + m["t_embedder.mlp.0.bias"])
        null = m["y_embedder.null_caption_embedding"]
        y = has * null[-2] + (1 - has) * null[-1]
        e = m["t_embedder.mlp.2.weight"] @ inner + m["t_embedder.mlp.2.bias"]
        return e + m["y_embedder.y_proj_adaln.0.weight"] @ y + m["y_embedder.y_proj_adaln.0.bias"]

    now, done = condition(tau, prompted), condition(0.9999, 0.0)
    for f in range(frames):
        for i in range(high):
            for j in range(wide):
                patch = video[f, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2]
                x.append(np.einsum("dcpq,cpq->d", m["x_embedder.weight"][:, :, 0], patch))
                row = (i - (high - 1) / 2) / (high - 1) * (high / scale - 1)
                column = (j - (wide - 1) / 2) / (wide - 1) * (wide / scale - 1)
                places.append((f, row, column))
                chunk.append(f // WIDTH)
                own.append(f >= clean)
                told.append(now if f >= clean else done)
    heard = [
        silu(m["y_embedder.y_proj_xattn.0.weight"] @ s + m["y_embedder.y_proj_xattn.0.bias"])
        for s in text.double().numpy()[:count]
    ]
    every = range(len(x))
    for layer in range(LAYERS):
        of = f"videodit_blocks.layers.{layer}."
        b = {name.removeprefix(of): v for name, v in m.items() if name.startswith(of)}
        a, qkv = "self_attention.", "self_attention.linear_qkv."
        h = [normal(v, 1e-6, b[f"{qkv}layer_norm.weight"], b[f"{qkv}layer_norm.bias"]) for v in x]
        core, cross = ([np.zeros((QUERIES, HEAD)) for _ in x] for _ in range(2))
        for n in range(QUERIES):
            g, query = n * GROUPS // QUERIES, slice(n * HEAD, (n + 1) * HEAD)
            key = slice(g * HEAD, (g + 1) * HEAD)
            k = [
                rotate(less1(b[f"{qkv}k.weight"][key] @ h[s], b, f"{a}k_layernorm"), places[s], m["rope.bands"])
                for s in every
            ]
            v = [b[f"{qkv}v.weight"][key] @ h[s] for s in every]
            kx, vx = (b[f"{a}linear_kv_xattn.weight"][(2 * g + p) * HEAD : (2 * g + p + 1) * HEAD] for p in range(2))
            told_k, told_v = [less1(kx @ s, b, f"{a}k_layernorm_xattn") for s in heard], [vx @ s for s in heard]
            for s in every:
                reach = REACH if own[s] else 1
                seen = [o for o in every if chunk[s] - reach < chunk[o] <= chunk[s]]
                q = rotate(less1(b[f"{qkv}q.weight"][query] @ h[s], b, f"{a}q_layernorm"), places[s], m["rope.bands"])
                core[s][n] = attend(q, [k[o] for o in seen], [v[o] for o in seen])
                if own[s]:
                    q = less1(b[f"{qkv}qx.weight"][query] @ h[s], b, f"{a}q_layernorm_xattn")
                    cross[s][n] = attend(q, told_k, told_v)
        for s in every:
            parts = [
                both for c, d in zip(core[s].reshape(8, -1), cross[s].reshape(8, -1), strict=True) for both in (c, d)
            ]
            gates = np.tanh(b["ada_modulate_layer.proj.0.weight"] @ silu(told[s]) + b["ada_modulate_layer.proj.0.bias"])
            out = b[f"{a}linear_proj.weight"] @ np.concatenate(parts)
            x[s] = x[s] + less1(gates[:D] * out, b, "self_attn_post_norm")
            inner = normal(x[s], 1e-6, b["mlp.layer_norm.weight"], b["mlp.layer_norm.bias"])
            out = b["mlp.linear_fc2.weight"] @ gelu(b["mlp.linear_fc1.weight"] @ inner)
            x[s] = x[s] + less1(gates[D:] * out, b, "mlp_post_norm")
    found = np.zeros((frames, channels, height, width))
    for s in every:
        y = (m["final_linear.linear.weight"] @ less1(x[s], m, "videodit_blocks.final_layernorm")).reshape(
            2, 2, channels
        )
        f, rest = divmod(s, high * wide)
        i, j = divmod(rest, wide)
        for p in range(2):
            for q in range(2):
                found[f, :, 2 * i + p, 2 * j + q] = y[p, q]
    return found[clean:]


# ------------------------------------------------------------------ against them
TIMES = torch.tensor([0.9, 0.35])


def example() -> tuple[Tensor, dict[str, Tensor]]:
    noise = Rng.seeded(8)
    video, text = (noise.fork(k).noise_like(torch.zeros(2, *s)) for k, s in enumerate(((8, 4, 4, 6), (5, CAPTION))))
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])
    return video, {"text": text, "mask": mask, "prompted": torch.tensor([1.0, 0.0])}


def remembered(u: FlowMap, history: Tensor, cond: dict[str, Tensor]) -> Any:
    cache = None
    for chunk in history.split(u.chunks(history.shape[1]), 1) if history.shape[1] else ():
        cache = u.extend(cache, chunk, cond)
    return cache


def off(folder: Path, clean: int = 6, cached: bool = False) -> float:
    spec, (video, cond) = flowmap.backbone(str(folder)), example()
    u = spec.build(frozenset({"teacher"}), **CPU)["teacher"]
    history, z = video[:, :clean], video[:, clean:]
    with torch.no_grad():
        given = cond if cached or not clean else {**cond, "history": history}
        v = u(z, TIMES, TIMES, given, remembered(u, history, cond) if cached else None).double().numpy()
    worst = 0.0
    for k, count in enumerate(cond["mask"].sum(1).tolist()):
        told = float(cond["prompted"][k])
        wanted = -by_hand(weights(), history[k], z[k], 1 - float(TIMES[k]), cond["text"][k], count, told)
        worst = max(worst, float(np.abs(v[k] - wanted).max() / np.abs(wanted).max()))
    return worst


@pytest.mark.parametrize("clean, cached", [(6, False), (6, True), (0, False), (2, True)])
def test_a_published_directory_is_the_network_of_the_formulas(folder: Path, clean: int, cached: bool) -> None:
    """A chunk after three, of which the first is out of reach; remembered; four chunks at one time; three after one."""
    assert off(folder, clean, cached) < 1e-5


NETWORK = "flowmap_diffusers.networks.magi"
DEFECTS = [
    ("keys of text taken for values", ".transpose(1, 3).unbind(1)", ".transpose(1, 3).flip(1).unbind(1)"),
    ("a later chunk is heard", "tokens * (end - oldest)", "tokens * (end + width - oldest)"),
    ("history that is heard left out", "max(0, history.shape[1] - (self", "max(0, history.shape[1] + width - (self"),
    ("a chunk too many is heard", "start - (reach - 1) * width", "start - reach * width"),
    ("clean chunks hear those before", "self.config.clean_range if start", "3 if start"),
    ("clean chunks hear a prompt", "self.told(done, torch.zeros_like(done))", "self.told(done, torch.ones_like(done))"),
    ("clean chunks at the time of others", "torch.full_like(timestep, self.config.clean_t)", "timestep.clone()"),
    ("norms' weights as they are", "self.weight + 1", "self.weight"),
    ("turned the other way", "a * cos - b * sin, b * cos + a * sin", "a * cos + b * sin, b * cos - a * sin"),
    ("places of any size of picture", "math.sqrt(rows * columns) / SQUARE", "1.0"),
    ("heads not interleaved", ".unflatten(-1, (PARTS, -1)).transpose(2, 3)", ""),
    ("gates that are not bounded", "(F.silu(told)).tanh()", "(F.silu(told))"),
    ("columns before rows in a patch", "v.permute(0, 1, 6, 2, 4, 3, 5)", "v.permute(0, 1, 6, 2, 5, 3, 4)"),
]  # fmt: skip


@pytest.mark.parametrize("old, new", [pytest.param(old, new, id=what) for what, old, new in DEFECTS])
def test_a_mistake_is_seen(folder: Path, old: str, new: str) -> None:
    with planted(NETWORK, old, new):
        assert off(folder) > 1e-4 or off(folder, 0) > 1e-4


@pytest.mark.parametrize("convention", [Convention(1000.0, "1-t", "ε-x"), Convention(1000.0, "t", "x-ε")], ids=str)
def test_another_sign_or_clock_is_seen(folder: Path, convention: Convention, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "ROWS", {**rows.ROWS, "magi": evolve(rows.ROWS["magi"], convention=convention)})
    assert off(folder) > 0.01


def test_every_weight_has_its_published_name_at_true_size() -> None:
    with torch.device("meta"):
        net = MagiModel()
    shapes = {name: tuple(p.shape) for name, p in net.named_parameters()}
    assert shapes == named(3072, 3072, 1024, 128, 12288, 768, 4096, 800, 34, 16)
    assert round(sum(p.numel() for p in net.parameters()) / 1e9, 1) == 4.5


def test_positions_are_not_rounded(folder: Path) -> None:
    """Their bands stay float32 in bfloat16, as where it was published."""
    spec, (video, cond) = flowmap.backbone(str(folder)), example()
    wide, narrow = (
        spec.build(frozenset({"teacher"}), device=CPU["device"], dtype=dtype)["teacher"]
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert narrow.net.rope["bands"].dtype == torch.float32 and narrow.precision == torch.bfloat16
    with torch.no_grad():
        v, rounded = (u(video, TIMES, TIMES, cond) for u in (wide, narrow))
    assert float((rounded - v).abs().max() / v.abs().max()) < 0.1


def test_other_networks_of_it_are_refused(tmp_path: Path) -> None:
    assert network(CONFIG)["noise_range"] == REACH
    with pytest.raises(FileNotFoundError, match=r"has no model.safetensors.index.json: must be a published"):
        directory(tmp_path, _config(tmp_path), tmp_path / "out")
    gated = {"family": "magi", "config": {"gated_linear_unit": True}}  # of the 24B
    with pytest.raises(ValueError, match="its transformer has gated_linear_unit = True: must be False"):
        Diffusers(**gated).validate()


def _config(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    return tmp_path / "config.json"


@pytest.mark.parametrize("lora", [Lora(4, 8.0), None], ids=["adapters", "whole"])
def test_a_student_comes_back_and_is_sampled_chunk_after_chunk(folder: Path, tmp_path: Path, lora: Lora | None) -> None:
    spec = evolve(flowmap.backbone(str(folder)), lora=lora)
    u, (video, cond) = spec.build(frozenset({"student"}), **CPU)["student"], example()
    perturb(u, 0, 0.1)
    assert u.chunks(7) == (2, 2, 2, 1) and spec.shift == 3.0
    spec.save(u, tmp_path)
    found = flowmap.load(tmp_path)
    with torch.no_grad():
        wanted, again = (flowmap.sample(net, video, cond, 2, shift=spec.shift) for net in (u, found))
    torch.testing.assert_close(again, wanted, rtol=0, atol=2e-5 * float(wanted.abs().max()))


@torch.no_grad()
def test_a_window_is_fewer_of_the_chunks_that_it_hears(folder: Path) -> None:
    """Finished chunks hear none before them: a window of one is the history of the last one alone."""
    spec, (video, cond) = flowmap.backbone(str(folder)), example()
    whole, one = (spec.build(frozenset({"teacher"}), **CPU)["teacher"] for _ in range(2))
    assert REACH - 1 == 2
    one.bound(Window(0, 1))
    cache, memory = remembered(whole, video[:, 4:6], cond), remembered(one, video[:, :6], cond)
    found, wanted = (u(video[:, 6:], TIMES, TIMES, cond, c).double() for u, c in ((one, memory), (whole, cache)))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))
    assert memory.kept == WIDTH
    one.bound(Window(0, REACH))
    same = (flowmap.sample(u, video, cond, 1) for u in (one, whole))
    assert torch.equal(*same)
    with pytest.raises(ValueError, match="remembers its last chunks alone: must have sink = 0"):
        one.bound(Window(1, 1))
