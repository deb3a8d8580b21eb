"""What tests of recipes begin with: a way to stop a run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from schoolhouse.policy.policy import Policy


@pytest.fixture
def stopped(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], Any]], None]:
    """Does something, and stops it at the second update of a policy."""

    def stop(work: Callable[[], Any]) -> None:
        update, done = Policy.update, []

        def tired(*args: Any) -> Any:
            if done:
                raise KeyboardInterrupt
            done.append(1)
            return update(*args)

        with monkeypatch.context() as patch:
            patch.setattr(Policy, "update", tired)
            with pytest.raises(KeyboardInterrupt):
                work()

    return stop
