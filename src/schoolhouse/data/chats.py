"""Reads conversations of data sets as messages: OpenAI's `role` and `content`, and ShareGPT's `from` and `value`.

A thought comes from its own key (`reasoning_content`) or from marks in the text (`<think>`). Tool calls and their
results become text, so that every chat template can show them.
"""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from schoolhouse.types import Message

ROLES = ("system", "user", "assistant")

_ROLES = {
    "system": ("system", "developer"),
    "user": ("user", "human", "prompter", "question", "instruction"),
    "assistant": ("assistant", "gpt", "chatgpt", "bot", "bing", "bard", "model", "ai", "answer"),
    "call": ("function_call", "tool_call"),
    "tool": ("tool", "function", "function_response", "tool_response", "observation", "ipython"),
}
ROLE_OF = {name: role for role, names in _ROLES.items() for name in names}

_ROLE_KEYS, _TEXT_KEYS = ("role", "from", "speaker"), ("content", "value", "text")
_THOUGHT_KEYS = ("reasoning_content", "thinking", "reasoning", "thought")
_UNUSABLE_KEYS = {"image", "images", "image_url", "audio", "video", "videos", "tools", "functions", "context", "input"}
_THOUGHT_MARKS = (
    ("<think>", "</think>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<reasoning>", "</reasoning>"),
)
_ANSWER_MARKS = (("<|begin_of_solution|>", "<|end_of_solution|>"),)
_SPEAKERS = re.compile(r"(?:^|\n\n?|(?=### ))(?:### )?(Human|Assistant|USER|ASSISTANT|FUNCTION RESPONSE): ?")


class BadRow(Exception):
    """The error for a row that cannot be used. The message of the error says what is wrong, and how to correct the
    row."""


class Chat(NamedTuple):
    """A conversation. `untrained` holds the indices of the assistant turns that the row excludes from the loss."""

    messages: tuple[Message, ...]
    untrained: tuple[int, ...] = ()


def parse_chat(value: Any, key: str) -> Chat:
    """Read the conversation in a column: a list of turns, the JSON text of such a list, or `Human:`/`Assistant:` text.

    Raises BadRow if a turn cannot be read, or if the content of a turn is not text.
    """
    if isinstance(value, str):
        value = _turns_of_text(value, key)
    if not isinstance(value, list) or not value:
        raise BadRow(f"`{key}` is {shown(value)}; it must be a list of turns {{role, content}}")
    if key != "prompt" and all(isinstance(turn, str) for turn in value):  # as in LIMA: user and assistant in turn
        value = [{"role": ("user", "assistant")[at % 2], "content": turn} for at, turn in enumerate(value)]
    messages, untrained = [], []
    for turn in value:
        message, trained = _parse_turn(turn, key)
        if message.role == "assistant" and not trained:
            untrained.append(len(messages))
        messages.append(message)
    return Chat(tuple(messages), tuple(untrained))


def _turns_of_text(text: str, key: str) -> list[Any]:
    """Return the turns in a JSON text, or in a text such as hh-rlhf's `\\n\\nHuman: Hi\\n\\nAssistant: Hello`."""
    if text.lstrip().startswith(("[", "array(", "np.array(")):
        for parse in (json.loads, ast.literal_eval):
            try:
                return parse(text)
            except (ValueError, SyntaxError, RecursionError, MemoryError):
                continue
        raise BadRow(f"`{key}` is {shown(text)}; it must be a list of turns; write the file as JSON lines or Parquet")
    start, *parts = _SPEAKERS.split(text)
    if start.strip() or not parts:
        raise BadRow(f"`{key}` is {shown(text)}; it must be a list of turns {{role, content}}")
    roles = [name.casefold().replace(" ", "_") for name in parts[::2]]
    contents = [content.strip().removesuffix("<|endoftext|>").strip() for content in parts[1::2]]
    return [{"role": role, "content": content} for role, content in zip(roles, contents, strict=True)]


def _parse_turn(turn: Any, key: str) -> tuple[Message, bool]:
    """Return the message of a turn, and whether the row includes this turn in the loss."""
    if not isinstance(turn, Mapping):
        raise _bad_turn(turn, key)
    name = next((turn[role] for role in _ROLE_KEYS if isinstance(turn.get(role), str)), "")
    role = ROLE_OF.get(name.casefold())
    present = {name for name, value in turn.items() if is_given(value)}
    text_keys = [text for text in _TEXT_KEYS if text in present]
    if role is None or not any(text in turn for text in _TEXT_KEYS):
        raise _bad_turn(turn, key)
    if len(text_keys) > 1:
        raise BadRow(f"a turn of `{key}` has {' and '.join(f'`{text}`' for text in text_keys)}; keep one of them")
    if unusable := sorted(present & _UNUSABLE_KEYS):
        raise BadRow(f"a turn of `{key}` has `{unusable[0]}`, which a text model cannot read; remove row or key")
    content = _content(turn[text_keys[0]], key) if text_keys else ""
    calls = [call for name in ("tool_calls", "function_call") for call in _as_list(turn.get(name)) if call]
    content = "\n".join([*([content] if content else []), *map(_call_text, calls)])
    weight = next((turn[name] for name in ("weight", "train", "loss") if turn.get(name) is not None), 1)
    if role == "call":
        return Message("assistant", _call_text(content)), bool(weight)
    if role == "tool":
        return Message("user", f"<tool_response>\n{content}\n</tool_response>"), True
    if role != "assistant":
        return Message(role, content), True
    thoughts = [turn[name] for name in _THOUGHT_KEYS if is_given(turn.get(name))]
    thought, content = split_thought(content)
    if thoughts and not isinstance(thoughts[0], str):
        raise BadRow(f"the thought of a turn of `{key}` is {shown(thoughts[0])}; it must be text")
    if thoughts and thought and thought.strip() != thoughts[0].strip():
        raise BadRow(f"a turn of `{key}` has two thoughts, one in its own key and one in the text; keep one of them")
    return Message("assistant", content, thoughts[0].strip() if thoughts else thought), bool(weight)


def _bad_turn(turn: Any, key: str) -> BadRow:
    return BadRow(
        f"a turn of `{key}` is {shown(turn, 60)}; it must be {{role, content}} with a role of {', '.join(ROLES)}"
    )


def _content(value: Any, key: str) -> str:
    """Return the text of a message's content, which is a text or a list of parts of type `text`."""
    parts = value if isinstance(value, list) else [value]
    texts = [part.get("text") if isinstance(part, Mapping) else part for part in parts]
    for part, text in zip(parts, texts, strict=True):
        if not isinstance(text, str):
            kind = f" of type `{part['type']}`" if isinstance(part, Mapping) and "type" in part else ""
            raise BadRow(f"a turn of `{key}` has content{kind} that is not text; remove the row, or the content")
    return "\n".join(texts)


def _call_text(call: Any) -> str:
    """Write a tool call as text: `<tool_call>` with the name and the arguments of the tool as JSON."""
    if isinstance(call, str):
        return call if "<tool_call>" in call else f"<tool_call>\n{call.strip()}\n</tool_call>"
    function = call.get("function") if isinstance(call, Mapping) else None
    body = function if isinstance(function, Mapping) else call
    if not isinstance(body, Mapping) or not isinstance(body.get("name"), str):
        raise BadRow(f"a tool call is {shown(call)}; a tool call must have a `name` and `arguments`")
    arguments = body.get("arguments", {})
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError:
            raise BadRow(
                f"the arguments of the tool `{body['name']}` are {shown(arguments)}; the arguments must be JSON"
            ) from None
    text = json.dumps({"name": body["name"], "arguments": arguments}, ensure_ascii=False, default=str)
    return f"<tool_call>\n{text}\n</tool_call>"


def tools_text(tools: Any, key: str) -> str:
    """Write the tools of a row as text for the system turn, with one JSON object on each line."""
    if isinstance(tools, str):
        try:
            tools = json.loads(tools)
        except ValueError:
            return f"You can call these tools:\n{tools.strip()}"
    if not isinstance(tools, Sequence | Mapping):
        raise BadRow(f"the column `{key}` is {shown(tools)}; it must be a list of tools")
    lines = [json.dumps(tool, ensure_ascii=False, default=str) for tool in _as_list(tools)]
    return "\n".join(
        [
            "You can call these tools:",
            "<tools>",
            *lines,
            "</tools>",
            'Call a tool with <tool_call>{"name": ..., "arguments": {...}}</tool_call>.',
        ]
    )


def with_system(messages: tuple[Message, ...], text: str) -> tuple[Message, ...]:
    """Add a text to the system turn of the messages. Without a system turn, the text becomes a new first turn."""
    if messages and messages[0].role == "system":
        first = messages[0]
        return (first._replace(content="\n\n".join(filter(None, (first.content, text)))), *messages[1:])
    return (Message("system", text), *messages)


def split_thought(text: str) -> tuple[str | None, str]:
    """Split a reply into the thought at its start and the rest. The thought is None if the reply has no marks of a
    thought."""
    stripped = text.lstrip()
    for start, end in _THOUGHT_MARKS:
        if stripped.startswith(start) and end in stripped:
            thought, _, rest = stripped.removeprefix(start).partition(end)
            return thought.strip(), _unmark(rest.strip())
    if "</think>" in text and "<think>" not in text:  # the template has opened the thought
        thought, _, rest = text.partition("</think>")
        return thought.strip(), rest.strip()
    return None, _unmark(text)


def _unmark(text: str) -> str:
    for start, end in _ANSWER_MARKS:
        if text.lstrip().startswith(start):
            return text.strip().removeprefix(start).removesuffix(end).strip()
    return text


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [] if value is None else [value]


def is_given(value: Any) -> bool:
    """Return True if a cell has a value. Null, NaN, blank text, an empty list and a mapping without values do not count
    as values."""
    if isinstance(value, str):
        return bool(value.strip())
    if isinstance(value, Mapping):
        return any(map(is_given, value.values()))
    if isinstance(value, float):
        return not math.isnan(value)
    return value is not None and not (isinstance(value, list | tuple) and not value)


def has_user_turn(value: Any) -> bool:
    """Return True if a value is a conversation with a user turn."""
    try:
        return any(message.role == "user" for message in parse_chat(value, "").messages)
    except BadRow:
        return False


def shown(value: Any, length: int = 40) -> str:
    """Write a value as JSON for an error message, and cut it off after `length` characters."""
    return json.dumps(value, ensure_ascii=False, default=str)[:length]
