"""ModuleSpec on networks that do something with their time before they embed it, and that call things otherwise."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flowmap import AdamW, ModuleSpec, Recipe, Rng, Stage, TensorData, distill, sample
from flowmap.methods import anyflow
from flowmap.path import Convention
from flowmap.testing import BACKBONE_CHECKS, GaussianFlowMap

CPU, ROLES = torch.device("cpu"), frozenset({"student", "teacher"})


def unet(**options: Any) -> nn.Module:
    from diffusers import UNet2DModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return UNet2DModel(
            **{"sample_size": 8, "in_channels": 2, "out_channels": 2, "block_out_channels": (8, 16), **options},
            layers_per_block=1,
            norm_num_groups=4,
            down_block_types=("DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D"),
        ).eval()


Z = Rng.seeded(4).noise_like(torch.zeros(4, 2, 8, 8))
THOUSAND = Convention(scale=1000.0)
UNET = ModuleSpec(unet, "time_embedding", z=Z, convention=THOUSAND)


@pytest.mark.parametrize(
    "check", [c for c in BACKBONE_CHECKS if "import" not in c.__name__], ids=lambda check: check.__name__
)
def test_a_unet_of_diffusers_passes_the_kit(check: Any) -> None:
    check(UNET)


def test_its_teacher_is_the_unet_bit_for_bit_and_its_student_reads_r() -> None:
    nets = UNET.build(ROLES, device=CPU, dtype=torch.float32)
    t = torch.tensor([0.9, 0.5, 0.123, 1.0])
    with torch.no_grad():
        plain = unet()(Z, 1000 * t).sample
        assert torch.equal(nets["teacher"](Z, t, t / 2, {}), plain)
        assert torch.equal(nets["student"](Z, t, t, {}), plain)
        assert not torch.equal(nets["student"](Z, t, t / 2, {}), plain)


def test_it_is_distilled() -> None:
    stage = Stage(anyflow.forward(guidance=1.0), steps=2, batch=2, optimizer=AdamW(lr=1e-3))
    student = distill(Recipe(UNET, (stage,)), TensorData(Z))
    assert sample(student, Z, {}, steps=2).isfinite().all()


def test_labels_that_go_through_the_same_sinusoids_are_another_matter() -> None:
    """`class_embed_type="timestep"`: the sinusoids are called twice, the time's embedder once."""
    net = unet(class_embed_type="timestep")
    cond = {"class_labels": torch.tensor([3.0, 1.0, 2.0, 7.0])}
    u = ModuleSpec(net, "time_embedding", z=Z, cond=cond, convention=THOUSAND).build(
        ROLES, device=CPU, dtype=torch.float32
    )
    t = torch.full((4,), 0.3)
    with torch.no_grad():
        assert torch.equal(u["student"](Z, t, t, cond), net(Z, 1000 * t, **cond).sample)


def exact(convention: Convention) -> type[nn.Module]:
    """The Gaussian's own velocity, in another convention; its time is embedded by the identity."""

    class Exact(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.zero = nn.Identity(), nn.Parameter(torch.zeros(()))

        def forward(self, z: Tensor, time: Tensor) -> Tensor:
            t = self.embed(time) / convention.scale
            t = t if convention.clock == "t" else 1 - t
            v = GaussianFlowMap(0.5, 0.5)(z, t, t, {}) + self.zero
            return v if convention.predicts == "ε-x" else -v

    return Exact


@pytest.mark.parametrize("scale", [1.0, 1000.0])
@pytest.mark.parametrize("clock", ["t", "1-t"])
@pytest.mark.parametrize("predicts", ["ε-x", "x-ε"])
def test_every_convention_samples_the_gaussian(scale: float, clock: Any, predicts: Any) -> None:
    """Of a data set N(½, ¼) a thousand small steps end where the exact map does."""
    convention = Convention(scale, clock, predicts)
    spec = ModuleSpec(exact(convention)(), "embed", convention=convention)
    teacher = spec.build(frozenset({"teacher"}), device=CPU, dtype=torch.float32)["teacher"]
    noise = Rng.seeded(1).noise_like(torch.zeros(8, 1))
    one, nought = torch.ones(8), torch.zeros(8)
    wanted = GaussianFlowMap(0.5, 0.5).jump(noise, one, nought, {})
    torch.testing.assert_close(sample(teacher, noise, {}, steps=1000), wanted, atol=2e-3, rtol=0)
    wrong = ModuleSpec(exact(convention)(), "embed", convention=Convention(scale, clock, "ε-x"))
    other = wrong.build(frozenset({"teacher"}), device=CPU, dtype=torch.float32)["teacher"]
    off = (sample(other, noise, {}, steps=1000) - wanted).abs().max()
    assert (off > 0.5) == (predicts == "x-ε")


class Rounds(nn.Module):
    """Embeds its time in two places, makes features with a function, and gives out a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.out = nn.Linear(2, 8), nn.Linear(2, 8), nn.Linear(10, 2)

    def forward(self, z: Tensor, t: Tensor) -> tuple[Tensor]:
        f = waves(t.flatten())
        return (z + self.out(torch.cat([z, self.one(f) * self.two(f)], 1)),)


def waves(t: Tensor) -> Tensor:
    return torch.stack([(3 * t).cos(), (3 * t).sin()], -1)


def test_several_embedders_and_features_made_by_a_function() -> None:
    z = Z.flatten(1)[:, :2]
    spec = ModuleSpec(Rounds(), ("one", "two"), features=waves, z=z)
    u = spec.build(ROLES, device=CPU, dtype=torch.float32)
    t = torch.tensor([0.9, 0.5, 0.2, 1.0])
    assert torch.equal(u["student"](z, t, t, {}), spec.network(z, t)[0])
    u["student"](z, t, t / 2, {}).sum().backward()
    for path in ("one", "two"):
        assert u["student"].net.get_submodule(path).then.weight.grad.any()


class Odd(nn.Module):
    def __init__(self, made: Any) -> None:
        super().__init__()
        self.embed, self.made = nn.Linear(1, 2), made

    def forward(self, z: Tensor, t: Tensor) -> Any:
        return self.made(z + self.embed(t[:, None]))


@pytest.mark.parametrize(
    "net, cond, message",
    [
        (Odd(lambda u: {"velocity": u}), {}, r"Odd cannot be called .* it gives a dict: must be a tensor, a tuple"),
        (Odd(lambda u: u[:, :1]), {}, r"Odd gave \[4, 1\]: must be \[4, 2\], as z is"),
        (Odd(lambda u: u), {"label": torch.zeros(4)}, r"z \[4, 2\], .* label \[4\]: TypeError: .*unexpected keyword"),
    ],
)
def test_what_cannot_be_called_is_one_sentence(net: nn.Module, cond: Any, message: str) -> None:
    z, t = Z.flatten(1)[:, :2], torch.full((4,), 0.5)
    for u in ModuleSpec(net, "embed").build(ROLES, device=CPU, dtype=torch.float32).values():
        with pytest.raises(ValueError, match=message) as raised:
            u(z, t, t, cond)
        assert "\n" not in str(raised.value)


def test_a_network_that_does_more_with_its_time_is_told_what_to_say() -> None:
    class Multiplies(Odd):
        def forward(self, z: Tensor, t: Tensor) -> Tensor:
            return z + self.embed((t * torch.ones(len(z)))[:, None])

    z, t = Z.flatten(1)[:, :2], torch.full((4,), 0.5)
    net = Multiplies(lambda u: u)
    student = ModuleSpec(net, "embed").build(ROLES, device=CPU, dtype=torch.float32)["student"]
    with pytest.raises(ValueError, match=r"Multiplies cannot be called.*ModuleSpec\(features=\.\.\.\)"):
        student(z, t, t, {})
    spec = ModuleSpec(net, "embed", features=lambda t: t[:, None])
    student = spec.build(ROLES, device=CPU, dtype=torch.float32)["student"]
    torch.testing.assert_close(student(z, t, t, {}), net(z, t))


def test_other_fields_are_checked() -> None:
    net = Odd(lambda u: u)
    with pytest.raises(TypeError, match=r"ModuleSpec.time = \(\): must be"):
        ModuleSpec(net, ())
    with pytest.raises(ValueError, match="no submodule 'waves'"):
        ModuleSpec(net, "embed", features="waves")
    with pytest.raises(ValueError, match=r"delta = 't-r': must be 'r' where the network's clock is 1 - t"):
        ModuleSpec(net, "embed", delta="t-r", convention=Convention(clock="1-t"))
    with pytest.raises(ValueError, match="predicts"):
        Convention(predicts="x - ε")  # type: ignore[arg-type]
