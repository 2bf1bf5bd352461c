"""Networks trained whole in bfloat16: what computes, what is stepped, and that they are one function."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from attrs import evolve
from flowmap_far import Far
from flowmap_lora.masters import plain
from flowmap_wan.checkpoints import fused
from flowmap_wan.graph import OneChunk
from flowmap_wan.network import TIME_SCALE
from flowmap_wan21 import Lora, Wan21
from torch import nn

from flowmap import Rng, sample
from flowmap._types import Role

CPU, F32, BF16 = torch.device("cpu"), torch.float32, torch.bfloat16
EXACT = ("time_embedder", "delta_embedder", "scale_shift_table", "norm1", "norm2", "norm3", "far_patch_embedding")
ROLES = frozenset[Role]({"student", "teacher", "critic"})
SPECS = [Wan21(lora=None).tiny(), Far(lora=None).tiny()]


def built(spec, dtype=BF16):
    return spec.build(ROLES, device=CPU, dtype=dtype)


def called(u, spec, r=None, batch=2):
    z, cond = spec.example(batch)
    t = torch.full((batch,), 0.7)
    return u(z, t, t if r is None else torch.full((batch,), r), cond)


@pytest.mark.parametrize("spec", SPECS)
def test_weights_are_float32_and_compute_in_bfloat16_but_for_what_is_exact(spec):
    u = built(spec)["student"]
    assert {p.dtype for p in u.parameters()} == {F32} and all(p.requires_grad for p in u.parameters())
    seen = {}

    def look(name):
        def looked(layer, given, made):
            seen[name] = made.dtype, {p.dtype for p in layer.parameters()}

        return looked

    for name, layer in u.net.named_modules():
        if isinstance(layer, nn.Linear | nn.Conv3d | nn.RMSNorm):
            layer.register_forward_hook(look(name))
    called(u, spec, r=0.2).float().square().mean().backward()
    assert len(seen) > 20
    for name, (made, weights) in seen.items():
        assert made == (F32 if {*name.split(".")} & {*EXACT} else BF16), name
        assert weights == {F32}  # whoever looks for parameters finds those that are stepped
    assert {p.grad.dtype for p in u.parameters() if p.grad is not None} == {F32}
    assert not any("weight" in vars(layer) for layer in u.modules())


def test_a_trained_teacher_is_the_frozen_one_to_the_bit():
    spec = SPECS[0]
    frozen, other = built(spec)["teacher"], built(spec)["teacher"]
    other.thaw()
    assert frozen.net.proj_out.weight.dtype == BF16 and other.net.proj_out.weight.dtype == F32
    assert torch.equal(called(frozen, spec), called(other, spec))
    assert frozen.dtype == other.dtype == BF16


def test_a_step_too_small_for_bfloat16_is_kept_and_in_the_end_seen():
    spec = SPECS[0]
    u = built(spec)["critic"]
    before, p = called(u, spec), u.net.proj_out.weight
    with torch.no_grad():
        start = p.clone()
        p.mul_(1 + 1e-4)
        assert not torch.equal(p, start) and torch.equal(p.to(BF16), start.to(BF16))
        for _ in range(100):
            p.mul_(1 + 1e-4)
    assert not torch.equal(called(u, spec), before)


@pytest.mark.parametrize("spec", SPECS)
def test_gradients_are_those_of_a_float32_network_within_bfloat16(spec):
    grads = []
    for dtype in (BF16, F32):
        u = built(spec, dtype)["student"]
        called(u, spec, r=0.2).float().square().mean().backward()
        grads.append(torch.cat([p.grad.flatten() for p in u.parameters() if p.grad is not None]))
    half, full = grads
    assert float((half - full).norm() / full.norm()) < 0.05
    assert not torch.equal(half, full)


def test_recomputed_they_are_the_same():
    grads = []
    for checkpointing in (False, True):
        spec = evolve(SPECS[0], checkpointing=checkpointing)
        u = built(spec)["student"]
        called(u, spec, r=0.2).float().square().mean().backward()
        grads.append({name: p.grad for name, p in u.named_parameters()})
    assert all(torch.equal(g, grads[1][name]) for name, g in grads[0].items())


def test_an_error_in_a_layer_leaves_no_copy_behind():
    spec = SPECS[0]
    u = built(spec)["student"]
    with pytest.raises(RuntimeError):
        u.net.proj_out(torch.zeros(2, 5))
    assert "weight" not in vars(u.net.proj_out)


def test_plain_is_the_same_weights_in_their_own_precision():
    spec = SPECS[0]
    u = built(spec)["student"]
    bare = plain(u.net)
    assert bare.proj_out.weight is u.net.proj_out.weight
    x = torch.randn(2, u.net.proj_out.in_features, generator=torch.Generator().manual_seed(0))
    assert bare.proj_out(x).dtype == F32 and u.net.proj_out(x).dtype == BF16
    assert plain(bare) is bare


def test_a_copy_computes_as_the_original():
    spec = SPECS[0]
    u = built(spec)["student"]
    assert torch.equal(called(copy.deepcopy(u), spec, r=0.2), called(u, spec, r=0.2))


def test_what_is_exported_has_the_weights_and_not_the_copies():
    spec = SPECS[0]
    u, full = built(spec)["student"], built(spec, F32)["student"]
    full.load_state_dict(u.state_dict())
    z, cond = spec.example()
    t, r = torch.full((2,), 0.7), torch.full((2,), 0.2)
    tau, rho = ((TIME_SCALE * x)[:, None].expand(z.shape[:2]) for x in (t, r))
    found = OneChunk(u)(z, tau, rho, cond["text"])
    torch.testing.assert_close(found, full(z, t, r, cond), rtol=1e-4, atol=1e-5)
    assert float((found - u(z, t, r, cond)).abs().max()) > 1e-4  # which goes on computing with them


@pytest.mark.parametrize("dtype", [F32, BF16])
def test_a_network_that_is_cast_afterwards_computes(dtype):
    spec = SPECS[0]
    u = built(spec, dtype)["student"].to(BF16)
    assert u.dtype == BF16 and called(u, spec, r=0.2).isfinite().all()


def moved(spec, dtype=BF16):
    u = built(spec, dtype)["student"]
    with torch.no_grad():
        for k, p in enumerate(u.trained().values()):
            p += 0.1 * Rng.seeded(5, k).noise_like(p)
    return u.eval().requires_grad_(False)


@pytest.mark.parametrize("spec", SPECS)
def test_what_is_loaded_in_bfloat16_is_what_was_saved_to_the_bit(spec, tmp_path):
    spec = evolve(spec, text_length=512)  # what no file says
    u = moved(spec)
    spec.save(u, tmp_path)
    loaded = spec.load(tmp_path, device=CPU, dtype=BF16)
    z, cond = spec.example(1)
    with torch.no_grad():
        for n in (1, 2):
            assert torch.equal(sample(u, z, cond, n), sample(loaded, z, cond, n))


@pytest.mark.parametrize("spec", [evolve(spec, lora=Lora(rank=4, alpha=4.0)) for spec in SPECS])
def test_fused_adapters_are_loaded_in_what_they_were_saved_in(spec, tmp_path):
    u = moved(spec)
    spec.save(u, tmp_path)
    loaded, wanted = spec.load(tmp_path, device=CPU, dtype=BF16).net, fused(u)
    assert type(loaded) is type(wanted)  # a class that diffusers can name
    theirs = dict(loaded.named_parameters())
    assert {name: p.dtype for name, p in theirs.items()} == {name: p.dtype for name, p in wanted.named_parameters()}
    assert all(torch.equal(p, theirs[name]) for name, p in wanted.named_parameters())
    assert loaded.condition_embedder.delta_embedder.linear_1.weight.dtype == F32
    assert loaded.proj_out.weight.dtype == BF16
    again = Path(tmp_path / "again")
    loaded.save_pretrained(again)
    assert json.loads((again / "config.json").read_text())["_class_name"] == type(wanted).__name__
