"""The adapter against diffusers' own classes, and the roles against each other."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from attrs import evolve
from flowmap_wan.block import rotate, rotation
from flowmap_wan.build import lift, pretrained
from flowmap_wan.network import Bidirectional
from flowmap_wan21 import Lora, Wan21
from torch.nn import functional as F

from flowmap import Rng
from flowmap._types import Batch, Role, Shared
from flowmap.objectives.distribution_matching import CriticMatching, DistributionMatching
from flowmap.objectives.flow_map_matching import FlowMapMatching
from flowmap.rollout import FlowMapBackwardSimulation
from flowmap.times import Triangle

ROLES = frozenset[Role]({"student", "teacher", "critic"})
CPU = torch.device("cpu")
LORA, FULL = Wan21().tiny(), Wan21(lora=None).tiny()
T, R = torch.tensor([0.9, 0.5, 0.1]), torch.tensor([0.4, 0.0, 0.1])


def build(spec: Wan21, dtype: torch.dtype = torch.float32) -> Mapping[Role, Bidirectional]:
    return spec.build(ROLES, device=CPU, dtype=dtype)  # type: ignore[return-value]


def shake(u: Bidirectional, seed: int = 0) -> None:
    """Move what a role trains, so that it is a network of its own."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in u.trained().values():
            p += 0.1 * torch.randn(p.shape, generator=generator)


@pytest.mark.parametrize("spec", [LORA, FULL], ids=["lora", "full"])
def test_the_fresh_student_is_the_wan_teacher_on_the_diagonal_bit_for_bit(spec: Wan21) -> None:
    z, c = spec.example(3)
    wan = Bidirectional(pretrained(spec, torch.float32), "teacher", two_times=False, text_length=spec.text_length)
    assert type(wan.net).__name__ == "WanTransformer3DModel"
    for u in build(spec).values():
        assert torch.equal(u(z, T, T, c), wan(z, T, T, c))


def test_one_time_is_what_diffusers_computes() -> None:
    z, c = FULL.example(3)
    text = F.pad(c["text"], (0, 0, 0, FULL.text_length - c["text"].shape[1]))
    net = pretrained(FULL, torch.float32)
    theirs = net(hidden_states=z.transpose(1, 2), timestep=1000 * T, encoder_hidden_states=text).sample
    ours = build(FULL)["teacher"](z, T, T, c)
    torch.testing.assert_close(ours, theirs.transpose(1, 2), atol=3e-6, rtol=1e-5)


def test_two_times_are_what_diffusers_computes() -> None:
    z, c = FULL.example(3)
    text = F.pad(c["text"], (0, 0, 0, FULL.text_length - c["text"].shape[1]))
    net = lift(FULL, pretrained(FULL, torch.float32))
    for p in net.condition_embedder.delta_embedder.parameters():
        p.data += 0.1
    t, r = (1000 * s[:, None].expand(-1, z.shape[1]) for s in (T, R))
    theirs = net(z, t, r, text).sample
    ours = Bidirectional(net, "student", two_times=True, text_length=FULL.text_length)(z, T, R, c)
    torch.testing.assert_close(ours, theirs, atol=3e-6, rtol=1e-5)


def test_a_time_a_frame_is_a_time_for_all_where_frames_agree() -> None:
    z, c = FULL.example(3)
    u = build(FULL)["student"]
    frames = z.shape[1]
    per_frame = u(z, T[:, None].expand(-1, frames), R[:, None].expand(-1, frames), c)
    torch.testing.assert_close(per_frame, u(z, T, R, c), atol=1e-6, rtol=1e-5)
    t = T[:, None].repeat(1, frames)
    t[:, 0] = 0.0
    assert not torch.allclose(u(z, t, t, c), u(z, T, T, c), atol=1e-4)


def test_padding_as_one_key_is_padding_in_full() -> None:
    z, c = FULL.example(3)
    u = build(FULL)["student"]
    full = {"text": F.pad(c["text"], (0, 0, 0, FULL.text_length - c["text"].shape[1]))}
    torch.testing.assert_close(u(z, T, R, c), u(z, T, R, full), atol=1e-6, rtol=1e-5)
    wrong = evolve(FULL, text_length=8 * FULL.text_length).build(ROLES, device=CPU, dtype=torch.float32)["student"]
    assert not torch.allclose(wrong(z, T, R, c), u(z, T, R, c), atol=1e-5)


def test_rotation_is_multiplication_by_unit_complex_numbers() -> None:
    x = Rng.seeded(0).noise_like(torch.zeros(2, 12, 3, 24))
    cos, sin = rotation([torch.arange(n) for n in (3, 2, 2)], 24)
    complex_x = torch.view_as_complex(x.double().unflatten(-1, (-1, 2)))
    expected = torch.view_as_real(complex_x * torch.complex(cos.double(), sin.double())[:, None]).flatten(-2)
    torch.testing.assert_close(rotate(x, (cos, sin)).double(), expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("role, other", [("student", "critic"), ("critic", "student")])
@pytest.mark.parametrize("spec", [LORA, FULL], ids=["lora", "full"])
def test_no_role_sees_what_another_trains(spec: Wan21, role: Role, other: Role) -> None:
    z, c = spec.example(3)
    nets = build(spec)
    before = {name: u(z, T, R, c) for name, u in nets.items()}
    shake(nets[role])
    after = {name: u(z, T, R, c) for name, u in nets.items()}
    assert not torch.allclose(before[role], after[role], atol=1e-4)
    for name in (other, "teacher"):
        assert torch.equal(before[name], after[name])


def test_adapters_share_one_frozen_base() -> None:
    nets = build(LORA)
    assert len({id(u.net) for u in nets.values()}) == 1
    assert not any(p.requires_grad for name, p in nets["student"].net.named_parameters() if ".lora_" not in name)
    assert not nets["teacher"].trained()
    blocks = LORA.config["num_layers"]
    assert len(nets["critic"].trained()) == 2 * 6 * blocks
    assert len(nets["student"].trained()) == 2 * (6 * blocks + 4)
    ours = sum(p.numel() for p in nets["student"].trained().values())
    assert ours == sum(p.numel() for name, p in nets["student"].net.named_parameters() if ".student." in name)


def test_a_thawed_teacher_gets_adapters_of_its_own_and_starts_unchanged() -> None:
    z, c = LORA.example(3)
    nets = build(LORA)
    before = nets["teacher"](z, T, T, c)
    nets["teacher"].thaw()
    assert torch.equal(nets["teacher"](z, T, T, c), before)
    assert nets["teacher"].trained().keys() == nets["critic"].trained().keys()


def batch(spec: Wan21) -> Batch:
    x, c = spec.example(4)
    return Batch(x, c, {"text": torch.zeros_like(c["text"][:1])})


@pytest.mark.parametrize("spec", [LORA, FULL], ids=["lora", "full"])
def test_gradients_under_checkpointing_are_those_without(spec: Wan21) -> None:
    """Teacher and critic run between the student's forward and backward pass: recomputation must not see theirs."""
    gradients = []
    for checkpointing in (False, True):
        nets = build(evolve(spec, checkpointing=checkpointing))
        shake(nets["student"], 1)
        shake(nets["critic"], 2)
        rng, shared = Rng.seeded(0), Shared()
        objective = DistributionMatching(FlowMapBackwardSimulation((4,)))
        first = objective(nets, batch(spec), rng.fork(0), shared)
        second = FlowMapMatching(Triangle())(nets, batch(spec), rng.fork(1), shared)
        critic = CriticMatching()(nets, batch(spec), rng.fork(2), shared)  # leaves the critic's set active
        (first.value + second.value).backward()
        assert all(p.grad is None for p in nets["critic"].trained().values())
        critic.value.backward()
        gradients.append({r: [p.grad.clone() for p in nets[r].trained().values()] for r in ("student", "critic")})
    for role in ("student", "critic"):
        for plain, recomputed in zip(gradients[0][role], gradients[1][role], strict=True):
            assert plain.abs().sum() > 0 or role == "student"
            torch.testing.assert_close(recomputed, plain, atol=1e-7, rtol=1e-5)


def test_whole_networks_are_trained_in_float32() -> None:
    """A step of 2e-6 on a bfloat16 weight changes nothing."""
    nets = build(FULL, torch.bfloat16)
    assert {p.dtype for r in ("student", "critic") for p in nets[r].trained().values()} == {torch.float32}
    assert torch.bfloat16 in {p.dtype for p in nets["teacher"].parameters()}
    nets["teacher"].thaw()
    assert {p.dtype for p in nets["teacher"].trained().values()} == {torch.float32}


def test_times_stay_float32_in_a_bfloat16_network() -> None:
    z, c = LORA.example(3)
    u = build(LORA, torch.bfloat16)["student"]
    seen: list[torch.Tensor] = []
    u.net.condition_embedder.timesteps_proj.register_forward_hook(lambda m, args, out: seen.append(args[0]))
    out = u(z, T + 5e-3, R, c)
    assert out.dtype == z.dtype
    assert seen[0].dtype == torch.float32
    torch.testing.assert_close(seen[0] - 1000 * T, torch.full_like(T, 5.0), atol=1e-3, rtol=0)


def test_lora_of_another_rank_has_other_shapes() -> None:
    wide = evolve(LORA, lora=Lora(rank=6, alpha=12.0)).build(ROLES, device=CPU, dtype=torch.float32)["student"]
    assert {p.shape[0] for name, p in wide.trained().items() if "lora_A" in name} == {6}


def test_positions_turn_pairs_alike_in_complex_and_in_real_numbers(monkeypatch):
    rope = rotation([torch.arange(n) for n in (3, 2, 4)], 12)
    for dtype in (torch.float32, torch.bfloat16):
        x = Rng.seeded(0).noise_like(torch.zeros(2, 24, 3, 12)).to(dtype).requires_grad_()
        fast = rotate(x, rope)
        with monkeypatch.context() as patched:
            patched.setattr(torch.compiler, "is_compiling", lambda: True)
            real = rotate(x, rope)
        close = {"rtol": 2**-7 if dtype == torch.bfloat16 else 1e-6, "atol": 1e-6}  # the last place
        torch.testing.assert_close(fast, real, **close)
        weight = Rng.seeded(1).noise_like(torch.zeros(2, 24, 3, 12)).to(dtype)
        (ours,), (theirs,) = (torch.autograd.grad((y * weight).sum(), x) for y in (fast, real))
        torch.testing.assert_close(ours, theirs, **close)
        assert (fast - rotate(x, (rope[0], -rope[1]))).abs().max() > 0.1
