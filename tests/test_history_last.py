"""Noisy context without a call: a chunk is remembered by the keys and values of the call that made it."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from attrs import evolve
from flowmap_digits import TINY_WAN
from flowmap_digits.data import MovingDigits
from flowmap_far import Far
from flowmap_wan21 import Wan21
from torch import Tensor

from flowmap import AdamW, Recipe, Rng, Stage, TensorData, Window, distill, load, sample
from flowmap._types import Cache, Cond, Latent, Time
from flowmap.evaluation import card
from flowmap.experts import TwoExperts
from flowmap.guidance import Guided
from flowmap.methods import anyflow
from flowmap.model import Recorded, Sampling
from flowmap.planning import Machine, plan
from flowmap.recipe import RecipeError
from flowmap.rollout import (
    ConsistencySimulation,
    FlowMapBackwardSimulation,
    consistency_step,
    euler_step,
    generate,
    walk,
)
from flowmap.times import euler_grid
from flowmap.training.loop import Trainer
from tests.chain import Chain, drawn
from tests.methods.test_costs import ROLES
from tests.planning.test_plan import SIZED
from tests.planning.test_plan import spec as small
from tests.test_history_grad import gradients
from tests.test_planted_defects import planted

CPU = torch.device("cpu")
SIZES = (1, 2, 1, 1)


class Recording(Chain):
    """It undoes 1 - t of what its last call was given, and so remembers what `extend_noisy` would."""

    def __init__(self, *given: float, **named: float) -> None:
        super().__init__(*given, **named)
        self.seen: list[tuple[Latent, Tensor]] = []
        self.written = 0

    def recording(self, cache: Cache) -> Recorded:
        return Recorded(cache)

    def extend(self, cache: Cache, x: Latent, cond: Cond) -> Cache:
        self.written += 1
        return super().extend(cache, x, cond)

    def forward(self, z: Latent, t: Time, r: Time, cond: Cond, cache: Cache = None) -> Latent:
        record, cache = (cache, cache.before) if isinstance(cache, Recorded) else (None, cache)
        u: Latent = super().forward(z, t, r, cond, cache)
        if record is not None:
            self.seen.append((z.detach(), t))
            left = (1 - t.to(z)).reshape(-1, *(1,) * (z.ndim - 1))
            record.after = Chain.extend(self, record.before, z.detach() / left, cond).detach()
        return u


# ------------------------------------------------------------------ which state, which time
def test_a_chunk_is_seen_as_it_went_into_its_last_jump() -> None:
    """z at t_{N-1} on its own way, of the exact map x^k and the chunk's own noise; no call but the jumps."""
    u, noise = Recording(), drawn(64, 3)
    x = sample(u, noise, {}, 4, history_noise="last")
    assert len(u.seen) == 3 and not u.written
    first, t = u.seen[0]
    assert bool((t == 0.25).all())
    own = 0.75 * noise[:, :1] + 0.25 * noise[:, :1]  # of N(0, 1) the map is z_t = √((1 - t)² + t²) ε
    scale = (0.75**2 + 0.25**2) ** 0.5
    torch.testing.assert_close(first, scale * own, rtol=0, atol=1e-6)
    torch.testing.assert_close(x[:, :1], noise[:, :1], rtol=0, atol=1e-6)


def test_in_a_causal_gaussian_world_a_chunk_follows_what_was_kept() -> None:
    """x² = .8 √((1 - t)² + t²) / (1 - t) x¹ + .6 ε², of x¹ at t: no noise of its own, as re-noising would have."""
    noise, n = drawn(200_000, 2), 2
    x = walk(Recording(), noise, {}, euler_grid(n), Rng.seeded(0), history_noise="last").detach()[:, :, 0, 0, 0]
    read = 0.8 * 2**0.5
    wanted = torch.tensor([[1.0, read], [read, read**2 + 0.36]], dtype=torch.float64)
    torch.testing.assert_close(torch.cov(x.T), wanted, atol=0.02, rtol=0)


def test_with_ever_later_last_times_it_is_the_plain_form() -> None:
    plain = walk(Recording(), drawn(32, 4), {}, euler_grid(2), Rng.seeded(0))
    found = []
    for last in (0.1, 1e-2, 1e-6):
        grid = torch.tensor([1.0, 0.5, last, 0.0])
        x = walk(Recording(), drawn(32, 4), {}, grid, Rng.seeded(0), history_noise="last")
        found.append(float((x - plain).abs().max().detach()))
    assert found[0] > 1e-2 > found[1] > found[2] and found[2] < 1e-4


@pytest.mark.parametrize("chunks", [1, 2, 5])
@pytest.mark.parametrize("step", [euler_step, consistency_step], ids=["euler", "consistency"])
def test_a_chunk_takes_one_call_less(chunks: int, step: Callable[..., Latent]) -> None:
    """N each, where the plain form has one more for each chunk that is followed by another; Causal-rCM, section 3.3."""
    counts = []
    for how in (0.0, "last"):
        u, asked = Recording(), []
        u.register_forward_hook(lambda *_, asked=asked: asked.append(1))
        sample(u, drawn(2, chunks), {}, 3, step=step, history_noise=how)  # type: ignore[arg-type]
        counts.append(len(asked) + u.written)
    assert counts == [3 * chunks + chunks - 1, 3 * chunks]


def test_chunks_that_are_given_are_remembered_clean() -> None:
    u, noise = Recording(), drawn(8, 4)
    x = sample(u, noise, {}, 2, context=noise[:, :2], history_noise="last")
    assert u.written == 2 and len(u.seen) == 2 and torch.equal(x[:, :2], noise[:, :2])
    torch.testing.assert_close(x[:, 2:3], sample(Chain(), noise, {}, 2, context=noise[:, :2])[:, 2:3])


# ------------------------------------------------------------------ training as in sampling
@pytest.mark.parametrize("replay", [False, True])
def test_a_rollout_remembers_what_a_sample_of_its_budget_does(replay: bool) -> None:
    """Whatever step it is collapsed to: by the exact map all are the walk of 8 steps, whose last begins at 1 / 8."""
    rollout = FlowMapBackwardSimulation((8,), shift=1.0, history_noise="last", replay=replay)
    noise, calls = drawn(6, 4), set()
    wanted = sample(Recording(), noise, {}, 8, history_noise="last")
    for k in range(16):
        u, asked = Recording(), []
        u.register_forward_hook(lambda *_, asked=asked: asked.append(1))
        x = rollout(u, noise, {}, Rng.seeded(k))
        torch.testing.assert_close(x.detach(), wanted, rtol=0, atol=1e-6)
        assert all(bool((t == 0.125).all()) for _, t in u.seen) and not u.written
        calls.add(len(asked) // 4)
    assert calls == {2, 3, 4}  # 1 -> t_i -> t_{i+1} -> 1/8 -> 0; fewer where some of these are one


def test_the_calls_of_a_rollout_are_what_they_are_said_to_be() -> None:
    """4 - 4 / n a chunk, the mean over steps; of n = 1 one."""
    for n in (1, 2, 4, 8):
        found = []
        for k in range(400):
            u, asked = Recording(), []
            u.register_forward_hook(lambda *_, asked=asked: asked.append(1))
            FlowMapBackwardSimulation((n,), shift=1.0, history_noise="last")(u, drawn(1, 1), {}, Rng.seeded(k))
            found.append(len(asked))
        assert sum(found) / len(found) == pytest.approx(4 - 4 / n if n > 1 else 1.0, abs=0.1)


def test_of_one_step_a_chunk_is_remembered_clean() -> None:
    """Its only call was given pure noise. Of a list each chunk has its own: (2, 1) keeps the first alone."""
    noise = drawn(6, 4)
    u = Recording()
    assert torch.equal(sample(u, noise, {}, 1, history_noise="last"), sample(Recording(), noise, {}, 1))
    assert u.written == 3 and not u.seen
    u = Recording()
    sample(u, noise, {}, [2, 1], history_noise="last")
    assert u.written == 2 and len(u.seen) == 1
    rollout = FlowMapBackwardSimulation((1,), shift=1.0, history_noise="last")
    assert torch.equal(rollout(Recording(), noise, {}, Rng.seeded(0)), sample(Recording(), noise, {}, 1))


def test_a_replay_has_the_same_gradient_and_none_goes_through_the_history() -> None:
    found = []
    for replay in (False, True):
        u = Recording(keep=0.5, read=0.7)
        x = walk(u, drawn(5, 4), {}, euler_grid(2), Rng.seeded(3), history_noise="last", replay=replay)
        found.append((x.detach(), gradients(u, (x**2).sum())))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=0, atol=1e-12)
    for name, g in found[0][1].items():
        torch.testing.assert_close(found[1][1][name], g, rtol=1e-10, atol=1e-10)
    assert float(found[0][1]["write"].abs()) == 0.0 and float(found[0][1]["std"].abs()) > 0.1


# ------------------------------------------------------------------ FAR
def far(full: int = 4, sizes: tuple[int, ...] = SIZES) -> tuple[Far, Any, Latent, Cond]:
    spec = evolve(Far().tiny(), partition=sizes, full=full, long=1.0)
    u = spec.build(frozenset({"student"}), device=CPU, dtype=torch.float32)["student"]
    with torch.no_grad():
        for k, p in enumerate(u.parameters()):
            p.add_(0.02 * Rng.seeded(k).noise_like(p))
    x, c = spec.example(2)
    return spec, u, Rng.seeded(3).noise_like(x[:, :1].expand(-1, sum(sizes), *x.shape[2:])), c


def by_hand(u: Any, noise: Latent, c: Cond, grid: Tensor, window: Window | None = None) -> tuple[Latent, list[Cache]]:
    """A call more a chunk: its last call's own input encoded at that call's own (t, r), after the same history."""
    cache, made, caches, embed = None, [], [], u.embed
    for z in noise.split(u.chunks(noise.shape[1]), dim=1):
        for t, r in pairwise(grid):
            entered, at = z, (t.expand(len(z)), r.expand(len(z)))
            z = u.jump(z, *at, c, cache)
        made.append(z)
        if len(made) < len(u.chunks(noise.shape[1])):
            u.embed = lambda t, _, r=at[1]: embed(t, r)
            try:
                cache = u.extend_noisy(cache, entered, at[0], c)
            finally:
                del u.embed
            caches.append(cache)
    return torch.cat(made, 1), caches


@pytest.mark.parametrize("window", [None, Window(1, 2), Window(1, 2, int8=True)], ids=["all", "window", "bytes"])
@torch.no_grad()
def test_far_keeps_what_encoding_its_last_input_at_its_time_would_give(window: Window | None) -> None:
    """Keys and values of every layer, and so the video; a window drops and turns them as it does others."""
    _, u, noise, c = far(full=5, sizes=(1, 1, 2, 1, 1))
    if window is not None:
        u.bound(window)
    grid = torch.tensor([1.0, 0.7, 0.4, 0.0])
    wanted, caches = by_hand(u, noise, c, grid)
    kept: list[Recorded] = []
    plain = u.recording
    u.recording = lambda cache: kept.append(plain(cache)) or kept[-1]
    x = walk(u, noise, c, grid, Rng.seeded(0), history_noise="last")
    del u.recording
    torch.testing.assert_close(x, wanted, rtol=0, atol=1e-5)
    for mine, theirs in zip(kept, caches, strict=False):
        assert mine.after.pieces == theirs.pieces and mine.after.frames == theirs.frames
        for piece, other in zip(mine.after.memory, theirs.memory, strict=True):
            for layer in range(len(piece)):
                for a, b in zip(piece[layer], other[layer], strict=True):
                    torch.testing.assert_close(a, b, rtol=0, atol=2e-2 if window and window.int8 else 1e-5)
    if window is None or not window.int8:
        clean = walk(u, noise, c, grid, Rng.seeded(0))
        assert float((x - clean)[:, 1:].abs().max()) > 1e-3 and torch.equal(x[:, :1], clean[:, :1])


@torch.no_grad()
def test_by_euler_steps_that_is_the_chunk_at_its_time_as_extend_noisy_has_it() -> None:
    _, u, noise, c = far()
    grid, cache, made = torch.tensor([1.0, 0.5, 0.0]), None, []
    for z in noise.split(SIZES, dim=1):
        for t, r in pairwise(grid):
            entered = z
            z = euler_step(u, z, t.expand(2), r.expand(2), c, cache, Rng.seeded(0))
        made.append(z)
        cache = u.extend_noisy(cache, entered, torch.full((2,), 0.5), c) if len(made) < 4 else None
    x = walk(u, noise, c, grid, Rng.seeded(0), step=euler_step, history_noise="last")
    torch.testing.assert_close(x, torch.cat(made, 1), rtol=0, atol=1e-5)


def test_where_chunks_are_compressed_it_is_refused_before_the_first_call() -> None:
    """Two at full resolution: the second compresses the first, and is encoded anew; nothing is asked of the last."""
    _, u, noise, c = far(full=2)
    u.register_forward_pre_hook(lambda *_: pytest.fail("it was called"))
    told = r"last 2 chunks at full resolution \(Far.full\).* 5 latent frames has 4, \(1, 2, 1, 1\).*: must be a number"
    with pytest.raises(
        ValueError, match=f"history_noise = 'last': this FarFlowMap has the {told}, or Far.full at least 4"
    ):
        sample(u, noise, c, 2, history_noise="last")
    _, u, noise, c = far(full=2)
    with pytest.raises(ValueError, match=r"FarFlowMap cannot remember chunk 1, counted from 0, by the call that made"):
        [*generate(u, noise.split(SIZES, dim=1), c, euler_grid(2), None, history_noise="last")]  # of no known end
    sample(u, noise, c, [2, 1], history_noise="last")  # those of one step are encoded
    sample(u, noise, c, 2, context=noise[:, :4], history_noise="last")  # none is followed by another
    _, u, noise, c = far(full=2, sizes=(1, 2))
    assert sample(u, noise, c, 2, history_noise="last").isfinite().all()


def test_what_is_kept_has_no_graph_and_nothing_else_s_memory() -> None:
    _, u, noise, c = far()
    record = u.recording(None)
    t = torch.full((2,), 0.5)
    u.requires_grad_(True)
    out = u(noise[:, :1], t, t / 2, c, record)
    assert out.requires_grad
    for k, v in record.after.memory[0]:
        assert not k.requires_grad and not v.requires_grad
        assert k.untyped_storage().nbytes() == k.nbytes


@pytest.mark.parametrize(
    "sizes, full, window", [((1, 1, 1, 1), 3, None), ((1,) * 5, 5, None), ((1,) * 7, 4, (1, 2)), ((1,) * 7, 5, (1, 2))]
)
@torch.no_grad()
def test_what_is_refused_is_what_would_fail(sizes: tuple[int, ...], full: int, window: tuple[int, int] | None) -> None:
    """Of every number of frames, with and without a window."""
    _, u, noise, c = far(full, sizes[:full])
    if window is not None:
        u.bound(Window(*window))
    noise = Rng.seeded(0).noise_like(noise[:1, :1].expand(-1, len(sizes), -1, -1, -1))
    c = {"text": c["text"][:1]}
    for frames in range(2, len(sizes) + 1):
        chunks = noise[:, :frames].split(1, dim=1)
        try:
            [*generate(u, chunks, c, euler_grid(2), None, history_noise="last")]
            works = True
        except ValueError:
            works = False
        assert (u.unrecorded(frames) is None) is works, frames


# ------------------------------------------------------------------ two experts
def test_each_of_two_experts_remembers_what_its_own_last_call_was_given() -> None:
    """x² = s ε² + m_l (1 - s (1 - b) / σ_b) + m_h s (1 - b) / σ_b: each expert's mean is of x¹ as it saw it last, here
    at .75 and at .25; σ_t² = (1 - t)² s² + t²."""
    both, noise, b, s = TwoExperts(Recording(), Recording(), 0.5), drawn(64, 2), 0.5, 0.6
    x = sample(both, noise, {}, 4, history_noise="last").detach()
    high, low = both.high, both.low
    assert isinstance(high, Recording) and isinstance(low, Recording)
    assert not high.written and not low.written
    assert [float(t[0]) for _, t in high.seen] == [0.75] * 2 and [float(t[0]) for _, t in low.seen] == [0.25] * 2
    first = noise[:, :1]  # of N(0, 1) the map is z_t = √((1 - t)² + t²) ε, and what is left of it z_t / (1 - t)
    m_h, m_l = (0.8 * ((1 - t) ** 2 + t**2) ** 0.5 / (1 - t) * first for t in (0.75, 0.25))
    part = s * (1 - b) / ((1 - b) ** 2 * s**2 + b**2) ** 0.5
    torch.testing.assert_close(x[:, 1:], s * noise[:, 1:] + (1 - part) * m_l + part * m_h, rtol=0, atol=1e-6)


def test_two_experts_remember_clean_where_the_high_one_is_given_noise_alone() -> None:
    both, noise = TwoExperts(Recording(), Recording(), 0.5), drawn(8, 3)
    x = sample(both, noise, {}, grid=torch.tensor([1.0, 0.5, 0.25, 0.0]), history_noise="last")
    assert torch.equal(x, sample(both, noise, {}, grid=torch.tensor([1.0, 0.5, 0.25, 0.0])))
    assert both.high.written == both.low.written == 4
    with pytest.raises(
        ValueError, match="student is two experts, and the high one would remember chunks at other times"
    ):
        FlowMapBackwardSimulation((4,), history_noise="last")(both, noise, {}, Rng.seeded(0))


@torch.no_grad()
def test_two_experts_of_far_keep_what_each_would_encode() -> None:
    """The video is that of a walk by hand, in which each expert encodes the input of its own last call."""
    _, high, noise, c = far(full=4)
    _, low, *_ = far(full=4)
    low.load_state_dict({name: 0.9 * value for name, value in low.state_dict().items()})
    grid, past, made = torch.tensor([1.0, 0.7, 0.5, 0.0]), (None, None), []
    for z in noise.split(SIZES, dim=1):
        z1 = high.jump(z, *(grid[i : i + 1].expand(2) for i in (0, 1)), c, past[0])
        keeps = high.recording(past[0]), low.recording(past[1])
        z2 = high.jump(z1, *(grid[i : i + 1].expand(2) for i in (1, 2)), c, keeps[0])
        made.append(low.jump(z2, *(grid[i : i + 1].expand(2) for i in (2, 3)), c, keeps[1]))
        past = keeps[0].after, keeps[1].after
    x = walk(TwoExperts(high, low, 0.5), noise, c, grid, None, history_noise="last")
    torch.testing.assert_close(x, torch.cat(made, 1), rtol=0, atol=1e-5)
    _, high, *_ = far(full=2)
    with pytest.raises(ValueError, match="last 2 chunks at full resolution"):
        walk(TwoExperts(high, low, 0.5), noise, c, grid, None, history_noise="last")


# ------------------------------------------------------------------ who can, and how it is said
def test_a_recipe_that_cannot_is_refused_before_training(tmp_path: Path) -> None:
    """Of a network that keeps nothing before any is built; of one that compresses with a sample of the data."""
    method = anyflow.on_policy(steps=(2,), history_noise="last")
    stages = Stage(anyflow.forward(guidance=1.0), 1, batch=2), Stage(method, 1, batch=2)
    whole = Recipe(Wan21(TINY_WAN, lora=None, text_tokens=12), stages, data=MovingDigits(count=2))
    (said,) = whole.wrong()
    assert re.fullmatch(
        r"stage 1 has history_noise = 'last', and the student, Wan21, .*, keeps nothing of the call that makes a "
        "chunk: must be a number",
        said,
    )
    spec = Far(TINY_WAN, lora=None, text_tokens=12, shift=1.0, partition=(1,) * 5, full=3)
    recipe = Recipe(spec, stages, data=MovingDigits(count=2))
    assert not recipe.wrong()
    told = "stage 1 has history_noise = 'last': this FarFlowMap has the last 3 .* 5 latent frames has 5, .* at least 5"
    with pytest.raises(RecipeError, match=told):
        distill(recipe, out=tmp_path / "run", device="cpu", previews=None)
    assert not [*(tmp_path / "run").glob("checkpoints/*")]


def test_wrappers_hand_it_on_and_others_are_refused() -> None:
    u, noise = Recording(), drawn(4, 3)
    both = sample(Guided(u, 1.0, {}), noise, {}, 2, history_noise="last")
    torch.testing.assert_close(both, sample(u, noise, {}, 2, history_noise="last"))
    for other in (Chain(), TwoExperts(Recording(), Chain(), 0.5)):
        with pytest.raises(ValueError, match="keeps nothing of the call that makes a chunk: must be a number"):
            sample(other, noise, {}, 4, history_noise="last")
    with pytest.raises(ValueError, match=r"history_noise = 'last': must be a number with history_grad = True"):
        FlowMapBackwardSimulation(history_noise="last", history_grad=True)
    with pytest.raises(ValueError, match=r"history_noise = 'first': must be 'last'"):
        FlowMapBackwardSimulation(history_noise="first")  # type: ignore[arg-type]
    with pytest.raises(
        ValueError, match=r"history_noise = 'last': must be a number, such as 0.625, at which a sample's last"
    ):
        ConsistencySimulation(history_noise="last")
    with pytest.raises(ValueError, match=r"history_noise = 'last' with history_grad: .* has no graph"):
        walk(u, noise, {}, euler_grid(2), None, history_noise="last", history_grad=True)


def test_guidance_of_two_branches_keeps_both() -> None:
    _, u, noise, c = far()
    null = {"text": torch.zeros_like(c["text"][:1])}
    guided = Guided(u, 2.0, null)
    x = sample(guided, noise, c, 2, step=euler_step, history_noise="last")
    assert x.isfinite().all() and not torch.allclose(x, sample(guided, noise, c, 2, step=euler_step), atol=1e-4)


@pytest.mark.parametrize("replay", [False, True])
def test_it_trains(replay: bool) -> None:
    spec, *_ = far()
    method = anyflow.on_policy(steps=(4,), history_noise="last", replay=replay)
    nets = spec.build(ROLES, device=CPU, dtype=torch.float32)
    x, c = spec.example(2)
    pool = TensorData(x[:, :5], c, {"text": torch.zeros_like(c["text"][:1])})
    before = torch.cat([p.detach().flatten() for p in nets["student"].trained().values()])
    loop = Trainer(nets, Stage(method, 2, batch=2, ema=None, optimizer=AdamW(1e-3)), pool)
    logs = loop.read(loop.step(0), 0)
    assert logs["student/skipped"] == 0.0
    assert not torch.equal(before, torch.cat([p.detach().flatten() for p in nets["student"].trained().values()]))


def test_a_student_is_sampled_with_what_it_was_made_with(tmp_path: Path) -> None:
    spec = Far(TINY_WAN, lora=None, text_tokens=12, shift=1.0, partition=(1,) * 5, full=5, long=1.0)
    stage = Stage(anyflow.on_policy(steps=(2,), history_noise="last"), 1, batch=2, optimizer=AdamW(1e-4), ema=None)
    recipe = Recipe(spec, (stage,), data=MovingDigits(count=2))
    student = distill(recipe, out=tmp_path / "run", device="cpu", previews=None)
    assert card.history_noise(recipe) == "last" == student.history_noise
    directory = tmp_path / "run" / "student"
    assert json.loads((directory / "flowmap.json").read_text())["history_noise"] == "last"
    assert Sampling.of(directory).history_noise == "last"
    loaded = load(directory, device="cpu")
    x, c = torch.zeros(1, 5, 4, 8, 8), {"text": torch.zeros(1, 12, 32)}
    own = sample(loaded, x, c, 2)
    assert torch.equal(own, sample(loaded, x, c, 2, history_noise="last"))
    assert not torch.allclose(own[:, 1:], sample(loaded, x, c, 2, history_noise=0.0)[:, 1:], atol=1e-6)


def test_a_plan_has_no_calls_for_the_history(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DRAWS", "HARDEST_OF"):
        monkeypatch.setattr(sys.modules[plan.__module__], name, 1)  # all iterations make the same calls
    of = evolve(small(causal=True), partition=(1, 1, 1, 1, 1), full=5, long=1.0)
    parts = []
    for how in (0.0, "last"):
        method = anyflow.on_policy(steps=(2,), history_noise=how, cotrain=0.0)  # type: ignore[arg-type]
        recipe = Recipe(of, (Stage(method, 10, batch=4),), data=SIZED)
        parts.append(plan(recipe, Machine(gpus=1)).stages[0].parts)
    assert parts[0]["history"] > 0 and "history" not in parts[1]
    assert parts[1]["rollout forward"] == pytest.approx(parts[0]["rollout forward"])


# ------------------------------------------------------------------ planted
ROLLOUT, FAR = "flowmap.rollout", "flowmap_far.network"
DEFECTS = [
    ("the first call's input", ROLLOUT, "i not in calls else kept", "i > 0 else kept"),
    ("what was kept before", ROLLOUT, "recorded(kept.after, u, k - 1)", "recorded(kept.before, u, k - 1)"),
    ("a rollout that skips the last step's time", "flowmap.chunked", "grid[-2:-1]", "grid[-1:]"),
    ("an expert that keeps nothing", "flowmap.chunked", "int((times > u.boundary).sum()) - 1", "last"),
    ("experts that have each other's", "flowmap.experts", "else high.after, low.after", "else low.after, high.after"),
]


@pytest.mark.parametrize("module, old, new", [pytest.param(*rest, id=what) for what, *rest in DEFECTS])
def test_a_mistake_is_seen(module: str, old: str, new: str) -> None:
    def all_of_them() -> None:
        test_a_chunk_is_seen_as_it_went_into_its_last_jump()
        test_a_rollout_remembers_what_a_sample_of_its_budget_does(False)
        test_each_of_two_experts_remembers_what_its_own_last_call_was_given()

    with planted(module, old, new), pytest.raises((AssertionError, ValueError)):
        all_of_them()


def test_a_mistake_in_far_is_seen() -> None:
    """Keys that are turned in a window, too, would be turned twice."""
    with planted(FAR, "record is None or self.window is None", "True"), pytest.raises(AssertionError):
        test_far_keeps_what_encoding_its_last_input_at_its_time_would_give(Window(1, 2))
