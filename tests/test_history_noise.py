"""Noisy context: finished chunks are noised again before later ones see them, and the network is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from attrs import evolve
from flowmap_consistency.self_forcing import self_forcing
from flowmap_consistency.self_gradient_forcing import self_gradient_forcing
from flowmap_digits import TINY_WAN
from flowmap_digits.data import MovingDigits
from flowmap_far import Far
from torch import Tensor

from flowmap import AdamW, FlowMap, Recipe, Rng, Stage, distill, load, sample
from flowmap._types import Cache, Cond, Latent, Time
from flowmap.chunked import HISTORY
from flowmap.evaluation import Previews, card, paired
from flowmap.experts import TwoExperts
from flowmap.guidance import Guided
from flowmap.methods import anyflow
from flowmap.model import Sampling
from flowmap.rollout import CHUNK, ConsistencySimulation, FlowMapBackwardSimulation, generate, walk
from flowmap.times import euler_grid
from flowmap.training.loop import Trainer
from tests.chain import Chain, drawn
from tests.methods.test_costs import BATCH, ROLES
from tests.test_history_grad import clip, gradients, toy
from tests.test_planted_defects import planted
from tests.toys import Toy, data

TAU = 0.2
CPU = torch.device("cpu")


# ------------------------------------------------------------------ the equation
class Remembers(Chain):
    """Writes down what it is given to remember, and the time that it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Latent, Tensor]] = []

    def extend_noisy(self, cache: Cache, z: Latent, t: Time, cond: Cond) -> Cache:
        self.seen.append((z, t))
        return super().extend_noisy(cache, z, t, cond)


def test_a_chunk_is_seen_at_its_time_with_noise_of_its_own_and_is_given_out_as_it_is() -> None:
    """(1 - τ) x^k + τ n^k, t = τ exactly, n^k of the chunk's own stream; the first frames are the exact map's."""
    u, noise, rng = Remembers(), drawn(512, 3), Rng.seeded(4)
    x = walk(u, noise, {}, euler_grid(2), rng, history_noise=TAU).detach()
    assert len(u.seen) == 2  # the last is seen by none
    for k, (z, t) in enumerate(u.seen):
        n = rng.fork(CHUNK, k).fork(HISTORY).noise_like(noise[:, k : k + 1])
        torch.testing.assert_close(z, (1 - TAU) * x[:, k : k + 1] + TAU * n, rtol=0, atol=1e-7)
        assert t.dtype == torch.float32 and bool((t == torch.tensor(TAU)).all())
        assert abs(float((n * x[:, k : k + 1]).mean())) < 0.2 and 0.85 < float(n.std()) < 1.15
    torch.testing.assert_close(x[:, :1], noise[:, :1], atol=1e-6, rtol=0)


def test_of_a_causal_gaussian_world_it_adds_the_noise_that_it_must() -> None:
    """A network that undoes (1 - τ) reads x¹ + τ / (1 - τ) n: x² = .8 (x¹ + τ n / (1 - τ)) + .6 ε²."""
    noise, τ = drawn(200_000, 2), 0.4
    x = walk(Chain(), noise, {}, euler_grid(1), Rng.seeded(0), history_noise=τ).detach()[:, :, 0, 0, 0]
    c = torch.cov(x.T)
    wanted = torch.tensor([[1.0, 0.8], [0.8, 1.0 + 0.64 * (τ / (1 - τ)) ** 2]], dtype=torch.float64)
    torch.testing.assert_close(c, wanted, atol=0.02, rtol=0)


@pytest.mark.parametrize("rng", [Rng.seeded(3), None], ids=["shared", "by_noise"])
def test_without_noise_it_is_the_plain_form(rng: Rng | None) -> None:
    u, (z, c) = toy(), clip()
    grid = euler_grid(3)
    plain = walk(u, z, c, grid, rng)
    assert torch.equal(walk(u, z, c, grid, rng, history_noise=0.0), plain)
    near = walk(u, z, c, grid, rng, history_noise=1e-6)
    torch.testing.assert_close(near, plain, rtol=0, atol=1e-4)
    far = walk(u, z, c, grid, rng, history_noise=TAU)
    assert torch.equal(far[:, :2], plain[:, :2]) and not torch.allclose(far[:, 2:], plain[:, 2:], atol=1e-3)


def test_a_sample_does_not_depend_on_its_batch() -> None:
    u, (z, c) = toy(), clip()
    whole = sample(u, z, c, 2, history_noise=TAU)
    alone = sample(u, z[1:2], {"text": c["text"][1:2]}, 2, history_noise=TAU)
    torch.testing.assert_close(alone, whole[1:2], rtol=0, atol=1e-10)


def test_given_chunks_are_seen_noised_too_and_come_back_as_they_are() -> None:
    u, noise = Remembers(), drawn(8, 3)
    x = sample(u, noise, {}, 2, context=noise[:, :2], history_noise=TAU)
    assert torch.equal(x[:, :2], noise[:, :2]) and len(u.seen) == 2
    assert not torch.allclose(u.seen[0][0], noise[:, :1], atol=1e-2)


def test_what_it_costs() -> None:
    """K - 1 chunks are remembered, N jumps each: nothing more than without."""
    u, asked = Remembers(), []
    u.register_forward_hook(lambda *_: asked.append(1))
    sample(u, drawn(2, 4), {}, 3, history_noise=TAU)
    assert (len(asked), len(u.seen)) == (12, 3)


# ------------------------------------------------------------------ gradients
@pytest.mark.parametrize("history_grad", [False, True])
def test_a_replay_sees_the_same_noise(history_grad: bool) -> None:
    found = []
    for replay in (False, True):
        u, noise = Chain(keep=0.5, read=0.7), drawn(5, 4)
        how: dict[str, Any] = {"history_grad": history_grad, "history_noise": TAU, "replay": replay}
        x = walk(u, noise, {}, euler_grid(2), Rng.seeded(3), **how)
        found.append((x.detach(), gradients(u, (x**2).sum())))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=0, atol=1e-12)
    for name, g in found[0][1].items():
        torch.testing.assert_close(found[1][1][name], g, rtol=1e-10, atol=1e-10)
    assert (float(found[0][1]["write"].abs()) > 0.1) == history_grad


# ------------------------------------------------------------------ backbones
def far(**changes: Any) -> tuple[Far, FlowMap, Latent, Cond]:
    spec = evolve(Far().tiny(), partition=(1, 2, 1, 1), full=2, long=1.0, **changes)
    u = spec.build(frozenset({"student"}), device=CPU, dtype=torch.float32)["student"]
    x, c = spec.example(2)
    return spec, u, x[:, :5], c


@torch.no_grad()
def test_far_remembers_noisy_chunks_compressed_ones_too() -> None:
    """At t = 0 it is `extend`; else a chunk is encoded at its own t, and encoded anew as it was."""
    _, u, x, c = far()
    parts, t = x.split((1, 2, 1, 1), dim=1), torch.full((2,), TAU)
    plain = noisy = none = None
    for part in parts[:3]:
        plain, none = u.extend(plain, part, c), u.extend_noisy(none, part, torch.zeros(2), c)
        noisy = u.extend_noisy(noisy, part, t, c)
    assert plain is not None and none is not None and noisy is not None
    out = [u(parts[3], t, t / 2, c, cache) for cache in (plain, none, noisy)]
    assert torch.equal(out[0], out[1]) and not torch.allclose(out[0], out[2], atol=1e-5)
    assert all(torch.equal(a, b) for a, b in zip(noisy.recent, plain.recent, strict=True))


def test_wrappers_hand_it_on_and_others_say_that_they_cannot() -> None:
    u, (z, c) = toy(), clip()
    t = torch.full((3,), TAU)
    null = {"text": torch.zeros(1, 3, dtype=torch.float64)}
    both = Guided(u, 3.0, null).extend_noisy(None, z[:, :2], t, c)
    one, other = u.extend_noisy(None, z[:, :2], t, c), u.extend_noisy(None, z[:, :2], t, {"text": 0 * c["text"]})
    torch.testing.assert_close(both[0], torch.cat([one[0], other[0]]))
    pair = TwoExperts(u, u, 0.5).extend_noisy(None, z[:, :2], t, c)
    assert torch.equal(pair[0][0], one[0]) and torch.equal(pair[1][1], one[1])

    class Clean(Chain):
        extend_noisy = FlowMap.extend_noisy

    with pytest.raises(ValueError, match="history_noise: this Clean remembers clean chunks alone: must be 0"):
        sample(Clean(), drawn(2, 2), {}, 1, history_noise=TAU)


# ------------------------------------------------------------------ training, and sampling as it was trained
@pytest.mark.parametrize(
    "method",
    [
        anyflow.on_policy(steps=(2,), history_noise=TAU),
        self_forcing(history_noise=TAU),
        self_gradient_forcing(history_noise=TAU, replay=True),
    ],
    ids=lambda m: m.name,
)
def test_it_trains(method: Any) -> None:
    spec, ended = Toy(causal=True), []
    for made in (method, evolve_noise(method, 0.0)):
        nets = spec.build(ROLES, device=CPU, dtype=torch.float32)
        loop = Trainer(nets, Stage(made, 2, batch=BATCH), data(16, spec))
        loop.step(0)
        ended.append(torch.cat([p.detach().flatten() for p in nets["student"].trained().values()]))
    assert not torch.equal(*ended)


def evolve_noise(method: Any, τ: float) -> Any:
    """The same with another noise in every rollout."""
    updates = []
    for update in method.updates:
        terms = [
            (w, evolve(o, rollout=evolve(o.rollout, history_noise=τ))) if getattr(o, "rollout", None) else (w, o)
            for w, o in update.terms
        ]
        updates.append(evolve(update, terms=tuple(terms)))
    return evolve(method, updates=tuple(updates))


def test_a_student_is_sampled_with_what_it_was_made_with(tmp_path: Path) -> None:
    """Out of `distill`, out of its directory, and as a backbone; a rollout says its own."""
    spec = Far(TINY_WAN, lora=None, text_tokens=12, shift=1.0, partition=(1,) * 5, long=1.0)
    stage = Stage(anyflow.on_policy(steps=(2,), history_noise=TAU), 1, batch=2, optimizer=AdamW(1e-4), ema=None)
    recipe = Recipe(spec, (stage,), data=MovingDigits(count=2))
    student = distill(recipe, out=tmp_path / "run", device="cpu", previews=None)
    x, c = spec.example(1)[0].new_zeros(1, 5, 4, 8, 8), {"text": torch.zeros(1, 12, 32)}
    assert card.history_noise(recipe) == TAU == student.history_noise
    directory = tmp_path / "run" / "student"
    assert json.loads((directory / "flowmap.json").read_text())["history_noise"] == TAU
    assert Sampling.of(directory).history_noise == TAU
    loaded = load(directory, device="cpu")
    assert loaded.history_noise == TAU
    own = sample(loaded, x, c, 2)
    assert torch.equal(own, sample(loaded, x, c, 2, history_noise=TAU))
    assert not torch.allclose(own[:, 1:], sample(loaded, x, c, 2, history_noise=0.0)[:, 1:], atol=1e-6)
    stage = Stage(anyflow.on_policy(steps=(2,)), 1, batch=2)
    assert card.history_noise(Recipe(spec, (stage,))) == 0.0
    assert Sampling.of(tmp_path).history_noise == 0.0


def test_previews_are_sampled_as_the_student_has_learnt_so_far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clean in stage 0, which has clean history; noised in stage 1; of the teacher nothing is said."""
    asked: list[float | None] = []

    def watched(*given: Any, **named: Any) -> Any:
        asked.append(named.get("history_noise"))
        return sample(*given, **named)

    monkeypatch.setattr(paired, "sample", watched)
    spec = Far(TINY_WAN, lora=None, text_tokens=12, shift=1.0, partition=(1,) * 5, long=1.0)
    methods = anyflow.forward(guidance=1.0), anyflow.on_policy(steps=(2,), history_noise=TAU)
    stages = tuple(Stage(m, 1, batch=2, optimizer=AdamW(1e-4), ema=None) for m in methods)
    previews = Previews(steps=(1,), count=1, seeds=(0,), reference=2)
    distill(Recipe(spec, stages, data=MovingDigits(count=2)), out=tmp_path / "run", device="cpu", previews=previews)
    assert list(dict.fromkeys(asked)) == [None, 0.0, TAU]


def test_what_cannot_be_is_said() -> None:
    for kind in (FlowMapBackwardSimulation, ConsistencySimulation):
        with pytest.raises(ValueError, match=r"history_noise = -0.1: must be >= 0"):
            kind(history_noise=-0.1)
        with pytest.raises(ValueError, match=r"history_noise = 1.0: must be below 1, which is pure noise"):
            kind(history_noise=1.0)
        with pytest.raises(ValueError, match=r"history_noise = 0.2: must be 0 with history_grad = 'packed'"):
            kind(history_noise=TAU, history_grad="packed")
    with pytest.raises(ValueError, match=r"history_grad = 'packed' with history_noise = 0\.2: must be 0"):
        walk(Chain(), drawn(2, 2), {}, euler_grid(2), Rng.seeded(0), history_grad="packed", history_noise=TAU)


# ------------------------------------------------------------------ planted
CHUNKED, ROLLOUT = "flowmap.chunked", "flowmap.rollout"
DEFECTS = [
    ("the network is not told", ROLLOUT, "x, time(x, τ), cond)", "x, time(x, 0.0), cond)"),
    ("frames are given out noised", ROLLOUT, "        yield x\n", "        yield seen_later(x, τ, stream(z, k))\n"),
    ("one noise for all chunks", ROLLOUT, "seen_later(x, τ, stream(z, k))", "seen_later(x, τ, stream(z, 0))"),
    ("signal kept whole", CHUNKED, "interpolate(x.detach(), rng", "interpolate(x.detach() / (1 - τ), rng"),
]


@pytest.mark.parametrize("module, old, new", [pytest.param(*rest, id=what) for what, *rest in DEFECTS])
def test_a_mistake_is_seen(module: str, old: str, new: str) -> None:
    with planted(module, old, new), pytest.raises(AssertionError):
        test_a_chunk_is_seen_at_its_time_with_noise_of_its_own_and_is_given_out_as_it_is()


def test_a_noise_that_is_drawn_anew_in_a_replay_is_seen() -> None:
    """Noised where it is remembered, from a stream that goes on: the second pass would read another history."""
    old, new = "(*finished, seen_later(x, τ, stream(z, k)))", "(*finished, x.detach())"
    with planted(ROLLOUT, old, new), pytest.raises(AssertionError):
        test_a_chunk_is_seen_at_its_time_with_noise_of_its_own_and_is_given_out_as_it_is()


def test_generate_yields_what_walk_joins() -> None:
    u, noise = Chain(), drawn(4, 3)
    made = [*generate(u, noise.split(1, dim=1), {}, euler_grid(2), None, history_noise=TAU)]
    assert torch.equal(torch.cat(made, 1), walk(u, noise, {}, euler_grid(2), None, history_noise=TAU))
