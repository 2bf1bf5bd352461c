"""Rows that begin with an image: what they are told of it, and what guidance leaves."""

from __future__ import annotations

from inspect import signature
from pathlib import Path
from typing import Any

import flowmap_diffusers
import numpy as np
import pytest
import torch
from attrs import evolve
from flowmap_diffusers import Diffusers, rows
from flowmap_diffusers.rows import ROWS
from PIL import Image

from flowmap import Rng
from flowmap._types import nullify
from flowmap.guidance import Guided
from flowmap.model import ConditionError, FlowMapSpec
from flowmap.plugins import backbone, manager
from flowmap.testing.checks import network, reference
from tests.test_planted_defects import planted

from . import toys
from .test_directories import Case, made

CPU: dict[str, Any] = {"device": torch.device("cpu"), "dtype": torch.float32}
PLUGINS = manager(flowmap_diffusers, entry_points=False)
SIZE = {"num_frames": 9, "height": 32, "width": 48}
CASES = {"wan_i2v": Case(toys.wan_i2v, SIZE)}
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


def picture(seed: int = 0) -> tuple[Image.Image, torch.Tensor]:
    """Of a file, and as a frame [1, 3, H, W] in [0, 1]."""
    drawn = np.random.default_rng(seed).integers(0, 256, (SIZE["height"], SIZE["width"], 3), dtype=np.uint8)
    return Image.fromarray(drawn), torch.tensor(drawn).permute(2, 0, 1)[None] / 255


def handed(pipe: Any, **told: Any) -> list[dict[str, Any]]:
    """What the pipeline hands its network, call by call."""
    heard: list[dict[str, Any]] = []

    def look(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        told = signature(type(module).forward).bind(module, *args, **kwargs).arguments
        heard.append({name: value for name, value in told.items() if name != "self"})

    pipe.set_progress_bar_config(disable=True)
    hook = pipe.transformer.register_forward_pre_hook(look, with_kwargs=True)
    pipe(output_type="latent", **SIZE, **told)
    hook.remove()
    return heard


def test_the_network_hears_of_an_image_what_the_codec_says(spec: Diffusers, folder: Path) -> None:
    """In both branches of the pipeline's own guidance, which differ in their text alone."""
    from diffusers import DiffusionPipeline

    image, frame = picture()
    codec = spec.codec(**CPU)
    own = codec.encode_images(frame, SIZE["num_frames"])  # type: ignore[attr-defined]
    assert {*own} == {*spec.images}
    pipe = DiffusionPipeline.from_pretrained(folder)
    asked = {"prompt": "a seven", "negative_prompt": "", "guidance_scale": 3.0}
    calls = handed(pipe, image=image, num_inference_steps=2, **asked)
    u = spec.build(frozenset({"teacher"}), **CPU)["teacher"]
    texts = [codec.encode_prompts([prompt])["text"] for prompt in ("a seven", "")]
    seen = []
    for call in calls:
        z = call["hidden_states"][:, : spec.row.example["z"][1]].transpose(1, 2)
        t = call["timestep"].float()[:1] / 1000
        with torch.no_grad():
            v = pipe.transformer(**{**call, "return_dict": False})[0].transpose(1, 2)
        errors = [float((u(z, t, t, {"text": text, **own}) - v).abs().max() / v.abs().max()) for text in texts]
        seen.append([error < 1e-4 for error in errors])
    assert sorted(seen) == [[False, True], [False, True], [True, False], [True, False]]


def test_guidance_leaves_the_image(spec: Diffusers) -> None:
    """v_∅ is of the same image without the text, and the codec's null has no entry of an image."""
    codec = spec.codec(**CPU)
    own = codec.encode_images(picture()[1], SIZE["num_frames"])  # type: ignore[attr-defined]
    cond, null = {**codec.encode_prompts(["a seven"]), **own}, codec.encode_prompts([""])
    u = spec.build(frozenset({"teacher"}), **CPU)["teacher"]
    z, t = Rng.seeded(1).noise_like(torch.zeros(1, *spec.row.example["z"])), torch.tensor([0.7])
    with torch.no_grad():
        guided = Guided(u, 3.0, null)(z, t, t, cond)
        v, v_null = u(z, t, t, cond), u(z, t, t, {**null, **own})
        torch.testing.assert_close(guided, v_null + 3 * (v - v_null), rtol=0, atol=1e-5)
        imageless = u(z, t, t, nullify(cond, spec.null({**cond, **null}) | {n: 0 * v[:1] for n, v in own.items()}))
    assert (imageless - v_null).abs().max() > 1e-3
    assert not {*spec.null(cond)} & {*spec.images}


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
