"""What every flow map can do once `forward` is written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from flowmap import Rng
from flowmap.path import data_from_velocity
from flowmap.testing import CountingFlowMap, GaussianFlowMap, GuidedGaussianFlowMap
from tests.toys import Toy, ToyFlowMap

CPU = torch.device("cpu")
Z = torch.linspace(-2, 2, 5)[:, None]
T, R = torch.full((5,), 0.8), torch.full((5,), 0.3)


def test_a_jump_is_z_minus_the_gap_times_u() -> None:
    u = GaussianFlowMap()
    torch.testing.assert_close(u.jump(Z, T, R, {}), Z - 0.5 * u(Z, T, R, {}))
    assert torch.equal(u.jump(Z, T, T, {}), Z)


def test_denoising_is_the_velocity_followed_to_the_end() -> None:
    u = GaussianFlowMap()
    torch.testing.assert_close(u.denoise(Z, T, {}), data_from_velocity(Z, u(Z, T, T, {}), T))


@pytest.mark.parametrize("w", [0.0, 1.0, 3.0])
def test_guidance_of_a_velocity_is_the_standard_one(w: float) -> None:
    """v_∅ + w (v_c - v_∅): w = 1 is none."""
    u, c, null = GuidedGaussianFlowMap(w=1.0), {"label": torch.ones(5)}, {"label": torch.zeros(1)}
    v, v_null = u(Z, T, T, c), u(Z, T, T, {"label": torch.zeros(5)})
    torch.testing.assert_close(u.velocity(Z, T, c, null, w), v_null + w * (v - v_null))


def test_guidance_is_one_call_of_both_branches_and_none_where_there_is_nothing_to_guide() -> None:
    u, c, null = CountingFlowMap(GuidedGaussianFlowMap(w=1.0)), {"label": torch.ones(5)}, {"label": torch.zeros(1)}
    with torch.no_grad():
        u.velocity(Z, T, c, null, 4.0)
        assert u.plain == 10
        u.velocity(Z, T, c, null, 1.0)
        u.velocity(Z, T, c, None, 1.0)
    assert (u.graph, u.plain) == (0, 20)


def test_guidance_with_nothing_to_compare_with_is_refused() -> None:
    u = CountingFlowMap(GuidedGaussianFlowMap(w=1.0))
    with pytest.raises(ValueError, match=r"guidance w = 4\.0 needs a null condition"):
        u.velocity(Z, T, {"label": torch.ones(5)}, {}, 4.0)


def test_guiding_a_causal_network_keeps_its_history() -> None:
    """The unconditional branch sees the clean frames that the conditional one sees: only the text is dropped."""
    u = Toy(causal=True).build(frozenset({"student"}), device=CPU, dtype=torch.float32)["student"]
    x, c = Toy().example()
    noise, t = Rng.seeded(1).noise_like(x), torch.full((2,), 0.8)
    _, forced = u.teacher_forcing(x, c, Rng.seeded(0))
    null = {"text": torch.zeros(1, 3)}
    expected = u(noise, t, t, {**forced, "text": torch.zeros(2, 3)})
    torch.testing.assert_close(u.velocity(noise, t, forced, null, 0.0), expected)
    assert not torch.allclose(expected, u(noise, t, t, {"text": torch.zeros(2, 3)}))


def test_what_is_trained_is_what_requires_gradients_and_thawing_makes_it_all() -> None:
    u = GaussianFlowMap().requires_grad_(False)
    assert u.trained() == {}
    u.bias.requires_grad_(True)
    assert {*u.trained()} == {"bias"}
    u.thaw()
    assert {*u.trained()} == {"mean", "std", "scale", "bias"}


@pytest.mark.parametrize("spec", [Toy(), Toy(shared=True)])
def test_a_student_is_saved_as_safetensors_and_loaded(spec: Toy, tmp_path: Path) -> None:
    u = spec.build(frozenset({"student"}), device=CPU, dtype=torch.float32)["student"]
    assert isinstance(u, ToyFlowMap)
    with torch.no_grad():
        for p in u.trained().values():
            p.add_(0.1)
    spec.save(u, tmp_path / "student")
    assert [file.name for file in (tmp_path / "student").iterdir()] == ["model.safetensors"]
    loaded = spec.load(tmp_path / "student", device=CPU, dtype=torch.float32)
    z, c = spec.example()
    t = torch.full((2,), 0.8)
    assert torch.equal(loaded(z, t, t / 2, c), u(z, t, t / 2, c))


def test_a_backbone_without_a_codec_says_what_to_give_instead() -> None:
    with pytest.raises(NotImplementedError, match="Toy has no codec: give it conditions and latents"):
        Toy().codec(device=CPU, dtype=torch.float32)
