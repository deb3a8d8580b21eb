"""An SQLite index of a run's rollouts, so that a million rollouts can be filtered, sorted and paged quickly.

The text of the rollouts stays in rollouts/*.jsonl. The index has the position of each line and the values for filters
and sorting. A separate process writes the index to the user's cache folder and updates it while the run grows.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import sys
from collections import defaultdict
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, NamedTuple

from schoolhouse.types import SchoolError

Correctness = Literal["", "correct", "incorrect", "ungraded"]
SortBy = Literal["step", "reward", "completion_tokens", "group_variance"]

_VERSION = 4  # version of the tables; an index of another version is ignored
_MAX_LISTED_PROBLEMS = 300  # a query lists up to this many problems; if more match, it tests every rollout
_COLUMNS = (
    "step file start size problem sample reward completion_tokens finish_reason group_mean group_variance group_size"
).split()
_GROUP_COLUMNS = ("group_mean", "group_variance", "group_size")
_SCHEMA = """
create table if not exists files (name text primary key, size integer);
create table if not exists rollouts (
  step integer, file text, start integer, size integer, problem text, sample integer, reward real,
  completion_tokens integer, finish_reason text, group_mean real, group_variance real, group_size integer);
create table if not exists problems (problem text primary key) without rowid;
"""
_INDEXES = """
create index if not exists by_step on rollouts (step, problem, sample);
create index if not exists by_reward on rollouts (reward, step);
create index if not exists by_completion_tokens on rollouts (completion_tokens, step);
create index if not exists by_group_variance on rollouts (group_variance, step, problem, sample);
create index if not exists by_problem on rollouts (problem, step);
create index if not exists by_file on rollouts (file);
"""


class RolloutQuery(NamedTuple):
    """A filter that selects rollouts, and the order of the selected rollouts."""

    min_step: int | None = None
    max_step: int | None = None
    correctness: Correctness = ""
    problem: str = ""
    """A part of the problem's id."""
    finish_reason: str = ""
    min_reward: float | None = None
    max_reward: float | None = None
    sort_by: SortBy = "step"
    descending: bool = True


def index_path(run: Path) -> Path:
    """The file of a run's index."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "schoolhouse" / "board"
    return cache / f"{hashlib.blake2b(str(run.resolve()).encode(), digest_size=12).hexdigest()}-{_VERSION}.sqlite"


def open_index(run: Path, write: bool = False) -> sqlite3.Connection | None:
    """Open the index, which can be unfinished. Returns None if there is no index yet."""
    path = index_path(run)
    if write:
        path.parent.mkdir(parents=True, exist_ok=True)
    elif not path.exists():
        return None
    index = sqlite3.connect(path, timeout=30)
    try:
        if write:
            index.execute("pragma journal_mode = wal")
            index.execute("pragma synchronous = off")
            index.executescript(_SCHEMA)
    except sqlite3.Error:
        index.close()
        raise
    return index


def stale_files(run: Path) -> list[Path]:
    """Rollout files that were added, deleted or changed in size after the last update of the index."""
    files = sorted((run / "rollouts").glob("*.jsonl"))
    index = open_index(run)
    if index is None:
        return files
    with closing(index):
        try:
            indexed_sizes = dict(index.execute("select name, size from files"))
        except sqlite3.Error:
            return files
    sizes = {path: _size(path) for path in files}
    deleted = [run / "rollouts" / name for name in indexed_sizes.keys() - {path.name for path in files}]
    return [path for path in files if indexed_sizes.get(path.name) != sizes[path]] + deleted


def _size(path: Path) -> int | None:
    """The size of a file in bytes, or None if the file does not exist."""
    with suppress(FileNotFoundError):
        return path.stat().st_size
    return None


def update_index(run: Path) -> int:
    """Update the index and return its number of rollouts. Damaged lines are skipped."""
    index = open_index(run, write=True)
    assert index is not None
    with closing(index):
        indexed = {name for (name,) in index.execute("select name from files")}
        for path in stale_files(run):
            size = _size(path)
            with index:
                if path.name in indexed:
                    index.execute("delete from rollouts where file = ?", (path.name,))
                if size is None:
                    index.execute("delete from files where name = ?", (path.name,))
                    continue
                rows = _index_rows(path)
                index.executemany(f"insert into rollouts values ({','.join('?' * len(_COLUMNS))})", rows)
                problems = dict.fromkeys(row[_COLUMNS.index("problem")] for row in rows)
                index.executemany("insert or ignore into problems values (?)", [(problem,) for problem in problems])
                index.execute("insert or replace into files values (?, ?)", (path.name, size))
        index.executescript(_INDEXES)
        return int(index.execute("select count(*) from rollouts").fetchone()[0])


def _index_rows(path: Path) -> list[tuple[Any, ...]]:
    """The values of `_COLUMNS` for each valid line of a rollout file."""
    start, step = 0, int(path.stem) if path.stem.isdecimal() else 0
    rows, rewards_by_problem = [], defaultdict[str, list[float]](list)
    with path.open("rb") as file:
        for line in file:
            with suppress(ValueError, KeyError, TypeError):
                row = json.loads(line)
                problem, sample, reward = str(row["problem"]), int(row["sample"]), row["reward"]
                tokens = sum(span_end - span_start for span_start, span_end in row["sampled_spans"])
                rows.append((step, path.name, start, len(line), problem, sample, reward, tokens, row["finish_reason"]))
                rewards_by_problem[problem] += [] if reward is None else [float(reward)]
            start += len(line)
    group_stats = {problem: _group_stats(rewards) for problem, rewards in rewards_by_problem.items()}
    return [(*row, *group_stats[row[_COLUMNS.index("problem")]]) for row in rows]


def _group_stats(rewards: Sequence[float]) -> tuple[float | None, float | None, int]:
    """The mean and the variance of a group's rewards, and the number of rewards."""
    if not rewards:
        return None, None, 0
    mean = fmean(rewards)
    return mean, fmean((reward - mean) ** 2 for reward in rewards), len(rewards)


def count(run: Path, query: RolloutQuery) -> int:
    """The number of rollouts that match the filter."""
    index = open_index(run)
    if index is None:
        return 0
    with closing(index):
        condition, values = _condition(query, index)
        return int(index.execute(f"select count(*) from rollouts {condition}", values).fetchone()[0])


def find(run: Path, query: RolloutQuery, offset: int = 0, limit: int = 50) -> list[dict[str, Any]]:
    """Return `limit` recorded rollouts that match the query, each with its step and the statistics of its group."""
    index = open_index(run)
    if index is None:
        return []
    direction = "desc" if query.descending else "asc"
    sort_columns = {
        "step": ("step", "problem", "sample"),
        "group_variance": ("group_variance", "step", "problem", "sample"),
    }
    order = ", ".join(f"{name} {direction}" for name in sort_columns.get(query.sort_by, (query.sort_by, "step")))
    with closing(index):
        condition, values = _condition(query, index)
        return _select(run, index, f"{condition} order by {order} limit ? offset ?", (*values, limit, offset))


def group(run: Path, step: int, problem: str) -> list[dict[str, Any]]:
    """All samples of one problem in one step."""
    index = open_index(run)
    if index is None:
        return []
    with closing(index):
        return _select(run, index, "where step = ? and problem = ? order by sample", (step, problem))


def problem_history(run: Path, problem: str, limit: int = 200) -> list[dict[str, Any]]:
    """For each step of one problem, the number of samples, and the mean reward and mean length of the samples."""
    index = open_index(run)
    if index is None:
        return []
    means = "avg(reward), avg(completion_tokens)"
    select = f"select step, count(*), {means} from rollouts where problem = ? group by step limit ?"
    names = ("step", "samples", "mean_reward", "mean_completion_tokens")
    with closing(index):
        return [dict(zip(names, values, strict=True)) for values in index.execute(select, (problem, limit))]


def _select(run: Path, index: sqlite3.Connection, condition: str, values: Sequence[Any]) -> list[dict[str, Any]]:
    columns = ", ".join(("step", "file", "start", "size", *_GROUP_COLUMNS))
    places = index.execute(f"select {columns} from rollouts {condition}", values).fetchall()
    return [row for place in places if (row := _read_row(run, *place))]


def _read_row(
    run: Path, step: int, file: str, start: int, size: int, *group_stats: float | None
) -> dict[str, Any] | None:
    """Return the recorded rollout, or None if its file was deleted or replaced after the index was made."""
    try:
        with (run / "rollouts" / file).open("rb") as lines:
            lines.seek(start)
            row = json.loads(lines.read(size))
    except (FileNotFoundError, ValueError):
        return None
    return {"step": step, **row, **dict(zip(_GROUP_COLUMNS, group_stats, strict=True))}


def _condition(query: RolloutQuery, index: sqlite3.Connection) -> tuple[str, list[Any]]:
    """The SQL condition of a query, and its values."""
    parts: list[str] = []
    values: list[Any] = []
    for text, value in (
        ("step >= ?", query.min_step),
        ("step <= ?", query.max_step),
        ("reward >= ?", query.min_reward),
        ("reward <= ?", query.max_reward),
        ("finish_reason = ?", query.finish_reason or None),
    ):
        if value is not None:
            parts.append(text)
            values.append(value)
    if query.problem:
        select = "select problem from problems where instr(problem, ?) > 0 limit ?"
        problems = [name for (name,) in index.execute(select, (query.problem, 1 + _MAX_LISTED_PROBLEMS))]
        listed = len(problems) <= _MAX_LISTED_PROBLEMS
        parts.append(f"problem in ({','.join('?' * len(problems))})" if listed else "instr(problem, ?) > 0")
        values += problems if listed else [query.problem]
    if query.correctness:
        conditions = {"correct": "reward >= 1", "incorrect": "reward < 1", "ungraded": "reward is null"}
        parts.append(conditions[query.correctness])
    return (f"where {' and '.join(parts)}" if parts else ""), values


def main() -> None:
    """Index one run: `python -m schoolhouse.board.rollout_index RUN`."""
    try:
        update_index(Path(sys.argv[1]))
    except (OSError, sqlite3.Error) as error:
        path = index_path(Path(sys.argv[1]))
        raise SchoolError(
            f"cannot write {path}, the index of {sys.argv[1]}: {error}; make this path writable, or free disk space"
        ) from error


if __name__ == "__main__":
    main()
