"""What a file says of the machine that wrote it, taken out: folders have the names of people in them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from mmap import mmap
from pathlib import Path

from torch.export import ExportedProgram
from torch.fx import GraphModule


def without_sources(program: ExportedProgram) -> ExportedProgram:
    """`program`, whose nodes no longer say in which file and line of this machine they were traced.

    Back ends write that down: a `.pt2` in its JSON, ONNX in the metadata of every node.
    """
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, GraphModule) else ():
            node.meta.pop("stack_trace", None)
    return program


def blank(file: Path, folders: Iterable[str | Path]) -> None:
    """Dots over every mention of `folders` in `file`, in place: compiled code quotes its sources in its messages."""
    if file.stat().st_size == 0:
        return
    with file.open("r+b") as opened, mmap(opened.fileno(), 0) as data:
        for folder in folders:
            name, at = os.fsencode(folder), 0
            while (at := data.find(name, at)) >= 0:
                data[at : at + len(name)] = b"." * len(name)
