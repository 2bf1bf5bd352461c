"""The benchmark of `Balanced`'s scale end to end, at a size that says nothing."""

import json

from benchmarks import balanced_scale


def test_it_is_told_and_goes_on_where_it_stopped(tmp_path, capsys):
    balanced_scale.main(["--smoke", "--out", str(tmp_path)])
    first = capsys.readouterr().out
    assert first.count("\n") == 2 + len(balanced_scale.SCALES)
    file = tmp_path / "balanced_scale.json"
    found = json.loads(file.read_text())
    assert {*found["runs"]} == {f"{name}/0" for name in balanced_scale.SCALES}
    before = found["runs"].pop("data/0")
    file.write_text(json.dumps(found))
    balanced_scale.main(["--smoke", "--out", str(tmp_path)])
    assert json.loads(file.read_text())["runs"]["data/0"] == before and capsys.readouterr().out == first
