"""Each row against diffusers: its pipeline as a witness, its plain class, and what a wrong row would be."""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from attrs import evolve
from flowmap_diffusers import Diffusers, layout, rows
from flowmap_diffusers.build import plain
from flowmap_diffusers.rows import ROWS
from torch import Tensor, nn

from flowmap.path import Convention
from flowmap.testing import BACKBONE_CHECKS, check_backbone
from flowmap.testing.kit_checks import network, reference, roles
from tests.test_planted_defects import planted

CPU = torch.device("cpu")
CHECKS = {check.__name__: check for check in BACKBONE_CHECKS}
WITNESS = [
    reference.check_the_sampler_ends_at_the_one_point,
    reference.check_u_is_the_network_as_its_sampler_calls_it,
    network.check_all_of_the_time_goes_through_the_clock,
    roles.check_the_student_starts_as_the_teacher,
    network.check_samples_do_not_mix,
    network.check_the_student_uses_r,
]


@pytest.mark.parametrize("check", WITNESS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("family", ROWS)
def test_a_row_is_right(family: str, check: Any) -> None:
    check(Diffusers(family=family))


@pytest.mark.slow
@pytest.mark.parametrize("whole", [False, True], ids=["adapters", "whole"])
@pytest.mark.parametrize("family", ROWS)
def test_a_row_passes_the_kit(family: str, whole: bool) -> None:
    spec = Diffusers(family=family)
    results = check_backbone(evolve(spec, lora=None) if whole else spec)
    assert {(r.check, r.message) for r in results if r.outcome == "failed"} == set()
    causal = {"the_past_does_not_see_the_future", "cached_generation_is_what_was_trained", "a_cache_is_a_snapshot"}
    other = {"guidance_leaves_the_image"} if not spec.images else set()
    assert {r.check for r in results if r.outcome == "skipped"} == other | (set() if spec.row.causal else causal)


QUICK = ("saving_and_loading", "times_stay_float32", "it_exports", "roles_do_not_leak", "checkpointing", "thawed")


@pytest.mark.parametrize("check", [n for n in CHECKS if any(q in n for q in QUICK)])
@pytest.mark.parametrize("spec", [Diffusers(family="ltx"), Diffusers(family="hunyuan_video", lora=None)], ids=str)
def test_a_kind_of_network_passes_what_takes_longer(spec: Diffusers, check: str) -> None:
    CHECKS[check](spec)


def test_a_network_that_asks_its_embedder_for_its_type_goes_on_in_its_own() -> None:
    """Motif-Video in bfloat16, whose embedder is kept float32."""
    network.check_times_stay_float32(Diffusers(family="motif_video"))


def test_z_image_s_texts_have_their_own_lengths_and_its_graphs_refuse_them() -> None:
    spec = Diffusers(family="z_image", lora=None)
    z, cond = spec.example()
    u = spec.build(frozenset({"teacher"}), device=CPU, dtype=torch.float32)["teacher"]
    t, short = torch.tensor([0.9, 0.3]), {**cond, "mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])}
    cut = {name: value[1:, :2] for name, value in cond.items()}
    torch.testing.assert_close(u(z, t, t, short)[1:], u(z[1:], t[1:], t[1:], cut), rtol=0, atol=1e-5)
    program = torch.export.export(u, (z, t, t, cond)).module()
    torch.testing.assert_close(program(z, t, t, cond), u(z, t, t, cond), rtol=0, atol=1e-5)
    with pytest.raises(RuntimeError, match="every token of the text must be its own"):
        program(z, t, t, short)


@pytest.fixture
def other(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Puts a changed row into the table."""

    def put(family: str, **changes: Any) -> Diffusers:
        monkeypatch.setattr(rows, "ROWS", {**ROWS, family: evolve(ROWS[family], **changes)})
        return Diffusers(family=family)

    return put


def hasty(call: Any) -> Any:
    """LTX's call with the frame rate of another video."""
    return {**ROWS["ltx"].inputs(call), "rope_interpolation_scale": (call.positions.temporal / 12, 32, 32)}


ENDS, CALLS = (
    reference.check_the_sampler_ends_at_the_one_point,
    reference.check_u_is_the_network_as_its_sampler_calls_it,
)
DEFECTS: dict[str, tuple[str, dict[str, Any], Any]] = {
    "wrong sign": ("ltx", {"convention": Convention(1000.0, predicts="x-ε")}, ENDS),
    "wrong clock": ("ltx", {"convention": Convention(1000.0, clock="1-t")}, ENDS),
    "1000 for 1": ("ltx", {"convention": Convention(1.0)}, ENDS),
    "wrong sign of an image": ("sd3", {"convention": Convention(1000.0, predicts="x-ε")}, ENDS),
    "the sign of another family": ("mochi", {"convention": Convention(1000.0, clock="1-t")}, ENDS),
    "the clock of another family": ("mochi", {"convention": Convention(1000.0, predicts="x-ε")}, ENDS),
    "1 for 1000 where the class multiplies": ("flux", {"multiplies": 1.0}, ENDS),
    "positions of another frame rate": ("ltx", {"inputs": hasty}, CALLS),
    "an embedder not lifted": (
        "hunyuan_video",
        {"times": ROWS["hunyuan_video"].times[:1]},
        network.check_all_of_the_time_goes_through_the_clock,
    ),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_planted_defect_fails_its_check(defect: str, other: Any) -> None:
    family, changes, check = DEFECTS[defect]
    with pytest.raises(AssertionError):
        check(other(family, **changes))


SAYS = {"v_prediction": {}, "epsilon": {"rescale_betas_zero_snr": False}, "sample": {}}


@pytest.mark.parametrize("kind", SAYS)
def test_the_scheduler_says_what_a_variance_preserving_network_predicts(
    kind: str, other: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By diffusers' own steps: with the velocity of one point, said as the scheduler means it, they end there."""
    spec = other("cogvideox", schedule={**ROWS["cogvideox"].schedule, "prediction_type": kind, **SAYS[kind]})
    for check in WITNESS:
        check(spec)
    from flowmap_diffusers import build, vp, witness

    wrong = vp.Schedule(build.schedule_of(spec).times, "sample" if kind != "sample" else "v_prediction")
    for module in (build, witness):
        monkeypatch.setattr(module, "schedule_of", lambda *given: wrong)
    with pytest.raises(AssertionError):
        ENDS(spec)


def test_a_wrong_change_of_variables_fails_its_check() -> None:
    wrong = planted("flowmap_diffusers.vp", "return ((1 - t) ** 2 + t**2).rsqrt()", "return torch.ones_like(t)")
    with wrong, pytest.raises(AssertionError):
        ENDS(Diffusers(family="cogvideox"))


def test_an_adapter_that_is_not_activated_again_fails_its_check(monkeypatch: pytest.MonkeyPatch) -> None:
    """Teacher and critic run between forward and backward on the same base."""
    from flowmap_diffusers import build
    from torch.utils.checkpoint import checkpoint

    def forgetful(running: Any, checkpointing: Any) -> Any:
        return lambda block, *args: checkpoint(block, *args, use_reentrant=False, context_fn=running.clock.contexts)

    check = roles.check_checkpointing_leaves_the_gradient
    monkeypatch.setattr(build, "Recomputing", forgetful)
    with pytest.raises(AssertionError):
        check(Diffusers(family="ltx"))


@pytest.mark.parametrize("family", ROWS)
def test_every_linear_layer_of_the_blocks_has_adapters_but_what_modulates(family: str) -> None:
    u = Diffusers(family=family).build(frozenset({"student"}), device=CPU, dtype=torch.float32)["student"]
    names = {n.removesuffix(".base_layer") for n, layer in u.net.named_modules() if isinstance(layer, nn.Linear)}
    names = {name for name in names if ".lora_" not in name}
    own = {name for name in names if name.startswith((*u.row.blocks, *u.row.times))}
    adapted = {name.rpartition(".lora_")[0] for name in u.trained()}
    left = {
        name for name in own - adapted if not re.search(r"\.(norm\d?(_context)?|\w+_mod(ulation|ulate_layer)?)\.", name)
    }
    assert left == set()


def test_a_copy_of_a_network_recomputes_with_its_own_calls() -> None:
    """Adapters and times of the network that was copied, which may never have run, are others."""
    spec = Diffusers(family="ltx", checkpointing=True)
    u = spec.build(frozenset({"student"}), device=CPU, dtype=torch.float32)["student"]
    other = copy.deepcopy(u)
    z, cond = spec.example()
    t = torch.tensor([0.9, 0.4])
    gradients = []
    for net in (other, u):
        net(z, t, t / 2, cond).square().sum().backward()
        gradients.append({name: p.grad for name, p in net.trained().items()})
    for name, wanted in gradients[1].items():
        assert wanted is not None and torch.equal(gradients[0][name], wanted), name


@pytest.mark.parametrize("family", ROWS)
def test_the_teacher_is_the_plain_class_bit_for_bit(family: str) -> None:
    """By hand, with the row's own inputs and no clock; CogVideoX's by way of its own units."""
    from flowmap_diffusers.row import Call, output

    spec = Diffusers(family=family, lora=None)
    z, cond = spec.example()
    u = spec.build(frozenset({"teacher", "student"}), device=CPU, dtype=torch.float32)
    net, row = plain(spec, device=CPU, dtype=torch.float32), spec.row
    t = torch.tensor([0.9, 0.3])
    v = u["teacher"](z, t, t, cond)
    assert torch.equal(u["student"](z, t, t, cond), v)
    if row.vp:
        return
    told = z
    if row.held:  # the first frame in place of z's, at time 0
        told, v = torch.cat([cond[row.held], z[:, 1:]], 1), v[:, 1:]
        t = t[:, None].repeat(1, 3)
        t[:, 0] = 0.0
    call = Call(
        net, row.layout.to(told), row.convention.time(t) / row.multiplies, cond, z.shape, u["teacher"].positions
    )
    by_hand = row.layout.back(output(net(**row.called(call), return_dict=False)), z.shape)
    by_hand = by_hand[:, 1:] if row.held else by_hand
    torch.testing.assert_close(row.convention.velocity(by_hand), v, rtol=0, atol=2e-6)


@pytest.mark.parametrize("family", [name for name, row in ROWS.items() if row.frames])
def test_frames_may_have_a_time_each(family: str) -> None:
    spec = Diffusers(family=family, lora=None)
    z, cond = spec.example()
    u = spec.build(frozenset({"student"}), device=CPU, dtype=torch.float32)["student"]
    t = torch.tensor([0.9, 0.3])
    frames = t[:, None].expand(2, 3)
    torch.testing.assert_close(u(z, frames, frames / 2, cond), u(z, t, t / 2, cond))
    other = torch.tensor([[0.9, 0.1, 0.9], [0.3, 0.3, 0.3]])
    moved = u(z, frames, other / 2, cond) - u(z, frames, frames / 2, cond)
    assert moved[0].abs().max() > 0 and moved[1].abs().max() == 0


def test_a_time_a_frame_is_refused_where_there_is_none() -> None:
    spec = Diffusers(family="hunyuan_video", lora=None)
    z, cond = spec.example()
    teacher = spec.build(frozenset({"teacher"}), device=CPU, dtype=torch.float32)["teacher"]
    frames = torch.full((2, 3), 0.5)
    with pytest.raises(ValueError, match=r"times \[2, 3\]: must be \[B\], it has no time for each frame"):
        teacher(z, frames, frames, cond)


@pytest.mark.parametrize("family", [name for name, row in ROWS.items() if row.masks])
def test_text_behind_its_mask_is_not_heard(family: str) -> None:
    spec = Diffusers(family=family)
    z, cond = spec.example()
    u = spec.build(frozenset({"teacher"}), device=CPU, dtype=torch.float32)["teacher"]
    t, mask = torch.tensor([0.9, 0.3]), torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    behind = cond["text"] + (1 - mask)[..., None]
    now, then = (u(z, t, t, {**cond, "mask": mask, "text": text}) for text in (cond["text"], behind))
    torch.testing.assert_close(now, then)
    assert not torch.allclose(u(z, t, t, cond)[1], now[1])


@pytest.mark.parametrize("frames", [False, True], ids=["a time", "a time a frame"])
def test_skyreels_is_told_the_frame_rate_for_every_sample(frames: bool) -> None:
    """Its class takes one sample at a time where a time a frame and a frame rate meet."""
    given = {"inject_sample_info": True}
    spec = Diffusers(family="skyreels_v2", lora=None, config=given)
    z, cond = spec.example()
    t = torch.tensor([[0.9, 0.1, 0.5], [0.3, 0.3, 0.2]]) if frames else torch.tensor([0.9, 0.3])
    v = []
    for fps in (24, 16):
        teacher = evolve(spec, fps=fps).build(frozenset({"teacher"}), device=CPU, dtype=torch.float32)["teacher"]
        net = plain(spec, device=CPU, dtype=torch.float32)
        v.append(teacher(z, t, t, cond))
        for b in range(2):
            told = {"timestep": 1000 * t[b : b + 1], "enable_diffusion_forcing": frames, "fps": [int(fps != 16)]}
            text = cond["text"][b : b + 1]
            y = net(z[b : b + 1].transpose(1, 2), encoder_hidden_states=text, **told, return_dict=False)[0]
            torch.testing.assert_close(v[-1][b : b + 1], y.transpose(1, 2), rtol=0, atol=2e-6)
    assert not torch.allclose(v[0], v[1])


@pytest.mark.parametrize("family, name", [(family, name) for family, row in ROWS.items() for name in row.only])
def test_a_network_that_is_called_in_another_way_is_refused(family: str, name: str) -> None:
    with pytest.raises(ValueError, match=f"its transformer has {name} = 'another': must be "):
        Diffusers(family=family, config={name: "another"}).validate()


def test_embedded_guidance_is_a_condition() -> None:
    for family in ("hunyuan_video", "flux"):
        spec = Diffusers(family=family)
        z, cond = spec.example()
        u = spec.build(frozenset({"teacher"}), device=CPU, dtype=torch.float32)["teacher"]
        t = torch.tensor([0.5, 0.5])
        other = {**cond, "guidance": cond["guidance"] + 1}
        assert not torch.equal(u(z, t, t, other), u(z, t, t, cond))
        assert "guidance" not in spec.null(cond)


@pytest.mark.parametrize("cls, made, p", [("LTXPipeline", layout.TOKENS, 1), ("FluxPipeline", layout.TOKENS_2X2, 2)])
def test_tokens_are_packed_as_the_pipeline_packs_them(cls: str, made: Any, p: int) -> None:
    import diffusers

    pipeline, z = getattr(diffusers, cls), torch.arange(2.0 * 3 * 4 * 6 * 8).reshape(2, 3, 4, 6, 8)
    if p == 1:
        theirs = pipeline._pack_latents(z.transpose(1, 2), 1, 1)
    else:
        z = z[:, :1]
        theirs = pipeline._pack_latents(z[:, 0], 2, 4, 6, 8)
    assert torch.equal(made.to(z), theirs)
    assert torch.equal(made.back(theirs, z.shape), z)


@pytest.mark.parametrize("family", ROWS)
def test_a_row_is_short(family: str) -> None:
    """A function and a value: 25 lines at most, what it shares with another row aside."""
    source = Path(rows.__path__[0], f"{family}.py").read_text()
    value = source[source.index("\nROW = ") :].partition(")  # fmt: skip")[0]
    lines = value.strip().splitlines() + inspect.getsource(ROWS[family].inputs).strip().splitlines()
    assert len(lines) <= 25, len(lines)


def test_mistakes_are_sentences(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"Diffusers.family = 'ltxx': .*, ltx, .*; did you mean 'ltx'\?"):
        Diffusers(family="ltxx")
    with pytest.raises(ValueError, match=r"has no model_index.json; must be the directory of a diffusers pipeline, "):
        Diffusers(tmp_path, family="ltx").validate()
    own = Diffusers(family="hunyuan_video15", config={"use_meanflow": True})  # hunyuan_video15_meanflow reads it
    for ask in (own.validate, lambda: own.build(frozenset({"student"}), device=CPU, dtype=torch.float32)):
        with pytest.raises(ValueError, match="its transformer has use_meanflow = True: must be False"):
            ask()
    spec = Diffusers(family="ltx")
    z, cond = spec.example()
    u = spec.build(frozenset({"teacher"}), device=CPU, dtype=torch.float32)["teacher"]
    t = torch.tensor([0.5, 0.5])
    with pytest.raises(ValueError, match=r"was given \['text'\] as its condition: it reads \['mask', 'text'\]"):
        u(z, t, t, {"text": cond["text"]})


def test_a_prediction_that_is_not_known_or_not_defined_is_a_sentence(other: Any) -> None:
    own = ROWS["cogvideox"].schedule
    for changes, said in (
        ({"schedule": {**own, "prediction_type": "epsilon"}}, "cogvideox: a schedule whose last step is noise alone "),
        ({"predictions": ("epsilon",)}, "cogvideox: its scheduler has prediction_type = 'v_prediction': must be 'eps"),
    ):
        with pytest.raises(ValueError, match=said):
            other("cogvideox", **changes).build(frozenset({"teacher"}), device=CPU, dtype=torch.float32)


def test_frames_that_are_no_whole_tokens_are_refused() -> None:
    """CogVideoX 1.5, whose pipeline fills the frames of a video up."""
    spec = Diffusers(family="cogvideox", lora=None, config={"patch_size_t": 2, "patch_bias": False})
    z, cond = spec.example()
    u = spec.build(frozenset({"teacher"}), device=CPU, dtype=torch.float32)["teacher"]
    t = torch.tensor([0.5, 0.5])
    assert u(z[:, :2], t, t, cond).shape == z[:, :2].shape
    with pytest.raises(ValueError, match=r"latents \[2, 3, 4, 4, 6\]: must have F ÷ 2, as its tokens are of 2 frames"):
        u(z, t, t, cond)


def test_meta_networks_are_filled_with_what_building_gives() -> None:
    """Bit for bit, adapters too: what several processes that share a network rely on."""
    for spec in (Diffusers(family="ltx"), Diffusers(family="hunyuan_video", lora=None)):
        spec, roles_ = spec.tiny(), frozenset({"student", "teacher", "critic"})
        wanted = spec.build(roles_, device=CPU, dtype=torch.bfloat16)
        hollow = spec.build(roles_, device=torch.device("meta"), dtype=torch.bfloat16)
        found: dict[int, Tensor] = {}

        def put(p: Tensor, rows_of: Any, found: dict[int, Tensor] = found) -> None:
            found[id(p)] = rows_of(slice(None))

        spec.fill(hollow, put, dtype=torch.bfloat16)
        for role, u in wanted.items():
            theirs = dict(hollow[role].named_parameters())
            for name, p in u.named_parameters():
                assert torch.equal(found[id(theirs[name])].to(p.dtype), p), (role, name)
                assert theirs[name].dtype == p.dtype
