"""What ranks that share the tokens of their samples do in the tests: train, and ask a network alone and together."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from attrs import evolve
from flowmap_far import Far
from flowmap_wan.spec import WanSpec
from flowmap_wan21 import Wan21
from safetensors.torch import save_file
from torch import Tensor, distributed

from flowmap import FlowMap, Recipe, Rng, TensorData, distill
from flowmap._types import Cond, Latent
from flowmap.context_parallel import Context
from flowmap.methods import anyflow
from flowmap.methods.meanflow import meanflow
from flowmap.training.ranks.agree import rank
from flowmap.training.ranks.context_groups import context
from flowmap.training.ranks.distributed import Distribution, joined
from flowmap.training.run import primary

from .cases import CASES, EVERYTHING, on_policy, recipe

CPU = torch.device("cpu")
FOUR_HEADS = {**Wan21().tiny().config, "num_attention_heads": 4}


def uneven() -> Recipe:
    """Three tokens a sample."""
    made = recipe(Wan21(), on_policy(), steps=4)
    assert isinstance(made.data, TensorData)
    return evolve(made, data=evolve(made.data, x=made.data.x[..., :2, :2].clone()))


def wide() -> Recipe:
    made = recipe(Wan21(), on_policy(), steps=4, batch=8)
    return evolve(made, backbone=evolve(made.backbone, config=FOUR_HEADS))


SHARED: Mapping[str, Recipe] = {
    **{name: made for name, made in EVERYTHING.items() if name != "causal, adapters"},
    **{name: CASES[name] for name in ("replayed and recomputed", "accumulated", "mixture", "replicated")},
    "uneven": uneven(),
    "forward mode": recipe(Wan21(), meanflow(), steps=4),
}
"""On two ranks, both with all samples."""
FOUR: Mapping[str, Recipe] = {
    "bidirectional, adapters": CASES["bidirectional, adapters"],
    "causal, adapters": CASES["causal, adapters"],
    "hybrid": CASES["hybrid"],
    "wide": wide(),
}
"""On four ranks: two of the batch and two of the context, and for the last one four of the context."""
SPREAD: Mapping[str, Distribution] = {
    "replicated": Distribution(shard=False, context=2, timeout=60.0),
    "hybrid": Distribution(group=2, context=2, timeout=60.0),
    "wide": Distribution(context=4, timeout=60.0),
}


def train(out: Path, *, cases: Mapping[str, Recipe] = SHARED) -> None:
    for name, made in cases.items():
        spread = SPREAD.get(name, Distribution(context=2, timeout=60.0))
        student = distill(made, device="cpu", distribution=spread)
        if primary():
            save_file({k: p.detach().contiguous() for k, p in student.trained().items()}, out / f"{name}.safetensors")


def resumable() -> Recipe:
    return recipe(Wan21(), anyflow.forward(), on_policy(), steps=3, batch=2)


def go_on(out: Path, *, size: int = 1) -> None:
    distill(resumable(), out=out, save_minutes=0, device="cpu", distribution=Distribution(context=size, timeout=60.0))


# ---------------------------------------------------------------------- one network, asked alone and together
def ask(out: Path) -> None:
    """How far what two ranks say is from what one says, by question; and what it took them."""
    found: dict[str, Any] = {}
    with joined(Distribution(timeout=60.0), CPU):
        together = context(Distribution(context=2, timeout=60.0))
        assert together is not None
        for name, spec, z, cond in questions():
            u = spec.build(frozenset({"student"}), device=CPU, dtype=torch.float32)["student"]
            _jiggle(u)
            alone = answers(u, z, cond)
            spec.split({"student": u}, together)
            for question, answer in answers(u, z, cond, shared=True).items():
                found[f"{name}: {question}"] = float((answer - alone[question]).abs().max())
        found |= taken(together)
    if rank() == 0:
        (out / "answers.json").write_text(json.dumps(found))


def questions() -> Iterator[tuple[str, WanSpec, Latent, Cond]]:
    z, cond = Wan21().example(2)
    yield "even", Wan21().tiny(), z, cond
    yield "uneven", Wan21().tiny(), z[..., :2, :2], cond
    yield "fewer tokens than ranks", Wan21().tiny(), z[:, :1, :, :2, :2], cond
    z, cond = Far().example(2)
    for attention in ("dense", "spans"):
        spec = evolve(Far().tiny(), attention=attention, full=2)
        yield f"causal, {attention}", spec, z, cond
        yield f"causal and uneven, {attention}", spec, z[:, :4, :, :6, :6], cond


def answers(u: FlowMap, z: Latent, cond: Cond, *, shared: bool = False) -> dict[str, Tensor]:
    """shared: gradients are sums over the ranks, each of which counts half."""
    t, r = torch.tensor([0.9, 0.6]), torch.tensor([0.4, 0.6])
    frames = torch.linspace(0.2, 0.9, z.shape[1]).expand(2, -1)
    found = {"frames with a time each": u(z, frames, frames * 0.5, cond).detach()}
    leaf = z.clone().requires_grad_()
    x, seen = u.teacher_forcing(z, cond, Rng.seeded(3))
    made = u(x, t, r, seen)
    probe = torch.linspace(-1, 1, made.numel()).reshape(made.shape)
    z2 = leaf - 0.3 * u(leaf, t, r, cond)  # two calls, one in the other
    twice = u(z2.flip(1), r, r * 0.5, cond)
    loss = (made * probe).mean() + (twice * twice.flip(0)).mean() + z2.square().mean()
    names, parameters = zip(*u.trained().items(), strict=True)
    own = loss * (0.5 if shared else 1.0)
    gradients = torch.autograd.grad(own, (leaf, *parameters), allow_unused=True, materialize_grads=True)
    for gradient in gradients if shared else ():
        distributed.all_reduce(gradient)
    found |= {"training": made.detach(), "two calls": twice.detach()}
    found |= dict(zip(("gradient of z", *(f"gradient of {name}" for name in names)), gradients, strict=True))
    tangents = torch.ones_like(z), torch.ones_like(t), torch.zeros_like(r)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        found["tangent"] = torch.func.jvp(lambda z, t, r: u(z, t, r, cond), (z, t, r), tangents)[1].detach()
    with torch.no_grad():
        cache, at = None, 0
        for k, size in enumerate(u.chunks(z.shape[1])):
            chunk = z[:, at : at + size]
            found[f"chunk {k}"] = u(chunk, t, r, cond, cache)
            cache, at = u.extend(cache, chunk, cond), at + size
    return found


def taken(together: Context) -> dict[str, float]:
    """Exchanges in a call and in its backward pass, and what is kept for that, as a share of what one rank keeps."""
    spec = evolve(Wan21().tiny(), config=FOUR_HEADS, lora=None)
    u: Any = spec.build(frozenset({"student"}), device=CPU, dtype=torch.float32)["student"]
    z, t = Rng.seeded(0).noise_like(torch.zeros(1, 6, 4, 16, 16)), torch.full((1,), 0.5)
    _, cond = spec.example(1)
    with kept(u) as alone:
        u(z, t, t, cond)
    spec.split({"student": u}, together)
    with patch.object(distributed, "all_to_all_single", wraps=distributed.all_to_all_single) as exchanges:
        with kept(u) as shared:
            made = u(z, t, t, cond)
        forward = exchanges.call_count
        made.sum().backward()
        both = exchanges.call_count
        u.checkpointing = True
        u(z, t, t, cond).sum().backward()
        again = exchanges.call_count - both - forward
    share = sum(shared.values()) / sum(alone.values())
    return {"forward": forward, "backward": both - forward, "backward, recomputed": again, "kept": share}


@contextmanager
def kept(u: FlowMap) -> Iterator[dict[int, int]]:
    """Bytes by storage, of what is not a parameter."""
    own, found = {p.untyped_storage().data_ptr() for p in u.parameters()}, dict[int, int]()
    alive = []

    def keep(x: Tensor) -> Tensor:
        alive.append(x)
        if (at := x.untyped_storage().data_ptr()) not in own:
            found[at] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        yield found


def _jiggle(u: FlowMap) -> None:
    """Adapters start at zero, and would leave gradients of nothing."""
    rng = Rng.seeded(5)
    with torch.no_grad():
        for p in u.trained().values():
            p.add_(rng.noise_like(p), alpha=0.05)
