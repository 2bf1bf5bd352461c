"""What a spec must be."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import attrs
import torch

from ...model import FlowMapSpec
from ...recipe import describe
from ..kit_helpers import Skip, build, close, example, fields, perturb, require, times

MODEL_LIBRARIES = ("accelerate", "diffusers", "peft", "transformers")


def check_the_spec_is_a_value(spec: FlowMapSpec) -> None:
    """It is compared, written into the run directory, and tells one recipe's checkpoints from another's."""
    require(attrs.has(type(spec)), f"{type(spec).__name__} must be a frozen attrs class: decorate it with attrs.frozen")
    try:
        setattr(copy.copy(spec), next(iter(fields(spec)), "anything"), None)
    except (attrs.exceptions.FrozenError, AttributeError):
        pass
    else:
        raise AssertionError(f"{type(spec).__name__} can be changed: decorate it with attrs.frozen")
    require(isinstance(spec.tiny(), type(spec)), f"tiny() is a {type(spec.tiny()).__name__}: must be of the same class")
    described = json.dumps(describe(spec), allow_nan=False)
    if spec.fingerprint() is None:
        require('"<' not in described, f"a field of {described} is not a value: give it one, or write `fingerprint`")


def check_the_spec_imports_no_model_library(spec: FlowMapSpec) -> None:
    """Looking a name up must be cheap: libraries are imported in `build`."""
    module = type(spec).__module__
    if module == "__main__":
        raise Skip(f"{type(spec).__name__} is defined in __main__, which cannot be imported again")
    code, loaded, errors = _imported(module, os.pathsep.join(entry or os.getcwd() for entry in sys.path))
    require(code == 0, f"`import {module}` fails in a fresh interpreter: {errors.strip()[-300:]}")
    require(not loaded.strip(), f"`import {module}` loads {loaded.strip()}: import it in `build`")


def check_saving_and_loading_keeps_the_student(spec: FlowMapSpec) -> None:
    """Everything that training changes must be in the file."""
    tiny, (z, c) = spec.tiny(), example(spec)
    u = build(spec, "student")["student"]
    perturb(u, 0)
    t, r = times(z, 0.8, 0.3)
    with tempfile.TemporaryDirectory() as folder:
        tiny.save(u, Path(folder) / "student")
        loaded = tiny.load(Path(folder) / "student", device=torch.device("cpu"), dtype=torch.float32)
        close(loaded(z, t, r, c), u(z, t, r, c), "the loaded student is not the saved one")


@cache
def _imported(module: str, path: str) -> tuple[int, str, str]:
    """Exit status, model libraries and errors of importing `module` in a fresh interpreter, once a module."""
    code = f"import sys, {module}; print(*sorted({{*sys.modules}} & {{*{MODEL_LIBRARIES}}}))"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
    )
    return done.returncode, done.stdout, done.stderr
