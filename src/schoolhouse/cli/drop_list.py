"""`school task --check --drop FILE` writes a list of rows that cannot be read and of rows that fail the check."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from schoolhouse.config import parse_query
from schoolhouse.runs.atomic_io import read_jsonl, write_jsonl
from schoolhouse.tasks.row_source import SOURCE_OPTIONS, Need, RowSource, drop_entry, problem_id, read_drop_list, scan
from schoolhouse.types import SchoolError


def list_unreadable(spec: str, path: Path) -> tuple[str, int]:
    """Write a list of the rows of a task that cannot be read.

    Returns the spec of the task without the listed rows, and the number of listed rows. If the file exists but is no
    list of rows, the function raises SchoolError and does not overwrite the file.
    """
    source, need, separator = _source_of(spec)
    if path.exists():
        read_drop_list(str(path))
    entries = [drop_entry(read.source, read.error) for read in scan(source, need) if read.row is None]
    write_jsonl(path, entries)
    return f"{spec}{separator}drop={path}", len(entries)


def list_failed(spec: str, path: Path, failures: Sequence[tuple[str, str]]) -> int:
    """Add rows to a list, and return the number of added rows.

    `failures`: the problem id and the reason of each problem that failed the check.
    """
    source, need, _ = _source_of(spec)
    reasons = dict(reversed(failures))  # the first reason of each problem
    found = [
        drop_entry(read.source, reasons[problem])
        for read in scan(source, need)
        if read.row and (problem := problem_id(read.row.messages)) in reasons
    ]
    write_jsonl(path, [*read_jsonl(path), *found])
    return len(found)


def _source_of(spec: str) -> tuple[RowSource, Need, str]:
    """Return the rows of a task `jsonl:` or `python:`, and the content that each row must have.

    The third returned value is `?` or `&`, the character before an additional option of the spec.
    """
    body, _, query = spec.partition("?")
    kind, _, rest = body.partition(":")
    options = parse_query(f"task `{spec}`", query)
    path = rest if kind == "jsonl" else options.get("data", "")
    if kind not in ("jsonl", "python") or not path:
        raise SchoolError(f"--drop lists rows of a data file, but the task `{spec}` has no data file; leave out --drop")
    if "drop" in options:
        raise SchoolError(f"--drop writes a new list of rows; remove `drop={options['drop']}` from the task")
    known = {name: value for name, value in options.items() if name in SOURCE_OPTIONS}
    return RowSource.of(path, known), "answer or reply" if kind == "jsonl" else "prompt", "&" if query else "?"
