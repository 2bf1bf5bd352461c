"""`aoti`: native code by AOTInductor, a `.pt2` that runs without diffusers and without flowmap."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from attrs import frozen

from ..kernels import compiler
from .backend import Available, Job, quiet, versions
from .blank import blank
from .errors import ExportError
from .graph import Call
from .manifest import Built, Manifest
from .spec import Asked


@frozen
class Aoti:
    """Tied to torch's release, and to the instructions of the processor or the architecture of the GPU it is made on.

    It checks no input: wrong types, sizes and strides run and give wrong numbers, so only the checked call is given
    out. switch: set in the environment before the first call, a package itself refuses inputs of other types, sizes and
    strides. Option `inductor`: torch's own settings for it.
    """

    exact: tuple[str, ...] = ("torch",)
    builds_ahead: bool = False
    bound: bool = True
    switch: str = "AOTI_RUNTIME_CHECK_INPUTS=1"

    def available(self) -> Available:
        if compiler() is None:
            return Available(False, "needs a C++ compiler: install g++, or name one in CXX")
        return Available(True, versions=versions())

    def check(self, asked: Asked) -> None:
        asked.known("aoti", ("inductor",))
        if taken := sorted({PACKAGE, FOLDER} & asked.options.get("inductor", {}).keys()):
            raise ExportError(f"inductor has {taken[0]!r}, which an export sets itself: leave it out")

    def build(self, job: Job) -> str:
        from torch._inductor import aot_compile
        from torch._inductor.package.package import package_aoti
        from torch._inductor.runtime.cache_dir_utils import cache_dir

        file, (args, kwargs) = f"{job.graph.name}.pt2", job.program.example_inputs
        with quiet(), TemporaryDirectory(dir=job.folder) as folder:
            options = {
                "aot_inductor.enable_line_tables": False,  # they name every source file
                "aot_inductor.check_lowerbound": not starts_at_one(job),
                **job.asked.options.get("inductor", {}),
                PACKAGE: True,
                FOLDER: folder,
            }
            made: Any = aot_compile(job.program.module(check_guards=False), args, kwargs, options=options)
            kept = [part for part in made if not str(part).endswith(".cpp")]  # sources, for people to read
            for part in kept:
                if isinstance(part, str):
                    blank(Path(part), (folder, Path(torch.__file__).parent, cache_dir()))
            package_aoti(str(job.folder / file), kept)
        return file

    def compare(self, file: Path, built: Built, manifest: Manifest) -> tuple[Call, str]:
        return self.load(file, built, manifest), "the compiled code"

    def load(self, file: Path, built: Built, manifest: Manifest) -> Call:
        from torch._inductor import aoti_load_package

        with quiet():
            module = aoti_load_package(str(file))
        return lambda *args: module(*args)


PACKAGE, FOLDER = "aot_inductor.package", "aot_inductor.output_path"


def starts_at_one(job: Job) -> bool:
    """Whether a range starts at 1: the tracer has it start at 2, and the package's own check would refuse 1. That check
    is of all least sizes or of none."""
    ranges = (job.profile[name] for name in job.graph.dims)
    return any(r.least == 1 and not r.fixed for r in ranges)
