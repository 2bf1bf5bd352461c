"""weights.json: which tensor of the student is which initialiser of an ONNX file, so that others can take its place.

An optimiser of graphs folds, renames and merges what it takes for a constant: a transposed weight gets a number for a
name, two biases that are both zero become one. So the weights are inputs of the graph while it is optimised, and
initialisers again afterwards, each under the name and in the shape that it has in the network. What is left to do to a
tensor is nothing, which is why the map holds no transformations.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from attrs import asdict, frozen
from torch import Tensor
from torch.export import ExportedProgram

from .errors import CorruptError, ExportError

if TYPE_CHECKING:
    from .manifest import Built, Manifest
    from .spec import Asked

WEIGHTS = "weights.json"


@frozen
class Held:
    """Where a tensor is: the initialiser of that name, or None where the graph computes nothing with it."""

    initialiser: str | None
    shape: tuple[int, ...]
    dtype: str

    @classmethod
    def of(cls, tensor: Tensor, initialiser: str | None) -> Held:
        return cls(initialiser, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))


Map = Mapping[str, Held]
"""By the tensor's name in the graph's module."""


class Refits(ABC):
    """A back end whose files take the weights of another network of the same shape, without another trace."""

    @abstractmethod
    def check_refit(self, manifest: Manifest, asked: Asked) -> None:
        """An `ExportError` where what `manifest` describes cannot be refitted here, before anything is loaded."""

    @abstractmethod
    def refit(self, folder: Path, built: Built, manifest: Manifest, tensors: Mapping[str, Tensor]) -> None:
        """Give `tensors`, by initialiser, to the files of one graph, which are copies in `folder`."""


def optimised(made: Any, program: ExportedProgram) -> Map:
    """Optimise the ONNX graph of `program`, as torch made it, without touching its weights; where they are then."""
    state = program.state_dict
    graph, names = made.model.graph, [name for name in state if name in made.model.graph.initializers]
    values = {name: graph.initializers.pop(name) for name in names}
    held = {name: value.const_value for name, value in values.items()}
    for value in values.values():
        value.const_value = None
        graph.inputs.append(value)
    made.optimize()
    graph = made.model.graph
    where: dict[str, str | None] = dict.fromkeys(state)
    for name, value in values.items():
        graph.inputs.remove(value)
        if value.uses():
            value.const_value = held[name]
            graph.initializers[value.name] = value
            where[name] = value.name
    return {name: Held.of(tensor, where[name]) for name, tensor in state.items()}


def used(program: ExportedProgram) -> set[str]:
    """The tensors of the state dict that the outputs depend on; the tracer keeps what nobody reads."""
    signature = program.graph_signature
    names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    seen: set[torch.fx.Node] = set()
    left = [node for node in program.graph.nodes if node.op == "output"]
    while left:
        seen.add(node := left.pop())
        left += [other for other in node.all_input_nodes if other not in seen]
    return {names[node.name] for node in seen if node.name in names} & program.state_dict.keys()


def add(folder: Path, graph: str, held: Map) -> None:
    """One more graph to the weights.json in `folder`."""
    file = folder / WEIGHTS
    found = json.loads(file.read_text()) if file.is_file() else {}
    found[graph] = {name: asdict(h) for name, h in held.items()}
    file.write_text(json.dumps(found, indent=1) + "\n")


def read(folder: Path, graph: str) -> Map:
    file = folder / WEIGHTS
    if not file.is_file():
        raise ExportError(f"{folder}: has no {WEIGHTS}, an older flowmap wrote it: export again")
    try:
        found = json.loads(file.read_text())[graph]
        return {name: Held(h["initialiser"], tuple(h["shape"]), h["dtype"]) for name, h in found.items()}
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptError(f"{file}: cannot be read ({error}): export again") from error


def fill(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write `tensors`, by initialiser, into the ONNX file at `path`, and into the file beside it that holds more."""
    import onnx

    model, left = onnx.load(str(path), load_external_data=False), dict(tensors)
    for initialiser in model.graph.initializer:
        if (tensor := left.pop(initialiser.name, None)) is None:
            continue
        if initialiser.data_location == onnx.TensorProto.EXTERNAL:
            file, start, _ = _external(path, initialiser)
            with file.open("r+b") as opened:
                opened.seek(start)
                opened.write(raw(tensor))
        else:
            kind, dims = initialiser.data_type, list(initialiser.dims)
            name = initialiser.name
            initialiser.Clear()
            initialiser.name, initialiser.data_type, initialiser.raw_data = name, kind, bytes(raw(tensor))
            initialiser.dims.extend(dims)
    if left:
        raise CorruptError(f"{path}: has no initialiser {min(left)!r}: export again")
    onnx.save(model, str(path))


def require_complete(path: Path, held: Map, state: Mapping[str, Tensor], names: set[str]) -> None:
    """An `ExportError` where one of `names` is not in the map, or an initialiser is not the tensor, bit for bit.

    A tensor without an initialiser is one of which the graph reads the shape alone.
    """
    if missing := sorted(names - held.keys()):
        raise ExportError(f"{path.name}: the weight map has no {missing[0]!r}, which the network computes with")
    wanted: dict[str, list[Tensor]] = {}
    for name, h in held.items():
        if h.initialiser is not None:
            wanted.setdefault(h.initialiser, []).append(state[name])
    for name, data in contents(path, {*wanted}):
        if any(data != raw(tensor) for tensor in wanted.pop(name)):
            raise ExportError(f"{path.name}: the initialiser {name!r} does not hold what the network does")
    if wanted:
        raise ExportError(f"{path.name}: has no initialiser {min(wanted)!r}, which the network computes with")


def contents(path: Path, names: set[str]) -> Iterator[tuple[str, bytes | memoryview]]:
    """The bytes of those initialisers, one at a time: together they may not fit in memory."""
    import onnx

    model = onnx.load(str(path), load_external_data=False)
    read = {name for node in model.graph.node for name in node.input}
    for initialiser in model.graph.initializer:
        if initialiser.name not in names & read:
            continue
        if initialiser.data_location == onnx.TensorProto.EXTERNAL:
            file, start, size = _external(path, initialiser)
            with file.open("rb") as opened:
                opened.seek(start)
                yield initialiser.name, opened.read(size)
        else:
            yield initialiser.name, onnx.numpy_helper.to_array(initialiser).tobytes()


def raw(tensor: Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data


def _external(path: Path, initialiser: Any) -> tuple[Path, int, int]:
    """File, first byte and number of bytes of what stands outside."""
    said = {entry.key: entry.value for entry in initialiser.external_data}
    return path.with_name(said["location"]), int(said.get("offset", 0)), int(said["length"])
