"""Conversations of data sets: roles, thoughts, tools, and content that cannot be text."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schoolhouse.data.chats import BadRow, is_given, parse_chat, split_thought, tools_text, with_system
from schoolhouse.types import Message


def chat(*turns: dict[str, Any]) -> tuple[Message, ...]:
    return parse_chat(list(turns), "messages").messages


@pytest.mark.parametrize(
    ("name", "role"),
    [("human", "user"), ("gpt", "assistant"), ("User", "user"), ("model", "assistant"), ("developer", "system")],
)
def test_roles_have_one_name(name: str, role: str) -> None:
    assert chat({"from": name, "value": "x"}) == (Message(role, "x"),)


def test_content_may_be_parts_of_text() -> None:
    assert (
        chat({"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]})[0].content
        == "a\nb"
    )


@pytest.mark.parametrize(
    ("turn", "message"),
    [
        ({"role": "user", "content": [{"type": "image", "image": "x"}]}, "content of type `image` that is not text"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, "of type `image_url`"),
        ({"role": "user", "content": 3}, "content that is not text"),
        ({"role": "user", "content": "x", "images": ["a.png"]}, "has `images`, which a text model cannot read"),
        ({"role": "user", "content": "x", "text": "y"}, "has `content` and `text`; keep one"),
        ({"role": "robot", "content": "x"}, "a turn of `messages` is .*it must be {role, content}"),
        ({"content": "x"}, "it must be {role, content}"),
        ({"role": "user"}, "it must be {role, content}"),
        ("x", "it must be {role, content}"),
        ({"role": "assistant", "content": "", "tool_calls": [{"id": 1}]}, "a tool call is .*must have a `name`"),
        (
            {"role": "assistant", "content": "", "tool_calls": [{"name": "f", "arguments": "{"}]},
            "the arguments of the tool `f` are .*must be JSON",
        ),
        (
            {"role": "assistant", "content": "<think>a</think>b", "reasoning_content": "c"},
            "two thoughts, one in its own key and one in the text",
        ),
    ],
)
def test_a_turn_that_cannot_be_read_is_named(turn: object, message: str) -> None:
    with pytest.raises(BadRow, match=message):
        parse_chat([{"role": "user", "content": "hi"}, turn], "messages")


@pytest.mark.parametrize("value", [[], "", "no turns", "[1", 3, None, {"role": "user"}])
def test_what_is_no_conversation_is_refused(value: object) -> None:
    with pytest.raises(BadRow, match="`chat` is .*it must be a list of turns"):
        parse_chat(value, "chat")


def test_a_list_of_texts_is_no_prompt() -> None:
    with pytest.raises(BadRow, match="a turn of `prompt`"):
        parse_chat(["one", "two"], "prompt")


@pytest.mark.parametrize("key", ["reasoning_content", "thinking", "reasoning"])
def test_a_thought_has_a_key_of_its_own(key: str) -> None:
    assert chat({"role": "assistant", "content": "b", key: "a"}) == (Message("assistant", "b", "a"),)


@pytest.mark.parametrize(
    ("text", "thought", "answer"),
    [
        ("<think>\na\n</think>\n\nb", "a", "b"),
        ("a\n</think>\nb", "a", "b"),
        ("<|begin_of_thought|>a<|end_of_thought|><|begin_of_solution|>b<|end_of_solution|>", "a", "b"),
        ("<reasoning>a</reasoning>b", "a", "b"),
        ("no marks", None, "no marks"),
        ("<think>never closed", None, "<think>never closed"),
        ("the tags <think> and </think>", None, "the tags <think> and </think>"),
    ],
)
def test_a_thought_is_split_from_its_answer(text: str, thought: str | None, answer: str) -> None:
    assert split_thought(text) == (thought, answer)


@given(st.text(), st.text())
def test_a_marked_thought_comes_back(thought: str, answer: str) -> None:
    if "<" not in thought + answer:
        assert split_thought(f"<think>{thought}</think>{answer}") == (thought.strip(), answer.strip())


def test_calls_and_results_of_tools_are_text() -> None:
    call = {
        "role": "assistant",
        "content": "I look.",
        "tool_calls": [{"function": {"name": "f", "arguments": {"x": "é"}}}],
    }
    messages = chat({"role": "user", "content": "q"}, call, {"role": "tool", "content": "r"})
    assert messages[1].content == 'I look.\n<tool_call>\n{"name": "f", "arguments": {"x": "é"}}\n</tool_call>'
    assert messages[2] == Message("user", "<tool_response>\nr\n</tool_response>")
    shared = chat({"from": "function_call", "value": '{"name": "f"}'}, {"from": "observation", "value": "r"})
    assert shared == (Message("assistant", '<tool_call>\n{"name": "f"}\n</tool_call>'), messages[2])


@pytest.mark.parametrize("tools", [[{"name": "f"}], '[{"name": "f"}]', {"name": "f"}])
def test_tools_are_lines_of_json(tools: Any) -> None:
    assert '<tools>\n{"name": "f"}\n</tools>' in tools_text(tools, "tools")


def test_a_text_joins_the_system_turn() -> None:
    user = Message("user", "q")
    assert with_system((user,), "a") == (Message("system", "a"), user)
    assert with_system((Message("system", "a"), user), "b") == (Message("system", "a\n\nb"), user)


def test_turns_with_weight_zero_are_not_trained() -> None:
    turns = [
        {"role": role, "content": "x", "weight": weight}
        for role, weight in [("user", 0), ("assistant", 0), ("assistant", 1)]
    ]
    assert parse_chat(turns, "messages").untrained == (1,)


def test_text_with_speakers_is_a_conversation() -> None:
    text = "\n\nHuman: Is it Assistant: yes?\n\nAssistant: No.\n\nHuman: Why?"
    expected = [("user", "Is it Assistant: yes?"), ("assistant", "No."), ("user", "Why?")]
    assert [(m.role, m.content) for m in parse_chat(text, "chosen").messages] == expected
    assert [m.role for m in parse_chat("USER: a\n\nASSISTANT: b <|endoftext|>", "chat").messages] == [
        "user",
        "assistant",
    ]


@pytest.mark.parametrize("value", [None, "", " \n", [], {}, {"a": [], "b": None}, float("nan")])
def test_a_cell_without_a_value_is_not_given(value: object) -> None:
    assert not is_given(value)


@pytest.mark.parametrize("value", [0, False, "a", [None], {"a": 0}])
def test_a_cell_with_a_value_is_given(value: object) -> None:
    assert is_given(value)
