"""Fine-tuning of a distilled student, as AnyFlow's downstream fine-tuning, arXiv:2605.13724."""

from __future__ import annotations

from ..method import Method
from . import anyflow
from .citations import ANYFLOW, MEANFLOW


def finetune(
    *,
    shift: float = 5.0,
    guidance: float = 3.0,
    drop: float = 0.1,
    h: float | None = None,
    diagonal: float = 0.5,
    edge: float = 0.25,
) -> Method:
    """Train a distilled student on clips of one's own, and keep what it can do in few steps.

    The objective is stage 1's on data, `anyflow.forward`: a flow map needs no teacher, for its identity

        u(z_t, t, r)  =  v̂ - (t - r) d/dt u(z_t, t, r),     v̂ = w (ε - x) + (1 - w) u_θ(z_t, t, t | ∅),

    holds for the new data at every pair (t, r), and v̂ asks for the data and the student's own null branch alone.
    Students in chunks train on their clean history. `guidance` is the student's own w: another one is learnt anew.

    Plain flow matching, the same at r = t and w = 1, would lose what distillation gave. It forgets the guidance that is
    built in. And one network serves every pair: the diagonal moves to the new data, nothing holds u(z_t, t, r < t) to
    it, and few-step sampling is made of these jumps; the longer they are and the longer the training, the worse.
    """
    forward = anyflow.forward(shift=shift, guidance=guidance, drop=drop, h=h, diagonal=diagonal, edge=edge)
    return Method("finetune", forward.updates, (ANYFLOW, MEANFLOW))
