"""From requests to tickets, and from what was said to the answers of OpenAI's API, whole or piece by piece."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

from schoolhouse.data.chat import Conversation
from schoolhouse.data.stream_decode import StreamDecoder, TextDecoder
from schoolhouse.policy.logprobs import TokenLogprob
from schoolhouse.serve.api_schema import Asked, ChatRequest, CompletionRequest, Unfit
from schoolhouse.serve.batch_engine import Piece, Ticket
from schoolhouse.types import NAN, Key, Problem, Rollout

Json = dict[str, Any]
_NAMES = {"thought": "reasoning_content", "answer": "content"}


@dataclass(frozen=True)
class Account:
    """Tokens read and said."""

    prompt: int
    said: int

    def to_json(self) -> Json:
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.said,
            "total_tokens": self.prompt + self.said,
        }


def chat_tickets(say: Conversation, c: ChatRequest, number: int, seed: int, context: int) -> list[Ticket]:
    """One for each sample. Raises Unfit for a conversation that leaves no room to answer."""
    messages = tuple(said.message for said in c.messages)
    prompt = say.prompt(messages)
    length = _room(len(prompt), c.length, context)
    top = (c.top_logprobs or 0) if c.logprobs else 0
    made = []
    for sample in range(c.samples):
        rollout = say.prompt_rollout(Problem(f"{number}.{sample}", messages, ""), _key(c, seed, number, sample))
        made.append(Ticket(rollout, length, c.drawing, c.thinking_budget, c.stops, top))
    return made


def completion_tickets(say: Conversation, c: CompletionRequest, number: int, seed: int, context: int) -> list[Ticket]:
    """One for each sample of each prompt, prompt by prompt."""
    made = []
    for at, prompt in enumerate(c.prompts):
        ids = _ids(say, prompt)
        length = _room(len(ids), c.max_tokens, context)
        for sample in range(c.samples):
            key = _key(c, seed, number, at * c.samples + sample)
            problem = Problem(f"{number}.{at}.{sample}", (), "")
            begun = Rollout(problem, key, ids, (False,) * len(ids), (NAN,) * len(ids))
            made.append(Ticket(begun, length, c.drawing, None, c.stops, c.logprobs or 0))
    return made


def _ids(say: Conversation, prompt: str | list[int]) -> tuple[int, ...]:
    """Text is plain text: markup in it is read as markup only where it comes as ids."""
    tokenizer = say.tokenizer
    if isinstance(prompt, str):
        ids = tokenizer.encode(prompt)
    elif any(not 0 <= one < tokenizer.vocab_size for one in prompt):
        raise Unfit(f"`prompt` holds an id that is none of the model's {tokenizer.vocab_size}", "prompt")
    else:
        ids = prompt
    return tuple(ids) or (tokenizer.eos_id,)  # nothing at all: as texts begin


def _key(c: Asked, seed: int, number: int, sample: int) -> Key:
    """A request with a seed says the same whenever it comes; one without draws anew."""
    return Key(seed, "served", step=number, sample=sample) if c.seed is None else Key(c.seed, "asked", sample=sample)


def _room(prompt: int, wanted: int | None, context: int) -> int:
    left = context - prompt
    if left < 1 or (wanted or 0) > left:
        raise Unfit(
            f"this model reads {context} tokens: {prompt} of the request and {wanted or 1} to be said are more",
            "max_tokens" if left >= 1 else "messages",
            "context_length_exceeded",
        )
    return max(1, left if wanted is None else wanted)


# --- whole


def spoken(say: Conversation, rollout: Rollout, stops: Sequence[str]) -> tuple[str | None, str, str]:
    """The thought (None: there was none) and the answer, up to a stop text, and why it ended."""
    reply = say.parse_completion(rollout)
    thought, answer = reply.thought, reply.answer
    cut = min((at for text in stops if (at := answer.find(text)) >= 0), default=None)
    if cut is not None:
        return thought, answer[:cut], "stop"
    if thought is not None and (inside := min((at for t in stops if (at := thought.find(t)) >= 0), default=-1)) >= 0:
        return thought[:inside], answer, "stop"
    return thought, answer, "stop" if rollout.finish_reason == "stop" else "length"


def message(thought: str | None, answer: str) -> Json:
    return {
        "role": "assistant",
        "content": answer,
        "reasoning_content": thought,
        "refusal": None,
    }


def chat_choice(say: Conversation, c: ChatRequest, at: int, pieces: Sequence[Piece], rollout: Rollout) -> Json:
    thought, answer, reason = spoken(say, rollout, c.stops)
    logprobs = {"content": [_likely(say, piece) for piece in pieces], "refusal": None} if c.logprobs else None
    return {"index": at, "message": message(thought, answer), "logprobs": logprobs, "finish_reason": reason}


def completion_choice(
    say: Conversation,
    c: CompletionRequest,
    at: int,
    pieces: Sequence[Piece],
    rollout: Rollout,
    echoed: Sequence[TokenLogprob] = (),
) -> Json:
    """Text that went on; with `echo` behind the prompt, whose tokens are told like those that were said."""
    said = [piece for piece in pieces if piece.token not in say.stop_ids]
    text = say.tokenizer.decode([piece.token for piece in said])
    cut = min((at for stop in c.stops if (at := text.find(stop)) >= 0), default=None)
    reason = "stop" if rollout.finish_reason == "stop" else "length"
    told: list[TokenLogprob | Piece] = [*echoed, *said]
    before = say.tokenizer.decode([one.token for one in echoed])
    logprobs = _listed(say, told) if c.logprobs is not None else None
    return {"index": at, "text": before + text[:cut], "logprobs": logprobs, "finish_reason": reason}


def _listed(say: Conversation, told: Sequence[TokenLogprob | Piece]) -> Json:
    texts = [say.tokenizer.decode([one.token]) for one in told]
    offsets = [0]
    for text in texts:
        offsets.append(offsets[-1] + len(text))
    # a text may be that of several ids (pieces of characters): the likelier comes first and stays
    tops = [{say.tokenizer.decode([i]): p for i, p in reversed(one.top_logprobs)} if one.top_logprobs else None for one in told]
    return {
        "tokens": texts,
        "token_logprobs": [one.logprob for one in told],
        "top_logprobs": tops,
        "text_offset": offsets[:-1],
    }


def _likely(say: Conversation, piece: Piece) -> Json:
    return {
        **_one(say, piece.token, piece.logprob),
        "top_logprobs": [_one(say, token, logprob) for token, logprob in piece.top_logprobs],
    }


def _one(say: Conversation, token: int, logprob: float) -> Json:
    text = say.tokenizer.decode([token])
    return {"token": text, "logprob": logprob, "bytes": list(text.encode())}


# --- piece by piece


class _Cut:
    """Gives text as it comes, up to a stop text; what may be the beginning of one is held back."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops, self._held, self.over = stops, "", False

    def pass_on(self, text: str, last: bool = False) -> str:
        if self.over:
            return ""
        text = self._held + text
        found = min((at for stop in self._stops if (at := text.find(stop)) >= 0), default=None)
        if found is not None:
            self.over = True
            return text[:found]
        keep = 0 if last else max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of `text` are a beginning of `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)


async def chat_deltas(say: Conversation, c: ChatRequest, ticket: Ticket) -> AsyncIterator[Json | Account]:
    """Deltas of one sample with their log-probabilities, the reason of its end, and last what it took."""
    hearing, cuts = StreamDecoder(say), {part: _Cut(c.stops) for part in _NAMES}
    yield {"delta": {"role": "assistant", "content": ""}, "finish_reason": None}
    async for some in ticket.pieces():
        delta: dict[str, str] = {}
        pieces = [piece for piece in some if isinstance(piece, Piece)]
        ended = next((one for one in some if isinstance(one, Rollout)), None)
        heard = [one for piece in pieces for one in hearing.push(piece.token)]
        heard += hearing.flush() if ended else []
        for part, text in heard:
            delta[_NAMES[part]] = delta.get(_NAMES[part], "") + cuts[part].pass_on(text)
        if ended:
            for part, name in _NAMES.items():
                delta[name] = delta.get(name, "") + cuts[part].pass_on("", last=True)
        delta = {name: text for name, text in delta.items() if text}
        if delta or (c.logprobs and pieces):
            logprobs = {"logprobs": {"content": [_likely(say, one) for one in pieces]}} if c.logprobs else {}
            yield {"delta": delta, **logprobs, "finish_reason": None}
        if ended:
            yield {"delta": {}, "finish_reason": spoken(say, ended, c.stops)[2]}
            yield Account(len(ticket.rollout), len(ended) - len(ticket.rollout))


async def completion_deltas(say: Conversation, c: CompletionRequest, ticket: Ticket) -> AsyncIterator[Json | Account]:
    """Pieces of text of one sample, the reason of its end, and last what it took."""
    decoding, cut = TextDecoder(say.tokenizer), _Cut(c.stops)
    async for some in ticket.pieces():
        pieces = [one for one in some if isinstance(one, Piece) and one.token not in say.stop_ids]
        ended = next((one for one in some if isinstance(one, Rollout)), None)
        text = cut.pass_on("".join(decoding.push(piece.token) for piece in pieces))
        text += cut.pass_on(decoding.flush(), last=True) if ended else ""
        if text or (c.logprobs is not None and pieces):
            logprobs = {"logprobs": _listed(say, pieces)} if c.logprobs is not None else {}
            yield {"text": text, **logprobs, "finish_reason": None}
        if ended:
            yield {"text": "", "finish_reason": "stop" if ended.finish_reason == "stop" else "length"}
            yield Account(len(ticket.rollout), len(ended) - len(ticket.rollout))


def event(data: Json | str) -> str:
    """One server-sent event."""
    return f"data: {data if isinstance(data, str) else json.dumps(data, separators=(',', ':'))}\n\n"
