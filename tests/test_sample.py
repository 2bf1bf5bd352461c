"""`flowmap sample`: labelled grids, a file each in the names that VBench reads, rates, progress."""

from __future__ import annotations

import ast
import json
import sys
import types
from contextlib import nullcontext
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any

import av
import imageio.v3 as iio
import numpy as np
import pytest
import torch
from attrs import evolve

from flowmap import distill
from flowmap.cli import main
from flowmap.evaluation.sampling import Maker, named, one_each
from flowmap.model import Sampling
from flowmap.plugins import manager
from tests.evaluation.exact import SHAPE, Exact
from tests.evaluation.test_card import RECIPE
from tests.test_students import Plugin

PROMPTS = ("a red ball", "two cats, asleep")


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run")
    distill(evolve(RECIPE, evaluation=None), out=out, pm=manager(Plugin(), entry_points=False))
    return out / "student"


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pm = manager(Plugin(), entry_points=False)
    monkeypatch.setattr("flowmap.plugins.installed", lambda: pm)
    monkeypatch.chdir(tmp_path)
    Path("prompts.txt").write_text("# two\n" + "\n".join(PROMPTS) + "\n")


def maker(student: Path, **more: Any) -> Maker:
    return Maker.of(Exact(), student, device=torch.device("cpu"), **more)


def frames(path: Path) -> np.ndarray[Any, Any]:
    return np.stack([frame.to_ndarray(format="rgb24") for frame in av.open(str(path)).decode(video=0)])


def rate(path: Path) -> float:
    with av.open(str(path)) as file:
        return float(file.streams.video[0].average_rate or 0)


@pytest.mark.usefixtures("pictures_as_for_users")
@pytest.mark.parametrize("name", ["grid.png", "grid.mp4", "grid.gif"])
def test_a_grid_has_a_row_a_prompt_and_a_column_a_number_of_steps_with_labels(student: Path, name: str) -> None:
    """In each cell the student's own sample; above it black letters on white."""
    arguments = ["sample", str(student), "--prompts", "prompts.txt", "--prompt", "a dog", "--steps", "1", "2", "3"]
    assert main([*arguments, "--out", name, "--seed", "4"]) == 0
    page = (
        iio.imread(name)
        if name.endswith(".png")
        else frames(Path(name))[0]
        if name.endswith("mp4")
        else iio.imread(name)[0]
    )
    f, _, h, w = SHAPE
    wide, factor = (f * w, 2048 // (3 * f * w)) if name.endswith(".png") else (w, 384 // h)
    assert page.shape[1] == pytest.approx(3 * factor * wide + 2 * 4, abs=1)
    made = maker(student)
    cond, noise = made.conditions(["a dog", *PROMPTS]), made.noise(4, 3)
    for column, steps in enumerate((1, 2, 3)):
        expected = made.videos(cond, noise, made.grid(steps))
        x = column * (factor * wide + 4)
        assert (page[:32, x : x + factor * wide].min(axis=(0, 1)) < 80).all()
        for row in range(3):
            y = 32 + row * (32 + factor * h)
            assert (page[y : y + 32, :200].min(axis=(0, 1)) < 80).all()
            cell = page[y + 32 : y + 32 + factor * h, x : x + factor * w]
            like = (expected[row, 0].permute(1, 2, 0) * 255).round().numpy()
            middle = cell[factor // 2 :: factor, factor // 2 :: factor].astype(float)[:h, :w]
            assert np.abs(middle - like).mean() < (1 if name.endswith(".png") else 12), (row, steps)


def test_a_file_each_in_vbench_s_names_of_noises_that_do_not_depend_on_what_else_is_made(
    student: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["sample", str(student), "--prompts", "prompts.txt", "--steps", "2", "--seed", "7"]
    assert main([*arguments, "--vbench", "videos", "--fps", "24"]) == 0
    assert "videos: 10 files, PROMPT-I.mp4" in capsys.readouterr().out
    there = sorted(Path("videos").iterdir())
    assert [file.name for file in there] == sorted(f"{prompt}-{i}.mp4" for prompt in PROMPTS for i in range(5))
    assert {rate(file) for file in there} == {24.0}
    assert frames(there[0]).shape == (SHAPE[0], *SHAPE[2:], 3)
    made = maker(student)
    again = one_each(made, PROMPTS[::-1], 2, 7, 5, Path("others"), 24.0, at_once=1)
    for file in again:
        assert file.read_bytes() == (Path("videos") / file.name).read_bytes()
    first, second = (frames(Path("videos") / named(PROMPTS[0], i)) for i in (0, 1))
    assert np.abs(first.astype(float) - second).mean() > 1


def test_what_is_there_is_not_made_again(student: Path) -> None:
    made, out = maker(student), Path("videos")
    files = one_each(made, PROMPTS, 1, 0, 2, out)
    times = {file: file.stat().st_mtime_ns for file in files}
    files[1].unlink()
    calls = list[int]()

    def bar(total: int) -> Any:
        calls.append(total)
        return nullcontext(lambda n: None)

    assert one_each(made, PROMPTS, 1, 0, 2, out, bar=bar) == files
    assert calls == [1] and {f for f in files if f.stat().st_mtime_ns != times[f]} == {files[1]}


def test_a_planted_defect_a_noise_that_goes_by_the_place_in_the_batch(
    student: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right, places = Maker.noise, count()
    monkeypatch.setattr(Maker, "noise", lambda self, seed, samples: right(self, next(places), samples))
    made = maker(student)
    files = one_each(made, PROMPTS, 1, 0, 2, Path("videos"))
    one_each(made, PROMPTS[::-1], 1, 0, 2, Path("wrong"))
    assert any(file.read_bytes() != (Path("wrong") / file.name).read_bytes() for file in files)


def test_a_prompt_that_no_file_can_be_called_by_is_named(student: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", str(student), "--prompt", "1/2", "--out", "videos"]) == 2
    assert "prompt '1/2': a file is called by it: must have no / and at most 240 bytes" in capsys.readouterr().err
    assert not [*Path("videos").iterdir()]


def test_progress_counts_every_step(student: Path) -> None:
    made, seen = maker(student, rows=(1, 2)), list[int]()
    grid = made.grid(3)
    made.videos(made.conditions([*PROMPTS, "x"]), made.noise(0, 3), grid, seen.append)
    assert sum(seen) == made.calls(3, grid) == 6


def test_device_and_dtype(student: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["sample", str(student), "--prompt", "x", "--out", "x.png", "--device", "cpu", "--dtype", "bfloat16"]) == 0
    )
    assert main(["sample", str(student), "--prompt", "x", "--device", "gpu"]) == 2
    assert "--device gpu: " in capsys.readouterr().err
    assert isinstance(maker(student, own=Sampling("flow_map")), Maker)


def reader(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The reader of the installed vbench, whose own functions find prompts and files; without the networks."""
    spec = find_spec("vbench")
    if spec is None or spec.origin is None:
        pytest.skip("vbench is not installed: pip install vbench==0.1.5 --no-deps")
    home = Path(spec.origin).parent
    wanted = {"get_prompt_from_filename", "save_json", "load_json"}
    body = [n for n in ast.parse((home / "utils.py").read_text()).body if getattr(n, "name", "") in wanted]
    space: dict[str, Any] = {"Path": Path, "json": json, "re": __import__("re"), "os": __import__("os")}
    exec(compile(ast.Module(body, []), "utils.py", "exec"), space)
    utils, ranks = types.ModuleType("vbench.utils"), types.ModuleType("vbench.distributed")
    utils.__dict__.update({name: space[name] for name in wanted}, init_submodules=None)
    ranks.__dict__.update(get_rank=lambda: 0, print0=print)
    monkeypatch.setitem(sys.modules, "vbench.utils", utils)
    monkeypatch.setitem(sys.modules, "vbench.distributed", ranks)
    monkeypatch.delitem(sys.modules, "vbench", raising=False)
    import vbench  # type: ignore[import-not-found]

    return vbench.VBench, home / "VBench_full_info.json"


def test_vbench_s_own_reader_finds_every_sample(
    student: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kind, every = reader(monkeypatch)
    prompts = [one["prompt_en"] for one in json.loads(every.read_text()) if "temporal_style" in one["dimension"]][:3]
    Path("some.json").write_text(json.dumps([{"prompt_en": p, "dimension": ["temporal_style"]} for p in prompts]))
    Path("prompts.txt").write_text("\n".join(prompts))
    assert main(["sample", str(student), "--prompts", "prompts.txt", "--steps", "1", "--vbench", "videos"]) == 0
    bench = kind("cpu", "some.json", "results")
    for mode in ("vbench_standard", "custom_input"):
        found = json.loads(Path(bench.build_full_info_json("videos", mode, ["temporal_style"], mode=mode)).read_text())
        assert {one["prompt_en"] for one in found} == {*prompts}
        assert sum(len(one["video_list"]) for one in found) == 15
    assert "WARNING" not in capsys.readouterr().out
    assert all(named(one["prompt_en"], 4) for one in json.loads(every.read_text()))
