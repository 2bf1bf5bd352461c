"""PDD: many steps of the teacher decoded from one call, by heads on a fine grid, arXiv:2607.26004."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from attrs import evolve, field, frozen

from flowmap import AdamW, Batch, FlowMap, Recipe, Rng, validators
from flowmap._types import Mean, Role, Shared, to_device
from flowmap.method import Method, Update
from flowmap.model import Spans, Wrapped
from flowmap.objectives import Loss, Networks, nonfinite
from flowmap.path import expand

from .citations import PDD
from .decoded import Decoded
from .decoder import Decoder
from .scale import Scale

Solver = Literal["euler", "midpoint"]
OPTIMIZER = AdamW(2e-5)
"""Published: 2e-5 to 5e-5, 200 to 3000 iterations, a large batch; a grid of 128 with midpoints or of 256 with Euler
steps, shift 5 to 6."""


@frozen
class ParallelDecoding:
    """Each head learns the teacher's one step of the fine grid, where the heads before it have come to:

        W_k H(z_n, t_n)  ≈  sg[ v̄_T(z̄_k, τ_k) ],      z̄_k = z_n - Σ_{n <= j < k} (τ_j - τ_j+1) W_j H(z_n, t_n),

    one k a sample, uniform on n <= k < n + `most`. v̄_T is the teacher's velocity there, guided by w, or that of the
    interval's middle, a step of half the way on. The next block begins where this one ends, z_n+L: a walk from noise to
    data in blocks of L intervals, each L a multiple of `least` up to `most`, drawn for all samples. So the student sees
    its own states and no data. It is ∂_r Φ_{r←t}(z) = v(Φ_{r←t}(z), r) with a difference in r.

    A block: 1 G of the student, which z̄_k and z_n+L come from, too; 1 F of the teacher, 2 with midpoints, twice that
    under guidance. The graphs of a walk's blocks, N / L of them, are held together.
    """

    w: float = field(default=5.0, validator=validators.ge(1.0))
    least: int = field(default=16, validator=validators.ge(1))
    most: int = field(default=64, validator=validators.ge(1))
    solver: Solver = field(default="midpoint", validator=validators.in_(("euler", "midpoint")))

    def __attrs_post_init__(self) -> None:
        if self.most % self.least:
            raise ValueError(f"ParallelDecoding.most = {self.most}: must be a multiple of least = {self.least}")

    from_data = False

    @property
    def needs(self) -> frozenset[Role]:
        return frozenset({"student", "teacher"})

    @property
    def guides(self) -> Mapping[Role, float]:
        return {"teacher": self.w}

    def __call__(self, nets: Networks, batch: Batch, rng: Rng, shared: Shared) -> Loss:
        u, z = nets["student"], rng.noise_like(batch.x)
        τ = to_device(self._times(u, z.shape[1]), z.device)
        n, last, raws, asked = 0, len(τ) - 1, [], []
        while n < last:
            end = min(n + self.least * (1 + rng.randint(self.most // self.least)), last)
            k = n + (rng.uniform(len(z), z) * min(self.most, last - n)).long()
            t = τ[n].expand(len(z))
            spans = Spans(torch.stack([τ[k], t, t]), torch.stack([τ[k + 1], τ[k], τ[end].expand(len(z))]))
            head, before, block = u(z, t, t, batch.cond, spans)
            with torch.no_grad():
                y = self._step(nets["teacher"], z - expand(t - τ[k], z) * before, τ[k], τ[k + 1], batch)
            asked.append(y)
            raws.append((head - y).square().flatten(1).mean(1))
            z, n = z - (τ[n] - τ[end]) * block.detach(), end
        raw = torch.stack(raws).mean(0)
        bad = nonfinite(teacher=torch.stack(asked, 1), student=raw)
        return Loss(raw.mean(), {"loss": Mean.of(raw)}, raw.detach().isfinite(), bad)

    def _step(self, teacher: FlowMap, z: torch.Tensor, t: torch.Tensor, r: torch.Tensor, batch: Batch) -> torch.Tensor:
        """The mean velocity of the teacher's step t -> r."""
        v = teacher.velocity(z, t, batch.cond, batch.null, self.w)
        if self.solver == "euler":
            return v
        half = (t - r) / 2
        return teacher.velocity(z - expand(half, z) * v, t - half, batch.cond, batch.null, self.w)

    def _times(self, u: FlowMap, frames: int) -> torch.Tensor:
        """The grid, float32."""
        if len(chunks := u.chunks(frames)) > 1:
            raise ValueError(
                f"ParallelDecoding: the student makes chunks of {chunks} frames, each from a history, which the "
                "teacher of a step does not know: must make all frames at once"
            )
        while isinstance(u, Wrapped) and not isinstance(u, Decoder):
            u = u.u
        if not isinstance(u, Decoder):
            raise TypeError(
                f"ParallelDecoding: the student is a {type(u).__name__} and has no heads: Recipe.backbone must be "
                "Decoded(backbone, heads=...)"
            )
        if (heads := len(u.times) - 1) % self.least:
            raise ValueError(f"ParallelDecoding.least = {self.least}: must divide the {heads} heads of the student")
        return u.times.float()


def parallel_decoding(*, w: float = 5.0, least: int = 16, most: int = 64, solver: Solver = "midpoint") -> Method:
    """The student is a `Decoded` backbone. Steps are blocks of its grid: with 128 heads and blocks of 16 to 64, 2, 4 or
    8 even ones, or any others. w is built in; it is that of the teacher's own sampler, 5 for Wan."""
    terms = ((1.0, ParallelDecoding(w, least, most, solver)),)
    return Method("parallel_decoding", (Update("student", terms),), (PDD,), guidance=w)


def recipe(recipe: Recipe, heads: int = 32) -> Recipe:
    """The recipe with heads on its student, trained as long as its own regression: blocks of one interval to the whole
    way, so that 1, 2, 4, ..., 32 steps are all blocks that it was trained to begin."""
    scale = Scale.of(recipe)
    method = parallel_decoding(w=scale.guidance, least=1, most=heads)
    student = Decoded(recipe.backbone, heads=heads, shift=scale.shift)
    return evolve(recipe, backbone=student, stages=(scale.regression(method),))
