"""What is installed: names, versions, entry points, types, and nothing forgotten in the wheel."""

import re
import tomllib
from importlib.metadata import distribution, entry_points
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
CONSTRAINTS = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
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
    shared = {"flowmap_lora", "flowmap_wan"}  # libraries of plugins, no plugins themselves
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


def direct() -> dict[str, Requirement]:
    """What the project names, its extras too, by name; not itself."""
    named = [*PROJECT["dependencies"], *PYPROJECT["build-system"]["requires"]]
    for extra in PROJECT["optional-dependencies"].values():
        named += extra
    found = [Requirement(line) for line in named]
    return {canonicalize_name(r.name): r for r in found if r.name != PROJECT["name"]}


def pins() -> dict[str, str]:
    """The tested version of each package, by name."""
    return dict(line.split("==") for line in CONSTRAINTS)


def test_constraints_are_one_exact_version_a_line():
    assert sorted(CONSTRAINTS) == CONSTRAINTS
    assert all(re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*==[0-9][0-9a-z.]*", line) for line in CONSTRAINTS)


@pytest.mark.parametrize("name", sorted(direct()))
def test_a_dependency_has_a_tested_version_that_its_range_allows(name):
    assert name in pins(), f"constraints.txt has no {name}"
    assert direct()[name].specifier.contains(pins()[name])


def test_the_wheel_holds_no_release_of_torch_back():
    assert {clause.operator for clause in direct()["torch"].specifier} == {">="}


def test_an_upper_bound_has_its_reason_beside_it():
    bounded = [
        line for line in (ROOT / "pyproject.toml").read_text().splitlines() if re.match(r'\s*"[^"]+[0-9],?<', line)
    ]
    assert {name for name, r in direct().items() if any(c.operator != ">=" for c in r.specifier)} == {
        canonicalize_name(Requirement(line.split('"')[1]).name) for line in bounded
    }
    assert all(re.search(r",\s+# \w.{20}", line) for line in bounded), bounded


def test_the_commands_of_readme_and_ci_take_the_tested_versions():
    commands = [
        (path, line) for path in ("README.md", "CONTRIBUTING.md") for line in (ROOT / path).read_text().splitlines()
    ]
    installs = [line for _, line in commands if line.startswith("pip install -e")]
    assert len(installs) == 5 and all("-c constraints.txt" in line for line in installs)
    script = (ROOT / ".ci" / "run").read_text()
    exported = script.index("export PIP_CONSTRAINT=$checkout/constraints.txt")
    assert exported < min(script.index(line) for line in ("python3 -m venv", "pip install --quiet", "python -m build"))


def test_the_readme_says_which_versions_were_tested():
    text = " ".join((ROOT / "README.md").read_text().split())
    (said,) = re.findall(r"were tested together: (.*), on Python", text)
    told = dict(pair.split() for pair in re.split(r", | and ", said))
    assert (
        told == {name: pins()[name] for name in told} and {"torch", "diffusers", "transformers", "peft"} <= told.keys()
    )
