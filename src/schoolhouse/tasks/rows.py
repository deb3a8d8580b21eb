"""Read a row of a data file as an example: the prompt, the accepted final answers, and the reply to imitate.

The file data/shapes.py finds the role of each column. The file rows.py reads the values of the columns. The file
references.py reads the answers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from schoolhouse.data.chats import BadRow, Chat, parse_chat, shown, split_thought, tools_text, with_system
from schoolhouse.data.shapes import Kind, Shape, normalized, recognize, value_at
from schoolhouse.tasks.choices import render_choices
from schoolhouse.tasks.references import optional_text, parse_answers, text_of
from schoolhouse.types import Message

_TURNS_AS_TEXT = re.compile(r"""\s*(array\(|np\.array\()?\[\s*\{\s*['"](role|content|from|value)['"]\s*:""")
"""A list of turns that a table has written as text."""

_CORRECT_MARKS = ("correctness_math_verify", "correctness", "is_correct")
"""Columns with a mark for each of several replies, as in OpenR1-Math."""


@dataclass(frozen=True, slots=True)
class RowOptions:
    """The user's options for columns. `mapping` has the column of each role, and `ignore` has the ignored columns."""

    mapping: Mapping[str, str] = field(default_factory=dict)
    ignore: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Reply:
    """A reply to imitate, and its prompt. `untrained` has the indices of the assistant turns that have no loss."""

    messages: tuple[Message, ...]
    thought: str | None
    answer: str
    style: str = "file"
    untrained: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Row:
    """The example that a row of a data file gives.

    messages         the prompt of the example.
    references       the accepted final answers. The tuple is empty if the row has no final answer.
    reference_error  the reason why the row has no reference. The text is empty if the row has a reference.
    reply            the reply to imitate, or None if the row has no reply.
    """

    kind: Kind
    shape: Shape
    messages: tuple[Message, ...]
    references: tuple[str, ...] = ()
    reference_error: str = ""
    reply: Reply | None = None


def parse_row(row: Mapping[str, Any], options: RowOptions) -> Row:
    """Return the example of a row. Raises BadRow with a message that says what is wrong and what to do."""
    shape = recognize(row, options.mapping, options.ignore)
    if shape.kind == "stored":
        return _stored(row, shape)
    if shape.kind == "chat":
        return _chat(row, shape, options)
    messages = _prompt(row, shape)
    if shape.kind == "choice":
        question, letter = render_choices(messages[-1].content, row, shape)
        messages = (*messages[:-1], messages[-1]._replace(content=question))
        thought = optional_text(row, shape.key("solution"))
        reply = Reply(messages, thought, f"\\boxed{{{letter}}}") if thought else None
        return Row(shape.kind, shape, messages, (letter,), "", reply)
    references, error, thought = parse_answers(row, shape)
    reply = None
    if shape.key("completion"):
        reply = _completion(row, shape, messages)
    elif thought and references:
        marked, answer = split_thought(thought)
        reply = Reply(messages, thought, f"\\boxed{{{references[0]}}}")
        if marked is not None:
            reply = Reply(messages, marked, answer)
    return Row(shape.kind, shape, messages, references, error, reply)


def _stored(row: Mapping[str, Any], shape: Shape) -> Row:
    """Read a row that `demonstration_to_row` wrote. The answer and the reference can have different spellings."""
    _ending_with_user(row["messages"], "messages")
    messages = tuple(Message(turn["role"], turn["content"], turn.get("thought")) for turn in row["messages"])
    thought, response = row["thought"], row["response"]
    if not isinstance(response, str) or not (thought is None or isinstance(thought, str)):
        raise BadRow("`response` must be text, and `thought` must be text or null; correct the row")
    references = (text_of(row["reference"], "reference").strip(), *map(str, row.get("aliases") or ()))
    return Row(
        "stored", shape, messages, references, "", Reply(messages, thought, response, row.get("style") or "file")
    )


# ---- the prompt


def _prompt(row: Mapping[str, Any], shape: Shape) -> tuple[Message, ...]:
    key = shape.key("question")
    value = value_at(row, key)
    if isinstance(value, list) or (isinstance(value, str) and _TURNS_AS_TEXT.match(value)):
        messages = _ending_with_user(value, key).messages
    else:
        messages = (Message("user", text_of(value, key).strip()),)
    if context_key := shape.key("context"):
        messages = (*messages[:-1], _with_context(messages[-1], row, context_key, key))
    return _with_system_columns(messages, row, shape)


def _with_context(message: Message, row: Mapping[str, Any], key: str, question: str) -> Message:
    """Add the context of a question before the question. The `input` of an instruction comes after the instruction."""
    context, name = _context_text(value_at(row, key), key).strip(), normalized(key)
    if name == "input" and normalized(question) in ("instruction", "prompt"):
        return message._replace(content=f"{message.content}\n\n{context}")
    blank = " " if name == "body" else "\n\n"  # the last sentence of a word problem, as in SVAMP and ASDiv
    return message._replace(content=f"{context}{blank}{message.content}")


def _context_text(value: Any, key: str) -> str:
    """Return the context of a question as one text. The value is text, a list of texts, or paragraphs with titles as in
    HotpotQA."""
    if isinstance(value, Mapping) and isinstance(value.get("contexts"), list):
        value = value["contexts"]
    if isinstance(value, Mapping) and {"title", "sentences"} <= value.keys():
        pairs = zip(value["title"], value["sentences"], strict=False)
        value = [f"{title}: {''.join(sentences)}" for title, sentences in pairs]
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        value = "\n".join(value)
    if not isinstance(value, str):
        raise BadRow(f"`{key}` is {shown(value)}; it must be text; to leave this column out, add `?ignore={key}`")
    return text_of(value, key)


def _with_system_columns(messages: tuple[Message, ...], row: Mapping[str, Any], shape: Shape) -> tuple[Message, ...]:
    """Return the messages with a system turn that has the system prompt and the tools of the row."""
    if key := shape.key("system"):
        text = text_of(value_at(row, key), key).strip()
        if not (messages and messages[0].role == "system" and messages[0].content.strip() == text):
            messages = with_system(messages, text)
    if key := shape.key("tools"):
        messages = with_system(messages, tools_text(value_at(row, key), key))
    return messages


def _ending_with_user(value: Any, key: str) -> Chat:
    chat = parse_chat(value, key) if value else Chat(())
    if not chat.messages or chat.messages[-1].role != "user":
        raise BadRow(f"`{key}` must end with a user turn; correct the prompt, or drop the row")
    return chat


# ---- chats and replies


def _chat(row: Mapping[str, Any], shape: Shape, options: RowOptions) -> Row:
    """Read a chat. The last assistant turn is the reply. User turns after the reply are not used for training."""
    key = shape.key("messages")
    messages, untrained = parse_chat(value_at(row, key), key)
    whole = _with_system_columns(messages, row, shape)
    untrained = tuple(at + len(whole) - len(messages) for at in untrained)
    references: tuple[str, ...] = ()
    error = "has a chat without a reference answer"
    if shape.key("answer") and (whole[-1].role == "user" or "answer" in options.mapping):
        references, error, _ = parse_answers(row, shape)
    if shape.key("completion"):
        if whole[-1].role != "user":
            raise BadRow(f"`{key}` must end with a user turn, because `{shape.key('completion')}` is the reply")
        return Row("chat", shape, whole, references, error, _completion(row, shape, whole))
    replies = [at for at, message in enumerate(whole) if message.role == "assistant"]
    trained = [at for at in replies if at not in untrained]
    if replies and not trained:
        raise BadRow(f"every assistant turn of `{key}` is excluded from the loss; drop the row")
    prompt = whole[:-1] if whole[-1].role == "assistant" else whole
    for at, message in enumerate(whole):
        if not message.content.strip() and not message.thought and (message.role == "user" or at in trained):
            raise BadRow(
                f"turn {at + 1 - len(whole) + len(messages)} of `{key}` is empty; delete the turn, or drop the row"
            )
    if not any(message.role == "user" for message in (whole[: trained[-1]] if trained else prompt)):
        raise BadRow(f"`{key}` has no user turn before the reply; add a user turn, or drop the row")
    reply = None
    if trained:
        last = whole[trained[-1]]
        kept = tuple(at for at in untrained if at < trained[-1])
        reply = Reply(whole[: trained[-1]], last.thought, last.content, "file", kept)
    return Row("chat", shape, prompt, references, error, reply)


def _completion(row: Mapping[str, Any], shape: Shape, messages: tuple[Message, ...]) -> Reply:
    """Read the reply of a column. The value is text, a list of turns, or several replies, of which one is chosen."""
    key, thought_key = shape.key("completion"), shape.key("thought")
    value = value_at(row, key)
    if isinstance(value, list) and value and isinstance(value[0], Mapping):
        turns = parse_chat(value, key).messages
        if turns[-1].role != "assistant" or any(turn.role == "system" for turn in turns):
            raise BadRow(f"`{key}` must end with an assistant turn, and must have no system turn")
        if turns[0].role == "user":
            raise BadRow(f"`{key}` is a whole conversation; to read the conversation, add `?messages={key}`")
        return Reply((*messages, *turns[:-1]), turns[-1].thought, turns[-1].content)
    if isinstance(value, list):
        value = _choose_reply(row, key, value)
    thought, answer = split_thought(text_of(value, key))
    if thought_key:
        own = value_at(row, thought_key)
        thought = text_of(own[0] if isinstance(own, list) and own else own, thought_key).strip()
    return Reply(messages, thought, answer.strip())


def _choose_reply(row: Mapping[str, Any], key: str, replies: list[Any]) -> Any:
    """Return the first reply that is marked as correct. If no marks exist, return the first reply."""
    for name in _CORRECT_MARKS:
        marks = row.get(name)
        if isinstance(marks, list) and len(marks) == len(replies):
            right = [reply for reply, mark in zip(replies, marks, strict=True) if mark]
            if not right:
                raise BadRow(f"none of the replies in `{key}` is marked as correct in `{name}`; drop the row")
            return right[0]
    return replies[0] if replies else ""
