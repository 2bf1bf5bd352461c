"""A student on the hub: its directory with its card, in one commit, without what names this machine."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

from attrs import frozen

from .export.forms import located
from .model import origin

TEXTS = (".json", ".md", ".txt", ".py", ".yaml")
ABSOLUTE = re.compile(r"(?<![\w/.:~-])(?:[A-Za-z]:\\|/)[\w.+@~ -]+(?:[/\\][\w.+@~ -]+)+")
"""What may be an absolute path."""


class PushError(Exception):
    """Nothing was published."""


@frozen
class Pushed:
    """url: of the commit. hidden: paths of this machine of which only the last name went out, by file."""

    url: str
    files: int
    hidden: tuple[str, ...] = ()


def push(
    path: str | Path,
    repo: str,
    *,
    private: bool = True,
    endpoint: str | None = None,
    token: str | None = None,
    say: Callable[[str], object] = lambda text: None,
) -> Pushed:
    """The student of a run, or in a directory, to `repo` (NAME or OWNER/NAME), which is made if it is not there yet.

    private: a repository that is made is; one that is there and is not is refused. endpoint, token: as huggingface_hub
    takes them, by default HF_ENDPOINT and what `hf auth login` left. A `PushError` says what cannot be done.
    """
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    folder = located(Path(path))
    for needed in ("flowmap.json", "README.md"):
        if not (folder / needed).is_file():
            raise PushError(f"{folder}: there is no {needed} in it, so no run has finished it")
    additions, hidden = list[CommitOperationAdd](), list[str]()
    for file in sorted(file for file in folder.rglob("*") if file.is_file() and not file.name.startswith(".")):
        name = file.relative_to(folder).as_posix()
        content: bytes | str = str(file)
        if file.suffix in TEXTS and (found := [*_paths(text := file.read_text())]):
            for one in found:
                text = text.replace(one, origin(one))
            content, hidden = text.encode(), [*hidden, *(f"{name}: {one}" for one in found)]
        additions.append(CommitOperationAdd(name, content))
    api = HfApi(endpoint=endpoint, token=token)
    try:
        repo = api.create_repo(repo, private=private, exist_ok=True).repo_id
        if private and not api.model_info(repo).private:
            raise PushError(f"{repo} is there already, and public: give another name, or say that it may be (--public)")
        say(f"{len(additions)} files of {folder} go to {repo}")
        made = api.create_commit(repo, additions, commit_message=f"{origin(folder)}, distilled with flowmap")
    except (HfHubHTTPError, HFValidationError, OSError, RuntimeError) as error:
        why = f": {error.__cause__}" if isinstance(error, RuntimeError) and error.__cause__ else ""
        raise PushError(f"{repo}: {str(error).strip().splitlines()[0]}{why}") from error
    return Pushed(str(made.commit_url), len(additions), tuple(hidden))


def _paths(text: str) -> Iterator[str]:
    """Absolute paths that are there on this machine, the longest first, or that begin with one that is."""
    found = {match.group().rstrip(" .") for match in ABSOLUTE.finditer(text)}
    yield from sorted((one for one in found if _here(Path(one))), key=len, reverse=True)


def _here(path: Path) -> bool:
    """Whether any of its folders below the root's own is: what was there when it was written may be gone."""
    return path.is_absolute() and (path.exists() or any(above.exists() for above in [*path.parents][:-2]))
