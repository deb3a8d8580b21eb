"""This file converts API requests to requests of the engine, and converts the engine's output to API responses.

A response is sent as a whole or as a stream.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from fastapi.responses import Response

from schoolhouse.data.chat import Conversation
from schoolhouse.data.stream_decode import StreamDecoder, TextDecoder
from schoolhouse.data.tokenizer import Tokenizer
from schoolhouse.policy.logprobs import TokenLogprob
from schoolhouse.serve.api_schema import (
    BaseCompletionRequest,
    ChatCompletionRequest,
    CompletionRequest,
    InvalidRequest,
)
from schoolhouse.serve.batch_engine import BatchEngine, PendingRequest
from schoolhouse.serve.prompts import context_words
from schoolhouse.types import NAN, Key, Problem, Rollout, SchoolError

Json = dict[str, Any]
_DELTA_FIELDS = {"thought": "reasoning_content", "answer": "content"}


@dataclass(frozen=True)
class Usage:
    """The token counts of a response."""

    prompt_tokens: int
    completion_tokens: int

    def to_json(self) -> Json:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
        }


def conversation_of(conversation: Conversation, body: ChatCompletionRequest) -> Conversation:
    """Return the chat template `conversation` with the template arguments that a request contains.

    Raises InvalidRequest if the chat template does not accept the arguments.
    """
    if not body.chat_template_kwargs:
        return conversation
    try:
        return conversation.with_arguments(body.chat_template_kwargs)
    except SchoolError as error:
        raise InvalidRequest(f"`chat_template_kwargs`: {error}", "chat_template_kwargs") from None


def pending_chat(
    engine: BatchEngine,
    conversation: Conversation,
    body: ChatCompletionRequest,
    prompt: tuple[int, ...],
    number: int,
    seed: int,
) -> list[PendingRequest]:
    """Make one engine request for each sample of a chat request. Raises InvalidRequest if the prompt is too long.

    `number`: the number of the chat request.
    """
    messages = tuple(sent.message for sent in body.messages)
    max_new_tokens = _max_new_tokens(engine, len(prompt), body.max_new_tokens, "messages")
    pending = []
    for sample in range(body.n):
        problem = Problem(f"{number}.{sample}", messages, "")
        rollout = _prompt_rollout(problem, _key(body, seed, number, sample), prompt)
        pending.append(
            PendingRequest(
                rollout,
                max_new_tokens,
                body.sampling_params,
                body.thinking_budget,
                body.stop_texts,
                body.top_logprobs,
                conversation,
            )
        )
    return pending


def pending_completions(
    engine: BatchEngine, body: CompletionRequest, prompts: Sequence[tuple[int, ...]], number: int, seed: int
) -> list[PendingRequest]:
    """Make one engine request for each sample of each prompt. The samples of one prompt are next to each other."""
    pending = []
    for index, ids in enumerate(prompts):
        max_new_tokens = _max_new_tokens(engine, len(ids), body.max_tokens, "prompt")
        for sample in range(body.n):
            key = _key(body, seed, number, index * body.n + sample)
            rollout = _prompt_rollout(Problem(f"{number}.{index}.{sample}", (), ""), key, ids)
            pending.append(
                PendingRequest(rollout, max_new_tokens, body.sampling_params, None, body.stop_texts, body.logprobs or 0)
            )
    return pending


def _prompt_rollout(problem: Problem, key: Key, ids: tuple[int, ...]) -> Rollout:
    return Rollout(problem, key, ids, (False,) * len(ids), (NAN,) * len(ids))


def _key(body: BaseCompletionRequest, seed: int, number: int, sample: int) -> Key:
    """Make the key of the random numbers from the seed of the request. Without a seed, the request's number is used."""
    if body.seed is None:
        return Key(seed, "served", step=number, sample=sample)
    return Key(body.seed, "asked", sample=sample)


def _max_new_tokens(engine: BatchEngine, prompt_tokens: int, requested: int | None, param: str) -> int:
    remaining = engine.max_model_len - prompt_tokens
    if remaining < 1 or (requested or 0) > remaining:
        raise InvalidRequest(
            f"the context length is {context_words(engine)}, but the prompt has {prompt_tokens} tokens and the "
            f"completion needs {requested or 1} more; shorten the prompt, or lower max_tokens",
            "max_tokens" if remaining >= 1 else param,
            "context_length_exceeded",
        )
    return max(1, engine.room.default_len(prompt_tokens) - prompt_tokens if requested is None else requested)


def _first_stop(text: str, stop_texts: Sequence[str]) -> int | None:
    """Return the index at which the first stop text begins, or None if the text contains no stop text."""
    return min((at for stop in stop_texts if (at := text.find(stop)) >= 0), default=None)


# --- whole responses


def split_completion(
    conversation: Conversation, rollout: Rollout, stop_texts: Sequence[str]
) -> tuple[str | None, str, str]:
    """Split a completion into its thought (None if missing), its answer and its finish reason.

    Thought and answer are cut at the first stop text.
    """
    completion = conversation.parse_completion(rollout)
    thought, answer = completion.thought, completion.answer
    if (end := _first_stop(answer, stop_texts)) is not None:
        return thought, answer[:end], "stop"
    if thought is not None and (end := _first_stop(thought, stop_texts)) is not None:
        return thought[:end], answer, "stop"
    return thought, answer, _finish_reason(rollout)


def _finish_reason(rollout: Rollout) -> str:
    return "stop" if rollout.finish_reason == "stop" else "length"


def assistant_message(thought: str | None, answer: str) -> Json:
    return {
        "role": "assistant",
        "content": answer,
        "reasoning_content": thought,
        "refusal": None,
    }


def chat_choice(
    conversation: Conversation,
    body: ChatCompletionRequest,
    index: int,
    tokens: Sequence[TokenLogprob],
    rollout: Rollout,
) -> Json:
    thought, answer, finish_reason = split_completion(conversation, rollout, body.stop_texts)
    logprobs = None
    if body.logprobs:
        logprobs = {"content": [_chat_logprob(conversation, token) for token in tokens], "refusal": None}
    message = assistant_message(thought, answer)
    return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": finish_reason}


def completion_choice(
    conversation: Conversation,
    body: CompletionRequest,
    index: int,
    tokens: Sequence[TokenLogprob],
    rollout: Rollout,
    echoed: Sequence[TokenLogprob] = (),
) -> Json:
    """Make the response for one completion.

    With `echo`, the prompt comes before the text of the completion, and the prompt's tokens have log-probabilities too.
    """
    tokenizer = conversation.tokenizer
    sampled = [token for token in tokens if token.token not in conversation.stop_ids]
    text = tokenizer.decode([token.token for token in sampled])
    prompt = tokenizer.decode([token.token for token in echoed if token.token not in tokenizer.bos_ids])
    return {
        "index": index,
        "text": prompt + text[: _first_stop(text, body.stop_texts)],
        "logprobs": _completion_logprobs(conversation, [*echoed, *sampled]) if body.logprobs is not None else None,
        "finish_reason": _finish_reason(rollout),
    }


def _completion_logprobs(conversation: Conversation, tokens: Sequence[TokenLogprob]) -> Json:
    tokenizer = conversation.tokenizer
    texts = [_token_text(tokenizer, token.token)[0] for token in tokens]
    offsets = [0]
    for text in texts:
        offsets.append(offsets[-1] + len(text))
    # several ids can decode to the same text (parts of characters): the likelier id is first and stays
    top_logprobs = [
        {_token_text(tokenizer, i)[0]: p for i, p in reversed(token.top_logprobs)} if token.top_logprobs else None
        for token in tokens
    ]
    return {
        "tokens": texts,
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": top_logprobs,
        "text_offset": offsets[:-1],
    }


def _chat_logprob(conversation: Conversation, token: TokenLogprob) -> Json:
    return {
        **_logprob_json(conversation, token.token, token.logprob),
        "top_logprobs": [_logprob_json(conversation, other, logprob) for other, logprob in token.top_logprobs],
    }


def _logprob_json(conversation: Conversation, token: int, logprob: float | None) -> Json:
    text, text_bytes = _token_text(conversation.tokenizer, token)
    return {"token": text, "logprob": logprob, "bytes": text_bytes}


@lru_cache(1 << 16)
def _token_text(tokenizer: Tokenizer, token: int) -> tuple[str, list[int]]:
    """Return the text of a token, and the bytes of the text.

    The results are cached, because a response with log-probabilities needs the texts of thousands of tokens.
    """
    text = tokenizer.decode([token])
    return text, list(text.encode())


async def whole_response(header: Json, choices: Iterable[Json], usage: Json, in_thread: bool = False) -> Response:
    """Make the response with all choices.

    `in_thread`: if true, a separate thread converts the choices to JSON, so that the event loop can do other work. Set
        `in_thread` for responses with many log-probabilities.
    """

    def render() -> Response:
        parts = [_to_json(choice) for choice in choices]
        content = f'{_to_json(header)[:-1]},"choices":[{",".join(parts)}],"usage":{_to_json(usage)}}}'
        return Response(content.encode(), media_type="application/json")

    return await asyncio.to_thread(render) if in_thread else render()


def _to_json(value: Json) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


# --- streamed responses


class _StopTextFilter:
    """A filter that passes on all text before the first stop text.

    Text that could be the beginning of a stop text is not passed on until more text arrives.
    """

    def __init__(self, stop_texts: Sequence[str]) -> None:
        self._stop_texts, self._held, self._stopped = stop_texts, "", False

    def push(self, text: str, last: bool = False) -> str:
        if self._stopped:
            return ""
        text = self._held + text
        if (end := _first_stop(text, self._stop_texts)) is not None:
            self._stopped = True
            return text[:end]
        held = 0 if last else max((_overlap(text, stop) for stop in self._stop_texts), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]


def _overlap(text: str, stop: str) -> int:
    """Count how many characters at the end of `text` are also the beginning of `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)


async def chat_deltas(
    conversation: Conversation, body: ChatCompletionRequest, pending: PendingRequest
) -> AsyncIterator[Json | Usage]:
    """Yield the text deltas of one chat sample, with log-probabilities, then its finish reason and its token counts."""
    decoder = StreamDecoder(conversation)
    filters = {part: _StopTextFilter(body.stop_texts) for part in _DELTA_FIELDS}
    yield {"delta": {"role": "assistant", "content": ""}, "finish_reason": None}
    async for items in pending.stream():
        tokens = [item for item in items if isinstance(item, TokenLogprob)]
        finished = next((item for item in items if isinstance(item, Rollout)), None)
        decoded = [delta for token in tokens for delta in decoder.push(token.token)]
        decoded += decoder.flush() if finished else []
        delta: dict[str, str] = {}
        for part, text in decoded:
            name = _DELTA_FIELDS[part]
            delta[name] = delta.get(name, "") + filters[part].push(text)
        if finished:
            for part, name in _DELTA_FIELDS.items():
                delta[name] = delta.get(name, "") + filters[part].push("", last=True)
        delta = {name: text for name, text in delta.items() if text}
        if delta or (body.logprobs and tokens):
            logprobs = {}
            if body.logprobs:
                logprobs = {"logprobs": {"content": [_chat_logprob(conversation, token) for token in tokens]}}
            yield {"delta": delta, **logprobs, "finish_reason": None}
        if finished:
            yield {"delta": {}, "finish_reason": split_completion(conversation, finished, body.stop_texts)[2]}
            yield _usage_of(pending, finished)


async def completion_deltas(
    conversation: Conversation, body: CompletionRequest, pending: PendingRequest
) -> AsyncIterator[Json | Usage]:
    """Yield pieces of the text of one sample, then the finish reason, then the token counts."""
    decoder, stop_filter = TextDecoder(conversation.tokenizer), _StopTextFilter(body.stop_texts)
    async for items in pending.stream():
        tokens = [item for item in items if isinstance(item, TokenLogprob) and item.token not in conversation.stop_ids]
        finished = next((item for item in items if isinstance(item, Rollout)), None)
        text = stop_filter.push("".join(decoder.push(token.token) for token in tokens))
        text += stop_filter.push(decoder.flush(), last=True) if finished else ""
        if text or (body.logprobs is not None and tokens):
            logprobs = {}
            if body.logprobs is not None:
                logprobs = {"logprobs": _completion_logprobs(conversation, tokens)}
            yield {"text": text, **logprobs, "finish_reason": None}
        if finished:
            yield {"text": "", "finish_reason": _finish_reason(finished)}
            yield _usage_of(pending, finished)


def _usage_of(pending: PendingRequest, finished: Rollout) -> Usage:
    return Usage(len(pending.rollout), len(finished) - len(pending.rollout))


def sse_event(data: Json | str) -> str:
    """One server-sent event."""
    return f"data: {data if isinstance(data, str) else json.dumps(data, separators=(',', ':'))}\n\n"
