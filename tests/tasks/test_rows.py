"""Rows as examples: contexts, system turns, replies in columns of their own, and the ends of chats."""

from typing import Any

import pytest

from schoolhouse.data.chats import BadRow
from schoolhouse.tasks.rows import Row, RowOptions, parse_row
from schoolhouse.types import Message

USER, REPLY = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}


def parse(row: dict[str, Any], ignore: tuple[str, ...] = (), **mapping: str) -> Row:
    return parse_row(row, RowOptions(mapping, ignore))


def test_two_rows_with_different_contexts_are_two_problems() -> None:
    first, second = (parse({"question": "q", "context": text, "answer": "a"}) for text in ("one", "two"))
    assert first.messages != second.messages


def test_a_context_by_hand_stands_before_the_question() -> None:
    row = parse({"premise": "All is grey.", "ask": "What?", "gold": "grey"}, question="ask", context="premise")
    assert row.messages == (Message("user", "All is grey.\n\nWhat?"),)


def test_a_context_that_is_no_text_is_refused_with_the_way_out() -> None:
    row = {"question": "q", "answer": "a", "context": {"pages": [1]}}
    with pytest.raises(BadRow, match=r"`context` is .*it must be text; .*`\?ignore=context`"):
        parse(row)
    assert parse(row, ignore=("context",)).messages == (Message("user", "q"),)


def test_a_system_column_is_not_written_twice() -> None:
    turns = [{"role": "system", "content": "s"}, USER, REPLY]
    assert parse({"system": "s", "messages": turns}).messages == (Message("system", "s"), Message("user", "q"))


def test_a_reply_follows_its_own_prompt_where_a_user_speaks_last() -> None:
    row = parse({"messages": [USER, REPLY, {"role": "user", "content": "more"}]})
    assert [message.content for message in row.messages] == ["q", "a", "more"]
    assert row.reply
    assert (row.reply.messages, row.reply.answer) == ((Message("user", "q"),), "a")


def test_a_chat_may_have_an_answer() -> None:
    row = parse({"messages": [{"role": "system", "content": "s"}, USER], "answer": "18"})
    assert (row.references, row.reply) == (("18",), None)
    assert parse({"messages": [USER, REPLY], "answer": "18"}, answer="answer").references == ("18",)


def test_excluded_turns_are_counted_behind_the_system_turn() -> None:
    turns = [USER, {**REPLY, "weight": 0}, USER, REPLY]
    row = parse({"system": "s", "messages": turns})
    assert row.reply
    assert row.reply.untrained == (2,)
    assert row.reply.messages[2].role == "assistant"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": [USER, {**REPLY, "content": " "}]}, "turn 2 of `messages` is empty; delete the turn, or drop"),
        ({"system": "s", "messages": [{**USER, "content": ""}, REPLY]}, "turn 1 of `messages` is empty"),
        (
            {"prompt": "array([{'role': 'user'}], dtype=object)", "answer": "1"},
            "`prompt` is .*write the file as JSON lines",
        ),
        ({"messages": [REPLY]}, "`messages` has no user turn before the reply"),
        ({"messages": [USER, {**REPLY, "weight": 0}]}, "every assistant turn of `messages` is excluded"),
        ({"prompt": "q", "completion": [USER]}, "`completion` must end with an assistant turn"),
        (
            {"prompt": "q", "completion": [USER, REPLY]},
            r"`completion` is a whole conversation; .*`\?messages=completion`",
        ),
        ({"prompt": [USER, REPLY], "reference": "1"}, "`prompt` must end with a user turn"),
        ({"messages": [USER, REPLY], "reasoning": "r", "answer": "a"}, "`messages` must end with a user turn, because"),
    ],
)
def test_a_mistake_is_named(row: dict[str, Any], message: str) -> None:
    with pytest.raises(BadRow, match=message):
        parse(row)


def test_a_completion_may_be_turns() -> None:
    row = parse({"prompt": [USER], "completion": [{**REPLY, "reasoning_content": "t"}]})
    assert row.reply
    assert (row.reply.thought, row.reply.answer) == ("t", "a")


def test_of_several_generations_the_first_correct_one_is_the_reply() -> None:
    columns = {"problem": "q", "answer": "1", "generations": ["x", "<think>t</think>\\boxed{1}"]}
    chosen = parse({**columns, "correctness_math_verify": [False, True]}, completion="generations").reply
    first = parse(columns, completion="generations").reply
    assert chosen
    assert first
    assert (chosen.thought, chosen.answer, first.answer) == ("t", "\\boxed{1}", "x")
    with pytest.raises(BadRow, match="none of the replies in `generations` is marked as correct"):
        parse({**columns, "correctness_math_verify": [False, False]}, completion="generations")


def test_a_worked_solution_that_is_the_answer_is_no_thought() -> None:
    assert parse({"prompt": "q", "solution": "18", "ground_truth": "18"}).reply is None


def test_one_line_without_a_box_is_the_answer_of_a_prompt() -> None:
    assert parse({"prompt": "q", "solution": "$x = 2$"}).references == ("$x = 2$",)
    assert "has no final answer" in parse({"prompt": "q", "solution": "First.\nThen."}).reference_error


@pytest.mark.parametrize("text", ['[{"role": "user", "content": "q"}]', "[{'content': 'q', 'role': 'user'}]"])
def test_turns_that_a_table_has_written_as_text_are_turns(text: str) -> None:
    assert parse({"prompt": text, "answer": "1"}).messages == (Message("user", "q"),)
    assert parse({"prompt": f"Read {text}", "answer": "1"}).messages == (Message("user", f"Read {text}"),)
