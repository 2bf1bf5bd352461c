r"""r frozen into a schedule: the time embedding of a student out of the time embedder of plain Wan.

A student embeds its two times as e(t, r) = (1 - γ) E(t) + γ E'(r), AnyFlow, arXiv:2605.13724; everything after that is
Wan. On a schedule t_0 > t_1 > ... > t_N = 0 the second time is t_{i+1} whenever the first is t_i, so what the blocks
are told is N vectors e_i = e(t_i, t_{i+1}) at N known inputs. Wan's own embedder is two layers about a SiLU,

    h_i = silu(W_1 f(t_i) + b_1),        E_Wan(t_i) = W_2 h_i + b_2,        f the sinusoids of 1000 t,

and the change of W_2 alone that makes it say e_i there is the least solution of N linear equations,

    ΔW h_i = d_i = e_i - E_Wan(t_i),     ΔW = D^T U S^-1 V^T,     H = U S V^T,     rows h_i of H and d_i of D:

of rank N at most, which is a LoRA pair A = V^T [k, d], B = D^T U S^-1 [d, k]. It is exact at the t_i and says something
else in between: another number of steps, or another shift, is another file.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from attrs import frozen
from flowmap_diffusers.fixed_steps import LIMIT, least
from torch import Tensor
from torch.nn import functional as F

from flowmap.export.errors import ExportError
from flowmap.path import shift as shifted
from flowmap.time_embedding import mix

from .network import TIME_SCALE

GRID = 1000


@frozen
class Schedule:
    """times: t_0 > ... > t_N = 0. shift: None where they were given one by one."""

    times: tuple[float, ...]
    shift: float | None

    @property
    def steps(self) -> int:
        return len(self.times) - 1

    def sampler(self) -> dict[str, Any]:
        """In ComfyUI's words."""
        scheduler = "custom sigmas" if self.shift is None else "simple"
        told = {"sampler": "euler", "scheduler": scheduler, "steps": self.steps, "shift": self.shift, "cfg": 1.0}
        return {**told, "sigmas": list(self.times), "timesteps": [1000.0 * t for t in self.times[:-1]]}


def grid(steps: int, s: float) -> tuple[float, ...]:
    """t_0 ... t_N, t_i = s u / (1 + (s - 1) u) at u = 1 - i / N, rounded up to a thousandth.

    The rounding is that of ComfyUI's `simple` scheduler, which picks from a table of 1000; where N divides 1000 it
    changes nothing, and the grid is that of `flowmap.sample` and of diffusers' `FlowMapEulerDiscreteScheduler`.
    """
    u = torch.tensor([1 - int(i * (GRID / steps)) / GRID for i in range(steps)] + [0.0], dtype=torch.float64)
    return tuple(shifted(u, s).tolist())


@frozen(eq=False)
class Embedder:
    """W_2 silu(W_1 f(t) + b_1) + b_2, in float64 from the sinusoids on, which are float32 as in every sampler."""

    w1: Tensor
    b1: Tensor
    w2: Tensor
    b2: Tensor

    def hidden(self, t: Tensor) -> Tensor:
        """[N] -> [N, d]."""
        return F.silu(F.linear(features(t, self.w1.shape[1]).double(), self.w1, self.b1))

    def __call__(self, t: Tensor) -> Tensor:
        return F.linear(self.hidden(t), self.w2, self.b2)


def features(t: Tensor, width: int) -> Tensor:
    """f(t), [N, width] float32."""
    from diffusers.models.embeddings import get_timestep_embedding

    made: Tensor = get_timestep_embedding((t * TIME_SCALE).float(), width, flip_sin_to_cos=True, downscale_freq_shift=0)
    return made


def wanted(now: Embedder, then: Embedder, times: Sequence[float], gamma: float, delta: str) -> Tensor:
    """e_i, [N, d]: the student's, with its own two embedders."""
    t, r = torch.tensor(list(pairwise(times)), dtype=torch.float64).unbind(1)
    return mix(now(t), then(r if delta == "r" else t - r), gamma)


@frozen(eq=False)
class Pair:
    """a [k, d], b [d, k], float32. error: the largest of an embedding, relative, in float32.

    gain: by how much an error of h is enlarged on its way to the embedding, both relative: |ΔW| |h| / |e|. In
    bfloat16, whose rounding is 0.4 %, the embedding is off by up to so many times that.
    """

    a: Tensor
    b: Tensor
    error: float
    gain: float


def solve(base: Embedder, times: Sequence[float], e: Tensor) -> Pair:
    """ΔW for plain Wan's second layer; an `ExportError` where its embedder does not tell the times apart."""
    t = torch.tensor(times[:-1], dtype=torch.float64)
    h = base.hidden(t)
    a, b = least(h, e - base(t))
    made = F.linear(h.float(), base.w2.float() + b @ a, base.b2.float())
    error = float((made - e).abs().max() / e.abs().max())
    if not error <= LIMIT:
        raise ExportError(
            f"steps = {len(times) - 1}: the time embedder of the base does not tell so many apart (an embedding would "
            f"be off by {error:.1e}, at most {LIMIT:.0e} is allowed): ask for fewer"
        )
    norm = torch.linalg.matrix_norm(b.double(), 2)  # of B A: the rows of A are orthonormal
    gain = norm * h.norm(dim=1).max() / e.norm(dim=1).min()
    return Pair(a, b, error, float(gain))


def embedder(tensors: dict[str, Any], name: str) -> Embedder:
    """Of the tensors of a transformer, by the names of diffusers."""
    of = f"condition_embedder.{name}.linear_"
    return Embedder(*(tensors[f"{of}{i}.{w}"][:].double() for i in (1, 2) for w in ("weight", "bias")))
