"""The fields of request bodies. The fields have the same names as in OpenAI's API.

If a request has a field that the server does not support, the server does not ignore the field but returns an error.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from schoolhouse.policy.sampling import SamplingParams
from schoolhouse.types import Message, SchoolError

ErrorCode = Literal["model_not_found", "context_length_exceeded", "invalid_value", "invalid_search"]
ZeroPenalty = Annotated[float, Field(ge=0, le=0)]
"""Penalties are not implemented, so 0 is the only accepted value."""
MAX_SEARCH_TOKENS = 65_536  # limit of one search, because other searches wait until it ends
MAX_SAMPLES, MAX_TOP_LOGPROBS, MAX_STOP_TEXTS, MAX_MESSAGES = 64, 20, 4, 1_000
MAX_STOP_TEXT_LENGTH = 1_000  # characters


class InvalidRequest(SchoolError):
    """The error for a request that cannot be served.

    The error has the wrong field, an error code and an HTTP status.
    """

    def __init__(
        self, message: str, param: str | None = None, code: ErrorCode = "invalid_value", status: int = 400
    ) -> None:
        super().__init__(message)
        self.param, self.code, self.status = param, code, status


def reject_surrogates(body: Any) -> Any:
    """Return the request body without changes.

    Raises ValueError if a string contains a lone surrogate, because UTF-8 cannot encode lone surrogates.
    """
    pending = [body]
    while pending:
        value = pending.pop()
        if isinstance(value, str) and not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value):
            raise ValueError("a string contains a lone surrogate (half of a character); send valid Unicode text")
        if isinstance(value, dict):
            pending += [*value.keys(), *value.values()]
        elif isinstance(value, list):
            pending += value
    return body


class StreamOptions(BaseModel):
    """Options of a stream. If `include_usage` is true, the last event of the stream has the token counts."""

    model_config = ConfigDict(extra="forbid")
    include_usage: bool = False


class BaseCompletionRequest(BaseModel):
    """The fields that text completions and chat completions have in common."""

    model_config = ConfigDict(extra="forbid")

    model: str
    temperature: Annotated[float, Field(ge=0, le=10)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0
    """0: all tokens."""
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    n: Annotated[int, Field(ge=1, le=MAX_SAMPLES)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: str | Annotated[list[str], Field(max_length=MAX_STOP_TEXTS)] | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    user: str | None = None
    """The field is accepted, but the server does not use it."""
    presence_penalty: ZeroPenalty | None = None
    frequency_penalty: ZeroPenalty | None = None
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = None

    _valid_unicode = model_validator(mode="before")(reject_surrogates)

    @model_validator(mode="after")
    def _check_stop(self) -> BaseCompletionRequest:
        if not all(self.stop_texts):
            raise ValueError("`stop` contains an empty text, which would end every completion at once; remove the text")
        if any(len(text) > MAX_STOP_TEXT_LENGTH for text in self.stop_texts):
            raise ValueError(f"`stop` contains a text of more than {MAX_STOP_TEXT_LENGTH:,} characters; shorten it")
        if any("\0" in text for text in self.stop_texts):
            raise ValueError("`stop` contains a NUL character, which never appears in a completion; remove it")
        return self

    @property
    def stop_texts(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def num_samples(self) -> int:
        return self.n or 1

    @property
    def sampling_params(self) -> SamplingParams:
        temperature, top_p = (1.0 if value is None else value for value in (self.temperature, self.top_p))
        return SamplingParams(temperature, self.top_k, top_p, self.min_p)


class CompletionRequest(BaseCompletionRequest):
    """The body of a request to POST /v1/completions, which continues a text or a list of token ids."""

    prompt: str | list[str] | list[int] | list[list[int]]
    max_tokens: Annotated[int, Field(ge=0)] | None = 16
    echo: bool | None = False
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    suffix: Literal[""] | None = None
    best_of: Annotated[int, Field(ge=1)] | None = None

    @model_validator(mode="after")
    def _check_fields(self) -> CompletionRequest:
        if self.best_of not in (None, self.num_samples):
            raise ValueError("`best_of` must be equal to `n`; leave out `best_of`")
        if self.echo and self.stream:
            raise ValueError("`echo` and `stream` cannot be used together; leave out `stream` or `echo`")
        if self.max_tokens == 0 and not self.echo:
            raise ValueError("`max_tokens` is 0, which is only allowed with `echo`; set `max_tokens` to 1 or more")
        if self.prompt in ([], [[]]):
            raise ValueError("`prompt` is empty; send a text or a list of token ids")
        return self

    @property
    def prompts(self) -> list[str | list[int]]:
        if isinstance(self.prompt, str):
            return [self.prompt]
        if self.prompt and isinstance(self.prompt[0], int):
            return [[token for token in self.prompt if isinstance(token, int)]]
        return [prompt for prompt in self.prompt if not isinstance(prompt, int)]


class TextPart(BaseModel):
    """A part of a message's content. Text is the only supported type."""

    model_config = ConfigDict(extra="forbid")
    type: Literal["text"]
    text: str


class ChatMessage(BaseModel):
    """One message of a conversation. In a message of the assistant, `reasoning_content` can contain its thinking."""

    model_config = ConfigDict(extra="ignore")
    role: Annotated[str, Field(pattern="^(system|developer|user|assistant)$")]
    content: str | list[TextPart] | None = None
    reasoning_content: str | None = None

    @property
    def message(self) -> Message:
        content = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content or ())
        role = "system" if self.role == "developer" else self.role
        return Message(role, content, self.reasoning_content if self.role == "assistant" else None)


class ChatCompletionRequest(BaseCompletionRequest):
    """The body of a request to POST /v1/chat/completions.

    The field `thinking_budget` is the maximum number of tokens of a thought. The field `search` names a search, as
    described in docs/search.md.
    """

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = False
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    thinking_budget: Annotated[int, Field(ge=1)] | None = None
    search: str | None = None
    search_budget: Annotated[float, Field(gt=0, le=MAX_SEARCH_TOKENS)] | None = None
    """Limit of the tokens that a search samples; the default is the largest allowed value."""
    tools: Annotated[list[Any], Field(max_length=0)] | None = None
    tool_choice: Literal["none", "auto"] | None = None
    response_format: dict[Literal["type"], Literal["text"]] | None = None

    @model_validator(mode="after")
    def _check_combinations(self) -> ChatCompletionRequest:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("`top_logprobs` is set, but `logprobs` is not true; set `logprobs` to true")
        if self.search and (self.stream or self.num_samples > 1 or self.logprobs or self.stop_texts):
            raise ValueError(
                "a `search` returns one answer and cannot be streamed; leave out `stream`, `n`, `logprobs` and `stop`"
            )
        filters_logits = self.top_k or self.min_p or self.top_p not in (None, 1.0)
        if self.search and (self.thinking_budget or filters_logits):
            raise ValueError(
                "a request with `search` can set only `temperature`, `max_tokens` and `search_budget`; write all other "
                "options of the search into the text of `search`, after `?`"
            )
        if self.search_budget and not self.search:
            raise ValueError("`search_budget` is set, but `search` is not; set `search`, or leave out `search_budget`")
        return self

    @property
    def max_new_tokens(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens
