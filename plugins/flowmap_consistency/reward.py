"""A stage after distillation: more of what a reward asks for, at any number of steps.

MeanFlowNFT (arXiv:2607.15273) and MFA (arXiv:2609.37670) need no gradient of the reward; `on_policy` has it as a term
of AnyFlow's stage 2, in which a rollout carries gradient through at most three jumps whatever its budget.
"""

from __future__ import annotations

import torch
from attrs import evolve, field, frozen

from flowmap import AdamW, Batch, Rng, validators
from flowmap._types import Mean, Role, Shared
from flowmap.method import Method, Update
from flowmap.methods import anyflow
from flowmap.objectives import Loss, Networks, nonfinite
from flowmap.objectives.distribution_matching import DistributionMatching
from flowmap.rewards import Scores
from flowmap.rollout import FlowMapBackwardSimulation, Rollout
from flowmap.times import Triangle

from .adversarial import OneRollout
from .citations import DIFFUSION_NFT, MEANFLOW_NFT, MFA
from .reward_matching import Forms, RewardMatching

OPTIMIZER = AdamW(3e-6, (0.9, 0.999), 1e-4)
"""Published, with adapters of rank 32 and alpha 64; 48 prompts of 24 samples an iteration; `Ema(0.9, 0)`."""


def nft(
    scores: Scores,
    *,
    shift: float = 5.0,
    steps: tuple[int, ...] = (4,),
    number: int = 24,
    pairs: int = 4,
    form: Forms = Forms(),  # noqa: B008, a frozen value
    agree: bool = False,
) -> Method:
    """MeanFlowNFT: `RewardMatching` with β = 0.1, advantages clipped at 5, an anchor of 1e-4 at the start of the stage,
    (t, r) of AnyFlow's law. steps: several budgets, drawn, are ours; published is 4."""
    times = Triangle(0.5, 0.25, shift)
    matching = RewardMatching(scores, form, number, pairs, steps, shift, times, agree=agree)
    updates = (Update("student", ((1.0, matching),)),)
    return Method("reward_nft", updates, (MEANFLOW_NFT, DIFFUSION_NFT))


def mfa(scores: Scores, *, gamma: float = 1.1, anchor: float = 1e-3, clip: float = 1.0, **settings: object) -> Method:
    """MeanFlowAdvantage: the same by one signed regression. settings: as of `nft`."""
    form = Forms("mfa", gamma=gamma, anchor=anchor, clip=clip)
    return evolve(nft(scores, form=form, **settings), name="reward_mfa", citations=(MFA, MEANFLOW_NFT))  # type: ignore[arg-type]


@frozen
class RewardGradient:
    """-Σ_k w_k R_k(x) of the student's samples x = G_θ(ε), decoded: the gradient of the rewards as they are.

    Its scale beside a `DistributionMatching` is a weight's to say; both log what they are, "reward/gradient" and
    "dmd/gradient", in one unit: |g| of an element, where the loss has the gradient 2 g over the number of elements.
    1 G of the decoder and of each reward.
    """

    scores: Scores = field(validator=validators.instance_of(Scores))
    rollout: Rollout = FlowMapBackwardSimulation()

    def __attrs_post_init__(self) -> None:
        if bad := [reward.name for _, reward in self.scores.rewards if not reward.differentiable]:
            raise ValueError(
                f"RewardGradient.scores: {', '.join(bad)} has no gradient: take `reward.nft`, which needs none"
            )

    from_data = False

    @property
    def needs(self) -> frozenset[Role]:
        return frozenset({"student"})

    def __call__(self, nets: Networks, batch: Batch, rng: Rng, shared: Shared) -> Loss:
        x = self.rollout(nets["student"], rng.noise_like(batch.x), batch.cond, rng)
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            found = self.scores(leaf, batch.cond)
            value = -(torch.tensor(self.scores.weights, device=x.device)[:, None] * found).sum(0)
            (g,) = torch.autograd.grad(value.mean(), leaf)
        logs: dict[str, Mean] = {
            f"reward/{r.name}": Mean.of(own) for (_, r), own in zip(self.scores.rewards, found, strict=True)
        }
        logs["reward/gradient"] = Mean.of(g.abs().flatten(1).mean(1) * g.numel() / 2)
        return Loss(value.mean().detach() + (g * (x - x.detach())).sum(), logs, nonfinite=nonfinite(student=x, data=g))


def on_policy(scores: Scores, *, reward: float = 1.0, cotrain: float = 1.0, **settings: object) -> Method:
    """AnyFlow's stage 2 with rewards on the very samples whose distribution is matched:

        dmd · L_DMD(x) - reward · Σ w R(dec x) + cotrain · L_stage 1.

    With distribution matching it is the gradient of KL(student | teacher · exp(R / τ)), up to that one's weights over t
    (RTDMD, arXiv:2605.26108); without, it runs after the reward. settings: as of `anyflow.on_policy`.
    """
    plain = anyflow.on_policy(cotrain=cotrain, **settings)  # type: ignore[arg-type]
    student, critic = plain.updates
    (dmd, matching), *rest = student.terms
    assert isinstance(matching, DistributionMatching)
    both = OneRollout(((dmd, matching), (reward, RewardGradient(scores, matching.rollout))))
    updates = (evolve(student, terms=((1.0, both), *rest)), critic)
    return Method("reward_on_policy", updates, plain.citations)
