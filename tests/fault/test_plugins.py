"""R15: plugins that raise or misbehave: plugin, hook and step are named, and observers change nothing."""

from __future__ import annotations

from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from attrs import evolve

from flowmap import AdamW, Recipe, Stage, distill, hookimpl
from flowmap.cli import main
from flowmap.methods import anyflow
from flowmap.plugins import PluginError, backbone, collect, manager, trained_by
from tests import runs
from tests.toys import Toy, data

pytestmark = pytest.mark.row("R15")
STAGE = Stage(anyflow.forward(), 25, batch=4, optimizer=AdamW(lr=1e-3))
RECIPE = Recipe(Toy(), (STAGE,), data=data(), name="mine")


def of(name: str = "bad", **hooks: Callable[..., Any]) -> Any:
    """A manager with a plugin called `name` that has these hooks."""
    pm = manager(entry_points=False)
    plugin = type("Plugin", (), {hook: hookimpl(staticmethod(function)) for hook, function in hooks.items()})
    pm.register(plugin, name=name)
    return pm


def raises(error: BaseException) -> Callable[[], Any]:
    def hook() -> Any:
        raise error

    return hook


def hash_of(out: Path, pm: Any) -> str:
    distill(RECIPE, out=out, device="cpu", pm=pm)
    return str(runs.status(out)["hash"])


@pytest.fixture(scope="module")
def unwatched(tmp_path_factory: pytest.TempPathFactory) -> str:
    return hash_of(tmp_path_factory.mktemp("unwatched"), manager(entry_points=False))


def spoils(logs: Any) -> None:
    logs["student/gradient_norm"] = float("nan")


def draws() -> None:
    torch.manual_seed(3)
    torch.randn(100)


OBSERVERS: dict[str, tuple[str, Callable[..., Any], str | None]] = {
    "raises at every record": (
        "flowmap_step_end",
        raises(RuntimeError("oh")),
        "flowmap_step_end of plugin 'bad' raised RuntimeError('oh') (in iteration 20 of stage 0); it is switched off",
    ),
    "raises at the start": (
        "flowmap_train_start",
        raises(KeyError("x")),
        "flowmap_train_start of plugin 'bad' raised KeyError('x') (in stage 0)",
    ),
    "raises at the end": (
        "flowmap_train_end",
        raises(ValueError("x")),
        "flowmap_train_end of plugin 'bad' raised ValueError('x') (in stage 0)",
    ),
    "leaves the program": (
        "flowmap_step_end",
        raises(SystemExit(3)),
        "flowmap_step_end of plugin 'bad' raised SystemExit(3) (in iteration 0 of stage 0)",
    ),
    "changes the records": (
        "flowmap_step_end",
        spoils,
        "flowmap_step_end of plugin 'bad' raised TypeError(\"'mappingproxy' object does not support item assignment\") "
        "(in iteration 0 of stage 0)",
    ),
    "draws random numbers": ("flowmap_step_end", draws, None),
}


@pytest.mark.parametrize("hook, function, message", OBSERVERS.values(), ids=OBSERVERS)
def test_an_observer_changes_nothing(
    hook: str, function: Callable[..., Any], message: str | None, unwatched: str, tmp_path: Path
) -> None:
    pm = of(**{hook: function})
    if message is None:
        assert hash_of(tmp_path, pm) == unwatched
        return
    with pytest.warns(UserWarning, match="of plugin 'bad' raised") as warned:
        assert hash_of(tmp_path, pm) == unwatched
    assert message in [str(w.message) for w in warned]


def test_what_a_trainer_does_wrong_is_not_swallowed(tmp_path: Path) -> None:
    class Breaks(Toy):
        def build(self, *arguments: Any, **options: Any) -> Any:
            raise ArithmeticError("in the plugin's build")

    with pytest.raises(ArithmeticError, match="in the plugin's build"):
        distill(evolve(RECIPE, backbone=Breaks()), out=tmp_path, pm=manager(entry_points=False))
    assert runs.status(tmp_path)["reason"] == "ArithmeticError: in the plugin's build"


REGISTERS: dict[str, tuple[str, Callable[[], Any], str]] = {
    "raises": ("backbones", raises(OSError("gone")), "flowmap_backbones raised OSError: gone"),
    "nothing": ("methods", lambda: None, "flowmap_methods gave None: must be a mapping of names"),
    "a list": ("backbones", lambda: [Toy()], "flowmap_backbones gave a list: must be a mapping of names"),
    "a number's name": ("methods", lambda: {3: print}, "flowmap_methods has the name 3: must be a string"),
    "a class": ("backbones", lambda: {"toy": Toy}, "flowmap_backbones has Toy for 'toy': must be a FlowMapSpec"),
    "a string": ("backbones", lambda: {"toy": "toy"}, "flowmap_backbones has 'toy' for 'toy': must be a FlowMapSpec"),
    "a value": (
        "methods",
        lambda: {"mine": anyflow.forward()},
        "flowmap_methods has a Method for 'mine': must be a function that makes a Method",
    ),
    "stages": (
        "stages",
        lambda: {"mine": (STAGE,)},
        "flowmap_stages has a tuple for 'mine': must be a function of a Recipe that makes its stages",
    ),
    "trackers": (
        "trackers",
        lambda: {"mine": 1},
        "flowmap_trackers has 1 for 'mine': must be a function of a directory that makes a Tracker",
    ),
}


@pytest.mark.parametrize("hook, function, message", REGISTERS.values(), ids=REGISTERS)
def test_what_is_registered_wrongly_is_named(hook: str, function: Callable[[], Any], message: str) -> None:
    with pytest.raises(PluginError) as error:
        collect(of(**{f"flowmap_{hook}": function}), f"flowmap_{hook}")
    assert str(error.value) == f"plugin 'bad': {message}"


@pytest.mark.parametrize(
    "stages, message",
    [
        (lambda recipe: None, "Recipe.stages is a NoneType: must be a row of them, such as (Stage(...),)"),
        (lambda recipe: (), "Recipe.stages = (): must have at least 1"),
        (lambda recipe: [anyflow.forward()], "Recipe.stages[0] is a Method: must be a Stage"),
    ],
)
def test_stages_that_are_none(stages: Callable[[Any], Any], message: str) -> None:
    pm = of(flowmap_stages=lambda: {"mine": stages})
    with pytest.raises(PluginError) as error:
        trained_by(RECIPE, "mine", pm)
    assert str(error.value) == f"plugin 'bad': its stages 'mine' for mine: {message}"


def test_a_name_that_is_claimed_for_what_is_no_backbone() -> None:
    def resolves(name: str) -> Any:
        return {"name": name}

    pm = of(flowmap_resolve_backbone=resolves)
    with pytest.raises(PluginError) as error:
        backbone("hub/mine", pm)
    assert str(error.value) == (
        "plugin 'bad': flowmap_resolve_backbone gave a dict for 'hub/mine': must be a FlowMapSpec, or None"
    )


def test_a_hook_with_an_argument_that_there_is_not() -> None:
    class Plugin:
        @hookimpl
        def flowmap_step_end(self, step: int) -> None: ...

    with pytest.raises(PluginError, match=r"flowmap_step_end.*Argument.* \{'step'\} are declared in the hookimpl"):
        manager(Plugin(), entry_points=False)


def test_a_plugin_that_cannot_be_imported_is_named_and_can_be_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = metadata.EntryPoint("broken", "flowmap_nowhere.plugin", "flowmap")
    monkeypatch.setattr("flowmap.plugins.metadata.entry_points", lambda group: (broken,))
    monkeypatch.setattr("flowmap.plugins.installed", manager)
    assert main(["plugins"]) == 2
    assert capsys.readouterr().err == (
        "flowmap: plugin 'broken' (flowmap_nowhere.plugin) cannot be imported: ModuleNotFoundError: No module named "
        "'flowmap_nowhere'; FLOWMAP_DISABLE_PLUGINS=broken leaves it out\n"
    )
    monkeypatch.setenv("FLOWMAP_DISABLE_PLUGINS", "broken")
    assert main(["plugins"]) == 0
