"""Search trees that a run recorded: trees/000001.jsonl, a line for each problem of a step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from schoolhouse.runs.atomic_io import read_jsonl

Json = dict[str, Any]


def steps_of(folder: Path) -> list[int]:
    """The steps of which there are trees, in order."""
    return sorted(int(path.stem) for path in (folder / "trees").glob("*.jsonl") if path.stem.isdigit())


def trees(folder: Path, step: int) -> list[Json]:
    """The trees of a step, none where there are none. Raises SchoolError where the file is damaged."""
    path = folder / "trees" / f"{step:06d}.jsonl"
    return read_jsonl(path) if path.is_file() else []


def summary(tree: Json) -> Json:
    """A tree without its thoughts, of which only the number is told."""
    return {**{key: value for key, value in tree.items() if key != "tree"}, "thoughts": len(tree["tree"])}
