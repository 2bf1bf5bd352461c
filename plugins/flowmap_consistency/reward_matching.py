"""Reward fine-tuning of a flow map by regression: MeanFlowNFT, arXiv:2607.15273, and MFA, arXiv:2609.37670."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from typing import Literal

import torch
from attrs import field, frozen
from torch import Tensor

from flowmap import Batch, FlowMap, Rng, validators
from flowmap._types import Cond, Latent, Mean, Role, Shared, Time, concat, select
from flowmap.derivative import CentralDifference, Derivative
from flowmap.doing import spent_on
from flowmap.objectives import Equip, Equips, Loss, Networks, nonfinite
from flowmap.path import expand, interpolate
from flowmap.rewards import Scores, Spread, advantages
from flowmap.rollout import sample
from flowmap.times import TimeSampler, Triangle

from .versions import Keeps, Versions

SAMPLES, PAIRS = 0x5A3B1E, 0x9A125
"""Before the number of a sample, of a pair, in the key of its stream."""
LEAST = 1e-5
"""Of a branch's scale."""
FIRST = 0.02
"""The least t: below it a sample is data, and the branches divide by nothing."""


@frozen
class Forms:
    """The loss of u_θ(z, t, r), given the advantage A of the sample and ū = v - (t - r) D_v u_old, v = ε - x:

    "nft", DiffusionNFT (arXiv:2509.16117) in mean velocities, with e = u_old - ū, Δ = u_θ - u_old, ρ = ½ + A / 2 A_max:

        ( ρ |e + βΔ|² + (1 - ρ) |e - βΔ|² ) A_max / β + k |u_θ - u_ref|²,

    "mfa", one signed regression, with A / A_max in [-1, 1] for A:

        A |u_θ - ū|² + γ |u_θ - u_old|² + k |u_θ - u_ref|².

    scaled: as published, in data space: residuals times t, each branch over its own mean absolute residual, and MFA's
    whole over that of u_θ - ū. Without, the minimisers are those of the formulas: u_old + Cov(A/A_max, ū | z) / β, and
    u_old + Cov / (γ + E[A/A_max | z]). clip: A_max. anchor: k. hinge: (m, weight) of max(0, |u_θ| / |u_ref| - 1 - m)².
    """

    form: Literal["nft", "mfa"] = field(default="nft", validator=validators.in_(("nft", "mfa")))
    beta: float = field(default=0.1, validator=validators.gt(0.0))
    gamma: float = field(default=1.1, validator=validators.gt(1.0))
    clip: float = field(default=5.0, validator=validators.gt(0.0))
    anchor: float = field(default=1e-4, validator=validators.ge(0.0))
    hinge: tuple[float, float] = (0.1, 0.0)
    scaled: bool = True

    def __call__(self, u: Latent, old: Latent, ref: Latent, mean: Latent, t: Time, A: Tensor) -> Tensor:
        """[B]; mean: ū. A: clipped already."""
        e, Δ, A = old - mean, u - old, A / self.clip
        if self.form == "nft":
            up, down = (self._branch(e + sign * self.beta * Δ, t) for sign in (1, -1))
            raw = ((0.5 + A / 2) * up + (0.5 - A / 2) * down) * self.clip / self.beta + self.anchor * _mean(u - ref)
        else:
            raw = A * _mean(u - mean) + self.gamma * _mean(Δ) + self.anchor * _mean(u - ref)
            raw = raw * t**2 / self._scale(u - mean, t) if self.scaled else raw
        m, weight = self.hinge
        if weight:
            raw = raw + weight * (u.flatten(1).norm(dim=1) / ref.flatten(1).norm(dim=1) - 1 - m).clamp_min(0) ** 2
        return raw

    def _branch(self, residual: Latent, t: Time) -> Tensor:
        return _mean(residual) * t**2 / self._scale(residual, t) if self.scaled else _mean(residual)

    @staticmethod
    def _scale(residual: Latent, t: Time) -> Tensor:
        return (t * residual.detach().abs().flatten(1).mean(1)).clamp_min(LEAST)


@frozen
class RewardMatching(Equips):
    """An iteration of reward fine-tuning. The old policy makes `number` samples of every prompt of the batch, in one of
    `steps`, without guidance; `scores` judges them, and each one's advantage is against those of its prompt. Then for
    `pairs` draws of (t, r) and ε a sample, u_θ is regressed by `form`, all on one derivative D_v u_old. Nothing of the
    data but their conditions is used.

    Of a student in chunks, x^k is made after x^{<k} and regressed after it: z, v, ū and all three networks are of the
    frames that `teacher_forcing` chooses, each chunk after the sample's own clean ones before it, which no tangent
    moves; each version remembers them with its own weights, θ with a graph. A is of the whole video.

    Old and reference are `Versions` of the student: the start of the stage, and the old one follows the student before
    every iteration but the first, old <- η old + (1 - η) θ, η = min(lag[0] · iteration, lag[1]). An iteration is whole,
    so a stage that is resumed goes on exactly. `micro` of the stage parts prompts; with it the standard deviation of a
    micro-batch is that of those before and of itself.

    Calls a sample and iteration: N F, then `pairs` · (1 G + 1 F + 1 F + 2 F off the diagonal), and one decoding.
    """

    scores: Scores
    form: Forms = Forms()
    number: int = field(default=24, validator=validators.ge(2))
    pairs: int = field(default=4, validator=validators.ge(1))
    steps: tuple[int, ...] = field(default=(4,), validator=validators.min_len(1))
    shift: float = field(default=5.0, validator=validators.gt(0.0))
    times: TimeSampler = Triangle(0.5, 0.25, 5.0)
    derivative: Derivative = CentralDifference(0.005)
    spread: Spread = field(default="batch", validator=validators.in_(("batch", "prompt")))
    agree: bool = False
    lag: tuple[float, float] = (0.001, 0.5)

    from_data = False

    @property
    def needs(self) -> frozenset[Role]:
        return frozenset({"student"})

    @property
    def equips(self) -> Mapping[Role, Equip]:
        return {"student": Keeps()}

    def __call__(self, nets: Networks, batch: Batch, rng: Rng, shared: Shared) -> Loss:
        u = nets["student"]
        if not isinstance(u, Versions):
            raise TypeError(f"the student is a {type(u).__name__} without versions: see `flowmap.objectives.equipped`")
        if u.history_noise:
            raise ValueError(
                f"RewardMatching: the student's history_noise = {u.history_noise!r}: must be 0, of clean chunks, after "
                "which it is regressed"
            )
        self._follow(u, shared.iteration, rng)
        x, cond = self._made(u, batch, rng)
        with torch.no_grad():
            scores = self.scores(x, cond)
            told = scores.unflatten(1, (self.number, len(batch)))
            A = advantages(told, self.scores.weights, shared, self.spread, self.agree).flatten()
            clipped = A.clamp(-self.form.clip, self.form.clip)
        raws, norms = [], []
        for j in range(self.pairs):
            streams = [rng.fork(PAIRS, j, k) for k in range(self.number)]
            raw, norm = self._pair(u, *self._after(u, x, cond, rng.fork(PAIRS, j)), clipped, streams)
            raws.append(raw)
            norms.append(norm)
        raw = torch.stack(raws).mean(0)
        logs = {f"reward/{r.name}": Mean.of(own) for (_, r), own in zip(self.scores.rewards, scores, strict=True)}
        logs |= {"loss": Mean.of(raw), "norm": Mean.of(torch.stack(norms).mean(0)), "silent": Mean.of((A == 0).float())}
        logs["variety"] = Mean.of(x.unflatten(0, (self.number, len(batch))).std(0).flatten(1).mean(1))
        return Loss(raw.mean(), logs, nonfinite=nonfinite(student=x, data=A))

    def _follow(self, u: Versions, iteration: int, rng: Rng) -> None:
        """Once an iteration, in its first micro-batch: the old policy is one step behind."""
        if u.at == (key := rng.key[:3]):
            return
        u.at = key
        for name in ("old", "reference") if iteration == 0 else ():
            u.follow(name, 0.0)
        if iteration:
            u.follow("old", min(self.lag[0] * iteration, self.lag[1]))

    @torch.no_grad()
    def _made(self, u: Versions, batch: Batch, rng: Rng) -> tuple[Latent, Cond]:
        """`number` samples a prompt of the old policy, [number · n, ...], and their conditions."""
        steps, like = self.steps[rng.randint(len(self.steps))], batch.x
        with u.using("old"), spent_on("samples"):
            made = [
                sample(u, own.noise_like(like), batch.cond, steps, shift=self.shift, rng=own)
                for own in (rng.fork(SAMPLES, k) for k in range(self.number))
            ]
        return torch.cat(made), concat(*[batch.cond] * self.number) if batch.cond else {}

    def _after(self, u: FlowMap, x: Latent, cond: Cond, rng: Rng) -> tuple[Latent, Cond]:
        """The frames of one draw, the same of every sample, and the conditions with those before them."""
        rows = torch.arange(len(x), device=x.device).chunk(self.number)
        parts = [u.teacher_forcing(x[own], select(cond, own), copy(rng)) for own in rows]
        return torch.cat([frames for frames, _ in parts]), concat(*[c for _, c in parts])

    def _pair(self, u: Versions, x: Latent, cond: Cond, A: Tensor, rngs: list[Rng]) -> tuple[Tensor, Tensor]:
        """(the loss, |u_θ| / |u_ref|), each [B], of one draw of (t, r) and ε a sample."""
        n = len(x) // len(rngs)
        drawn = [(*self.times(n, own, x), own.noise_like(x[:n])) for own in rngs]
        t, r, noise = (torch.cat(part) for part in zip(*drawn, strict=True))
        r = torch.where(r < t, r, t.clamp_min(FIRST))
        t = t.clamp_min(FIRST)
        z, v = interpolate(x, noise, t)
        own = u(z, t, r, cond)
        with u.using("old"):
            old, mean = u(z, t, r, cond), v - expand(t - r, v) * self._derivative(u, z, t, r, v, cond)
        with u.using("reference"):
            ref = u(z, t, r, cond)
        norm = own.detach().flatten(1).norm(dim=1) / ref.flatten(1).norm(dim=1).clamp_min(LEAST)
        return self.form(own, old, ref, mean, t, A), norm

    def _derivative(self, u: FlowMap, z: Latent, t: Time, r: Time, v: Latent, cond: Cond) -> Latent:
        """D_v u off the diagonal, where it counts."""
        du, off = torch.zeros_like(v), (t != r).nonzero()[:, 0]
        if len(off):
            with spent_on("derivative"):
                du[off] = self.derivative(u, z[off], t[off], r[off], v[off], select(cond, off)).to(du)
        return du


def _mean(x: Tensor) -> Tensor:
    return x.square().flatten(1).mean(1)
