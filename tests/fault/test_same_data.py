"""R11: a run that goes on cannot always tell whether its data is that which it began with; then it says so."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from flowmap._types import Batch
from flowmap.atomic import write_json
from flowmap.data import fingerprint
from flowmap.training.run import Run
from tests.toys import data

from .harness import KILLED, finished, recipe, run, status

pytestmark = pytest.mark.row("R11")


def gone(file: Path) -> None:
    file.unlink()


def torn(file: Path) -> None:
    file.write_text("")


def none(file: Path) -> None:
    file.write_text('{"fingerprint": null}')


@pytest.mark.parametrize("change", [gone, torn, none])
def test_a_resume_that_cannot_tell_its_data_says_so(change: Callable[[Path], None], tmp_path: Path) -> None:
    assert run(tmp_path, "save.after_rename:2").codes == (KILLED,)
    began = (tmp_path / "data.json").read_text()
    change(tmp_path / "data.json")
    finished(tmp_path)
    assert status(tmp_path)["notes"][-1] == (
        "not known whether this is the data that the run began with: data.json does not say what it began with"
    )
    assert (tmp_path / "data.json").read_text() == began  # from here on it is compared with


class Nameless:
    """Data that does not tell itself from others."""

    def __len__(self) -> int:
        return 8

    def batch(self, index: Sequence[int]) -> Batch:
        return data(8).batch(index)


def test_data_without_a_fingerprint_is_told_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Run(tmp_path) as first:
        first.start(recipe())
        first.data_is(fingerprint(Nameless()), resumed=False)
    assert "the data has no fingerprint: a resumed run will not notice other data" in capsys.readouterr().err
    assert status(tmp_path)["notes"] == []
    for known in (None, "abc"):
        write_json(tmp_path / "data.json", {"fingerprint": known})
        with Run(tmp_path) as again:
            again.start(recipe())
            again.data_is(None, resumed=True)
        why = "data.json does not say what it began with" if known is None else "its data has no fingerprint now"
        assert status(tmp_path)["notes"] == [f"not known whether this is the data that the run began with: {why}"]
        assert json.loads((tmp_path / "data.json").read_text()) == {"fingerprint": known}


def test_data_that_agrees_is_not_told_of(tmp_path: Path) -> None:
    assert run(tmp_path, "save.after_rename:2").codes == (KILLED,)
    finished(tmp_path)
    assert not [note for note in status(tmp_path)["notes"] if "data" in note]
