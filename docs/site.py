"""A hook of mkdocs: README is the home page, and the repository's files that pages link to are part of the site."""

import re
from pathlib import Path, PurePosixPath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
HOME = "index.md"
BESIDE = "repository"  # where linked files that lie outside of docs/ are put
MARKED = re.compile(r"^(?P<fence>```\w+) [^\n]+$", re.MULTILINE)  # ```python no-run, a mark for the tests
LINK = re.compile(r"\]\((?P<target>[^)#\s:]+)(?P<anchor>#[^)\s]*)?\)")


def rewritten(text: str, place: PurePosixPath, wanted: set[str]) -> str:
    """`text` of the file at `place`, its links as the site has them; files outside of docs/ join `wanted`."""
    here = site_path(place)

    def link(match: re.Match[str]) -> str:
        target = PurePosixPath((ROOT / place.parent / match["target"]).resolve().relative_to(ROOT).as_posix())
        path = ROOT / target
        if path.is_dir():
            return f"]({_relative(HOME, here)})"
        if target.parts[0] != "docs" and str(target) != "README.md":
            wanted.add(str(target))
        return f"]({_relative(site_path(target), here)}{match['anchor'] or ''})"

    return LINK.sub(link, MARKED.sub(r"\g<fence>", text))


def site_path(place: PurePosixPath) -> str:
    if str(place) == "README.md":
        return HOME
    return str(place.relative_to("docs")) if place.parts[0] == "docs" else f"{BESIDE}/{place}"


def _relative(target: str, page: str) -> str:
    up = "../" * (len(PurePosixPath(page).parts) - 1)
    return f"{up}{target}"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    wanted: set[str] = set()
    home = rewritten((ROOT / "README.md").read_text(), PurePosixPath("README.md"), wanted)
    files.append(File.generated(config, HOME, content=home))
    for path in sorted((ROOT / "docs").rglob("*.md")):
        rewritten(path.read_text(), PurePosixPath(path.relative_to(ROOT).as_posix()), wanted)
    done: set[str] = set()
    while wanted - done:  # a page that is linked to has links of its own
        for target in sorted(wanted - done):
            done.add(target)
            name = f"{BESIDE}/{target}"
            if target.endswith(".md"):
                text = rewritten((ROOT / target).read_text(), PurePosixPath(target), wanted)
                files.append(File.generated(config, name, content=text))
            else:
                files.append(File.generated(config, name, abs_src_path=str(ROOT / target)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    if page.file.generated_by is not None:
        return markdown
    return rewritten(markdown, PurePosixPath("docs") / page.file.src_uri, set())
