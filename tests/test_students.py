"""A student of any kind comes back: by its directory, by its network given again, by the code of its own card."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from attrs import evolve, frozen
from huggingface_hub import ModelCard
from torch import nn

import flowmap
from flowmap import AdamW, ModuleSpec, Recipe, Stage, TensorData, distill
from flowmap.cli import main
from flowmap.kind import kind
from flowmap.methods import anyflow
from flowmap.path import Convention
from flowmap.plugins import PluginError, manager, student
from flowmap.rollout import sample
from flowmap.training.store import status
from tests.evaluation.exact import SHAPE, Exact
from tests.evaluation.test_card import RECIPE as EXACT

NET = """
import torch
from torch import nn

class Embed(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 8)
    def forward(self, t):
        return self.layer(t[..., None])

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.inp, self.embed, self.out = nn.Linear(2, 8), Embed(), nn.Linear(8, 2)
            self.classes = nn.Embedding(3, 8)
    def forward(self, z, t, label):
        return self.out(torch.tanh(self.inp(z) + self.embed(t) + self.classes(label)))

NETWORK = Net()
"""
RECIPE = """
import torch
from plane import Net
from flowmap import AdamW, ModuleSpec, Recipe, Stage, TensorData
from flowmap.methods import anyflow
x, label = torch.arange(16.0).reshape(8, 2) / 16, torch.arange(8) % 3
stage = Stage(anyflow.forward(guidance=1.0, shift=1.0), steps=3, batch=4, optimizer=AdamW(lr=1e-2), ema=None)
RECIPE = Recipe(ModuleSpec(Net, time="embed", gamma=0.3), (stage,), data=TensorData(x, {"label": label}))
"""


@pytest.fixture
def plane(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module with a network of one's own, in the working directory alone."""
    monkeypatch.chdir(tmp_path)
    Path("plane.py").write_text(NET)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "plane", raising=False)
    import plane  # type: ignore[import-not-found]

    yield plane
    monkeypatch.delitem(sys.modules, "plane", raising=False)


def code_of(run: Path) -> str:
    """What the card of a run's student says how it is loaded and sampled."""
    text = (run / "student" / "README.md").read_text()
    code = text.partition("```python\n")[2].partition("```")[0]
    return code.replace("path/of/this/directory", str(run / "student"))


def called(u: Any) -> torch.Tensor:
    z, t, r = torch.ones(2, 2), torch.tensor([0.9, 0.8]), torch.tensor([0.1, 0.5])
    with torch.no_grad():
        return u(z, t, r, {"label": torch.tensor([0, 2])})


def test_a_network_of_ones_own_comes_back_however_it_is_given(plane: Any, tmp_path: Path) -> None:
    Path("mine.py").write_text(RECIPE)
    assert main(["distill", "mine.py", "--out", "run"]) == 0
    folder = tmp_path / "run" / "student"
    said = json.loads((folder / "flowmap.json").read_text())["network"]
    assert (said["module"], said["maker"], said["time"], said["gamma"]) == ("Net", "plane:Net", "embed", 0.3)
    spec = ModuleSpec(plane.Net, time="embed", gamma=0.3)
    expected = called(spec.load(folder, device=torch.device("cpu"), dtype=torch.float32))
    for given in (plane.Net, plane.Net(), spec, "plane:Net", "plane:NETWORK", "plane.py:Net", lambda: plane.Net()):
        assert torch.equal(called(flowmap.load(folder, backbone=given)), expected)
    assert kind(folder) == "weights" and status.lines(tmp_path / "run")["next"].startswith("flowmap.load(")
    namespace: dict[str, Any] = {}
    exec(code_of(tmp_path / "run"), namespace)
    assert namespace["x"].shape == (1, 2) and namespace["x"].isfinite().all()
    card = ModelCard.load(folder / "README.md")
    assert (card.data.library_name, card.data.pipeline_tag) == ("flowmap", None)
    assert "student of `Net`" in card.text and "One call of the network a step, no guidance." in card.text


def test_a_network_that_is_not_given_is_asked_for(plane: Any, capsys: pytest.CaptureFixture[str]) -> None:
    spec = ModuleSpec(plane.Net(), time="embed", convention=Convention(scale=10.0, predicts="x-ε"))
    data = TensorData(torch.zeros(4, 2), {"label": torch.zeros(4, dtype=torch.int64)})
    stage = Stage(anyflow.forward(guidance=1.0, shift=1.0), 1, batch=4, optimizer=AdamW(lr=1e-3))
    distill(Recipe(spec, (stage,), data=data), out="run", device="cpu")
    with pytest.raises(PluginError, match=r"its network, Net, is of your own code, .* give it again, flowmap\.load"):
        flowmap.load("run/student")
    back = student("run/student", plane.Net())
    assert isinstance(back, ModuleSpec) and back.convention == spec.convention
    namespace: dict[str, Any] = {"net": plane.Net()}
    exec(code_of(Path("run")), namespace)
    assert namespace["x"].shape == (1, 2)
    for given, message in {
        "plane:Nett": "AttributeError: module 'plane' has no attribute 'Nett'",
        "nowhere.py:Net": "FileNotFoundError",
        "Net": "must be a registered name, 'package.module:NAME' or 'file.py:NAME'",
    }.items():
        with pytest.raises(PluginError, match=message):
            flowmap.load("run/student", backbone=given)
    assert main(["sample", "run/student", "--prompt", "x"]) == 2
    assert "(--backbone)" in capsys.readouterr().err
    assert main(["sample", "run/student", "--prompt", "x", "--backbone", "plane:Net"]) == 2
    assert "ModuleSpec has no codec: give it conditions and latents; from Python" in capsys.readouterr().err


def test_a_network_of_another_shape_is_refused(plane: Any) -> None:
    Path("mine.py").write_text(RECIPE)
    assert main(["distill", "mine.py", "--out", "run"]) == 0
    net = plane.Net()
    net.inp = nn.Linear(2, 9)
    with pytest.raises(Exception, match=r"net.inp.bias is \[8\]: must be \[9\]"):
        flowmap.load("run/student", backbone=net)


def test_a_student_of_ones_own_is_exported_and_judged_from_its_directory(plane: Any, tmp_path: Path) -> None:
    Path("mine.py").write_text(RECIPE)
    assert main(["distill", "mine.py", "--out", "run"]) == 0
    arguments = ["export", "run/student", "--backbone", "plane:Net", "--to", "torch-export", "--out", "exported"]
    assert main([*arguments, "--sizes", "batch=1:2:4"]) == 0
    u, noise = flowmap.load("run/student", backbone=plane.Net), torch.ones(2, 2)
    cond = {"label": torch.tensor([0, 2])}
    exported = flowmap.export.flow_map("exported")
    torch.testing.assert_close(sample(exported, noise, cond, 3), sample(u, noise, cond, 3))


class Plugin:
    @flowmap.hookimpl
    def flowmap_backbones(self) -> Any:
        return {"exact": Exact()}


def test_a_plugins_student_comes_back_by_its_name_with_its_fields(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pm = manager(Plugin(), entry_points=False)
    monkeypatch.setattr("flowmap.plugins.installed", lambda: pm)
    recipe = evolve(EXACT, backbone=Exact(shift=3.0), evaluation=None)
    distill(recipe, out=tmp_path, pm=pm)
    folder = tmp_path / "student"
    said = json.loads((folder / "flowmap.json").read_text())["network"]
    assert said == {"backbone": "exact", "fields": {"shift": 3.0}}
    assert student(folder) == Exact(shift=3.0)
    namespace: dict[str, Any] = {}
    exec(code_of(tmp_path), namespace)
    assert namespace["videos"].shape == (1, *SHAPE)
    card = ModelCard.load(folder / "README.md")
    assert (card.data.library_name, card.data.pipeline_tag) == ("flowmap", "text-to-video")
    assert main(["sample", str(folder), "--prompt", "x", "--out", str(tmp_path / "x.png")]) == 0
    bare = manager(entry_points=False)
    with pytest.raises(PluginError, match="its backbone is 'exact', which no plugin here has: install"):
        flowmap.load(folder, pm=bare)
    assert isinstance(flowmap.load(folder, backbone=Exact(shift=3.0), pm=bare), flowmap.FlowMap)
    capsys.readouterr()


@frozen
class Half(Exact):
    """One of two experts."""

    def build(self, roles: Any, *, device: Any, dtype: Any) -> Any:
        nets = super().build(roles, device=device, dtype=dtype)
        for net in nets.values():
            net.within = (0.75, 1.0)
        return nets


def test_half_a_student_is_called_half_a_student(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stage = Stage(anyflow.forward(shift=2.0, within=(0.75, 1.0)), 1, batch=4, optimizer=AdamW(lr=1e-9))
    distill(evolve(EXACT, backbone=Half(), stages=(stage,), evaluation=None), out=tmp_path)
    text = (tmp_path / "student" / "README.md").read_text()
    said = "the high expert alone, for t from 0.75 to 1: half of a student, which no sampler takes until the low one is"
    assert f"This is {said} distilled beside it." in text and "```python" not in text.partition("## Files")[0]
    assert status.lines(tmp_path)["next"] == f"it is {said} distilled beside it"
    assert ModelCard.load(tmp_path / "student" / "README.md").data.library_name == "flowmap"
    from flowmap.cli.distill import report

    report(tmp_path)
    out = capsys.readouterr().out
    assert "a pipeline that diffusers loads" not in out and "half of a student, one of two experts" in out


FAMILIES = {
    "far": """
from flowmap_digits import TINY_WAN
from flowmap_far import Far
CONFIG = {
    "patch_size": (1, 2, 2), "num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 4, "out_channels": 4,
    "text_dim": 32, "freq_dim": 32, "ffn_dim": 48, "num_layers": 1, "rope_max_seq_len": 64,
}
NET = Far(TINY_WAN, pretrained=False, config=CONFIG, lora=None, text_tokens=12, partition=(1, 1, 1, 1, 1), long=1.0)
""",
    "row": """
from flowmap import backbone
NET = backbone("pipeline")
""",
}
REST = """
from flowmap_digits.data import MovingDigits
from flowmap import LatentFolder, Recipe, Stage
from flowmap.evaluation import QualityCurve, endpoint_error
from flowmap.methods import anyflow
stage = Stage(anyflow.forward(guidance=1.0), 1, batch=2)
few = {{"steps": (1,), "reference": 1, "seeds": (0,), "samples": 2, "guidance": 1.0}}
judge = QualityCurve(prompts=("seven", "three"), shape={shape}, metrics=(endpoint_error,), **few)
RECIPE = Recipe(NET, (stage,), data={data}, evaluation=judge)
"""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:flex_attention called without")
@pytest.mark.parametrize("family", FAMILIES)
def test_the_code_of_the_card_of_a_pipeline_runs(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.diffusers_rows.test_directories import made

    monkeypatch.chdir(tmp_path)
    data, shape = "MovingDigits(count=4)", (5, 4, 4, 4)
    if family == "row":
        made("sana_video", tmp_path / "pipeline")
        Path("prompts.txt").write_text("seven\nthree\n")
        size = ["--size", "9x32x32", "--steps", "1", "--null-prompt", "_____"]
        assert main(["data", "synth", "pipeline", "--prompts", "prompts.txt", "--out", "data", *size]) == 0
        latents = flowmap.LatentFolder("data").load(student("pipeline"), None, device=torch.device("cpu"))
        data, shape = "LatentFolder('data')", tuple(latents.batch([0]).x.shape[1:])
    Path("mine.py").write_text(FAMILIES[family] + REST.format(data=data, shape=shape))
    assert main(["distill", "mine.py", "--out", "run"]) == 0
    assert kind(Path("run/student")) == "pipeline"
    namespace: dict[str, Any] = {}
    exec(code_of(tmp_path / "run"), namespace)
    assert len(namespace["video"]) == 9
