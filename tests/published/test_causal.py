"""Published causal Wan, brought: chunk after chunk with a cache, it is the block-causal network of the same weights."""

import json
from itertools import accumulate, pairwise

import flowmap_far
import pytest
import torch
from attrs import evolve
from flowmap_digits.data import MovingDigits
from flowmap_far import network
from flowmap_lora import Lora
from flowmap_wan21 import Wan21
from safetensors.torch import save_file

import flowmap
from flowmap import Recipe, Stage
from flowmap.cli import main
from flowmap.methods import anyflow
from flowmap.model import Sampling
from flowmap.rollout import STEPS
from flowmap.times import grid_of
from tests.published.files import BASE, CPU, block_causal, original, wan


def named(net, prefix):
    return {f"{prefix}{name}": value for name, value in original(net).items()}


def wrapped(name):
    """As PyTorch's wrappers for many devices leave a name, inside and before."""
    return "model._fsdp_wrapped_module." + name.replace("blocks.", "blocks.", 1).replace(
        ".self_attn", "._checkpoint_wrapped_module.self_attn"
    )


LAYOUTS = {
    "self_forcing": lambda net, at: torch.save({"generator_ema": named(net, "model."), "step": 600}, at / "net.pt"),
    "causal_forcing": lambda net, at: torch.save(
        {"generator": {wrapped(name): value for name, value in original(net).items()}, "critic": {}}, at / "net.pt"
    ),
    "causal_forcing_framewise": lambda net, at: torch.save({"generator": named(net, "model.")}, at / "net.pt"),
    "krea_realtime": lambda net, at: save_file(named(net, "model."), at / "net.safetensors"),
    "causvid": lambda net, at: torch.save({"generator": named(net, "model.")}, at / "net.pt"),
    "lightx2v_causvid": lambda net, at: torch.save(original(net), at / "net.pt"),
}
"""As each publisher lays its file out."""


def brought(tmp_path, net, layout="self_forcing"):
    LAYOUTS[layout](net, tmp_path)
    (file,), out = tmp_path.glob("net*"), tmp_path / "out"
    said = [] if layout == "self_forcing" else ["--layout", layout]
    assert main(["import", str(file), "--base", str(BASE), "--out", str(out), *said]) == 0
    return out


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    """(the network of the file, the directory)."""
    net = wan()
    return net, brought(tmp_path_factory.mktemp("self_forcing"), net)


def given(frames=9):
    rng = torch.Generator().manual_seed(1)
    x, z = torch.randn(2, 2, frames, 4, 8, 8, generator=rng)
    text = torch.randn(2, 512, 32, generator=rng)
    text[:, 12:] = 0
    return x, z, text, torch.tensor([0.6, 0.9])


@torch.no_grad()
def streamed(u, x, z, t, text, r=0.0):
    """u of every chunk, the history in the cache."""
    cache, made, sizes, r = None, [], u.chunks(z.shape[1]), torch.zeros_like(t) + r
    for clean, noisy in zip(x.split(sizes, 1), z.split(sizes, 1), strict=True):
        made.append(u(noisy, t, r, {"text": text}, cache))
        cache = u.extend(cache, clean, {"text": text})
    return torch.cat(made, 1)


def reference(net, x, z, t, text, sizes):
    ends = [0, *accumulate(sizes)]
    parts = [
        block_causal(net, x[:, :i], z[:, i:j], t[:, None], text, sizes[: k + 1])
        for k, (i, j) in enumerate(pairwise(ends))
    ]
    return torch.cat(parts, 1)


def error(u, net, sizes=(3, 3, 3)):
    x, z, text, t = given(sum(sizes))
    made, want = streamed(u, x, z, t, text), reference(net, x, z, t, text, sizes)
    return float((made - want).abs().max() / want.abs().max())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_streaming_is_the_block_causal_network(layout, tmp_path):
    net = wan()
    out = brought(tmp_path, net, layout)
    sizes = (1, 1, 1, 1) if layout == "causal_forcing_framewise" else (3, 3, 3)
    assert error(flowmap.load(out), net, sizes) < 1e-5
    assert json.loads((out / "flowmap.json").read_text())["imported"]["layout"] == layout


@torch.no_grad()
def test_a_window_streams_beyond_the_positions_of_a_published_student(student):
    u, whole = flowmap.load(student[1]), flowmap.load(student[1])
    x, z, text, t = given(15)
    u.bound(flowmap.Window(1, 1))
    made, want = streamed(u, x, z, t, text), streamed(whole, x, z, t, text)
    assert torch.equal(made[:, :9], want[:, :9])
    assert not torch.equal(made[:, 9:12], want[:, 9:12])


def test_what_a_checkpoint_may_have(tmp_path):
    """Parameters, views of one storage, rows that are columns, bfloat16."""
    net = wan()
    for p in net.parameters():
        p.copy_(p.to(torch.bfloat16))
    weights = {name: torch.nn.Parameter(value.to(torch.bfloat16)) for name, value in original(net).items()}
    flat = torch.cat([weights[f"blocks.{k}.modulation"].detach().flatten() for k in range(4)])
    for k, part in enumerate(flat.chunk(4)):
        weights[f"blocks.{k}.modulation"] = part.view(1, 6, -1)
    weights["head.head.weight"] = weights["head.head.weight"].detach().T.contiguous().T
    torch.save({"generator_ema": weights}, tmp_path / "net.pt")
    assert main(["import", str(tmp_path / "net.pt"), "--base", str(BASE), "--out", str(tmp_path / "out")]) == 0
    assert error(flowmap.load(tmp_path / "out"), net) < 1e-5


def test_every_layout_has_a_test():
    assert {*LAYOUTS, "fastvideo_causalwan"} == {*flowmap_far.flowmap_layouts()}  # that one in test_experts.py


def test_levels_as_published():
    own = {name: layout.times for name, layout in flowmap_far.flowmap_layouts().items()}
    assert own["self_forcing"] == own["krea_realtime"] == pytest.approx((1, 15 / 16, 5 / 6, 5 / 8), abs=1e-7)
    assert own["causvid"] == pytest.approx((1, 0.757, 0.522), abs=1e-7)
    shifted = (0.999875, 0.991244, 0.980381, 0.961221, 0.923960, 0.847545, 8 / 11, 56 / 99, 296 / 759)
    assert own["lightx2v_causvid"] == pytest.approx(shifted, abs=1e-6)


def test_r_has_no_say(student):
    u, (_, z, text, t) = flowmap.load(student[1]), given(3)
    with torch.no_grad():
        assert torch.equal(u(z, t, t, {"text": text}), u(z, t, torch.zeros(2), {"text": text}))


# ------------------------------------------------------------------ defects, planted
def other_time(u, monkeypatch):
    true = network.FarFlowMap.embed
    monkeypatch.setattr(network.FarFlowMap, "embed", lambda self, t, r: true(self, t + 0.1 * (t == 0), r))


def other_positions(u, monkeypatch):
    monkeypatch.setattr(
        network.FarFlowMap,
        "_rope",
        lambda self, pieces, like, true=network.FarFlowMap._rope: true(
            self, [evolve(p, first=0) for p in pieces], like
        ),
    )


def compressed(u, monkeypatch):
    u.full = 1


def boundary(u, monkeypatch):
    u.partition = (2, 3, 3, 3)


def first_of_one(u, monkeypatch):
    u.partition = (1, 3, 3, 3)


@pytest.mark.parametrize("plant", [other_time, other_positions, compressed, boundary, first_of_one])
def test_a_defect_is_seen(plant, student, monkeypatch):
    net, out = student
    u = flowmap.load(out)
    plant(u, monkeypatch)
    assert error(u, net) > 1e-3


@pytest.mark.parametrize("swapped", ["self_attn.k self_attn.v", "cross_attn.k cross_attn.v", "self_attn.q self_attn.k"])
def test_swapped_tensors_are_seen(swapped, tmp_path):
    net = wan()
    a, b = swapped.split()
    turned = {name.replace(a, "?").replace(b, a).replace("?", b): value for name, value in original(net).items()}
    torch.save({"generator_ema": turned}, tmp_path / "net.pt")
    assert main(["import", str(tmp_path / "net.pt"), "--base", str(BASE), "--out", str(tmp_path / "out")]) == 0
    assert error(flowmap.load(tmp_path / "out"), net) > 1e-3


# ------------------------------------------------------------------ what else is done with it
def test_it_is_sampled_at_its_own_levels_by_default(student, tmp_path, capsys):
    out = student[1]
    assert Sampling.of(out) == flowmap.backbone(str(out)).sampling()
    sample = ["sample", str(out), "--prompt", "a seven moving up", "--out"]
    sized = [*sample, str(tmp_path / "own.gif"), "--size", "13x32x32"]
    assert main(sized) == 0
    assert main([*sample, str(tmp_path / "four.gif"), "--size", "13x32x32", "--steps", "4"]) == 0
    assert (tmp_path / "own.gif").read_bytes() == (tmp_path / "four.gif").read_bytes()
    assert main([*sample, str(tmp_path / "a.gif")]) == 2
    assert "does not say which size it was trained on" in capsys.readouterr().err


def test_the_sampler_is_the_published_one(student):
    """Written here again: at every level a jump to data, and new noise down to the next one."""
    out, (_, z, text, _) = student[1], given(3)
    u, spec, times = flowmap.load(out), flowmap.backbone(str(out)), (1.0, 15 / 16, 5 / 6, 5 / 8)
    with torch.no_grad():
        want = z
        for k, t in enumerate(times):
            made = want - t * u(want, torch.full((2,), t), torch.zeros(2), {"text": text})
            if k < 3:
                noise = torch.randn(made.shape, generator=torch.Generator().manual_seed(k))
                want = (1 - times[k + 1]) * made + times[k + 1] * noise
    drawn = iter(range(4))  # one more than is used: at 0 nothing is left of it

    class Drawn:
        def fork(self, *key):
            return self

        def noise_like(self, z):
            return torch.randn(z.shape, generator=torch.Generator().manual_seed(next(drawn)))

    own = spec.sampling()
    got = flowmap.sample(u, z, {"text": text}, grid=grid_of(own, None, spec.shift), step=STEPS[own.kind], rng=Drawn())
    torch.testing.assert_close(got, made, atol=2e-5, rtol=0)


def test_streamed_frames_are_those_of_sampling(student):
    frames = [*flowmap.stream(student[1], "a seven moving up", frames=13, size=(32, 32), device="cpu")]
    assert [len(part) for part in frames] == [5, 6, 2]  # of 3, 3, 1 latent frames
    spec = flowmap.backbone(str(student[1]))
    codec, own = spec.codec(**CPU), spec.sampling()
    noise = flowmap.Rng.seeded(0).noise_like(torch.zeros(1, *codec.latent_shape(13, 32, 32)))
    grid = torch.tensor([1, 15 / 16, 5 / 6, 5 / 8, 0])
    text = codec.encode_prompts(["a seven moving up"])
    made = flowmap.sample(flowmap.load(student[1]), noise, text, grid=grid, step=STEPS[own.kind])
    torch.testing.assert_close(torch.cat(frames), codec.decode(made)[0], atol=1e-4, rtol=0)


@pytest.mark.parametrize("lora", [None, Lora(rank=2, alpha=2)])
def test_lifted_again_the_diagonal_is_kept(lora, student):
    net, out = student
    spec = evolve(flowmap.backbone(str(out)), lora=lora)
    built = spec.build(frozenset({"student", "teacher"}), **CPU)
    x, z, text, t = given()
    with torch.no_grad():
        want = reference(net, x, z, t, text, (3, 3, 3))[:, :3]
        first = z[:, :3]
        for role in ("student", "teacher"):
            torch.testing.assert_close(built[role](first, t, t, {"text": text}), want, atol=2e-5, rtol=0)
        zero = torch.zeros(2)
        assert torch.equal(
            built["teacher"](first, t, zero, {"text": text}), built["teacher"](first, t, t, {"text": text})
        )
        off = built["student"](first, t, zero, {"text": text}) - want
        assert off.abs().max() > 1e-3, "r has a say"


def test_built_in_pieces_it_is_the_same(student):
    spec, roles = evolve(flowmap.backbone(str(student[1])), lora=None), frozenset({"student", "teacher"})
    whole, hollow = spec.build(roles, **CPU), spec.build(roles, device=torch.device("meta"), dtype=torch.float32)
    filled = {}
    spec.fill(hollow, lambda p, rows: filled.update({id(p): rows(slice(None))}), dtype=torch.float32)
    for role in roles:
        ours, theirs = dict(whole[role].named_parameters()), dict(hollow[role].named_parameters())
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], filled[id(p)]) for name, p in theirs.items())
        gates = [of[role].net.condition_embedder.delta_emb_gate for of in (whole, hollow)]
        assert torch.equal(*gates)


def test_trained_on_it_is_an_any_step_student(student, tmp_path):
    """From the command line's own calls: two iterations of AnyFlow's forward stage, with the bidirectional teacher."""
    spec = evolve(flowmap.backbone(str(student[1])), lora=None, text_tokens=12)
    stage = Stage(anyflow.forward(guidance=3.0), steps=2, batch=4)
    recipe = Recipe(spec, (stage,), teacher=Wan21(BASE, lora=None, text_tokens=12), data=MovingDigits(count=8))
    flowmap.distill(recipe, out=tmp_path / "run", device="cpu")
    out = tmp_path / "run" / "student"
    assert Sampling.of(out) == Sampling("flow_map", 3.0, None)
    u = flowmap.load(out)
    assert (u.gamma, u.partition, u.full) == (0.25, (3,) * 7, 64)
    _, z, text, t = given(3)
    with torch.no_grad():
        assert not torch.equal(u(z, t, t, {"text": text}), u(z, t, torch.zeros(2), {"text": text}))


def test_a_causal_network_of_one_time_is_saved_as_one(student, tmp_path):
    """As the teacher of a stage that fine-tunes it: chunks are kept, and the gate is 0."""
    spec = evolve(flowmap.backbone(str(student[1])), lora=None)
    teacher = spec.build(frozenset({"teacher"}), **CPU)["teacher"]
    spec.save(teacher, tmp_path / "out")
    again = flowmap.load(tmp_path / "out")
    assert (again.gamma, again.partition) == (0.0, (3,) * 7)
    assert error(again, student[0]) < 1e-5


RECIPE = """
from flowmap_digits import TINY_WAN
from flowmap_digits.evaluation import curve
from flowmap_wan21 import Wan21
from flowmap import Recipe, Stage
from flowmap.methods import anyflow

RECIPE = Recipe(
    Wan21(TINY_WAN, lora=None, text_tokens=12, shift=1.0), (Stage(anyflow.forward(guidance=3.0), steps=1),),
    evaluation=curve(seeds=(0,), samples=2, steps=(1,), reference=2), name="small",
)
"""


def test_curve_judges_it_at_its_own_levels(student, tmp_path, capsys):
    (tmp_path / "small.py").write_text(RECIPE)
    assert main(["curve", str(student[1])]) == 2
    assert "is a student's directory and no run" in capsys.readouterr().err
    command = ["curve", str(student[1]), "--recipe", str(tmp_path / "small.py"), "--out", str(tmp_path / "curve")]
    assert main(command) == 0
    records = json.loads((tmp_path / "curve" / "evaluation" / "nfe.json").read_text())
    points = {(r["model"], r["sampler"], r["steps"]) for r in records if r["metric"] == "label_accuracy"}
    assert points == {
        ("teacher", "euler", 1), ("teacher", "euler", 2), ("student", "consistency", 1), ("student", "consistency", 4),
    }  # fmt: skip
    manifest = json.loads((tmp_path / "curve" / "evaluation" / "manifest.json").read_text())
    assert manifest["grid"] == {"shift": 5.0, "own": list(Sampling.of(student[1]).times)}
    assert {*(p.name for p in (tmp_path / "curve" / "samples").iterdir())} >= {"student_04_steps.mp4", "grid.png"}
    assert not (student[1] / "README.md").exists()


def test_synthetic_data_is_made_in_its_own_steps(student):
    from flowmap.data.synth import Synthesis

    spec = flowmap.backbone(str(student[1]))
    assert Synthesis(prompts=("a seven",), shape=(9, 32, 32)).settled(spec).steps == 4
