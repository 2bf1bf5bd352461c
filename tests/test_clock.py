"""Times beside the network: exact whatever the network does to its own, right wherever the call is made again."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from flowmap.clock import Clock
from flowmap.time_embedding import keep_exact, lift
from tests.test_planted_defects import planted

K = 8


class Waves(nn.Module):
    """Sinusoids, without numbers of their own."""

    def forward(self, t: Tensor) -> Tensor:
        angles = t[..., None].float() * torch.logspace(0, -3, K // 2)
        return torch.cat([angles.cos(), angles.sin()], -1)


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(K, 16), nn.SiLU(), nn.Linear(16, K))


Path = Callable[[Tensor], Tensor]


class Network(nn.Module):
    """u of z [B, n, K] and a time, which it treats as `path` says, embeds in two places, and may embed in a block."""

    def __init__(self, path: Path = lambda t: t, *, inside: bool = False, other: float | None = None) -> None:
        super().__init__()
        self.path, self.inside, self.other = path, inside, other
        self.waves, self.embed, self.refine = Waves(), mlp(), mlp()
        self.body = nn.Sequential(nn.Linear(K, 16), nn.SiLU(), nn.Linear(16, K))
        self.context: object = None

    def forward(self, z: Tensor, t: Tensor) -> Tensor:
        own = self.waves(self.path(t)).to(z.dtype)

        def block(h: Tensor) -> Tensor:
            return self.body(h + self.refine(own).reshape(h.shape[0], -1, K))

        h = z + self.embed(own).reshape(z.shape[0], -1, K)
        if self.other is not None:
            h = h + self.embed(self.waves(torch.full_like(t, self.other)))[:, None]
        if self.inside:
            return checkpoint(block, h, use_reentrant=False, **({"context_fn": self.context} if self.context else {}))
        return block(h)


def network(*args: Path, **options: object) -> Network:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Network(*args, **options)  # type: ignore[arg-type]


def lifted(net: Network, gamma: float = 0.25, apart: bool = True, rounded: bool = False) -> tuple[Network, Clock]:
    """Both embedders read one clock; the second ones are moved off the first, as training does."""
    net, clock = copy.deepcopy(net), Clock()
    for path in ("embed", "refine"):
        lift(net, path, gamma, clock=clock, features="waves", rounded=rounded)
        if apart:
            with torch.no_grad():
                for p in net.get_submodule(path).then.parameters():  # type: ignore[union-attr]
                    p.mul_(1.5)
    return net, clock


Z = torch.linspace(-1, 1, 2 * 3 * K).reshape(2, 3, K)
T, R = torch.tensor([937.5, 421.0]), torch.tensor([300.25, 0.0])


def wanted(net: Network, t: Tensor, r: Tensor, gamma: float = 0.25) -> Tensor:
    """u of what `lifted` makes of `net`, by hand."""

    def e(embedder: nn.Module) -> Tensor:
        then = copy.deepcopy(embedder)
        for p in then.parameters():
            p.data.mul_(1.5)
        return ((1 - gamma) * embedder(net.waves(t)) + gamma * then(net.waves(r))).reshape(len(Z), -1, K)

    return net.body(Z + e(net.embed) + e(net.refine))


PATHS: dict[str, Path] = {
    "as it came": lambda t: t,
    "rounded": lambda t: t.bfloat16(),
    "truncated": lambda t: t.long(),
    "flattened": lambda t: t.flatten(),
    "repeated for tokens": lambda t: t[:, None].expand(-1, 3),
    "flattened tokens": lambda t: t[:, None].expand(-1, 3).flatten(),
}


@pytest.mark.parametrize("path", PATHS)
def test_the_times_are_exact_on_every_way_that_the_network_s_own_takes(path: str) -> None:
    net = network(PATHS[path])
    rounded = path in ("rounded", "truncated")
    if rounded:  # seen, where it is float32, unless that is said
        u, clock = lifted(net)
        with clock.at(T, R), pytest.raises(ValueError, match=r"embed: call 0 .* another time than the clock's"):
            u(Z, T)
    u, clock = lifted(net, rounded=rounded)
    with clock.at(T, R), torch.no_grad():
        torch.testing.assert_close(u(Z, T), wanted(net, T, R))


def test_a_bfloat16_network_tells_times_apart_that_its_own_way_merges() -> None:
    net = network(lambda t: t.bfloat16()).bfloat16()
    u, clock = lifted(net)
    near = torch.tensor([937.5, 421.0]), torch.tensor([936.0, 421.0])
    assert torch.equal(*(net(Z.bfloat16(), t) for t in near))
    found = []
    for t in near:
        with clock.at(t, R):
            found.append(u(Z.bfloat16(), t))
    assert not torch.equal(*found)


@pytest.mark.parametrize("gamma", [0.1, 0.25, 0.7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_diagonal_is_the_teacher_bit_for_bit(gamma: float, dtype: torch.dtype) -> None:
    net = network().to(dtype)
    u, clock = lifted(net, gamma, apart=False)
    for t in (T, R, torch.tensor([0.7, 999.9])):
        with clock.at(t, t):
            assert torch.equal(u(Z.to(dtype), t), net(Z.to(dtype), t))


def test_a_role_without_a_second_time_reads_the_first_alone() -> None:
    net = network()
    u, clock = lifted(net)
    with clock.at(T):
        assert torch.equal(u(Z, T), net(Z, T))
    exact, clock = copy.deepcopy(net), Clock()
    for path in ("embed", "refine"):
        keep_exact(exact, path, clock=clock, features="waves")
    with clock.at(T):
        assert torch.equal(exact(Z, T), net(Z, T))


def test_tokens_may_have_a_time_each() -> None:
    net = network()
    u, clock = lifted(net)
    t, r = torch.tensor([[900.0, 500.0, 1.0], [3.0, 2.0, 700.0]]), torch.tensor([[1.0, 2.0, 0.5], [0.0, 2.0, 600.0]])
    with clock.at(t, r):
        torch.testing.assert_close(u(Z, t), wanted(net, t, r))
    u.path = lambda t: t[:, :, None].expand(-1, -1, 2).reshape(-1)  # two tokens a frame
    with clock.at(t, r):
        wide = u.embed(u.waves(u.path(t)))
    assert torch.equal(wide[0], wide[1]) and not torch.equal(wide[1], wide[2])


def test_an_embedder_called_for_another_time_is_refused_unless_that_is_said() -> None:
    net = network(other=0.0)
    u, clock = lifted(net)
    with clock.at(T, R), pytest.raises(ValueError, match=r"embed: call 1 .* another time .* `others`"):
        u(Z, T)
    u, clock = copy.deepcopy(net), Clock()
    lift(u, "embed", clock=clock, features="waves", others=(1,))
    lift(u, "refine", clock=clock, features="waves")
    with clock.at(T, T):
        assert torch.equal(u(Z, T), net(Z, T))
    with clock.at(T, R):  # the other time is embedded as the teacher does, with no r in it
        apart = u(Z, T) - net(Z, T)
    assert apart.abs().max() > 0


def test_other_units_than_the_clock_s_are_an_error() -> None:
    u, clock = lifted(network())
    with clock.at(T / 1000, R / 1000), pytest.raises(ValueError, match=r"where the units differ, tell the clock"):
        u(Z, T)


def test_an_embedder_called_for_another_number_of_times_is_refused() -> None:
    u, clock = lifted(network(lambda t: t[:1].expand(3)))
    with clock.at(T, R), pytest.raises(ValueError, match=r"is for 3 times, and the clock has 2"):
        u(Z, T)


def gradients(u: Network, clock: Clock, call: Callable[[], Tensor]) -> dict[str, Tensor]:
    """With another call between forward and backward, as teacher and critic make."""
    with clock.at(T, R):
        made = call()
    with clock.at(T / 3, R / 2), torch.no_grad():
        u(Z, T / 3)
    made.square().mean().backward()
    return {name: p.grad.clone() for name, p in u.named_parameters() if p.grad is not None}


def test_recomputation_embeds_the_times_of_its_own_call() -> None:
    net = network()
    u, clock = lifted(net)
    plain = gradients(u, clock, lambda: u(Z, T))
    u, clock = lifted(network(inside=True))
    u.context = clock.contexts
    again = gradients(u, clock, lambda: u(Z, T))
    assert plain.keys() == again.keys() and any("then" in name for name in plain)
    assert all(torch.equal(plain[name], again[name]) for name in plain)


def test_the_whole_call_may_be_made_again() -> None:
    def called(z: Tensor, t: Tensor, r: Tensor, u: Network, clock: Clock) -> Tensor:
        with clock.at(t, r):
            return u(z, t)

    u, clock = lifted(network())
    plain = gradients(u, clock, lambda: u(Z, T))
    v, clock = lifted(network())
    again = gradients(v, clock, lambda: checkpoint(partial(called, u=v, clock=clock), Z, T, R, use_reentrant=False))
    assert all(torch.equal(plain[name], again[name]) for name in plain)


def test_a_checkpoint_that_was_not_told_of_the_clock_is_an_error_and_not_another_time() -> None:
    u, clock = lifted(network(inside=True))
    with clock.at(T, R):
        made = u(Z, T)
    with pytest.raises(ValueError, match=r"its clock has none: .* context_fn=clock.contexts"):
        made.sum().backward()
    with pytest.raises(ValueError, match=r"outside of `Clock.at`"):
        u(Z, T)


class Called(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net, self.clock = lifted(network())

    def forward(self, z: Tensor, t: Tensor, r: Tensor) -> Tensor:
        with self.clock.at(1000 * t, 1000 * r):
            return self.net(z, 1000 * t)


TIMES = torch.tensor([0.9, 0.4]), torch.tensor([0.3, 0.0])


def test_it_is_exported_with_both_times() -> None:
    u = Called().requires_grad_(False)
    batch = torch.export.Dim("batch", min=1, max=16)
    program = torch.export.export(u, (Z, *TIMES), dynamic_shapes=({0: batch}, {0: batch}, {0: batch}))
    made = program.module()
    torch.testing.assert_close(made(Z, *TIMES), u(Z, *TIMES))
    three = torch.cat([Z, Z[:1]]), torch.tensor([0.2, 0.9, 0.8]), torch.tensor([0.1, 0.2, 0.8])
    torch.testing.assert_close(made(*three), u(*three))
    assert not torch.equal(made(Z, TIMES[0], TIMES[0]), made(Z, *TIMES))


def test_it_compiles_in_one_graph_and_reads_the_clock_each_time() -> None:
    torch._dynamo.reset()
    u = Called()
    compiled = torch.compile(u, backend="aot_eager", fullgraph=True)
    for t, r in (TIMES, tuple(s / 2 for s in TIMES), (TIMES[0], TIMES[0])):
        torch.testing.assert_close(compiled(Z, t, r), u(Z, t, r))
    compiled(Z, *TIMES).sum().backward()
    assert u.net.embed.then[0].weight.grad is not None  # type: ignore[union-attr, index]


def test_autocast_does_not_round_them() -> None:
    u = Called()
    t = torch.tensor([0.9, 0.8985])  # one number in bfloat16, and 1000 times that
    with torch.autocast("cpu", torch.bfloat16):
        e = []
        u.net.embed.register_forward_hook(lambda module, args, out: e.append(out))
        u(Z, t, t)
    assert e[0].dtype == torch.float32 and not torch.equal(e[0][0], e[0][1])


def test_half_times_are_refused() -> None:
    with pytest.raises(ValueError, match=r"now is torch.bfloat16: must be float32"):
        Clock().at(T.bfloat16())
    with pytest.raises(ValueError, match=r"then is \[1\]: must be \[2\]"):
        Clock().at(T, R[:1])


DEFECTS = {
    "a clock that keeps the last call's times": (
        "self.clock.reading = self.before",
        "pass",
        test_a_checkpoint_that_was_not_told_of_the_clock_is_an_error_and_not_another_time,
    ),
    "recomputation at the time that it is then": (
        "return nullcontext(), _Set(self, self.reading, None)",
        "return nullcontext(), nullcontext()",
        test_recomputation_embeds_the_times_of_its_own_call,
    ),
    "times of a frame given to tokens in another order": (
        "f.repeat_interleave(each, 0)",
        "f.repeat(each, *[1] * (f.dim() - 1))",
        test_tokens_may_have_a_time_each,
    ),
    "other times taken for the clock's": (
        "if not off <= SLACK",
        "if False and not off <= SLACK",
        test_an_embedder_called_for_another_time_is_refused_unless_that_is_said,
    ),
    "what the network made of its time in place of the clock's": (
        "now = self._taken(reading.now, x, n)",
        "now = x",
        test_a_bfloat16_network_tells_times_apart_that_its_own_way_merges,
    ),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_planted_defect_is_seen(defect: str) -> None:
    old, new, test = DEFECTS[defect]
    test()
    with (
        planted("flowmap.clock", old, new),
        pytest.raises((AssertionError, ValueError, pytest.fail.Exception)),
    ):
        test()
