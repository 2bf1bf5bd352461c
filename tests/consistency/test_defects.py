"""Defects planted on purpose in the consistency methods, each in one line, and the test that fails for it."""

from __future__ import annotations

from functools import partial

import pytest
from flowmap_consistency.consistency import euler, heun

from tests.consistency import test_discrete, test_rcm, test_scm, test_self_forcing, test_trigflow
from tests.test_planted_defects import Defect, Test, planted

DISCRETE, TRIG, SCM, RCM, CHUNKED, SELF_FORCING, CAUSVID = (
    f"flowmap_consistency.{name}"
    for name in ("consistency", "trigflow", "scm", "rcm", "chunked", "self_forcing", "causvid")
)

discrete_rest = partial(test_discrete.test_at_the_true_consistency_function_there_is_no_gradient, 1, ())
scm_rest = partial(test_scm.test_at_the_true_consistency_function_there_is_no_gradient, "scm", ())
rcm_rest = partial(test_scm.test_at_the_true_consistency_function_there_is_no_gradient, "rcm", ())
starts = test_scm.test_the_warm_up_starts_from_the_velocity_with_neither_term_that_ρ_multiplies
renoised = [partial(test_rcm.test_noised_again_the_state_has_the_marginal_of_its_time, seed) for seed in range(8)]


def any_of(tests: list[partial[None]]) -> None:
    for test in tests:
        test()


DEFECTS: list[Defect] = [
    # discrete consistency
    (
        "a target at the other end of the step",
        *(DISCRETE, "y = u_θ.jump(z, r, zero, c)", "y = u_θ.jump(z, t, zero, c)"),
        discrete_rest,
    ),
    (
        "a target with a graph",
        *(DISCRETE, "with torch.no_grad():", "with torch.enable_grad():"),
        test_discrete.test_training_pairs_have_one_noise,
    ),
    (
        "an Euler step up",
        *(DISCRETE, "return z - expand(t - r, z) * v(z, t)", "return z + expand(t - r, z) * v(z, t)"),
        partial(test_discrete.test_the_gradient_there_is_the_solvers_local_error, euler, 2),
    ),
    (
        "Heun's second slope at the first time",
        *(DISCRETE, "v(z - h * v_t, r))", "v(z - h * v_t, t))"),
        partial(test_discrete.test_the_gradient_there_is_the_solvers_local_error, heun, 3),
    ),
    (
        "a pair of two noises",
        *(DISCRETE, "z, _ = interpolate(x, noise, r)", "z, _ = interpolate(x, rng.noise_like(x), r)"),
        test_discrete.test_training_pairs_have_one_noise,
    ),
    (
        "an unguided teacher",
        *(DISCRETE, "batch.null, self.w), z, t, r)", "batch.null, 1.0), z, t, r)"),
        test_discrete.test_it_rests_at_the_guided_teachers,
    ),
    (
        "a grid without its last step",
        *(DISCRETE, "last = euler_grid(self.grid, self.shift).to(like.device), self.grid - self.skip"),
        "last = euler_grid(self.grid, self.shift).to(like.device), self.grid - self.skip - 1",
        test_discrete.test_neighbours_are_on_the_grid_each_equally_often,
    ),
    # TrigFlow
    (
        "F with the wrong sign in c - s",
        *(TRIG, "return ((c - s) * x + u) / (c + s)", "return ((s - c) * x + u) / (c + s)"),
        test_trigflow.test_the_consistency_function_is_the_prediction_of_the_data,
    ),
    (
        "a derivative without the change of the factor",
        *(TRIG, "return -2 * x / p**2 + m / p * dx - m / p**2 * u + du / p**3", "return m / p * dx + du / p**3"),
        test_trigflow.test_the_derivative_is_that_of_the_wrapped_network,
    ),
    (
        "a derivative per t and not per θ",
        *(TRIG, "du / p**3", "du / p"),
        test_trigflow.test_the_derivative_is_that_of_the_wrapped_network,
    ),
    # sCM and rCM
    ("the tangent with the wrong sign", SCM, "ρ * (c * s * x + T)", "ρ * (c * s * x - T)", scm_rest),
    ("ρ on c s x alone, as in the released code", SCM, "ρ * (c * s * x + T)", "(ρ * c * s * x + T)", starts),
    ("ρ on T alone", SCM, "ρ * (c * s * x + T)", "(c * s * x + ρ * T)", starts),
    (
        "no warm-up",
        SCM,
        "self.warmup(shared.iteration))",
        "1.0)",
        partial(test_scm.test_the_first_iteration_rests_at_the_teacher_itself_and_the_last_does_not, "rcm"),
    ),
    (
        "sCM's factor in rCM",
        *(SCM, 'a = c**2 if self.form == "scm" else', 'a = c**2 if self.form != "" else'),
        partial(test_scm.test_in_between_ρ_multiplies_both_terms, "rcm"),
    ),
    (
        "a step away",
        SCM,
        "(F + g).detach()",
        "(F - g).detach()",
        partial(test_scm.test_at_a_wrong_function_it_pulls_back, "scm", {"bias": 0.1}),
    ),
    ("c left out of T", SCM, "c * s * dF", "s * dF", rcm_rest),
    (
        "the velocity of the sample in distillation",
        *(
            SCM,
            'if self.velocity == "teacher":\n                v =',
            'if self.velocity == "teacher":\n                _ =',
        ),
        scm_rest,
    ),
    (
        "a tangent that is not normalised",
        *(SCM, "g / (expand(size, g) + 0.1)", "g"),
        test_scm.test_the_loss_is_the_mean_square_of_a_normalised_tangent,
    ),
    (
        "not a number stepped on",
        *(SCM, "finite = size.isfinite()", "finite = size.isfinite() | True"),
        test_scm.test_a_sample_whose_tangent_is_not_finite_counts_as_nothing_and_is_counted,
    ),
    (
        "an unguided teacher of sCM",
        SCM,
        "batch.null, self.w)",
        "batch.null, 1.0)",
        partial(test_scm.test_it_rests_at_the_guided_teachers, "scm"),
    ),
    (
        "the critic's error over sin and not sin squared",
        *(RCM, "return (1 - t) ** 2 + t**2", "return ((1 - t) ** 2 + t**2).sqrt()"),
        test_rcm.test_the_critics_loss_is_that_of_its_data_over_sin_squared,
    ),
    (
        "a rollout that follows the flow",
        *(RCM, "step=consistency_step, grad_last=1", "grad_last=1"),
        test_rcm.test_its_steps_are_one_to_four_each_as_often_and_the_last_alone_has_a_gradient,
    ),
    (
        "times that rise",
        *(RCM, "sort(0, descending=True)", "sort(0)"),
        test_rcm.test_its_times_fall_from_pure_noise_and_are_each_samples_own,
    ),
    (
        "a gradient through every jump",
        *(RCM, "step=consistency_step, grad_last=1", "step=consistency_step"),
        test_rcm.test_its_steps_are_one_to_four_each_as_often_and_the_last_alone_has_a_gradient,
    ),
    (
        "noise that does not go with its time",
        "flowmap.path",
        "(t**2 - (a * r) ** 2)",
        "(t - (a * r) ** 2)",
        partial(any_of, renoised),
    ),
    (
        "a critic in every iteration",
        *(RCM, "skip=every", "every=1"),
        partial(test_rcm.test_student_and_critic_take_turns, 5),
    ),
    # Self-Forcing and CausVid
    (
        "the history of the chunk itself",
        *(CHUNKED, "made.append(u.jump(z[k], t[k], torch.zeros_like(t[k]), cond, cache))"),
        "cache = u.extend(cache, clean, cond); made.append(u.jump(z[k], t[k], torch.zeros_like(t[k]), cond, cache))",
        test_self_forcing.test_every_chunk_has_its_own_time_and_the_clean_chunks_before_it,
    ),
    (
        "a gradient through the history",
        *(CHUNKED, "with torch.no_grad():", "with torch.enable_grad():"),
        test_self_forcing.test_no_gradient_flows_through_the_history,
    ),
    (
        "one time for all chunks",
        *(CHUNKED, "t = [times[draw(len(noise), times, rng)] for _ in sizes]"),
        "t = [times[draw(len(noise), times, rng)]] * len(sizes)",
        test_self_forcing.test_data_are_noised_to_their_own_time_and_one_jump_brings_them_back,
    ),
    (
        "states after their step",
        *(SELF_FORCING, "if t in stops:", "if r in stops or t == 1:"),
        test_self_forcing.test_the_trajectory_passes_through_every_listed_time,
    ),
    (
        "an unguided trajectory",
        *(SELF_FORCING, "Guided(teacher, self.w, batch.null)", "Guided(teacher, 1.0, batch.null)"),
        test_self_forcing.test_the_teacher_is_guided,
    ),
    (
        "a rollout from noise in place of data",
        *(CAUSVID, "rollout=NoisedData(self.times, batch.x)", "rollout=NoisedData(self.times, 0 * batch.x)"),
        partial(test_self_forcing.test_causvids_student_and_critic_learn_from_noised_data, 0),
    ),
]


@pytest.mark.parametrize("module, old, new, test", [d[1:] for d in DEFECTS], ids=[d[0] for d in DEFECTS])
def test_a_planted_defect_fails_the_test_that_is_there_for_it(module: str, old: str, new: str, test: Test) -> None:
    with planted(module, old, new), pytest.raises((AssertionError, pytest.fail.Exception)):
        test()
