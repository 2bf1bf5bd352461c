"""FastVideo's causal Wan2.2: two networks that share the noise levels, the first chunk of one frame."""

import json
import shutil
from itertools import pairwise

import pytest
import torch
from flowmap_far.experts import CausalExperts

import flowmap
from flowmap.cli import main
from flowmap.data.synth import Synthesis
from flowmap.experts import TwoExperts, phased_step
from flowmap.model import Sampling
from flowmap.plugins import PluginError
from flowmap.rollout import STEPS, sample
from flowmap.times import grid_of
from tests.published.files import BASE, CPU, wan
from tests.published.test_causal import RECIPE, given, reference, streamed

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
    end = torch.where(t >= u.b, u.b, 0.0)
    want = torch.where(
        (t >= B)[:, None, None, None, None], *(reference(net, x, z, t, text, SIZES) for net in (high, low))
    )
    return float((streamed(u, x, z, t, text, end) - want).abs().max() / want.abs().max())


def test_each_is_the_block_causal_network_on_its_side(student):
    high, low, out = student
    u = flowmap.load(out)
    assert isinstance(u, TwoExperts) and u.boundary == B and u.chunks(7) == SIZES and u.guidance is None
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
    assert own.kind == "phased" and len(own.times) == 8 and own.times[0] == 1.0
    assert all(a > b for a, b in pairwise(own.times))
    for name in ("high", "low"):
        getattr(u, name).register_forward_pre_hook(lambda m, args, name=name: asked.append((name, float(args[1][0]))))
    _, z, text, _ = given(1)
    sample(u, z, {"text": text}, grid=grid_of(own, None, 1.0), step=STEPS[own.kind])
    assert asked == [("high" if t >= B else "low", pytest.approx(t)) for t in own.times]
    assert [name for name, _ in asked] == ["high"] * 4 + ["low"] * 4


def published(u, z, text, times):
    """The steps of `tests.test_phases`, where they are proved, on one chunk."""
    drawn = (torch.randn(z.shape, generator=torch.Generator().manual_seed(k)) for k in range(len(times)))
    for t, r, eps in zip(times, (*times[1:], 0.0), drawn, strict=True):
        end, net = (B, u.high) if t >= B else (0.0, u.low)
        z = z - (t - end) * net(z, torch.full((2,), t), torch.zeros(2), {"text": text})
        if r >= end:
            a = (1 - r) / (1 - end)
            z = a * z + (r**2 - (a * end) ** 2) ** 0.5 * eps
    return z


@torch.no_grad()
def test_the_sampler_is_the_published_one(student):
    out, (_, z, text, _) = student[2], given(1)
    u, spec, own = flowmap.load(out), flowmap.backbone(str(out)), Sampling.of(out)
    drawn = iter(range(8))

    class Drawn:
        def fork(self, *key):
            return self

        def noise_like(self, z):
            return torch.randn(z.shape, generator=torch.Generator().manual_seed(next(drawn)))

    grid = grid_of(own, None, spec.shift, u.boundary)
    made = sample(u, z, {"text": text}, grid=grid, step=STEPS[own.kind], rng=Drawn())
    torch.testing.assert_close(made, published(u, z, text, own.times), atol=2e-5, rtol=0)


def test_streamed_frames_are_those_of_sampling(student):
    out = student[2]
    spec, own = flowmap.backbone(str(out)), Sampling.of(out)
    codec = spec.codec(**CPU)
    noise = flowmap.Rng.seeded(0).noise_like(torch.zeros(1, *codec.latent_shape(13, 32, 32)))
    text, grid = codec.encode_prompts(["a seven moving up"]), torch.tensor([*own.times, 0.0])
    made = sample(flowmap.load(out), noise, text, grid=grid, step=phased_step)
    frames = [*flowmap.stream(out, "a seven moving up", frames=13, size=(32, 32), device="cpu")]
    torch.testing.assert_close(torch.cat(frames), codec.decode(made)[0], atol=1e-4, rtol=0)
    assert Synthesis(prompts=("a seven",), shape=(9, 32, 32)).settled(spec).steps == 8


def test_curve_judges_it_by_its_own_steps(student, tmp_path, capsys):
    (tmp_path / "small.py").write_text(RECIPE.replace("steps=(1,)", "steps=(2,)"))
    command = ["curve", str(student[2]), "--recipe", str(tmp_path / "small.py"), "--out", str(tmp_path / "curve")]
    assert main(command) == 0
    records = json.loads((tmp_path / "curve" / "evaluation" / "nfe.json").read_text())
    assert {(r["sampler"], r["steps"]) for r in records if r["model"] == "student"} == {("phased", 2), ("phased", 8)}
    (tmp_path / "small.py").write_text(RECIPE)
    assert main(command) == 2
    assert "steps = (1,): must be at least 2" in capsys.readouterr().err


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
    assert isinstance(teacher, TwoExperts)
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
