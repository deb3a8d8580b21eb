"""One row in the shape of each of many public data sets: how it is read, or why it is refused and what helps.

    PYTHONPATH=src python tests/public_shapes.py     # the table of docs/data.md

The examples are in public_shapes.jsonl. Their columns are those of the data sets, their contents are made up.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from schoolhouse.data.chats import BadRow
from schoolhouse.tasks.row_source import RowSource, require
from schoolhouse.tasks.rows import Row, parse_row

FILE = Path(__file__).with_suffix(".jsonl")


@dataclass(frozen=True)
class Example:
    """A row and what is expected of it.

    prompt   the prompt: its turns, each as `role: content`, joined by ` | `; a bare text is one user turn
    answers  the accepted final answers
    reply    thought and answer of the reply to imitate
    refused  a part of the error; `options` are then the way out, with which the row is read as the other fields say
    """

    group: str
    name: str
    row: dict[str, Any]
    prompt: str = ""
    answers: tuple[str, ...] = ()
    reply: tuple[str | None, str] | None = None
    refused: str = ""
    options: dict[str, str] = field(default_factory=dict)

    def read(self, with_options: bool = True) -> Row:
        """The example of the row. Raises BadRow."""
        source = RowSource.of("rows.jsonl", self.options if with_options else {})
        row = parse_row(self.row, source.options)
        require(row, "answer or reply")
        return row


def load_examples() -> list[Example]:
    examples = []
    for line in FILE.read_text().splitlines():
        values = json.loads(line)
        reply = tuple(values.pop("reply", None) or ()) or None
        examples.append(Example(answers=tuple(values.pop("answers", ())), reply=reply, **values))
    return examples


EXAMPLES = load_examples()


def outcome(example: Example) -> str:
    """The last cell of a row of the table: what was read, or the refusal."""
    options = "&".join(f"{role}={key}" for role, key in example.options.items())
    try:
        row = example.read(with_options=not example.refused)
    except BadRow as error:
        return "refused: " + str(error).replace("|", "\\|")
    parts = [f"`{key}` in the question" for key in row.shape.roles.get("context", ())]
    parts += ["choices in the question"] if row.kind == "choice" else []
    parts += [f"{len(row.references)} answers" if len(row.references) > 1 else "answer"] if row.references else []
    parts += [f"system turn from `{key}`" for role in ("system", "tools") for key in row.shape.roles.get(role, ())]
    parts += ["thought and reply" if row.reply.thought else "reply"] if row.reply else []
    return ", ".join(parts) + (f" (`?{options}`)" if options else "")


def markdown() -> str:
    """The table of docs/data.md."""
    lines = []
    for group in dict.fromkeys(example.group for example in EXAMPLES):
        lines += [f"### {group}", "", "| shape | columns | read as |", "|---|---|---|"]
        for example in EXAMPLES:
            if example.group == group:
                columns = ", ".join(f"`{key}`" for key in example.row)
                lines.append(f"| {example.name} | {columns} | {outcome(example)} |")
        lines.append("")
    return "\n".join(["", *lines])


if __name__ == "__main__":
    print(markdown())
