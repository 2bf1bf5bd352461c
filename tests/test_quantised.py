"""A frozen base of few bits: its codes, its layers, its networks, and a run on it, beside the weights before that."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest
import torch
from attrs import evolve
from flowmap_diffusers import Diffusers
from flowmap_diffusers.students import fused as fused_of_a_row
from flowmap_far import Far
from flowmap_lora import Lora, quantised
from flowmap_lora.bits import BITS
from flowmap_lora.files import fingerprint
from flowmap_lora.linear import LoraLinear
from flowmap_lora.quantised import Quantised, levels, quantise, weight_of
from flowmap_lora.roles import add_adapter, sets
from flowmap_wan.checkpoints import fused as fused_of_wan
from flowmap_wan21 import Wan21
from torch import nn

from flowmap import AdamW, Recipe, Rng, Stage, TensorData, distill
from flowmap.derivative import CentralDifference, ForwardMode
from flowmap.methods import anyflow
from flowmap.methods.meanflow import meanflow
from flowmap.model import FlowMapSpec
from flowmap.testing.kit_helpers import perturb
from flowmap.training.loop import Trainer
from tests.planning.helpers import data as samples
from tests.planning.helpers import spec as small

F32, BF16 = torch.float32, torch.bfloat16
CPU = torch.device("cpu")
ROLES = frozenset({"student", "teacher", "critic"})
FAMILIES: dict[str, FlowMapSpec] = {
    "wan": Wan21().tiny(),
    "far": Far().tiny(),
    "ltx": Diffusers(family="ltx").tiny(),
    "flux": Diffusers(family="flux").tiny(),
    "cogvideox": Diffusers(family="cogvideox").tiny(),
}
U = {"int8": 0.006, "fp8": 0.012, "nf4": 0.055}
"""‖u_low - u‖ / ‖u‖ beside bfloat16, at most, of toy networks with random weights: docs/large.md."""
GRADIENT = {"int8": 0.009, "fp8": 0.035, "nf4": 0.16}
"""The same of a gradient; and of that of a whole stage."""
STAGE = {("int8", "stage 1"): 0.005, ("fp8", "stage 1"): 0.02, ("nf4", "stage 1"): 0.06, ("int8", "stage 2"): 0.02}


def weight(dtype: torch.dtype = F32, columns: int = 150) -> torch.Tensor:
    return Rng.seeded(3).noise_like(torch.zeros(10, columns)).mul_(0.02).to(dtype)


# ------------------------------------------------------------------ codes
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("columns", [150, 64, 24])
def test_a_weight_is_the_nearest_that_its_codes_can_say(bits, columns):
    w = weight(columns=columns)
    codes, scale = quantise(w, bits)
    made, table = weight_of(codes, scale, columns, F32), values(bits)
    each = scale.float().repeat_interleave(64, 1)[:, :columns] if bits == "nf4" else scale
    away = (w[..., None] - each[..., None] * table).abs().amin(-1)
    torch.testing.assert_close((made - w).abs(), away, rtol=0, atol=1e-6 * float(w.abs().max()))
    assert made.shape == w.shape
    again = weight_of(*quantise(made, bits), columns, F32)
    torch.testing.assert_close(again, made, rtol=2**-8, atol=0)


def values(bits: str) -> torch.Tensor:
    """All that a code can stand for."""
    if bits == "nf4":
        return levels(CPU)
    every = torch.arange(256, dtype=torch.uint8)
    found = every.view(torch.int8 if bits == "int8" else torch.float8_e4m3fn).float()
    return found[found.isfinite() & (found.abs() < 128 if bits == "int8" else True)]


@pytest.mark.parametrize("bits", BITS)
def test_rows_of_codes_are_codes_of_rows(bits):
    whole, part = quantise(weight(), bits), quantise(weight()[3:7], bits)
    assert all(torch.equal(a[3:7], b) for a, b in zip(whole, part, strict=True))


@pytest.mark.parametrize("bits", BITS)
def test_a_row_of_zeros_stays_one(bits):
    assert not weight_of(*quantise(torch.zeros(2, 64), bits), 64, BF16).any()


def test_nf4_has_the_levels_and_codes_of_torchao():
    ao = pytest.importorskip("torchao.quantization", reason="torchao, another's nf4 to compare with, is not installed")
    theirs = pytest.importorskip("torchao.quantization.quantize_.workflows.nf4.nf4_tensor")
    assert ao is not None
    made = theirs.to_nf4(weight(columns=256), block_size=64, scaler_block_size=4)
    torch.testing.assert_close(levels(CPU), made.nf4, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("bits", "size"), [("int8", 8), ("fp8", 8), ("nf4", 4.25)])
def test_the_bits_of_a_weight(bits, size):
    layer = Quantised(nn.Linear(512, 64, bias=False), bits)
    held = sum(p.nbytes for p in layer.parameters()) * 8 / layer.in_features / layer.out_features
    assert held == pytest.approx(size, abs=0.1)


# ------------------------------------------------------------------ layers
def pair(bits: str, dtype: torch.dtype, *, adapters: bool) -> tuple[nn.Module, nn.Module]:
    """A layer of codes, and one that holds what they stand for."""
    plain = nn.Linear(150, 10).to(dtype).requires_grad_(False)
    plain.weight.data = weight(dtype)
    made = nn.Linear(150, 10).to(dtype).requires_grad_(False)
    low = Quantised(plain, bits)
    made.weight.data, made.bias.data = weight_of(low.weight, low.scale, 150, dtype), plain.bias.data
    nets = nn.Sequential(low), nn.Sequential(made)
    for net in nets if adapters else ():
        add_adapter(net, "student", Lora(4, 8.0), ["0"], {})
        net[0].lora_B["student"].weight.data = Rng.seeded(1).noise_like(net[0].lora_B["student"].weight)
        sets(net).name = "student"
    return nets


@pytest.mark.parametrize("adapters", [False, True], ids=["base", "adapters"])
@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
@pytest.mark.parametrize("bits", BITS)
def test_a_layer_is_that_of_the_weight_that_its_codes_stand_for(bits, dtype, adapters):
    """To the bit, in its output, in both kinds of derivative, and with and without a graph."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        low, plain = pair(bits, dtype, adapters=adapters)
    x = Rng.seeded(5).noise_like(torch.zeros(2, 7, 150)).to(dtype)
    found = []
    for net in (low, plain):
        z = x.clone().requires_grad_()
        y = net(z)
        y.float().square().sum().backward()
        _, tangent = torch.func.jvp(net, (x,), (x.flip(0),))
        with torch.no_grad():
            assert torch.equal(net(x), y)
        found.append((y, z.grad, tangent, *(p.grad for p in net.parameters() if p.requires_grad)))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("adapters", [False, True], ids=["base", "adapters"])
def test_codes_are_kept_for_the_backward_pass_and_no_weight(adapters):
    low, plain = pair("int8", BF16, adapters=adapters)
    sizes = []
    for net in (low, plain):
        kept: list[torch.Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: (kept.append(t), t)[1], lambda t: t):
            net(torch.ones(1, 150, dtype=BF16, requires_grad=True))
        sizes.append([(t.dtype, t.numel()) for t in kept if t.numel() == 1500])
    assert sizes == [[(torch.int8, 1500)], [(BF16, 1500)]]


# ------------------------------------------------------------------ networks
def networks(spec: FlowMapSpec, dtype: torch.dtype = BF16, device: str = "cpu"):
    nets = spec.build(ROLES, device=torch.device(device), dtype=dtype)
    if device == "cpu":
        for u in nets.values():
            perturb(u, len(u.role))
    return nets


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("family", FAMILIES)
def test_u_and_its_gradient_are_near_those_of_bfloat16(family, bits):
    found = []
    for base in (None, bits):
        spec = evolve(FAMILIES[family], base=base)
        u, (z, cond) = networks(spec)["student"], spec.example()
        y = u(z, torch.tensor([0.8, 0.6]), torch.tensor([0.3, 0.1]), cond)
        y.square().mean().backward()
        grads = [p.grad.flatten() for p in u.trained().values() if p.grad is not None]
        found.append((y.detach(), torch.cat(grads)))
    (y, g), (y_low, g_low) = found
    assert 0 < (y_low - y).norm() / y.norm() < U[bits]
    assert 0 < (g_low - g).norm() / g.norm() < GRADIENT[bits]


STAGES = {"stage 1": anyflow.forward(), "stage 2": anyflow.on_policy(steps=(2, 4))}


@pytest.mark.parametrize("bits, stage", [(bits, "stage 1") for bits in BITS] + [("int8", "stage 2")])
def test_a_stage_s_gradient_is_near_that_of_bfloat16(bits, stage):
    """Of the student, of one iteration, on a network with adapters that have numbers."""
    g, low = gradient(None, stage), gradient(bits, stage)
    assert 0 < (low - g).norm() / g.norm() < STAGE[bits, stage]


@cache
def gradient(base, stage):
    """The exact one is that of all comparisons."""
    trainer, grads = Trainer(networks(evolve(small(), base=base)), Stage(STAGES[stage], 4, 2), samples()), {}
    trained = trainer.trained["student"]
    trainer.optimizers["student"].register_step_pre_hook(
        lambda *_: grads.update({n: p.grad.clone() for n, p in trained.items() if p.grad is not None})
    )
    trainer.step(1)
    return torch.cat([g.flatten() for g in grads.values()])


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("family", FAMILIES)
def test_attention_and_feed_forward_are_of_few_bits_once_for_all_roles_and_nothing_else_is(family, bits):
    spec = evolve(FAMILIES[family], base=bits)
    nets, plain = networks(spec), networks(evolve(spec, base=None))
    net = nets["student"].net
    assert all(u.net is net for u in nets.values())
    low = {name for name, layer in net.named_modules() if isinstance(layer, Quantised)}
    inside = {id(block) for block in nets["student"].blocks}
    within = {id(m) for block in nets["student"].blocks for m in block.modules()}
    assert inside and all(id(net.get_submodule(name)) in within for name in low)
    for name, layer in plain["student"].net.named_modules():
        if isinstance(layer, nn.Linear) and ".lora_" not in name:
            norm = any(word in name for word in ("norm", "mod", "embed"))
            assert (name in low) == (not norm and any(name.startswith(f"{b}.") for b in blocks(nets["student"])))
    exact = dict(plain["student"].net.named_parameters())
    for name, p in net.named_parameters():
        if name.rpartition(".")[0] not in low:
            assert torch.equal(p, exact[name])


def blocks(u) -> list[str]:
    lists = {id(block) for block in u.blocks}
    return [name for name, module in u.net.named_modules() if id(module) in lists]


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_student_is_fused_from_the_weights_before_that_and_its_base_has_their_fingerprint(family, bits):
    found = []
    for base in (None, bits):
        u = networks(evolve(FAMILIES[family], base=base))["student"]
        made = fused_of_a_row(u, F32) if family not in ("wan", "far") else fused_of_wan(u, F32, CPU).state_dict()
        found.append((dict(made), fingerprint(u.net)))
    (exact, mark), (low, low_mark) = found
    assert exact.keys() == low.keys() and mark == low_mark
    assert all(torch.equal(exact[name], low[name]) for name in exact)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_filled_is_what_is_built(family):
    """The way of several ranks, of which each codes its own rows."""
    spec = evolve(FAMILIES[family], base="nf4")
    built = spec.build(ROLES, device=CPU, dtype=BF16)["student"]
    nets = spec.build(ROLES, device=torch.device("meta"), dtype=BF16)
    net, made = nets["student"].net, {}

    def put(p, rows):
        made[id(p)] = torch.cat([rows(slice(0, 3)), rows(slice(3, None))])

    spec.fill(nets, put, dtype=BF16)
    for name, p in net.named_parameters():
        assert torch.equal(made[id(p)], built.net.get_parameter(name)), name


def test_a_base_is_frozen():
    with pytest.raises(
        ValueError, match=r"Wan21\.base = 'int8': is frozen, under adapters: must be None where Wan21\.lora"
    ):
        Wan21(lora=None, base="int8")
    with pytest.raises(ValueError, match=r"Diffusers\.base = 'int4': must be 'int8', 'fp8' or 'nf4'"):
        Diffusers(family="ltx", base="int4")


# ------------------------------------------------------------------ runs
def recipe(steps: int, **more) -> Recipe:
    spec = evolve(Wan21().tiny(), base="int8", checkpointing=True, **more)
    z, cond = spec.example(6)
    stages = [
        Stage(meanflow(drop=0.0, derivative=kind), steps, 2, optimizer=AdamW(1e-2))
        for kind in (CentralDifference(), ForwardMode())
    ]
    return Recipe(spec, tuple(stages), data=TensorData(z, dict(cond), dict(spec.null(cond))), dtype="bfloat16")


def test_a_run_goes_on_on_the_same_base_and_saves_the_exact_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in the second stage, whose derivative is in forward mode; then the weights are bit for bit the same."""
    whole = distill(recipe(3), out=tmp_path / "whole", device="cpu")
    stopped = iter(range(100))

    def stop(at: str) -> None:
        if at == "student.after" and next(stopped) == 4:
            raise RuntimeError("stop")

    monkeypatch.setattr("flowmap.training.loop.reach", stop)
    with pytest.raises(RuntimeError, match="stop"):
        distill(recipe(3), out=tmp_path / "parts", device="cpu", save_minutes=0.0)
    monkeypatch.undo()
    again = distill(recipe(3), out=tmp_path / "parts", device="cpu")
    for name, p in whole.trained().items():
        assert torch.equal(p, again.trained()[name])
    student = recipe(3).backbone.load(tmp_path / "whole" / "student", device=CPU, dtype=F32)
    assert not any(isinstance(layer, Quantised) for layer in student.modules())
    exact = evolve(recipe(3).backbone, base=None).build(frozenset({"student"}), device=CPU, dtype=BF16)["student"]
    for name, p in exact.trained().items():
        p.data.copy_(whole.trained()[name])
    for name, p in fused_of_wan(exact, F32, CPU).state_dict().items():
        assert torch.equal(p, student.net.state_dict()[name])
    said = json.loads((tmp_path / "whole" / "recipe.json").read_text())
    assert said["backbone"]["base"] == "int8"


# ------------------------------------------------------------------ planted defects
def test_a_weight_that_is_made_of_codes_alone_is_seen(monkeypatch):
    monkeypatch.setattr(quantised, "weight_of", lambda c, s, n, dtype: c.to(dtype))
    with pytest.raises(AssertionError):
        test_u_and_its_gradient_are_near_those_of_bfloat16("wan", "int8")


def test_a_student_that_is_fused_from_codes_is_seen(monkeypatch):
    """As if the base's weights were what its codes stand for."""
    inner = quantised.weights
    monkeypatch.setattr(quantised, "weights", lambda net: coded_of(inner, net))
    with pytest.raises(AssertionError):
        test_a_student_is_fused_from_the_weights_before_that_and_its_base_has_their_fingerprint("wan", "int8")


def coded_of(inner, net):
    low = quantised._quantised(net)
    for own, shape, value, rows in inner(net):
        layer = low.get(own.rpartition(".")[0])
        made = None if rows is None or layer is None else weight_of(layer.weight, layer.scale, shape[1], BF16)
        yield own, shape, value, rows if made is None else made.__getitem__


def test_a_lora_layer_on_codes_has_their_scales():
    layer = pair("fp8", BF16, adapters=True)[0][0]
    assert isinstance(layer, LoraLinear) and layer.dtype == BF16 and layer.weight.dtype == torch.float8_e4m3fn
