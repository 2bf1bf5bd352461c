"""flowmap recipe: a recipe as a file of one's own, which stands alone wherever it is put."""

from __future__ import annotations

import ast
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path

from . import recipes
from .command import Command


def arguments(parser: ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", help=f"{recipes.HELP}; RECIPE:METHOD with another method's stages")


def run(options: Namespace) -> None:
    _, method = recipes.split(options.recipe)
    text = alone(recipes.find(options.recipe))
    if method is not None:
        text += f'\nfrom flowmap.plugins import trained_by\n\nRECIPE = trained_by(RECIPE, "{method}")\n'
    print(text, end="")


def alone(path: Path) -> str:
    """The source of the recipe at `path`: what it imports from files beside it stands in it, and its name is left out,
    for it is known by its file then."""
    lines = path.read_text().splitlines(keepends=True)
    tree = ast.parse("".join(lines))
    for node in reversed(tree.body):  # from the end, so that the lines before stay where they are
        if isinstance(node, ast.ImportFrom) and (beside := path.parent / f"{node.module}.py").is_file():
            lines[node.lineno - 1 : node.end_lineno] = [*_body(beside, node.names), "\n"]
        elif recipes.assigns(node):
            for keyword in _names(node):
                _cut(lines, keyword)
    return "".join(lines)


def _body(path: Path, wanted: Sequence[ast.alias]) -> Iterator[str]:
    """The lines of a recipe without its docstring and what only a file's beginning may have; without its own recipe,
    unless that is wanted. What is wanted under another name gets that, too."""
    source = alone(path)
    lines = source.splitlines(keepends=True)
    kept = any(alias.name in recipes.NAMES for alias in wanted)
    for node in reversed(ast.parse(source).body):
        docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        future = isinstance(node, ast.ImportFrom) and node.module == "__future__"
        if docstring or future or (recipes.assigns(node) and not kept):
            del lines[node.lineno - 1 : node.end_lineno]
    yield from f"{''.join(lines).strip(chr(10))}\n".splitlines(keepends=True)
    yield from (f"{alias.asname} = {alias.name}\n" for alias in wanted if alias.asname not in (None, alias.name))


def _names(node: ast.stmt) -> Iterator[ast.keyword]:
    value = getattr(node, "value", None)
    if isinstance(value, ast.Call):
        yield from (keyword for keyword in value.keywords if keyword.arg == "name")


def _cut(lines: list[str], node: ast.keyword) -> None:
    """Take a keyword and its comma out; with its line, where it has one to itself."""
    first, last = node.lineno - 1, (node.end_lineno or node.lineno) - 1
    before = lines[first].encode()[: node.col_offset].decode()
    after = lines[last].encode()[node.end_col_offset :].decode()
    rest = after.removeprefix(",").lstrip(" ")
    before = before if after.startswith(",") else before.rstrip().removesuffix(",")
    lines[first : last + 1] = [] if not before.strip() and not rest.strip() else [before + rest]


COMMAND = Command(
    "recipe",
    "print a recipe's file, to be changed and run as one's own",
    "flowmap recipe quickstart > mine.py",
    run,
    arguments,
)
