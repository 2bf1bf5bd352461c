"""Plans of few draws: they decide the mean of what is drawn, and no call's price."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from flowmap.planning import plan

MODULE = sys.modules[plan.__module__]
AS_FOR_USERS = {name: getattr(MODULE, name) for name in ("DRAWS", "HARDEST_OF")}


@pytest.fixture(autouse=True, scope="module")
def few_draws() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MODULE, "DRAWS", 1)
        patch.setattr(MODULE, "HARDEST_OF", 4)
        yield


@pytest.fixture
def draws_as_for_users(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, count in AS_FOR_USERS.items():
        monkeypatch.setattr(MODULE, name, count)
