"""Networks built without numbers and filled tensor by tensor are those that one process builds, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from attrs import evolve
from flowmap_far import Far
from flowmap_wan import Lora
from flowmap_wan.spec import WanSpec
from flowmap_wan21 import Wan21
from torch import Tensor

from flowmap._types import Role
from flowmap.model import Rows

ROLES = frozenset[Role]({"student", "teacher", "critic"})
CPU, META = torch.device("cpu"), torch.device("meta")


def saved(tmp_path: Path, student: bool = False) -> str:
    """A pipeline's directory with a transformer alone: Wan's, or a student's."""
    import diffusers

    tiny = Wan21().tiny()
    if student:
        tiny.save(tiny.build(frozenset[Role]({"student"}), device=CPU, dtype=torch.float32)["student"], tmp_path)
    else:
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
