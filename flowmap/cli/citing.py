"""flowmap cite: whom to thank for a recipe, or for a method."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from attrs import frozen

from . import recipes
from .command import Command
from .errors import UsageError, nearest
from .needs import required

if TYPE_CHECKING:
    from torch import Tensor

    from ..method import Method


def cite(options: Namespace) -> None:
    """A recipe's entries, each once; of a name that no recipe has, those of the method."""
    name, (base, method) = options.name, recipes.split(options.name)
    if method is None and base not in recipes.known() and not recipes.is_file(base):
        entries = _of_method(name)
    else:
        from ..evaluation.card import citations

        entries = citations(recipes.load(name))
    print("\n\n".join(entries))


def _of_method(name: str) -> Sequence[str]:
    from ..plugins import collect, installed

    methods = collect(installed(), "flowmap_methods")
    if name not in methods:
        near = nearest(name, [*recipes.known(), *methods])
        raise UsageError(
            f"there is no recipe or method {name!r}: give a name from `flowmap plugins`, or a Python file{near}"
        )
    return tuple(dict.fromkeys(_made(name, methods[name]).citations))


def _made(name: str, make: Callable[..., Method]) -> Method:
    """With its defaults; of rewards, with one that gives nothing."""
    given: dict[str, Any] = {}
    for field in required(make):
        if field != "scores":
            raise UsageError(f"the method {name!r} needs {field}=: cite a recipe that has it")
        from ..rewards import Scores

        given[field] = Scores(None, ((1.0, _Any()),))
    return make(**given)


@frozen
class _Any:
    """A reward in place of those of a recipe."""

    name: str = "any"
    differentiable: bool = True

    def __call__(self, videos: Tensor, prompts: Sequence[str]) -> Tensor:
        return videos.new_zeros(len(videos))


def _name(parser: ArgumentParser) -> None:
    parser.add_argument("name", metavar="RECIPE|METHOD", help=f"{recipes.HELP}; or a method's name from there")


CITE = Command("cite", "print BibTeX of a recipe and its backbone, or of a method", "flowmap cite aapt", cite, _name)
