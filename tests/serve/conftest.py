"""A server of a tiny model, in a process of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from live_server import RunningServer, running_server

TASK = "school:chain?steps=2&styles=full=100"


@pytest.fixture(scope="session")
def model(sft_model: Callable[[str], Path]) -> Path:
    return sft_model(TASK)


@pytest.fixture(scope="session")
def server(model: Path) -> Iterator[RunningServer]:
    """It samples 4 completions at once, and 12 more may wait."""
    limits = ("--max_num_seqs", "4", "--max_queued_seqs", "12")
    with running_server("serve", str(model), "--served_model_name", "tiny", *limits, ready_path="/health") as server:
        yield server
