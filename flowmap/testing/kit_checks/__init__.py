"""What a backbone must do for the trainer to be right: one function a property, on `spec.tiny()`.

Each raises an AssertionError that says what is wrong, or `Skip`. They need no pytest.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from ...model import FlowMapSpec
from ..kit_helpers import Check, Results, run
from . import causal, network, reference, roles, spec

if TYPE_CHECKING:
    import pytest

BACKBONE_CHECKS: tuple[Check, ...] = tuple(
    function
    for module in (spec, network, reference, causal, roles)
    for name, function in vars(module).items()
    if name.startswith("check_")
)


def check_backbone(backbone: FlowMapSpec) -> Results:
    """(check, outcome, message) of every check; outcome is "passed", "failed" or "skipped". Printed, a line each."""
    return run(backbone, BACKBONE_CHECKS)


def parametrize_with_backbone_checks(specs: Iterable[FlowMapSpec]) -> pytest.MarkDecorator:
    """Decorates a test of (spec, check), which calls `check(spec)`."""
    import pytest

    cases = [(s, check, f"{type(s).__name__}-{check.__name__}") for s in specs for check in BACKBONE_CHECKS]
    return pytest.mark.parametrize("spec, check", [pytest.param(s, c, id=name) for s, c, name in cases])
