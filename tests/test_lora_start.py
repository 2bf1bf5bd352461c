"""LoRA files as a start: of a student's adapters, and fused into the base of every role."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from attrs import evolve
from flowmap_diffusers import Diffusers
from flowmap_far import Far
from flowmap_lora import Lora, start
from flowmap_wan import adapters
from flowmap_wan21 import Wan21
from safetensors.torch import save_file
from torch import Tensor

from flowmap import AdamW, Recipe, Rng, Stage, TensorData, distill
from flowmap.export.errors import ExportError
from flowmap.methods import anyflow
from flowmap.testing.kit_helpers import perturb
from flowmap.training.loop import Trainer
from flowmap.training.store.checkpoint import CheckpointError

ROLES = frozenset({"student", "teacher", "critic"})
CPU: dict[str, Any] = {"device": torch.device("cpu"), "dtype": torch.float32}
SPECS = {"wan": Wan21().tiny(), "far": Far().tiny(), "ltx": Diffusers(family="ltx").tiny()}
OWN = {"wan": "blocks.0.attn2.to_q", "far": "blocks.1.ffn.net.2", "ltx": "transformer_blocks.1.attn2.to_k"}
"""A layer that has no adapters as a rule, or of another rank."""


def said(u: Any, spec: Any) -> Tensor:
    z, cond = spec.example()
    t = torch.tensor([0.9, 0.4])
    with torch.no_grad():
        out: Tensor = u(z, t, t if u.role != "student" else t / 2, cond)
    return out


def pair(spec: Any, layer: str, rank: int) -> tuple[Tensor, Tensor]:
    built = evolve(spec, lora=None).build(frozenset({"teacher"}), **CPU)["teacher"].net.get_submodule(layer)
    a, b = torch.zeros(rank, built.in_features), torch.zeros(built.out_features, rank)
    return Rng.seeded(1).noise_like(a), Rng.seeded(2).noise_like(b)


def written(path: Path, layer: str, two: tuple[Tensor, Tensor], alpha: float, layout: str) -> Path:
    """A file of one layer, as its makers write it."""
    a, b = (x.contiguous() for x in two)
    path.mkdir(parents=True, exist_ok=True)
    if layout == "peft":
        save_file(
            {f"base_model.model.{layer}.lora_{x}.weight": w for x, w in (("A", a), ("B", b))},
            path / "adapter_model.safetensors",
        )
        (path / "adapter_config.json").write_text(json.dumps({"r": len(a), "lora_alpha": alpha}))
    elif layout == "comfyui":  # of Wan
        assert layer == "blocks.0.attn2.to_q"
        name = "diffusion_model.blocks.0.cross_attn.q"
        tensors = {f"{name}.lora_down.weight": a, f"{name}.lora_up.weight": b, f"{name}.alpha": torch.tensor(alpha)}
        save_file(tensors, path / start.LORA_FILE)
    else:
        about = {"transformer.r": len(a), "transformer.lora_alpha": alpha}
        save_file(
            {f"transformer.{layer}.lora_{x}.weight": w for x, w in (("A", a), ("B", b))},
            path / start.LORA_FILE,
            metadata={"lora_adapter_metadata": json.dumps(about)},
        )
    return path


def by_hand(spec: Any, layer: str, two: tuple[Tensor, Tensor], scale: float, roles: frozenset[Any] = ROLES) -> Any:
    """Networks without the file, W + s B A in the weight of one layer."""
    nets = spec.build(roles, **CPU)
    for net in {id(u.net): u.net for u in nets.values()}.values():
        owner = net.get_submodule(layer)
        with torch.no_grad():
            getattr(owner, "base_layer", owner).weight += scale * two[1] @ two[0]
    return nets


@pytest.mark.parametrize(
    ("name", "layout"), [("wan", "diffusers"), ("wan", "peft"), ("wan", "comfyui"), ("ltx", "peft")]
)
def test_a_student_begins_as_the_file_and_the_others_as_they_would(name: str, layout: str, tmp_path: Path) -> None:
    spec, layer = SPECS[name], OWN[name]
    file = written(tmp_path / "style", layer, two := pair(spec, layer, 3), 1.5, layout)
    lora = Lora(init=file)
    assert lora.rank == 3 and lora.alpha == (3.0 if layout == "comfyui" else 1.5)  # there only tensors say it
    nets = evolve(spec, lora=lora).build(ROLES, **CPU)
    wanted, plain = by_hand(spec, layer, two, 0.5), spec.build(ROLES, **CPU)
    torch.testing.assert_close(said(nets["student"], spec), said(wanted["student"], spec), rtol=0, atol=1e-6)
    assert (said(nets["student"], spec) - said(plain["student"], spec)).abs().max() > 1e-3
    for role in ("teacher", "critic"):
        assert torch.equal(said(nets[role], spec), said(plain[role], spec))
    assert nets["critic"].trained().keys() == plain["critic"].trained().keys()


def test_a_scale_that_is_forgotten_is_seen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(start, "_scale", lambda *given: 1.0)
    for layout in ("diffusers", "peft"):
        with pytest.raises(AssertionError):
            test_a_student_begins_as_the_file_and_the_others_as_they_would("wan", layout, tmp_path / layout)
    with pytest.raises(AssertionError):
        test_a_file_is_fused_into_the_base_of_every_role("wan", tmp_path)


@pytest.mark.parametrize("name", SPECS)
def test_ones_own_student_goes_on_to_the_bit_and_only_on_its_base(name: str, tmp_path: Path) -> None:
    spec = evolve(SPECS[name], lora=Lora(rank=4, alpha=8.0, ranks={OWN[name]: 2}, targets=rf".*{OWN[name][-10:]}"))
    u = spec.build(frozenset({"student"}), **CPU)["student"]
    perturb(u, 0, 0.1)
    spec.save(u, tmp_path)
    again = evolve(spec, lora=Lora(init=tmp_path)).build(ROLES, **CPU)["student"]
    assert torch.equal(said(again, spec), said(u, spec))
    ours, theirs = again.trained(), u.trained()
    assert all(torch.equal(ours[n], p) for n, p in theirs.items())
    for other in ({"seed": 1}, {"gamma": 0.5}):
        with pytest.raises(ValueError, match=r"other weights|another base|gate_value|gamma"):
            evolve(spec, lora=Lora(init=tmp_path), **other).build(ROLES, **CPU)


@pytest.mark.parametrize("name", SPECS)
def test_a_file_is_fused_into_the_base_of_every_role(name: str, tmp_path: Path) -> None:
    spec, layer = SPECS[name], OWN[name]
    file = written(tmp_path / "style", layer, two := pair(spec, layer, 3), 1.5, "diffusers")
    for lora in (None, Lora(rank=4, alpha=4.0)):
        own = evolve(spec, lora=lora)
        nets, wanted = evolve(own, fuse=file).build(ROLES, **CPU), by_hand(own, layer, two, 0.5)
        for role in ROLES:
            torch.testing.assert_close(said(nets[role], spec), said(wanted[role], spec), rtol=0, atol=1e-6)
    evolve(own, fuse=file).save(nets["student"], tmp_path / "student")
    if name != "ltx":
        with pytest.raises(ExportError, match="a base that 'style' was fused into"):
            adapters.require(tmp_path / "student")


@pytest.mark.parametrize("name", SPECS)
def test_meta_networks_are_filled_with_what_building_gives(name: str, tmp_path: Path) -> None:
    layer = OWN[name]
    style = written(tmp_path / "style", layer, pair(SPECS[name], layer, 3), 1.5, "diffusers")
    fused = evolve(SPECS[name], fuse=style)
    u = fused.build(frozenset({"student"}), **CPU)["student"]
    perturb(u, 0, 0.1)
    fused.save(u, tmp_path / "own")
    spec = evolve(fused, lora=Lora(init=tmp_path / "own"))
    for dtype in (torch.float32, torch.bfloat16):
        made: dict[int, Tensor] = {}
        hollow = spec.build(ROLES, device=torch.device("meta"), dtype=dtype)
        spec.fill(hollow, lambda p, rows: made.update({id(p): rows(slice(None))}), dtype=dtype)  # noqa: B023
        built = spec.build(ROLES, device=torch.device("cpu"), dtype=dtype)
        for role in ROLES:
            ours, theirs = (dict(nets[role].net.named_parameters()) for nets in (hollow, built))
            assert all(torch.equal(made[id(p)], theirs[n]) and theirs[n].dtype == p.dtype for n, p in ours.items())
    elsewhere = evolve(spec, fuse=None)
    hollow = elsewhere.build(ROLES, device=torch.device("meta"), dtype=torch.float32)
    with pytest.raises(ValueError, match=r"other weights|another base"):
        elsewhere.fill(hollow, lambda p, rows: None, dtype=torch.float32)


def test_a_file_of_another_network_is_refused_before_anything_is_built(tmp_path: Path) -> None:
    wan, layer = SPECS["wan"], OWN["wan"]
    file = written(tmp_path / "ltx", OWN["ltx"], pair(SPECS["ltx"], OWN["ltx"], 2), 2.0, "diffusers")
    for given in ({"lora": Lora(init=file)}, {"fuse": file}):
        with pytest.raises(
            ValueError, match=r"its transformer_blocks\.1\.attn2\.to_k is no linear layer of .*Wan|AnyFlow"
        ):
            evolve(wan, **given).validate()
    narrow = written(tmp_path / "narrow", layer, (torch.ones(2, 5), torch.ones(24, 2)), 2.0, "diffusers")
    with pytest.raises(ValueError, match=r"has A \(2, 5\) and B \(24, 2\): must be \(rank, 24\) and \(24, rank\)"):
        evolve(wan, fuse=narrow).validate()
    a, b = pair(wan, layer, 2)
    dora = {f"transformer.{layer}.lora_A.weight": a, f"transformer.{layer}.lora_B.weight": b}
    for more in ("lora_magnitude_vector", "dora_scale", "lora_B.bias", "diff_b"):
        save_file({**dora, f"transformer.{layer}.{more}": torch.ones(24)}, tmp_path / "more.safetensors")
        with pytest.raises(ValueError, match=rf"has .*{more}, which is no A or B"):
            evolve(wan, lora=Lora(init=tmp_path / "more.safetensors")).validate()
    for path, message in ((tmp_path / "none", "is no LoRA file"), (tmp_path, "has no LoRA file")):
        with pytest.raises(ValueError, match=rf"Lora.init = .*{message}"):
            Lora(init=path)
    with pytest.raises(ValueError, match=r"Lora.rank = 8: must be 2, as in"):
        Lora(rank=8, init=tmp_path / "more.safetensors")


def data(spec: Any) -> TensorData:
    z, cond = spec.example(4)
    return TensorData(z, cond, {name: torch.zeros_like(value[:1]) for name, value in cond.items()})


class Killed(Exception):  # noqa: N818
    """Stands in for a kill."""


def test_a_run_is_resumed_on_the_same_files_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, layer = SPECS["wan"], OWN["wan"]
    file = written(tmp_path / "style", layer, two := pair(spec, layer, 3), 1.5, "diffusers")
    spec = evolve(spec, lora=Lora(init=file), fuse=file)
    stages = tuple(Stage(anyflow.forward(), steps=1, batch=2, optimizer=AdamW(lr=1e-2)) for _ in range(2))
    recipe, step = Recipe(spec, stages, data=data(spec)), Trainer.step

    def run(out: Path) -> dict[str, Tensor]:
        return {n: p.detach().clone() for n, p in distill(recipe, out=out, device="cpu").named_parameters()}

    def killed(trainer: Trainer, iteration: int) -> Any:
        if (tmp_path / "torn" / "checkpoints").is_dir():
            raise Killed
        return step(trainer, iteration)

    whole = run(tmp_path / "whole")
    monkeypatch.setattr(Trainer, "step", killed)
    with pytest.raises(Killed):
        run(tmp_path / "torn")
    monkeypatch.undo()
    resumed = run(tmp_path / "torn")
    assert any("lora_A" in name for name in whole) and all(torch.equal(p, resumed[n]) for n, p in whole.items())
    written(tmp_path / "style", layer, (two[0], 2 * two[1]), 1.5, "diffusers")
    with pytest.raises(CheckpointError, match=r"another recipe"):
        run(tmp_path / "torn")
