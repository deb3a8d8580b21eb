"""Make problems and demonstrations from the rows of data files.

An error message names the file, the line and the column, and says what to do. A row is left out only if the list
`?drop=FILE` names the row. A note says how many rows are left out.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from schoolhouse.config import suggest
from schoolhouse.data.chats import BadRow
from schoolhouse.data.files import HUB, SourceRow, data_files, iter_rows
from schoolhouse.data.shapes import ROLES
from schoolhouse.runs.atomic_io import read_jsonl
from schoolhouse.tasks.rows import Row, RowOptions, parse_row
from schoolhouse.types import Demonstration, Message, Problem, SchoolError

SOURCE_OPTIONS = ("split", "subset", "ignore", "drop", *ROLES)
"""Options of a task that say how a file is read."""

INSTRUCTION = "Put your final answer in \\boxed{}."
CHOICE_INSTRUCTION = "Put the letter of the correct choice in \\boxed{}."

Need = Literal["answer or reply", "prompt"]
"""What each row must have. A reward function of a user needs the prompt alone."""

_LOOKED_AT = 20  # rows whose unused columns are looked at
_LONG = 200  # characters of a text that a user may expect to be used
_ALL_BAD = 1_000  # if so many rows in front are all bad, the rest is not read


@dataclass(frozen=True)
class RowSource:
    """The source of rows (a file, a folder, a glob pattern or `hub:ORG/NAME`), and how its columns are read."""

    path: str
    split: str = ""
    subset: str = ""
    drop: str = ""
    options: RowOptions = field(default_factory=RowOptions)

    @classmethod
    def of(cls, path: str, options: Mapping[str, str]) -> RowSource:
        """Make a source from the options of a task. Raises SchoolError for an option not in `SOURCE_OPTIONS`."""
        for option in options:
            if option not in SOURCE_OPTIONS:
                raise SchoolError(f"{path}: unknown option `{option}`{suggest(option, SOURCE_OPTIONS)}")
        mapping = {str(role): options[role] for role in ROLES if role in options}
        ignore = tuple(filter(None, options.get("ignore", "").split(",")))
        place = {name: options[name] for name in ("split", "subset", "drop") if name in options}
        return cls(path, options=RowOptions(mapping, ignore), **place)

    @property
    def spec(self) -> str:
        """Return the spec of the task `jsonl:` with the same options, but without the option `drop`."""
        options = {"split": self.split, "subset": self.subset, "ignore": ",".join(self.options.ignore)}
        given = [f"{name}={value}" for name, value in {**options, **self.options.mapping}.items() if value]
        return f"jsonl:{self.path}" + (f"?{'&'.join(given)}" if given else "")

    @property
    def files(self) -> tuple[Path, ...]:
        """Return all files that are read. The list of dropped rows is one of the files."""
        paths = [] if self.path.startswith(HUB) else data_files(self.path, self.split)
        return tuple(path for path in [*paths, *([Path(self.drop)] if self.drop else [])] if path.is_file())


class ReadRow(NamedTuple):
    """A row of a file with its example, or with the reason why the row cannot be used."""

    source: SourceRow
    row: Row | None
    error: str = ""


class Example(NamedTuple):
    """The problem of a row, and a demonstration if the row has a reply. `no_answer` says why a row has no answer."""

    problem: Problem
    demonstration: Demonstration | None
    no_answer: str = ""


class Examples(NamedTuple):
    """The examples of a data source, and notes for the user."""

    rows: list[Example]
    notes: tuple[str, ...]


def scan(source: RowSource, need: Need = "answer or reply") -> Iterator[ReadRow]:
    """Yield every row of a source with its example, or with the reason why the row cannot be used."""
    for raw in iter_rows(source.path, source.split, source.subset):
        if raw.error:
            yield ReadRow(raw, None, raw.error)
            continue
        try:
            row = parse_row(raw.values, source.options)
            require(row, need)
        except BadRow as error:
            yield ReadRow(raw, None, str(error))
        else:
            yield ReadRow(raw, row)


def read_rows(source: str, needs: str) -> Iterator[SourceRow]:
    """Yield the rows of a source whose columns are not searched for a question and an answer.

    Raises SchoolError for a row that cannot be read. The message names the file, the line and the mistake, and ends
    with `needs`, the text that says what each row must have.
    """
    for row in iter_rows(source):
        if row.error:
            raise SchoolError(f"{row.place}: {row.error}; here, each row needs {needs}")
        yield row


def require(row: Row, need: Need) -> None:
    """Raise BadRow if a row does not have the part that the argument `need` names. The message says what to do."""
    if need != "prompt" and (error := unusable(row)):
        raise BadRow(error)


def unusable(row: Row) -> str:
    """Return a text that says why a row has no answer and no reply, and what to do. Returns "" if the row has an answer
    or a reply."""
    own = "grade the rows with your own reward function: `python:FILE.py?data=PATH`"
    if row.references or row.reply:
        return ""
    if row.kind == "code":
        return f"the row has tests of a program; use the task `code:PATH.jsonl` (MBPP, HumanEval), or {own}"
    if row.kind == "constraints":
        return f"the row has instructions to follow (IFEval); use the task `ifeval:PATH.jsonl`, or {own}"
    if row.kind in ("prompt", "chat"):
        return f"the row has a prompt, but no answer and no reply; name the answer (`?answer=KEY`), or {own}"
    return row.reference_error


def read_examples(source: RowSource, instruct: bool = False, need: Need = "answer or reply") -> Examples:
    """Return the examples of a source. Raises SchoolError if a row cannot be used.

    The error message names the file, the line and the mistake of the first bad row. If `instruct` is true, every prompt
    gets the request to put the final answer in \\boxed{}.
    """
    dropped = read_drop_list(source.drop) if source.drop else set()
    examples: list[Example] = []
    bad: list[ReadRow] = []
    unused: dict[str, None] = {}
    num_dropped = 0
    for read in scan(source, need):
        if dropped and row_digest(read.source) in dropped:
            num_dropped += 1
        elif read.row is None:
            bad.append(read)
            if not examples and len(bad) == _ALL_BAD:
                break
        else:
            examples.append(make_example(read.row, read.source.values, Path(source.path).stem, instruct))
            if need != "prompt" and len(examples) <= _LOOKED_AT:
                unused |= dict.fromkeys(_unused_texts(read.row, read.source.values, source.options.ignore))
    if bad:
        raise SchoolError(_complaint(bad, len(examples), source))
    if not examples:
        raise SchoolError(f"{source.path} has no rows; add at least one, with the keys `question` and `answer`")
    return Examples(examples, tuple(_notes(source, examples, num_dropped, list(unused))))


def _complaint(bad: list[ReadRow], num_good: int, source: RowSource) -> str:
    first = f"{bad[0].source.place}: {bad[0].error}"
    if not num_good:
        return first
    return (
        f"{first}\n{len(bad):,} of {len(bad) + num_good:,} rows cannot be used; to leave them out, list them with "
        f'`school task "{source.spec}" --check --drop dropped.jsonl`, and add the option `drop=dropped.jsonl`'
    )


def _unused_texts(row: Row, values: Mapping[str, Any], ignored: tuple[str, ...]) -> Iterator[str]:
    """Yield the columns that have long texts but are not used, such as texts that a model generated."""
    used = {key.partition(".")[0] for keys in row.shape.roles.values() for key in keys}
    for key, value in values.items():
        long = len(value if isinstance(value, str) else json.dumps(value, default=str)) > _LONG
        if long and key not in used and key not in ignored and row.kind != "stored":
            yield key


def _notes(source: RowSource, examples: list[Example], num_dropped: int, unused: list[str]) -> Iterator[str]:
    if unused:
        names = ", ".join(f"`{key}`" for key in unused)
        yield f"{source.path}: not used: {names}; `school data {source.path}` shows what each column is taken for"
    if source.drop:
        yield f"{num_dropped:,} rows of {source.path} are left out, as listed in {source.drop}"
    references: dict[str, str] = {}
    differing = sum(references.setdefault(e.problem.id, e.problem.reference) != e.problem.reference for e in examples)
    if differing:
        yield f"{differing:,} rows of {source.path} have the prompt of an earlier row, but another answer"


def make_example(row: Row, values: Mapping[str, Any], source: str, instruct: bool = False) -> Example:
    """Make the problem of a row, and its demonstration.

    The id of the problem depends only on the prompt before the request for \\boxed{} is added.
    """
    request = (CHOICE_INSTRUCTION if row.kind == "choice" else INSTRUCTION) if instruct else ""
    family = values.get("type") or values.get("family") or ""
    if key := row.shape.key("family"):
        family = values.get(key) or ""
    reference, *aliases = row.references or ("",)
    messages = _instructed(row.messages, request)
    problem = Problem(problem_id(row.messages), messages, reference, str(family), source, values, tuple(aliases))
    if row.reply is None:
        return Example(problem, None, row.reference_error)
    shown = problem
    if row.reply.messages != row.messages:
        prompt = row.reply.messages
        shown = Problem(problem_id(prompt), _instructed(prompt, request), reference, str(family), source, values)
    reply = row.reply
    demonstration = Demonstration(shown, reply.thought, reply.answer, reply.style, reply.untrained)
    return Example(problem, demonstration, row.reference_error)


def _instructed(messages: tuple[Message, ...], request: str) -> tuple[Message, ...]:
    if not request:
        return messages
    return (*messages[:-1], messages[-1]._replace(content=f"{messages[-1].content}\n{request}"))


def problem_id(messages: tuple[Message, ...]) -> str:
    """Return the id of a prompt. Prompts that differ only in spaces and line breaks have the same id."""
    text = "\x1f".join(f"{message.role}\x1e{' '.join(message.content.split())}" for message in messages)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


# ---- rows that are left out


def row_digest(row: SourceRow) -> str:
    """Return a hash that names a row in a list of dropped rows.

    The hash is made from the content of the row. If the row cannot be read, the hash is made from its file and line.
    """
    content = json.dumps(row.values, sort_keys=True, default=str) if row.values else Path(row.place).name
    return hashlib.blake2b(content.encode(), digest_size=8).hexdigest()


def drop_entry(row: SourceRow, reason: str) -> dict[str, str]:
    """Return the entry for a row in a list of dropped rows."""
    return {"place": row.place, "reason": reason, "row": row_digest(row)}


def read_drop_list(path: str) -> set[str]:
    """Return the hashes of the rows in a list of dropped rows."""
    if not Path(path).is_file():
        raise SchoolError(
            f"the list of dropped rows {path} does not exist; make it: `school task TASK --check --drop {path}`"
        )
    try:
        entries = read_jsonl(Path(path))
    except SchoolError:
        entries = [{}]
    if not all(entry.keys() == {"place", "reason", "row"} for entry in entries):
        raise SchoolError(f"{path} is not a list of dropped rows; make one: `school task TASK --check --drop FILE`")
    return {str(entry["row"]) for entry in entries}
