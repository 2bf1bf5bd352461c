"""Networks built without numbers and filled tensor by tensor are those that one process builds, bit for bit."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from attrs import evolve
from flowmap_digits import TINY_WAN
from flowmap_far import Far
from flowmap_wan import Lora
from flowmap_wan.spec import TINY, WanSpec
from flowmap_wan21 import Wan21
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from flowmap._types import Role
from flowmap.model import Rows

ROLES = frozenset[Role]({"student", "teacher", "critic"})
CPU, META = torch.device("cpu"), torch.device("meta")


def saved(tmp_path: Path, student: bool = False) -> str:
    """A pipeline's directory with a transformer in several files: Wan's, or a student's."""
    import diffusers

    tiny = evolve(Wan21().tiny(), path=str(TINY_WAN), pretrained=False)
    if student:
        tiny.save(tiny.build(frozenset[Role]({"student"}), device=CPU, dtype=torch.float32)["student"], tmp_path)
    else:
        shutil.copytree(TINY_WAN, tmp_path, ignore=shutil.ignore_patterns("transformer"), dirs_exist_ok=True)
        torch.manual_seed(3)
        diffusers.WanTransformer3DModel(**tiny.config).save_pretrained(tmp_path / "transformer", max_shard_size="50KB")
    return str(tmp_path)


def spec(kind: type[WanSpec], path: str | None, lora: bool) -> WanSpec:
    return evolve(kind().tiny(), path=path, lora=Lora(4, 4.0) if lora else None)


def filled(spec: WanSpec, roles: frozenset[Role], dtype: torch.dtype) -> tuple[dict[Role, Any], list[int]]:
    """The networks, and how many bytes each tensor that was read had."""
    nets: dict[Role, Any] = dict(spec.build(roles, device=META, dtype=dtype))
    tensors: dict[int, Tensor] = {}
    read: list[int] = []

    def put(p: Tensor, rows: Rows) -> None:
        value = rows(slice(0, len(p)))
        assert value.shape == p.shape
        read.append(value.nbytes)
        tensors[id(p)] = value.to(p.dtype)

    spec.fill(nets, put, dtype=dtype)
    for u in nets.values():
        for module in u.modules():
            for name, p in module._parameters.items():
                if p is not None and p.is_meta:
                    found = torch.nn.Parameter(tensors[id(p)], p.requires_grad)
                    tensors[id(found)] = found.data
                    module._parameters[name] = found
    return nets, read


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("lora", [True, False])
@pytest.mark.parametrize("kind", [Wan21, Far])
@pytest.mark.parametrize("source", ["random", "teacher", "student"])
def test_they_are_those_of_one_process(
    kind: type[WanSpec], source: str, lora: bool, dtype: torch.dtype, tmp_path: Path
) -> None:
    path = None if source == "random" else saved(tmp_path, source == "student")
    roles = ROLES - ({"critic"} if source == "student" else set())
    one = spec(kind, path, lora).build(roles, device=CPU, dtype=dtype)
    many, _ = filled(spec(kind, path, lora), roles, dtype)
    for role in roles:
        a, b = dict(one[role].named_parameters()), dict(many[role].named_parameters())
        assert a.keys() == b.keys()
        for name, p in a.items():
            assert p.dtype == b[name].dtype and p.requires_grad == b[name].requires_grad, (role, name)
            assert torch.equal(p, b[name]), (role, name)
        assert not any(buffer.is_meta for buffer in many[role].buffers())


def test_a_tensor_is_read_in_rows_and_none_but_small_ones_before(tmp_path: Path) -> None:
    """What a rank of two reads of the base is half of it, but for what is made of the patch embedding."""
    tiny = evolve(Far().tiny(), path=saved(tmp_path), lora=None)
    nets: dict[Role, Any] = dict(tiny.build(frozenset[Role]({"teacher"}), device=META, dtype=torch.float32))
    read = []

    def put(p: Tensor, rows: Rows) -> None:
        read.append(rows(slice(0, len(p) // 2)).numel())

    tiny.fill(nets, put, dtype=torch.float32)
    assert sum(read) == sum(p[: len(p) // 2].numel() for p in nets["teacher"].parameters())


WIDE = {**TINY, "num_attention_heads": 4, "attention_head_dim": 24, "ffn_dim": 1536, "num_layers": 12}


@pytest.mark.parametrize("lora", [True, False])
def test_random_weights_are_never_there_as_a_whole(lora: bool) -> None:
    """A rank that keeps nothing holds one tensor at a time; drawn all at once they were some fifty of the largest."""
    wide = evolve(spec(Wan21, None, lora), config=WIDE)
    nets = wide.build(ROLES, device=META, dtype=torch.bfloat16)
    largest, count = 0, 0

    def put(p: Tensor, rows: Rows) -> None:
        nonlocal largest, count
        largest, count = max(largest, rows(slice(0, 1)).untyped_storage().nbytes(), 4 * p.numel()), count + p.numel()

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
        wide.fill(nets, put, dtype=torch.bfloat16)
    held = most = 0
    for event in sorted(watched.profiler.kineto_results.events(), key=lambda e: e.start_ns()):
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    assert 4 * count > 20 * largest  # of all that there is
    assert 0 < most < 3 * largest


def test_a_tensor_of_random_weights_depends_on_its_name_and_the_seed_alone() -> None:
    """Not on what was drawn before, how deep the network is, or what else is random in this process."""
    torch.manual_seed(5)
    one = spec(Wan21, None, False)
    deep = evolve(one, config={**one.config, "num_layers": 3})
    teacher = frozenset[Role]({"teacher"})
    a, b, c = (
        dict(s.build(teacher, device=CPU, dtype=torch.float32)["teacher"].named_parameters())
        for s in (one, deep, evolve(one, seed=1))
    )
    assert len(b) > len(a)
    random = [name for name, p in a.items() if p.std() > 0]
    assert len(random) > 20 and all(torch.equal(a[name], b[name]) for name in a)
    assert not any(torch.equal(a[name], c[name]) for name in random)
    same = [(m, n) for m in random for n in random if m < n and a[m].shape == a[n].shape and torch.equal(a[m], a[n])]
    assert not same


def test_random_weights_are_of_the_size_that_torch_gives_them() -> None:
    import diffusers

    torch.manual_seed(0)
    theirs = dict(diffusers.WanTransformer3DModel(**WIDE).named_parameters())
    ours = evolve(spec(Wan21, None, False), config=WIDE)
    net: Any = ours.build(frozenset[Role]({"teacher"}), device=CPU, dtype=torch.float32)["teacher"]
    for name, p in net.net.named_parameters():
        of = theirs[name].detach()
        spread = float(of.std())
        assert float(p.mean()) == pytest.approx(float(of.mean()), abs=spread / 2 + 1e-9), name
        assert float(p.std()) == pytest.approx(spread, rel=0.35 if p.numel() < 500 else 0.1, abs=1e-9), name
        assert float(p.abs().max()) == pytest.approx(float(of.abs().max()), rel=0.5, abs=1e-9), name
