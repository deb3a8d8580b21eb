"""Recipes as `school train` runs them, and the shape of a model that is small enough for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from schoolhouse.config import BaseConfig
from schoolhouse.recipes import load_recipe
from schoolhouse.runs.run import Run

TINY: dict[str, Any] = {
    "hidden_size": 32,
    "num_layers": 1,
    "num_heads": 1,
    "num_kv_heads": 1,
    "head_dim": 32,
    "intermediate_size": 64,
    "max_seq_len": 256,
}
"""Keys of the group `model` of pretraining."""


def train(folder: Path, config: BaseConfig) -> Run:
    """Run the recipe that a config belongs to, and return the closed run."""
    module = type(config).__module__
    with Run.open(folder, config, module.rpartition(".")[2]) as run:
        load_recipe(module).train(config, run)
    return run


def metrics_text(run: Run) -> str:
    """All metrics of a run, to the last digit."""
    return (run.folder / "metrics.jsonl").read_text()
