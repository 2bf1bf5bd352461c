"""constants.json: what a graph computes with that is no tensor of the state dict, so that other weights fit it or not.

A refit changes the state dict alone. Of a buffer that is not saved, and of a tensor or a number that is an attribute, a
tracer writes the value into the graph, where it would stay that of the old student. They are compared, the tensors by
their hash. What is seen are attributes of modules; a number in a list, in a closure or in a frozen value is not, and
therefore a network that no plugin knows is always compared after a refit.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.nn.modules.dropout import _DropoutNd

from ..model import sha256
from .errors import CorruptError, ExportError

CONSTANTS = "constants.json"
Constants: TypeAlias = Mapping[str, float | str]
"""By name in the graph's module: a number, or the sha256 of a tensor."""


def of(module: nn.Module, program: ExportedProgram) -> Constants:
    """Those tensors that the tracer took for constants, and all floating-point attributes but how much is dropped."""
    found = {
        f"{prefix}.{name}" if prefix else name: value
        for prefix, part in module.named_modules()
        if not isinstance(part, _DropoutNd)
        for name, value in vars(part).items()
        if isinstance(value, float)
    }
    return {**found, **{name: value for name in program.constants if isinstance(value := seen(module, name), str)}}


def seen(module: nn.Module, name: str) -> float | str | None:
    """What `module` has there; None where it is neither a number nor a tensor."""
    value: object = module
    for part in name.split("."):
        value = getattr(value, part, None)
    if isinstance(value, Tensor):
        return sha256({name: value})
    return value if isinstance(value, float) else None


def add(folder: Path, graph: str, constants: Constants) -> None:
    """Those of one more graph to the constants.json in `folder`."""
    file = folder / CONSTANTS
    found = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps({**found, graph: dict(constants)}, indent=1) + "\n")


def require_same(folder: Path, modules: Mapping[str, nn.Module]) -> None:
    """An `ExportError` that names a constant of the export in `folder` which is another one in `modules`, by graph."""
    file = folder / CONSTANTS
    if not file.is_file():
        raise ExportError(f"{folder}: has no {CONSTANTS}, an older flowmap wrote it: export again")
    try:
        old: Mapping[str, Constants] = {graph: dict(json.loads(file.read_text())[graph]) for graph in modules}
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptError(f"{file}: cannot be read ({error}): export again") from error
    for graph, module in modules.items():
        for name, was in old[graph].items():
            if (now := seen(module, name)) == was or (was != was and now != now):
                continue
            if isinstance(was, str) or isinstance(now, str):
                raise ExportError(
                    f"{name} of the new student holds other values than that of {folder}, and is a constant of its "
                    "graphs, no weight: export it again"
                )
            raise ExportError(
                f"{name} of the new student is {now}, that of {folder} is {was}, and is a constant of its graphs, no "
                "weight: export it again"
            )
