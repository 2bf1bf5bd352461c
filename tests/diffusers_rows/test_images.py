"""Rows that begin with an image: what they are told of it, and what guidance leaves."""

from __future__ import annotations

import json
import subprocess
import sys
from inspect import signature
from pathlib import Path
from typing import Any

import flowmap_diffusers
import numpy as np
import pytest
import torch
from attrs import evolve
from flowmap_diffusers import Diffusers, rows, vp
from flowmap_diffusers.network import DiffusersFlowMap
from flowmap_diffusers.rows import ROWS
from PIL import Image

from flowmap import Rng, sample
from flowmap._types import Cond, nullify
from flowmap.evaluation import QualityCurve, endpoint_error
from flowmap.evaluation.curve import Bench
from flowmap.guidance import Guided
from flowmap.model import Codec, ConditionError, FlowMapSpec, conditions_of_images
from flowmap.path import expand
from flowmap.plugins import backbone, manager
from flowmap.rollout import walk
from flowmap.testing.kit_checks import network, reference
from flowmap.testing.kit_helpers import perturb
from tests.test_planted_defects import planted

from . import toys
from .test_directories import Case, made

CPU: dict[str, Any] = {"device": torch.device("cpu"), "dtype": torch.float32}
STEPS, SLOW = (1, 4), ("wan_i2v", "skyreels_v2_i2v", "ltx_i2v")
PLUGINS = manager(flowmap_diffusers, entry_points=False)
SIZE = {"num_frames": 9, "height": 32, "width": 48}
WIDE = {"num_frames": 9, "height": 64, "width": 96}
CASES = {
    "wan_i2v": Case(toys.wan_i2v, SIZE),
    "skyreels_v2_i2v": Case(toys.skyreels_v2_i2v, SIZE),
    "cogvideox_i2v": Case(toys.cogvideox_i2v, SIZE),
    "wan_ti2v": Case(toys.wan_ti2v, WIDE),
    "ltx_i2v": Case(toys.ltx_i2v, {"num_frames": 17, "height": 128, "width": 192}, dynamic=True),
}
"""A latent of the row's example."""


@pytest.fixture(scope="module", params=CASES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def folder(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(family, tmp_path_factory.mktemp(family) / "pipeline", case=CASES[family])


@pytest.fixture(scope="module")
def spec(folder: Path, family: str) -> Diffusers:
    found = backbone(str(folder), PLUGINS)
    assert isinstance(found, Diffusers) and found.family == family and found.lora is not None
    found.validate()
    return evolve(found, lora=evolve(found.lora, rank=4, alpha=4.0))


def picture(family: str) -> tuple[Image.Image, torch.Tensor]:
    """Of a file, and as a frame [1, 3, H, W] in [0, 1]."""
    size = CASES[family].size
    drawn = np.random.default_rng(0).integers(0, 256, (size["height"], size["width"], 3), dtype=np.uint8)
    return Image.fromarray(drawn), torch.tensor(drawn).permute(2, 0, 1)[None] / 255


def handed(pipe: Any, family: str, **told: Any) -> list[dict[str, Any]]:
    """What the pipeline hands its network, call by call."""
    heard: list[dict[str, Any]] = []

    def look(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        told = signature(type(module).forward).bind(module, *args, **kwargs).arguments
        heard.append({name: value for name, value in told.items() if name != "self"})

    pipe.set_progress_bar_config(disable=True)
    hook = pipe.transformer.register_forward_pre_hook(look, with_kwargs=True)
    pipe(output_type="latent", **CASES[family].size, **told)
    hook.remove()
    return heard


def conditions(spec: Diffusers) -> tuple[Codec, Cond]:
    """The codec, and what it makes of the picture."""
    codec = spec.codec(**CPU)
    own = conditions_of_images(codec, picture(spec.family)[1], CASES[spec.family].size["num_frames"])
    assert {*own} == {*spec.images}
    return codec, own


def test_the_network_hears_of_an_image_what_the_codec_says(spec: Diffusers, family: str, folder: Path) -> None:
    """In both branches of the pipeline's own guidance, which differ in their text alone."""
    row, (codec, own) = spec.row, conditions(spec)
    pipe = row.classes()[1].from_pretrained(folder)
    asked = {"prompt": "a seven", "negative_prompt": "", "guidance_scale": 3.0}
    calls = handed(pipe, family, image=picture(family)[0], num_inference_steps=2, **asked)
    u = spec.build(frozenset({"teacher"}), **CPU)["teacher"]
    assert isinstance(u, DiffusersFlowMap)
    texts, seen = [codec.encode_prompts([prompt]) for prompt in ("a seven", "")], []
    for call in calls:
        with torch.no_grad():
            made = pipe.transformer(**{**call, "return_dict": False})[0]
        like = (len(made), *row.example["z"])
        z, v = row.layout.back(call["hidden_states"], like), row.layout.back(made, like)
        time = call["timestep"].reshape(len(made), -1)[:, -1].float()
        if u.schedule is not None:
            t = u.schedule.times[time.long()].float()
            z = z / vp.scale(expand(t, z))
            v = u.schedule.velocity(z, v, t)
        else:
            t = time / 1000
        for k in range(len(made)):
            one = slice(k, k + 1)
            with torch.no_grad():
                ours = [u(z[one], t[one], t[one], {**text, **own}) for text in texts]
            skip = int(row.held is not None)  # what the network says of the first frame, pipelines leave out
            errors = [float((o - v[one])[:, skip:].abs().max() / v[one].abs().max()) for o in ours]
            seen.append([error < 2e-4 for error in errors])
    assert sorted(seen) == [[False, True], [False, True], [True, False], [True, False]]


def test_a_decoder_of_such_a_pipeline_decodes_alike(spec: Diffusers) -> None:
    z = torch.zeros(1, *spec.row.example["z"])
    torch.testing.assert_close(spec.decoder(**CPU).decode(z), spec.codec(**CPU).decode(z), rtol=0, atol=0)


def test_guidance_leaves_the_image(spec: Diffusers) -> None:
    """v_∅ is of the same image without the text, and the codec's null has no entry of an image."""
    codec, own = conditions(spec)
    cond, null = {**codec.encode_prompts(["a seven"]), **own}, codec.encode_prompts([""])
    u = spec.build(frozenset({"teacher"}), **CPU)["teacher"]
    z, t = Rng.seeded(1).noise_like(torch.zeros(1, *spec.row.example["z"])), torch.tensor([0.7])
    with torch.no_grad():
        guided = Guided(u, 3.0, null)(z, t, t, cond)
        v, v_null = u(z, t, t, cond), u(z, t, t, {**null, **own})
        torch.testing.assert_close(guided, v_null + 3 * (v - v_null), rtol=0, atol=1e-5)
        imageless = u(z, t, t, nullify(cond, {**null, **{name: 0 * value for name, value in own.items()}}))
    assert (imageless - v_null).abs().max() > 1e-4
    assert not {*spec.null(cond)} & {*spec.images}


@pytest.mark.parametrize(
    "family",
    [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in CASES],
    indirect=True,
    scope="module",
)
def test_a_student_in_diffusers_alone_is_flowmap_s(spec: Diffusers, family: str, tmp_path: Path) -> None:
    """Moved off the teacher, both embedders too, as training does; in a process that cannot import flowmap."""
    u = spec.build(frozenset({"student"}), **CPU)["student"]
    perturb(u, 0, 0.1)
    student, row = tmp_path / "student", spec.row
    spec.save(u, student)
    found = backbone(str(student), PLUGINS)
    assert found.images == spec.images
    loaded, z, t = found.load(student, **CPU), Rng.seeded(2).noise_like(torch.zeros(1, *row.example["z"])), 0.7
    codec, own = conditions(spec)
    cond, t = {**codec.encode_prompts(["a seven"]), **own}, torch.tensor([0.7])
    with torch.no_grad():
        torch.testing.assert_close(loaded(z, t, t / 2, cond), u(z, t, t / 2, cond), rtol=1e-4, atol=1e-5)
        assert (loaded(z, t, t / 2, cond) - loaded(z, t, t, cond)).abs().max() > 1e-3
    if row.vp:
        return  # its pipeline takes the steps of DDIM
    noise = z if row.held is None else torch.cat([own[row.held], z[:, 1:]], 1)  # LTX's is given it so
    torch.save(row.latents.to(noise), tmp_path / "noise.pt")
    picture(family)[0].save(tmp_path / "first.png")
    code = f"""
import sys
sys.modules["flowmap"] = sys.modules["flowmap_diffusers"] = None
import torch
from diffusers import DiffusionPipeline
from PIL import Image
asked = dict(image=Image.open("first.png"), prompt="a seven", output_type="latent", return_dict=False)
asked.update({dict(CASES[family].size)})
noise = torch.load("noise.pt")
pipe = DiffusionPipeline.from_pretrained({str(student)!r}, trust_remote_code=True)
pipe.set_progress_bar_config(disable=True)
torch.save({{n: pipe(num_inference_steps=n, latents=noise.clone(), **asked)[0] for n in {STEPS}}}, "out.pt")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    made = torch.load(tmp_path / "out.pt")
    for steps in STEPS:
        ours = sample(loaded, z, cond, steps=steps, shift=found.shift)
        error = (row.latents.back(made[steps].float(), z.shape) - ours).abs().max() / ours.abs().max()
        assert float(error) < 1e-5, (steps, float(error))


def test_a_curve_begins_with_an_image_a_prompt(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Teacher and student are both told of them, sample by sample; none, or one too many, is a sentence."""
    path, size = tmp_path_factory.mktemp("curve"), CASES["wan_i2v"].size
    spec = backbone(str(made("wan_i2v", path / "pipeline", case=CASES["wan_i2v"])), PLUGINS)
    files, images = [], torch.rand(2, 3, size["height"], size["width"]).mul(255).round() / 255
    for k, image in enumerate(images):
        files.append(str(path / f"{k}.png"))
        Image.fromarray((255 * image).byte().permute(1, 2, 0).numpy()).save(files[-1])
    asked: dict[str, Any] = {"metrics": (endpoint_error,), "shape": (3, 4, 4, 6), "steps": (1,), "reference": 2}
    curve = QualityCurve(("seven", "three"), images=files, samples=4, seeds=(0,), consistency=False, **asked)
    nets = spec.build(frozenset({"student", "teacher"}), **CPU)
    bench = Bench.of(curve, nets, spec)
    wanted = conditions_of_images(bench.codec, images[[0, 1, 0, 1]], size["num_frames"])
    for name, value in wanted.items():
        torch.testing.assert_close(bench.cond[name], value, rtol=0, atol=1e-5)
    assert {*bench.null} == {"text"}
    made_of = dict(bench.run(0))
    assert all(made.latents.isfinite().all() for made in made_of.values())
    with pytest.raises(ValueError, match=r"QualityCurve.images: 2 for 1 prompts: must be one a prompt"):
        QualityCurve(("seven",), images=files, **asked)
    with pytest.raises(ValueError, match=r"QualityCurve.images: pipeline begins with an image: give one a prompt"):
        Bench.of(evolve(curve, images=()), nets, spec)


def changed(file: Path, **entries: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **entries}))


def test_a_directory_of_text_to_video_is_one_from_an_image_too(tmp_path: Path) -> None:
    """Wan2.2 TI2V-5B is published as a `WanPipeline`; one without a time a token, and I2V's of Wan2.1, are refused."""
    folder = made("wan_ti2v", tmp_path / "pipeline", case=CASES["wan_ti2v"])
    index = folder / "model_index.json"
    found = backbone(str(folder), PLUGINS)
    assert isinstance(found, Diffusers) and found.family == "wan_ti2v"
    changed(index, _class_name="WanPipeline")
    asked = Diffusers(folder, family="wan_ti2v")
    asked.validate()
    student = asked.build(frozenset({"student"}), **CPU)["student"]
    asked.save(student, tmp_path / "student")
    assert json.loads((tmp_path / "student" / "model_index.json").read_text())["expand_timesteps"] is True
    assert "class Pipeline(WanImageToVideoPipeline)" in (tmp_path / "student" / "student.py").read_text()
    changed(index, expand_timesteps=False)
    with pytest.raises(ValueError, match=r"its model_index\.json has expand_timesteps = False: must be True"):
        asked.validate()
    changed(index, _class_name="WanImageToVideoPipeline")
    with pytest.raises(ValueError, match=r"its transformer has no image_dim: another network of the class"):
        Diffusers(folder, family="wan_i2v").validate()


@pytest.mark.slow
def test_a_fixed_number_of_steps_holds_the_first_frame_too(tmp_path: Path) -> None:
    """The token at time 0 is told r = 0 in the teacher's own class."""
    import flowmap

    spec = backbone(str(made("wan_ti2v", tmp_path / "base", case=CASES["wan_ti2v"])), PLUGINS)
    assert isinstance(spec, Diffusers)
    u = spec.build(frozenset({"student"}), **CPU)["student"]
    perturb(u, 0, 0.1)
    spec.save(u, tmp_path / "student")
    flowmap.export(tmp_path / "student", "fixed-steps", tmp_path / "four", options={"steps": 4})
    times = json.loads((tmp_path / "four" / "manifest.json").read_text())["sampler"]["times"]
    codec, own = conditions(spec)
    z = Rng.seeded(3).noise_like(torch.zeros(1, *spec.row.example["z"]))
    with torch.no_grad():
        ours = walk(u, z, {**codec.encode_prompts(["seven"]), **own}, torch.tensor(times), None)
    pipe = spec.row.classes()[1].from_pretrained(tmp_path / "four")
    pipe.set_progress_bar_config(disable=True)
    asked = {"prompt": "seven", "image": picture("wan_ti2v")[0], "num_inference_steps": 4, **CASES["wan_ti2v"].size}
    asked |= {"guidance_scale": 1.0, "output_type": "latent", "return_dict": False}
    theirs = spec.row.latents.back(pipe(latents=spec.row.latents.to(z), **asked)[0], z.shape)
    assert float((theirs - ours).abs().max() / ours.abs().max()) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("family", ["wan_ti2v", "ltx_i2v", "cogvideox_i2v", "skyreels_v2_i2v"], indirect=True)
def test_a_student_is_exported_or_said_not_to_be(spec: Diffusers, family: str, tmp_path: Path) -> None:
    """Of two frames too, where the first is held."""
    import flowmap
    from flowmap.export.errors import ExportError

    spec.save(spec.build(frozenset({"student"}), **CPU)["student"], tmp_path / "student")
    asked: dict[str, Any] = {"sizes": {"frames": 3, "height": 4, "width": 6}}
    if spec.row.held is None:
        with pytest.raises(ExportError, match="the graph has a float64 tensor"):
            flowmap.export(tmp_path / "student", "torch-export", tmp_path / "out", **asked)
        return
    asked["sizes"]["frames"] = (2, 3, 5)
    flowmap.export(tmp_path / "student", "torch-export", tmp_path / "out", **asked)
    assert json.loads((tmp_path / "out" / "parity.json").read_text())["worst"]["error"] < 1e-5


HELD = [name for name, row in ROWS.items() if row.held]


@pytest.mark.parametrize("family", HELD)
def test_the_first_frame_is_held(family: str) -> None:
    """Whatever z has there: samplers end at it, its velocity is that of the path, nothing of it is trained, and both
    its times are 0."""
    spec = Diffusers(family=family, lora=None)
    u = spec.build(frozenset({"student"}), **CPU)["student"]
    perturb(u, 0, 0.1)
    z, cond = spec.example()
    first, t, r = cond["first"], torch.tensor([0.9, 0.4]), torch.tensor([0.5, 0.1])
    for steps in (1, 3):
        torch.testing.assert_close(sample(u, z, cond, steps=steps)[:, :1], first, rtol=0, atol=1e-6)
    noise = Rng.seeded(3).noise_like(first)
    on_path = torch.cat([(1 - expand(t, first)) * first + expand(t, first) * noise, z[:, 1:]], 1)
    out = u(on_path, t, r, cond)
    torch.testing.assert_close(out[:, :1], noise - first, rtol=1e-5, atol=1e-5)
    trained = [*u.trained().values()]
    reached, none = (
        [g for g in torch.autograd.grad(part.sum(), trained, retain_graph=True, allow_unused=True) if g is not None]
        for part in (out[:, 1:], out[:, :1] + 0 * out[:, 1:])
    )
    assert any(g.any() for g in reached)
    assert not any(g.any() for g in none)
    other = torch.cat([z[:, :1] + 1.0, z[:, 1:]], 1)
    with torch.no_grad():
        assert torch.equal(u(other, t, r, cond)[:, 1:], u(z, t, r, cond)[:, 1:])
        frames = torch.stack([torch.zeros(2), r, r], 1), torch.stack([r + 0.05, r, r], 1)
        each = t[:, None].expand(2, 3)
        assert torch.equal(u(z, each, frames[0], cond)[:, 1:], u(z, each, frames[1], cond)[:, 1:])


def test_a_first_frame_that_is_not_at_0_fails() -> None:
    """t by the pipeline as a witness; r by what the first frame hears."""
    module, now = "flowmap_diffusers.network", "here, behind, cond"
    t = planted(module, now, "torch.maximum(here, t.reshape(len(t), -1)), behind, cond")
    with t, pytest.raises(AssertionError, match="is not the network as the model's own sampler calls it"):
        reference.check_u_is_the_network_as_its_sampler_calls_it(Diffusers(family="wan_ti2v"))
    r = planted(module, now, "here, torch.maximum(behind, r.reshape(len(r), -1)), cond")
    with r, pytest.raises(AssertionError):
        test_the_first_frame_is_held("wan_ti2v")


IMAGES = [name for name, row in ROWS.items() if row.images]


@pytest.mark.parametrize("family", IMAGES)
def test_nulling_the_image_fails_its_check(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    row = evolve(ROWS[family], null=("text", *ROWS[family].images))
    monkeypatch.setattr(rows, "ROWS", {**ROWS, family: row})
    with pytest.raises(AssertionError, match="made of an image: guidance would leave the first frame out"):
        network.check_guidance_leaves_the_image(Diffusers(family=family))


@pytest.fixture
def wan() -> FlowMapSpec:
    return Diffusers(family="wan_i2v", lora=None)


@pytest.mark.parametrize(
    "now, then",
    [
        ("mask[:, 0] = 1.0", "mask[:, 1] = 1.0"),
        ("mask[:, 0] = 1.0", "mask[:, 0, 0] = 1.0"),
        ("full_like(images[:, None], GREY)", "zeros_like(images[:, None])"),
        ("[mask, x]", "[x, mask]"),
    ],
)
def test_a_wrong_mask_fails_its_check(now: str, then: str, wan: FlowMapSpec) -> None:
    """Of the wrong frame, of one video frame for four, black for grey, behind the latents."""
    with planted("flowmap_diffusers.images", now, then), pytest.raises(AssertionError):
        reference.check_u_is_the_network_as_its_sampler_calls_it(wan)


def test_wan_s_text_has_512_positions(wan: FlowMapSpec) -> None:
    u = wan.build(frozenset({"teacher"}), **CPU)["teacher"]
    z, cond = wan.example()
    t = torch.tensor([0.5, 0.5])
    with pytest.raises(ConditionError, match=r"cond\['text'\] has 64 positions: must have 512, behind those of the"):
        u(z, t, t, {**cond, "text": cond["text"][:, :64]})
