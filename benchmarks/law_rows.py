"""The rows of `law`: how each student is trained, and its ablations, one change each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from attrs import evolve, field, frozen
from flowmap_digits import TINY_WAN
from flowmap_digits.data import MovingDigits
from flowmap_digits.evaluation import curve
from flowmap_far import Far
from flowmap_wan21 import Wan21

from flowmap import AdamW, Ema, FlowMapSpec, Recipe, Stage
from flowmap.derivative import WIDTH, ForwardMode
from flowmap.evaluation.card import sampler
from flowmap.method import Method, Sampler, Update
from flowmap.methods import anyflow
from flowmap.objectives.flow_map_matching import FlowMapMatching
from flowmap.plugins import trained_by
from flowmap.reweights import Balanced, Beta, Gaussian

SHIFT, GUIDANCE, H = 1.0, 1.0, 5e-3
FORWARD_STEPS, ON_POLICY_STEPS, BATCH, CLIPS = 1000, 200, 16, 4096
COTRAIN_EVERY_STEPS = 260
"""Of stage 2 with co-training in every second update: the student's calls are those of `ON_POLICY_STEPS` otherwise."""
COUNTS = (1, 2, 4, 8, 16, 32)
TEACHER = Wan21(TINY_WAN, lora=None, text_tokens=12, shift=SHIFT)
CAUSAL = Far(TINY_WAN, lora=None, text_tokens=12, shift=SHIFT, partition=(1, 1, 1, 1, 1), long=1.0)

FORWARD = AdamW(lr=1e-3, betas=(0.9, 0.99), warmup=50, schedule="cosine", floor=0.05)
ON_POLICY = {
    "student": AdamW(lr=1e-4, betas=(0.0, 0.99), warmup=20, schedule="cosine", floor=0.1),
    "critic": AdamW(lr=3e-4, betas=(0.0, 0.99), warmup=20),
}
PUBLISHED = "published"
SMALL = "small recipe"
AT_SCALE = "at the small recipe's scale"

Matching: TypeAlias = Callable[[FlowMapMatching], FlowMapMatching]


@frozen
class Ours:
    """AnyFlow at this scale. common: of both stages. second: of stage 2. change: of the flow-map matching of both."""

    common: Mapping[str, Any] = field(factory=dict)
    second: Mapping[str, Any] = field(factory=dict)
    change: Matching | None = None
    iterations: tuple[int, int] = (FORWARD_STEPS, ON_POLICY_STEPS)
    optimizers: tuple[Any, Any] = (FORWARD, ON_POLICY)

    def __call__(self, recipe: Recipe) -> tuple[Stage, ...]:
        return self.stages()

    def stages(self) -> tuple[Stage, ...]:
        common = {"shift": SHIFT, "guidance": GUIDANCE, "h": H, **self.common}
        second = {"teacher_guidance": GUIDANCE, "steps": COUNTS, **common, **self.second}
        made = (anyflow.forward(**common), anyflow.on_policy(**second))
        averages = (Ema(decay=0.995, start=200), Ema(decay=0.98, start=50))
        return tuple(
            Stage(self._changed(method), steps=n, batch=BATCH, optimizer=optimizer, ema=average)
            for method, n, optimizer, average in zip(made, self.iterations, self.optimizers, averages, strict=True)
            if n
        )

    def _changed(self, method: Method) -> Method:
        if self.change is None:
            return method
        change = self.change
        updates = tuple(
            evolve(
                update, terms=tuple((w, change(o) if isinstance(o, FlowMapMatching) else o) for w, o in update.terms)
            )
            for update in method.updates
        )
        return evolve(method, updates=tuple[Update, ...](updates))


@frozen
class Row:
    """A student. form: published settings or not. stages: of the recipe. backbone: of the student.

    renoised: judge the same weights under the consistency sampler too. rate: times its learning rates. own: keep its
    number of iterations; else as many as have AnyFlow's calls of the student, times `longer`. ablation: of AnyFlow,
    in a table apart.
    """

    name: str
    title: str
    form: str
    stages: Callable[[Recipe], tuple[Stage, ...]] | str
    backbone: FlowMapSpec = TEACHER
    renoised: bool = False
    rate: float = 1.0
    own: bool = False
    ablation: bool = False
    longer: float = 1.0

    def recipe(self, seed: int = 0, clips: int = CLIPS) -> Recipe:
        """Before its length is made the others'."""
        base = Recipe(
            self.backbone,
            Ours().stages(),
            teacher=TEACHER,
            data=MovingDigits(count=clips),
            evaluation=curve(guidance=GUIDANCE),
            seed=seed,
        )
        if isinstance(self.stages, str):
            return evolve(trained_by(base, self.stages), name=f"law_{self.name}")
        return evolve(base, stages=self.stages(base), name=f"law_{self.name}")

    @property
    def samplers(self) -> tuple[Sampler, ...]:
        """The method's own first."""
        own = sampler(self.recipe())
        return (own, "consistency") if self.renoised else (own,)


def _published() -> Ours:
    """The paper's optimisers and budgets of rollouts, the reference's forms; rates are of the small recipe."""
    forward = AdamW(lr=1e-3, betas=(0.9, 0.95), warmup=167)  # 1000 of 6000
    second = {"student": AdamW(lr=1e-4, betas=(0.0, 0.999)), "critic": AdamW(lr=1e-4, betas=(0.0, 0.999))}
    settings = {"parity": True, "steps": (2, 4, 8, 16, 50)}
    return Ours(common={"parity": True}, second=settings, optimizers=(forward, second))


def _first(recipe: Recipe) -> tuple[Stage, ...]:
    return Ours().stages()[:1]


HISTORY = Ours(second={"history_grad": True})

# The rates of the others are those of the sweep in benchmarks/results/any_step_video.json: at guidance 3, with noise
# of another seed, but on the prompts that judge here too, which can only help them. AnyFlow's are its recipe's.
ROWS = (
    Row("anyflow_1", "AnyFlow, stage 1", SMALL, _first, renoised=True, own=True),
    Row("anyflow", "AnyFlow, stages 1 + 2", SMALL, Ours(), renoised=True, own=True),
    Row("rcm", "rCM", AT_SCALE, "rcm", rate=1 / 9),
    Row("dmd2", "DMD2", AT_SCALE, "dmd2", rate=1 / 3),
    Row("meanflow", "MeanFlow", AT_SCALE, "meanflow"),
    Row("consistency", "CD", AT_SCALE, "consistency", rate=1 / 9),
    Row("shortcut", "Shortcut", AT_SCALE, "shortcut"),
    Row("parallel_decoding", "PDD", AT_SCALE, "parallel_decoding"),
    Row("anyflow_published", "AnyFlow, published settings", PUBLISHED, _published(), renoised=True),
    Row("anyflow_causal", "AnyFlow, causal", SMALL, Ours(), CAUSAL, renoised=True),
    Row("anyflow_causal_history", "AnyFlow, causal, gradient through the history", SMALL, HISTORY, CAUSAL),
    Row("self_forcing", "Self-Forcing, causal", AT_SCALE, "self_forcing", CAUSAL),
    Row("self_gradient_forcing", "Self Gradient Forcing, causal", AT_SCALE, "self_gradient_forcing", CAUSAL),
)


def _matching(**change: Any) -> Matching:
    return lambda matching: evolve(matching, **change)


def _ablation(name: str, title: str, ours: Ours, backbone: FlowMapSpec = TEACHER, own: bool = True) -> Row:
    return Row(f"ablation_{name}", title, "one change", ours, backbone, own=own, ablation=True)


def _difference(h: float) -> Ours:
    return Ours(common={"h": h})


ABLATIONS = (
    _ablation("cotrain_12", "co-training at weight 12 instead of 1", Ours(second={"cotrain": 12.0})),
    _ablation("cotrain_0", "no co-training", Ours(second={"cotrain": 0.0})),
    _ablation(
        "cotrain_every",
        "co-training in every second update, equal calls",
        Ours(second={"cotrain_every": 2}, iterations=(FORWARD_STEPS, COTRAIN_EVERY_STEPS)),
    ),
    _ablation("one_jump", "the gradient through one drawn jump of the rollout", Ours(second={"one_jump": True})),
    _ablation("one_pass", "the critic learns from the pass of the fake score", Ours(second={"one_pass": True})),
    _ablation("critic_2", "two critic updates for one of the student", Ours(second={"student_every": 2})),
    _ablation("budgets_few", "rollouts of 1, 2, 4 steps alone", Ours(second={"steps": (1, 2, 4)})),
    _ablation("budgets_many", "rollouts of 16 and 32 steps alone", Ours(second={"steps": (16, 32)})),
    _ablation("longer_1", "stage 1 twice as long", Ours(iterations=(2 * FORWARD_STEPS, ON_POLICY_STEPS))),
    _ablation("longer_2", "stage 2 twice as long", Ours(iterations=(FORWARD_STEPS, 2 * ON_POLICY_STEPS))),
    _ablation("velocity", "the teacher's velocity instead of the data's", Ours(common={"velocity": "teacher"})),
    _ablation("h", f"h = {WIDTH} instead of {H}", _difference(WIDTH)),
    _ablation("exact", "the exact derivative (forward mode)", Ours(change=_matching(derivative=ForwardMode()))),
    _ablation("unweighted", "w(t) = 1 instead of Beta(1, ½)", Ours(change=_matching(reweight=(Balanced(),)))),
    _ablation(
        "gaussian",
        "w(t) Gaussian instead of Beta(1, ½)",
        Ours(change=_matching(reweight=(Gaussian(SHIFT), Balanced()))),
    ),
    _ablation(
        "batch",
        "Balanced by batch, not by sample",
        Ours(change=_matching(reweight=(Beta(1.0, 0.5, SHIFT), Balanced(by="batch")))),
    ),
    _ablation("unbalanced", "no Balanced", Ours(change=_matching(reweight=(Beta(1.0, 0.5, SHIFT),)))),
    _ablation("gamma", "γ = 0.5 instead of 0.25", Ours(), evolve(TEACHER, gamma=0.5)),
    _ablation("diagonal_less", "¼ instead of ½ on the diagonal", Ours(common={"diagonal": 0.25})),
    _ablation("diagonal_more", "¾ instead of ½ on the diagonal", Ours(common={"diagonal": 0.75, "edge": 0.125})),
    _ablation("edge", "none instead of ¼ on the edge r = 0", Ours(common={"edge": 0.0})),
)
"""γ learnt is not among them: the time embedding has a constant one. Gradients of the rollout are exact with or without
`replay`, so that there is nothing to vary."""
NAMES = {row.name: row for row in (*ROWS, *ABLATIONS)}

MODELS = {
    "stage_1": ("AnyFlow, causal, stage 1", "anyflow_causal", 1),
    "stage_2": ("AnyFlow, causal, stages 1 + 2", "anyflow_causal", 2),
    "history_grad": ("AnyFlow, causal, stages 1 + 2, gradient through the history", "anyflow_causal_history", 2),
    "self_forcing": ("Self-Forcing, causal", "self_forcing", 2),
    "self_gradient_forcing": ("Self Gradient Forcing, causal", "self_gradient_forcing", 2),
}
"""Of `law_drift`: (title, row, how many of its stages)."""
