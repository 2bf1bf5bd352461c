"""Runs that are killed: a small recipe in processes of its own, and what it leaves behind.

The processes come from a fork server that has everything imported, so that a run takes a second; a SIGKILL of one is a
SIGKILL. Several ranks are several such processes, and when one ends badly the others are stopped, as torchrun does it;
torchrun itself takes five seconds more, and some tests have it (`torchrun`).
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch
from attrs import frozen
from safetensors import safe_open
from torch import Tensor

from flowmap import AdamW, Ema, Recipe, Stage, distill
from flowmap.cli.errors import sentence
from flowmap.methods import anyflow
from flowmap.plugins import manager
from flowmap.training.interrupt import Preempted
from flowmap.training.store.checkpoint import published
from tests.toys import Toy, data

STEPS = 3  # of each of three stages
SAVES = 3 * STEPS
GRACE = 3.0  # seconds between a rank's end and that of the others
PATIENCE = 60.0
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    [
        *("flowmap.distill", "torch.distributed.checkpoint", "torch.distributed.fsdp", "torch._dynamo"),
        *("diffusers.models.transformers", "peft"),  # every rank of a network of Wan's would take seconds for them
    ]
)


def recipe() -> Recipe:
    """Teacher, forward, on-policy: student, critic, averages and both optimisers; a save after every iteration."""
    methods = (anyflow.teacher(), anyflow.forward(), anyflow.on_policy(steps=(2, 4)))
    stages = [
        Stage(method, STEPS, batch=4, micro=2, optimizer=AdamW(lr=1e-3, warmup=1), ema=Ema(0.5, start=1))
        for method in methods
    ]
    return Recipe(Toy(shared=True), tuple(stages), name="toy")


def toy(out: Path) -> None:
    """The job of most tests."""
    distill(recipe(), data(), out=out, save_minutes=0, device="cpu", pm=manager(entry_points=False))


Job = Callable[[Path], None]


@frozen
class End:
    """How processes ended: exit codes by rank, negative for signals, and all that they said."""

    codes: tuple[int, ...]
    said: str
    seconds: float

    @property
    def code(self) -> int:
        """The first bad one; 0 if there is none."""
        return next((code for code in self.codes if code), 0)


@frozen
class Running:
    """Processes at work."""

    ranks: Sequence[BaseProcess]
    log: Path
    since: float

    def signal(self, number: int, rank: int = 0) -> None:
        pid = self.ranks[rank].pid
        assert pid is not None
        os.kill(pid, number)

    def wait(self) -> End:
        """Until all have ended; soon after one has ended badly, the others are killed."""
        until = self.since + PATIENCE
        while any(process.is_alive() for process in self.ranks):
            if any(process.exitcode for process in self.ranks):
                until = min(until, time.monotonic() + GRACE)
            if time.monotonic() > until:
                for process in self.ranks:
                    process.kill()
            time.sleep(0.01)
        codes = tuple(int(process.exitcode or 0) for process in self.ranks)
        return End(codes, self.log.read_text(errors="replace"), time.monotonic() - self.since)


def start(out: Path, fault: str = "", *, ranks: int = 1, job: Job = toy) -> Running:
    out.mkdir(parents=True, exist_ok=True)
    log = out.with_name(f"{out.name}.log")
    log.write_bytes(b"")
    group = {} if ranks == 1 else {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_port())}
    processes: list[BaseProcess] = []
    for rank in range(ranks):
        env = {**group, "FLOWMAP_FAULT": fault, **({"RANK": str(rank), "LOCAL_RANK": str(rank)} if group else {})}
        processes.append(SERVER.Process(target=_child, args=(job, out, log, env)))
        processes[-1].start()
    return Running(processes, log, time.monotonic())


def run(out: Path, fault: str = "", *, ranks: int = 1, job: Job = toy) -> End:
    return start(out, fault, ranks=ranks, job=job).wait()


def finished(out: Path, *, ranks: int = 1, job: Job = toy) -> str:
    """Run to the end, whatever was there before; `final_hash` of it."""
    end = run(out, ranks=ranks, job=job)
    assert end.code == 0, end.said
    assert status(out)["state"] == "finished"
    return final_hash(out)


def final_hash(out: Path) -> str:
    """sha256 of student, teacher, critic, averages, optimisers and counters at the end, and of the student's files.

    Of whole tensors by name: how many ranks wrote them makes no difference.
    """
    last = newest(out)
    found = hashlib.sha256()
    for name, value in sorted(tensors_of(last).items()):
        _add(found, name, value)
    found.update((last / "train_state.json").read_bytes())
    for path in sorted((out / "student").rglob("*.safetensors")):
        with safe_open(path, "pt") as file:
            about = sorted((file.metadata() or {}).items())  # the library writes them in any order
            found.update(f"{path.relative_to(out)} {about}\n".encode())
            for name in sorted(file.keys()):
                _add(found, name, file.get_tensor(name))
    return found.hexdigest()


def _add(found: hashlib._Hash, name: str, value: Tensor) -> None:
    found.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
    found.update(value.contiguous().flatten().view(torch.uint8).numpy().tobytes())


def tensors_of(checkpoint: Path) -> dict[str, Tensor]:
    """Everything in a checkpoint, put together from its shards by where they say that they belong."""
    shapes: Mapping[str, list[int]] = json.loads((checkpoint / "MANIFEST.json").read_text())["shapes"]
    found: dict[str, Tensor] = {}
    for file in sorted((checkpoint / "state").iterdir()):
        with safe_open(file, "pt") as shard:
            offsets = json.loads(shard.metadata()["DCP_SHARDING_INFO"])
            for name in shard.keys():  # noqa: SIM118
                piece = shard.get_tensor(name)
                whole = found.setdefault(name, torch.full(shapes[name], torch.nan, dtype=piece.dtype))
                place = tuple(slice(o, o + n) for o, n in zip(offsets[name]["saved_offsets"], piece.shape, strict=True))
                whole[place] = piece
    return found


def newest(out: Path) -> Path:
    return published(out / "checkpoints")[-1]


def status(out: Path) -> dict[str, object]:
    return dict(json.loads((out / "status.json").read_text()))


def torchrun(out: Path, script: str, *arguments: str, ranks: int = 2, fault: str = "") -> subprocess.Popen[str]:
    """`torchrun` with this repository's own interpreter: the agent is the process that is returned."""
    file = out.with_name(f"{out.name}.py")
    file.write_text(script)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(ranks)]
    command += ["--master-port", str(_port()), "--monitor-interval", "0.1", *arguments, str(file), str(out)]
    env = {**os.environ, "FLOWMAP_FAULT": fault, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(
        command, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )


def _child(job: Job, out: Path, log: Path, env: Mapping[str, str]) -> None:
    os.environ.update(env)
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    torch.set_num_threads(1)
    code = 0
    try:
        job(out)
    except Preempted as error:
        code = 128 + error.number
    except Exception as error:
        told = sentence(error)
        if told is None:
            raise
        print(told.text, file=sys.stderr)
        code = told.code
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


KILLED = -signal.SIGKILL
