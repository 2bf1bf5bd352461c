"""What is installed: names, versions, entry points, types, and nothing forgotten in the wheel."""

import re
import tomllib
from importlib.metadata import distribution, entry_points
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT, WHEEL = PYPROJECT["project"], PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
PACKAGES = ["flowmap", *sorted(f"plugins/{p.parent.name}" for p in ROOT.glob("plugins/*/__init__.py"))]


def test_the_installed_distribution_is_this_checkout():
    installed = distribution(PROJECT["name"])
    assert installed.version == PROJECT["version"], "install again: pip install -e .[test]"
    assert installed.metadata["License-Expression"] == "Apache-2.0"
    assert {"dev", "tensorboard", "test"} <= set(installed.metadata.get_all("Provides-Extra"))


def test_every_document_states_the_same_version():
    changelog = re.search(r"^## \[([\d.]+)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    citation = re.search(r"^version: (\S+)", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert changelog and citation
    assert changelog[1] == citation[1] == PROJECT["version"]


def test_the_wheel_holds_every_package_and_the_recipes():
    assert sorted(WHEEL["only-include"]) == sorted([*PACKAGES, "recipes"])
    assert WHEEL["sources"] == {"plugins": "", "recipes": "flowmap/_recipes"}


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_tells_that_it_is_typed(package):
    assert (ROOT / package / "py.typed").is_file()


def test_every_plugin_of_the_repository_has_an_entry_point():
    declared = set(PROJECT["entry-points"]["flowmap"].values())
    shared = {"flowmap_wan"}  # a library of two plugins, no plugin itself
    assert declared == {"flowmap.builtin", *(Path(package).name for package in PACKAGES[1:])} - shared


@pytest.mark.parametrize("name", sorted(PROJECT["entry-points"]["flowmap"]))
def test_an_entry_point_loads_a_module(name):
    (entry,) = entry_points(group="flowmap", name=name)
    assert isinstance(entry.load(), ModuleType)


def test_the_command_and_the_pytest_plugin_load():
    (command,) = entry_points(group="console_scripts", name="flowmap")
    assert callable(command.load())
    (kit,) = entry_points(group="pytest11", name="flowmap")
    assert isinstance(kit.load(), ModuleType)
