"""The recipes that are trained on one, two and three ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from attrs import evolve, frozen
from flowmap_consistency import reward
from flowmap_consistency.decoded import Decoded
from flowmap_consistency.dmd2 import dmd2
from flowmap_consistency.parallel_decoding import parallel_decoding
from flowmap_diffusers import Diffusers
from flowmap_far import Far
from flowmap_wan import Lora
from flowmap_wan.spec import WanSpec
from flowmap_wan21 import Wan21
from torch import Tensor

from flowmap import AdamW, Ema, Recipe, Stage, TensorData
from flowmap.method import Method, Update
from flowmap.methods import anyflow
from flowmap.objectives.flow_map_matching import FlowMapMatching
from flowmap.objectives.mixture import Mixture
from flowmap.rewards import Scores
from flowmap.reweights import Balanced
from flowmap.times import Diagonal, Triangle
from flowmap.training.ranks.distributed import Distribution

BATCH, STEPS, LR = 6, 5, 5e-5


def recipe(
    spec: WanSpec | Diffusers,
    *methods: Method,
    micro: int | None = None,
    lora: bool = True,
    steps: int = STEPS,
    batch: int = BATCH,
) -> Recipe:
    """Global batches of 6, so that 1, 2 and 3 ranks share them."""
    spec = evolve(spec.tiny(), lora=Lora(4, 4.0) if lora else None)
    z, cond = spec.example(10)
    data = TensorData(z, dict(cond), dict(spec.null(cond)))
    stages = (Stage(m, steps, batch, micro, AdamW(LR), Ema(0.9, 2)) for m in methods)
    return Recipe(spec, tuple(stages), data=data)


def on_policy(replay: bool = False, history_grad: bool = False) -> Method:
    return anyflow.on_policy(steps=(2, 4), replay=replay, history_grad=history_grad)


def unguided() -> Method:
    """Of a network that guidance was distilled into."""
    return anyflow.on_policy(steps=(2, 4), velocity="teacher", guidance=1.0, teacher_guidance=1.0)


def causal_teacher(of: Recipe) -> Recipe:
    """Objectives that follow trajectories ask a causal one, a network of its own."""
    return evolve(of, forward_teacher=evolve(of.backbone, seed=7))


def mixture() -> Method:
    """Shares so small that most ranks have no sample of one of them; the mean of the diagonal is of all."""
    flow = FlowMapMatching(Diagonal(), reweight=(Balanced(),))
    rest = FlowMapMatching(Triangle(0.3, 0.0), reweight=(Balanced(),))
    return Method("mixture", (Update("student", ((1.0, Mixture(((0.7, flow), (0.3, rest)))),)),))


def adversarial() -> Method:
    """A critic with a head of its own, which is not sharded."""
    return dmd2(number=2, gan=0.1)


def larger_teacher(of: Recipe) -> Recipe:
    """Fine-tuned whole, with a critic on the student's base, which does not start from it."""
    assert isinstance(of.backbone, WanSpec)
    large = evolve(of.backbone, lora=None, config={**of.backbone.config, "num_layers": 3, "ffn_dim": 72})
    return evolve(of, teacher=large, critic=of.backbone)


def decoded(spec: WanSpec | Diffusers, *, lora: bool = True, steps: int = 4) -> Recipe:
    """A student of heads, which learn one part of a block that is drawn for all."""
    method = parallel_decoding(w=2.0, least=1, most=8)
    of = recipe(spec, method, lora=lora, steps=steps)
    return evolve(of, backbone=Decoded(of.backbone, heads=8), teacher=of.backbone)


@frozen
class Bright:
    """A reward of latents themselves."""

    name: str = "bright"
    differentiable: bool = True

    def __call__(self, videos: Tensor, prompts: Sequence[str]) -> Tensor:
        return videos.flatten(1).mean(1)


def rewarded() -> Method:
    """Two samples a prompt of the old policy, which follows; it and the reference are in pieces as the student is."""
    return reward.nft(Scores(None, ((1.0, Bright()),)), number=2, pairs=2, steps=(2,), shift=1.0)


REPLICATED, HYBRID = Distribution(shard=False, timeout=60.0), Distribution(group=2, timeout=60.0)
EVERYTHING = {
    "bidirectional, adapters": recipe(Wan21(), anyflow.forward(), on_policy()),
    "bidirectional, whole": recipe(Wan21(), on_policy(), lora=False),
    "causal, adapters": recipe(Far(), anyflow.forward(), on_policy()),
    "causal, whole": recipe(Far(), on_policy(), lora=False),
}
"""AnyFlow, 5 iterations a stage; the second goes on with the objective of the first."""
SOME = {
    "replayed and recomputed": recipe(evolve(Far(), checkpointing=True), on_policy(replay=True), steps=3),
    "a gradient through the history": recipe(
        evolve(Far(), checkpointing=True), on_policy(replay=True, history_grad=True), steps=2
    ),
    "accumulated": recipe(Wan21(), mixture(), on_policy(), micro=1, steps=3),
    "accumulated, the teacher's velocity": recipe(
        Wan21(), anyflow.on_policy(steps=(2, 4), velocity="teacher"), micro=1, steps=3
    ),
    "a causal teacher": causal_teacher(
        recipe(Far(), anyflow.forward(velocity="teacher"), anyflow.on_policy(steps=(2, 4), velocity="teacher"), steps=3)
    ),
    "mixture": recipe(Wan21(), mixture(), steps=4),
    "adversarial": recipe(Wan21(), adversarial(), steps=4),
    "adversarial, whole": recipe(Wan21(), adversarial(), lora=False, steps=2),
    "fine-tuned": recipe(Wan21(), anyflow.teacher(), anyflow.forward(velocity="teacher"), steps=3),
    "whole, fine-tuned": recipe(Wan21(), anyflow.teacher(), lora=False, steps=4),
    "replicated": recipe(Wan21(), on_policy(), steps=3),
    "LTX-Video, adapters": recipe(Diffusers(family="ltx", checkpointing=True), anyflow.forward(), on_policy(), steps=3),
    "HunyuanVideo, whole": recipe(
        Diffusers(family="hunyuan_video"),
        anyflow.forward(velocity="teacher", guidance=1.0),
        unguided(),
        lora=False,
        steps=4,
    ),
    "Qwen-Image, whole": recipe(Diffusers(family="qwen_image", checkpointing=True), on_policy(), lora=False, steps=2),
    "a base in int8": recipe(evolve(Wan21(), base="int8", checkpointing=True), anyflow.forward(), on_policy(), steps=2),
    "a base in nf4, LTX-Video": recipe(evolve(Diffusers(family="ltx"), base="nf4"), anyflow.forward(), steps=2),
    "heads, adapters": decoded(Wan21()),
    "heads, whole": decoded(Wan21(), lora=False),
    "heads, LTX-Video": decoded(Diffusers(family="ltx", checkpointing=True), steps=3),
    "rewards, adapters": recipe(Wan21(), rewarded(), steps=4),
    "rewards, whole": recipe(Wan21(), rewarded(), lora=False, steps=3),
    "a larger teacher": larger_teacher(recipe(Wan21(), anyflow.teacher(), on_policy(), steps=4)),
}
"""What takes another way through the ranks, some iterations of each."""
FOUR = {"hybrid": recipe(Wan21(), on_policy(), batch=8, steps=5)}
HALF = {
    f"half, {name}": evolve(of, dtype="bfloat16")
    for name, of in {
        "adapters": recipe(Wan21(), on_policy(), steps=3),
        "whole": recipe(Wan21(), anyflow.teacher(), on_policy(), lora=False, steps=6),
        "whole, recomputed": recipe(evolve(Far(), checkpointing=True), on_policy(), lora=False, steps=2),
    }.items()
}
"""Frozen weights and forward passes in bfloat16."""
CASES: Mapping[str, Recipe] = {**EVERYTHING, **SOME, **FOUR, **HALF}


def distribution(name: str) -> Distribution:
    return {"replicated": REPLICATED, "hybrid": HYBRID}.get(name, Distribution(timeout=60.0))
