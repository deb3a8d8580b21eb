"""Each public shape is read as written down, or refused with a way out; docs/data.md has the table of them."""

from pathlib import Path

import pytest

from public_shapes import EXAMPLES, Example
from schoolhouse.data.chats import BadRow

PAGE = Path(__file__).parents[2] / "docs" / "data.md"
READ = [example for example in EXAMPLES if example.options or not example.refused]
REFUSED = [example for example in EXAMPLES if example.refused]


def written(example: Example) -> str:
    row = example.read()
    turns = [f"{message.role}: {message.content}" for message in row.messages]
    return turns[0].removeprefix("user: ") if len(turns) == 1 else " | ".join(turns)


@pytest.mark.parametrize("example", READ, ids=lambda example: example.name)
def test_a_shape_is_read(example: Example) -> None:
    row = example.read()
    assert written(example) == example.prompt
    assert row.references == example.answers, row.reference_error
    reply = (row.reply.thought, row.reply.answer) if row.reply else None
    assert reply == example.reply


@pytest.mark.parametrize("example", REFUSED, ids=lambda example: example.name)
def test_a_shape_is_refused_with_the_way_out(example: Example) -> None:
    with pytest.raises(BadRow) as refusal:
        example.read(with_options=False)
    assert example.refused in str(refusal.value)
    for role, key in example.options.items():
        assert f"?{role}={key}" in str(refusal.value) or "drop the row" in str(refusal.value)


def test_there_are_enough_shapes() -> None:
    names = [example.name for example in EXAMPLES]
    assert len(set(names)) == len(names) >= 56
