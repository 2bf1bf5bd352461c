"""Samples against data: the two sides of a GAN whose discriminator is the critic with `Heads`, D(z, t | c)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from attrs import evolve, field, frozen
from torch.nn import functional as F

from flowmap import Batch, FlowMap, Rng, validators
from flowmap._types import Cond, Latent, Mean, Role, Shared, Time, concat
from flowmap.objectives import Equip, Equips, Loss, Networks, Objective, from_data, guides, nonfinite, united, within
from flowmap.path import interpolate
from flowmap.rollout import ConsistencySimulation, Rollout
from flowmap.times import ALL, Diagonal, Span, TimeSampler

from .heads import Heads, Judge


@frozen
class Judged(Equips):
    """An objective of the student's samples, which the critic with `heads` judges at `times`."""

    rollout: Rollout = ConsistencySimulation()
    heads: Heads = Heads()
    times: TimeSampler = Diagonal(shift=5.0)

    @property
    def needs(self) -> frozenset[Role]:
        return frozenset({"student", "critic"})

    @property
    def equips(self) -> Mapping[Role, Equip]:
        return {"critic": self.heads}


@frozen
class Adversarial(Judged):
    """The student's side, non-saturating:

        L = E softplus(-D(y, t | c)),       y = (1 - t) x + t ε,   x = G_θ(ε),

    or y = x where the samples are not `noised`: t is then a mere condition, which makes of D a family of judges.

    ∂L/∂x is taken here and handed on as a constant, loss = L + <sg g, x - sg x>. So the critic keeps no gradient, and
    its graph is gone before the student's own backward pass. 1 G of the critic, beside the rollout.
    """

    noised: bool = True

    from_data = False

    def __call__(self, nets: Networks, batch: Batch, rng: Rng, shared: Shared) -> Loss:
        x = self.rollout(nets["student"], rng.noise_like(batch.x), batch.cond, rng)
        t, _ = self.times(len(x), rng, x)
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            logits = judge(nets).logits(_seen(leaf, t, rng, self.noised), t, batch.cond)
            value = F.softplus(-logits).mean()
            (g,) = torch.autograd.grad(value, leaf)
        logs = {"gan/loss": Mean.of(F.softplus(-logits)), "gan/gradient": Mean.of(g.abs().flatten(1).mean(1) * len(x))}
        return Loss(value.detach() + (g * (x - x.detach())).sum(), logs, nonfinite=nonfinite(student=x, critic=g))


@frozen
class Discrimination(Judged):
    """The critic's side: data x, and the student's samples x̃,

        L = E softplus(-D(y, t | c)) + E softplus(D(ỹ, t | c)) + λ E |D(y, t | c) - D(y + σ n, t | c)|²,   n ~ N(0, 1),

    with y and ỹ made of x and x̃ as in `Adversarial`, at the same t. The last term is the approximate R1 of
    APT, arXiv:2501.08316: with a small σ it is λ σ² E|∇_y D|², without a second backward pass. r1: λ, 0 leaves it out.

    2 G of the critic in one call, 3 with R1, beside a rollout without a graph.
    """

    noised: bool = True
    r1: float = field(default=0.0, validator=validators.ge(0.0))
    sigma: float = field(default=0.1, validator=validators.gt(0.0))

    def __call__(self, nets: Networks, batch: Batch, rng: Rng, shared: Shared) -> Loss:
        with torch.no_grad():
            x = self.rollout(nets["student"], rng.noise_like(batch.x), batch.cond, rng)
            t, _ = self.times(len(x), rng, x)
            real, fake = (_seen(s, t, rng, self.noised) for s in (batch.x, x))
            seen = [real, fake, *([real + self.sigma * rng.noise_like(real)] if self.r1 else [])]
        on_real, on_fake, *near = judge(nets).logits(*_repeated(seen, t, batch.cond)).chunk(len(seen))
        raw = F.softplus(-on_real) + F.softplus(on_fake)
        logs = {"gan/loss": Mean.of(raw), "gan/real": Mean.of(on_real), "gan/fake": Mean.of(on_fake)}
        value = raw.mean()
        if near:
            r1 = (on_real - near[0]).square()
            value, logs = value + self.r1 * r1.mean(), {**logs, "gan/r1": Mean.of(r1)}
        return Loss(value, logs, nonfinite=nonfinite(data=batch.x, student=x, critic=raw))


class OnSamples(Objective, Protocol):
    """An objective on what its `rollout` makes, such as `DistributionMatching`; a frozen attrs value."""

    @property
    def rollout(self) -> Rollout | None: ...


@frozen
class OneRollout(Equips):
    """A weighted sum of objectives that have the same `rollout`, on one and the same samples.

    gradient: whether the rollout has one; not for the critic's.
    """

    terms: tuple[tuple[float, OnSamples], ...] = field(validator=validators.min_len(1))
    gradient: bool = True

    def __attrs_post_init__(self) -> None:
        for _, term in self.terms:
            if term.rollout is None or term.rollout != self.terms[0][1].rollout:
                raise ValueError(f"OneRollout.terms: {term} has another rollout than {self.terms[0][1]}: must be one")

    @property
    def needs(self) -> frozenset[Role]:
        return frozenset[Role]({"student"}).union(*(term.needs for _, term in self.terms))

    @property
    def from_data(self) -> bool:
        return from_data(term for _, term in self.terms)

    @property
    def guides(self) -> Mapping[Role, float]:
        return guides(term for _, term in self.terms)

    @property
    def equips(self) -> Mapping[Role, Equip]:
        return united("OneRollout", (term.equips for _, term in self.terms if isinstance(term, Equips)))

    def __call__(self, nets: Networks, batch: Batch, rng: Rng, shared: Shared) -> Loss:
        rollout = self.terms[0][1].rollout
        assert rollout is not None  # checked when it was made
        with torch.set_grad_enabled(self.gradient and torch.is_grad_enabled()):
            x = rollout(nets["student"], rng.noise_like(batch.x), batch.cond, rng)
        made = Made(x, getattr(rollout, "within", ALL))
        value, logs, bad = x.new_zeros(()), dict[str, Mean](), dict[str, Mean]()
        for number, (weight, term) in enumerate(self.terms):
            objective: Any = term  # a value of attrs, which the protocol cannot say
            with shared.at(number):
                loss: Loss = evolve(objective, rollout=made)(nets, batch, rng.fork(number), shared)
            value = value + weight * loss.value
            logs |= {name: logs[name] + mean if name in logs else mean for name, mean in loss.logs.items()}
            bad |= within(number, loss.nonfinite)
        return Loss(value, logs, nonfinite=bad)


@frozen(eq=False)
class Made:
    """A rollout that is done: x, whatever the noise; within: as that rollout has it."""

    x: Latent
    within: Span = ALL

    def __call__(self, u: FlowMap, noise: Latent, cond: Cond, rng: Rng) -> Latent:
        return self.x


def judge(nets: Networks) -> Judge:
    critic = nets["critic"]
    if not isinstance(critic, Judge):
        raise TypeError(f"the critic is a {type(critic).__name__} and has no heads: see `flowmap.objectives.equipped`")
    return critic


def _seen(x: Latent, t: Time, rng: Rng, noised: bool) -> Latent:
    return interpolate(x, rng.noise_like(x), t)[0] if noised else x


def _repeated(seen: list[Latent], t: Time, cond: Cond) -> tuple[Latent, Time, Cond]:
    """All in one call."""
    n = len(seen)
    return torch.cat(seen), torch.cat([t] * n), concat(*[cond] * n)
