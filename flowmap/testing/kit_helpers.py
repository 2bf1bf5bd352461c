"""What the checks are made of: tiny networks, comparisons that explain themselves, and a way to run them all."""

from __future__ import annotations

import unittest
from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple, TypeAlias

import attrs
import torch
from torch import Tensor

from .._types import Batch, Cond, Latent, Rng, Role, Time
from ..model import FlowMap, FlowMapSpec
from ..objectives import Networks

Check: TypeAlias = Callable[[FlowMapSpec], None]
ROLES: tuple[Role, ...] = ("student", "teacher", "critic")


class Skip(unittest.SkipTest):
    """The check says nothing about this backbone, for the reason given. pytest shows it as skipped."""


class Result(NamedTuple):
    check: str
    outcome: Literal["passed", "failed", "skipped"]
    message: str


class Results(list[Result]):
    """Of every check, in order; as text a line each, and how many there are of each outcome."""

    def __str__(self) -> str:
        width = max((len(each.check) for each in self), default=0)
        lines = [f"{outcome:7}  {check:{width}}  {message}".rstrip() for check, outcome, message in self]
        outcomes = [each.outcome for each in self]
        return "\n".join([*lines, ", ".join(f"{outcomes.count(o)} {o}" for o in dict.fromkeys(outcomes))])


def run(spec: FlowMapSpec, checks: Iterable[Check]) -> Results:
    """Every check on one backbone; a check that raises anything has failed."""
    return Results(_run(spec, check) for check in checks)


def _run(spec: FlowMapSpec, check: Check) -> Result:
    name = check.__name__.removeprefix("check_")
    try:
        check(spec)
    except Skip as reason:
        return Result(name, "skipped", str(reason))
    except AssertionError as error:
        return Result(name, "failed", str(error))
    except Exception as error:
        return Result(name, "failed", f"{type(error).__name__}: {error}")
    return Result(name, "passed", "")


def require(ok: object, message: str) -> None:
    """An assertion that stays under `python -O`."""
    if not ok:
        raise AssertionError(message)


def close(actual: Tensor, expected: Tensor, message: str, tolerance: float = 1e-5) -> None:
    """Equal, up to `tolerance` times the largest expected element."""
    require(actual.shape == expected.shape, f"{message}: {tuple(actual.shape)} is not {tuple(expected.shape)}")
    largest = expected.abs().max().clamp_min(torch.finfo(torch.float32).tiny)
    error = float(((actual - expected).abs().max() / largest).detach())
    require(error <= tolerance, f"{message}: they differ by {error:.1e} of the largest element, not {tolerance:.0e}")


def same(actual: Tensor, expected: Tensor, message: str) -> None:
    """Equal, bit for bit."""
    require(torch.equal(actual, expected), message)


def build(spec: FlowMapSpec, *roles: Role, dtype: torch.dtype = torch.float32) -> Networks:
    """Tiny networks of all `roles`, or of those named, on the CPU."""
    return spec.tiny().build(frozenset[Role](roles or ROLES), device=torch.device("cpu"), dtype=dtype)


def example(spec: FlowMapSpec, samples: int = 2) -> tuple[Latent, Cond]:
    """Of the shapes that the networks of `build` accept."""
    return spec.tiny().example(samples)


def example_batch(spec: FlowMapSpec, samples: int = 2) -> Batch:
    """With the spec's null condition."""
    x, c = example(spec, samples)
    return Batch(x, c, spec.tiny().null(c))


def times(z: Latent, *values: float) -> list[Time]:
    return [torch.full((len(z),), value) for value in values]


def fields(spec: FlowMapSpec) -> list[str]:
    """The names of a spec's fields; none where it is no attrs class."""
    kind: Any = type(spec)
    return [f.name for f in attrs.fields(kind)] if attrs.has(kind) else []


def part(cond: Cond, rows: slice) -> Cond:
    return {name: value[rows] for name, value in cond.items()}


@torch.no_grad()
def perturb(u: FlowMap, seed: int, size: float = 0.05) -> None:
    """Move everything that u trains, as training would: a fresh adapter does nothing and hides what it is used for."""
    for i, (_, p) in enumerate(sorted(u.trained().items())):
        p.add_(size * Rng.seeded(seed, i).noise_like(p).to(p.dtype))
