"""An interruption for tests of resumed runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from schoolhouse.policy.policy import Policy


@pytest.fixture
def interrupted(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], Any]], None]:
    """Call a function, and interrupt it at the second update of a policy."""

    def interrupt(function: Callable[[], Any]) -> None:
        update, finished = Policy.update, []

        def update_once(*args: Any) -> Any:
            if finished:
                raise KeyboardInterrupt
            finished.append(1)
            return update(*args)

        with monkeypatch.context() as patch:
            patch.setattr(Policy, "update", update_once)
            with pytest.raises(KeyboardInterrupt):
                function()

    return interrupt
