"""This file checks the sizes of the prompts in a request, and then encodes the prompts as token ids.

If the number of characters shows that a prompt is too long, the server refuses the prompt before encoding. A separate
thread encodes long prompts, so that the server can answer other requests at the same time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import TypeVar

from schoolhouse.data.chat import Conversation
from schoolhouse.data.tokenizer import Tokenizer
from schoolhouse.serve.api_schema import ChatCompletionRequest, CompletionRequest, InvalidRequest
from schoolhouse.serve.batch_engine import BatchEngine, QueueFull

LONG_TEXT, MANY_MESSAGES = 4_000, 32
"""A prompt with more characters or more messages is encoded in a thread. A prompt of this size takes about 2 ms."""
_NORMALIZED = 4
"""The maximum factor by which the normalization of a tokenizer is assumed to shorten a text."""

T = TypeVar("T")


class PromptEncoder:
    """A thread that encodes long prompts one after another.

    `max_waiting`: the maximum number of requests that wait for the thread.
    `timeout`: the number of seconds after which a request fails.
    """

    def __init__(self, max_waiting: int, timeout: float) -> None:
        self.max_waiting, self.timeout = max_waiting, timeout
        self._executor, self._requests = ThreadPoolExecutor(1, "encoding"), 0

    async def run(self, work: Callable[[], T]) -> T:
        """Run a function in the thread, and return its result.

        Raises QueueFull if too many requests wait for the thread, and TimeoutError after `timeout` seconds.
        """
        if self._requests > self.max_waiting:
            raise QueueFull(f"{self.max_waiting} requests with long prompts already wait; send the request again later")
        self._requests += 1
        try:
            async with asyncio.timeout(self.timeout):
                return await asyncio.get_running_loop().run_in_executor(self._executor, work)
        finally:
            self._requests -= 1

    def close(self) -> None:
        self._executor.shutdown(wait=False, cancel_futures=True)


async def chat_prompt(
    engine: BatchEngine, conversation: Conversation, body: ChatCompletionRequest, encoder: PromptEncoder
) -> tuple[int, ...]:
    """Return the token ids of a chat request's prompt.

    Raises InvalidRequest if the number of characters shows that the prompt is too long.
    """
    messages = tuple(sent.message for sent in body.messages)
    characters = sum(len(message.content) for message in messages)  # a template may drop thoughts
    check_length(conversation.tokenizer, engine.max_model_len, characters, "messages", context_words(engine))
    if (
        characters + sum(len(message.thought or "") for message in messages) <= LONG_TEXT
        and len(messages) <= MANY_MESSAGES
    ):
        return conversation.prompt(messages)
    # not `prompt`: thousands of long prompts in its cache would need much memory
    return await encoder.run(lambda: conversation.encode_prompt(messages))


async def completion_prompts(
    engine: BatchEngine, body: CompletionRequest, encoder: PromptEncoder
) -> list[tuple[int, ...]]:
    """Return the token ids of each prompt of a completion request.

    Raises InvalidRequest if the request asks for too many completions, if a prompt is certainly too long, or if a token
    id is invalid.
    """
    capacity = engine.max_num_seqs + engine.max_queued_seqs
    if (count := len(body.prompts) * body.n) > capacity:
        raise InvalidRequest(
            f"the request asks for {count:,} completions, but the limit is {capacity}; send fewer prompts", "prompt"
        )
    tokenizer, words = engine.policy.conversation.tokenizer, context_words(engine)
    for prompt in body.prompts:
        if isinstance(prompt, str):
            check_length(tokenizer, engine.max_model_len, len(prompt), "prompt", words)
        elif len(prompt) > engine.max_model_len:
            raise _too_long(words, f"{len(prompt):,} tokens", "prompt")
    if sum(map(len, body.prompts)) <= LONG_TEXT:
        return [_prompt_ids(tokenizer, prompt) for prompt in body.prompts]
    return await encoder.run(lambda: [_prompt_ids(tokenizer, prompt) for prompt in body.prompts])


def check_length(tokenizer: Tokenizer, max_len: int, characters: int, param: str, words: str = "") -> None:
    """Raise InvalidRequest if a text of `characters` characters certainly has more than `max_len` tokens.

    `words`: the text for the maximum length in the error message.
    """
    longest = longest_token(tokenizer)
    if longest and characters > max_len * longest * _NORMALIZED:
        raise _too_long(words or f"{max_len} tokens", f"{characters:,} characters", param)


def _too_long(words: str, size: str, param: str) -> InvalidRequest:
    text = f"the context length is {words}, but the prompt has {size}; shorten the prompt"
    return InvalidRequest(text, param, "context_length_exceeded")


def context_words(engine: BatchEngine) -> str:
    """Describe the maximum length of a sequence. The text also says if memory is too small for the full context."""
    room = engine.room
    if room.max_model_len == room.context_len:
        return f"{room.max_model_len} tokens"
    return (
        f"{room.max_model_len} tokens (the memory of this server has no room for the full context of "
        f"{room.context_len} tokens)"
    )


@lru_cache(8)
def longest_token(tokenizer: Tokenizer) -> int:
    """Return the number of bytes of the longest token.

    Returns 0 if the tokenizer has no tokens for single bytes, because one unknown token can then replace a long text.
    """
    byte_level, byte_fallback = "Ġ" in tokenizer.vocab, "<0x00>" in tokenizer.vocab
    if not byte_level and not byte_fallback:
        return 0
    return max(len(token.encode()) for token in tokenizer.vocab)


def _prompt_ids(tokenizer: Tokenizer, prompt: str | Sequence[int]) -> tuple[int, ...]:
    """Return the token ids of a prompt.

    Clients can send special tokens only as token ids. If a text contains the name of a special token, the tokenizer
    encodes the name as normal text. Before the tokens of a text, the function adds the tokenizer's first tokens, for
    example the bos token.
    """
    if isinstance(prompt, str):
        ids: Sequence[int] = [*tokenizer.bos_ids, *tokenizer.encode(prompt)]
    elif invalid := [token for token in prompt if not 0 <= token < tokenizer.vocab_size]:
        raise InvalidRequest(
            f"`prompt` contains the token id {invalid[0]}, but token ids must be from 0 to less than "
            f"{tokenizer.vocab_size}",
            "prompt",
        )
    else:
        ids = prompt
    return tuple(ids) or (tokenizer.eos_id,)  # an empty prompt becomes the end-of-text token: texts begin after it
