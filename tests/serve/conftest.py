"""A server of a tiny model, in a process of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from live_server import Listening, listening

TASK = "school:chain?steps=2&styles=full=100"


@pytest.fixture(scope="session")
def model(taught: Callable[[str], Path]) -> Path:
    return taught(TASK)


@pytest.fixture(scope="session")
def server(model: Path) -> Iterator[Listening]:
    with listening("serve", str(model), "--name", "tiny", "--queue", "12", "--slots", "4", ready="/health") as made:
        yield made
