"""Networks that have two times of their own: r reaches the embedder that they have for it, and nothing is lifted."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import flowmap_diffusers
import pytest
import torch
from attrs import evolve
from flowmap_diffusers import Diffusers
from flowmap_diffusers.build import plain
from torch import Tensor

import flowmap
from flowmap import Recipe, Rng, Stage, TensorData, sample
from flowmap.cli import main
from flowmap.export.errors import ExportError
from flowmap.methods import anyflow
from flowmap.plugins import backbone, manager
from flowmap.testing.kit_checks import network, reference
from flowmap.testing.kit_helpers import perturb
from flowmap.time_embedding import TwoTimeEmbedding
from flowmap.times import euler_grid
from tests.test_planted_defects import planted

from .test_directories import CASES, made

CPU: dict[str, Any] = {"device": torch.device("cpu"), "dtype": torch.float32}
PLUGINS = manager(flowmap_diffusers, entry_points=False)
FAMILY, LIFTED = "hunyuan_video15_meanflow", "hunyuan_video15"
SPEC = Diffusers(family=FAMILY, lora=None)
STEPS = (1, 4, 8)


def own(z: Tensor, t: Tensor, r: Tensor, cond: Any) -> Tensor:
    """The plain class, told both times in its units: 1000 t and 1000 r."""
    from flowmap_diffusers.row import Call, output

    net, row = plain(SPEC, **CPU), SPEC.row
    call = Call(net, row.layout.to(z), 1000 * t, cond, tuple(z.shape), None)  # type: ignore[arg-type]
    return row.layout.back(output(net(**{**row.inputs(call), "timestep_r": 1000 * r}, return_dict=False)), z.shape)


@pytest.mark.parametrize("lora", [None, SPEC.tiny().lora], ids=["whole", "adapters"])
def test_u_is_the_network_s_own_at_both_times(lora: Any) -> None:
    spec = evolve(SPEC, lora=lora)
    z, cond = spec.example()
    u = spec.build(frozenset({"student", "teacher", "critic"}), **CPU)
    assert not any(isinstance(layer, TwoTimeEmbedding) for net in u.values() for layer in net.modules())
    t, r = torch.tensor([0.9, 0.4]), torch.tensor([0.2, 0.0])
    with torch.no_grad():
        torch.testing.assert_close(u["student"](z, t, r, cond), own(z, t, r, cond))
        for role in u:
            torch.testing.assert_close(u[role](z, t, t, cond), own(z, t, t, cond))
        assert (own(z, t, r, cond) - own(z, t, t, cond)).abs().max() > 1e-3
        assert torch.equal(u["teacher"](z, t, r, cond), u["teacher"](z, t, t, cond))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(FAMILY, tmp_path_factory.mktemp(FAMILY) / "base", LIFTED)


@pytest.mark.parametrize("steps", STEPS)
def test_the_pipeline_that_tells_it_r_walks_as_flowmap_does(steps: int, folder: Path) -> None:
    """diffusers' own loop for images, which hands over the time that a step ends at; its image left out."""
    import diffusers
    from PIL import Image

    class TextAlone(diffusers.HunyuanVideo15ImageToVideoPipeline):
        def encode_image(self, **given: Any) -> Tensor:
            return torch.zeros(1, 0, self.transformer.config.image_embed_dim)

        def prepare_cond_latents_and_mask(self, latents: Tensor, *args: Any, **given: Any) -> tuple[Tensor, Tensor]:
            return torch.zeros_like(latents), torch.zeros_like(latents[:, :1])

    pipe = diffusers.HunyuanVideo15Pipeline.from_pretrained(folder)
    pipe = TextAlone(**pipe.components, image_encoder=None, feature_extractor=None)
    pipe.guider = diffusers.ClassifierFreeGuidance(guidance_scale=1.0)
    pipe.set_progress_bar_config(disable=True)
    spec = backbone(str(folder), PLUGINS)
    assert isinstance(spec, Diffusers) and spec.family == FAMILY
    u, row = spec.build(frozenset({"student"}), **CPU)["student"], spec.row
    z, cond = Rng.seeded(2).noise_like(torch.zeros(1, *row.example["z"])), spec.codec(**CPU).encode_prompts(["seven"])
    heard: list[tuple[float, float]] = []
    pipe.transformer.register_forward_pre_hook(
        lambda net, args, given: heard.append((float(given["timestep"]), float(given["timestep_r"]))), with_kwargs=True
    )
    theirs = pipe(
        *(Image.new("RGB", (96, 64)), "seven"),
        num_inference_steps=steps,
        num_frames=9,
        latents=row.latents.to(z),
        output_type="latent",
    ).frames
    wanted = [1000 * float(t) for t in euler_grid(steps, spec.shift)]
    torch.testing.assert_close(torch.tensor(heard), torch.tensor([*pairwise(wanted)]), rtol=1e-6, atol=1e-3)
    torch.testing.assert_close(row.latents.back(theirs, z.shape), sample(u, z, cond, steps=steps, shift=spec.shift))


@pytest.mark.filterwarnings("ignore:`torch_dtype` is deprecated:FutureWarning")
def test_a_student_in_diffusers_is_flowmap_s(folder: Path, tmp_path: Path) -> None:
    from diffusers import DiffusionPipeline

    spec = evolve(backbone(str(folder), PLUGINS), lora=SPEC.tiny().lora)  # type: ignore[misc]
    u, row = spec.build(frozenset({"student"}), **CPU)["student"], spec.row
    perturb(u, 0, 0.1)
    spec.save(u, tmp_path)
    found = backbone(str(tmp_path), PLUGINS)
    assert isinstance(found, Diffusers) and found.family == FAMILY
    loaded, cond = found.load(tmp_path, **CPU), found.codec(**CPU).encode_prompts(["seven"])
    z = Rng.seeded(2).noise_like(torch.zeros(1, *row.example["z"]))
    ours = {steps: sample(loaded, z, cond, steps=steps, shift=spec.shift) for steps in STEPS}
    given: dict[str, Any] = {"output_type": "latent", "return_dict": False, **CASES[LIFTED].size}
    for dtype, close in ((torch.float32, 1e-5), (torch.bfloat16, 0.1)):
        pipe = DiffusionPipeline.from_pretrained(tmp_path, trust_remote_code=True, torch_dtype=dtype)
        pipe.set_progress_bar_config(disable=True)
        for steps in STEPS:
            theirs = pipe("seven", num_inference_steps=steps, latents=row.latents.to(z), **given)[0]
            off = (row.latents.back(theirs.float(), z.shape) - ours[steps]).abs().max() / ours[steps].abs().max()
            assert float(off) < close, (steps, dtype, float(off))
    for form in ("fixed-steps", "lora"):
        with pytest.raises(ExportError, match="its network has two times of its own, of which the teacher's pipeline"):
            flowmap.export(tmp_path, form, tmp_path / "out")


def test_it_is_inspected_as_it_is_and_distilled_on(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both stages from the directory, with the one-time model of the family as the teacher: both embedders train."""
    assert main(["inspect", str(folder), "--prompt", "seven", "--samples", "1", "--size", "9x64x96"]) == 0
    assert "verdict: it reads r and is" in capsys.readouterr().out
    spec, teacher = backbone(str(folder), PLUGINS), backbone(str(made(LIFTED, tmp_path / "one")), PLUGINS)
    assert spec.two_times and not teacher.two_times
    assert isinstance(spec, Diffusers) and isinstance(teacher, Diffusers)
    spec, teacher = evolve(spec, lora=None), evolve(teacher, lora=None)
    cond = {name: value.expand(2, *value.shape[1:]) for name, value in spec.codec(**CPU).encode_prompts(["a"]).items()}
    x = Rng.seeded(3).noise_like(torch.zeros(2, *spec.row.example["z"]))
    settings: dict[str, Any] = {"guidance": 1.0, "drop": 0.0}
    stages = (
        Stage(anyflow.forward(**settings), 1, batch=2, ema=None),
        Stage(anyflow.on_policy(teacher_guidance=1.0, steps=(2,), **settings), 1, batch=2, ema=None),
    )
    before = spec.build(frozenset({"student"}), **CPU)["student"].state_dict()
    recipe = Recipe(spec, stages, teacher=teacher, data=TensorData(x, cond, {}))
    after = flowmap.distill(recipe, out=tmp_path / "run", device="cpu").state_dict()
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    for embedder in ("timestep_embedder.", "timestep_embedder_r."):
        assert any(embedder in name for name in changed), embedder
    assert backbone(str(tmp_path / "run" / "student"), PLUGINS).two_times


def test_the_directory_s_own_setting_says_which_it_is(folder: Path, tmp_path: Path) -> None:
    lifted = backbone(str(made(LIFTED, tmp_path / "one")), PLUGINS)
    assert isinstance(lifted, Diffusers) and lifted.family == LIFTED
    with pytest.raises(ValueError, match="its transformer has use_meanflow = True: must be False, other networks"):
        Diffusers(folder, family=LIFTED).validate()
    config = tmp_path / "one" / "transformer" / "config.json"
    config.write_text(config.read_text().replace('"use_meanflow": false,', ""))
    again = backbone(str(tmp_path / "one"), PLUGINS)
    assert isinstance(again, Diffusers) and again.family == LIFTED
    with pytest.raises(ValueError, match="its transformer has use_meanflow = False: must be True, other networks"):
        Diffusers(tmp_path / "one", family=FAMILY).validate()


HAND = "return (now if then is None else then, None) if self.second else (now, then)"
CALLS = reference.check_u_is_the_network_as_its_sampler_calls_it
DEFECTS: dict[str, tuple[str, str, Callable[[Any], None]]] = {
    "r ignored": (HAND, "return (now, None if self.second else then)", network.check_the_student_uses_r),
    "t told to the embedder of r": (HAND, "return (now, None if self.second else then)", CALLS),
    "r and t exchanged": (HAND, "return (now if self.second or then is None else then, None)", CALLS),
    "r told to the teacher": ("if self.second else (now, then)", "if self.second else (now / 2, then)", CALLS),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_planted_defect_fails_its_check(defect: str) -> None:
    old, new, check = DEFECTS[defect]
    check(SPEC)
    with planted("flowmap.clock", old, new), pytest.raises(AssertionError):
        check(SPEC)
