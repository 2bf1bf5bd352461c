"""The rules of docs/architecture.md that a machine can check."""

import ast
import graphlib
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import grimp
import pytest
from importlinter.cli import lint_imports

from flowmap import hookspecs

ROOT = Path(__file__).parents[1]
SOURCES = sorted([*ROOT.glob("flowmap/**/*.py"), *ROOT.glob("plugins/**/*.py")])

# A file of the core can be held in the head. The exceptions, and why:
LONG: dict[str, str] = {
    "flowmap/_types.py": "the vocabulary, with the randomness and the means that all objectives share",
    "flowmap/model.py": "what a backbone implements, on one page",
}
LIMIT = 300

MODEL_LIBRARIES = {"diffusers", "transformers", "peft", "accelerate", "sklearn", "scipy", "matplotlib", "imageio", "av"}


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_imports_run_downward_only(monkeypatch, capfd):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "path", [str(ROOT), str(ROOT / "plugins"), *sys.path])
    failed = lint_imports(no_cache=True, no_logo=True)
    assert not failed, capfd.readouterr().out


def test_no_files_import_each_other_in_a_circle():
    """For types alone counts, too: a reader goes in circles all the same."""
    packages = ["flowmap", *sorted(path.parent.name for path in ROOT.glob("plugins/*/__init__.py"))]
    graph = grimp.build_graph(*packages, cache_dir=None)
    assert len(graph.modules) > 200
    imported = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    graphlib.TopologicalSorter(imported).prepare()  # a CycleError names the circle


def run_python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT).stdout


def imported_by(statement: str) -> set[str]:
    """The top-level modules that `statement` loads in a fresh interpreter."""
    return set(json.loads(run_python(f"import json, sys; {statement}; print(json.dumps([*sys.modules]))")))


@pytest.mark.parametrize("package", ["flowmap", *sorted(p.parent.name for p in ROOT.glob("plugins/*/__init__.py"))])
def test_importing_loads_no_model_library(package):
    assert not imported_by(f"import {package}") & MODEL_LIBRARIES


def test_looking_for_plugins_loads_no_model_library():
    looking = "from flowmap import plugins; plugins.collect(plugins.installed(), 'flowmap_backbones')"
    assert not imported_by(looking) & MODEL_LIBRARIES


def test_import_costs_at_most_a_second_over_torch():
    clock = "from time import process_time as now; began = now(); import torch; start = now(); import flowmap.distill; "
    seconds = [[float(s) for s in run_python(clock + "print(now() - start, start - began)").split()] for _ in range(2)]
    ours, torchs = map(min, zip(*seconds, strict=True))
    assert ours < max(1.0, torchs), "or what torch itself takes, where the machine is slow or busy"


def signature(name: str) -> str:
    """`flowmap_step_end(trainer, iteration, logs)`."""
    return f"{name}({', '.join(inspect.signature(getattr(hookspecs, name)).parameters)})"


HOOKS = sorted(name for name, hook in vars(hookspecs).items() if name.startswith("flowmap_") and callable(hook))


@pytest.mark.parametrize("hook", HOOKS)
def test_a_hook_is_documented_with_its_signature(hook):
    assert f"`{signature(hook)}`" in (ROOT / "docs" / "plugins.md").read_text()


def test_the_documents_name_no_other_hook():
    documents = "".join(path.read_text() for path in (ROOT / "docs").glob("*.md"))
    assert {*re.findall(r"`(flowmap_\w+)\(", documents)} == {*HOOKS}


def test_no_file_grows_out_of_hand_unlisted():
    lines = {relative(path): len(path.read_text().splitlines()) for path in ROOT.glob("flowmap/**/*.py")}
    long = {path for path, n in lines.items() if n > LIMIT}
    assert long == set(LONG), "list the file with its reason, or take it off the list"


def banned_calls(source: str) -> list[str]:
    """Calls that ruff's TID251 cannot see: it knows the names of modules only."""
    calls = [node.func for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    names = [f"line {f.lineno}: hasattr" for f in calls if isinstance(f, ast.Name) and f.id == "hasattr"]
    return names + [f"line {f.lineno}: .cuda" for f in calls if isinstance(f, ast.Attribute) and f.attr == "cuda"]


def test_banned_calls_are_seen():
    assert banned_calls("x = 1\nhasattr(x, 'y')\nx.cuda()\nx.to('cuda')") == ["line 2: hasattr", "line 3: .cuda"]


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_neither_hasattr_nor_cuda(path):
    assert not banned_calls(path.read_text())
