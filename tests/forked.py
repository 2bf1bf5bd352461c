"""`flowmap` as a command whose processes are forks of one that has the model libraries imported.

To import them takes seconds of every process of its own, and most of what a short command computes. A fork of a process
that has done nothing else is as good as a new one: the shell, the exit code, both streams are real. Previews
are few, as in all tests.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

IMPORTED = (
    *("flowmap.cli", "flowmap.distill", "flowmap.evaluation", "flowmap.data", "flowmap.export", "flowmap_wan21"),
    *("torch._dynamo", "diffusers.models.transformers", "diffusers.models.autoencoders", "transformers", "peft"),
)
CLIENT = """#!{python} -IS
import json, os, socket, sys
server = socket.socket(socket.AF_UNIX)
server.connect({at!r})
told = json.dumps([os.getcwd(), sys.argv[1:], dict(os.environ)]).encode()
socket.send_fds(server, [len(told).to_bytes(8, "big")], [0, 1, 2])
server.sendall(told)
sys.exit(server.recv(1)[0])
"""


@contextmanager
def command() -> Iterator[Path]:
    """A folder for the front of PATH with `flowmap` in it."""
    with tempfile.TemporaryDirectory(prefix="forked") as folder:
        at = str(Path(folder) / "socket")
        script = Path(folder) / "flowmap"
        script.write_text(CLIENT.format(python=sys.executable, at=at))
        script.chmod(0o755)
        server = subprocess.Popen([sys.executable, __file__, at], stdout=subprocess.PIPE)
        try:
            assert server.stdout is not None and server.stdout.readline() == b"ready\n"
            yield Path(folder)
        finally:
            server.kill()
            server.communicate()


def serve(at: str) -> None:
    import importlib

    listens = socket.socket(socket.AF_UNIX)
    listens.bind(at)
    listens.listen()
    for name in IMPORTED:
        importlib.import_module(name)
    few_and_small = importlib.import_module("pictures").few_and_small  # beside this file
    with few_and_small():
        print("ready", flush=True)
        answer(listens)


def answer(listens: socket.socket) -> None:
    while True:
        client, _ = listens.accept()
        size, streams, _, _ = socket.recv_fds(client, 8, 3)
        told = b""
        while len(told) < int.from_bytes(size, "big"):
            told += client.recv(1 << 16)
        if (child := os.fork()) == 0:
            _run(*json.loads(told), streams)
        for stream in streams:
            os.close(stream)
        _, status = os.waitpid(child, 0)
        client.sendall(bytes([min(255, abs(os.waitstatus_to_exitcode(status)))]))
        client.close()


def _run(folder: str, arguments: list[str], environment: dict[str, str], streams: list[int]) -> None:
    from flowmap.cli import main

    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["flowmap", *arguments]
    code = 70
    try:
        code = main(arguments)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    serve(sys.argv[1])
