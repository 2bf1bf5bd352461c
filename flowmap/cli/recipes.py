"""Recipes by name or by file, and what is wrong with one in one sentence.

`tiny_wan:rcm` is the recipe tiny_wan with the stages of the method rcm in place of its own.
"""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import sys
from argparse import Namespace
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from . import settings
from .errors import UsageError

if TYPE_CHECKING:
    from ..recipe import Recipe

PACKAGE = Path(__file__).parents[1]
NAMES = ("RECIPE", "recipe")
HELP = "a recipe's name from `flowmap plugins`, or a Python file with RECIPE = Recipe(...)"


def folder() -> Path:
    """Of the wheel's recipes, or of the checkout's."""
    installed = PACKAGE / "_recipes"
    return installed if installed.is_dir() else PACKAGE.parent / "recipes"


def known() -> dict[str, Path]:
    """The recipes that come with flowmap, found without running them."""
    return {path.stem: path for path in sorted(folder().glob("*.py")) if _holds_recipe(path)}


def about(path: Path) -> str:
    """The first line of what a recipe says of itself, without running it."""
    return (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0]


def split(name: str) -> tuple[str, str | None]:
    """The recipe, and the method whose stages take the place of its own."""
    found = re.fullmatch(r"(.+):(\w+)", name)
    return (found[1], found[2]) if found else (name, None)


def is_file(name: str) -> bool:
    """Whether a name is that of a file, there or not."""
    return name.endswith(".py") or "/" in name


def find(name: str) -> Path:
    """The file of a recipe given by name or by path."""
    name, _ = split(name)
    if name in known():
        return known()[name]
    if is_file(name):
        if not Path(name).is_file():
            raise UsageError(f"recipe {name!r}: there is no such file")
        return Path(name)
    near = get_close_matches(name, known(), 1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise UsageError(f"there is no recipe {name!r}: give a Python file, or one of {', '.join(known())}{hint}")


def asked(options: Namespace) -> Recipe:
    """The recipe of a command that names one, with the method and the settings that it is given beside it."""
    name, method = split(options.recipe)
    method = options.method or method
    told = list[str]()
    replaced = settings.replaced(options.settings)
    recipe = load(name if method is None else f"{name}:{method}", replaced=replaced)
    recipe = settings.applied(recipe, options.settings, told)
    if int(os.environ.get("RANK", "0")) == 0:
        for line in told:
            print(f"flowmap: {line}", file=sys.stderr)
    return recipe


def load(name: str, *, replaced: frozenset[str] = frozenset()) -> Recipe:
    """The recipe, knowing its name. replaced: fields that will be set to something else; what they lack is not told."""
    import attrs

    path = find(name)
    without = UsageError(f"{path} defines no recipe: it needs RECIPE = Recipe(...) at the top level")
    if not _may_hold_recipe(path):
        raise without
    from ..recipe import Recipe

    module = _run(path, replaced)
    if (key := next((key for key in NAMES if key in vars(module)), None)) is None:
        raise without
    recipe = getattr(module, key)
    if not isinstance(recipe, Recipe):
        raise UsageError(f"{path}: {key} is of type {type(recipe).__name__}: must be a Recipe")
    name, method = split(name)
    recipe = recipe if recipe.name else attrs.evolve(recipe, name=name)
    if method is None:
        return recipe
    from ..plugins import trained_by

    return trained_by(recipe, method)


def _holds_recipe(path: Path) -> bool:
    """Whether RECIPE or recipe is assigned at the top level; what is not Python says so when it is run."""
    try:
        return any(map(assigns, ast.parse(path.read_text()).body))
    except (SyntaxError, ValueError):
        return path.parent != folder()


def assigns(node: ast.stmt) -> bool:
    """Whether a statement makes the file's recipe."""
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return any(isinstance(target, ast.Name) and target.id in NAMES for target in targets)


def _may_hold_recipe(path: Path) -> bool:
    """Whether a user's file can end up with a RECIPE: assigned or imported anywhere; only running it can tell."""
    try:
        nodes = [*ast.walk(ast.parse(path.read_text()))]
    except (SyntaxError, ValueError):
        return True
    imported = {a.asname or a.name for node in nodes if isinstance(node, ast.ImportFrom) for a in node.names}
    stored = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    return not {*NAMES, "*"}.isdisjoint(imported | stored)


def _run(path: Path, replaced: frozenset[str]) -> ModuleType:
    """As Python runs a script: what lies beside it can be imported."""
    module = _module(path)
    sys.path.insert(0, str(path.parent.resolve()))
    try:
        assert module.__spec__ is not None and module.__spec__.loader is not None
        module.__spec__.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        from . import mistakes

        if isinstance(error, SystemExit):
            raise UsageError(mistakes.told(error, path, {})) from error
        found = mistakes.all_of(path, vars(_module(path)), error, replaced)
        raise UsageError(*found) from error
    finally:
        sys.path.remove(str(path.parent.resolve()))
    return module


def _module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"flowmap_recipe_{path.stem}", path)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    return module
