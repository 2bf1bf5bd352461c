"""Previews show what is trained, change nothing of it, and are the same after a kill."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import av
import pytest
import torch
from attrs import evolve
from flowmap_diffusers import Diffusers
from flowmap_digits import TINY_WAN
from flowmap_wan21 import Wan21
from PIL import Image
from torch import Tensor

import flowmap
from flowmap import FlowMapSpec, Recipe, Stage, TensorData, distill
from flowmap.cli import main
from flowmap.evaluation import Previews, QualityCurve, endpoint_error
from flowmap.evaluation.paired import Paired
from flowmap.evaluation.subjects import Subjects
from flowmap.evaluation.watching import UnhealthyError, Watch, work
from flowmap.methods import anyflow
from flowmap.plugins import manager
from flowmap.training.loop import Trainer
from flowmap.training.store.metrics import read
from tests.distributed.test_parity import torchrun
from tests.evaluation.seen import OFTEN, QUIET, RECIPE, SHY, STEADY, Colours, Seen, told
from tests.toys import Toy, data

CPU = torch.device("cpu")
MADE = ["stage_0_00000002", "stage_0_00000004", "stage_0_00000006", "stage_1_00000002", "stage_1_00000004"]
MADE = [*MADE, "stage_1_00000005"]


def run(
    out: Path | None, previews: Previews | None = OFTEN, recipe: Recipe = RECIPE, **given: Any
) -> dict[str, Tensor]:
    torch.manual_seed(0)  # what dropout draws
    student = distill(recipe, out=out, device="cpu", previews=previews, **{"pm": QUIET, **given})
    return {name: p.detach().clone() for name, p in student.state_dict().items()}


def same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(value, b[name]) for name, value in a.items())


def records(path: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in one.items() if k != "time"} for one in read(path / "health.jsonl")]


def files(path: Path) -> dict[str, bytes]:
    return {str(f.relative_to(path)): f.read_bytes() for f in sorted((path / "previews").rglob("*")) if f.is_file()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Tensor]]:
    path = tmp_path_factory.mktemp("whole")
    return path, run(path)


def test_training_is_bit_for_bit_what_it_is_without_them(
    whole: tuple[Path, dict[str, Tensor]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a network with dropout. One that drew from torch's generator would be seen: the end plants it."""
    assert same(whole[1], run(tmp_path / "none", None))
    made = Paired.made

    def draws(self: Paired, point: Any) -> Any:
        for u in self.nets.values():
            u.train()
        return made(self, point)

    monkeypatch.setattr(Paired, "made", draws)
    assert same(whole[1], run(tmp_path / "drawn"))  # dropout in previews, and still undone
    monkeypatch.setattr("flowmap.evaluation.paired.torch.random.fork_rng", lambda devices: nullcontext())
    assert not same(whole[1], run(tmp_path / "planted"))


def test_they_are_made_when_due_and_at_every_stage_s_end(whole: tuple[Path, dict[str, Tensor]]) -> None:
    path, _ = whole
    assert sorted(folder.name for folder in (path / "previews").iterdir()) == MADE
    found = records(path)
    assert [(one["stage"], one["done"]) for one in found] == [(0, 2), (0, 4), (0, 6), (1, 2), (1, 4), (1, 5)]
    assert all({*one["values"]} == {"1", "2"} and one["judged"] == 2 for one in found)
    assert all(
        {"latent_deviation", "saturation", "motion", "paired_error", "variety"} <= {*one["values"]["2"]}
        for one in found
    )
    for name in MADE:
        last = name in ("stage_0_00000006", "stage_1_00000005")
        inside = {file.name for file in (path / "previews" / name).iterdir()}
        assert "grid.png" in inside and ("album.json" in inside) == last
    album = json.loads((path / "previews" / MADE[-1] / "album.json").read_text())
    assert album["prompts"] == ["clip 0", "clip 4"]
    assert [(one["model"], one["steps"]) for one in album["clips"]] == [
        ("teacher", 1), ("teacher", 2), ("teacher", 4), ("student", 1), ("student", 2),
    ]  # fmt: skip
    with Image.open(path / "previews" / MADE[-1] / album["clips"][0]["files"][1]) as picture:
        size = picture.size
    assert size == (2 * album["width"], 2 * album["height"]) == (4, 4)  # four frames


def test_a_run_that_was_killed_makes_the_same_again(
    whole: tuple[Path, dict[str, Tensor]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed right before and right after previews, in the middle of a stage and at its end."""
    after, ended, stops = Watch.after, Watch.ended, iter((("after", 0, 3), ("ended", 0, 6), ("ended", 1, 5)))
    stop: list[tuple[str, int, int]] = [next(stops)]

    class KilledError(BaseException):
        pass

    def falls(kind: str, method: Any) -> Any:
        def call(self: Watch, trainer: Trainer, *at: int) -> Any:
            made = method(self, trainer, *at)
            if stop and stop[0] == (kind, trainer.number, at[0] if at else trainer.stage.steps):
                stop[:] = [one for one in [next(stops, None)] if one is not None]
                raise KilledError
            return made

        return call

    monkeypatch.setattr(Watch, "after", falls("after", after))
    monkeypatch.setattr(Watch, "ended", falls("ended", ended))
    for _ in range(3):
        with pytest.raises(KilledError):
            run(tmp_path, recipe=STEADY, save_minutes=1e-9)
    assert same(run(tmp_path, recipe=STEADY, save_minutes=1e-9), run(tmp_path / "whole", recipe=STEADY))
    assert records(tmp_path) == records(tmp_path / "whole")
    assert files(tmp_path) == files(tmp_path / "whole")


@pytest.mark.slow
def test_two_ranks_make_the_same_previews_and_the_same_weights(tmp_path: Path) -> None:
    """Sharded, so that all ranks must make the same calls; and bit for bit the weights of two ranks without them."""
    torchrun(2, str(tmp_path), worker="tests/evaluation/seen.py")
    run(tmp_path / "alone", recipe=STEADY)
    assert files(tmp_path / "seen").keys() == files(tmp_path / "alone").keys()
    ours, theirs = ([one["values"]["2"] for one in records(tmp_path / name)] for name in ("seen", "alone"))
    for a, b in zip(ours, theirs, strict=True):
        assert a == {name: pytest.approx(value, rel=2e-2, abs=1e-2) for name, value in b.items()}
    seen, unseen = (json.loads((tmp_path / name / "status.json").read_text()) for name in ("seen", "unseen"))
    assert seen["state"] == "finished" and seen["hash"] == unseen["hash"]


def test_an_alarm_is_noted_once_and_stops_the_run_where_asked(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    never = evolve(SHY, alarms=evolve(SHY.alarms, stop=0))
    run(tmp_path / "on", never)
    notes = json.loads((tmp_path / "on" / "status.json").read_text())["notes"]
    assert len(notes) == 1 and notes[0].startswith("stage 0 (anyflow_forward), after 2 iterations: latents spread only")
    with pytest.raises(
        UnhealthyError, match=r"after 4 iterations: latents spread only .*: the run stops, as Alarms.stop = 2"
    ):
        run(tmp_path / "off", SHY)
    status = json.loads((tmp_path / "off" / "status.json").read_text())
    assert status["state"] == "failed" and "latents spread only" in status["reason"] and status["resumable"]
    assert [one["done"] for one in records(tmp_path / "off")] == [2, 4]


def test_without_a_codec_or_a_directory_there_are_none(tmp_path: Path) -> None:
    plain = evolve(RECIPE, backbone=Toy(), data=data())
    run(tmp_path, recipe=plain)
    assert not (tmp_path / "previews").exists() and not (tmp_path / "health.jsonl").exists()
    run(None, recipe=RECIPE)


def test_random_weights_without_a_vae_are_not_sampled_in_vain(capfd: Any, tmp_path: Path) -> None:
    """All of the samples were made, and only then the missing VAE was noticed."""
    spec = Wan21().tiny()
    x, cond = spec.example(4)
    stage = Stage(anyflow.forward(), 1, batch=2)
    recipe = Recipe(spec, (stage,), data=TensorData(x, dict(cond), dict(spec.null(cond))))
    assert work(Previews(), recipe, tmp_path) == (0, 0)
    distill(recipe, out=tmp_path, device="cpu")
    assert "previews" not in capfd.readouterr().err and not (tmp_path / "previews").exists()


@pytest.mark.parametrize("spec", [Wan21(TINY_WAN), Wan21(), Toy(), Seen(), Diffusers(family="ltx")], ids=repr)
def test_a_spec_knows_whether_it_has_a_codec(spec: FlowMapSpec) -> None:
    def loaded() -> bool:
        try:
            return spec.codec(device=CPU, dtype=torch.float32) is not None
        except (NotImplementedError, ValueError):
            return False

    assert spec.has_codec() == loaded()


def test_by_default_a_trial_has_those_of_the_stages_ends_alone() -> None:
    assert not any(Previews().due(done, 99) for done in range(1, 100))
    assert [done for done in range(1, 801) if Previews().due(done, 800)] == [100, 200, 300, 400, 500, 600, 700]
    assert [done for done in range(1, 6001) if Previews().due(done, 6000)][:2] == [750, 1500]


def test_what_fails_leaves_the_run_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    def broken(*unused: object, **given: object) -> Colours:
        raise RuntimeError("the decoder is broken")

    monkeypatch.setattr(Seen, "codec", broken)
    run(tmp_path)
    assert "no previews from here on: RuntimeError: the decoder is broken" in capfd.readouterr().err
    assert json.loads((tmp_path / "status.json").read_text())["state"] == "finished"
    assert not any((tmp_path / "previews").iterdir()) if (tmp_path / "previews").exists() else True


def test_prompts_are_given_or_the_evaluation_s_or_what_the_data_shows() -> None:
    seen = Seen()
    judge = QualityCurve(("one", "two", "three", "four"), (endpoint_error,), (4, 2, 2, 2))
    given = Subjects.find(("a", "bb", "ccc"), 2, judge, seen, told(), CPU)
    assert given.prompts == ("a", "bb", "ccc")
    assert torch.equal(given.cond["text"], Colours().encode_prompts(("a", "bb", "ccc"))["text"])
    assert torch.equal(given.null["text"], Colours().encode_prompts(("",))["text"])
    assert Subjects.find((), 2, judge, seen, told(), CPU).prompts == ("one", "three")
    own = Subjects.find((), 3, None, seen, told(), CPU)
    assert own.prompts == ("clip 0", "clip 2", "clip 5")
    assert torch.equal(own.cond["text"], told().cond["text"][[0, 5, 10]])
    assert Subjects.find((), 20, None, seen, told(), CPU).prompts == tuple(
        f"clip {k}" for k in (0, 1, 2, 3, 4, 5, 6, 7)
    )
    assert Subjects.find((), 2, None, seen, data(), CPU).prompts == ("sample 0 of the data", "sample 8 of the data")


def test_trackers_and_plugins_get_them(tmp_path: Path) -> None:
    logged: list[tuple[int, int, str]] = []
    shown: list[tuple[int, int, dict[str, Path]]] = []

    class Mine:
        def log(self, stage: int, iteration: int, values: Mapping[str, float]) -> None:
            logged.extend((stage, iteration, name) for name in values if name == "at 2 steps/saturation")

        def show(self, stage: int, iteration: int, pictures: Mapping[str, Path]) -> None:
            assert all(file.is_file() for file in pictures.values())
            shown.append((stage, iteration, dict(pictures)))

        def close(self) -> None:
            pass

    class Plugin:
        @flowmap.hookimpl
        def flowmap_trackers(self) -> dict[str, Any]:
            return {"mine": lambda run: Mine()}

        @flowmap.hookimpl
        def flowmap_preview(self, trainer: Trainer, iteration: int, folder: Path) -> None:
            heard.append((trainer.number, iteration, folder.name))

    heard: list[tuple[int, int, str]] = []
    pm = manager(entry_points=False)
    pm.register(Plugin(), name="mine")
    run(tmp_path, pm=pm, track=["mine"])
    assert [name for *_, name in heard] == MADE
    assert [(a, b) for a, b, _ in logged] == [(a, b) for a, b, _ in heard] == [(a, b) for a, b, _ in shown]
    assert len(shown) == len(MADE)
    folder = tmp_path / "previews" / MADE[0]
    told = {"teacher and student": folder / "grid.png", "prompts": folder / "prompts.txt"}
    assert shown[0][2].items() >= told.items()
    ends = [files for _, _, files in shown if "teacher and student, moving" in files]
    assert len(ends) == 2  # stages
    with av.open(str(ends[0]["teacher and student, moving"])) as file:
        assert len({frame.to_ndarray(format="rgb24").tobytes() for frame in file.decode(video=0)}) > 1
    assert len(told["prompts"].read_text().splitlines()) >= 1


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"steps": (4, 2)}, r"Previews.steps = \(4, 2\): must increase"),
        ({"steps": ()}, r"Previews.steps = \(\)"),
        ({"seeds": ()}, r"Previews.seeds"),
        ({"every": 0}, r"Previews.every = 0"),
        ({"alarms": 3}, r"Previews.alarms = 3"),
    ],
)
def test_settings_are_checked_when_they_are_made(settings: dict[str, Any], said: str) -> None:
    with pytest.raises((ValueError, TypeError), match=said):
        Previews(**settings)


def test_the_command_line_says_when_and_of_what(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for given, said in (
        (["--previews", "0"], "0: must be a whole number, at least 1, or never"),
        (
            ["--previews", "never", "--prompts", "x.txt"],
            "--prompts is of previews, and --previews never leaves them out",
        ),
        (["--prompts", str(tmp_path / "no.txt")], "no.txt': there is no such file"),
    ):
        assert main(["distill", "quickstart", *given]) == 2
        assert said in capsys.readouterr().err
