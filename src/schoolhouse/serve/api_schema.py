"""What a request may say, field by field, in the words of OpenAI's API.

Fields that this server cannot honour are refused, not ignored: a request means what it says.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from schoolhouse.policy.sampling import SamplingParams
from schoolhouse.types import Message, SchoolError

Refused = Literal["model_not_found", "context_length_exceeded", "invalid", "search"]
Nothing = Annotated[float, Field(ge=0, le=0)]
"""Penalties are not served: only none may be asked for."""
MOST_SPENT = 65_536  # tokens of one search: others wait for it
MOST_SAMPLES, MOST_TOP, MOST_STOPS, MOST_MESSAGES = 64, 20, 4, 1_000


class Unfit(SchoolError):
    """A request that cannot be served as it is: the field it is about, and what is wrong with it."""

    def __init__(self, message: str, param: str | None = None, code: Refused = "invalid", status: int = 400) -> None:
        super().__init__(message)
        self.param, self.code, self.status = param, code, status


def sound(told: Any) -> Any:
    """What was sent, as it is. Raises ValueError where a text in it holds half a character: nothing can write it."""
    waiting = [told]
    while waiting:
        one = waiting.pop()
        if isinstance(one, str) and not one.isascii() and any("\ud800" <= c <= "\udfff" for c in one):
            raise ValueError("a text holds half a character (a lone surrogate)")
        if isinstance(one, dict):
            waiting += [*one.keys(), *one.values()]
        elif isinstance(one, list):
            waiting += one
    return told


class Options(BaseModel):
    """Whether a stream ends with an account of its tokens."""

    model_config = ConfigDict(extra="forbid")
    include_usage: bool = False


class Asked(BaseModel):
    """What both kinds of completion have in common."""

    model_config = ConfigDict(extra="forbid")

    model: str
    temperature: Annotated[float, Field(ge=0, le=10)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0
    """0: all."""
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    n: Annotated[int, Field(ge=1, le=MOST_SAMPLES)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: str | Annotated[list[str], Field(max_length=MOST_STOPS)] | None = None
    stream: bool | None = False
    stream_options: Options | None = None
    user: str | None = None
    """Read by nobody."""
    presence_penalty: Nothing | None = None
    frequency_penalty: Nothing | None = None
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = None

    _sound = model_validator(mode="before")(sound)

    @model_validator(mode="after")
    def _stops(self) -> Asked:
        if not all(self.stops):
            raise ValueError("`stop` holds an empty text, which would end every answer at once")
        if any("\0" in text or len(text) > 1_000 for text in self.stops):
            raise ValueError("`stop` holds a text that is too long (1,000 characters), or a character that is none")
        return self

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def samples(self) -> int:
        return self.n or 1

    @property
    def drawing(self) -> SamplingParams:
        temperature, top_p = (1.0 if value is None else value for value in (self.temperature, self.top_p))
        return SamplingParams(temperature, self.top_k, top_p, self.min_p)


class CompletionRequest(Asked):
    """POST /v1/completions: text, or ids, that goes on."""

    prompt: str | list[str] | list[int] | list[list[int]]
    max_tokens: Annotated[int, Field(ge=0)] | None = 16
    echo: bool | None = False
    logprobs: Annotated[int, Field(ge=0, le=MOST_TOP)] | None = None
    suffix: Literal[""] | None = None
    best_of: Annotated[int, Field(ge=1)] | None = None

    @model_validator(mode="after")
    def _whole(self) -> CompletionRequest:
        if self.best_of not in (None, self.samples):
            raise ValueError("`best_of` other than `n` is not served: ask for `n` samples")
        if self.echo and self.stream:
            raise ValueError("`echo` cannot be streamed")
        if self.max_tokens == 0 and not self.echo:
            raise ValueError("`max_tokens` is 0: only with `echo` is there anything to say then")
        if self.prompt in ([], [[]]):
            raise ValueError("`prompt` is empty")
        return self

    @property
    def prompts(self) -> list[str | list[int]]:
        if isinstance(self.prompt, str):
            return [self.prompt]
        if self.prompt and isinstance(self.prompt[0], int):
            return [[one for one in self.prompt if isinstance(one, int)]]
        return [one for one in self.prompt if not isinstance(one, int)]


class Part(BaseModel):
    """A piece of a message: text alone."""

    model_config = ConfigDict(extra="forbid")
    type: Literal["text"]
    text: str


class Said(BaseModel):
    """A turn of a conversation; what an assistant thought may come back as `reasoning_content`."""

    model_config = ConfigDict(extra="ignore")
    role: Annotated[str, Field(pattern="^(system|developer|user|assistant)$")]
    content: str | list[Part] | None = None
    reasoning_content: str | None = None

    @property
    def message(self) -> Message:
        content = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content or ())
        role = "system" if self.role == "developer" else self.role
        return Message(role, content, self.reasoning_content if self.role == "assistant" else None)


class ChatRequest(Asked):
    """POST /v1/chat/completions. `thinking_budget` bounds a thought in tokens, `search` is one of docs/search.md."""

    messages: Annotated[list[Said], Field(min_length=1, max_length=MOST_MESSAGES)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = False
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_TOP)] | None = None
    thinking_budget: Annotated[int, Field(ge=1)] | None = None
    search: str | None = None
    budget: Annotated[float, Field(gt=0, le=MOST_SPENT)] | None = None
    """Tokens that a search may spend: as many as any, unless told."""
    tools: Annotated[list[Any], Field(max_length=0)] | None = None
    tool_choice: Literal["none", "auto"] | None = None
    response_format: dict[Literal["type"], Literal["text"]] | None = None

    @model_validator(mode="after")
    def _together(self) -> ChatRequest:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("`top_logprobs` needs `logprobs`: true")
        if self.search and (self.stream or self.samples > 1 or self.logprobs or self.stops):
            raise ValueError("a `search` gives one answer, at once: leave out stream, n, logprobs and stop")
        narrowed = self.top_k or self.min_p or self.top_p not in (None, 1.0)
        if self.search and (self.thinking_budget or narrowed):
            raise ValueError("a `search` takes temperature and max_tokens; write what else it may do behind its `?`")
        if self.budget and not self.search:
            raise ValueError("`budget` is what a `search` may spend: name one, or leave it out")
        return self

    @property
    def length(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens
