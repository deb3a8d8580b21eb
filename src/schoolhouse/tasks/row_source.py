"""The rows of data files as problems and demonstrations. Mistakes name file, line, column and the way out.

Rows are left out only if a list of them is given (`?drop=FILE`), and the number of these rows is told.
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
    """A file, folder, glob pattern or `hub:ORG/NAME`, and how its columns are read."""

    path: str
    split: str = ""
    subset: str = ""
    drop: str = ""
    options: RowOptions = field(default_factory=RowOptions)

    @classmethod
    def of(cls, path: str, options: Mapping[str, str]) -> RowSource:
        """A source with the options of a task; `SOURCE_OPTIONS` lists them. Raises SchoolError for another option."""
        for option in options:
            if option not in SOURCE_OPTIONS:
                raise SchoolError(f"{path}: unknown option `{option}`{suggest(option, SOURCE_OPTIONS)}")
        mapping = {str(role): options[role] for role in ROLES if role in options}
        ignore = tuple(filter(None, options.get("ignore", "").split(",")))
        place = {name: options[name] for name in ("split", "subset", "drop") if name in options}
        return cls(path, options=RowOptions(mapping, ignore), **place)

    @property
    def spec(self) -> str:
        """The task `jsonl:` with the same options, without a list of dropped rows."""
        options = {"split": self.split, "subset": self.subset, "ignore": ",".join(self.options.ignore)}
        given = [f"{name}={value}" for name, value in {**options, **self.options.mapping}.items() if value]
        return f"jsonl:{self.path}" + (f"?{'&'.join(given)}" if given else "")

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file that is read, the list of dropped rows included."""
        paths = [] if self.path.startswith(HUB) else data_files(self.path, self.split)
        return tuple(path for path in [*paths, *([Path(self.drop)] if self.drop else [])] if path.is_file())


class ReadRow(NamedTuple):
    """A row of a file, and its example or the reason why it is none."""

    source: SourceRow
    row: Row | None
    error: str = ""


class Example(NamedTuple):
    """A problem, and its demonstration if the row has one. `no_answer` says why the problem cannot be graded."""

    problem: Problem
    demonstration: Demonstration | None
    no_answer: str = ""


class Examples(NamedTuple):
    """The examples of a source, and notes for the user."""

    rows: list[Example]
    notes: tuple[str, ...]


def scan(source: RowSource, need: Need = "answer or reply") -> Iterator[ReadRow]:
    """Every row with its example or its mistake, one after another."""
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


def require(row: Row, need: Need) -> None:
    """Raises BadRow with the way out if a row lacks what is needed."""
    if need != "prompt" and (error := unusable(row)):
        raise BadRow(error)


def unusable(row: Row) -> str:
    """Why a row has neither an answer to grade nor a reply to imitate, and the way out; empty if it has one of them."""
    own = "grade the rows by a reward function of your own: `python:FILE.py?data=PATH`"
    if row.references or row.reply:
        return ""
    if row.kind == "code":
        return f"has tests of a program instead of an answer; {own}"
    if row.kind == "constraints":
        return f"has instructions to follow (IFEval) instead of an answer; {own}"
    if row.kind in ("prompt", "chat"):
        return f"has a prompt, but neither an answer nor a reply; name the answer (`?answer=KEY`), or {own}"
    return row.reference_error


def read_examples(source: RowSource, instruct: bool = False, need: Need = "answer or reply") -> Examples:
    """The examples of a source. Raises SchoolError naming file, line and mistake of the first bad row.

    instruct  add a request for a \\boxed{} answer to every prompt
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
        raise SchoolError(f"{source.path} has no rows; add at least one, with the keys question and answer")
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
    """Columns with long texts that play no role, such as the generations of a model."""
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
        yield f"{differing:,} rows of {source.path} repeat an earlier prompt with another answer"


def make_example(row: Row, values: Mapping[str, Any], source: str, instruct: bool = False) -> Example:
    """The problem of a row, and its demonstration. The id depends on the prompt alone, without the instruction."""
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
    """A stable id of a prompt, whatever its spacing."""
    text = "\x1f".join(f"{message.role}\x1e{' '.join(message.content.split())}" for message in messages)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


# ---- rows that are left out


def row_digest(row: SourceRow) -> str:
    """Names a row in a list of dropped rows: by its content, or by its place if it cannot be read."""
    content = json.dumps(row.values, sort_keys=True, default=str) if row.values else Path(row.place).name
    return hashlib.blake2b(content.encode(), digest_size=8).hexdigest()


def drop_entry(row: SourceRow, reason: str) -> dict[str, str]:
    """The line of a row in a list of dropped rows."""
    return {"place": row.place, "reason": reason, "row": row_digest(row)}


def read_drop_list(path: str) -> set[str]:
    """The digests in a list of dropped rows."""
    if not Path(path).is_file():
        raise SchoolError(
            f"there is no list {path} of rows to drop; `school task TASK --check --drop {path}` writes it"
        )
    try:
        entries = read_jsonl(Path(path))
    except SchoolError:
        entries = [{}]
    if not all(entry.keys() == {"place", "reason", "row"} for entry in entries):
        raise SchoolError(f"{path} is no list of rows to drop; `school task TASK --check --drop FILE` writes one")
    return {str(entry["row"]) for entry in entries}
