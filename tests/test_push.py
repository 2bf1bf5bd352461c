"""`flowmap push` against a stand-in for the hub on this machine: what arrives is the student, and no path of it."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from flowmap import distill
from flowmap.cli import main
from flowmap.push import PushError, push
from tests.evaluation.test_card import RECIPE

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # huggingface_hub's call of httpx


class Hub(ThreadingHTTPServer):
    """What huggingface_hub asks of its server for a commit: large files by LFS, the others in the commit itself."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos: dict[str, bool] = {}  # private
        self.files: dict[str, bytes] = {}
        self.stored: dict[str, bytes] = {}
        self.tokens: set[str | None] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *arguments: object) -> None:
        pass

    def answer(self, said: Any, code: int = 200) -> None:
        content = json.dumps(said).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = list[bytes]()
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def do_GET(self) -> None:
        name = self.path.removeprefix("/api/models/").partition("?")[0]
        self.answer({"id": name, "_id": "1", "private": self.server.repos[name], "siblings": [], "tags": []})

    def do_PUT(self) -> None:
        content = self.body()
        assert hashlib.sha256(content).hexdigest() == self.path.rpartition("/")[2]
        self.server.stored[self.path.rpartition("/")[2]] = content
        self.answer({})

    def do_POST(self) -> None:
        hub, content = self.server, self.body()
        hub.tokens.add(self.headers.get("Authorization"))
        if self.path == "/api/repos/create":
            said = json.loads(content)
            name = f"{said.get('organization') or 'me'}/{said['name']}"
            if name in hub.repos:
                self.answer({"error": "exists", "url": f"{hub.url}/{name}"}, 409)
                return
            hub.repos[name] = said.get("private", said.get("visibility") == "private")
            self.answer({"url": f"{hub.url}/{name}", "id": name, "name": name})
        elif self.path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            files = [file["path"] for file in json.loads(content)["files"]]
            modes = {path: "lfs" if path.endswith(".safetensors") else "regular" for path in files}
            self.answer(
                {"files": [{"path": p, "uploadMode": mode, "shouldIgnore": False} for p, mode in modes.items()]}
            )
        elif self.path.endswith("/info/lfs/objects/batch"):
            objects = json.loads(content)["objects"]
            actions = [{**one, "actions": {"upload": {"href": f"{hub.url}/lfs/{one['oid']}"}}} for one in objects]
            self.answer({"transfer": "basic", "objects": actions})
        elif "/commit/" in self.path:
            for line in content.decode().splitlines():
                entry = json.loads(line)
                value = entry["value"]
                if entry["key"] == "file":
                    hub.files[value["path"]] = base64.b64decode(value["content"])
                elif entry["key"] == "lfsFile":
                    hub.files[value["path"]] = hub.stored[value["oid"]]
            name = self.path.removeprefix("/api/models/").partition("/commit/")[0]
            self.answer({"commitUrl": f"{hub.url}/{name}/commit/{'0' * 40}", "commitOid": "0" * 40, "hookOutput": ""})
        else:
            self.answer({"error": self.path}, 404)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    server = Hub()
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "mine"
    distill(RECIPE, out=out)
    return out


def test_what_arrives_is_the_student_and_names_nothing_of_this_machine(run: Path, hub: Hub) -> None:
    told = list[str]()
    student = run / "student"
    before = (student / "flowmap.json").read_text()
    facts = {**json.loads(before), "base": str(run.parent), "was": str(run / "gone" / "wan"), "other": "/v1/models/x"}
    (student / "flowmap.json").write_text(json.dumps(facts))
    done = push(run, "me/mine", endpoint=hub.url, token="hf_secret", say=told.append)
    (student / "flowmap.json").write_text(before)
    assert hub.repos == {"me/mine": True} and hub.tokens == {"Bearer hf_secret"}
    assert done.url.startswith(f"{hub.url}/me/mine/commit/") and told == [
        f"{done.files} files of {student} go to me/mine"
    ]
    there = {file.relative_to(student).as_posix() for file in student.rglob("*") if file.is_file()}
    assert hub.files.keys() == there and {"model.safetensors", "README.md", "flowmap.json"} <= there
    for name in there - {"flowmap.json"}:
        assert hub.files[name] == (student / name).read_bytes()
    arrived = json.loads(hub.files["flowmap.json"])
    assert (arrived["base"], arrived["was"], arrived["other"]) == (run.parent.name, "wan", "/v1/models/x")
    assert {one.partition(": ")[0] for one in done.hidden} == {"flowmap.json"} and len(done.hidden) == 2
    for content in hub.files.values():
        assert str(run.parent).encode() not in content and b"hf_secret" not in content


def test_a_public_repository_is_asked_for(run: Path, hub: Hub) -> None:
    hub.repos["me/open"] = False
    with pytest.raises(PushError, match=r"me/open is there already, and public: give another name, or .* \(--public\)"):
        push(run / "student", "me/open", endpoint=hub.url, token="x")
    assert not hub.files
    push(run / "student", "me/open", private=False, endpoint=hub.url, token="x")
    assert hub.files


def test_what_cannot_be_pushed_is_said_in_one_sentence(
    run: Path, hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(PushError, match=r"there is no flowmap\.json in it, so no run has finished it"):
        push(tmp_path, "me/mine", endpoint=hub.url)
    with pytest.raises(PushError, match="Repo id must"):
        push(run, "a/b/c", endpoint=hub.url, token="x")
    hub.shutdown()
    assert main(["push", "nowhere", "me/mine"]) == 2
    assert capsys.readouterr().err.startswith("flowmap: run 'nowhere': there is no such directory")
