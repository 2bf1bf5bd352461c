"""R1, R6, R7, R8 with two ranks: one dies, raises, or is asked to stop. All end, soon, and go on from the same."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest

from flowmap import distill
from flowmap.hookspecs import hookimpl
from flowmap.plugins import manager
from flowmap.training.loop import Trainer
from flowmap.training.ranks.distributed import Distribution
from tests.toys import data

from .harness import KILLED, final_hash, finished, newest, recipe, run, start, status, torchrun

SOON = 20.0  # seconds
PATIENT = 4.0  # seconds that an exchange may take


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> str:
    return finished(tmp_path_factory.mktemp("whole") / "run", ranks=2)


KILLS = ["save.shard:5@1", "save.after_data:4@0", "save.after_rename:9@1", "critic.after:2@1", "ema.after:5@0"]
MORE = [
    f"{point}:{n}@{rank}"
    for rank in (0, 1)
    for point, most in (
        ("save.before", 9),
        ("save.after_manifest", 9),
        ("purge", 9),
        ("data.next", 12),
        ("student.after", 6),
    )
    for n in (1, most // 2, most)
    if (point, rank) != ("purge", 1)  # rank 0 clears up
]


def killed(fault: str, out: Path, uninterrupted: str) -> None:
    end = run(out, fault, ranks=2)
    assert end.codes[int(fault[-1])] == KILLED and all(end.codes), end.said
    assert end.seconds < SOON
    assert finished(out, ranks=2) == uninterrupted


@pytest.mark.row("R1")
@pytest.mark.parametrize("fault", KILLS)
def test_kill_one_rank(fault: str, tmp_path: Path, uninterrupted: str) -> None:
    killed(fault, tmp_path / "run", uninterrupted)


@pytest.mark.slow
@pytest.mark.row("R1")
@pytest.mark.parametrize("fault", MORE)
def test_kill_one_rank_anywhere(fault: str, tmp_path: Path, uninterrupted: str) -> None:
    killed(fault, tmp_path / "run", uninterrupted)


@pytest.mark.row("R1")
def test_kill_one_rank_and_the_other_when_it_goes_on(tmp_path: Path, uninterrupted: str) -> None:
    for fault in ("data.next:5@1", "save.after_data:3@0"):
        assert run(tmp_path / "run", fault, ranks=2).code
    assert finished(tmp_path / "run", ranks=2) == uninterrupted


@pytest.mark.row("R6")
@pytest.mark.parametrize("rank", [0, 1])
def test_one_worker_that_is_asked_to_stop_stops_all_after_the_same_step(
    rank: int, tmp_path: Path, uninterrupted: str
) -> None:
    end = run(tmp_path / "run", f"data.next:5:term@{rank}", ranks=2)
    assert end.codes == (143, 143), end.said
    assert status(tmp_path / "run")["state"] == "preempted"
    assert newest(tmp_path / "run").name == "step_01_00000002"
    assert finished(tmp_path / "run", ranks=2) == uninterrupted


@pytest.mark.row("R7")
def test_a_rank_that_leaves_ends_the_others(tmp_path: Path, uninterrupted: str) -> None:
    end = run(tmp_path / "run", "student.after:4:exit@1", ranks=2)
    assert end.codes[1] == 17 and end.codes[0] and end.seconds < SOON, end.said
    said = status(tmp_path / "run")
    assert said["state"] == "failed" and said["resumable"] and said["stage"] == 2 and said["checkpoint"]
    assert "another process of this job has ended" in str(said["reason"])
    assert "Traceback" not in end.said
    assert finished(tmp_path / "run", ranks=2) == uninterrupted


@pytest.mark.row("R8")
@pytest.mark.parametrize("point", ["student.after:4", "data.next:5", "save.after_data:3", "save.before:3"])
def test_a_rank_that_raises_ends_the_others(point: str, tmp_path: Path, uninterrupted: str) -> None:
    end = run(tmp_path / "run", f"{point}:raise@1", ranks=2)
    assert all(end.codes) and end.seconds < SOON, end.said
    name = point.partition(":")[0]
    assert f"{name}: a fault was asked for" in end.said  # the first cause, which names where
    assert finished(tmp_path / "run", ranks=2) == uninterrupted


def impatient(out: Path) -> None:
    distribution = Distribution(timeout=PATIENT)
    distill(
        recipe(),
        data(),
        out=out,
        save_minutes=0,
        device="cpu",
        pm=manager(entry_points=False),
        distribution=distribution,
    )


WAITED = {
    "data.next:5:stall30@1": "the student's update in iteration 1 of stage 1 (anyflow_forward)",
    "data.next:5:stall30@0": "the student's update in iteration 1 of stage 1 (anyflow_forward)",
    "critic.after:2:stall30@1": "the end of iteration 1 of stage 2 (anyflow_on_policy)",
    "save.shard:3:stall30@1": "the checkpoint after 3 iterations of stage 0 (flow_matching)",
}


@pytest.mark.row("R8")
@pytest.mark.parametrize(
    "fault", [*list(WAITED)[:2], *(pytest.param(f, marks=pytest.mark.slow) for f in list(WAITED)[2:])]
)
def test_a_rank_that_stalls_ends_the_others_which_say_what_they_waited_for(
    fault: str, tmp_path: Path, uninterrupted: str
) -> None:
    out, stalled = tmp_path / "run", int(fault[-1])
    end = run(out, fault, ranks=2, job=impatient)
    assert end.codes[1 - stalled] == 1 and all(end.codes) and end.seconds < SOON, end.said
    told = (
        f"another process of this job has not answered within {PATIENT:g} s while rank {1 - stalled} waited for it in "
        f"{WAITED[fault]}"
    )
    assert told in end.said and "Traceback" not in end.said, end.said
    if stalled:
        assert status(out)["state"] == "failed" and told in str(status(out)["reason"])
    assert finished(out, ranks=2) == uninterrupted


@pytest.mark.row("R8")
@pytest.mark.slow
def test_torchrun_fails_when_a_rank_stalls(tmp_path: Path, uninterrupted: str) -> None:
    out = tmp_path / "run"
    script = f"import os; os.environ['FLOWMAP_TIMEOUT'] = '4'\n{SCRIPT}"
    agent = torchrun(out, script, fault="data.next:5:stall12@1")
    said, _ = agent.communicate(timeout=120)
    assert agent.returncode != 0 and "has not answered within 4 s while rank 0 waited for it in the student's" in said
    assert status(out)["state"] == "failed"
    assert finished(out, ranks=2) == uninterrupted


@pytest.mark.parametrize("given", ["soon", "0", "-1", "nan", "inf", ""])
def test_a_timeout_that_is_none_is_refused(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWMAP_TIMEOUT", given)
    with pytest.raises(ValueError, match=r"FLOWMAP_TIMEOUT = '.*': must be a number of seconds > 0"):
        Distribution().check(1, [4])
    Distribution(timeout=3.0).check(1, [4])


def test_the_environment_gives_a_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Distribution().seconds == 1800.0
    monkeypatch.setenv("FLOWMAP_TIMEOUT", "90")
    assert (Distribution().seconds, Distribution(timeout=7.0).seconds) == (90.0, 7.0)


class Observer:
    """Sees badly on one rank alone."""

    @staticmethod
    @hookimpl
    def flowmap_step_end(trainer: Trainer, iteration: int, logs: dict[str, float]) -> None:
        if os.environ["RANK"] == "1":
            raise RuntimeError("an observer that raises")


def observed(out: Path) -> None:
    pm = manager(Observer(), entry_points=False)
    distill(recipe(), data(), out=out, save_minutes=0, device="cpu", pm=pm)


@pytest.mark.row("R8")
def test_an_observer_that_raises_on_one_rank_changes_nothing(tmp_path: Path, uninterrupted: str) -> None:
    assert finished(tmp_path / "run", ranks=2, job=observed) == uninterrupted
    said = (tmp_path / "run.log").read_text()
    assert said.count("raised RuntimeError('an observer that raises')") == 3 and "it is switched off" in said


SCRIPT = """
import sys
from pathlib import Path
from flowmap.training.ranks.distributed import leave
from tests.fault.harness import toy
if __name__ == "__main__":
    toy(Path(sys.argv[1]))
    leave()
"""


def gone(group: int) -> None:
    """Workers outlive an agent that is killed; they end by themselves."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    os.killpg(group, signal.SIGKILL)


@pytest.mark.row("R7")
def test_torchrun_names_the_first_cause_and_starts_again(tmp_path: Path, uninterrupted: str) -> None:
    out = tmp_path / "run"
    agent = torchrun(out, SCRIPT, "--max-restarts", "1", fault="student.after:5:exit@1")
    said, _ = agent.communicate(timeout=120)
    assert agent.returncode == 0, said
    assert "exitcode: 17" in said and "local_rank: 1" in said
    assert status(out)["state"] == "finished" and final_hash(out) == uninterrupted


@pytest.mark.row("R6")
@pytest.mark.slow
def test_the_agent_is_asked_to_stop(tmp_path: Path, uninterrupted: str) -> None:
    out = tmp_path / "run"
    agent = torchrun(out, SCRIPT, fault="data.next:5:stall")
    while not (out / "metrics.jsonl").exists() and agent.poll() is None:
        time.sleep(0.05)
    agent.send_signal(signal.SIGTERM)
    said, _ = agent.communicate(timeout=120)
    assert status(out)["state"] == "preempted", said
    assert finished(out, ranks=2) == uninterrupted


@pytest.mark.row("R1")
def test_kill_the_agent(tmp_path: Path, uninterrupted: str) -> None:
    out = tmp_path / "run"
    agent = torchrun(out, SCRIPT, fault="data.next:6:stall")
    while not list((out / "checkpoints").glob("step_*")) and agent.poll() is None:
        time.sleep(0.05)
    agent.kill()
    agent.communicate(timeout=120)
    gone(agent.pid)
    assert finished(out, ranks=2) == uninterrupted


def at_random(out: Path, seed: int, ranks: int, seconds: float, uninterrupted: str) -> None:
    """Kill twice at an instant that nobody chose, and go on."""
    chance = random.Random(seed)
    for _ in range(2):
        going = start(out, ranks=ranks)
        time.sleep(chance.uniform(0.0, seconds))
        if going.ranks[rank := chance.randrange(ranks)].is_alive():
            going.signal(signal.SIGKILL, rank)
        going.wait()
    assert finished(out, ranks=ranks) == uninterrupted, json.dumps({"seed": seed})


@pytest.mark.row("R1")
@pytest.mark.parametrize("seed", range(2))
def test_kill_at_random(seed: int, tmp_path: Path, uninterrupted: str) -> None:
    at_random(tmp_path / "run", seed, 2, 4.0, uninterrupted)


@pytest.mark.slow
@pytest.mark.row("R1")
@pytest.mark.parametrize("seed", range(2, 42))
def test_kill_at_random_often(seed: int, tmp_path: Path, uninterrupted: str) -> None:
    at_random(tmp_path / "run", seed, 2, 4.0, uninterrupted)
