"""Lifting: the diagonal stays as it was, bit for bit, and r has the weight it is given."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from flowmap.time_embedding import TwoTimeEmbedding, lift, mix, pair


class Embedder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(1, 8), nn.SiLU(), nn.Linear(8, 8))

    def forward(self, t: Tensor) -> Tensor:
        return self.layers(1000 * t[..., None])


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.ModuleDict({"time": Embedder()})

    def forward(self, t: Tensor) -> Tensor:
        return self.inner["time"](t)


@pytest.fixture
def embedder() -> Embedder:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Embedder()


T, R = torch.tensor([0.9, 0.5, 0.1]), torch.tensor([0.3, 0.0, 0.1])


@pytest.mark.parametrize("gamma", [0.1, 0.25, 0.5])
def test_the_diagonal_is_the_embedding_of_t_to_round_off(embedder: Embedder, gamma: float) -> None:
    torch.testing.assert_close(TwoTimeEmbedding(embedder, gamma)(pair(T, T)), embedder(T), rtol=1e-6, atol=0)


def test_at_the_default_weight_the_diagonal_is_the_embedding_of_t_bit_for_bit(embedder: Embedder) -> None:
    """¾ e + ¼ e is e in binary floating point, up to one rounding; where it differs it is the last bit."""
    out, e = TwoTimeEmbedding(embedder)(pair(T, T)), embedder(T)
    assert ((out - e).abs() <= torch.finfo(torch.float32).eps * e.abs()).all()


def test_r_has_the_weight_gamma_and_t_the_rest(embedder: Embedder) -> None:
    lifted = TwoTimeEmbedding(embedder, 0.25)
    torch.testing.assert_close(lifted(pair(T, R)), 0.75 * embedder(T) + 0.25 * embedder(R))
    torch.testing.assert_close(mix(torch.zeros(1), torch.ones(1), 0.25), torch.full((1,), 0.25))


def test_the_difference_form_embeds_t_minus_r(embedder: Embedder) -> None:
    lifted = TwoTimeEmbedding(embedder, 0.25, "t-r")
    torch.testing.assert_close(lifted(pair(T, R)), 0.75 * embedder(T) + 0.25 * embedder(T - R))


def test_the_second_embedder_is_a_copy(embedder: Embedder) -> None:
    lifted = TwoTimeEmbedding(embedder)
    before = lifted(pair(T, R))
    with torch.no_grad():
        lifted.then.layers[2].bias.add_(1.0)
    assert torch.equal(lifted.now(T), embedder(T))
    torch.testing.assert_close(lifted(pair(T, R)), before + 0.25)


def test_lift_replaces_the_submodule_in_place() -> None:
    network = Network()
    before = network(T)
    assert lift(network, "inner.time") is network
    torch.testing.assert_close(network(pair(T, T)), before)


def test_lifting_what_is_not_there_names_what_is() -> None:
    with pytest.raises(ValueError, match=r"Network has no submodule 'inner.tme'.*did you mean 'inner.time'"):
        lift(Network(), "inner.tme")


def test_times_may_differ_between_frames(embedder: Embedder) -> None:
    t, r = T[None].expand(2, 3), R[None].expand(2, 3)
    lifted = TwoTimeEmbedding(embedder)
    torch.testing.assert_close(lifted(pair(t, r))[1], lifted(pair(T, R)))


@pytest.mark.parametrize("gamma", [0.0, 1.0, -0.25])
def test_a_weight_that_ignores_one_time_is_an_error(embedder: Embedder, gamma: float) -> None:
    with pytest.raises(ValueError, match=rf"gamma = {gamma}: must be in \(0, 1\)"):
        TwoTimeEmbedding(embedder, gamma)
