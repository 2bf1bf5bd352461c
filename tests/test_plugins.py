"""Plugins are found by name, conflicts name both, and observers that fail are switched off."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
from attrs import evolve

from flowmap import Recipe, Stage, hookimpl
from flowmap.methods import anyflow
from flowmap.observers import Observers
from flowmap.plugins import PluginError, backbone, collect, installed, manager, named, trained_by
from tests.toys import Toy


class First:
    @hookimpl
    def flowmap_backbones(self) -> dict[str, Toy]:
        return {"toy": Toy(), "wide_toy": Toy(width=32)}


class Second:
    @hookimpl
    def flowmap_backbones(self) -> dict[str, Toy]:
        return {"toy": Toy(width=8)}


class Resolver:
    @hookimpl
    def flowmap_resolve_backbone(self, name: str) -> Toy | None:
        return Toy(seed=9) if name.startswith("hub/") else None


def of(*plugins: Any) -> Any:
    return manager(*plugins, entry_points=False)


def test_two_plugins_that_claim_one_name_are_both_named() -> None:
    pm = manager(entry_points=False)
    pm.register(First(), name="one")
    pm.register(Second(), name="two")
    with pytest.raises(PluginError, match=r"'toy' comes from both '(one|two)' and '(one|two)'") as error:
        collect(pm, "flowmap_backbones")
    assert "'one'" in str(error.value) and "'two'" in str(error.value)


def test_what_plugins_return_is_merged_and_sorted() -> None:
    assert [*collect(of(First()), "flowmap_backbones")] == ["toy", "wide_toy"]


def test_an_unknown_name_is_an_error_that_lists_the_known_ones() -> None:
    with pytest.raises(PluginError, match="no backbone is called 'tyo': there are toy, wide_toy; did you mean 'toy'"):
        named(of(First()), "flowmap_backbones", "tyo")
    with pytest.raises(PluginError, match="no backbone is called 'x': there are none"):
        named(of(), "flowmap_backbones", "x")
    with pytest.raises(PluginError, match=r"no plugin knows the backbone 'other'.* toy, wide_toy"):
        backbone("other", of(First()))


def test_a_registered_name_goes_before_one_that_is_claimed() -> None:
    pm = of(First(), Resolver())
    assert backbone("toy", pm) == Toy()
    assert backbone("hub/anything", pm) == Toy(seed=9)


def test_a_plugin_can_be_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "wan21" in collect(installed(), "flowmap_backbones")
    monkeypatch.setenv("FLOWMAP_DISABLE_PLUGINS", "wan21,digits")
    assert "wan21" not in collect(manager(), "flowmap_backbones")


class Trains:
    @hookimpl
    def flowmap_stages(self) -> dict[str, Any]:
        return {"longer": lambda recipe: tuple(evolve(stage, steps=2 * stage.steps) for stage in recipe.stages)}


def test_a_recipe_is_trained_with_the_stages_that_a_plugin_gives_it() -> None:
    recipe = Recipe(Toy(), (Stage(anyflow.forward(), 3),), name="toy")
    other = trained_by(recipe, "longer", of(Trains()))
    assert (other.stages[0].steps, other.name, recipe.stages[0].steps) == (6, "toy:longer", 3)
    with pytest.raises(PluginError, match="no method for a whole recipe is called 'long': there are longer"):
        trained_by(recipe, "long", of(Trains()))


def test_a_hook_that_does_not_exist_is_an_error() -> None:
    class Misspelt:
        @hookimpl
        def flowmap_backbone(self) -> dict[str, Toy]:
            return {}

    with pytest.raises(Exception, match="unknown hook 'flowmap_backbone'"):
        of(Misspelt())


class Flaky:
    """Raises `fails` times, then watches."""

    def __init__(self, fails: int) -> None:
        self.fails, self.calls = fails, 0

    @hookimpl
    def flowmap_step_end(self, iteration: int) -> None:
        self.calls += 1
        if self.calls <= self.fails:
            raise RuntimeError(f"at {iteration}")


def call(watch: Observers, times: int) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for iteration in range(times):
            watch.call("flowmap_step_end", trainer=None, iteration=iteration, logs={})
    return [str(w.message) for w in caught]


def test_an_observer_that_raises_three_times_is_switched_off() -> None:
    flaky = Flaky(100)
    pm = manager(entry_points=False)
    pm.register(flaky, name="flaky")
    messages = call(Observers(pm), 6)
    assert flaky.calls == 3
    assert messages[0] == "flowmap_step_end of plugin 'flaky' raised RuntimeError('at 0') (in iteration 0)"
    assert [message.endswith("; it is switched off") for message in messages] == [False, False, True]


def test_one_that_raises_twice_goes_on_and_others_are_not_touched() -> None:
    flaky, fine = Flaky(2), Flaky(0)
    call(Observers(of(flaky, fine)), 6)
    assert (flaky.calls, fine.calls) == (6, 6)


def test_an_interrupt_is_not_swallowed() -> None:
    class Stop:
        @hookimpl
        def flowmap_step_end(self) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        call(Observers(of(Stop())), 1)
