"""Compiled blocks train what plain ones do; TF32 leaves times alone; every setting is said."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from attrs import evolve
from flowmap_diffusers import Diffusers
from flowmap_far import Far
from flowmap_lora import Lora
from flowmap_wan21 import Wan21

from flowmap import AdamW, Kernels, Recipe, Stage, TensorData, distill, kernels
from flowmap.cli import main
from flowmap.kernels import in_full
from flowmap.methods import anyflow
from flowmap.methods.meanflow import meanflow
from flowmap.recipe import RecipeError
from flowmap.time_embedding import TwoTimeEmbedding, pair
from flowmap.training.loop import Trainer

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")  # of dynamo itself

CPU, ROLES = torch.device("cpu"), frozenset({"student", "teacher", "critic"})
LORA = Lora(4, 4.0)
WAN = Wan21(lora=LORA, text_length=2, text_tokens=2)
FORWARD, ON_POLICY = anyflow.forward(), anyflow.on_policy(steps=(4,))
CASES = {
    "adapters of three roles, recomputed": (evolve(WAN, checkpointing=True), ON_POLICY),
    "attention kept": (evolve(WAN, checkpointing="selective"), FORWARD),
    "a derivative in forward mode": (WAN, meanflow()),
    "whole networks": (evolve(WAN, lora=None), FORWARD),
    "causal": (evolve(Far(text_length=2, text_tokens=2).tiny(), lora=LORA), FORWARD),
    "ltx, recomputed": (evolve(Diffusers(family="ltx").tiny(), lora=LORA, checkpointing=True), FORWARD),
}
SLOW = {
    "a derivative in forward mode",
    "whole networks",
    "causal",
    "ltx, recomputed",
    "adapters of three roles, recomputed",
}


def gradients(spec, method, chosen, seen=None):
    """Of one iteration, with what an optimiser of huge epsilon makes of them: lr g / eps, where nothing is clipped."""
    nets = spec.build(ROLES, device=CPU, dtype=torch.float32)
    x, cond = spec.example(2)
    g = torch.Generator().manual_seed(0)
    for u in nets.values():
        for name, p in u.trained().items():
            if "lora_B" in name:
                p.data.copy_(0.1 * torch.randn(p.shape, generator=g))
    data = TensorData(torch.randn(x.shape, generator=g), cond, spec.null(cond))
    trainer = Trainer(nets, Stage(method, steps=1, batch=2, optimizer=AdamW(lr=1.0, clip=1e9)), data)
    for optimizer in trainer.optimizers.values():
        for group in optimizer.param_groups:
            group["eps"] = 1e6
    before = {r: {k: p.detach().clone() for k, p in t.items()} for r, t in trainer.trained.items()}
    with chosen.running(nets, CPU, [].append if seen is None else seen.append):
        trainer.step(0)
    assert not any("forward" in vars(block) for u in nets.values() for block in u.blocks)
    found = {f"{r}.{k}": 1e6 * (p - before[r][k]) for r, t in trainer.trained.items() for k, p in t.items()}
    return {name: step.detach() for name, step in found.items()}


@pytest.mark.parametrize("case", [pytest.param(c, marks=[pytest.mark.slow] if c in SLOW else []) for c in CASES])
def test_compiled_blocks_have_the_gradients_of_plain_ones(case, monkeypatch):
    """By tracing and autograd's own compiler; what inductor makes of it is `test_inductor`'s."""
    monkeypatch.setattr(kernels, "BACKEND", "aot_eager")
    torch.compiler.reset()
    spec, method = CASES[case]
    plain, said = gradients(spec, method, Kernels()), []
    compiled = gradients(spec, method, Kernels(compile=True), said)
    assert any("blocks of 1 kind are compiled: the first iteration" in sentence for sentence in said)
    counted = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert counted > 0 and not torch._dynamo.utils.counters["graph_break"]
    largest = max(float(g.abs().max()) for g in plain.values())
    for name, g in plain.items():
        torch.testing.assert_close(compiled[name], g, rtol=2e-3, atol=2e-3 * largest, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.slow
@pytest.mark.skipif(kernels.compiler() is None, reason="no C++ compiler")
def test_inductor():
    torch.compiler.reset()
    spec = evolve(WAN, checkpointing="selective")
    plain, compiled = (gradients(spec, FORWARD, Kernels(compile=on)) for on in (False, True))
    largest = max(float(g.abs().max()) for g in plain.values())
    for name, g in plain.items():
        torch.testing.assert_close(compiled[name], g, rtol=2e-3, atol=2e-3 * largest)


def test_a_block_that_forgets_its_adapters_is_seen(monkeypatch):
    """Planted: what is compiled computes without the running set."""
    from flowmap_lora.linear import LoraLinear

    monkeypatch.setattr(kernels, "BACKEND", "eager")
    torch.compiler.reset()
    plain = gradients(WAN, FORWARD, Kernels())
    right = LoraLinear.forward
    wrong = lambda layer, x: layer.base_layer(x) if torch.compiler.is_compiling() else right(layer, x)  # noqa: E731
    monkeypatch.setattr(LoraLinear, "forward", wrong)
    compiled = gradients(WAN, FORWARD, Kernels(compile=True))
    assert any(not torch.allclose(compiled[name], g, rtol=2e-3) for name, g in plain.items())


def test_times_are_embedded_in_full_while_products_are_in_tf32():
    found = []

    class Embedder(torch.nn.Linear):
        def forward(self, x):
            found.append(torch.get_float32_matmul_precision())
            return super().forward(x[:, None])

    embed, t = TwoTimeEmbedding(Embedder(1, 2)), torch.ones(1)
    convolutions = torch.backends.cudnn.allow_tf32
    with Kernels(float32="tf32").running({}, CPU, print):
        assert torch.get_float32_matmul_precision() == "high" and torch.backends.cudnn.allow_tf32
        embed(pair(t, t))
        assert torch.get_float32_matmul_precision() == "high"
        assert in_full(CPU) and not in_full(torch.device("cuda"))
    assert found == ["highest", "highest"] and torch.get_float32_matmul_precision() == "highest"
    with Kernels().running({}, CPU, print):
        assert not torch.backends.cudnn.allow_tf32 and in_full(torch.device("cuda"))
    assert torch.backends.cudnn.allow_tf32 == convolutions


def test_a_run_says_how_it_computes(capsys):
    x, cond = WAN.example(2)
    recipe = Recipe(WAN, (Stage(FORWARD, steps=1, batch=2),), data=TensorData(x, cond, WAN.null(cond)))
    distill(recipe, kernels=Kernels(float32="tf32", attention="fastest"), device="cpu")
    said = capsys.readouterr().err
    assert "there is no TF32 on this CPU" in said and "a CPU has one kernel" in said


def test_what_is_wrong_is_said_before_anything_is_built(monkeypatch, capsys):
    with pytest.raises(ValueError, match=r"Kernels.attention = 'fa5': must be .*'fa4'"):
        Kernels(attention="fa5")
    monkeypatch.setattr(kernels, "compiler", lambda: None)
    x, cond = WAN.example(2)
    recipe = Recipe(WAN, (Stage(FORWARD, steps=1, batch=2),), data=TensorData(x, cond, WAN.null(cond)))
    with pytest.raises(RecipeError, match=r"Kernels\.compile = True: on a CPU it needs a C"):
        distill(recipe, kernels=Kernels(compile=True), device="cpu")
    assert main(["distill", "anyflow_wan1b", "--plan", "--compile"]) == 2
    assert "--compile changes no plan" in capsys.readouterr().err


BY_ITS_NEW_NAME = """
import torch
from torch.backends import cuda, cudnn
from flowmap.kernels import Kernels, exact

cuda.matmul.fp32_precision, cudnn.conv.fp32_precision = "tf32", "ieee"
with exact():
    assert cuda.matmul.fp32_precision == "ieee" and torch.get_float32_matmul_precision() == "highest"
assert cuda.matmul.fp32_precision == "tf32"
with Kernels(float32="ieee").running({}, torch.device("cpu"), print):
    assert cuda.matmul.fp32_precision == "ieee"
assert (cuda.matmul.fp32_precision, cudnn.conv.fp32_precision) == ("tf32", "ieee")
"""


def test_a_program_may_have_set_tf32_by_its_new_name() -> None:
    """torch's older names then raise where they are read. In a process of its own, for the setting is the process's."""
    subprocess.run([sys.executable, "-c", BY_ITS_NEW_NAME], check=True)
