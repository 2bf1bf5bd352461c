"""`flowmap status`: how a run goes, in every state that one can be in, and what to do next."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
from attrs import evolve
from safetensors.torch import load_file

from flowmap import AdamW, Recipe, Stage, distill
from flowmap.atomic import write_json
from flowmap.cli import main
from flowmap.methods import anyflow
from flowmap.model import sha256
from flowmap.plugins import manager
from flowmap.training.run import Run
from flowmap.training.store import metrics, status
from flowmap.training.store.lock import me
from tests import runs
from tests.toys import Toy, data

QUIET = manager(entry_points=False)
RECIPE = Recipe(Toy(), (Stage(anyflow.forward(), 2, batch=4, optimizer=AdamW(lr=1e-3)),), data=data())


def told(run: Path, capsys: pytest.CaptureFixture[str], code: int = 0) -> dict[str, str]:
    capsys.readouterr()
    assert main(["status", str(run)]) == code
    return {k: v.strip() for k, _, v in (line.partition(":") for line in capsys.readouterr().out.splitlines())}


def change(run: Path, **fields: object) -> None:
    write_json(run / "status.json", {**runs.status(run), **fields})


def test_a_finished_run_has_a_hash_and_its_student_can_be_sampled(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    student = distill(RECIPE, out=tmp_path, device="cpu", pm=QUIET)
    found = told(tmp_path, capsys)
    assert found["state"] == "finished"
    assert found["stage"] == "1 of 1 done"
    assert found["step"] == "2 of 2"
    assert found["training"].endswith(" s so far, none to come")
    assert found["checkpoint"] == "step_00_00000002"
    assert found["hash"] == sha256({f"student/{name}": p for name, p in student.trained().items()})
    assert found["next"] == f"flowmap sample {tmp_path / 'student'} --prompt '...'"
    saved = load_file(tmp_path / "student" / "model.safetensors")
    assert found["hash"] == sha256({f"student/{name}": saved[name] for name in student.trained()})


def test_the_hash_is_of_the_recipe_not_of_how_often_it_was_called(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        distill(RECIPE, out=tmp_path / "a", device="cpu", pm=QUIET)
    distill(RECIPE, out=tmp_path / "b", device="cpu", pm=QUIET)
    distill(evolve(RECIPE, seed=1), out=tmp_path / "c", device="cpu", pm=QUIET)
    a, b, c = (told(tmp_path / name, capsys)["hash"] for name in "abc")
    assert a == b != c
    assert told(tmp_path / "a", capsys)["checkpoint"] == "step_00_00000002, of an earlier start"


def test_a_failed_run_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Breaks:
        def __len__(self) -> int:
            return 4

        def batch(self, index: object) -> object:
            raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        distill(evolve(RECIPE, data=None), Breaks(), out=tmp_path, device="cpu", pm=QUIET)  # type: ignore[arg-type]
    found = told(tmp_path, capsys, code=1)
    assert found["state"] == "failed" and found["reason"] == "OSError: the disk is gone"
    assert found["checkpoint"] == "none yet"
    assert found["next"].startswith("mend what the reason says, then go on with: ")


SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGKILL)
COMMAND = "flowmap distill mine.py --out run --resume auto"


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> dict[int, tuple[Path, int, str]]:
    """Runs at the same time, and a signal to each: directory, exit code and what was said."""
    here = {number: tmp_path_factory.mktemp(number.name) for number in SIGNALS}
    for path in here.values():
        runs.write(path / "mine.py")
    processes = {number: runs.start(path, *COMMAND.split()[1:]) for number, path in here.items()}
    for number, process in processes.items():
        runs.trains(here[number] / "run", process)
        process.send_signal(number)
    said = {number: process.communicate(timeout=60)[1] for number, process in processes.items()}
    return {number: (here[number] / "run", processes[number].returncode, said[number]) for number in SIGNALS}


Ended = dict[int, tuple[Path, int, str]]


def test_a_run_that_was_killed_is_told_from_one_that_goes_on(ended: Ended, capsys: pytest.CaptureFixture[str]) -> None:
    run, _, _ = ended[signal.SIGKILL]
    found = told(run, capsys, code=1)
    assert found["state"] == "killed? It says running, but its process is no more"
    assert found["next"] == f"go on with: {COMMAND}"
    change(run, **me())
    found = told(run, capsys)
    assert found["state"] == "running" and "next" not in found
    assert found["process"].startswith(f"pid {os.getpid()} on ")


@pytest.mark.parametrize("number", SIGNALS[:3])
def test_a_signal_ends_a_run_between_two_iterations(
    number: signal.Signals, ended: Ended, capsys: pytest.CaptureFixture[str]
) -> None:
    run, code, err = ended[number]
    assert code == 128 + number, err
    said = "interrupted" if number == signal.SIGINT else f"stopped by {number.name}"
    assert err.endswith(f"flowmap: {said}; go on with: {COMMAND}\n") and "Traceback" not in err
    found = told(run, capsys)
    assert found["state"] == "preempted" and "saved: the same call goes on from there" in found["reason"]
    done = int(found["step"].split()[0])
    assert found["checkpoint"] == f"step_00_{done:08d}" and f"after {done} of" in found["reason"]
    assert found["next"] == f"go on with: {COMMAND}"


def test_what_is_running_elsewhere_is_not_judged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    distill(RECIPE, out=tmp_path, device="cpu", pm=QUIET)
    change(tmp_path, state="evaluating", host="elsewhere")
    found = told(tmp_path, capsys)
    assert found["state"] == "evaluating, it says; whether its process lives is known on elsewhere alone"


@pytest.mark.parametrize(
    "text, message",
    [
        (None, "there is no status.json in it, so it is no run directory"),
        ("{", "status.json cannot be read: Expecting property name"),
        ("[]", "status.json cannot be read: "),
        ("{}", "status.json cannot be read: "),
    ],
)
def test_what_is_no_run(text: str | None, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if text is not None:
        (tmp_path / "status.json").write_text(text)
    assert main(["status", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1


def test_a_status_of_a_later_release_can_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    distill(RECIPE, out=tmp_path, device="cpu", pm=QUIET)
    change(tmp_path, weather="fine")
    assert told(tmp_path, capsys)["state"] == "finished"


def test_notes_reach_the_status(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Run(tmp_path) as run:
        run.start(RECIPE)
        for number in range(status.NOTES + 5):
            run.note(f"a save failed: {number}")
    assert runs.status(tmp_path)["notes"][0] == "a save failed: 5"
    assert told(tmp_path, capsys)["note 20"] == "a save failed: 24"


def test_the_bar_has_no_mean_of_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Run(None) as run:
        run.stage(0, "toy", 0, 1)
        run.step(0, 0, {"student/loss/bulk": 1.0, "student/loss/edge": float("nan")})
    err = capsys.readouterr().err
    assert "bulk=1.000" in err and "edge" not in err


def test_a_disk_that_takes_nothing_ends_no_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with Run(tmp_path) as run:
        run.start(RECIPE)
        run.stage(0, "toy", 0, 9)
        run.step(0, 0, {"loss": 1.0})
        tmp_path.chmod(0o500)
        file = tmp_path / "metrics.jsonl"
        monkeypatch.setattr(metrics.Path, "open", _full)
        for iteration in range(1, 4):
            run.step(0, iteration, {"loss": float("nan")})
        run.saved(Path("step_00_00000004"))
        monkeypatch.undo()
        tmp_path.chmod(0o700)
        run.step(0, 4, {"loss": 2.0})
    assert [r["iteration"] for r in metrics.read(file)] == [0, 1, 2, 3, 4]
    assert runs.status(tmp_path)["state"] == "running"
    err = capsys.readouterr().err
    assert "metrics.jsonl cannot be written (1 times): [Errno 28]" in err
    assert "status.json cannot be written (4 times)" in err


def _full(*arguments: object, **options: object) -> object:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("torn", ['{"stage": 0, "itera', '{"stage": 0, "iteration": 1}', "\x00\x00", "[1]\n", "{}\n"])
def test_records_that_a_kill_tore_do_not_stop_a_resume(torn: str, tmp_path: Path) -> None:
    found = metrics.Metrics(tmp_path / "metrics.jsonl")
    for iteration in range(3):
        found.add({"stage": 0, "iteration": iteration, "loss": float(iteration)})
    with found.path.open("a") as file:
        file.write(torn)
    found.rewind(0, 2)
    found.add({"stage": 0, "iteration": 2})
    assert [json.loads(line)["iteration"] for line in found.path.read_text().splitlines()] == [0, 1, 2]


def test_half_a_line_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    found = metrics.Metrics(tmp_path / "metrics.jsonl")
    found.add({"stage": 0, "iteration": 0})
    before, limit = signal.signal(signal.SIGXFSZ, signal.SIG_IGN), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (found.path.stat().st_size + 10, limit[1]))
    try:
        assert found.add({"stage": 0, "iteration": 1}) is not None
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, before)
    assert [r["iteration"] for r in metrics.read(found.path)] == [0]
    assert found.add({"stage": 0, "iteration": 2}) is None
    assert [r["iteration"] for r in metrics.read(found.path)] == [0, 1, 2]


def test_a_run_on_its_way_says_in_which_stage_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    distill(RECIPE, out=tmp_path, device="cpu", pm=QUIET)
    change(tmp_path, state="preempted", stage=0, stages=2, step=1)
    assert told(tmp_path, capsys)["stage"] == "0 of 2 done; now stage 0, anyflow_forward"
