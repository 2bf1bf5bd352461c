"""A relativistic GAN on videos made chunk after chunk: each sample is compared with data of its own prompt, R3GAN."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from attrs import field, frozen
from torch import Tensor
from torch.nn import functional as F

from flowmap import Batch, FlowMap, Rng, validators
from flowmap._types import Latent, Mean, Shared
from flowmap.objectives import Loss, Networks, nonfinite
from flowmap.rollout import ConsistencySimulation, Rollout
from flowmap.times import Diagonal, TimeSampler

from .adversarial import Judged, judge
from .heads import Heads

STUDENT_FORCING = ConsistencySimulation((1.0,), history_grad=True)
"""x^k = ε^k - u(ε^k, 1, 0) after the student's own chunks: detached, and remembered with a graph. One call a chunk."""


@frozen
class Segments:
    """A video `count` clips long, judged in pieces that share `overlap` frames, each beside data of the same prompt.

    The first is as long as a clip and compared with it. The later ones are a clip without its first chunk, of which the
    latents are of other frames (a single one, in causal VAEs), and are compared with data without it.
    """

    count: int = field(default=1, validator=validators.ge(1))
    overlap: int = field(default=1, validator=validators.ge(0))

    def frames(self, frames: int, first: int) -> int:
        """Of the whole video, for clips of `frames` with `first` in their first chunk; a ValueError where a later piece
        would bring none of its own."""
        fresh = frames - first - self.overlap
        if self.count > 1 and fresh < 1:
            raise ValueError(
                f"Segments.overlap = {self.overlap}: a clip has {frames} frames, {first} of them in its first chunk: "
                f"must be below {frames - first}"
            )
        return frames + (self.count - 1) * fresh

    def pairs(self, made: Latent, data: Latent, first: int) -> Iterator[tuple[Latent, Latent]]:
        """(samples, data), piece by piece."""
        frames = data.shape[1]
        yield made[:, :frames], data
        for k in range(1, self.count):
            start = frames - self.overlap + (k - 1) * (frames - first - self.overlap)
            yield made[:, start : start + frames - first], data[:, first:]


@frozen
class Relative(Judged):
    """What both sides have: the samples, and the pieces that are judged."""

    rollout: Rollout = STUDENT_FORCING
    heads: Heads = Heads()
    times: TimeSampler = Diagonal(shift=5.0)
    segments: Segments = Segments()

    def made(self, u: FlowMap, batch: Batch, rng: Rng) -> tuple[Latent, int]:
        """The student's video, and the frames of a clip's first chunk."""
        frames = batch.x.shape[1]
        first = u.chunks(frames)[0]
        room = batch.x[:, :1].expand(-1, self.segments.frames(frames, first), *batch.x.shape[2:])
        return self.rollout(u, rng.noise_like(room), batch.cond, rng), first


@frozen
class RelativisticAdversarial(Relative):
    """The student's side, for data x and samples x̃ of one prompt:

        L = E softplus(D(x, t | c) - D(x̃, t | c)),

    a mean over samples, over chunks, which each have a logit after those before them (`Judge.by_chunk`), and over
    pieces. Clean videos, t a mere condition, the same for a pair. ∂L/∂x̃ is taken here and handed on as a constant.
    R3GAN, arXiv:2501.05441, of logits as APT has them. 1 G and 1 F of the critic, beside the rollout.
    """

    def __call__(self, nets: Networks, batch: Batch, rng: Rng, shared: Shared) -> Loss:
        x, first = self.made(nets["student"], batch, rng)
        losses = list[Tensor]()
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            for fake, real in self.segments.pairs(leaf, batch.x, first):
                t, _ = self.times(len(x), rng, x)
                with torch.no_grad():
                    on_real = judge(nets).by_chunk(real, t, batch.cond)
                losses.append(F.softplus(on_real - judge(nets).by_chunk(fake, t, batch.cond)).mean(1))
            raw = torch.stack(losses).mean(0)
            (g,) = torch.autograd.grad(raw.mean(), leaf)
        logs = {"gan/loss": Mean.of(raw), "gan/gradient": Mean.of(g.abs().flatten(1).mean(1) * len(x))}
        return Loss(raw.mean().detach() + (g * (x - x.detach())).sum(), logs, nonfinite=nonfinite(student=x, critic=g))


@frozen
class RelativisticDiscrimination(Relative):
    """The critic's side,

        L = E softplus(D(x̃) - D(x)) + λ₁ E |D(x) - D(x + σ n)|² + λ₂ E |D(x̃) - D(x̃ + σ n')|²,

    with the means of `RelativisticAdversarial`. With a small σ the last two are λ σ² E |∇D|², R1 of data and R2 of
    samples, without a second backward pass. r1, r2: λ₁, λ₂; both calls are made where one of them is not 0. 2 G of the
    critic in one call a piece, 4 with them, beside a rollout without a graph.
    """

    r1: float = field(default=0.0, validator=validators.ge(0.0))
    r2: float = field(default=0.0, validator=validators.ge(0.0))
    sigma: float = field(default=0.1, validator=validators.gt(0.0))

    def __call__(self, nets: Networks, batch: Batch, rng: Rng, shared: Shared) -> Loss:
        with torch.no_grad():
            x, first = self.made(nets["student"], batch, rng)
        found: dict[str, list[Tensor]] = {name: [] for name in ("loss", "real", "fake", "r1", "r2")}
        for fake, real in self.segments.pairs(x, batch.x, first):
            t, _ = self.times(len(x), rng, x)
            seen = [real, fake]
            if self.r1 or self.r2:
                seen += [part + self.sigma * rng.noise_like(part) for part in (real, fake)]
            repeated: Any = {name: torch.cat([value] * len(seen)) for name, value in batch.cond.items()}
            logits = judge(nets).by_chunk(torch.cat(seen), torch.cat([t] * len(seen)), repeated)
            on_real, on_fake, *near = logits.chunk(len(seen))
            found["loss"].append(F.softplus(on_fake - on_real).mean(1))
            found["real"].append(on_real.mean(1))
            found["fake"].append(on_fake.mean(1))
            for name, there, beside in zip(("r1", "r2"), (on_real, on_fake), near, strict=False):
                found[name].append((there - beside).square().mean(1))
        means = {name: torch.stack(values).mean(0) for name, values in found.items() if values}
        raw = means["loss"]
        value = raw.mean() + sum(λ * means[n].mean() for n, λ in (("r1", self.r1), ("r2", self.r2)) if λ)
        logs = {f"gan/{name}": Mean.of(values) for name, values in means.items()}
        return Loss(value, logs, nonfinite=nonfinite(data=batch.x, student=x, critic=raw))
