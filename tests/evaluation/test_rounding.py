"""What bfloat16 loses of training: measured as it is, told where it matters, and lost nowhere else."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from attrs import evolve
from flowmap_diffusers.loading import stored
from flowmap_digits import TINY_WAN
from flowmap_far import Far
from flowmap_wan import Lora
from flowmap_wan.spec import WanSpec
from flowmap_wan21 import Wan21
from safetensors.torch import load_file, save_file

import flowmap
from flowmap import AdamW, Batch, Recipe, Rng, Stage, distill
from flowmap.evaluation.rounding import Probe, Rounding, measure
from flowmap.methods import anyflow
from flowmap.plugins import manager
from flowmap.recipe import digest
from flowmap.training.store import status
from tests import runs
from tests.toys import Toy, data

CPU, QUIET = torch.device("cpu"), manager(entry_points=False)
F32, BF16 = torch.float32, torch.bfloat16
DIGITS = Wan21(TINY_WAN, lora=Lora(4, 8.0), text_tokens=12, shift=1.0)
SAMPLE = Batch(
    Rng.seeded(1).noise_like(torch.zeros(1, 5, 4, 8, 8)), {"text": Rng.seeded(2).noise_like(torch.zeros(1, 12, 32))}, {}
)
SAMPLE.cond["text"][:, -1:] = 0.0


def moved(spec: WanSpec, dtype: torch.dtype, size: float = 2e-3) -> tuple[Any, Probe]:
    """A student whose weights training has moved a little, and what it said before."""
    u: Any = spec.build(frozenset({"student"}), device=CPU, dtype=dtype)["student"]
    probe = Probe.of(u, "student", SAMPLE)
    with torch.no_grad():
        for k, (name, p) in enumerate(u.trained().items()):
            if ".lora_A" not in name:
                p.add_(size * Rng.seeded(5, k).noise_like(p))
    return u, probe


def said(u: Any) -> torch.Tensor:
    with torch.no_grad():
        out: torch.Tensor = u(SAMPLE.x, torch.tensor([0.7]), torch.tensor([0.2]), SAMPLE.cond)
    return out


def weights(student: Path) -> dict[str, torch.Tensor]:
    return {name: part[:] for name, part in stored(str(student)).items()}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(TINY_WAN, tmp_path_factory.mktemp("base") / "wan"))


@pytest.mark.parametrize("kind", [Wan21, Far])
@pytest.mark.parametrize("lora", [Lora(4, 8.0), None], ids=["adapters", "whole"])
def test_float32_keeps_all_and_bfloat16_is_what_was_measured(
    kind: type[WanSpec], lora: Lora | None, tmp_path: Path
) -> None:
    """Beside the files themselves, read by nothing of ours; of a base in bfloat16."""
    spec = kind(TINY_WAN, lora=lora, text_tokens=12, shift=1.0)
    u, probe = moved(spec, BF16)
    for dtype in (F32, BF16):
        spec.save(u, tmp_path / str(dtype), dtype=dtype)
    wide, narrow = (weights(tmp_path / str(dtype)) for dtype in (F32, BF16))
    assert {value.dtype for value in wide.values()} == {F32}
    assert {value.dtype for value in narrow.values()} == {F32, BF16}
    fresh: Any = spec.build(frozenset({"student"}), device=CPU, dtype=BF16)["student"]
    before = {n.replace(".base_layer", ""): p.detach().float() for n, p in fresh.net.named_parameters()}
    for name, p in u.net.named_parameters():
        if lora is None:
            assert torch.equal(wide[name], p), name
        elif ".base_layer.weight" in name:
            layer = name.removesuffix(".base_layer.weight")
            a, b = (u.trained()[f"{layer}.lora_{x}.weight"].detach() for x in "AB")
            torch.testing.assert_close(wide[f"{layer}.weight"] - p.float(), 2.0 * b @ a, rtol=0, atol=1e-7)
    lost = {n: (narrow[n].float() - w).double().norm() for n, w in wide.items() if narrow[n].dtype == BF16}
    change = {n: (wide[n] - before[n]).double().norm() for n in lost}
    trained = [n for n in lost if change[n] > 0]
    found = measure(spec, u, probe)
    total = float(sum(lost[n] ** 2 for n in trained) / sum(change[n] ** 2 for n in trained)) ** 0.5
    assert found.weights == pytest.approx(total, rel=1e-3) and 0.01 < total < 0.9
    shares = [float(lost[n] / change[n]) for n in trained]
    assert found.least == pytest.approx(min(shares), rel=1e-3) and found.most == pytest.approx(max(shares), rel=1e-3)
    assert found.outputs is not None and 1e-3 < found.outputs < 0.5


def test_the_output_that_is_lost_is_that_of_the_directory(tmp_path: Path) -> None:
    u, probe = moved(DIGITS, F32)
    DIGITS.save(u, tmp_path, dtype=BF16)
    shutil.rmtree(tmp_path / "lora")  # nothing but what was rounded
    other = DIGITS.load(tmp_path, device=CPU, dtype=F32)
    now, then = (torch.cat(probe.outputs(net)) for net in (u, other))
    wanted = float((now - then).norm() / (now - torch.cat(probe.before)).norm())
    assert measure(DIGITS, u, probe).outputs == pytest.approx(wanted, rel=1e-2)


@pytest.mark.parametrize("trained_in", [F32, BF16])
@pytest.mark.parametrize("loaded_in", [F32, BF16, torch.float16])
def test_a_rounded_student_is_loaded_unrounded_where_its_base_is(
    trained_in: torch.dtype, loaded_in: torch.dtype, base: Path, tmp_path: Path
) -> None:
    spec = evolve(DIGITS, path=str(base))
    u, _ = moved(spec, trained_in)
    spec.save(u, tmp_path / "student", dtype=BF16)
    (tmp_path / "recipe.json").write_text(json.dumps({"backbone": {"path": str(base)}}))  # as `distill` leaves it
    exact = u if trained_in == loaded_in else None
    for of in (spec, flowmap.backbone(str(tmp_path / "student"))):  # evaluate's way, and that of sample and export
        loaded: Any = of.load(tmp_path / "student", device=CPU, dtype=loaded_in)
        assert loaded.lora is not None and (loaded.lora.rank, loaded.lora.alpha) == (4, 8.0)
        assert loaded.dtype == loaded_in
        for name, p in u.trained().items():
            assert torch.equal(p, loaded.trained()[name])
        if exact is not None:
            assert torch.equal(said(loaded), said(exact))


def test_where_the_base_is_another_the_student_is_as_it_is_stored(base: Path, tmp_path: Path) -> None:
    spec = evolve(DIGITS, path=str(base))
    u, _ = moved(spec, F32)
    spec.save(u, tmp_path / "student", dtype=BF16)
    other = Path(shutil.copytree(base, tmp_path / "other"))
    file = other / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors["blocks.2.ffn.net.2.weight"] += 0.01
    save_file(tensors, file, metadata={"format": "pt"})
    told = tmp_path / "student" / "lora" / "base.json"
    for name in (str(other), str(tmp_path / "gone"), "wan", None):
        told.write_text(json.dumps({**json.loads(told.read_text()), "path": name}))
        loaded: Any = flowmap.backbone(str(tmp_path / "student")).load(tmp_path / "student", device=CPU, dtype=F32)
        assert loaded.lora is None
        assert torch.equal(loaded.net.proj_out.weight, weights(tmp_path / "student")["proj_out.weight"].float())


def test_the_adapters_of_a_student_that_was_trained_in_bfloat16_are_compared_with_its_base(tmp_path: Path) -> None:
    """Whose files are in float32: it is their rounding that was trained on."""
    u, _ = moved(DIGITS, BF16)
    DIGITS.save(u, tmp_path / "student")
    found = flowmap.export(tmp_path / "student", "lora", tmp_path / "lora", options={"base": TINY_WAN})
    assert found.worst is not None and found.worst < 1e-5


def test_an_export_of_a_rounded_student_is_not_rounded(base: Path, tmp_path: Path) -> None:
    spec = evolve(DIGITS, path=str(base))
    u, _ = moved(spec, F32)
    for dtype in (F32, BF16):
        spec.save(u, tmp_path / str(dtype) / "student", dtype=dtype)
        (tmp_path / str(dtype) / "recipe.json").write_text(json.dumps({"backbone": {"path": str(base)}}))
    flowmap.export(tmp_path / str(BF16), "diffusers", tmp_path / "made")
    made, wide = weights(tmp_path / "made"), weights(tmp_path / str(F32) / "student")
    assert all(torch.equal(made[name], value) for name, value in wide.items())


def test_of_any_network(tmp_path: Path) -> None:
    """By the formula itself; the network is as it was."""
    spec = Toy()
    u = spec.build(frozenset({"student"}), device=CPU, dtype=F32)["student"]
    batch = data(1).batch([0])
    probe = Probe.of(u, "student", batch)
    before = {name: p.detach().clone() for name, p in u.trained().items()}
    with torch.no_grad():
        for k, p in enumerate(u.trained().values()):
            p.add_(1e-2 * Rng.seeded(k).noise_like(p))
    after = {name: p.detach().clone() for name, p in u.trained().items()}
    found = measure(spec, u, probe)
    lost = sum((p.to(BF16).double() - p.double()).square().sum() for p in after.values())
    change = sum((p - before[name]).double().square().sum() for name, p in after.items())
    assert found.weights == pytest.approx(float(lost / change) ** 0.5, rel=1e-4)
    assert all(torch.equal(p, after[name]) for name, p in u.trained().items())
    spec.save(u, tmp_path, dtype=BF16)
    assert all(value.dtype == BF16 for value in load_file(tmp_path / "model.safetensors").values())
    rounded = spec.load(tmp_path, device=CPU, dtype=F32)
    now, then = (torch.cat(probe.outputs(net)) for net in (u, rounded))
    assert found.outputs == pytest.approx(float((now - then).norm() / (now - torch.cat(probe.before)).norm()), rel=1e-4)
    with torch.no_grad():
        for name, p in u.trained().items():
            p.copy_(before[name])
    assert measure(spec, u, probe) == Rounding(None, None, None, None)


RECIPE = Recipe(Toy(), (Stage(anyflow.forward(), 3, batch=4, optimizer=AdamW(lr=1e-2)),), data=data())


def test_a_run_says_it_and_saves_anew_in_another_type_without_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    distill(RECIPE, out=tmp_path, device="cpu", pm=QUIET)
    first = json.loads((tmp_path / "student" / "flowmap.json").read_text())
    lost = Rounding(**first["bfloat16"])
    assert first["dtype"] == "float32" and lost.weights is not None and lost.outputs is not None
    told = status.lines(tmp_path)["saved"]
    assert told == f"student/ was saved in float32, exactly; loaded in bfloat16 it would lose {lost.told()}"
    assert f"{100 * lost.weights:.2g} % of what was trained in the weights" in told
    assert f"{told.removeprefix('student/')}." in (tmp_path / "student" / "README.md").read_text()
    assert told in capsys.readouterr().err
    hashed, steps = runs.status(tmp_path)["hash"], (tmp_path / "metrics.jsonl").read_text()

    narrow = evolve(RECIPE, save_dtype="bfloat16")
    assert digest(narrow) == digest(RECIPE)
    distill(narrow, out=tmp_path, device="cpu", pm=QUIET)
    saved = load_file(tmp_path / "student" / "model.safetensors")
    assert {value.dtype for value in saved.values()} == {BF16}
    assert status.lines(tmp_path)["saved"] == f"student/ was saved in bfloat16; this rounding lost {lost.told()}"
    assert runs.status(tmp_path)["hash"] == hashed and (tmp_path / "metrics.jsonl").read_text() == steps

    (tmp_path / "student" / "model.safetensors").touch()
    stamp = (tmp_path / "student" / "model.safetensors").stat().st_mtime_ns
    distill(narrow, out=tmp_path, device="cpu", pm=QUIET)  # and not again
    assert (tmp_path / "student" / "model.safetensors").stat().st_mtime_ns == stamp
    assert "this rounding lost" in status.lines(tmp_path)["saved"]


def test_a_type_that_there_is_not() -> None:
    with pytest.raises(ValueError, match=r"Recipe.save_dtype = 'float16': must be "):
        evolve(RECIPE, save_dtype="float16")
