"""Run folders for the board, and a cache folder of their own for the index."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sample_runs import Json, write_run


@pytest.fixture
def run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Makes a run with these rollouts, by step."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def make(name: str = "run", rollouts: dict[int, list[Json]] | None = None, **config: Any) -> Path:
        return write_run(tmp_path / "runs" / name, rollouts, **config)

    return make
