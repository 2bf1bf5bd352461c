"""Defects planted on purpose in the flow-map methods, each in one line, and the test that fails for it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from flowmap_consistency.semigroup import Anywhere, Middle

from flowmap.derivative import EndForwardMode
from flowmap.times import Triangle
from tests import test_derivative, test_reweights, test_times
from tests.consistency import test_flow_map_methods as methods
from tests.consistency import test_lagrangian as lagrangian
from tests.consistency import test_semigroup as semigroup
from tests.objectives import test_flow_map_matching as matching
from tests.objectives import test_mixture as mixture
from tests.test_planted_defects import planted
from tests.testing import test_counting

Test = Callable[[], None]

LAGRANGIAN, SEMIGROUP = "flowmap_consistency.lagrangian", "flowmap_consistency.semigroup"
DERIVATIVE, TIMES, MIXTURE = "flowmap.derivative", "flowmap.times", "flowmap.objectives.mixture"
MATCHING = "flowmap.objectives.flow_map_matching"

own: dict[str, Any] = {"velocity": "student", "through": True}
stopped: dict[str, Any] = {"velocity": "student", "through": False}
taught: dict[str, Any] = {"velocity": "teacher", "through": True}
free = Triangle(0.0, 0.0)
rests = partial(lagrangian.test_at_the_true_flow_map_there_is_no_gradient, free, own, ())
straightens = partial(lagrangian.test_a_bend_off_the_diagonal_is_pulled_straight, free, derivative=EndForwardMode())
halves_rest = partial(semigroup.test_at_the_true_flow_map_there_is_no_gradient, free, Anywhere(), ())
micro = partial(mixture.test_micro_batches_see_what_the_whole_does, 3)

DEFECTS: list[tuple[str, str, str, str, Test]] = [
    # ∂_r Φ = v(Φ, r)
    ("the velocity at the start", LAGRANGIAN, "velocity(f, r, c", "velocity(z, t, c", rests),
    ("the velocity of the end at the time of the start", LAGRANGIAN, "velocity(f, r, c", "velocity(f, t, c", rests),
    (
        "a target with a graph",
        *(LAGRANGIAN, "with torch.no_grad():\n            w =", "with torch.enable_grad():\n            w ="),
        partial(lagrangian.test_calls, own),
    ),
    (
        "an unguided teacher",
        *(LAGRANGIAN, 'guide.w if self.velocity == "teacher" else 1.0', "1.0"),
        lagrangian.test_a_guided_teacher_is_asked_with_the_history_in_both_branches,
    ),
    (
        "guidance on a student that has it",
        *(LAGRANGIAN, 'guide.w if self.velocity == "teacher" else 1.0', "guide.w"),
        partial(lagrangian.test_it_rests_at_the_flow_map_of_the_guided_field, 0.0, True),
    ),
    (
        "a null branch without the history",
        *(LAGRANGIAN, "null, c = nullify(c, batch.null),", "null, c = {**c, 'history': 0 * x, **batch.null},"),
        lagrangian.test_a_guided_teacher_is_asked_with_the_history_in_both_branches,
    ),
    (
        "a correction that takes its gradient back",
        *(LAGRANGIAN, "(df - u).detach()", "(df - u)"),
        partial(straightens, form=stopped, bend=0.1),
    ),
    (
        "a gradient through the derivative where none was asked for",
        *(LAGRANGIAN, "if self.through:", "if True:"),
        partial(lagrangian.test_calls, stopped),
    ),
    (
        "the sign of (t - r)",
        *(DERIVATIVE, "lambda r: z - expand(t - r, z)", "lambda r: z + expand(t - r, z)"),
        rests,
    ),
    (
        "the derivative in the start time",
        *(
            DERIVATIVE,
            "u(z, t, r, cond), (r,), (torch.ones_like(r),))",
            "u(z, t, r, cond), (t,), (torch.ones_like(t),))",
        ),
        rests,
    ),
    (
        "the derivative of u, without that of its factor",
        *(DERIVATIVE, "lambda r: z - expand(t - r, z)", "lambda r, h=r: z - expand(t - h, z)"),
        rests,
    ),
    (
        "a chord divided by twice the step",
        *(DERIVATIVE, "(f_above - f_below) / expand(above - below, z)", "(f_above - f_below) / (2 * self.h)"),
        partial(test_derivative.test_near_a_border_the_chord_is_still_consistent, 0.7, 0.0),
    ),
    (
        "a chord read at its lower end",
        *(DERIVATIVE, "f_below + expand(r - below, z) * df", "f_below"),
        partial(test_derivative.test_the_error_of_the_chord_in_the_end_time_is_quadratic, 0.7, 0.2),
    ),
    (
        "ends beyond the start",
        *(DERIVATIVE, "torch.minimum(r + self.h, t)", "r + self.h"),
        test_derivative.test_the_chord_asks_for_ends_between_data_and_t_in_one_call,
    ),
    # Φ = Φ Φ
    ("the weights of the two jumps swapped", SEMIGROUP, "expand((t - s) / ", "expand((s - r) / ", halves_rest),
    (
        "the second jump from the start",
        *(SEMIGROUP, "u_θ(z_s, s, torch.where", "u_θ(z, s, torch.where"),
        partial(semigroup.test_at_the_true_flow_map_there_is_no_gradient, free, Middle(), ()),
    ),
    ("the first jump backwards", SEMIGROUP, "z - expand(t - s, z) * u_ts", "z + expand(t - s, z) * u_ts", halves_rest),
    (
        "targets with a graph",
        *(SEMIGROUP, "with torch.no_grad():", "with torch.enable_grad():"),
        semigroup.test_calls_and_their_conditions,
    ),
    (
        "the shortest jump taught by itself",
        *(SEMIGROUP, "torch.where(short, t, s)", "s"),
        semigroup.test_short_halves_follow_the_velocity,
    ),
    (
        "a middle after the shift",
        *(SEMIGROUP, "shift((start + end) / 2, self.shift)", "(t + r) / 2"),
        partial(semigroup.test_the_middle_of_a_dyadic_step_is_on_the_next_grid, 5.0),
    ),
    (
        "nothing clipped",
        *(SEMIGROUP, ".clamp(-self.clip, self.clip)", ""),
        semigroup.test_the_state_between_is_clipped,
    ),
    (
        "a pair on the diagonal divides by zero",
        *(SEMIGROUP, ".clamp_min(torch.finfo(t.dtype).tiny)", ""),
        semigroup.test_a_pair_on_the_diagonal_is_no_division_by_zero,
    ),
    # times
    (
        "r that may end above 1 - gap",
        TIMES,
        "between(torch.zeros_like(gap), 1 - gap, rng)",
        "between(torch.zeros_like(gap), gap, rng)",
        test_times.test_quantiles_of_the_gap,
    ),
    (
        "a tail that is cut off by clamping",
        TIMES,
        "(mass - below) * rng.uniform(len(high), high).double()",
        "rng.uniform(len(high), high).double().minimum(mass)",
        test_times.test_quantiles_of_an_end_that_is_logit_normal,
    ),
    (
        "a level too many",
        *(TIMES, "self.levels * rng.stratified(n, like)", "(self.levels + 1) * rng.stratified(n, like)"),
        test_times.test_steps_of_the_dyadic_grids,
    ),
    # the core
    (
        "a tangent along the noisy velocity",
        *(DERIVATIVE, "self.derivative(u, z, t, r, u(z, t, t, cond), cond)", "self.derivative(u, z, t, r, v, cond)"),
        test_derivative.test_predicted_runs_along_what_the_network_says_and_not_along_v,
    ),
    (
        "self-distillation of the velocity of the data",
        *(MATCHING, "v = v_null + guide.w * (v_c - v_null)", "pass"),
        partial(matching.test_with_its_own_velocity_it_rests_at_the_true_flow_map, free),
    ),
    (
        "a derivative at once",
        *(MATCHING, "self.warmup(shared.iteration)", "1.0"),
        matching.test_the_derivative_comes_in_slowly,
    ),
    (
        "a norm that is squared",
        *("flowmap.reweights", "1 / (loss.sqrt() + self.c)", "1 / (loss + self.c)"),
        test_reweights.test_normalised_makes_every_gradient_of_the_same_size,
    ),
    ("one noise for every micro-batch", MIXTURE, "_rng(own, mine, len(batch))", "Rng(own.key)", micro),
    (
        "objectives of one noise",
        *(
            MIXTURE,
            "mine, own = (part == k).nonzero()[:, 0], rng.fork(k)",
            "mine, own = (part == k).nonzero()[:, 0], rng.fork(0)",
        ),
        mixture.test_objectives_draw_their_noise_apart,
    ),
    (
        "a mean over objectives",
        *(MIXTURE, "len(mine) / len(batch) * loss.value", "loss.value / len(self.parts)"),
        mixture.test_every_sample_belongs_to_one_with_its_condition,
    ),
    (
        "the conditions of other samples",
        *(MIXTURE, "select(batch.cond, rows)", "{n: v[: len(index)] for n, v in batch.cond.items()}"),
        mixture.test_every_sample_belongs_to_one_with_its_condition,
    ),
    (
        "terms that overwrite each other's logs",
        *(
            "flowmap.training.loop",
            "logs[name] + mean if name in logs else mean\n        return",
            "mean\n        return",
        ),
        methods.test_both_terms_of_tvm_are_logged,
    ),
    (
        "a product with a graph counted as one without",
        *("flowmap.testing.counting", "out.requires_grad or (tangent and", "out.requires_grad or (False and"),
        test_counting.test_a_forward_mode_derivative_with_a_graph_is_a_call_with_a_graph,
    ),
]


@pytest.mark.parametrize("module, old, new, test", [d[1:] for d in DEFECTS], ids=[d[0] for d in DEFECTS])
def test_a_planted_defect_fails_the_test_that_is_there_for_it(module: str, old: str, new: str, test: Test) -> None:
    with planted(module, old, new), pytest.raises((AssertionError, pytest.fail.Exception)):
        test()
