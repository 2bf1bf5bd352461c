"""What needs no network loads no torch, and what is on one rank nothing for tensors in pieces."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from attrs import asdict

import flowmap
from flowmap.export.listed import forms_of
from flowmap.lazily import Lazily
from flowmap.plugins import PluginError, claims, collect, installed, manager
from flowmap.training.store.status import FILE, Status

HEAVY = {"torch", "numpy", "diffusers", "transformers", "peft", "matplotlib"}


def loaded(code: str) -> set[str]:
    """The modules of a fresh interpreter after `code`."""
    told = f"import json, sys\n{code}\nprint('\\n' + json.dumps([*sys.modules]))"
    done = subprocess.run([sys.executable, "-c", told], check=True, capture_output=True, text=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


def command(*arguments: str) -> set[str]:
    return loaded(f"from flowmap.cli import main\ntry: main({[*arguments]!r})\nexcept SystemExit: pass")


def test_commands_that_need_no_network_load_no_torch(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(json.dumps(asdict(Status("finished", host="here", pid=1))))
    for given in (["--help"], ["--version"], ["status", str(tmp_path)], ["plugins"], ["report", str(tmp_path)]):
        assert not command(*given) & HEAVY, given
    assert "flowmap.training.store.status" in command("status", str(tmp_path))
    assert {"torch", "flowmap_wan21.spec"} <= loaded("from flowmap import backbone; backbone('wan21')")


def test_every_public_name_on_one_rank_loads_nothing_for_tensors_in_pieces() -> None:
    every = loaded("import flowmap\nfor name in flowmap.__all__: getattr(flowmap, name)")
    assert {"flowmap.distill", "flowmap.training.ranks.sharding", "flowmap.objectives.mixture"} <= every
    assert not every & {"torch.distributed.tensor", "torch.distributed.fsdp", "sympy"}


def test_public_names_are_what_they_were_whatever_was_imported_before() -> None:
    shadowing = "import flowmap.distill, flowmap.stream, flowmap.export.api, flowmap.data"
    loaded(f"{shadowing}\nimport flowmap\nassert all(map(callable, (flowmap.distill, flowmap.stream, flowmap.export)))")
    assert {*flowmap.__all__} <= {*dir(flowmap)}
    with pytest.raises(AttributeError, match="module 'flowmap' has no attribute 'distil'"):
        _ = flowmap.distil  # type: ignore[attr-defined]
    with pytest.raises(ImportError, match="cannot import name 'Wan22' from 'flowmap_wan21'"):
        exec("from flowmap_wan21 import Wan22")


def test_what_is_listed_is_what_there_is() -> None:
    for hook in ("backbones", "methods", "stages", "exporters", "layouts", "trackers"):
        assert [*collect(installed(), f"flowmap_{hook}")] == [*claims(installed(), f"flowmap_{hook}")]
    for name, (_, items) in claims(installed(), "flowmap_backbones").items():
        assert isinstance(items, Lazily) and {*items.forms[name]} == {*forms_of(items[name])}, name


def test_an_item_that_cannot_be_made_is_its_plugins_fault() -> None:
    class Plugin:
        @flowmap.hookimpl
        def flowmap_methods(self) -> Lazily[object]:
            return Lazily({"gone": "flowmap.nowhere:gone", "constant": lambda: 1})

    pm = manager(entry_points=False)
    pm.register(Plugin(), name="mine")
    assert [*claims(pm, "flowmap_methods")] == ["constant", "gone"]
    with pytest.raises(PluginError, match="plugin 'mine': flowmap_methods has 1 for 'constant': must be a function"):
        collect(pm, "flowmap_methods")
    pm = manager(entry_points=False)
    pm.register(type("Other", (), {"flowmap_methods": flowmap.hookimpl(lambda self: Lazily({"x": "flowmap.no:x"}))})())
    with pytest.raises(PluginError, match="flowmap_methods raised ModuleNotFoundError: No module named"):
        collect(pm, "flowmap_methods")
