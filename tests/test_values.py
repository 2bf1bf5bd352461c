"""What tells one value of a recipe from another: every value has a digest of its own, or is refused."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from enum import Enum
from fractions import Fraction
from functools import cache, partial
from typing import Any

import numpy as np
import pytest
import torch
from attrs import evolve, field, frozen
from torch import nn

from flowmap import AdamW, FlowMapSpec, ModuleSpec, Recipe, Stage
from flowmap.method import Method, Update
from flowmap.methods import anyflow
from flowmap.recipe import RecipeError, describe, digest
from tests.toys import Toy, data

size = 3  # read by nobody: lambdas below have an attribute of this name


class Colour(Enum):
    RED = 1
    BLUE = 2


class Plain:
    def __init__(self, a: int) -> None:
        self.a = a

    def scaled(self, x: float) -> float:
        return self.a * x


@frozen
class Own:
    """An objective that holds anything."""

    held: Any
    needs: frozenset[str] = frozenset({"student"})

    def __call__(self, nets: Any, batch: Any, rng: Any, shared: Any) -> Any:
        raise NotImplementedError


class Configured(nn.Module):
    """Whose settings are in an object that nothing tells, and in what it says of itself."""

    def __init__(self, a: int) -> None:
        super().__init__()
        self.config = Plain(a)

    def extra_repr(self) -> str:
        return f"a={self.config.a}"


@frozen
class Numbered(FlowMapSpec):
    """A backbone that tells itself by a fingerprint, whatever it holds."""

    held: Any
    mark: str | None = field(default="1", repr=False)

    fingerprint = lambda self: self.mark  # noqa: E731
    build = load = tiny = example = lambda self, *_, **__: None  # type: ignore[assignment]


def of(held: Any) -> str:
    return digest(Recipe(Toy(), (Stage(Method("own", (Update("student", ((1.0, Own(held)),)),)), 1),)))


def holding(value: Any) -> Callable[[Any], Any]:
    return lambda x: x * value


def local_attrs(a: int) -> Any:
    @frozen
    class Made:
        def __call__(self, x: int) -> int:
            return x * a

    return Made()


def local_class(a: int) -> type:
    class Made:
        @property
        def twice(self) -> int:
            return 2 * a

        @staticmethod
        def self_made() -> Any:
            return Made()

    return Made


long = np.arange(5000)
APART = {
    "np.float32": (np.float32(0.1), np.float32(0.2)),
    "np.int64": (np.int64(1), np.int64(2)),
    "np.bool": (np.bool_(True), np.bool_(False)),
    "array": (long, np.where(long == 2500, -1, long)),
    "array's shape": (np.zeros((2, 3)), np.zeros((3, 2))),
    "array of objects": (np.array([{"a": 1}]), np.array([{"a": 2}])),
    "ufunc": (np.sin, np.cos),
    "dtype": (torch.float32, torch.bfloat16),
    "device": (torch.device("cpu"), torch.device("meta")),
    "Enum": (Colour.RED, Colour.BLUE),
    "bytes": (b"a", b"b"),
    "complex": (1j, 2j),
    "range": (range(2), range(3)),
    "fraction": (Fraction(1, 3), Fraction(1, 4)),
    "pattern": (re.compile("a" * 300 + "b"), re.compile("a" * 300 + "c")),
    "module": (nn.Linear(2, 2), nn.Linear(2, 2)),
    "module's settings": (nn.Dropout(0.1), nn.Dropout(0.9)),
    "module's settings within": (nn.Sequential(nn.LeakyReLU(0.1)), nn.Sequential(nn.LeakyReLU(0.9))),
    "module's words": (Configured(1), Configured(2)),
    "buffer": tuple(nn.Module() for _ in range(2)),
    "cached": (cache(holding(1)), cache(holding(2))),
    "method of a built-in": ([1].count, [2].count),
    "getter": (operator.itemgetter(1), operator.itemgetter(2)),
    "local attrs": (local_attrs(1), local_attrs(2)),
    "local class": (local_class(1), local_class(2)),
}
for value, module in enumerate(APART["buffer"]):
    module.register_buffer("b", torch.tensor(value), persistent=False)


@pytest.mark.parametrize("name", APART)
@pytest.mark.parametrize("wrap", [lambda v: v, lambda v: [v], lambda v: {"a": (v,)}, holding, lambda v: partial(of, v)])
def test_two_values_are_two_recipes(name: str, wrap: Callable[[Any], Any]) -> None:
    one, other = APART[name]
    assert of(wrap(one)) == of(wrap(one)) != of(wrap(other))
    assert of(holding(wrap(one))) == of(holding(wrap(one))) != of(holding(wrap(other)))


def test_a_number_is_itself_whatever_its_type() -> None:
    def at(lr: Any) -> str:
        return digest(Recipe(Toy(), (Stage(anyflow.forward(), 1, optimizer=AdamW(lr=lr)),)))

    assert at(1e-4) == at(np.float64(1e-4)) != at(np.float32(1e-4)) != at(np.float32(1e-1))
    assert of(np.int64(3)) == of(3) and describe(np.int64(3)) == 3


def test_a_module_is_the_same_in_training_and_on_meta_it_has_no_weights() -> None:
    net = nn.Linear(2, 2)
    assert of(net.train()) == of(net.eval())
    with torch.device("meta"):
        assert of(nn.Linear(2, 2)) != of(nn.Linear(2, 3))


@pytest.mark.parametrize(
    ("held", "where"),
    [
        (Plain(1), "Own.held is a Plain, of which two cannot be told apart: so a run could go on with another"),
        ([0, {"a": Plain(1)}], "Own.held[1]['a'] is a Plain, "),
        (Plain(1).scaled, "Own.held.__self__ is a Plain, "),
        (Own(torch.Generator()), "Own.held is a Generator, "),
        (partial(of, Plain(1)), "Own.held[0] is a Plain, "),
        (holding([Plain(1)]), "<lambda> holds value[0], a Plain, "),
        (local_attrs(Plain(1)), "__call__ holds a, a Plain, "),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_what_nothing_tells_apart_is_refused_by_its_field(held: Any, where: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(where)):
        of(held)


def test_what_is_refused_is_refused_before_anything_is_loaded(tmp_path, monkeypatch) -> None:
    from flowmap import distill

    method = Method("own", (Update("student", ((1.0, Own(Plain(1))),)),))
    monkeypatch.setattr(Toy, "build", lambda *_, **__: pytest.fail("it was built"))
    for out in (None, tmp_path / "out"):
        with pytest.raises(RecipeError, match=r"Own\.held is a Plain"):
            distill(Recipe(Toy(), (Stage(method, 1),), data=data()), out=out, device="cpu")
    assert not any(tmp_path.rglob("*.json"))


def test_what_a_fingerprint_tells_and_what_is_only_read_may_hold_anything() -> None:
    """Weights are not hashed twice, and what a lambda of a spec holds is told by what it made."""
    stages = (Stage(anyflow.forward(), 1),)
    for held, said in ((Plain(1), "<Plain>"), (nn.Linear(2, 2), "<Linear>"), (holding(Plain(1)), "<function>")):
        spec = Numbered(held)
        assert describe(spec)["held"] == said
        assert digest(Recipe(spec, stages)) != digest(Recipe(evolve(spec, mark="2"), stages))
    with pytest.raises(RecipeError, match=r"Numbered\.held is a Plain"):
        digest(Recipe(Numbered(Plain(1), mark=None), stages))
    assert describe([Plain(1), Plain(1).scaled])[0] == "<Plain>"
    ModuleSpec(lambda: nn.Linear(2, 2), time=None).fingerprint()


def test_data_may_be_of_any_class() -> None:
    """What they are is compared by their fingerprint, where they have one."""

    class Mine:
        def __len__(self) -> int:
            return 1

        def batch(self, index: Any) -> Any:
            raise NotImplementedError

    assert len(digest(Recipe(Toy(), (Stage(anyflow.forward(), 1),), data=Mine()))) == 64


def test_a_global_by_the_name_of_an_attribute_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    before = of(lambda x: x.size), of(lambda x: size * x), of(lambda x: [size * y for y in x])
    monkeypatch.setitem(globals(), "size", 4)
    after = of(lambda x: x.size), of(lambda x: size * x), of(lambda x: [size * y for y in x])
    assert after[0] == before[0] and after[1] != before[1] and after[2] != before[2]
