"""FastVideo's causal Wan2.2: two networks that share the noise levels, the first chunk of one frame."""

import json
import shutil
from itertools import pairwise

import pytest
import torch
from flowmap_far.experts import ByTime, CausalExperts

import flowmap
from flowmap.cli import main
from flowmap.model import Sampling
from flowmap.plugins import PluginError
from flowmap.rollout import STEPS, sample
from flowmap.times import grid_of
from tests.published.files import BASE, CPU, wan
from tests.published.test_causal import given, reference, streamed

SIZES, B = (1, 3, 3), 0.875


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    """(the high network, the low one, the directory)."""
    at, nets = tmp_path_factory.mktemp("fastvideo"), (wan(1), wan(2))
    shutil.copytree(BASE, at / "base")  # as Wan2.2 A14B
    shutil.copytree(BASE / "transformer", at / "base" / "transformer_2")
    index = json.loads((BASE / "model_index.json").read_text())
    pair = {"transformer_2": ["diffusers", "WanTransformer3DModel"], "boundary_ratio": 0.9}
    (at / "base" / "model_index.json").write_text(json.dumps(index | pair))
    for part, net in zip(("transformer", "transformer_2"), nets, strict=True):
        net.save_pretrained(at / "net" / part)
    command = ["import", str(at / "net"), "--base", str(at / "base"), "--out", str(at / "out")]
    assert main([*command, "--layout", "fastvideo_causalwan"]) == 0
    return *nets, at / "out"


def error(u, high, low):
    x, z, text, t = given(sum(SIZES))  # t is on both sides
    want = torch.where(
        (t >= B)[:, None, None, None, None], *(reference(net, x, z, t, text, SIZES) for net in (high, low))
    )
    return float((streamed(u, x, z, t, text) - want).abs().max() / want.abs().max())


def test_each_is_the_block_causal_network_on_its_side(student):
    high, low, out = student
    u = flowmap.load(out)
    assert isinstance(u, ByTime) and u.chunks(7) == SIZES
    assert error(u, high, low) < 1e-5


def test_defects_are_seen(student):
    high, low, out = student
    u = flowmap.load(out)
    assert error(u, low, high) > 1e-3, "the other way round"
    u.b = 0.95
    assert error(u, high, low) > 1e-3, "another boundary"
    u.b, u.high.partition, u.low.partition = B, (3, 3, 3), (3, 3, 3)
    x, z, text, t = given(7)
    wrong = streamed(u, x, z, t, text) - streamed(flowmap.load(out), x, z, t, text)
    assert wrong.abs().max() > 1e-2, "the first chunk of one frame taken for a whole one"
    u = flowmap.load(out)
    u.extend = lambda cache, x, cond: (u.high.extend(cache and cache[0], x, cond),) * 2
    assert error(u, high, low) > 1e-3, "one history for both"


def test_the_high_expert_makes_the_first_levels(student):
    out = student[2]
    own, u, asked = Sampling.of(out), flowmap.load(out), []
    assert own.kind == "consistency" and len(own.times) == 8 and own.times[0] == 1.0
    assert all(a > b for a, b in pairwise(own.times))
    for name in ("high", "low"):
        getattr(u, name).register_forward_pre_hook(lambda m, args, name=name: asked.append((name, float(args[1][0]))))
    _, z, text, _ = given(1)
    sample(u, z, {"text": text}, grid=grid_of(own, None, 1.0), step=STEPS[own.kind])
    assert asked == [("high" if t >= B else "low", pytest.approx(t)) for t in own.times]
    assert [name for name, _ in asked] == ["high"] * 4 + ["low"] * 4


def test_sampled_from_a_first_frame_and_streamed(student, tmp_path):
    from PIL import Image

    Image.new("RGB", (32, 32), (40, 90, 200)).save(tmp_path / "first.png")
    command = ["sample", str(student[2]), "--prompt", "a seven moving up", "--size", "13x32x32"]
    assert main([*command, "--context", str(tmp_path / "first.png"), "--out", str(tmp_path / "a.gif")]) == 0
    frames = [*flowmap.stream(student[2], "a seven", frames=13, size=(32, 32), device="cpu")]
    assert [len(part) for part in frames] == [1, 6, 6]


def test_the_directory(student):
    out = student[2]
    index = json.loads((out / "model_index.json").read_text())
    assert index["boundary_ratio"] == B and index["transformer_2"] == ["diffusers", "AnyFlowFARTransformer3DModel"]
    spec = flowmap.backbone(str(out))
    assert spec == CausalExperts(str(out)) and spec.sampling() == Sampling.of(out)
    teacher = spec.build(frozenset({"teacher"}), **CPU)["teacher"]
    assert isinstance(teacher, ByTime)
    with pytest.raises(ValueError, match="are sampled, and not trained on"):
        spec.build(frozenset({"student"}), **CPU)


def test_diffusers_does_not_leave_an_expert_out(student):
    from diffusers import DiffusionPipeline

    with pytest.raises(AttributeError, match="CausalExpertsPipeline"):
        DiffusionPipeline.from_pretrained(student[2])


def test_refused(student, tmp_path, capsys):
    net = student[2].parent / "net"
    command = ["import", str(net), "--base", str(BASE), "--out", str(tmp_path / "out"), "--layout"]
    assert main([*command, "krea_realtime"]) == 2
    assert "has two networks: must have one" in capsys.readouterr().err
    assert main(["import", str(net / "transformer"), *command[2:], "fastvideo_causalwan"]) == 2
    assert "has one network: must have two experts" in capsys.readouterr().err
    assert main(command[:-1]) == 2
    assert "do not say how they are meant" in capsys.readouterr().err
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "model_index.json").write_text((student[2] / "model_index.json").read_text())
    with pytest.raises(PluginError, match="there is no scheduler/scheduler_config"):
        flowmap.backbone(str(tmp_path / "half"))
