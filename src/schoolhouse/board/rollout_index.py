"""An index of a run's rollouts, so that a million of them can be filtered, sorted and paged in a moment.

What was said stays where it is, in rollouts/*.jsonl; the index knows where each line begins and what it is sorted by.
It lives in the user's cache, is made by a process of its own while others look, and grows with the run.
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

Outcome = Literal["", "right", "wrong", "ungraded"]
Order = Literal["step", "reward", "length", "spread"]

_VERSION = 3  # of the tables: an index of another one is not looked at
_FEW = 300  # problems that are looked up one by one; where more match, rollouts are looked through in their order
_COLUMNS = "step file start size problem sample reward length finish_reason mean spread count".split()
_SCHEMA = """
create table if not exists files (name text primary key, size integer);
create table if not exists rollouts (
  step integer, file text, start integer, size integer, problem text, sample integer, reward real, length integer,
  finish_reason text, mean real, spread real, count integer);
create table if not exists problems (problem text primary key) without rowid;
"""
_INDEXES = """
create index if not exists by_step on rollouts (step, problem, sample);
create index if not exists by_reward on rollouts (reward, step);
create index if not exists by_length on rollouts (length, step);
create index if not exists by_spread on rollouts (spread, step, problem, sample);
create index if not exists by_problem on rollouts (problem, step);
create index if not exists by_file on rollouts (file);
"""


class Query(NamedTuple):
    """Which rollouts, and in what order."""

    first: int | None = None
    last: int | None = None
    outcome: Outcome = ""
    problem: str = ""
    """A piece of the problem's id."""
    finish_reason: str = ""
    least: float | None = None
    most: float | None = None
    """Bounds of the reward."""
    order: Order = "step"
    down: bool = True


def place_of(run: Path) -> Path:
    """Where the index of a run is kept."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "schoolhouse" / "board"
    return cache / f"{hashlib.blake2b(str(run.resolve()).encode(), digest_size=12).hexdigest()}-{_VERSION}.sqlite"


def open_index(run: Path, write: bool = False) -> sqlite3.Connection | None:
    """The index as far as it has been made; None where nobody has begun."""
    place = place_of(run)
    if write:
        place.parent.mkdir(parents=True, exist_ok=True)
    elif not place.exists():
        return None
    base = sqlite3.connect(place, timeout=30)
    if write:
        base.execute("pragma journal_mode = wal")
        base.execute("pragma synchronous = off")
        base.executescript(_SCHEMA)
    return base


def stale(run: Path) -> list[Path]:
    """Files of rollouts that have grown, come or gone since they were indexed."""
    files = sorted((run / "rollouts").glob("*.jsonl"))
    base = open_index(run)
    if base is None:
        return files
    with closing(base):
        try:
            known = dict(base.execute("select name, size from files"))
        except sqlite3.Error:
            return files
    sizes = {path: _size(path) for path in files}
    gone = [run / "rollouts" / name for name in known.keys() - {path.name for path in files}]
    return [path for path in files if known.get(path.name) != sizes[path]] + gone


def _size(path: Path) -> int | None:
    """None: there is no such file (any more)."""
    with suppress(FileNotFoundError):
        return path.stat().st_size
    return None


def make(run: Path) -> int:
    """Bring the index up to date; gives the number of rollouts it knows. Damaged lines are left out."""
    base = open_index(run, write=True)
    assert base is not None
    with closing(base):
        known = {name for (name,) in base.execute("select name from files")}
        for path in stale(run):
            size = _size(path)
            with base:
                if path.name in known:
                    base.execute("delete from rollouts where file = ?", (path.name,))
                if size is None:
                    base.execute("delete from files where name = ?", (path.name,))
                    continue
                rows = _rows(path)
                base.executemany(f"insert into rollouts values ({','.join('?' * len(_COLUMNS))})", rows)
                problems = dict.fromkeys(row[_COLUMNS.index("problem")] for row in rows)
                base.executemany("insert or ignore into problems values (?)", [(name,) for name in problems])
                base.execute("insert or replace into files values (?, ?)", (path.name, size))
        base.executescript(_INDEXES)
        return int(base.execute("select count(*) from rollouts").fetchone()[0])


def _rows(path: Path) -> list[tuple[Any, ...]]:
    """A row for each line that can be read, with the mean and the variance of its group's scores."""
    start, step = 0, int(path.stem) if path.stem.isdecimal() else 0
    found, scores = [], defaultdict[str, list[float]](list)
    with path.open("rb") as file:
        for line in file:
            with suppress(ValueError, KeyError, TypeError):
                row = json.loads(line)
                said, problem, score = (
                    sum(end - begin for begin, end in row["sampled_spans"]),
                    str(row["problem"]),
                    row["reward"],
                )
                found.append(
                    (step, path.name, start, len(line), problem, int(row["sample"]), score, said, row["finish_reason"])
                )
                scores[problem] += [] if score is None else [float(score)]
            start += len(line)
    about = {problem: _spread(of) for problem, of in scores.items()}
    return [(*row, *about[row[4]]) for row in found]


def _spread(scores: Sequence[float]) -> tuple[float | None, float | None, int]:
    """Mean, variance and number of the scores that could be judged."""
    if not scores:
        return None, None, 0
    mean = fmean(scores)
    return mean, fmean((score - mean) ** 2 for score in scores), len(scores)


def count(run: Path, query: Query) -> int:
    base = open_index(run)
    if base is None:
        return 0
    with closing(base):
        where, values = _where(query, base)
        return int(base.execute(f"select count(*) from rollouts {where}", values).fetchone()[0])


def find(run: Path, query: Query, start: int = 0, many: int = 50) -> list[dict[str, Any]]:
    """A page of rollouts, as they stand in the run, with their step and the mean and variance of their group."""
    base = open_index(run)
    if base is None:
        return []
    way = "desc" if query.down else "asc"
    columns = {"step": ("step", "problem", "sample"), "spread": ("spread", "step", "problem", "sample")}
    order = ", ".join(f"{name} {way}" for name in columns.get(query.order, (query.order, "step")))
    with closing(base):
        where, values = _where(query, base)
        return _matching(run, base, f"{where} order by {order} limit ? offset ?", (*values, many, start))


def group(run: Path, step: int, problem: str) -> list[dict[str, Any]]:
    """All samples of one problem in one step."""
    base = open_index(run)
    if base is None:
        return []
    with closing(base):
        return _matching(run, base, "where step = ? and problem = ? order by sample", (step, problem))


def across(run: Path, problem: str, most: int = 200) -> list[dict[str, Any]]:
    """The same problem in all steps that asked it: mean score and length of its samples."""
    base = open_index(run)
    if base is None:
        return []
    with closing(base):
        asked = "select step, count(*), avg(reward), avg(length) from rollouts where problem = ? group by step limit ?"
        return [
            dict(zip(("step", "count", "mean", "length"), r, strict=True)) for r in base.execute(asked, (problem, most))
        ]


def _matching(run: Path, base: sqlite3.Connection, condition: str, values: Sequence[Any]) -> list[dict[str, Any]]:
    names = "step, file, start, size, mean, spread, count"
    found = base.execute(f"select {names} from rollouts {condition}", values).fetchall()
    return [row for one in found if (row := _told(run, *one))]


def _told(run: Path, step: int, file: str, start: int, size: int, *about: float | None) -> dict[str, Any] | None:
    """None where the file has gone, or is another one, since it was indexed."""
    try:
        with (run / "rollouts" / file).open("rb") as lines:
            lines.seek(start)
            row = json.loads(lines.read(size))
    except (FileNotFoundError, ValueError):
        return None
    return {"step": step, **row, **dict(zip(("mean", "spread", "count"), about, strict=True))}


def _where(query: Query, base: sqlite3.Connection) -> tuple[str, list[Any]]:
    parts: list[str] = []
    values: list[Any] = []
    for text, value in (
        ("step >= ?", query.first),
        ("step <= ?", query.last),
        ("reward >= ?", query.least),
        ("reward <= ?", query.most),
        ("finish_reason = ?", query.finish_reason or None),
    ):
        if value is not None:
            parts.append(text)
            values.append(value)
    if query.problem:
        asked = "select problem from problems where instr(problem, ?) > 0 limit ?"
        names = [name for (name,) in base.execute(asked, (query.problem, 1 + _FEW))]
        few = len(names) <= _FEW
        parts.append(f"problem in ({','.join('?' * len(names))})" if few else "instr(problem, ?) > 0")
        values += names if few else [query.problem]
    if query.outcome:
        parts.append({"right": "reward >= 1", "wrong": "reward < 1", "ungraded": "reward is null"}[query.outcome])
    return (f"where {' and '.join(parts)}" if parts else ""), values


def main() -> None:
    """Index one run: `python -m schoolhouse.board.rollout_index RUN`."""
    try:
        make(Path(sys.argv[1]))
    except (OSError, sqlite3.Error) as error:
        raise SchoolError(f"no index of {sys.argv[1]} can be made: {error}") from error


if __name__ == "__main__":
    main()
