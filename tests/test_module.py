"""A network of one's own, wrapped by ModuleSpec."""

import json

import pytest
import torch
from attrs import evolve
from torch import nn

from flowmap import AdamW, Ema, ModuleSpec, Recipe, Rng, Stage, TensorData, distill, sample
from flowmap.methods import anyflow, flow_matching
from flowmap.recipe import describe, digest
from flowmap.testing import BACKBONE_CHECKS
from flowmap.training.store.checkpoint import CheckpointError

CPU = torch.device("cpu")


class Embed(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t):
        return self.layers(features(t))


def features(t):
    """[B] -> [B, 4]"""
    angles = t.reshape(-1, 1) * torch.tensor([3.0, 20.0])
    return torch.cat([angles.cos(), angles.sin()], 1)


class Net(nn.Module):
    """Points in the plane, with or without a label."""

    def __init__(self, width=32, label=False):
        super().__init__()
        self.embed, self.inp = Embed(width), nn.Linear(2, width)
        self.label = nn.Embedding(3, width) if label else None
        self.body = nn.Sequential(nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 2))

    def forward(self, z, t, label=None):
        h = self.inp(z) + self.embed(t)
        return self.body(h if label is None else h + self.label(label))


class TwoTimes(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(10, 16), nn.SiLU(), nn.Linear(16, 2))

    def forward(self, z, t, r):
        return self.layers(torch.cat([z, features(t), features(r)], 1))


class Column(Net):
    """Hands the time on as a column and scaled, to an embedder that is a plain stack of layers."""

    def __init__(self):
        super().__init__(16)
        self.embed = nn.Sequential(nn.Linear(1, 16), nn.SiLU(), nn.Linear(16, 16))

    def forward(self, z, t):
        return self.body(self.inp(z) + self.embed(100 * t[:, None]))


class Outside(Net):
    """Makes the features of the time itself, so that the embedder never sees a time."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(4, 32)

    def forward(self, z, t):
        return self.body(self.inp(z) + self.embed(features(t)))


def seeded(make, *arguments, **options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make(*arguments, **options)


@pytest.fixture
def net():
    return seeded(Net)


def points(n=512):
    """A Gaussian around (1, -1)."""
    return 0.3 * Rng.seeded(3).noise_like(torch.zeros(n, 2)) + torch.tensor([1.0, -1.0])


Z = Rng.seeded(4).noise_like(torch.zeros(4, 2))
SPECS = {
    "lifted": ModuleSpec(seeded(Net), time="embed", z=Z),
    "label": ModuleSpec(
        *(seeded(Net, label=True), "embed"),
        z=Z,
        cond={"label": torch.tensor([0, 1, 2, 1])},
        uncond={"label": torch.tensor([2])},
    ),
    "column": ModuleSpec(seeded(Column), time="embed", z=Z),
    "two times": ModuleSpec(seeded(TwoTimes), time=None, z=Z),
    "factory": ModuleSpec(lambda: seeded(Net), time="embed", z=Z),
}


# What a spec's module imports is of the class: once is enough.
CASES = [
    (name, check) for name in SPECS for check in BACKBONE_CHECKS if name == "lifted" or "import" not in check.__name__
]


@pytest.mark.parametrize("name, check", [pytest.param(n, c, id=f"{n}-{c.__name__}") for n, c in CASES])
def test_conformance(name, check):
    check(SPECS[name])


def test_guidance_replaces_what_the_spec_says_and_else_what_zeros_can():
    labelled, cond = SPECS["label"], {"label": torch.tensor([0, 1]), "text": torch.ones(2, 3)}
    assert labelled.null(cond) == {"label": torch.tensor([2])}
    (zeros,) = evolve(labelled, uncond={}).null(cond).items()
    assert zeros[0] == "text" and torch.equal(zeros[1], torch.zeros(1, 3))


def test_five_lines(net):
    x, noise = points(), Rng.seeded(5).noise_like(torch.zeros(512, 2))
    # the five lines
    method = anyflow.forward(guidance=1.0, shift=1.0)
    stage = Stage(method, steps=400, batch=128, optimizer=AdamW(lr=3e-3), ema=Ema(0.99))
    recipe = Recipe(ModuleSpec(net, time="embed"), stages=(stage,), data=TensorData(x))
    student = distill(recipe, device="cpu")
    samples = {steps: sample(student, noise, {}, steps=steps) for steps in (1, 4, 16)}
    # and what comes of them
    for steps, found in samples.items():
        assert (found.mean(0) - torch.tensor([1.0, -1.0])).abs().max() < 0.15, steps
        assert found.std(0).max() < 0.5, steps


def test_both_stages_of_anyflow(net):
    x = points(64)
    stages = (
        Stage(flow_matching.flow_matching(shift=1.0), steps=2, batch=8),
        Stage(anyflow.forward(guidance=1.0, shift=1.0), steps=2, batch=8),
        Stage(anyflow.on_policy(guidance=1.0, shift=1.0), steps=2, batch=8),
    )
    student = distill(Recipe(ModuleSpec(net, time="embed"), stages=stages), TensorData(x), device="cpu")
    assert sample(student, Z, {}, steps=2).isfinite().all()


def test_labels_reach_the_network():
    x, label = points(64), torch.arange(64) % 2
    data = TensorData(x, {"label": label}, {"label": torch.tensor([2])})  # 2 is the label of none
    stages = (Stage(anyflow.forward(guidance=2.0, shift=1.0), steps=2, batch=8),)
    spec = ModuleSpec(seeded(Net, label=True), time="embed")
    student = distill(Recipe(spec, stages=stages, data=data), device="cpu")
    a, b = (sample(student, Z, {"label": torch.full((4,), k)}, steps=1) for k in (0, 1))
    assert not torch.allclose(a, b)


def test_the_network_itself_is_left_alone(net):
    before = {name: value.clone() for name, value in net.train().state_dict().items()}
    stages = (Stage(anyflow.forward(guidance=1.0), steps=2, batch=8),)
    distill(Recipe(ModuleSpec(net, time="embed"), stages=stages), TensorData(points(16)), device="cpu")
    assert net.training and isinstance(net.embed, Embed)
    assert before.keys() == net.state_dict().keys()
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_what_is_built(net):
    spec = ModuleSpec(net.requires_grad_(False), time="embed")
    nets = spec.build(frozenset({"student", "teacher", "critic"}), device=CPU, dtype=torch.bfloat16)
    trained = {role: {p.requires_grad for p in u.parameters()} for role, u in nets.items()}
    assert trained == {"student": {True}, "critic": {True}, "teacher": {False}}
    assert {p.dtype for u in nets.values() for p in u.parameters()} == {torch.float32}
    tensors = [p.data_ptr() for u in nets.values() for p in u.parameters()]
    assert len(tensors) == len(set(tensors))
    nets["teacher"].thaw()
    assert {p.dtype for p in nets["teacher"].trained().values()} == {torch.float32}


def test_in_bfloat16_no_role_takes_two_times_for_one():
    """Autocast would round the times of a network that is not lifted before they are features."""

    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.out = nn.Linear(1, 8), nn.Linear(8, 2)

        def forward(self, z, t):
            return z + self.out(self.embed(t[:, None]))

    roles, t = frozenset({"student", "teacher", "critic"}), torch.linspace(0.5, 1, 1000)
    for u in ModuleSpec(Plain(), "embed").build(roles, device=CPU, dtype=torch.bfloat16).values():
        seen = []
        u.net.embed.register_forward_hook(lambda module, args, out, seen=seen: seen.append(out))
        u(torch.zeros(1000, 2), t, t, {})
        assert len(seen[0].unique(dim=0)) == 1000


def test_in_bfloat16_it_is_nearly_the_same(net):
    roles, t = frozenset({"student", "teacher"}), torch.linspace(0.1, 0.9, 4)
    exact, half = (ModuleSpec(net, "embed").build(roles, device=CPU, dtype=d) for d in (torch.float32, torch.bfloat16))
    for role in roles:
        a, b = exact[role](Z, t, t / 2, {}), half[role](Z, t, t / 2, {})
        assert not torch.equal(a, b)
        torch.testing.assert_close(a, b, atol=2e-2, rtol=2e-2)


def test_no_other_precision(net):
    with pytest.raises(ValueError, match=r"dtype = torch\.float64: must be one of torch\.float32"):
        ModuleSpec(net, time="embed").build(frozenset({"student"}), device=CPU, dtype=torch.float64)


def test_a_factory_is_called_once():
    calls = []
    spec = ModuleSpec(lambda: calls.append(1) or Net(), time="embed")
    assert not calls
    nets = spec.build(frozenset({"student", "teacher"}), device=CPU, dtype=torch.float32)
    digest(Recipe(spec, (Stage(anyflow.forward(), steps=1),)))
    t = torch.full((4,), 0.5)
    torch.testing.assert_close(nets["student"](Z, t, t, {}), nets["teacher"](Z, t, t, {}))
    assert len(calls) == 1


def test_tied_weights_are_saved_and_loaded(tmp_path, net):
    net.body[1].weight = net.embed.layers[2].weight
    spec = ModuleSpec(net, time="embed")
    student = spec.build(frozenset({"student"}), device=CPU, dtype=torch.float32)["student"]
    with torch.no_grad():
        student.net.inp.weight += 1
    spec.save(student, tmp_path)
    again = spec.load(tmp_path, device=CPU, dtype=torch.float32)
    t = torch.full((4,), 0.5)
    assert torch.equal(student(Z, t, t / 2, {}), again(Z, t, t / 2, {}))


def test_it_is_described_by_class_and_weights(net):
    described = describe(ModuleSpec(net, time="embed", z=Z))
    assert json.loads(json.dumps(described)) == described
    assert described["module"] == "<Net>" and described["time"] == "embed"
    assert described["fingerprint"].startswith(f"{__name__}.Net ")
    assert repr(ModuleSpec(net, time="embed")).startswith("ModuleSpec(module=Net, time='embed', gamma=0.25, delta='r',")


def recipe_of(net, x=None):
    stages = (Stage(anyflow.forward(guidance=1.0), steps=2, batch=8),)
    return Recipe(ModuleSpec(net, time="embed"), stages=stages, data=TensorData(points(16) if x is None else x))


def test_a_run_is_resumed_on_the_same_weights_only(tmp_path, net):
    first = distill(recipe_of(net), out=tmp_path, device="cpu")
    again = distill(recipe_of(seeded(Net)), out=tmp_path, device="cpu")
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    with torch.no_grad():
        net.inp.bias[0] += 1e-6
    with pytest.raises(CheckpointError, match="another recipe"):
        distill(recipe_of(net), out=tmp_path, device="cpu")


def test_a_run_is_resumed_on_the_same_data_only(tmp_path, net):
    distill(recipe_of(net), out=tmp_path, device="cpu")
    with pytest.raises(CheckpointError, match="another recipe"):
        distill(recipe_of(net, points(17)), out=tmp_path, device="cpu")


@pytest.mark.parametrize(
    "module, time, error, message",
    [
        (lambda: Net(), "embd", ValueError, "Net has no submodule 'embd': there are embed, inp, body, .*mean 'embed'"),
        (Net(), "embd", ValueError, "Net has no submodule 'embd'"),
        (Net(), "", ValueError, "Net has no submodule ''"),
        (Net(), 3, TypeError, "time"),
        (dict, "embed", TypeError, "made a dict: must be an nn.Module"),
        ({}, "embed", TypeError, "ModuleSpec.module is a dict: must be an nn.Module, or a function that makes one"),
    ],
)
def test_errors_say_what_is_allowed(module, time, error, message):
    with pytest.raises(error, match=message):
        _ = ModuleSpec(module, time=time).network


def test_a_network_that_does_not_hand_its_time_on_is_told_so():
    spec = ModuleSpec(seeded(Outside), time="embed", z=Z)
    student = spec.build(frozenset({"student"}), device=CPU, dtype=torch.float32)["student"]
    t = torch.full((4,), 0.5)
    with pytest.raises(ValueError, match="must hand its time on"):
        student(Z, t, t / 2, {})


def test_an_example_must_be_given(net):
    with pytest.raises(ValueError, match=r"ModuleSpec.z = None: give a few latents"):
        ModuleSpec(net, time="embed").example()


@pytest.mark.parametrize("gamma", [0.0, 1.0])
def test_gamma_is_a_share_of_r(net, gamma):
    with pytest.raises(ValueError, match="gamma"):
        ModuleSpec(net, time="embed", gamma=gamma)
