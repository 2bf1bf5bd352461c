"""FAR against diffusers' own class, its cache against the whole history, and its gradients."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from attrs import evolve
from diffusers import AnyFlowFARTransformer3DModel
from flowmap_far import Far
from flowmap_far.layout import CLEAN, COMPRESSED, Piece
from flowmap_far.network import Cache, FarFlowMap
from torch import Tensor
from torch.nn import functional as F

from flowmap import Batch, Rng, Window
from flowmap._types import Cond, Latent, Role, Shared
from flowmap.chunked import HistoryGrad
from flowmap.objectives.distribution_matching import DistributionMatching
from flowmap.objectives.flow_map_matching import FlowMapMatching
from flowmap.rollout import FlowMapBackwardSimulation, sample
from flowmap.times import Triangle

pytestmark = pytest.mark.filterwarnings(
    "ignore:flex_attention called without torch.compile"
)  # the CPU has no fused one
ROLES = frozenset[Role]({"student", "teacher", "critic"})
CPU = torch.device("cpu")
LORA, FULL = Far().tiny(), Far(lora=None).tiny()
SIZES = (1, 2, 1, 2, 1)
T, R = torch.tensor([0.9, 0.5, 0.1]), torch.tensor([0.4, 0.0, 0.1])


def shake(u: FarFlowMap, seed: int = 0, size: float = 0.1) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in u.trained().values():
            p += size * torch.randn(p.shape, generator=generator)


def student(spec: Far = FULL, **changes: Any) -> FarFlowMap:
    u: FarFlowMap = evolve(spec, **changes).build(ROLES, device=CPU, dtype=torch.float32)["student"]  # type: ignore[assignment]
    shake(u)
    return u


def example(frames: int = 7, side: int = 8, batch: int = 3) -> tuple[Latent, Cond]:
    rng = Rng.seeded(3)
    x, text = torch.zeros(batch, frames, 4, side, side), torch.zeros(batch, FULL.text_tokens, 16)
    return rng.noise_like(x), {"text": rng.noise_like(text) * (torch.arange(FULL.text_tokens) < 6)[:, None]}


def padded(cond: Cond) -> Tensor:
    """The text as diffusers takes it."""
    return F.pad(cond["text"], (0, 0, 0, FULL.text_length - cond["text"].shape[1]))


def forced(u: FarFlowMap, x: Latent, cond: Cond, n: int) -> tuple[Latent, Cond]:
    """A teacher-forced clip of the first n chunks."""
    end, last, start = sum(SIZES[:n]), sum(SIZES[: n - 1]), sum(SIZES[: max(0, n - u.full)])
    return x[:, start:end], {**cond, "history": x[:, :last]}


@pytest.mark.parametrize("n", [2, 3, 4, 5])
@torch.no_grad()
def test_a_teacher_forced_pass_is_what_diffusers_computes(n: int) -> None:
    u, (x, c) = student(), example()
    theirs = AnyFlowFARTransformer3DModel(**{k: v for k, v in u.net.config.items() if not k.startswith("_")})
    theirs.load_state_dict(u.net.state_dict())
    kept, cond = forced(u, x, c, n)
    noise = Rng.seeded(1).noise_like(kept)
    old = sum(SIZES[:n]) - kept.shape[1]
    frames = [torch.cat([torch.zeros(3, old), s[:, None].expand(-1, kept.shape[1])], 1) * 1000 for s in (T, R)]
    expected = theirs(
        hidden_states=torch.cat([x[:, :old], noise], 1),
        timestep=frames[0],
        r_timestep=frames[1],
        encoder_hidden_states=padded(c),
        chunk_partition=list(SIZES[:n]),
        clean_hidden_states=kept,
        clean_timestep=torch.zeros(3, kept.shape[1]),
    ).sample
    torch.testing.assert_close(u(noise, T, R, cond), expected, atol=3e-6, rtol=1e-5)


@pytest.mark.parametrize("n", [2, 3, 4, 5])
@torch.no_grad()
def test_the_last_chunk_of_a_teacher_forced_pass_is_cached_generation(n: int) -> None:
    u, (x, c) = student(), example()
    kept, cond = forced(u, x, c, n)
    noise, cache, at = Rng.seeded(1).noise_like(kept), None, 0
    for size in SIZES[: n - 1]:
        cache = u.extend(cache, x[:, at : at + size], c)
        at += size
    alone = u(noise[:, -SIZES[n - 1] :], T, R, c, cache)
    torch.testing.assert_close(u(noise, T, R, cond)[:, -SIZES[n - 1] :], alone, atol=2e-6, rtol=1e-5)


def encode_all(u: FarFlowMap, x: Latent, cond: Cond, sizes: tuple[int, ...]) -> Cache:
    """The whole history in one pass: what `extend` must equal."""
    first = [sum(sizes[:k]) for k in range(len(sizes))]
    old = max(0, len(sizes) - u.full + 1)
    pieces = tuple(Piece(COMPRESSED if k < old else CLEAN, k, first[k], n) for k, n in enumerate(sizes))
    parts = x.split(list(sizes), dim=1)
    return Cache(pieces, tuple(u._encode(pieces, parts, Cache(), cond)), parts[old:])


@pytest.mark.parametrize("full", [1, 2, 3])
@torch.no_grad()
def test_extending_is_encoding_the_whole_history_however_long(full: int) -> None:
    u = student(full=full, partition=(1, 2))
    x, c = example(frames=13)
    sizes = u.chunks(13)
    assert len(sizes) == 7
    cache = None
    for k, chunk in enumerate(x.split(list(sizes), dim=1)):
        cache = u.extend(cache, chunk, c)
        whole = encode_all(u, x[:, : sum(sizes[: k + 1])], c, sizes[: k + 1])
        assert cache.pieces == whole.pieces
        assert all(torch.equal(a, b) for a, b in zip(cache.recent, whole.recent, strict=True))
        for ours, theirs in zip(cache.memory, whole.memory, strict=True):
            for layer, expected in zip(ours, theirs, strict=True):
                for a, b in zip(layer, expected, strict=True):
                    torch.testing.assert_close(a, b, atol=2e-6, rtol=1e-5)


@torch.no_grad()
def test_what_extending_encodes_does_not_grow_with_the_history() -> None:
    u = student(partition=(1, 2))
    x, c = example(frames=31)
    encoded: list[int] = []
    u.net.blocks[0].register_forward_pre_hook(lambda module, args: encoded.append(args[0].shape[1]))
    cache = None
    for chunk in x.split(list(u.chunks(31)), dim=1):
        cache = u.extend(cache, chunk, c)
    full, compressed = 2 * 16, 2 * 4  # tokens of a chunk of two frames
    assert encoded[:3] == [16, full, 4 + 2 * full]
    assert set(encoded[3:]) == {compressed + 2 * full}
    assert len(encoded) == 16


@torch.no_grad()
def test_snapshots_share_what_they_have_in_common_and_hold_no_more_than_they_say() -> None:
    u, (x, c) = student(), example()
    caches = [u.extend(None, x[:, :1], c)]
    for at, size in zip((1, 3, 4), SIZES[1:4], strict=True):
        caches.append(u.extend(caches[-1], x[:, at : at + size], c))
    before = [[k.clone() for piece in cache.memory for k, _ in piece] for cache in caches]
    u.extend(caches[-1], x[:, 6:], c)
    for cache, copies in zip(caches, before, strict=True):
        assert all(
            torch.equal(k, kept) for k, kept in zip((k for p in cache.memory for k, _ in p), copies, strict=True)
        )
    assert caches[3].memory[0] is caches[2].memory[0]  # chunk 0 is compressed in both, chunk 1 only in the latter
    assert [p.form for p in caches[3].pieces] == [COMPRESSED, COMPRESSED, CLEAN, CLEAN]
    tokens = sum(k.shape[1] for k, _ in (piece[0] for piece in caches[3].memory))
    assert tokens == 4 * (1 + 2) + 16 * (1 + 2)
    held = {
        a.untyped_storage().data_ptr(): a.untyped_storage().nbytes() for p in caches[3].memory for kv in p for a in kv
    }
    assert sum(held.values()) == 3 * 2 * 2 * tokens * 24 * 4  # batch, layers, keys and values, width, float32


def pipeline_sample(u: FarFlowMap, noise: Latent, text: Tensor, steps: int, given: Latent | None = None) -> Latent:
    """AnyFlowFARPipeline's loop: its own cache, attention and rotation."""
    from diffusers import AnyFlowFARPipeline, FlowMapEulerDiscreteScheduler

    theirs = AnyFlowFARTransformer3DModel(**{k: v for k, v in u.net.config.items() if not k.startswith("_")})
    theirs.load_state_dict(u.net.state_dict())
    pipe = AnyFlowFARPipeline(None, None, theirs, None, FlowMapEulerDiscreteScheduler(shift=5.0))
    pipe.set_progress_bar_config(disable=True)
    found = pipe(
        prompt_embeds=text,
        video_latents=given,
        height=noise.shape[-2] * 8,
        width=noise.shape[-1] * 8,
        num_frames=4 * noise.shape[1] - 3,
        num_inference_steps=steps,
        latents=noise.transpose(1, 2).clone(),
        output_type="latent",
        return_dict=False,
        chunk_partition=list(u.chunks(noise.shape[1])),
    )[0]
    return found.transpose(1, 2)


@pytest.mark.parametrize("context", [0, 2, 4])
@torch.no_grad()
def test_samples_are_those_of_the_diffusers_pipeline(context: int) -> None:
    """At a size where it pads nothing: 128 compressed and 512 full tokens a chunk. Elsewhere it sees zero keys."""
    u = student(partition=(2, 2, 2, 2), full=2)
    x, c = example(frames=8, side=32, batch=1)
    given = example(frames=8, side=32, batch=1)[0][:, :context] * 0.5 if context else None
    before = None if given is None else given.clone()
    expected = pipeline_sample(u, x, padded(c), 2, given)
    found = sample(u, x, c, 2, shift=5.0, context=given)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)
    if given is not None:
        assert torch.equal(given, before)
        assert torch.equal(found[:, :context], given)


@pytest.mark.parametrize("n", [3, 5])
@pytest.mark.parametrize("attention", ["flex", "spans"])
@torch.no_grad()
def test_every_form_of_attention_gives_the_same_numbers(attention: str, n: int) -> None:
    x, c = example()
    dense, other_form = student(attention="dense"), student(attention=attention)
    kept, cond = forced(dense, x, c, n)
    torch.testing.assert_close(other_form(kept, T, R, cond), dense(kept, T, R, cond), atol=2e-6, rtol=1e-5)
    one, other = (sample(u, x, c, 2) for u in (dense, other_form))
    torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_a_compressed_position_is_the_mean_of_the_rotations_it_stands_for() -> None:
    u, like = student(), torch.zeros(1, 1, 4, 8, 8)
    cos, sin = u._rope((Piece(COMPRESSED, 0, 5, 1),), like)
    full = [a.double().reshape(4, 4, -1) for a in u._rope((Piece(CLEAN, 0, 5, 1),), like)]
    rotations = torch.complex(*full)
    mean = rotations.reshape(2, 2, 2, 2, -1).mean((1, 3)).reshape(4, -1)
    mean = mean / mean.abs()
    torch.testing.assert_close(torch.complex(cos.double(), sin.double()), mean, atol=1e-6, rtol=1e-6)


def test_teacher_forcing_draws_prefixes_as_told() -> None:
    x, c = example()
    seen: dict[int, int] = {}
    u = student(long=0.5)
    for seed in range(600):
        kept, cond = u.teacher_forcing(x, c, Rng.seeded(seed))
        history = cond["history"].shape[1]
        n = 1 + [1, 3, 4, 6].index(history) + 1
        seen[n] = seen.get(n, 0) + 1
        start = sum(SIZES[: n - 3])
        assert torch.equal(kept, x[:, start : sum(SIZES[:n])])
        assert torch.equal(cond["history"], x[:, :history])
    assert set(seen) == {3, 4, 5}
    assert abs(seen[3] / 600 - 2 / 3) < 0.07
    assert abs(seen[4] / 600 - 1 / 6) < 0.06
    short, at_once = student(long=0.0), student(bidirectional=1.0)
    for _ in range(20):
        kept, cond = short.teacher_forcing(x, c, Rng.seeded(random.randrange(1 << 30)))
        assert kept.shape[1] == 4
        kept, cond = at_once.teacher_forcing(x, c, Rng.seeded(random.randrange(1 << 30)))
        assert torch.equal(kept, x)
        assert "history" not in cond


@torch.no_grad()
def test_without_history_all_frames_are_one_chunk_as_the_teacher_has_it() -> None:
    nets = FULL.build(ROLES, device=CPU, dtype=torch.float32)
    x, c = example()
    assert torch.equal(nets["student"](x, T, T, c), nets["teacher"](x, T, T, c))


def test_the_fresh_compressed_embedding_sees_a_constant_as_the_other_does() -> None:
    for area in (True, False):
        net: Any = FULL.build(frozenset({"student"}), device=CPU, dtype=torch.float32)["student"].net
        if not area:
            net = evolve(FULL, area=False).build(frozenset({"student"}), device=CPU, dtype=torch.float32)["student"].net
        flat = torch.ones(1, 4, 1, 4, 4)
        one, many = net.patch_embedding(flat)[..., 0, 0], net.far_patch_embedding(flat)[..., 0, 0]
        bias = net.patch_embedding.bias[None, :, None]
        factor = 1.0 if area else 4.0
        torch.testing.assert_close(many - bias, factor * (one - bias), atol=1e-5, rtol=1e-4)


def test_the_reference_start_is_that_of_diffusers() -> None:
    u: Any = evolve(FULL, area=False).build(frozenset({"student"}), device=CPU, dtype=torch.float32)["student"]
    weight = u.net.patch_embedding.weight
    theirs = F.interpolate(weight.view(-1, 1, 1, 2, 2), size=(1, 4, 4), mode="trilinear", align_corners=False)
    assert torch.equal(u.net.far_patch_embedding.weight, theirs.view_as(u.net.far_patch_embedding.weight))


def batch() -> Batch:
    x, c = example()
    return Batch(x, c, {"text": torch.zeros_like(c["text"][:1])})


def test_attention_by_spans_has_the_gradient_of_the_mask() -> None:
    one, other = (gradients(evolve(FULL, attention=a), False) for a in ("dense", "spans"))
    for name, expected in one.items():
        torch.testing.assert_close(other[name], expected, atol=1e-6, rtol=2e-5)


def test_long_sequences_go_without_a_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    u, (x, c) = student(), example()
    kept, cond = forced(u, x, c, 5)
    expected = u(kept, T, R, cond)
    monkeypatch.setattr("flowmap_far.network.SMALL", 10)
    monkeypatch.setattr("flowmap_far.layout.dense_mask", lambda *args: 1 / 0)
    torch.testing.assert_close(u(kept, T, R, cond), expected, atol=2e-6, rtol=1e-5)


def gradients(spec: Far, replay: bool, history_grad: HistoryGrad = False) -> Mapping[str, Tensor]:
    """Of stage 2's student: distribution matching on a rollout, and a teacher-forced pass."""
    nets = evolve(spec, long=1.0).build(ROLES, device=CPU, dtype=torch.float32)
    u: FarFlowMap = nets["student"]  # type: ignore[assignment]
    shake(u, 1)
    shake(nets["critic"], 2)  # type: ignore[arg-type]
    rng, shared = Rng.seeded(0), Shared()
    matching = DistributionMatching(FlowMapBackwardSimulation((4,), replay=replay, history_grad=history_grad))
    first = matching(nets, batch(), rng.fork(0), shared)
    second = FlowMapMatching(Triangle())(nets, batch(), rng.fork(2), shared)
    (first.value + second.value).backward()
    return {name: p.grad.clone() for name, p in u.trained().items() if p.grad is not None}


@pytest.mark.parametrize("spec", [LORA, FULL], ids=["lora", "full"])
@pytest.mark.parametrize("replay", [False, True])
def test_gradients_under_checkpointing_and_replay_are_those_without(spec: Far, replay: bool) -> None:
    plain = gradients(spec, False)
    again = gradients(evolve(spec, checkpointing=True), replay)
    assert plain.keys() == again.keys()
    assert any("far_patch_embedding" in name for name in plain)
    for name, expected in plain.items():
        torch.testing.assert_close(again[name], expected, atol=1e-7, rtol=2e-5)


def test_replay_alone_leaves_the_gradient() -> None:
    plain, again = gradients(FULL, False), gradients(FULL, True)
    for name, expected in plain.items():
        torch.testing.assert_close(again[name], expected, atol=1e-7, rtol=2e-5)


@pytest.mark.parametrize("window", [None, Window(1, 2)], ids=str)
def test_a_gradient_through_a_history_that_is_written_again_is_that_through_one_that_is_held(
    window: Window | None,
) -> None:
    """Compressed chunks, and dropped ones, in it."""
    spec = evolve(FULL, full=2, partition=(1, 1, 2, 1, 2), window=window)
    held, again = gradients(spec, False, True), gradients(evolve(spec, checkpointing=True), True, True)
    for name, expected in held.items():
        torch.testing.assert_close(again[name], expected, atol=1e-7, rtol=2e-5)
    without = gradients(spec, False)
    assert not torch.allclose(held["far_patch_embedding.weight"], without["far_patch_embedding.weight"], rtol=1e-2)


def test_where_nothing_is_compressed_one_call_has_that_gradient_too() -> None:
    spec = evolve(FULL, full=5)
    held, packed = gradients(spec, False, True), gradients(spec, False, "packed")
    for name, expected in held.items():
        torch.testing.assert_close(packed[name], expected, atol=1e-6, rtol=5e-5)
    x, c = example()
    assert student().packed(x, c) is None


def test_adapters_share_one_base_and_the_compressed_embedding_is_the_students_alone() -> None:
    nets: Any = LORA.build(ROLES, device=CPU, dtype=torch.bfloat16)
    assert len({id(u.net) for u in nets.values()}) == 1
    names = set(nets["student"].trained())
    assert {"far_patch_embedding.weight", "far_patch_embedding.bias"} < names
    assert all("far_patch" not in name for name in nets["critic"].trained())
    assert {p.dtype for p in nets["student"].trained().values()} == {torch.float32}
    assert all(p.requires_grad for p in nets["student"].trained().values())
    nets["teacher"].thaw()  # peft touches every parameter's requires_grad
    assert all(p.requires_grad for p in nets["student"].trained().values())


def test_more_frames_than_positions_are_refused_before_work() -> None:
    u = student()
    with pytest.raises(ValueError, match="70 latent frames: this network has rotary positions for at most 64"):
        u.chunks(70)
    x, c = example(frames=1)
    memory = torch.zeros(3, 64 * 4, 2, 12)
    late = Cache((Piece(COMPRESSED, 0, 0, 64),), ([(memory, memory)] * 2,), ())
    with pytest.raises(ValueError, match="65 latent frames"):
        u(x, T, R, c, late)


def test_a_history_that_does_not_fit_is_refused() -> None:
    u, (x, c) = student(), example()
    with pytest.raises(ValueError, match="history of 2 frames ends inside a chunk"):
        u(x[:, :4], T, R, {**c, "history": x[:, :2]})
    with pytest.raises(ValueError, match="z has 3 frames"):
        u(x[:, :3], T, R, {**c, "history": x[:, :6]})
    with pytest.raises(ValueError, match="must have 4 to 5"):
        u(x[:, :6], T, R, {**c, "history": x[:, :6]})
    with pytest.raises(ValueError, match=r"given \['image'\] in its condition"):
        u(x[:, :1], T, R, {**c, "image": c["text"]})
    cache = u.extend(None, x[:, :1], c)
    with pytest.raises(ValueError, match="a history in the condition and one in the cache"):
        u(x[:, :4], T, R, {**c, "history": x[:, :1]}, cache)
    with pytest.raises(ValueError, match="the cache is of another batch or size"):
        u(x[:1, :1], T[:1], R[:1], {"text": c["text"][:1]}, cache)
    with pytest.raises(ValueError, match="the cache is of another batch or size"):
        u(example(side=12)[0][:, :1], T, R, c, cache)


def test_sizes_that_do_not_fit_are_refused() -> None:
    u, (x, c) = student(), example()
    with pytest.raises(ValueError, match="0 latent frames"):
        u.chunks(0)
    with pytest.raises(ValueError, match="7 × 8: both must be multiples of 2"):
        u(x[:, :1, :, :7], T, R, c)
    with pytest.raises(ValueError, match="2 × 2: must be at least 4 × 4"):
        sample(u, x[..., :2, :2], c, 1)
    with pytest.raises(ValueError, match="20 positions: must have at most text_length, 16"):
        u(x[:, :1], T, R, {"text": torch.zeros(3, 20, 16)})
