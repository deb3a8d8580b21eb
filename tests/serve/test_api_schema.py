"""Request bodies: `null` counts as absent, values keep their types, and a message names the wrong field."""

from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from schoolhouse.serve.api_schema import ChatCompletionRequest, ChatMessage, CompletionRequest, StreamOptions
from schoolhouse.serve.chat_page import Vote
from schoolhouse.serve.request_fields import error_text
from schoolhouse.serve.reward_endpoint import RewardRequest

MESSAGES = [{"role": "user", "content": "7"}]
CHAT: dict[str, Any] = {"model": "tiny", "messages": MESSAGES}
COMPLETION: dict[str, Any] = {"model": "tiny", "prompt": "7"}
BODIES: list[tuple[type[BaseModel], dict[str, Any]]] = [
    (ChatCompletionRequest, CHAT),
    (CompletionRequest, COMPLETION),
    (ChatMessage, MESSAGES[0]),
    (StreamOptions, {}),
    (Vote, {"left": "a", "right": "b", "winner": "tie"}),
]
OPTIONAL = [(kind, body, name) for kind, body in BODIES for name in kind.model_fields if name not in body]


def complaint(kind: type[BaseModel], body: Any) -> tuple[str, str]:
    """The field and the message of the first error."""
    with pytest.raises(ValidationError) as refused:
        kind.model_validate(body)
    return error_text(refused.value.errors()[0])


@pytest.mark.parametrize(("kind", "body", "name"), OPTIONAL, ids=lambda value: getattr(value, "__name__", str(value)))
def test_null_is_absent(kind: type[BaseModel], body: dict[str, Any], name: str):
    given = kind.model_validate({**body, name: None})
    assert given == kind.model_validate(body)
    assert name not in given.model_fields_set


@pytest.mark.parametrize(("kind", "body"), BODIES[:3])
def test_an_unknown_field_that_is_null_is_absent(kind: type[BaseModel], body: dict[str, Any]):
    assert kind.model_validate({**body, "colour": None}) == kind.model_validate(body)


@pytest.mark.parametrize("name", ["tool_calls", "refusal", "annotations", "audio", "function_call", "name"])
def test_the_empty_fields_of_a_response_can_be_sent_back(name: str):
    for empty in (None, [], {}, ""):
        assert ChatMessage.model_validate({**MESSAGES[0], name: empty}) == ChatMessage.model_validate(MESSAGES[0])


def test_false_logprobs_are_no_logprobs():
    assert CompletionRequest.model_validate({**COMPLETION, "logprobs": False}).logprobs is None
    assert CompletionRequest.model_validate({**COMPLETION, "logprobs": 0}).logprobs == 0
    assert complaint(CompletionRequest, {**COMPLETION, "logprobs": True})[0] == "logprobs"


def test_a_whole_number_can_have_a_decimal_point():
    assert CompletionRequest.model_validate({**COMPLETION, "max_tokens": 4.0}).max_tokens == 4


def test_the_texts_of_parts_are_joined():
    parts = [{"type": "text", "text": "7"}, {"type": "text", "text": " + 5"}]
    assert ChatMessage.model_validate({"role": "user", "content": parts}).message.content == "7 + 5"


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_a_thought_has_two_names(name: str):
    message = ChatMessage.model_validate({"role": "assistant", "content": "12", name: "7+5=12"}).message
    assert (message.content, message.thought) == ("12", "7+5=12")


TEXT = {"type": "text", "text": "a"}
IMAGE = {"type": "image_url", "image_url": {"url": "data:"}}


def with_message(**message: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "7"}, {"role": "user", **message}]}


@pytest.mark.parametrize(
    ("change", "field", "message"),
    [
        (with_message(content=[TEXT, IMAGE]), "messages[1].content[1].type", "`image_url` is not supported; send text"),
        (with_message(content=[{"type": "input_audio"}]), "messages[1].content[0].type", "`input_audio` is not"),
        (with_message(content=[{"type": "text"}]), "messages[1].content[0].text", "is missing"),
        (with_message(content=["a"]), "messages[1].content[0]", "must be an object, but is `a`"),
        (with_message(content=5), "messages[1].content", "must be a text or a list of text parts, but is 5"),
        (with_message(content="a", tool_calls=[{"id": "1"}]), "messages[1].tool_calls", "not supported"),
        (with_message(content="a", name="Ann"), "messages[1].name", "write the name into `content`"),
        (with_message(content="a", colour="red"), "messages[1].colour", "unknown"),
        (with_message(content="a", reasoning_content="b"), "messages[1].reasoning_content", "message of the assistant"),
        (with_message(role="tool", content="a"), "messages[1].role", "`tool` is not supported; send system, developer"),
        ({"messages": "hello"}, "messages", "must be a list, but is `hello`"),
        ({"messages": []}, "messages", "must have at least 1"),
        ({"messages": None}, "messages", "missing"),
        ({"tools": [{"type": "function"}]}, "tools", "does not support tools"),
        ({"tool_choice": "required"}, "tool_choice", "does not support tools"),
        ({"response_format": {"type": "json_object"}}, "response_format.type", "not supported; send text"),
        ({"logprobs": 3}, "logprobs", "must be true or false, but is 3"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop", "has 5 entries, but the limit is 4"),
        ({"stop": 5}, "stop", "must be a text or a list of texts, but is 5"),
        ({"stop": ["a", 5]}, "stop[1]", "must be a text, but is 5"),
        ({"stop": ["a", ""]}, "stop[1]", "empty text"),
        ({"max_tokens": "5"}, "max_tokens", "must be a whole number, but is `5`"),
        ({"max_tokens": True}, "max_tokens", "must be a whole number, but is true"),
        ({"max_tokens": 0}, "max_tokens", "must be at least 1, but is 0"),
        ({"max_tokens": 4, "max_completion_tokens": 5}, "max_tokens", "differs from `max_completion_tokens`"),
        ({"temperature": "warm"}, "temperature", "must be a number, but is `warm`"),
        ({"temperature": float("nan")}, "temperature", "finite"),
        ({"n": 65}, "n", "must be at most 64, but is 65"),
        ({"seed": 2**64}, "seed", "must be at most 9,223,372,036,854,775,807"),
        ({"stream": 1}, "stream", "must be true or false, but is 1"),
        ({"stream_options": {"include_usage": "yes"}}, "stream_options.include_usage", "must be true or false"),
        ({"logit_bias": {"5": 1}}, "logit_bias", "not supported"),
        ({"temperatur": 1}, "temperatur", "did you mean `temperature`?"),
        ({"model": "x" * 3_000}, "model", "has 3,000 characters, but the limit is 2,000"),
        ({"model": 5}, "model", "must be a text, but is 5"),
        ({"user": []}, "user", "must be a text, but is a list of 0"),
    ],
)  # fmt: skip
def test_a_message_names_the_field_and_the_limit(change: dict[str, Any], field: str, message: str):
    path, text = complaint(ChatCompletionRequest, {**CHAT, **change})
    assert path == field
    assert text.startswith(f"{field}: ")
    assert message in text


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ({}, "but is an object"),
        ([], "is an empty list"),
        ([[]], "is an empty list"),
        (["a", 3], "but `prompt[1]` is 3"),
        ([1, True], "but `prompt[1]` is true"),
        ([[1], [2, "x"]], "but `prompt[1][1]` is `x`"),
        ([[1], "a"], "but `prompt[1]` is `a`"),
        ([{}], "but `prompt[0]` is an object"),
    ],
)
def test_a_wrong_prompt_is_refused_with_its_place(prompt: Any, message: str):
    path, text = complaint(CompletionRequest, {**COMPLETION, "prompt": prompt})
    assert path == "prompt"
    assert message in text


@pytest.mark.parametrize("prompt", ["a", ["a", "b"], [1, 2], [[1], [2, 3]], ""])
def test_the_four_forms_of_a_prompt(prompt: Any):
    body = CompletionRequest.model_validate({**COMPLETION, "prompt": prompt})
    expected = [prompt] if isinstance(prompt, str) or isinstance(prompt[0], int) else prompt
    assert body.prompts == expected


def test_a_graded_message_is_checked_like_a_chat_message():
    path, text = complaint(RewardRequest, {"messages": [*MESSAGES, {"role": "assistant", "content": [IMAGE]}]})
    assert (path, text) == (
        "messages[1].content[0].type",
        "messages[1].content[0].type: `image_url` is not supported; send text",
    )
    assert complaint(RewardRequest, {"messages": MESSAGES * 2})[0] == "messages"
