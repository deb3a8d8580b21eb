"""Search trees that a run recorded. A file such as trees/000001.jsonl has one line for each problem of a step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from schoolhouse.runs.atomic_io import read_jsonl

Json = dict[str, Any]


def tree_steps(run: Path) -> list[int]:
    """The steps with recorded trees, in ascending order."""
    return sorted(int(path.stem) for path in (run / "trees").glob("*.jsonl") if path.stem.isdigit())


def read_trees(run: Path, step: int) -> list[Json]:
    """Return the trees of a step, or an empty list if the step has no trees. Raises SchoolError for a damaged file."""
    path = run / "trees" / f"{step:06d}.jsonl"
    return read_jsonl(path) if path.is_file() else []


def tree_summary(tree: Json) -> Json:
    """A recorded tree that contains the number of thoughts instead of the thoughts themselves."""
    return {**{key: value for key, value in tree.items() if key != "tree"}, "thoughts": len(tree["tree"])}
