"""Recipes by name or by file, and what is wrong with one in one sentence.

`tiny_wan:rcm` is the recipe tiny_wan with the stages of the method rcm in place of its own.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import re
import sys
import traceback
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING, Any

from .errors import UsageError

if TYPE_CHECKING:
    from ..recipe import Recipe

PACKAGE = Path(__file__).parents[1]
NAMES = ("RECIPE", "recipe")


def folder() -> Path:
    """Of the wheel's recipes, or of the checkout's."""
    installed = PACKAGE / "_recipes"
    return installed if installed.is_dir() else PACKAGE.parent / "recipes"


def known() -> dict[str, Path]:
    """The recipes that come with flowmap, found without running them."""
    return {path.stem: path for path in sorted(folder().glob("*.py")) if _holds_recipe(path)}


def split(name: str) -> tuple[str, str | None]:
    """The recipe, and the method whose stages take the place of its own."""
    found = re.fullmatch(r"(.+):(\w+)", name)
    return (found[1], found[2]) if found else (name, None)


def find(name: str) -> Path:
    """The file of a recipe given by name or by path."""
    name, _ = split(name)
    if name in known():
        return known()[name]
    if name.endswith(".py") or "/" in name:
        if not Path(name).is_file():
            raise UsageError(f"recipe {name!r}: there is no such file")
        return Path(name)
    near = get_close_matches(name, known(), 1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise UsageError(f"there is no recipe {name!r}: give a Python file, or one of {', '.join(known())}{hint}")


def load(name: str) -> Recipe:
    """The recipe, knowing its name."""
    import attrs

    path = find(name)
    if not _holds_recipe(path):
        raise UsageError(f"{path} defines no recipe: it needs RECIPE = Recipe(...) at the top level")
    from ..recipe import Recipe

    module = _run(path)
    recipe = next(getattr(module, key) for key in NAMES if key in vars(module))
    if not isinstance(recipe, Recipe):
        raise UsageError(f"{path}: RECIPE is of type {type(recipe).__name__}: must be a Recipe")
    name, method = split(name)
    recipe = recipe if recipe.name else attrs.evolve(recipe, name=name)
    if method is None:
        return recipe
    from ..plugins import trained_by

    return trained_by(recipe, method)


def _holds_recipe(path: Path) -> bool:
    """Whether RECIPE or recipe is assigned at the top level; what is not Python says so when it is run."""
    try:
        body = ast.parse(path.read_text()).body
    except (SyntaxError, UnicodeDecodeError):
        return path.parent != folder()
    targets = [t for node in body if isinstance(node, ast.Assign) for t in node.targets]
    targets += [node.target for node in body if isinstance(node, ast.AnnAssign)]
    return any(isinstance(target, ast.Name) and target.id in NAMES for target in targets)


def _run(path: Path) -> ModuleType:
    """As Python runs a script: what lies beside it can be imported."""
    spec = importlib.util.spec_from_file_location(f"flowmap_recipe_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    sys.path.insert(0, str(path.parent.resolve()))
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UsageError(_told(error, path, vars(module))) from error
    finally:
        sys.path.remove(str(path.parent.resolve()))
    return module


def _told(error: Exception, path: Path, names: Mapping[str, Any]) -> str:
    """`my_recipe.py, line 7: AdamW has no 'lrr' (= 1e-3): ...; did you mean 'lr'?`"""
    if isinstance(error, SyntaxError):
        return f"{path if error.filename == str(path.resolve()) else error.filename}, line {error.lineno}: {error.msg}"
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno or 0 for frame in frames if Path(frame.filename).resolve() == path.resolve()]
    place = f"{path}, line {lines[-1]}" if lines else str(path)
    unexpected = re.fullmatch(r"(.*\()\) got an unexpected keyword argument '(\w+)'.*", str(error))
    if isinstance(error, TypeError) and unexpected and lines:
        return f"{place}: {_unknown_field(unexpected[1][:-1], unexpected[2], path, lines[-1], names)}"
    if isinstance(error, (ValueError, TypeError)):
        return f"{place}: {_owner(error.__traceback__)}{_message(error)}"
    return f"{place}: {type(error).__name__}: {error}"


def _message(error: Exception) -> str:
    """Validators of attrs raise (message, attribute, what is allowed, value)."""
    message = str(error.args[0]) if error.args else type(error).__name__
    if len(error.args) == 4 and isinstance(error.args[2], (tuple, list)) and isinstance(error.args[3], str):
        near = get_close_matches(error.args[3], [str(option) for option in error.args[2]], 1)
        message += f"; did you mean {near[0]!r}?" if near else ""
    return message


def _owner(trace: TracebackType | None) -> str:
    """The class whose field was refused; our own messages name it themselves."""
    frames = [frame for frame, _ in traceback.walk_tb(trace)]
    if frames and "/attr/" in frames[-1].f_code.co_filename.replace("\\", "/"):
        made = [f.f_locals["self"] for f in frames if f.f_code.co_name == "__init__" and "self" in f.f_locals]
        return f"{type(made[-1]).__name__}: " if made else ""
    return ""


def _unknown_field(function: str, name: str, path: Path, line: int, names: Mapping[str, Any]) -> str:
    short = function.removesuffix(".__init__").rpartition(".")[2]
    values = [*names.values(), *(v for m in names.values() if isinstance(m, ModuleType) for v in vars(m).values())]
    called = next((v for v in values if callable(v) and getattr(v, "__name__", None) == short), None)
    allowed = [] if called is None else [p for p in inspect.signature(called).parameters if not p.startswith("_")]
    near = get_close_matches(name, allowed, 1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    listed = f": must be one of {', '.join(allowed)}" if allowed else ""
    return f"{short} has no field {name!r}{_given(path, name, line)}{listed}{hint}"


def _given(path: Path, name: str, line: int) -> str:
    """The value as it stands in the file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and node.lineno <= line <= (node.end_lineno or 0):
            for keyword in node.keywords:
                if keyword.arg == name:
                    return f" (= {ast.unparse(keyword.value)})"
    return ""
