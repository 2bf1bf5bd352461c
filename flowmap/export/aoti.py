"""`aoti`: native code by AOTInductor, a `.pt2` that runs without diffusers and without flowmap."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from attrs import frozen

from .backend import Available, Job, quiet, versions
from .graph import Call
from .manifest import Built, Manifest
from .spec import Asked


@frozen
class Aoti:
    """Tied to torch's release, and to the instructions of the processor or the architecture of the GPU it is made on.

    It checks no input: wrong types and sizes run and give wrong numbers, so that only the checked call is given out.
    Option `inductor`: torch's own settings for it.
    """

    exact: tuple[str, ...] = ("torch",)
    builds_ahead: bool = False
    bound: bool = True

    def available(self) -> Available:
        if compiler() is None:
            return Available(False, "needs a C++ compiler: install g++, or name one in CXX")
        return Available(True, versions=versions())

    def check(self, asked: Asked) -> None:
        asked.known("aoti", ("inductor",))

    def build(self, job: Job) -> str:
        from torch._inductor import aoti_compile_and_package

        file = f"{job.graph.name}.pt2"
        configs = dict(job.asked.options.get("inductor", {}))
        with quiet():
            aoti_compile_and_package(job.program, package_path=str(job.folder / file), inductor_configs=configs)
        return file

    def compare(self, file: Path, built: Built, manifest: Manifest) -> tuple[Call, str]:
        return self.load(file, built, manifest), "the compiled code"

    def load(self, file: Path, built: Built, manifest: Manifest) -> Call:
        from torch._inductor import aoti_load_package

        with quiet():
            module = aoti_load_package(str(file))
        return lambda *args: module(*args)


def compiler() -> str | None:
    return shutil.which(os.environ.get("CXX") or "g++") or shutil.which("clang++")
