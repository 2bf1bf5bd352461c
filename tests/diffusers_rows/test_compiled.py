"""A flow map of a row as others use modules: compiled whole, pickled, copied."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from attrs import evolve
from flowmap_diffusers import Diffusers
from flowmap_diffusers.rows import ROWS
from flowmap_lora import Lora

CPU: dict[str, Any] = {"device": torch.device("cpu"), "dtype": torch.float32}
QUICK = "ltx"
FAMILIES = [name if name == QUICK else pytest.param(name, marks=pytest.mark.slow) for name in ROWS]
T, R = torch.tensor([0.9, 0.4]), torch.tensor([0.3, 0.0])


@pytest.mark.filterwarnings("ignore::UserWarning")  # of the compiler's own
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # by dynamo itself
@pytest.mark.parametrize("family", FAMILIES)
def test_compiled_whole_it_gives_the_same_at_every_time(family: str) -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    spec = Diffusers(family=family, lora=Lora(rank=4, alpha=4))
    u = spec.build(frozenset({"student"}), **CPU)["student"]
    z, cond = spec.example()
    compiled = torch.compile(u, backend="eager")
    for t, r in ((T, R), (T / 2, R / 2), (T, T)):
        torch.testing.assert_close(compiled(z, t, r, cond), u(z, t, r, cond))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    grads = []
    for net in (compiled, u):
        net(z, T, R, cond).square().sum().backward()
        grads.append({name: p.grad.clone() for name, p in u.trained().items() if p.grad is not None})
        u.zero_grad()
    for name, wanted in grads[1].items():
        torch.testing.assert_close(grads[0][name], wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the compiler's own
def test_compiled_to_machine_code_it_gives_the_same() -> None:
    torch._dynamo.reset()
    spec = Diffusers(family="ltx", lora=Lora(rank=4, alpha=4))
    u = spec.build(frozenset({"student"}), **CPU)["student"]
    z, cond = spec.example()
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(u)(z, T, R, cond), u(z, T, R, cond), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", [QUICK, "hunyuan_video"])
@pytest.mark.parametrize("lora", [None, Lora(rank=4, alpha=4)], ids=["whole", "adapters"])
def test_a_copy_and_a_pickle_are_the_same_function(family: str, lora: Lora | None) -> None:
    spec = Diffusers(family=family, lora=lora, checkpointing=True)
    u = spec.build(frozenset({"student"}), **CPU)["student"]
    z, cond = spec.example()
    wanted = u(z, T, R, cond)
    for other in (copy.deepcopy(u), pickle.loads(pickle.dumps(u))):
        assert torch.equal(other(z, T, R, cond), wanted)
        assert other.row is u.row and other.running.clock is not u.running.clock


@pytest.mark.slow
def test_another_process_reads_a_pickle(tmp_path: Path) -> None:
    spec = Diffusers(family="ltx")
    u = spec.build(frozenset({"student"}), **CPU)["student"]
    z, cond = spec.example()
    (tmp_path / "u").write_bytes(pickle.dumps((u, (z, T, R, cond), u(z, T, R, cond))))
    code = "import pickle; u, given, wanted = pickle.load(open('u', 'rb')); print(u(*given).equal(wanted))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.strip() == "True"


def test_a_row_of_nobody_is_refused_in_a_sentence() -> None:
    with pytest.raises(TypeError, match=r"a row of LTXVideoTransformer3DModel that is not among .*, ltx, .* cannot be"):
        pickle.dumps(evolve(ROWS["ltx"], fps=12.0))
