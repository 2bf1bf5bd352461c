r"""A LoRA out of two whole networks: as much of student - base as pairs of a rank hold.

A student that was trained whole, or that is there with its adapters fused alone, has no A and B on disk. Of the change
of every matrix the nearest pair of rank k is that of its largest singular values (Eckart and Young),

    ΔW = W_student - W_base = U S V^T,     B = U_k S_k^1/2,     A = S_k^1/2 V_k^T,     |ΔW - B A|² = Σ_{i>k} σ_i².

What is stored in a narrow type was rounded, and that is a part of ΔW, of full rank. Of independent errors with standard
deviation s an m × n matrix has singular values up to s (√m + √n): the directions below are rounding, and are left out.
Whatever is no matrix (biases, norms, modulation) is a change of its own, `rest`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from attrs import evolve, frozen
from flowmap_diffusers.loading import stored
from torch import Tensor

from flowmap import Rng
from flowmap.export.errors import ExportError

from .streaming import Source

if TYPE_CHECKING:
    from flowmap.export.forms import Saved

    from .settings import WanSettings

WHOLE = 2048
"""Matrices with more rows and columns than this are not decomposed whole: of a 5120 × 5120 one that takes minutes."""
MORE, PASSES = 16, 3
"""Columns beyond the rank, and passes over the matrix, of the search for its leading directions, arXiv:0909.4061."""


@frozen(eq=False)
class Found:
    """The change of a network. pairs: A [k, ...] and B [m, k, ...] of every matrix, of one k; rest: what is none.

    norm, off: |ΔW| and |ΔW - B A| of every matrix. ranks: the directions that are kept of it, the others of k are zero.
    """

    pairs: Mapping[str, tuple[Tensor, Tensor]]
    rest: Mapping[str, Tensor]
    norm: Mapping[str, float]
    off: Mapping[str, float]
    ranks: Mapping[str, int]

    @property
    def error(self) -> float:
        """Of all matrices together: |ΔW - B A| / |ΔW|."""
        return math.hypot(*self.off.values()) / math.hypot(*self.norm.values())

    @property
    def rank(self) -> int:
        return max(self.ranks.values())

    def told(self, left_out: Sequence[str]) -> dict[str, Any]:
        """For the manifest. left_out: tensors whose change the file cannot hold."""
        layers = {n: {"rank": self.ranks[n], "error": self.off[n] / self.norm[n]} for n in self.pairs}
        about = {"rank": self.rank, "error": self.error, "left_out": list(left_out), "layers": layers}
        return {"extracted": about}


def changes(student: Saved, base: Path, rank: int) -> Found:
    """Of every tensor, one at a time; a student's second embedder is compared with its own, or else with Wan's one."""
    pairs, rest = {}, {}
    norm, off, ranks = {}, {}, {}
    ours, theirs = stored(str(student.folder)), source(student, base)
    for name in sorted(ours):
        own = ours[name][:]
        change = own.double() - theirs.rows(name)(slice(None)).double()
        if not (change.abs() > rounding(own) / 2).any():
            continue
        layer, _, of = name.rpartition(".")
        if of != "weight" or change.ndim < 2:
            rest[name] = change.float()
            continue
        matrix = change.flatten(1)
        a, b = nearest(matrix, rank, noise(own))
        norm[layer], off[layer], ranks[layer] = float(matrix.norm()), float((matrix - b @ a).norm()), len(a)
        pairs[layer] = a.float().unflatten(1, change.shape[1:]), b.float().reshape(*b.shape, *(1,) * (change.ndim - 2))
    most = max(ranks.values(), default=0)
    if not most:
        raise ExportError(f"base = {str(base)!r}: no matrix of {student.folder} differs from it: is it the student?")
    return Found({n: padded(*pair, most) for n, pair in pairs.items()}, rest, norm, off, ranks)


def nearest(matrix: Tensor, rank: int, noise: float) -> tuple[Tensor, Tensor]:
    """A and B of at most `rank` directions, those with singular values above `noise`."""
    u, s, vh = leading(matrix, rank)
    k = min(rank, int((s > noise).sum()))
    root = s[:k].sqrt()
    return root[:, None] * vh[:k], u[:, :k] * root


def leading(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """U, S, V^T of the largest singular values, `rank` of them or more."""
    if matrix.shape[0] < matrix.shape[1]:
        u, s, vh = leading(matrix.T, rank)
        return vh.T, s, u.T
    if min(matrix.shape) <= max(WHOLE, rank + MORE):
        q, small = torch.linalg.qr(matrix)  # tall: its own decomposition takes six times as long
    else:
        columns = matrix.new_zeros(matrix.shape[1], rank + MORE)
        q = torch.linalg.qr(matrix @ Rng.seeded(0).noise_like(columns)).Q
        for _ in range(PASSES - 1):
            q = torch.linalg.qr(matrix @ torch.linalg.qr(matrix.T @ q).Q).Q
        small = q.T @ matrix
    u, s, vh = torch.linalg.svd(small, full_matrices=False)
    return q @ u, s, vh


def rounding(stored: Tensor) -> Tensor:
    """The distance of each number to the next one of its type, float64."""
    limits = torch.finfo(stored.dtype)
    exponent = torch.frexp(stored.double().abs().clamp_min(limits.smallest_normal)).exponent
    return limits.eps * torch.exp2((exponent - 1).double())


def noise(stored: Tensor) -> float:
    """The largest singular value of what rounding alone makes of a matrix whose rows are of about one size."""
    m, n = stored.flatten(1).shape
    return float(rounding(stored).square().mean().div(12).sqrt()) * (math.sqrt(m) + math.sqrt(n))


def padded(a: Tensor, b: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Filled up with zeros: loaders that meet two ranks and no alpha have taken that of one for that of all."""
    more = rank - len(a)
    return torch.cat([a, a.new_zeros(more, *a.shape[1:])]), torch.cat([b, b.new_zeros(len(b), more, *b.shape[2:])], 1)


def source(student: Saved, base: Path) -> Source:
    """The tensors of the base as a student of its kind has them, lifted where it is a plain one."""
    return Source.of(at(student, base), torch.float32)


def at(student: Saved, folder: Path) -> WanSettings:
    """The student's spec, of the network in `folder`."""
    spec: Any = student.spec
    found: WanSettings = evolve(spec, path=str(folder), pretrained=True, lora=None, base=None)
    return found


def check(student: Saved, base: Path) -> None:
    """An `ExportError` where the base is another network, before anything is read."""
    ours, theirs = stored(str(student.folder)), stored(str(base))
    for name, part in ours.items():
        plain = name if name in theirs else name.replace(".delta_embedder.", ".time_embedder.")
        if plain not in theirs:
            continue  # what a causal student adds, made of the base's own
        shape = theirs[plain].get_shape()
        if shape != part.get_shape():
            raise ExportError(
                f"base = {str(base)!r}: its {plain} is {shape}, the student's is {part.get_shape()}: another network"
            )
