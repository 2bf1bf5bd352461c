"""Adapters on every linear layer of a network: each is heard, learns, and is saved as it is heard."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from attrs import evolve
from flowmap_diffusers import Diffusers
from flowmap_far import Far
from flowmap_lora import Lora
from flowmap_lora.linear import LoraLinear
from flowmap_lora.roles import sets
from flowmap_lora.start import LORA_FILE
from flowmap_wan import build, network
from flowmap_wan21 import Wan21
from safetensors.torch import save_file
from torch import Tensor, nn

from flowmap import Rng
from flowmap.model import ConditionError, Kept
from flowmap.testing.kit_helpers import perturb

CPU: dict[str, Any] = {"device": torch.device("cpu"), "dtype": torch.float32}
ROLES = frozenset({"student", "teacher", "critic"})
EVERY = Lora(rank=2, alpha=3.0, targets=".*")
SPECS: dict[str, Any] = {"wan": Wan21().tiny(), "far": Far().tiny(), "ltx": Diffusers(family="ltx").tiny()}
OF_R = ("delta_embedder", ".then.")
T, R = torch.tensor([0.9, 0.4]), torch.tensor([0.5, 0.1])


def built(name: str, **given: Any) -> tuple[Any, dict[str, Any]]:
    spec = evolve(SPECS[name], lora=EVERY, **given)
    nets = dict(spec.build(ROLES, **CPU))
    for i, role in enumerate(("student", "critic")):
        with torch.no_grad():
            perturb(nets[role], i, 0.1)
    return spec, nets


def adapted(u: Any) -> dict[str, LoraLinear]:
    """By name, every linear layer of the base, all of which have adapters."""
    layers = {n: m for n, m in u.net.named_modules() if isinstance(m, LoraLinear) and u.role in m.scaling}
    base = {n for n, m in u.net.named_modules() if isinstance(m, nn.Linear) and ".lora_" not in n}
    assert {f"{n}.base_layer" for n in layers} == base and len(layers) > 20
    return layers


def plain(u: Any, spec: Any) -> Tensor:
    z, cond = spec.example()
    out: Tensor = u(z, T, R, cond)
    return out


def forced(u: Any, spec: Any, kept: bool = False) -> Tensor:
    """After a history, one chunk of it compressed; kept: from the memory of another call."""
    z, cond = spec.example()
    given, noisy = {**cond, "history": z[:, :4]}, Rng.seeded(3).noise_like(z[:, 1:6])
    memory = Kept(torch.arange(2)) if kept else None
    for _ in range(1 + kept):
        out: Tensor = u(noisy, T, R, given, memory)
    return out


def chunked(u: Any, spec: Any) -> Tensor:
    """The next chunk, and what is remembered of those before it, some of them compressed."""
    z, cond = spec.example()
    *done, last = z.split(u.chunks(z.shape[1]), 1)
    memory: Any = None
    for x in done:
        memory = u.extend(memory, x, cond)
    out: Tensor = u(last, T, R, cond, memory)
    return torch.cat([out.flatten(), *(p.flatten() for piece in memory.memory for kv in piece for p in kv)])


PATHS: dict[str, tuple[str, Callable[..., Tensor]]] = {
    "wan": ("wan", plain),
    "far": ("far", plain),
    "far after a history": ("far", forced),
    "far after a history that was kept": ("far", partial(forced, kept=True)),
    "far chunk after chunk": ("far", chunked),
    "ltx": ("ltx", plain),
}
TRAINED = [path for path, (_, say) in PATHS.items() if say in (plain, forced)]


@pytest.mark.parametrize("path", TRAINED)
def test_each_learns_and_is_heard_in_the_call_of_its_own_role_alone(path: str) -> None:
    name, say = PATHS[path]
    spec, nets = built(name)
    again = built(name, checkpointing=True)[1]
    for role in ("student", "critic") if say is plain else ("student",):
        grads = {}
        for key, u in (("kept", nets[role]), ("recomputed", again[role])):
            say(u, spec).square().mean().backward()
            grads[key] = {n: p.grad for n, p in u.trained().items() if ".lora_" in n}
        mute = () if role == "student" else OF_R  # a critic knows no r
        for n, grad in grads["kept"].items():
            if not any(part in n for part in mute):
                assert grad is not None and grad.abs().max() > 0, n
                torch.testing.assert_close(grads["recomputed"][n], grad)
        with torch.no_grad():
            wanted, others = say(nets[role], spec), {r: plain(nets[r], spec) for r in ROLES - {role}}
            for n, layer in adapted(nets[role]).items():
                scale, layer.scaling[role] = layer.scaling[role], 0.0
                moved = (say(nets[role], spec) - wanted).abs().max()
                assert (moved > 1e-6) == (not any(part in n for part in mute)), n
                layer.scaling[role] = scale
            assert all(torch.equal(plain(nets[r], spec), value) for r, value in others.items())


@pytest.mark.parametrize("path", PATHS)
def test_it_is_saved_as_it_is_heard(path: str, tmp_path: Path) -> None:
    name, say = PATHS[path]
    spec, nets = built(name)
    u = nets["student"]
    spec.save(u, tmp_path)
    with torch.no_grad():
        wanted = say(u, spec)
        for there in (tmp_path, tmp_path / "lora"):
            torch.testing.assert_close(say(spec.load(there, **CPU), spec), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", SPECS)
def test_calls_inside_of_others_and_calls_that_fail_leave_the_set_as_it_was(name: str) -> None:
    spec, nets = built(name)
    z, cond = spec.example()
    with torch.no_grad():
        alone = {role: plain(u, spec) for role, u in nets.items()}
        shared = sets(nets["student"].net)
        for outer in ROLES:
            with shared.using(outer):
                for role, u in nets.items():
                    assert torch.equal(plain(u, spec), alone[role])
                    with pytest.raises(ConditionError):
                        u(z, T, R, {**cond, "text": cond["text"].repeat(1, 100, 1), "unknown": z})
                    assert shared.name == outer
    assert shared.name is None
    bare = evolve(spec, lora=None).build(frozenset({"teacher"}), **CPU)["teacher"]
    torch.testing.assert_close(alone["teacher"], plain(bare, spec), rtol=0, atol=1e-6)


def bare(part: str) -> Callable[..., Any]:
    """The part without the choice of a set."""
    found: Callable[..., Any] = getattr(network.WanFlowMap, part).__wrapped__
    return found


@pytest.mark.parametrize("part", ["embed", "text", "through", "latent"])
def test_planted_a_part_that_chooses_no_set(part: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(network.WanFlowMap, part, bare(part))
    for path in ("wan", "far after a history"):
        with pytest.raises(AssertionError, match=r"embed|time_proj|proj_out|not close"):  # the last: when recomputed
            test_each_learns_and_is_heard_in_the_call_of_its_own_role_alone(path)
    for path in ("wan", "far chunk after chunk"):
        with pytest.raises(AssertionError, match="not close"):
            test_it_is_saved_as_it_is_heard(path, tmp_path / path)


@pytest.mark.parametrize("name", SPECS)
def test_a_student_that_begins_as_a_file_of_all_layers_is_the_one_of_a_base_with_it(name: str, tmp_path: Path) -> None:
    spec = SPECS[name]
    plain_net = evolve(spec, lora=None).build(frozenset({"teacher"}), **CPU)["teacher"].net
    layers = {n.replace(".now.", "."): m for n, m in plain_net.named_modules() if isinstance(m, nn.Linear)}
    tensors = {}
    for i, (layer, m) in enumerate(layers.items()):
        tensors[f"transformer.{layer}.lora_A.weight"] = 0.3 * Rng.seeded(1, i).noise_like(m.weight[:2])
        tensors[f"transformer.{layer}.lora_B.weight"] = 0.3 * Rng.seeded(2, i).noise_like(m.weight[:, :2]).contiguous()
    save_file(tensors, tmp_path / LORA_FILE)
    init = evolve(spec, lora=Lora(init=tmp_path, targets=".*"))
    init.validate()
    begun = init.build(ROLES, **CPU)
    fused = evolve(spec, lora=None, fuse=tmp_path).build(ROLES, **CPU)
    with torch.no_grad():
        torch.testing.assert_close(plain(begun["student"], spec), plain(fused["student"], spec), rtol=0, atol=1e-5)
        assert (plain(begun["teacher"], spec) - plain(fused["teacher"], spec)).abs().max() > 0.1
    made: dict[int, Tensor] = {}
    hollow = init.build(ROLES, device=torch.device("meta"), dtype=torch.float32)
    init.fill(hollow, lambda p, rows: made.update({id(p): rows(slice(None))}), dtype=torch.float32)
    theirs = begun["student"].trained()
    assert all(torch.equal(made[id(p)], theirs[n]) for n, p in hollow["student"].trained().items())


def test_planted_a_second_embedder_that_begins_at_zero(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(build, "copies", lambda net: {})
    for name in ("wan", "far"):
        with pytest.raises(AssertionError, match="not close"):
            test_a_student_that_begins_as_a_file_of_all_layers_is_the_one_of_a_base_with_it(name, tmp_path)
