"""Defects planted on purpose, each in one line of the core, and the test that fails for it.

Every one of them trains without an error, and most were made by somebody: they are why the tests are what they are.
Defects of backbones are planted in tests/testing/test_kit.py.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import CodeType, FunctionType, ModuleType

import pytest
import torch

from flowmap.derivative import CentralDifference, ForwardMode
from flowmap.guidance import Exact
from flowmap.rollout import ConsistencySimulation, FlowMapBackwardSimulation, consistency_step, ode_step
from flowmap.times import Triangle
from tests import (
    test_derivative,
    test_guidance,
    test_path,
    test_reweights,
    test_rollout,
    test_seeding,
    test_stream,
    test_time_embedding,
    test_times,
    test_types,
)
from tests.methods import test_costs
from tests.objectives import test_distribution_matching as dmd
from tests.objectives import test_flow_map_matching as matching
from tests.objectives import test_mixture, test_rounding
from tests.objectives import test_teachers_velocity as teachers_velocity
from tests.toys import Toy
from tests.training import test_checkpoint, test_ema, test_loop

Test = Callable[[], None]
Defect = tuple[str, str, str, str, Test]  # what is wrong, module, a line, the line as it is then, the test


def functions(module: ModuleType) -> dict[str, FunctionType]:
    """What `module` defines, methods and properties included, by qualified name."""
    found = {}
    owners = [module, *(c for c in vars(module).values() if isinstance(c, type) and c.__module__ == module.__name__)]
    for owner in owners:
        for item in vars(owner).values():
            f = item.fget if isinstance(item, property) else getattr(item, "__func__", item)
            f = inspect.unwrap(f) if callable(f) else f
            if isinstance(f, FunctionType) and f.__module__ == module.__name__:
                found[f.__qualname__] = f
    return found


@contextmanager
def planted(name: str, old: str, new: str) -> Iterator[None]:
    """The module with `new` in place of `old`, which must stand there once: function by function, in place."""
    module = sys.modules.get(name) or importlib.import_module(name)
    source = Path(inspect.getfile(module)).read_text()
    assert source.count(old) == 1, f"{name} has {old!r} {source.count(old)} times"
    other = ModuleType(name)
    other.__dict__.update({"__package__": module.__package__, "__file__": module.__file__})
    sys.modules[name], true = other, module
    try:
        exec(compile(source.replace(old, new), str(module.__file__), "exec"), other.__dict__)
    finally:
        sys.modules[name] = true
    before: dict[str, CodeType] = {key: f.__code__ for key, f in functions(module).items()}
    swapped = functions(other)
    changed = [key for key, code in before.items() if swapped[key].__code__ != code]
    assert changed, f"{old!r} is in no function of {name}"
    try:
        for key in changed:
            functions(module)[key].__code__ = swapped[key].__code__
        yield
    finally:
        for key in changed:
            functions(module)[key].__code__ = before[key]


MATCHING, GUIDANCE, DERIVATIVE = "flowmap.objectives.flow_map_matching", "flowmap.guidance", "flowmap.derivative"
DMD, ROLLOUT, TIMES, TYPES = (
    "flowmap.objectives.distribution_matching",
    "flowmap.rollout",
    "flowmap.times",
    "flowmap._types",
)
LOOP, CHECKPOINT, STAGES = "flowmap.training.loop", "flowmap.training.store.checkpoint", "flowmap.training.stages"
SKIPS = "flowmap.training.skips"
SKIPS, MIXTURE = "flowmap.training.skips", "flowmap.objectives.mixture"

at_rest = partial(matching.test_at_the_true_flow_map_there_is_no_gradient, Triangle(0.0, 0.0), ())
guided_rest = partial(test_guidance.test_the_exact_form_rests_at_the_flow_map_of_the_guided_field, 0.9, 0.5)
fused_rest = partial(test_guidance.test_the_fused_form_rests_at_its_own_fixed_point, 0.9, 0.5, True)
descends = partial(dmd.test_the_mean_descends_towards_the_teachers, FlowMapBackwardSimulation(), 0.8)
replays = test_rollout.test_a_rollout_walked_again_has_the_same_samples_and_the_same_gradient
accumulates = partial(test_loop.test_accumulation_is_the_step_of_the_whole_batch, 3, ())
linear = partial(test_derivative.test_a_network_linear_in_z_and_t_is_differentiated_exactly, t=0.6, r=0.0)

DEFECTS: list[Defect] = [
    # the identity u = v - (t - r) d/dt u
    ("the sign of the derivative term", MATCHING, "y = v - gap", "y = v + gap", at_rest),
    ("r and t swapped in the network", MATCHING, "u = u_θ(z, t, r, c, kept)", "u = u_θ(z, r, t, c, kept)", at_rest),
    (
        "r and t swapped in the derivative",
        *(MATCHING, "z[some], t[some], r[some]", "z[some], r[some], t[some]"),
        at_rest,
    ),
    (
        "the derivative of other samples",
        *(MATCHING, "select(c, some)", "{name: value[: len(some)] for name, value in c.items()}"),
        matching.test_where_the_prompt_is_dropped_the_target_is_not_guided,
    ),
    (
        "the derivative on the diagonal too",
        *(MATCHING, "off = (t != r)", "off = (t == t)"),
        partial(test_costs.test_stage_1_costs_1_G_and_2_F, False, None),
    ),
    (
        "a target with a graph",
        *(MATCHING, "with torch.no_grad():", "with torch.enable_grad():"),
        matching.test_the_derivative_is_asked_off_the_diagonal_alone_and_without_a_graph,
    ),
    (
        "an unconditional branch without the history",
        *(MATCHING, "null, c = nullify(c, batch.null),", "null, c = nullify(c, {**batch.null, 'history': 0 * x[:1]}),"),
        partial(matching.test_the_unconditional_branch_has_no_text_and_keeps_the_history, Exact(3.0, 0.0)),
    ),
    (
        "no null branch where the prompt was dropped",
        *(MATCHING, "u_null = u.detach().clone()", "u_null = torch.zeros_like(u)"),
        partial(matching.test_it_is_what_it_would_be_with_a_null_call_for_every_sample, matching.WITH_NULL[1]),
    ),
    (
        "prompts that are never dropped",
        *(MATCHING, "nullify(c, batch.null, dropped)", "c"),
        matching.test_prompts_are_dropped_at_the_rate_asked_for_and_the_history_never,
    ),
    (
        "an unguided teacher",
        *(MATCHING, 'guide.w if self.velocity == "teacher" else 1.0', "1.0"),
        matching.test_the_teachers_velocity_is_guided_and_has_no_graph,
    ),
    # guidance
    ("w off by one", GUIDANCE, "self.w * v + (1 - self.w) * u_null", "(self.w + 1) * v - self.w * u_null", guided_rest),
    (
        "guidance where the prompt was dropped",
        *(GUIDANCE, "torch.where(expand(dropped, v), v, ", "torch.where(expand(dropped, v) & False, v, "),
        matching.test_where_the_prompt_is_dropped_the_target_is_not_guided,
    ),
    ("∅ at (t, r) in the exact form", GUIDANCE, "        return t\n", "        return r\n", guided_rest),
    ("the fused divisor dropped", MATCHING, " / guide.scale", "", fused_rest),
    (
        "the fused sum with the wrong sign",
        *(GUIDANCE, "(u + (self.w - 1) * u_null)", "(u - (self.w - 1) * u_null)"),
        test_guidance.test_the_fused_form_rests_at_the_guided_velocity_on_the_diagonal,
    ),
    (
        "the exact form w² times as strong",
        *(GUIDANCE, "self.w**-2", "1.0"),
        test_guidance.test_the_forms_have_the_same_gradient_on_the_diagonal,
    ),
    # derivatives
    (
        "a difference divided by 2 h at the border",
        *(DERIVATIVE, "(u_above - u_below) / expand(above - below, z)", "(u_above - u_below) / (2 * self.h)"),
        partial(
            test_derivative.test_near_a_border_the_difference_is_still_consistent, CentralDifference(5e-3), 1.0, 0.2
        ),
    ),
    (
        "a difference in time alone",
        *(DERIVATIVE, "[z + expand(s - t, z) * v for s in (above, below)]", "[z for s in (above, below)]"),
        partial(linear, CentralDifference(0.05)),
    ),
    (
        "a difference beyond pure noise",
        *(DERIVATIVE, "above.clamp_max(self.high), ", "above, "),
        partial(test_derivative.test_clamped_differences_stay_between_r_and_noise, derivative=CentralDifference(0.05)),
    ),
    (
        "rounding looked for where it is the same",
        *("flowmap.objectives.rounding", "torch.finfo(u.precision).eps", "0"),
        partial(test_rounding.test_it_is_the_true_error_of_a_difference_of_rounded_values, 0.02),
    ),
    (
        "two rounding errors taken for one",
        *("flowmap.objectives.rounding", " / 2**0.5", ""),
        partial(test_rounding.test_it_is_the_true_error_of_a_difference_of_rounded_values, 0.02),
    ),
    (
        "rounding beside that of the diagonal's samples",
        *(MATCHING, "(v - u.detach())[off]", "v - u.detach()"),
        test_rounding.test_samples_on_the_diagonal_do_not_count,
    ),
    ("r moved along", DERIVATIVE, "torch.zeros_like(r))", "torch.ones_like(r))", partial(linear, ForwardMode())),
    (
        "times in bfloat16",
        *(
            DERIVATIVE,
            "above, below = t + self.h, t - self.h",
            "above, below = (t.bfloat16() + s for s in (self.h, -self.h))",
        ),
        test_derivative.test_times_and_states_reach_a_bfloat16_network_in_float32,
    ),
    # times
    (
        "shares counted on each rank",
        *(TYPES, "(self._local(self.permutation(total)) + self.uniform(n, NOTHING)) / total"),
        "(self.permutation(n) + self.uniform(n, NOTHING)) / n",
        partial(test_times.test_ranks_and_micro_batches_see_the_pairs_of_the_whole, 8),
    ),
    (
        "shares drawn and not counted",
        *(TYPES, "(self._local(self.permutation(total)) + self.uniform(n, NOTHING)) / total"),
        "self.uniform(n, NOTHING)",
        partial(test_times.test_ranks_and_micro_batches_see_the_pairs_of_the_whole, 1),
    ),
    (
        "noise that depends on the rank",
        *(
            TYPES,
            "drawn if self.positions is None else drawn[list(self.positions)]",
            "drawn[: len(self.positions or drawn)]",
        ),
        partial(test_times.test_ranks_and_micro_batches_see_the_pairs_of_the_whole, 2),
    ),
    (
        "no edge",
        *(TIMES, "torch.full_like(r, self.within[0]), r)", "r, r)"),
        test_times.test_a_triangle_of_no_diagonal_and_no_edge_has_neither,
    ),
    # weights
    (
        "a mean over all samples and not over the diagonal",
        *("flowmap.reweights", 'shared.mean("diagonal", own, on)', 'shared.mean("diagonal", own, on | True)'),
        test_reweights.test_balanced_gives_every_sample_what_the_diagonal_has_on_average,
    ),
    (
        "a weight with a gradient",
        *("flowmap.reweights", "factor = reweight(loss.detach(), noise", "factor = reweight(loss, noise"),
        test_reweights.test_no_gradient_flows_through_the_weights,
    ),
    (
        "not a number without a diagonal",
        *("flowmap.reweights", "on | ~μ.isfinite() | ~own.isfinite()", "on"),
        partial(test_reweights.test_before_there_has_been_a_diagonal_a_loss_is_what_it_is, torch.tensor([4.0, 1.0])),
    ),
    (
        "the gradient of one jump counted once",
        *("flowmap.steps", "Counted(u, n if i ==", "Counted(u, 1 if i =="),
        partial(test_rollout.test_the_gradient_through_one_jump_counts_as_often_as_there_are_jumps, 1, 3, False),
    ),
    # distribution matching
    ("DMD away from the teacher", DMD, "g = (fake - real)", "g = (real - fake)", descends),
    (
        "no normaliser",
        *(DMD, "g = (fake - real) / expand(scale, x)", "g = fake - real"),
        dmd.test_the_gradient_is_the_papers_at_the_samples,
    ),
    ("no floor", DMD, ".clamp_min(floor)", "", dmd.test_the_normaliser_has_a_floor),
    (
        "one pass of the critic with another noise",
        *(DMD, "shared.keep_pass(rng, t, noise, v)", "shared.keep_pass(rng, t, 0 * noise, v)"),
        dmd.test_one_pass_of_the_critic_gives_the_fake_score_and_its_own_gradient,
    ),
    (
        "what is not finite stepped on",
        *(DMD, "finite = g.isfinite().flatten(1).all(1)", "finite = g.flatten(1).all(1) | True"),
        dmd.test_a_sample_whose_direction_is_not_finite_counts_as_nothing_and_is_counted,
    ),
    (
        "the teacher's w off by one",
        *(DMD, "batch.null, w)", "batch.null, w + 1)"),
        dmd.test_the_teacher_is_guided_by_w_of_the_standard_scale,
    ),
    (
        "critic and teacher at other noise",
        *(DMD, "velocity(z, t, batch.cond, batch.null", "velocity(z + 1, t, batch.cond, batch.null"),
        dmd.test_critic_and_teacher_are_asked_at_the_same_noisy_samples_within_the_times,
    ),
    (
        "samples kept with their graph",
        *(TYPES, "range(len(x)), x.detach(), strict", "range(len(x)), x, strict"),
        test_types.test_samples_are_kept_detached_by_micro_batch_for_one_iteration,
    ),
    # the scale of Balanced
    (
        "the scale of the diagonal raised, and nothing else",
        *("flowmap.reweights", "μ / (own + self.c)", "μ / (loss + self.c)"),
        partial(teachers_velocity.test_the_gradient_falls_with_the_error, "sample"),
    ),
    (
        "no noise with a teacher's velocity",
        *(MATCHING, "noise = self._noise(v - v_c, t, r, dropped, shared)", "noise = None"),
        partial(teachers_velocity.test_a_student_that_is_its_teacher_learns_what_is_written_down, "full", 1.0),
    ),
    (
        "what guidance adds counted as noise",
        *(MATCHING, "self._noise(v - v_c,", "self._noise(v - v_null - guide.w * (v_c - v_null),"),
        partial(teachers_velocity.test_on_the_diagonal_the_loss_of_the_data_is_the_teachers_and_the_noise, 3.0, 0.5),
    ),
    (
        "noise without w²",
        *(MATCHING, "self.guidance.w**2 * noise", "self.guidance.w * noise"),
        partial(teachers_velocity.test_a_student_that_is_its_teacher_learns_what_is_written_down, "full", 3.0),
    ),
    (
        "micro-batches in the order of the data",
        *("flowmap.training.micro", "if not isinstance(objective, Ordered):", "if objective is not None:"),
        partial(test_loop.test_with_balanced_any_accumulation_is_the_whole_batch, "teacher"),
    ),
    (
        "the diagonal last",
        *("flowmap.training.micro", "key=lambda i: not first[i]", "key=lambda i: first[i]"),
        partial(test_loop.test_with_balanced_any_accumulation_is_the_whole_batch, "data"),
    ),
    (
        "the first of a mixture drawn by another key",
        *("flowmap.objectives.mixture", "objective.first(n, rng.fork(k))", "objective.first(n, rng)"),
        partial(test_loop.test_with_balanced_any_accumulation_is_the_whole_batch, "data"),
    ),
    # rollouts
    (
        "one renewed noise for every call",
        *(ROLLOUT, "Rng.of(z, CHUNK, k) if rng is None", "Rng.seeded(CHUNK, k) if rng is None"),
        test_rollout.test_batches_that_are_sampled_one_by_one_share_no_renewed_noise,
    ),
    (
        "a seed of 32 bits",
        "flowmap.seeding",
        "own.set_state(torch.frombuffer(state, dtype=torch.uint8))",
        'own.manual_seed(int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little") >> 1)',
        test_seeding.test_streams_that_agree_in_32_bits_of_a_hash_are_two,
    ),
    (
        "a rollout that returns a noisy state",
        *(TIMES, "g[i + 1], g[-1]]", "g[i + 1], g[i + 1]]"),
        test_rollout.test_the_rollout_of_the_true_flow_map_does_not_depend_on_the_draw,
    ),
    (
        "a gradient through the last jump alone",
        *(ROLLOUT, "last = steps if grad_last is None else", "last = 1 if grad_last is None else"),
        test_rollout.test_a_gradient_reaches_every_jump,
    ),
    (
        "γ and 1 - γ swapped in a restart",
        *("flowmap.steps", "below = (1 - gamma) * r", "below = gamma * r"),
        test_rollout.test_restart_with_gamma_0_is_the_flow_map_and_with_gamma_1_the_consistency_sampler,
    ),
    (
        "a state in bfloat16",
        *(ROLLOUT, "noise.to(torch.promote_types(noise.dtype, torch.float32))", "noise"),
        partial(test_rollout.test_the_state_is_float32_whatever_the_network_returns, torch.bfloat16),
    ),
    (
        "one draw for every chunk",
        *(ROLLOUT, "if rng is None else rng.fork(CHUNK, k)", "if rng is None else rng.fork(CHUNK, 0)"),
        test_rollout.test_each_chunk_draws_for_itself_and_a_walk_leaves_its_rng_as_it_was,
    ),
    (
        "draws that depend on how many frames were given",
        *(ROLLOUT, "enumerate(noise, len(given))", "enumerate(noise)"),
        partial(test_rollout.test_a_video_that_goes_on_from_its_own_beginning_is_the_same_video, consistency_step, 1),
    ),
    (
        "frames that are given and not seen",
        *(ROLLOUT, "rng, given=given, **settings", "rng, **settings"),
        partial(test_rollout.test_a_video_that_goes_on_from_its_own_beginning_is_the_same_video, ode_step, 1),
    ),
    (
        "the noise of the frames that are given",
        *(ROLLOUT, "dim=1)[len(past) :]", "dim=1)[: len(rest)]"),
        partial(test_rollout.test_a_video_that_goes_on_from_its_own_beginning_is_the_same_video, ode_step, 1),
    ),
    (
        "a chunk that is encoded for nobody",
        *(
            ROLLOUT,
            "        yield x\n        finished = ()",
            "        cache = u.extend(cache, x.detach(), cond)\n        yield x\n        finished = ()",
        ),
        test_rollout.test_the_cache_is_extended_between_chunks_only,
    ),
    (
        "a chunk walked again with other draws",
        *(ROLLOUT, "cond, seen, own)", "cond, seen, rng)"),
        partial(replays, ConsistencySimulation, (3,), False, False, 3),
    ),
    (
        "a graph that is kept for all chunks",
        *(ROLLOUT, "again = replay and torch.is_grad_enabled()", "again = False"),
        test_rollout.test_what_is_walked_again_is_not_in_memory_before,
    ),
    (
        "a history of the conditional branch for both",
        *(GUIDANCE, "torch.cat([x, x]), self._both(cond)", "torch.cat([x, x]), concat(cond, cond)"),
        test_rollout.test_in_chunks_each_branch_of_guidance_has_its_own_history,
    ),
    (
        "noise that makes up for nothing",
        *("flowmap.path", "(t**2 - (a * r) ** 2)", "(t**2 - r**2)"),
        test_path.test_renoising_keeps_the_marginal,
    ),
    # two times
    (
        "γ on t, and the rest on r",
        *("flowmap.time_embedding", "now + gamma * (then - now)", "then + gamma * (now - then)"),
        lambda: test_time_embedding.test_r_has_the_weight_gamma_and_t_the_rest(embedder()),
    ),
    (
        "one embedder for both times",
        *("flowmap.time_embedding", "embedder, copy.deepcopy(embedder)", "embedder, embedder"),
        lambda: test_time_embedding.test_the_second_embedder_is_a_copy(embedder()),
    ),
    # training
    (
        "an average that is never applied",
        *(LOOP, "average.copy_to(self.trained[role])", "pass"),
        test_loop.test_the_average_takes_the_place_of_the_weights_at_the_end_of_the_stage,
    ),
    (
        "an average from the first iteration on",
        *(
            "flowmap.training.ema",
            "1.0 if iteration < self.ema.start else 1.0 - self.ema.decay",
            "1.0 - self.ema.decay",
        ),
        test_ema.test_it_copies_until_its_start_and_then_averages,
    ),
    (
        "accumulation without its factor",
        *(LOOP, "weight * len(batch) / (self.stage.batch * self.context)", "weight"),
        accumulates,
    ),
    (
        "one noise for every micro-batch",
        LOOP,
        "Rng((*key, term), positions, self.stage.batch)",
        "Rng((*key, term))",
        accumulates,
    ),
    (
        "gradients that are never cleared",
        *(LOOP, "optimizer.zero_grad(set_to_none=True)", "pass"),
        test_loop.test_gradients_do_not_outlive_their_step,
    ),
    (
        "a step on what is not a number",
        *(SKIPS, "(wrong | left).float()", "torch.zeros_like(length)"),
        test_loop.test_a_gradient_that_is_not_finite_is_skipped_and_counted,
    ),
    (
        "a step without a sample",
        *(SKIPS, "(wrong | left).float()", "wrong.float()"),
        partial(test_loop.test_a_step_of_no_sample_is_skipped_and_one_of_few_is_not, None),
    ),
    (
        "a step without a sample of one micro-batch",
        *(SKIPS, "self.seen[name] + mean if name in self.seen else mean", "mean"),
        partial(test_loop.test_a_step_of_no_sample_is_skipped_and_one_of_few_is_not, 3),
    ),
    (
        "a gradient of zero for good",
        *(SKIPS, "(length == 0) * Why.NO_GRADIENT", "torch.zeros_like(length)"),
        test_loop.test_a_gradient_of_exactly_zero_many_times_in_a_row_stops_the_run,
    ),
    (
        "a step of a term of weight 0",
        *(LOOP, "if weight:", "if True:"),
        test_loop.test_a_term_of_weight_0_costs_no_step,
    ),
    (
        "one mean for all terms",
        *(LOOP, "self.shared.at(update.role, key[-1], term)", "self.shared.at()"),
        partial(test_loop.test_each_balanced_has_a_mean_of_its_own, None),
    ),
    (
        "one mean for all reweights",
        *("flowmap.reweights", "with shared.at(number):", "with shared.at():"),
        test_reweights.test_two_in_a_row_have_a_mean_each,
    ),
    (
        "one mean for all parts",
        *(MIXTURE, "with shared.at(k):", "with shared.at():"),
        test_mixture.test_each_part_has_means_of_its_own,
    ),
    (
        "0 times what an idle call gives",
        *(MIXTURE, "Loss(_constant(loss.value, none)", "Loss(0 * loss.value"),
        partial(test_mixture.test_a_call_that_is_only_made_for_other_ranks_costs_no_step, "no network"),
    ),
    (
        "weights that hear an idle call",
        *(MIXTURE, "own.register_hook(torch.zeros_like)", "pass"),
        partial(test_mixture.test_what_overflows_within_a_network_in_such_a_call_costs_no_step, False),
    ),
    (
        "a mean of a step that was skipped",
        *(TYPES, "torch.where(skipped == 0, mean.total, before.total)", "mean.total"),
        partial(test_loop.test_of_a_step_that_another_term_spoils_no_mean_is_remembered, None),
    ),
    (
        "an idle call that goes back through the network",
        *(MIXTURE, "return _constant(out, out.detach()) if isinstance(out, Tensor) else out", "return out"),
        partial(test_mixture.test_a_call_that_is_only_made_for_other_ranks_costs_no_step, "student"),
    ),
    (
        "a derivative times 0 before its warm-up",
        *(MATCHING, "if ϱ else v", "if True else v"),
        matching.test_before_its_warm_up_a_derivative_that_is_not_finite_costs_nothing,
    ),
    (
        "the first samples blamed for the others",
        *(
            SKIPS,
            "self.bad[place] += torch.where(each.any(), each, wrong.to(self.bad)) * wrong",
            "self.bad[:1] += wrong",
        ),
        partial(test_loop.test_the_samples_are_named, 3),
    ),
    (
        "a streak that a good step does not end",
        *(SKIPS, "torch.tensor([in_a_row, 0])", "torch.tensor([in_a_row, in_a_row])"),
        test_loop.test_a_streak_that_a_checkpoint_has_ends_with_the_first_good_step,
    ),
    (
        "gradients that are not clipped",
        *(LOOP, "clip(gradients, length, settings.clip)", "clip(gradients, length, 1e9)"),
        test_loop.test_gradients_are_clipped_by_their_norm_before_the_step,
    ),
]


def embedder() -> test_time_embedding.Embedder:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return test_time_embedding.Embedder()


@pytest.mark.parametrize("module, old, new, test", [d[1:] for d in DEFECTS], ids=[d[0] for d in DEFECTS])
def test_a_planted_defect_fails_the_test_that_is_there_for_it(module: str, old: str, new: str, test: Test) -> None:
    with planted(module, old, new), pytest.raises((AssertionError, pytest.fail.Exception)):
        test()


# Defects of checkpoints: the run is interrupted, and ends otherwise than one that was not.
RESUMING: list[tuple[str, str, str, str]] = [
    ("moments that are lost", CHECKPOINT, "optimizer.state[p] = moments[p]", "pass"),
    (
        "an average that is lost",
        CHECKPOINT,
        'live |= {f"ema/{role}/{name}": tensor for',
        'live |= {f"ema/{role}/{name}": tensor.clone() for',
    ),
    ("weights that are lost", CHECKPOINT, 'else f"{role}/{name}"] = p', 'else f"{role}/{name}"] = p.clone()'),
    (
        "an iteration made twice",
        STAGES,
        "for iteration in range(first, stage.steps)",
        "for iteration in range(first - 1, stage.steps)",
    ),
    ("a damaged file that is believed", "flowmap.training.store.manifest", "found != digest", "False"),
]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    return test_checkpoint.run(tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize(
    "module, old, new",
    [pytest.param(*d[1:], id=d[0]) for d in RESUMING[:4]],
)
def test_a_defect_of_resuming_is_seen(
    module: str,
    old: str,
    new: str,
    tmp_path: Path,
    uninterrupted: dict[str, torch.Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    inside = test_checkpoint.KILLS["inside the second stage"] + 2
    with planted(module, old, new), pytest.raises(AssertionError):
        test_checkpoint.test_a_run_that_was_killed_ends_as_if_it_had_not_been(inside, tmp_path, uninterrupted)


def test_a_damaged_file_that_is_believed_is_seen(
    tmp_path: Path, uninterrupted: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, module, old, new = RESUMING[4]
    damaged = partial(test_checkpoint.test_a_damaged_checkpoint_is_put_aside_and_the_one_before_is_taken)
    with planted(module, old, new), pytest.raises(AssertionError):
        damaged(test_checkpoint.SHARD, test_checkpoint.other_values, tmp_path, uninterrupted)


def test_a_critic_that_does_not_inherit_is_seen(tmp_path: Path) -> None:
    line = 'weights["critic"][name].copy_(p)'
    with planted(STAGES, line, "pass"), pytest.raises(AssertionError):
        test_checkpoint.test_a_critic_starts_as_the_teacher_that_was_fine_tuned(Toy(), tmp_path)


# Defects of streaming, on a student that generates in chunks.
STREAMING: list[tuple[str, str, str, Callable[[Path], None]]] = [
    (
        "another seed than the one asked for",
        *("Rng.seeded(seed)", "Rng.seeded(0)"),
        partial(test_stream.test_a_stream_is_the_video_that_is_sampled_from_the_same_seed, seed=3, steps=1),
    ),
    (
        "given frames that are not decoded",
        *("chain(given, made)", "chain((), made)"),
        partial(test_stream.test_a_stream_goes_on_from_an_image_or_a_video, frames=5, sizes=[1, 4, 4]),
    ),
    (
        "given frames that are not seen",
        *("grid, None, given=given, step=step)", "grid, None, step=step)"),
        partial(test_stream.test_a_stream_goes_on_from_an_image_or_a_video, frames=5, sizes=[1, 4, 4]),
    ),
    (
        "a video that is made before it is shown",
        *("chain(given, made))", "[*given, *made])"),
        test_stream.test_a_chunk_is_made_when_its_frames_are_asked_for,
    ),
]


@pytest.mark.parametrize("old, new, test", [d[1:] for d in STREAMING], ids=[d[0] for d in STREAMING])
def test_a_defect_of_streaming_is_seen(old: str, new: str, test: Callable[[Path], None], tmp_path: Path) -> None:
    student = test_stream.saved(tmp_path / "student")
    with planted("flowmap.stream", old, new), pytest.raises(AssertionError):
        test(student)


def test_planting_is_undone_and_a_line_that_is_not_there_is_an_error() -> None:
    with planted("flowmap.reweights", "μ / (own + self.c)", "loss"):
        pass
    test_reweights.test_balanced_gives_every_sample_what_the_diagonal_has_on_average()
    with pytest.raises(AssertionError, match="has 'nowhere' 0 times"), planted("flowmap.reweights", "nowhere", ""):
        pass
