"""The linear layer with adapters, beside peft's own and beside exact numbers."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from attrs import evolve
from flowmap_diffusers import Diffusers
from flowmap_lora import Lora, linear
from flowmap_lora.linear import LoraLinear
from flowmap_lora.roles import add_adapter, sets
from flowmap_lora.sets import Sets
from flowmap_wan21 import Wan21
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from flowmap import AdamW, Rng, Stage, TensorData
from flowmap.derivative import CentralDifference, ForwardMode
from flowmap.methods import anyflow
from flowmap.testing.kit_helpers import perturb
from flowmap.training.loop import Trainer

F32, BF16, F64 = torch.float32, torch.bfloat16, torch.float64
CPU = torch.device("cpu")
LORA = Lora(rank=6, alpha=9.0, ranks={"1": 3})


def base(dtype: torch.dtype = F32) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(24, 40), nn.Linear(40, 32, bias=False), nn.GELU(), nn.Linear(32, 16))
    return net.to(dtype).requires_grad_(False)


def adapted(dtype: torch.dtype = F32, size: float = 0.1) -> nn.Sequential:
    net = base(dtype)
    for name in ("student", "critic"):
        add_adapter(net, name, LORA, ["0", "1"], {})
        for layer in (net[0], net[1]):
            layer.lora_B[name].weight.data = size * Rng.seeded(len(name)).noise_like(layer.lora_B[name].weight)
    sets(net).name = "student"
    return net


def peft_of(net: nn.Sequential, dtype: torch.dtype) -> nn.Sequential:
    """Its own layers, with the same numbers."""
    from peft import LoraConfig, inject_adapter_in_model

    theirs, kind = base(dtype), {"rank_pattern": {"1": 3}, "alpha_pattern": {"1": 4.5}}
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.filterwarnings("ignore", "Already found a `peft_config`")
        for name in ("student", "critic"):
            torch.manual_seed(0)
            config = LoraConfig(r=6, lora_alpha=9.0, target_modules=["0", "1"], lora_dropout=0.0, **kind)
            inject_adapter_in_model(config, theirs, adapter_name=name)
    for name, p in theirs.named_parameters():
        p.data = p.data.float() if "lora_" in name else p.data
        if "lora_A" in name:
            assert torch.equal(p, dict(net.named_parameters())[name]), "the numbers that peft draws"
    theirs.load_state_dict(net.state_dict())  # the names are peft's
    for layer in (theirs[0], theirs[1]):
        layer.set_adapter("student")
    return theirs


def told(net: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
    """Output, gradient of the input, and of the running set."""
    x = Rng.seeded(5).noise_like(torch.zeros(3, 50, 24)).to(dtype).requires_grad_()
    y = net(x)
    weight = Rng.seeded(6).noise_like(torch.zeros_like(y, dtype=F32)).to(dtype)
    (y * weight).sum().backward()
    grads = {n: p.grad for n, p in net.named_parameters() if "lora_" in n and "student" in n}
    assert all(
        g is not None and g.dtype == p.dtype
        for g, p in zip(grads.values(), (p for n, p in net.named_parameters() if n in grads), strict=True)
    )
    assert all(p.grad is None for n, p in net.named_parameters() if "critic" in n or "lora_" not in n)
    return {"y": y.detach(), "x": x.grad, **grads}


def off(a: Tensor, b: Tensor) -> float:
    a, b = a.detach().double(), b.detach().double()
    return float((a - b).norm() / b.norm())


def test_it_is_pefts_in_float32_and_no_worse_in_bfloat16() -> None:
    net = adapted()
    for name, value in told(peft_of(net, F32), F32).items():
        assert off(told(adapted(), F32)[name], value) < 1e-6, name
    narrow = adapted(BF16)
    exact = told(copy.deepcopy(narrow).double(), F64)
    ours, theirs = told(adapted(BF16), BF16), told(peft_of(narrow, BF16), BF16)
    for name, value in exact.items():
        assert off(ours[name], value) < max(1.5 * off(theirs[name], value), 2**-8), name


def of_the_base(x: Tensor, w: Tensor, *_: Any) -> Tensor:
    return w


def test_in_tf32_no_weight_is_merged_and_in_full_it_is_what_is_multiplied(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = told(adapted(), F32)
    with monkeypatch.context() as planted:
        planted.setattr(linear, "merged", of_the_base)
        with pytest.raises(AssertionError):
            test_it_is_pefts_in_float32_and_no_worse_in_bfloat16()
    monkeypatch.setattr(linear, "in_full", lambda device: False)
    monkeypatch.setattr(linear, "merged", None)  # so nobody calls it
    for name, value in told(adapted(), F32).items():
        assert off(value, wanted[name]) < 1e-6, name
    with torch.no_grad():
        assert adapted()(torch.zeros(4, 24)).isfinite().all()


def merged(x: Tensor, w: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float, _: None) -> Tensor:
    """The product added into a weight that is rounded."""
    return F.linear(x, (w.float() + scale * b @ a).to(w.dtype), bias)


def by_peft(x: Tensor, w: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float, _: None) -> Tensor:
    """As peft adds it, in float32, to what is rounded."""
    return (F.linear(x, w, bias) + F.linear(F.linear(x.to(a.dtype), a), b) * scale).to(x.dtype)


def gain(size: float) -> float:
    """By how much the output moves, in units of how much it ought to."""
    layer, none = adapted(BF16, size)[0], adapted(BF16, 0.0)[0]
    x = Rng.seeded(5).noise_like(torch.zeros(20_000, 24)).to(BF16)
    with torch.no_grad():
        moved = (layer(x).double() - none(x).double()).flatten()
        ought = (x.double() @ layer.change("student").double().T).flatten()
    return float(moved @ ought / (ought @ ought))


def test_a_young_adapter_is_not_lost_below_the_weight_s_last_place(monkeypatch: pytest.MonkeyPatch) -> None:
    for size in (1e-4, 1e-3, 1e-2):
        assert abs(gain(size) - 1) < 0.05
    for way in (merged, by_peft):
        monkeypatch.setattr(linear, "once", way)
        assert gain(1e-4) < 0.5 and abs(gain(0.1) - 1) < 0.05


def unscaled(x: Tensor, w: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float, _: None) -> Tensor:
    return F.linear(x, w, bias) + F.linear(F.linear(x, a.to(x.dtype)), b.to(x.dtype))


def test_planted_a_scale_that_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "once", unscaled)
    with pytest.raises(AssertionError):
        test_it_is_pefts_in_float32_and_no_worse_in_bfloat16()


@pytest.mark.parametrize("dtype", [F32, BF16])
def test_forward_mode_and_its_gradient_are_those_of_the_fused_layer(dtype: torch.dtype) -> None:
    net = adapted(dtype)
    whole = base(F64)
    for i in (0, 1):
        whole[i].weight.data += net[i].change("student").double()
    x, v = (Rng.seeded(k).noise_like(torch.zeros(4, 24)) for k in (1, 2))
    found = {}
    for key, u, of in (("ours", net, dtype), ("exact", whole, F64)):
        at = x.to(of).requires_grad_()
        y, dy = torch.func.jvp(u, (at,), (v.to(of),))
        (grad,) = torch.autograd.grad((dy.double() ** 2).sum(), at)
        found[key] = y, dy, grad
    for ours, exact in zip(found["ours"], found["exact"], strict=True):
        assert off(ours, exact) < (1e-5 if dtype == F32 else 0.03)


def test_recomputation_sees_the_set_of_its_own_call() -> None:
    net = adapted()
    x = Rng.seeded(1).noise_like(torch.zeros(4, 24)).requires_grad_()

    def run(name: str, again: bool) -> Tensor:
        def block(h: Tensor) -> Tensor:
            with sets(net).using(name):
                made: Tensor = net(h)
            return made

        return checkpoint(block, x, use_reentrant=False) if again else block(x)

    found = []
    for again in (False, True):
        net.zero_grad()
        (run("student", again).square().sum() + 2 * run("critic", again).sum()).backward()
        found.append({n: p.grad for n, p in net.named_parameters() if p.grad is not None})
    assert len(found[0]) == 8 and all(torch.equal(g, found[1][n]) for n, g in found[0].items())
    assert sets(net).name == "student"  # as before, whatever was recomputed


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # by dynamo itself
def test_under_autocast_compiled_exported_and_copied_it_is_itself() -> None:
    net = adapted()
    x = Rng.seeded(1).noise_like(torch.zeros(4, 24))
    wanted = net(x)
    with torch.autocast("cpu", dtype=BF16):
        assert net(x).dtype == BF16 and off(net(x), wanted) < 0.02
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), wanted)
    with sets(net).using("critic"):
        torch.testing.assert_close(compiled(x), net(x))
        assert off(net(x), wanted) > 0.1
    exported = torch.export.export(net, (x,), dynamic_shapes=({0: torch.export.Dim("n", min=2, max=64)},))
    torch.testing.assert_close(exported.module()(x[:3]), wanted[:3])
    other = copy.deepcopy(net)
    assert sets(other) is not sets(net) and other[0].sets is sets(other) is other[1].sets
    with sets(net).using(None):
        torch.testing.assert_close(net(x), base()(x))
        assert torch.equal(other(x), wanted)


def test_whoever_asks_for_a_weight_is_given_the_base_s() -> None:
    layer = adapted(BF16)[0]
    assert isinstance(layer, LoraLinear) and layer.weight is layer.base_layer.weight and layer.bias.dtype == BF16
    assert {p.dtype for n, p in layer.named_parameters() if "lora_" in n} == {F32}
    assert isinstance(layer.sets, Sets)


SPECS = {"wan": Wan21(lora=LORA).tiny(), "ltx": Diffusers(family="ltx", lora=LORA).tiny()}


@pytest.mark.parametrize("name", SPECS)
def test_the_derivative_of_a_student_is_exact(name: str) -> None:
    spec = SPECS[name]
    u = spec.build(frozenset({"student"}), device=CPU, dtype=F32)["student"]
    perturb(u, 0, 0.1)
    z, cond = spec.example()
    t, r, v = torch.tensor([0.9, 0.5]), torch.tensor([0.3, 0.2]), Rng.seeded(4).noise_like(z)
    exact, near = ForwardMode()(u, z, t, r, v, cond), CentralDifference(h=1e-4)(u, z, t, r, v, cond)
    assert off(exact, near) < 0.01


def test_twenty_steps_lead_where_they_did(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = evolve(SPECS["wan"], lora=Lora(rank=4, alpha=4.0))
    z, cond = spec.example(8)
    data = TensorData(z, cond, {name: torch.zeros_like(value[:1]) for name, value in cond.items()})

    def weights() -> dict[str, Tensor]:
        u = spec.build(frozenset({"student"}), device=CPU, dtype=F32)["student"]
        trainer = Trainer({"student": u}, Stage(anyflow.forward(), steps=20, batch=4, optimizer=AdamW(lr=1e-3)), data)
        for i in range(20):
            trainer.step(i)
        return {n: p.detach().clone() for n, p in u.trained().items()}

    ours = weights()
    monkeypatch.setattr(linear, "once", by_peft)
    theirs: dict[str, Any] = weights()
    worst = max(float((p - theirs[n]).abs().max() / theirs[n].abs().max()) for n, p in ours.items())
    assert worst < 1e-5 and any("lora_B" in n and p.abs().max() > 1e-3 for n, p in ours.items())
