"""What u itself must do."""

from __future__ import annotations

import warnings

import torch

from ..._types import nullify
from ...model import FlowMapSpec
from ...time_embedding import ExactTimeEmbedding, TwoTimeEmbedding
from ..kit_helpers import Skip, build, close, example, example_batch, part, perturb, require, same, times


def check_u_has_the_shape_and_dtype_of_z(spec: FlowMapSpec) -> None:
    """Otherwise a jump z - (t - r) u broadcasts, or leaves float32, without a word."""
    z, c = example(spec)
    require(all(len(value) == len(z) for value in c.values()), "example: every entry of the condition must be [B, ...]")
    for role, u in build(spec).items():
        given = z.clone()
        out = u(given, *times(z, 0.8, 0.3), c)
        require(out.shape == z.shape, f"the {role}'s u is {tuple(out.shape)}: must be {tuple(z.shape)}, as z is")
        require(out.dtype == z.dtype, f"the {role}'s u is {out.dtype}: must be {z.dtype}, as z is; cast at the end")
        require(out.isfinite().all(), f"the {role}'s u is not finite")
        same(given, z, f"the {role} changed its input z in place")


def check_the_null_condition_is_one(spec: FlowMapSpec) -> None:
    """Guidance calls every network with it, and drops the samples for which the result is not finite."""
    batch = example_batch(spec)
    z, c, null = batch.x, batch.cond, batch.null
    if not c:
        raise Skip("the example has no condition")
    if not null:
        raise Skip(f"null(cond) replaces none of {', '.join(c)}: guidance is not tested; override `FlowMapSpec.null`")
    for name, value in null.items():
        require(name in c, f"null(cond) has an entry {name!r}: the example's condition has only {', '.join(c)}")
        row = c[name][:1]
        require(
            (value.shape, value.dtype) == (row.shape, row.dtype),
            f"null(cond)[{name!r}] is {tuple(value.shape)}, {value.dtype}: must be as one row of the condition, "
            f"{tuple(row.shape)}, {row.dtype}",
        )
    for role, u in build(spec).items():
        require(
            u(z, *times(z, 0.8, 0.3), nullify(c, null)).isfinite().all(),
            f"the {role}'s u is not finite with {', '.join(null)} replaced by null(cond): override "
            "`FlowMapSpec.null` where zeros are no valid condition, such as a text mask",
        )


def check_guidance_leaves_the_image(spec: FlowMapSpec) -> None:
    """The unconditional branch begins with the same frame: what it lacks is the text alone."""
    batch = example_batch(spec)
    z, c, null, images = batch.x, batch.cond, batch.null, spec.tiny().images
    if not images:
        raise Skip("no condition is made of an image")
    require({*images} <= {*c}, f"images = {images}: the example's condition has only {', '.join(c)}")
    nulled = ", ".join(sorted({*images} & {*null}))
    require(not nulled, f"null(cond) replaces {nulled}, made of an image: guidance would leave the first frame out")
    u = build(spec, "teacher")["teacher"]
    t, r = times(z, 0.8, 0.3)
    for name in images:
        other = {**c, name: c[name].roll(1, 0)}
        change = (u(z, t, r, other) - u(z, t, r, c)).abs().max()
        require(change > 0, f"u is the same with another sample's {name!r}: what is made of the image is not heard")


def check_building_twice_gives_the_same_function(spec: FlowMapSpec) -> None:
    """A checkpoint holds what is trained; a resumed run, and a loaded student, build the rest again."""
    z, c = example(spec)
    t, r = times(z, 0.8, 0.3)
    for (role, one), two in zip(sorted(build(spec).items()), (u for _, u in sorted(build(spec).items())), strict=True):
        out = one(z, t, r, c)
        same(one(z, t, r, c), out, f"the {role}, called twice, gave two results: it must have no randomness of its own")
        same(two(z, t, r, c), out, f"the {role}, built twice, is two networks: seed its random weights and adapters")


def check_samples_do_not_mix(spec: FlowMapSpec) -> None:
    """Otherwise a sample's training depends on its neighbours in the batch."""
    u, (z, c) = build(spec, "student")["student"], example(spec, 3)
    perturb(u, 0)
    t = torch.tensor([0.9, 0.6, 0.3])
    whole = u(z, t, t / 2, c)
    for i in range(3):
        one = slice(i, i + 1)
        alone = u(z[one], t[one], t[one] / 2, part(c, one))
        close(whole[one], alone, f"sample {i} in a batch is not sample {i} alone")


def check_the_student_uses_r(spec: FlowMapSpec) -> None:
    """A network that ignores r trains without a word, and has learnt a velocity."""
    u, (z, c) = build(spec, "student")["student"], example(spec)
    t, r = times(z, 0.9, 0.2)
    trained = u.trained()
    u(z, t, r, c).square().mean().backward()
    reached = {name: p.grad for name, p in trained.items() if p.grad is not None and bool(p.grad.any())}
    require(reached, "no gradient of u reaches what the student trains")
    require(all(g.isfinite().all() for g in reached.values()), "a gradient of u is not finite")
    with torch.no_grad():
        for name, g in reached.items():
            trained[name].sub_(0.1 * g / g.norm())
        change = (u(z, t, r, c) - u(z, t, t, c)).abs().max() / u(z, t, t, c).abs().max()
    require(change > 1e-6, "after a gradient step u(z, t, r) is still u(z, t, t): r is ignored")


def check_times_stay_float32(spec: FlowMapSpec) -> None:
    """In bfloat16 a step of 5 / 1000 above t = ½ becomes 4 or 8, and d/dt u is wrong by a fifth."""
    u, (z, c) = build(spec, "student", dtype=torch.bfloat16)["student"], example(spec)
    perturb(u, 0)
    # both pairs are one number in bfloat16, as t and as 1000 t
    t, t_other, r, r_other = times(z, 0.9, 0.8985, 0.6, 0.6015)
    with torch.no_grad():
        try:
            out = u(z, t, r, c)
        except RuntimeError as error:
            u(z.bfloat16(), t, r, {name: v.bfloat16() if v.is_floating_point() else v for name, v in c.items()})
            raise AssertionError(
                "a bfloat16 build does not take a float32 z and condition, only bfloat16 ones: cast them inside "
                "`forward` to the type of the weights, the times never, and u back to z's"
            ) from error
        far = u(z, t + 5e-3, r, c)
        require(out.dtype == z.dtype, f"in a bfloat16 build u is {out.dtype}: must be {z.dtype}, as z is")
        require(out.isfinite().all(), "in a bfloat16 build u is not finite")
        require(not torch.equal(out, far), "u does not tell t = 0.9 from 0.905")
        require(not torch.equal(out, u(z, t_other, r, c)), "u does not tell t = 0.9 from 0.8985: t is cast")
        require(not torch.equal(out, u(z, t, r_other, c)), "u does not tell r = 0.6 from 0.6015: r is cast")


def check_all_of_the_time_goes_through_the_clock(spec: FlowMapSpec) -> None:
    """An embedder that was not lifted still hears t on the network's own way, and never hears r."""
    (z, c), heard = example(spec), 0
    t, r = times(z, 0.8, 0.3)
    for role, u in build(spec).items():
        embedders = [m for m in u.modules() if isinstance(m, TwoTimeEmbedding | ExactTimeEmbedding)]
        clocks = {id(m.hand.clock): m.hand.clock for m in embedders if m.hand is not None}
        heard += len(clocks)
        with torch.no_grad():
            out = u(z, t, r, c)
            for clock in clocks.values():
                clock.muted = True
            mute = u(z, t, r, c)
            for clock in clocks.values():
                clock.muted = False
        same(mute, out, f"the {role} changes where it is told no time beside its clock: an embedder is not lifted")
    if not heard:
        raise Skip("no embedder reads a clock")


def check_it_exports(spec: FlowMapSpec) -> None:
    """A student leaves Python through torch.export, and must be what it was afterwards."""
    u, untouched = (build(spec, "student")["student"].requires_grad_(False) for _ in range(2))
    z, c = example(spec)
    arguments = (z, *times(z, 0.8, 0.3), dict(c))
    expected = untouched(*arguments)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            program = torch.export.export(u, arguments)
        except Exception as error:
            raise AssertionError(f"torch.export cannot trace u: {type(error).__name__}: {error}") from error
    changed = "torch.export changed the module, on which a forward pass must keep nothing: u, called again,"
    try:
        after = u(*arguments)
    except Exception as error:
        raise AssertionError(f"{changed} raises {type(error).__name__}: {error}") from error
    require(type(after) is torch.Tensor, f"{changed} gives a {type(after).__name__}: it kept a tensor of the trace")
    close(after, expected, f"{changed} gives another result")
    close(program.module()(*arguments), expected, "the exported program computes something else than u")
