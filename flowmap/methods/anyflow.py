"""AnyFlow: any-step video diffusion by on-policy flow-map distillation, arXiv:2605.13724.

`within` is of one of two experts that part at b, (b, 1) or (0, b): it is trained at these times alone.
"""

from __future__ import annotations

from typing import Literal

from ..chunked import HistoryGrad
from ..derivative import WIDTH, CentralDifference
from ..guidance import Exact, Fused
from ..method import Method, Update
from ..model import HistoryNoise
from ..objectives import Objective
from ..objectives.distribution_matching import CriticMatching, DistributionMatching
from ..objectives.flow_map_matching import FlowMapMatching
from ..reweights import Balanced, Beta
from ..rollout import FlowMapBackwardSimulation
from ..times import ALL, Diagonal, LogitNormal, Span, Triangle
from .citations import ANYFLOW, DMD, MEANFLOW, SELF_GRADIENT_FORCING
from .flow_matching import flow_matching

CITATIONS = (ANYFLOW, MEANFLOW, DMD)
REFERENCE_H = 5e-3


def teacher(*, shift: float = 5.0, drop: float = 0.1, within: Span = ALL) -> Method:
    """Stage 0: fine-tune the teacher on the data that the student will see."""
    return flow_matching(role="teacher", shift=shift, drop=drop, within=within)


def forward(
    *,
    shift: float = 5.0,
    guidance: float = 3.0,
    drop: float = 0.1,
    h: float | None = None,
    diagonal: float = 0.5,
    edge: float = 0.25,
    velocity: Literal["data", "teacher"] = "data",
    parity: bool = False,
    within: Span = ALL,
) -> Method:
    """Stage 1, section 3.2: fine-tune a diffusion model into a flow map.

    `h` is the difference's, `flowmap.derivative.WIDTH` unless given. `parity=True` is the reference: guidance fused,
    differences not clamped at the borders and, unless given, with h = 0.005.
    """
    matching = _matching(shift, guidance, drop, h, diagonal, edge, velocity, parity, within)
    return Method("anyflow_forward", (Update("student", ((1.0, matching),)),), CITATIONS)


def on_policy(
    *,
    shift: float = 5.0,
    guidance: float = 3.0,
    teacher_guidance: float = 4.0,
    drop: float = 0.1,
    h: float | None = None,
    diagonal: float = 0.5,
    edge: float = 0.25,
    velocity: Literal["data", "teacher"] = "data",
    steps: tuple[int | tuple[int, ...], ...] = (2, 4, 8, 16, 50),
    dmd: float = 1.0,
    cotrain: float = 1.0,
    critic_every: int = 1,
    student_every: int = 1,
    share_rollout: bool = True,
    replay: bool = False,
    history_grad: HistoryGrad = False,
    history_noise: HistoryNoise = 0.0,
    one_pass: bool = False,
    one_jump: bool = False,
    cotrain_every: int = 1,
    parity: bool = False,
    within: Span = ALL,
) -> Method:
    """Stage 2, section 3.3: match the teacher's distribution on the student's own rollouts, stage 1 kept on.

    `steps`: the budgets of rollouts, each a number, or one a chunk, (4, 2), of which the last repeats.
    `teacher_guidance` is the standard w (the reference's "3.0" is w = 4). `share_rollout`: the critic learns from the
    samples that the student's update made, where there is one whenever the critic learns; False rolls out again, as
    the reference does. `parity=True`: that, t over the whole of [0, 1], no floor under the normaliser, and stage 1's
    parity. `replay`: hold the graph of one chunk of the rollout at a time, for a second forward pass. `history_grad`:
    of a student in chunks, let a chunk's gradient reach how the history that it read is written, in the form True or
    "packed" (`flowmap.chunked.HistoryGrad`), Self Gradient Forcing, arXiv:2607.20368. `history_noise`: the time that
    finished chunks are noised to again before later ones see them, in training and then in every sample, or "last",
    what the call that made a chunk kept, at a call less a chunk. `within`: of
    the high expert distributions are matched at its end; the low one's samples begin with what the high student makes.

    Three that save operations and were not judged: `one_pass`, the critic learns from the pass that gives the fake
    score, at the times of distribution matching and not at its own; `one_jump`, the gradient of the rollout goes
    through one of its jumps, drawn (`FlowMapBackwardSimulation`); `cotrain_every`, stage 1 is kept on in every so many
    of the student's updates alone.
    """
    if cotrain_every < 1:
        raise ValueError(f"cotrain_every = {cotrain_every}: must be at least 1")
    rollout = FlowMapBackwardSimulation(steps, shift, replay, within, history_grad, history_noise, one_jump)
    shared = share_rollout and not parity and critic_every % student_every == 0
    end = within[0]
    times = Diagonal(shift=shift) if parity else Diagonal(shift=shift, low=0.02, high=0.98, within=within)
    if one_pass and not shared:
        raise ValueError(
            "one_pass = True: needs the samples of the student's update, share_rollout = True, parity = False and a "
            "critic_every that is a multiple of student_every"
        )
    floor = 0.0 if parity else 1e-3
    matching = DistributionMatching(rollout, times, teacher_guidance, floor, end, one_pass)
    asked = Diagonal(LogitNormal(), shift, low=0.02 if end else 0.0, within=within)
    critic = CriticMatching(None if shared else rollout, asked, end=end, one_pass=one_pass)
    terms: tuple[tuple[float, Objective], ...] = ((dmd, matching),)
    if cotrain:
        terms += ((cotrain, _matching(shift, guidance, drop, h, diagonal, edge, velocity, parity, within)),)
    students: tuple[Update, ...] = (Update("student", terms, student_every),)
    if cotrain and cotrain_every > 1:
        n = student_every * cotrain_every
        students = (Update("student", terms, n), Update("student", terms[:1], student_every, skip=n))
    updates = (*students, Update("critic", ((1.0, critic),), critic_every))
    return Method("anyflow_on_policy", updates, (*CITATIONS, SELF_GRADIENT_FORCING) if history_grad else CITATIONS)


def _matching(
    shift: float,
    guidance: float,
    drop: float,
    h: float | None,
    diagonal: float,
    edge: float,
    velocity: Literal["data", "teacher"],
    parity: bool,
    within: Span,
) -> FlowMapMatching:
    if parity and within != ALL:
        raise ValueError(
            f"within = {within} with parity = True: must be one or the other, the reference has one network"
        )
    return FlowMapMatching(
        times=Triangle(diagonal, edge, shift, within=within),
        derivative=CentralDifference(h or (REFERENCE_H if parity else WIDTH), clamp=not parity, high=within[1]),
        reweight=(Beta(1.0, 0.5, shift, within), Balanced()),
        guidance=Fused(guidance, drop) if parity else Exact(guidance, drop),
        velocity=velocity,
    )
