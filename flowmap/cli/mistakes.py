"""All that is wrong with a recipe's file at once, each in a sentence with its line.

A file that failed is run a second time, statement by statement, with every call in it watched: one that fails leaves a
`Broken` value behind, and of what is made from that, the rest is judged. So are the directories of the networks and
of the data that the recipe is given, by the line that made them.
"""

from __future__ import annotations

import ast
import contextlib
import io
import traceback
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from attrs import define, evolve, field, fields

from ..recipe import Recipe, absent
from .broken import BROKEN, broken
from .calls import beside, mistakes

WATCH = "__flowmap_watch__"
FIELDS = tuple(one.alias for one in fields(Recipe) if not one.kw_only)
FRAMES = frozenset({"super", "locals", "globals", "vars", "dir", "eval", "exec", "__import__"})  # see their caller


@define
class Watch:
    path: Path
    replaced: frozenset[str] = frozenset()  # fields of the recipe that do not stay what the file makes them
    found: list[str] = field(factory=list)
    made: dict[int, tuple[int, Any]] = field(factory=dict)  # by id: its line, and the value, which lives on

    def call(self, line: int, function: Any, *arguments: Any, **named: Any) -> Any:
        if broken(function):
            return BROKEN
        if _makes_recipe(function, arguments):
            given = dict(zip(FIELDS, () if function is evolve else arguments, strict=False)) | named
            self._look(line, [value for name, value in given.items() if name not in self.replaced])
        if any(map(broken, (*arguments, *named.values()))):
            self.found += [f"{self.path}, line {line}: {text}" for text in beside(function, arguments, named)]
            return BROKEN
        try:
            value = function(*arguments, **named)
            self.made.setdefault(id(value), (line, value))
            return value
        except Exception as error:
            place = _place(self.path, error.__traceback__) or f"{self.path}, line {line}"
            self.found += [f"{place}: {text}" for text in mistakes(function, arguments, named, error)]
            return BROKEN

    def _look(self, line: int, given: Iterable[Any]) -> None:
        """For the directories of what a recipe is given."""
        for value in given:
            at, _ = self.made.get(id(value), (line, None))
            self.found += [f"{self.path}, line {at}: {text}" for text in absent(value)]

    def statement(self, node: ast.stmt, names: dict[str, Any]) -> None:
        """Run a statement; where it fails, its names are broken."""
        try:
            exec(compile(ast.Module([node], []), str(self.path), "exec", annotations.compiler_flag), names)
        except Exception as error:
            if not _broken_in(node, names):
                self.found.append(told(error, self.path, names))
            names.update(dict.fromkeys(_bound(node), BROKEN))


def all_of(path: Path, names: dict[str, Any], first: Exception, replaced: frozenset[str] = frozenset()) -> list[str]:
    """The mistakes in the file at `path`, which failed with `first`; `names`: of a fresh module, to run it in.

    replaced: fields of the recipe that it will not have from the file; what is not on the disk is no mistake of theirs.
    """
    try:
        tree = ast.parse(path.read_text())
    except (SyntaxError, ValueError):
        return [told(first, path, names)]
    watch = Watch(path, replaced)
    names[WATCH] = watch.call
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        for node in ast.fix_missing_locations(_Watched().visit(tree)).body:
            watch.statement(node, names)
    return [*dict.fromkeys(watch.found)] or [told(first, path, names)]


def told(error: BaseException, path: Path, names: Mapping[str, Any]) -> str:
    """`my_recipe.py, line 7: ...`, of what is wrong with no call."""
    if isinstance(error, SyntaxError):
        file = path if error.filename in (None, str(path), str(path.resolve())) else error.filename
        line = "" if error.lineno is None else f", line {error.lineno}"
        return f"{file}{line}: {error.msg}"
    place = _place(path, error.__traceback__) or str(path)
    (text,) = mistakes(None, (), {}, error, names)
    return f"{place}: {text}{_beside(path, error.__traceback__)}"


def _makes_recipe(function: Any, arguments: tuple[Any, ...]) -> bool:
    """Whether a call makes a recipe, of another by `evolve` perhaps, which may be broken."""
    return function is Recipe or (
        function is evolve and len(arguments) == 1 and (broken(arguments[0]) or isinstance(arguments[0], Recipe))
    )


class _Watched(ast.NodeTransformer):
    def visit_Call(self, node: ast.Call) -> ast.expr:
        self.generic_visit(node)
        if isinstance(node.func, ast.Name) and node.func.id in FRAMES:
            return node
        watch = ast.Name(WATCH, ast.Load())
        made = ast.Call(watch, [ast.Constant(node.lineno), node.func, *node.args], node.keywords)
        return ast.copy_location(made, node)


def _place(path: Path, trace: TracebackType | None) -> str | None:
    """The innermost line of the file that the error went through."""
    frames = traceback.extract_tb(trace)
    lines = [frame.lineno or 0 for frame in frames if Path(frame.filename).resolve() == path.resolve()]
    return f"{path}, line {lines[-1]}" if lines else None


def _beside(path: Path, trace: TracebackType | None) -> str:
    """` (in base.py, line 2)`, of an error in another file of the same folder."""
    frames = traceback.extract_tb(trace)
    here = [frame for frame in frames if Path(frame.filename).resolve().parent == path.resolve().parent]
    if not here or Path(here[-1].filename).resolve() == path.resolve():
        return ""
    return f" (in {Path(here[-1].filename).name}, line {here[-1].lineno})"


def _broken_in(node: ast.stmt, names: Mapping[str, Any]) -> bool:
    """Whether a statement reads what is broken: then its own failure says nothing."""
    return any(isinstance(n, ast.Name) and broken(names.get(n.id)) for n in ast.walk(node))


def _bound(node: ast.stmt) -> list[str]:
    """The names that a statement makes."""
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        return [alias.asname or alias.name.partition(".")[0] for alias in node.names]
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return [node.name]
    return [n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]
