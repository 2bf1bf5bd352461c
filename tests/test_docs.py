"""The documents are true: their Python runs, their commands exist, their links lead somewhere."""

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from flowmap.plugins import backbone, manager
from flowmap.testing import BACKBONE_CHECKS
from tests import forked

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
DOCUMENTS = sorted([README, ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md")])
FENCE = re.compile(r"^```(?P<language>\w+)(?P<marks>[^\n]*)\n(?P<code>.*?)^```", re.MULTILINE | re.DOTALL)


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def blocks(path: Path, language: str) -> list[tuple[str, list[str], str]]:
    """(place, marks, code) of every fenced block in `language`.

    ```python no-run has the mark `no-run`, and ```python a/b.py is the file of that name.
    """
    text = path.read_text()
    found = [match for match in FENCE.finditer(text) if match["language"] == language]
    lines = [text.count("\n", 0, match.start()) + 1 for match in found]
    return [
        (f"{relative(path)}:{line}", match["marks"].split(), match["code"])
        for line, match in zip(lines, found, strict=True)
    ]


PYTHON = [block for path in DOCUMENTS for block in blocks(path, "python")]


@pytest.mark.parametrize("code", [pytest.param(code, id=place) for place, marks, code in PYTHON if not marks])
def test_a_python_block_runs(code, tmp_path):
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.md"))
BLOCK = {"bash": ["bash", "-euo", "pipefail", "-c"], "python": [sys.executable, "-W", "error", "-c"]}


QUICK = {"own-videos"}  # the others distil recipes that come with the package, a minute each


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "path", [pytest.param(p, id=p.stem, marks=() if p.stem in QUICK else pytest.mark.slow) for p in TUTORIALS]
)
def test_a_tutorial_runs(path, flowmap_command, tmp_path):
    """Its blocks in order, in one directory: commands, Python, and files of the name that they are marked with."""
    done = 0
    env = {**os.environ, "PATH": f"{flowmap_command}{os.pathsep}{commands_of_this_tree()['PATH']}"}
    for match in FENCE.finditer(path.read_text()):
        (mark,) = match["marks"].split()
        if mark == "tutorial":
            command = [*BLOCK[match["language"]], match["code"]]
            run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env)
            assert run.returncode == 0, f"{match['code']}{run.stdout}{run.stderr}"
            done += 1
        else:
            assert mark.endswith(".py")
            (tmp_path / mark).write_text(match["code"])
    assert done > 1


@pytest.fixture(scope="module")
def flowmap_command():
    with forked.command() as folder:
        yield folder


def commands_of_this_tree():
    """`flowmap` is the one of this interpreter."""
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


@pytest.fixture
def documented_plugin(tmp_path, monkeypatch):
    """The package that docs/plugins.md shows, file by file."""
    for _, marks, code in blocks(ROOT / "docs" / "plugins.md", "python"):
        if marks and marks[0].endswith(".py"):
            path = tmp_path / marks[0]
            path.parent.mkdir(exist_ok=True)
            path.write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    yield importlib.import_module("flowmap_mine")
    for name in [name for name in sys.modules if name.split(".")[0] == "flowmap_mine"]:
        del sys.modules[name]


def test_the_documented_plugin_registers_its_backbone(documented_plugin):
    assert backbone("mine", manager(documented_plugin, entry_points=False)) == documented_plugin.Mine()


@pytest.mark.parametrize("check", BACKBONE_CHECKS, ids=lambda check: check.__name__)
def test_the_documented_backbone_conforms(documented_plugin, check):
    check(documented_plugin.Mine())


@pytest.mark.parametrize("code", [pytest.param(code, id=place) for place, _, code in PYTHON])
def test_a_python_block_is_python(code):
    compile(code, "block", "exec")


def commands(path: Path) -> set[str]:
    """The subcommands of `flowmap` that a document's shell blocks and inline code use."""
    shell = "\n".join(code for _, _, code in blocks(path, "bash"))
    inline = "\n".join(re.findall(r"`(flowmap [^`]+)`", path.read_text()))
    return set(re.findall(r"(?:^|&& |`)flowmap ([a-z][\w-]*)", f"{shell}\n{inline}", re.MULTILINE))


@pytest.fixture(scope="session")
def command_line_help() -> str:
    run = [sys.executable, "-c", "from flowmap.cli import main; main()", "--help"]
    return subprocess.run(run, check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize("path", DOCUMENTS, ids=relative)
def test_commands_exist(path, command_line_help):
    for command in commands(path):
        assert re.search(rf"\b{command}\b", command_line_help), f"flowmap {command} is not in flowmap --help"


@pytest.mark.parametrize("path", DOCUMENTS, ids=relative)
def test_a_command_is_copied_without_a_comment(path):
    """At its prompt zsh takes # for a word, an apostrophe behind it for an open string, and ? for a pattern."""
    for _, _, code in blocks(path, "bash"):
        bare = re.sub(r"'[^'\n]*'|\"[^\"\n]*\"", "", code)
        assert not re.search(r"[#*?\[]", bare), code


def test_commands_are_found():
    assert "distill" in commands(README)


@pytest.mark.parametrize("path", DOCUMENTS, ids=relative)
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", path.read_text()):
        if not target.startswith(("http://", "https://")):
            assert (path.parent / target).exists(), target


@pytest.mark.parametrize("name", ["quickstart", "test"])
def test_the_readme_has_the_block_that_ci_runs(name):
    (code,) = [code for _, marks, code in blocks(README, "bash") if marks == [name]]
    assert code.strip()
