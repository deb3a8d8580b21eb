"""The fields of request bodies. The fields have the same names as in OpenAI's API.

If a request has a field that the server does not support, the server returns an error and never ignores the field. The
server treats a field whose value is `null` like a missing field (request_fields.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Discriminator, Field, Strict, Tag, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

from schoolhouse.policy.sampling import SamplingParams
from schoolhouse.serve.request_fields import WHOLE, Bool, Float, RequestModel, field_error, only, shown
from schoolhouse.types import Message, SchoolError

ErrorCode = Literal["model_not_found", "context_length_exceeded", "invalid_value", "invalid_search"]
MAX_SEARCH_TOKENS = 65_536  # limit of one search, because other searches wait until it ends
MAX_SAMPLES, MAX_TOP_LOGPROBS, MAX_STOP_TEXTS, MAX_MESSAGES, MAX_PARTS = 64, 20, 4, 1_000, 1_000
MAX_STOP_TEXT_LENGTH, MAX_NAME_LENGTH = 1_000, 2_000  # characters

ZeroPenalty = Annotated[Float, only(0, 0.0, advice="the server has no penalties, so leave this field out")]
_NO_TOOLS = "the server does not support tools; leave this field out, and describe tools in a message"


class InvalidRequest(SchoolError):
    """The error for a request that cannot be served.

    The error contains the name of the invalid field, an error code and an HTTP status.
    """

    def __init__(
        self, message: str, param: str | None = None, code: ErrorCode = "invalid_value", status: int = 400
    ) -> None:
        super().__init__(message)
        self.param, self.code, self.status = param, code, status


class StreamOptions(RequestModel):
    """Options of a stream. With `include_usage`, the last event of the stream contains the token counts."""

    include_usage: Bool = False
    include_obfuscation: Annotated[Bool, only(False, advice="leave this field out")] = False


def _stop_list(value: Any) -> Any:
    if not isinstance(value, str | list):
        text = f"must be a text or a list of texts, but is {shown(value)}"
        raise PydanticCustomError("stop_type", "{text}", {"text": text})
    return [value] if isinstance(value, str) else value


class BaseCompletionRequest(RequestModel):
    """The fields that text completions and chat completions have in common."""

    model: Annotated[str, Field(max_length=MAX_NAME_LENGTH)]
    temperature: Annotated[Float, Field(ge=0, le=10)] = 1.0
    top_p: Annotated[Float, Field(ge=0, le=1)] = 1.0
    top_k: Annotated[int, Strict(), Field(ge=0, le=2**31 - 1), WHOLE] = 0
    """0: all tokens."""
    min_p: Annotated[Float, Field(ge=0, le=1)] = 0.0
    n: Annotated[int, Strict(), Field(ge=1, le=MAX_SAMPLES), WHOLE] = 1
    seed: Annotated[int, Strict(), Field(ge=-(2**63), le=2**63 - 1), WHOLE] | None = None
    stop: Annotated[
        list[str],
        Field(max_length=MAX_STOP_TEXTS, fail_fast=True),
        BeforeValidator(_stop_list),
        WithJsonSchema(
            {
                "anyOf": [
                    {"type": "string", "minLength": 1},
                    {"type": "array", "items": {"type": "string", "minLength": 1}, "maxItems": MAX_STOP_TEXTS},
                ]
            }
        ),
    ] = Field(default_factory=list)
    stream: Bool = False
    stream_options: StreamOptions | None = None
    user: str | None = None
    """The server accepts `user`, `metadata`, `safety_identifier` and `service_tier`, but does not use these fields."""
    metadata: dict[str, Any] | None = None
    safety_identifier: str | None = None
    service_tier: Literal["auto", "default"] | None = None
    store: Annotated[Bool, only(False, advice="the server stores no completions; leave `store` out")] = False
    presence_penalty: ZeroPenalty = 0.0
    frequency_penalty: ZeroPenalty = 0.0
    repetition_penalty: Annotated[Float, only(1, 1.0, advice="leave this field out")] = 1.0
    logit_bias: Annotated[dict[str, float], Field(max_length=0), only({}, advice="leave `logit_bias` out")] = Field(
        default_factory=dict
    )

    @model_validator(mode="after")
    def _check_stop(self) -> BaseCompletionRequest:
        for at, text in enumerate(self.stop):
            if not text:
                raise field_error(f"stop[{at}]", "is an empty text, which would end every completion; remove this text")
            if len(text) > MAX_STOP_TEXT_LENGTH:
                raise field_error(
                    f"stop[{at}]", f"has more than {MAX_STOP_TEXT_LENGTH:,} characters; shorten this text"
                )
            if "\0" in text:
                raise field_error(f"stop[{at}]", "contains a NUL character, which a completion never has; remove it")
        return self

    @property
    def stop_texts(self) -> tuple[str, ...]:
        return tuple(self.stop)

    @property
    def sampling_params(self) -> SamplingParams:
        return SamplingParams(self.temperature, self.top_k, self.top_p, self.min_p)


def _check_prompt(value: Any) -> Any:
    """Return the prompt. Raises an error if the prompt has none of the allowed forms (`_PROMPT_FORMS`)."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise PydanticCustomError("prompt_type", "{text}", {"text": f"{_PROMPT_FORMS}, but is {shown(value)}"})
    if value in ([], [[]]):
        text = "is an empty list; send a text or a list of token ids"
        raise PydanticCustomError("prompt_type", "{text}", {"text": text})
    kinds = set(map(type, value))
    if kinds not in ({str}, {int}, {list}):
        at = next(
            i for i, one in enumerate(value) if type(one) not in (str, int, list) or type(one) is not type(value[0])
        )
        where = f"but `prompt[{at}]` is {shown(value[at])}"
        raise PydanticCustomError("prompt_type", "{text}", {"text": f"{_PROMPT_FORMS}, {where}"})
    if kinds == {list}:
        for at, ids in enumerate(value):
            if not set(map(type, ids)) <= {int}:
                wrong = next(i for i, one in enumerate(ids) if type(one) is not int)
                where = f"but `prompt[{at}][{wrong}]` is {shown(ids[wrong])}"
                raise PydanticCustomError("prompt_type", "{text}", {"text": f"{_PROMPT_FORMS}, {where}"})
    return value


_PROMPT_FORMS = "must be a text, a list of texts, a list of token ids, or a list of lists of token ids"


def _check_logprobs(value: Any) -> Any:
    """Return the value of `logprobs`, or None for false, because some clients send false if they want no logprobs.

    Raises an error for true, because true does not say how many tokens the client wants.
    """
    if value is True:
        text = "must be a whole number in /v1/completions, but is true; send the number of most likely tokens, or 0"
        raise PydanticCustomError("logprobs_type", "{text}", {"text": text})
    return None if value is False else value


class CompletionRequest(BaseCompletionRequest):
    """The body of a request to POST /v1/completions, which continues a text or a list of token ids."""

    prompt: Annotated[
        Any,
        BeforeValidator(_check_prompt, json_schema_input_type=str | list[str] | list[int] | list[list[int]]),
    ]
    max_tokens: Annotated[int, Strict(), Field(ge=0), WHOLE] = 16
    echo: Bool = False
    logprobs: Annotated[
        Annotated[int, Strict(), Field(ge=0, le=MAX_TOP_LOGPROBS), WHOLE] | None, BeforeValidator(_check_logprobs)
    ] = None
    suffix: Annotated[str, only("", advice="the server adds text only at the end; leave `suffix` out")] = ""
    best_of: Annotated[int, Strict(), Field(ge=1), WHOLE] | None = None

    @model_validator(mode="after")
    def _check_fields(self) -> CompletionRequest:
        if self.best_of not in (None, self.n):
            raise field_error("best_of", "must be equal to `n`; leave out `best_of`")
        if self.echo and self.stream:
            raise field_error("echo", "cannot be used together with `stream`; leave out `stream` or `echo`")
        if self.max_tokens == 0 and not self.echo:
            raise field_error("max_tokens", "is 0, which is only allowed with `echo`; set `max_tokens` to 1 or more")
        return self

    @property
    def prompts(self) -> list[str | list[int]]:
        if isinstance(self.prompt, str) or isinstance(self.prompt[0], int):
            return [self.prompt]
        return self.prompt


class TextPart(RequestModel):
    """A part of a message's content. Text is the only supported type."""

    KINDS = ("text",)
    type: Literal["text"]
    text: str


def _check_content(content: Any) -> Any:
    if not isinstance(content, str | list):
        text = f"must be a text or a list of text parts, but is {shown(content)}"
        raise PydanticCustomError("content_type", "{text}", {"text": text})
    return content


def _content_form(content: Any) -> str:
    return "(parts)" if isinstance(content, list) else "(text)"


class ChatMessage(RequestModel):
    """One message of a conversation. In a message of the assistant, `reasoning_content` can contain its thinking.

    If `content` has several parts, the server joins their texts without a separator.
    """

    UNSUPPORTED: ClassVar[Mapping[str, str]] = {
        "tool_calls": "tool calls are not supported; write the call into `content`",
        "function_call": "function calls are not supported; write the call into `content`",
        "tool_call_id": "tool calls are not supported; write the result of the tool into a user message",
        "tools": "a message cannot have this field, and the server does not support tools; leave this field out",
        "tool_choice": "a message cannot have this field, and the server does not support tools; leave this field out",
        "name": "the chat template has no place for the name of a speaker; write the name into `content`",
        "refusal": "the field `refusal` is not supported; write the refusal into `content`",
        "audio": "audio is not supported; send only text",
        "annotations": "annotations are not supported; leave them out",
        "images": "images are not supported; send only text",
    }

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[
        Annotated[str, Tag("(text)")]
        | Annotated[list[TextPart], Field(max_length=MAX_PARTS, fail_fast=True), Tag("(parts)")],
        Discriminator(_content_form),
        BeforeValidator(_check_content),
    ] = ""
    reasoning_content: str | None = None
    reasoning: str | None = None
    """The name that some servers use for `reasoning_content`."""

    @model_validator(mode="after")
    def _check_thought(self) -> ChatMessage:
        if self.thought is not None and self.role != "assistant":
            name = "reasoning" if self.reasoning_content is None else "reasoning_content"
            raise field_error(name, "is allowed only in a message of the assistant; write the text into `content`")
        if None not in (self.reasoning, self.reasoning_content) and self.reasoning != self.reasoning_content:
            raise field_error("reasoning", "differs from `reasoning_content`; send only one of them")
        return self

    @property
    def thought(self) -> str | None:
        return self.reasoning if self.reasoning_content is None else self.reasoning_content

    @property
    def message(self) -> Message:
        content = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return Message("system" if self.role == "developer" else self.role, content, self.thought)


class ResponseFormat(RequestModel):
    """The format of the answer. The server supports only the format `text`."""

    KINDS = ("text",)
    type: Literal["text"]


class ChatCompletionRequest(BaseCompletionRequest):
    """The body of a request to POST /v1/chat/completions.

    The field `thinking_budget` is the maximum number of tokens of a thought. The field `search` names a search, as
    described in docs/search.md.
    """

    UNSUPPORTED: ClassVar[Mapping[str, str]] = {
        "tools": _NO_TOOLS,
        "functions": _NO_TOOLS,
        "audio": "audio is not supported; ask only for text",
        "prediction": "predicted outputs are not supported; leave this field out",
        "web_search_options": "the server has no web search; leave this field out",
    }

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]
    max_tokens: Annotated[int, Strict(), Field(ge=1), WHOLE] | None = None
    max_completion_tokens: Annotated[int, Strict(), Field(ge=1), WHOLE] | None = None
    logprobs: Bool = False
    top_logprobs: Annotated[int, Strict(), Field(ge=0, le=MAX_TOP_LOGPROBS), WHOLE] = 0
    thinking_budget: Annotated[int, Strict(), Field(ge=1), WHOLE] | None = None
    search: Annotated[str, Field(max_length=MAX_NAME_LENGTH)] = ""
    search_budget: Annotated[Float, Field(gt=0, le=MAX_SEARCH_TOKENS)] | None = None
    """Limit of the tokens that a search samples; the default is the largest allowed value."""
    tool_choice: Annotated[str, only("none", "auto", advice=_NO_TOOLS)] | None = None
    function_call: Annotated[str, only("none", "auto", advice=_NO_TOOLS)] | None = None
    parallel_tool_calls: Bool | None = None
    """This field has no effect, because the server does not support tools."""
    modalities: Annotated[list[str], only(["text"], advice="leave this field out")] | None = None
    response_format: ResponseFormat | None = None
    chat_template_kwargs: Annotated[dict[str, bool | int | float | str | None], Field(max_length=16)] | None = None
    """Arguments of the chat template, such as {"enable_thinking": false}. vLLM uses the same name for this field."""

    @model_validator(mode="after")
    def _check_combinations(self) -> ChatCompletionRequest:
        if self.top_logprobs and not self.logprobs:
            raise field_error("top_logprobs", "is set, but `logprobs` is not true; set `logprobs` to true")
        if self.search and self.chat_template_kwargs:
            raise field_error(
                "chat_template_kwargs", "cannot be used together with `search`; leave out `chat_template_kwargs`"
            )
        if self.search and (self.stream or self.n > 1 or self.logprobs or self.stop_texts):
            raise field_error(
                "search", "cannot be used with `stream`, `n`, `logprobs` or `stop`; leave out these fields"
            )
        filters_logits = self.top_k or self.min_p or self.top_p != 1.0
        if self.search and (self.thinking_budget or filters_logits):
            raise field_error(
                "search",
                "a request with `search` can set only `temperature`, `max_tokens` and `search_budget`; write all other "
                "options of the search into the text of `search`, after `?`",
            )
        if self.search_budget and not self.search:
            raise field_error(
                "search_budget", "is set, but `search` is not; set `search`, or leave out `search_budget`"
            )
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise field_error("max_tokens", "differs from `max_completion_tokens`; send only one of them")
        return self

    @property
    def max_new_tokens(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens
