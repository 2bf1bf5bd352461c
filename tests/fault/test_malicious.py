"""R13: checkpoints and weights that would run code. Nothing is executed, and the message names what was refused."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from flowmap_digits import TINY_WAN
from flowmap_wan21 import Wan21
from safetensors import SafetensorError

from flowmap.model import FlowMapSpec, WeightsError
from flowmap.recipe import digest
from flowmap.training.store import checkpoint, manifest
from tests.toys import Toy

from .harness import newest, recipe, run

MARKER = Path("executed")


class Payload:
    """Unpickling it leaves a file where the process runs."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.write_text, (MARKER, "")


@pytest.fixture(autouse=True)
def nothing_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    monkeypatch.chdir(tmp_path)
    yield
    assert not MARKER.exists()


def test_the_payload_works() -> None:
    pickle.loads(pickle.dumps(Payload()))
    assert MARKER.exists()
    MARKER.unlink()


def unpickled(out: Path) -> None:
    pickle.loads((out / "payload").read_bytes())


def test_it_would_leave_its_mark_from_a_run_too(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    evil(tmp_path / "run" / "payload")
    assert run(tmp_path / "run", job=unpickled).code == 0
    assert MARKER.exists()
    MARKER.unlink()


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("stopped") / "run"
    assert run(out, "data.next:20").code
    return out


def evil(file: Path) -> None:
    file.write_bytes(pickle.dumps(Payload()))


def evil_archive(file: Path) -> None:
    torch.save(Payload(), file)


PLACES: dict[str, Callable[[Path], object]] = {
    "a shard": lambda path: evil(next((path / "state").iterdir())),
    "a shard that is an archive of torch": lambda path: evil_archive(next((path / "state").iterdir())),
    "metadata as torch's own checkpoints have them": lambda path: evil(path / "state" / ".metadata"),
    "one more shard": lambda path: evil_archive(path / "state" / "__0_0.distcp"),
    "weights beside them": lambda path: evil_archive(path / "pytorch_model.bin"),
    "the state": lambda path: evil(path / "train_state.json"),
    "the manifest": lambda path: evil(path / "MANIFEST.json"),
}


def sealed(path: Path) -> None:
    """An attacker can count as well as we can."""
    said = manifest.Manifest.read(path)
    (path / manifest.NAME).unlink()
    manifest.Manifest(manifest.sums(path), said.shapes, said.digest, said.world).write(path)


@pytest.mark.row("R13")
@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES.keys())
def test_a_checkpoint_that_was_meddled_with_is_passed_over(
    place: Callable[[Path], object], stopped: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    shutil.copytree(stopped, out)
    last = newest(out)
    place(last)
    found = checkpoint.latest(out / "checkpoints", digest(recipe()))
    assert found is not None and found.path != last and len(found.passed) == 1


@pytest.mark.row("R13")
@pytest.mark.parametrize("place", list(PLACES.values())[:-1], ids=list(PLACES)[:-1])
def test_one_with_a_manifest_to_match_executes_nothing_either(
    place: Callable[[Path], object], stopped: Path, tmp_path: Path
) -> None:
    """It is refused in a sentence, or what was added to it is never opened."""
    out = tmp_path / "run"
    shutil.copytree(stopped, out)
    last = newest(out)
    place(last)
    sealed(last)
    end = run(out)
    assert "Traceback" not in end.said and end.code in (0, 2), end.said
    if end.code == 2:
        assert "checkpoints" in end.said.splitlines()[-1]


STATES: dict[str, tuple[dict[str, object], int]] = {
    # what it says, and the exit code: another place than its name's is damage, and the one before is taken
    "a path": ({"stage": "../../evil"}, 0),
    "a number that is none": ({"iteration": 1e999}, 0),
    "a list": ({"stage": [1]}, 0),
    "another stage": ({"stage": 77}, 0),
    "less than nothing": ({"iteration": -4}, 0),
    "no trainer": ({"trainer": None}, 2),
    "other means": ({"trainer": {"means": {"x": "y"}, "skipped": {}}}, 2),
    "other roles": ({"trainer": {"means": {}, "skipped": {"nobody": 1}}}, 2),
}


@pytest.mark.row("R13")
@pytest.mark.parametrize("state, code", STATES.values(), ids=STATES.keys())
def test_a_state_that_makes_no_sense_is_a_sentence(
    state: dict[str, object], code: int, stopped: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    shutil.copytree(stopped, out)
    last = newest(out)
    file = last / "train_state.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | state))
    sealed(last)
    end = run(out)
    assert "Traceback" not in end.said and end.code == code, end.said
    if code:
        assert f"{last}: its train_state.json makes no sense" in end.said.splitlines()[-1]
    else:
        assert f"{last.name} is damaged (" in end.said


@pytest.mark.row("R13")
def test_a_student_that_is_a_pickle_is_refused(tmp_path: Path) -> None:
    evil_archive(tmp_path / "model.safetensors")
    spec: FlowMapSpec = Toy()
    with pytest.raises(WeightsError, match=r"model\.safetensors: is damaged"):
        spec.load(tmp_path, device=torch.device("cpu"), dtype=torch.float32)


WEIGHTS = {
    "transformer": "diffusion_pytorch_model.bin",
    "vae": "diffusion_pytorch_model.bin",
    "text_encoder": "pytorch_model.bin",
}

SAFE = {
    "transformer": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
}


@pytest.mark.row("R13")
@pytest.mark.parametrize("folder, name", WEIGHTS.items())
@pytest.mark.parametrize("disguised", [False, True], ids=["as .bin", "as .safetensors"])
def test_weights_of_a_pipeline_that_are_pickles_are_refused(
    folder: str, name: str, disguised: bool, tmp_path: Path
) -> None:
    """The libraries would take a .bin where there are no safetensors."""
    path = shutil.copytree(TINY_WAN, tmp_path / "pipeline")
    for file in [*(path / folder).glob("*.safetensors"), *(path / folder).glob("*.index.json")]:
        file.unlink()
    evil_archive(path / folder / (SAFE[folder] if disguised else name))
    spec = Wan21(str(path), text_tokens=12)
    build = partial(spec.build, frozenset({"student"})) if folder == "transformer" else spec.codec
    with pytest.raises((OSError, ValueError, SafetensorError), match=r"safetensors|header"):
        build(device=torch.device("cpu"), dtype=torch.float32)
