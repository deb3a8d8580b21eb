"""The command `school data` shows how schoolhouse reads a data file: columns, examples, token counts and mistakes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from statistics import fmean, median
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from schoolhouse.cli.options import parse_options
from schoolhouse.config import BaseConfig, parse_query
from schoolhouse.runs.adapter_folder import base_folder
from schoolhouse.runs.atomic_io import read_json, resolve_model
from schoolhouse.types import Demonstration, Key, Problem

if TYPE_CHECKING:
    from schoolhouse.data.chat import Conversation
    from schoolhouse.data.chat_rollouts import LossOn
    from schoolhouse.tasks.row_source import Example, ReadRow, RowSource

MAX_SHOWN_MISTAKES = 5
MAX_SHOWN_CHARS = 2_000  # of one turn of an example


class Data(BaseConfig):
    file: str
    """File, folder, glob pattern or hub:ORG/NAME; options follow a ?: "rows.parquet?question=problem&answer=final"."""
    model: Path | None = None
    """Folder of a model or of a run. With it, examples are shown in the chat template, and tokens are counted."""
    show: int = Field(3, ge=0)
    """How many examples to print."""
    limit: int | None = Field(None, gt=0)
    """Read this many rows instead of all."""
    loss_on: Literal["last", "all"] = "last"
    """Which assistant turns of a chat have a loss in `sft`: the last turn, or all turns."""


@dataclass
class Survey:
    """A summary of the rows of a data file: counts, the first mistakes and the first examples."""

    kinds: Counter[str] = field(default_factory=Counter)
    columns: dict[str, Column] = field(default_factory=dict)
    references: Counter[int] = field(default_factory=Counter)
    prompts: Counter[str] = field(default_factory=Counter)
    mistakes: list[str] = field(default_factory=list)
    ungraded: list[str] = field(default_factory=list)
    examples: list[tuple[str, Example]] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    num_dropped: int = 0
    num_mistakes: int = 0
    num_ungraded: int = 0
    num_replies: int = 0
    num_trailing: int = 0


class Column:
    """A column of a data file: the number of rows with a value, and the types and roles of these values."""

    def __init__(self) -> None:
        self.count, self.types, self.roles = 0, Counter[str](), Counter[str]()


def data(args: Sequence[str]) -> None:
    """Run the command `school data FILE [--model MODEL]`."""
    c = parse_options(Data, args, "school data FILE [--model MODEL] [--show N] [--limit N]", ("file",))
    if c is None:
        return
    from schoolhouse.tasks.row_source import RowSource

    path, _, query = c.file.partition("?")
    options = parse_query(c.file, query)
    source = RowSource.of(path, {name: value for name, value in options.items() if name not in ("holdout", "instruct")})
    conversation = None
    if c.model:
        from schoolhouse.data.chat import Conversation

        conversation = Conversation.load(c.model)
    survey = _survey(source, c, conversation)
    print("\n".join(_report(c, survey, conversation)))


def _survey(source: RowSource, c: Data, conversation: Conversation | None) -> Survey:
    from schoolhouse.tasks.row_source import make_example, read_drop_list, row_digest, scan, unusable

    dropped = read_drop_list(source.drop) if source.drop else set()
    found = Survey()
    for read in islice(scan(source, "prompt"), c.limit):
        if dropped and row_digest(read.source) in dropped:
            found.num_dropped += 1
            continue
        _count_columns(found.columns, read)
        if read.row is None:
            found.num_mistakes += 1
            found.mistakes += [f"{read.source.place}: {read.error}"] if found.num_mistakes <= MAX_SHOWN_MISTAKES else []
            continue
        if error := unusable(read.row):
            found.num_ungraded += 1
            found.ungraded += [f"{read.source.place}: {error}"] if found.num_ungraded <= MAX_SHOWN_MISTAKES else []
        example = make_example(read.row, read.source.values, Path(source.path).stem)
        found.kinds[read.row.kind] += 1
        found.references[len(read.row.references)] += 1
        found.prompts[example.problem.id] += 1
        found.num_replies += read.row.reply is not None
        found.num_trailing += bool(read.row.reply and len(read.row.reply.messages) < len(read.row.messages))
        found.examples += [(read.source.place, example)] if len(found.examples) < c.show else []
        if conversation:
            found.lengths.append(_length(conversation, example))
    return found


def _count_columns(columns: dict[str, Column], read: ReadRow) -> None:
    from schoolhouse.data.chats import is_given

    roles = read.row.shape.roles if read.row else {}
    role_of = {key: role for role, keys in roles.items() for key in keys if role != "wrong"}
    for key, value in _cells(read.source.values, role_of):
        column = columns.setdefault(key, Column())
        if is_given(value):
            column.count += 1
            column.types[_type_name(value)] += 1
        if read.row and (is_given(value) or key in role_of):
            column.roles[role_of.get(key, "not used")] += 1


def _cells(values: Mapping[str, Any], role_of: Mapping[str, str]) -> Iterator[tuple[str, Any]]:
    """Yield the key and the value of each cell of a row.

    If a key inside a mapping is used, such as `reward_model.ground_truth`, the key has a separate cell.
    """
    from schoolhouse.data.shapes import value_at

    nested = [key for key in role_of if key not in values]
    for key, value in values.items():
        if not any(name.startswith(f"{key}.") for name in nested):
            yield key, value
    for key in nested:
        yield key, value_at(values, key)


def _type_name(value: Any) -> str:
    if isinstance(value, bool):
        return "yes or no"
    names = {str: "text", int: "number", float: "number", list: "list", dict: "mapping"}
    return names.get(type(value), type(value).__name__)


def _length(conversation: Conversation, example: Example) -> int:
    """Return the number of tokens of an example's prompt and reply. Without a reply, only the prompt is counted."""
    if example.demonstration:
        return len(conversation.demonstration_rollout(example.demonstration, Key(0, "data")))
    return len(conversation.prompt_rollout(example.problem, Key(0, "data")))


# ---- the report


def _report(c: Data, survey: Survey, conversation: Conversation | None) -> Iterator[str]:
    num_good = sum(survey.kinds.values())
    total = num_good + survey.num_mistakes
    yield f"{c.file}: {total:,} rows, {num_good:,} can be read" + (" (the first rows only)" if c.limit == total else "")
    if survey.num_dropped:
        yield f"  {survey.num_dropped:,} more rows are left out by the drop list"
    yield f"  kinds: {', '.join(f'{count:,} {kind}' for kind, count in survey.kinds.most_common()) or 'none'}"
    with_answer = num_good - survey.references[0]
    several = sum(count for number, count in survey.references.items() if number > 1)
    yield f"  {with_answer:,} with a reference answer ({several:,} with several), {survey.num_replies:,} with a reply"
    if repeated := sum(count - 1 for count in survey.prompts.values()):
        yield f"  {repeated:,} rows repeat the prompt of an earlier row"
    if survey.num_trailing:
        yield f"  {survey.num_trailing:,} chats end with turns of a user; `sft` leaves these turns out"
    yield from ("", "columns")
    width = max([len(key) for key in survey.columns] or [0])
    for key, column in survey.columns.items():
        roles = " or ".join(role for role, _ in column.roles.most_common()) or "not used"
        types = " or ".join(name for name, _ in column.types.most_common()) or "empty"
        yield f"  {key:{width}}  {roles:12}  {types:10}  {column.count / max(total, 1):4.0%} of rows"
    yield from _listed(survey.num_mistakes, "rows cannot be read", survey.mistakes)
    no_use = "rows have no usable answer and no reply; to grade such rows, use your own reward function"
    yield from _listed(survey.num_ungraded, no_use, survey.ungraded)
    for number, (place, example) in enumerate(survey.examples, 1):
        yield from ("", f"example {number} ({place})")
        yield from _shown_example(example, conversation, c.loss_on)
    if survey.lengths:
        yield from ("", _token_line(c, survey.lengths))


def _listed(count: int, title: str, lines: Sequence[str]) -> Iterator[str]:
    if count:
        yield from ("", f"{count:,} {title}", *(f"  {line}" for line in lines))
        yield from (["  ..."] if count > len(lines) else [])


def _shown_example(example: Example, conversation: Conversation | None, loss_on: LossOn) -> Iterator[str]:
    problem, demonstration, _ = example
    if conversation:
        yield from _in_template(problem, demonstration, conversation, loss_on)
    else:
        shown = demonstration.problem if demonstration else problem
        for message in shown.messages:
            thought = "" if message.thought is None else f"<think>{message.thought}</think>"
            yield _cut(f"  {message.role}: {thought}{message.content}")
        if demonstration:
            yield _cut(f"  assistant: <think>{demonstration.thought or ''}</think>{demonstration.answer}")
    if problem.reference:
        yield "  reference: " + " or ".join((problem.reference, *problem.aliases))


def _in_template(
    problem: Problem, demonstration: Demonstration | None, conversation: Conversation, loss_on: LossOn
) -> Iterator[str]:
    """Yield the parts of an example in the chat template. Each part is marked as `context` or `loss`."""
    from schoolhouse.data.chat_rollouts import demonstration_rollouts

    if demonstration is None:
        yield _cut(f"  context | {conversation.tokenizer.decode(conversation.prompt(problem.messages))!r}")
        return
    key = Key(0, "data")
    for rollout in demonstration_rollouts(conversation, [demonstration], [key], loss_on):
        start = 0
        for end in range(1, len(rollout) + 1):
            if end == len(rollout) or rollout.loss_mask[end] != rollout.loss_mask[start]:
                label = "loss   " if rollout.loss_mask[start] else "context"
                yield _cut(f"  {label} | {conversation.tokenizer.decode(rollout.tokens[start:end])!r}")
                start = end


def _token_line(c: Data, lengths: list[int]) -> str:
    limit = _context_length(c.model) if c.model else None
    line = (
        f"tokens per row: mean {fmean(lengths):,.0f}, median {median(lengths):,.0f}, longest {max(lengths):,}, "
        f"all rows {sum(lengths):,}"
    )
    if limit:
        line += f"; {sum(length > limit for length in lengths):,} rows are longer than the context of {limit:,}"
    return line


def _context_length(model: Path) -> int | None:
    path = base_folder(resolve_model(model)) / "config.json"
    value = read_json(path).get("max_position_embeddings") if path.exists() else None
    return value if isinstance(value, int) else None


def _cut(text: str) -> str:
    more = len(text) - MAX_SHOWN_CHARS
    return text if more <= 0 else f"{text[:MAX_SHOWN_CHARS]} ... ({more:,} more characters)"
