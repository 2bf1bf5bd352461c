"""pytest plugin: `pytest --flowmap-check NAME` runs the conformance kit on an installed backbone, in any directory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from ..model import FlowMapSpec
    from .kit_helpers import Check

OPTION = "--flowmap-check"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.getgroup("flowmap").addoption(
        OPTION,
        action="append",
        default=[],
        metavar="BACKBONE",
        help="run flowmap's conformance kit on this backbone (a registered name, a directory or a hub id) and, "
        "unless paths are given, nothing else",
    )


class BackboneCheck(pytest.Item):
    """One check on one backbone."""

    def __init__(self, *, spec: FlowMapSpec, check: Check, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.spec, self.check = spec, check

    def runtest(self) -> None:
        self.check(self.spec)

    def reportinfo(self) -> tuple[Path, None, str]:
        return self.path, None, self.name

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        if isinstance(excinfo.value, AssertionError):
            return f"{self.name}: {excinfo.value}\n\nwhy it matters: {self.check.__doc__}"
        return super().repr_failure(excinfo, style)


def pytest_ignore_collect(config: pytest.Config) -> bool | None:
    """The kit alone, unless paths are given."""
    given = config.args_source == pytest.Config.ArgsSource.ARGS
    return True if config.getoption(OPTION) and not given else None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(session: pytest.Session, config: pytest.Config, items: list[pytest.Item]) -> None:
    names: list[str] = config.getoption(OPTION)
    if not names:
        return
    from ..plugins import PluginError, backbone
    from .kit_checks import BACKBONE_CHECKS

    for name in names:
        try:
            spec = backbone(name)
        except PluginError as error:
            raise pytest.UsageError(f"{OPTION} {name}: {error}") from None
        for check in BACKBONE_CHECKS:
            title = f"{name}::{check.__name__}"
            items.append(BackboneCheck.from_parent(session, name=title, nodeid=title, spec=spec, check=check))
