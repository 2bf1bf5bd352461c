"""R11: networks and data that do not fit, by one dimension: said before training, with tensor and shapes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from attrs import evolve, frozen
from flowmap_digits import TINY_WAN
from flowmap_wan21 import Wan21
from safetensors.torch import load_file, save_file

from flowmap import AdamW, Recipe, Stage, TensorData, distill
from flowmap._types import Cache, Cond, Latent, Time
from flowmap.methods import anyflow
from flowmap.model import WeightsError
from flowmap.plugins import manager
from flowmap.recipe import RecipeError
from tests.toys import CHANNELS, FRAMES, TEXT, Toy, ToyFlowMap, data

pytestmark = pytest.mark.row("R11")
QUIET = manager(entry_points=False)
STAGE = Stage(anyflow.forward(), 2, batch=4, optimizer=AdamW(lr=1e-3))
ON_POLICY = Stage(anyflow.on_policy(steps=(2,)), 2, batch=4, optimizer=AdamW(lr=1e-3))


def made(x: tuple[int, ...] = (FRAMES, CHANNELS, 2, 2), text: int = TEXT, null: int | None = None) -> TensorData:
    found = TensorData(torch.zeros(8, *x), {"text": torch.zeros(8, text)}, {"text": torch.zeros(1, text)})
    if null is not None:
        found.null["text"] = torch.zeros(1, null)  # type: ignore[index]
    return found


def refused(out: Path, recipe: Recipe) -> tuple[str, ...]:
    """What is said; nothing has been trained by then."""
    with pytest.raises(RecipeError) as error:
        distill(recipe, out=out, device="cpu", pm=QUIET)
    assert not (out / "checkpoints").exists() and not (out / "metrics.jsonl").exists()
    status = json.loads((out / "status.json").read_text())
    assert status["state"] == "failed" and status["reason"].startswith("RecipeError")
    return error.value.errors


INP, SAID = "net.inp: weight is [16, 8], bias is [16], and it was given", "net.text: weight is [16, 3], bias is [16]"
WRONG: dict[str, tuple[TensorData, tuple[str, str]]] = {
    "channels": (made((FRAMES, 3, 2, 2)), ("x [1, 4, 3, 2, 2]", f"{INP} [1, 4, 12]")),
    "height": (made((FRAMES, CHANNELS, 4, 2)), ("x [1, 4, 2, 4, 2]", f"{INP} [1, 4, 16]")),
    "text": (made(text=5), ("cond['text'] [1, 5]", f"{SAID}, and it was given [1, 5]")),
}


@pytest.mark.parametrize("wrong, said", WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("causal", [False, True])
def test_data_of_another_size(wrong: TensorData, said: tuple[str, str], causal: bool, tmp_path: Path) -> None:
    (error,) = refused(tmp_path, Recipe(Toy(causal=causal), (STAGE,), data=wrong))
    assert error.startswith("the student (Toy, Toy) does not take the data (TensorData: ")
    assert all(part in error for part in said), error


def test_a_condition_that_is_missing_and_one_that_guidance_cannot_replace(tmp_path: Path) -> None:
    (error,) = refused(tmp_path / "a", Recipe(Toy(), (STAGE,), data=TensorData(made().x)))
    assert error.endswith("KeyError: 'text'")
    (error,) = refused(tmp_path / "b", Recipe(Toy(), (STAGE,), data=made(null=4)))
    assert error == (
        "null['text'] of the data (TensorData) is [1, 4]: must be as cond['text'], [1, 3], in all but samples"
    )


class Narrow(ToyFlowMap):
    """A teacher of other latents."""

    def forward(self, z: Latent, t: Time, r: Time, cond: Cond, cache: Cache = None) -> Latent:
        return super().forward(z, t, r, cond, cache)[:, :, :1]


class Wide(ToyFlowMap):
    """A teacher of other texts."""

    def hidden(self, z: Any, e: Any, cond: Cond) -> Any:
        return super().hidden(z, e, {**cond, "text": cond["text"].repeat(1, 2)})


def test_a_teacher_that_is_another_networks(tmp_path: Path) -> None:
    recipe = Recipe(Toy(), (ON_POLICY,), teacher=Toy(network=Narrow), data=data())
    critic, teacher = refused(tmp_path / "a", recipe)
    said = "it gives [1, 4, 1, 2, 2] for [1, 4, 2, 2, 2]: must be the same"
    assert critic.startswith("the critic (") and teacher.startswith("the teacher (")
    assert critic.endswith(said) and teacher.endswith(said)
    _, teacher = refused(tmp_path / "b", evolve(recipe, teacher=Toy(network=Wide)))
    assert "net.text: weight is [16, 3], bias is [16], and it was given [1, 6]" in teacher


def test_networks_that_fit_are_left_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = Recipe(Toy(causal=True), (STAGE, ON_POLICY), data=data())
    checked = distill(recipe, device="cpu", pm=QUIET)
    monkeypatch.setattr("flowmap.training.ranks.fits.check", lambda *arguments: None)
    left = distill(recipe, device="cpu", pm=QUIET)
    for a, b in zip(checked.parameters(), left.parameters(), strict=True):
        assert torch.equal(a, b)


@frozen
class Wider(Toy):
    width: int = 24


def test_a_students_file_of_another_size(tmp_path: Path) -> None:
    distill(Recipe(Toy(), (STAGE,), data=data()), out=tmp_path, device="cpu", pm=QUIET)
    file = tmp_path / "student" / "model.safetensors"
    with pytest.raises(WeightsError) as error:
        Wider().load(tmp_path / "student", device=torch.device("cpu"), dtype=torch.float32)
    assert str(error.value) == f"{file}: net.inp.bias is [16]: must be [24] (and 18 more tensors do not fit)"
    tensors = load_file(file)
    save_file({name: value for name, value in tensors.items() if name != "net.out.bias"}, file)
    with pytest.raises(WeightsError, match=r"model.safetensors: there is no net.out.bias, which the network has"):
        Toy().load(tmp_path / "student", device=torch.device("cpu"), dtype=torch.float32)
    save_file({**tensors, "more": torch.zeros(1)}, file)
    with pytest.raises(WeightsError, match=r"model.safetensors: more is not in the network"):
        Toy().load(tmp_path / "student", device=torch.device("cpu"), dtype=torch.float32)
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(WeightsError, match=r"model.safetensors: is damaged: "):
        Toy().load(tmp_path / "student", device=torch.device("cpu"), dtype=torch.float32)


CONFIG = {
    "text_dim": (48, "condition_embedder.text_embedder.linear_1.weight is [128, 32]: must be [128, 48]"),
    "freq_dim": (64, "condition_embedder.time_embedder.linear_1.weight is [128, 128]: must be [128, 64]"),
    "num_layers": (
        5,
        "there is no blocks.4.attn1.norm_k.weight, which the network has (and 26 more tensors do not fit)",
    ),
    "ffn_dim": (40, "blocks.0.ffn.net.0.proj.bias is [512]: must be [40] (and 11 more tensors do not fit)"),
}


@pytest.mark.parametrize("key", CONFIG)
def test_wans_weights_that_are_not_of_its_size(key: str, tmp_path: Path) -> None:
    """diffusers would leave out the file, and make up layers that are missing."""
    pipeline = Path(shutil.copytree(TINY_WAN, tmp_path / "wan"))
    file, (value, said) = pipeline / "transformer" / "config.json", CONFIG[key]
    file.write_text(json.dumps({**json.loads(file.read_text()), key: value}))
    recipe = Recipe(Wan21(str(pipeline), lora=None), (STAGE,), data=data())
    assert refused(tmp_path / "run", recipe) == (f"{pipeline}/transformer/diffusion_pytorch_model.safetensors: {said}",)


def test_data_that_wan_does_not_take(tmp_path: Path) -> None:
    x, text = torch.zeros(4, 5, 4, 8, 8), torch.zeros(4, 12, 48)
    wide = TensorData(x, {"text": text}, {"text": text[:1]})
    (error,) = refused(tmp_path, Recipe(Wan21(TINY_WAN, lora=None, text_tokens=12), (STAGE,), data=wide))
    assert error.startswith("the student (Wan21, ") and "cond['text'] [1, 12, 48]" in error
    assert "text_embedder.linear_1: weight is [128, 32], bias is [128], and it was given [1, 12, 48]" in error


def test_a_run_goes_on_with_its_own_data_alone(tmp_path: Path) -> None:
    recipe = Recipe(Toy(), (STAGE, ON_POLICY))

    class Stops(TensorData):
        def batch(self, index: Any) -> Any:
            if len(index) == 4 and (tmp_path / "checkpoints").exists():
                raise KeyboardInterrupt
            return super().batch(index)

    first = data()
    with pytest.raises(KeyboardInterrupt):
        distill(recipe, Stops(first.x, first.cond, first.null), out=tmp_path, device="cpu", pm=QUIET)
    other = evolve(first, x=first.x + 1)
    with pytest.raises(RecipeError, match=r"its data had the fingerprint \w{12}, and these have \w{12}: resume with"):
        distill(recipe, other, out=tmp_path, device="cpu", pm=QUIET)
    distill(recipe, first, out=tmp_path, device="cpu", pm=QUIET)
