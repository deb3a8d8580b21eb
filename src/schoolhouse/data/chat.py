"""Messages to token ids and spans, and back. Only this file uses chat templates.

Three rules hold for every template:

* Ids are appended. They are never decoded and encoded again. A prompt is encoded once, and the completion by itself.
* Only the text of the template itself becomes special tokens. `<|im_end|>` inside a message is ordinary text: a
  private character replaces it while the template is rendered. Templates that trim or search their contents are safe
  too.
* A completion is parsed by the ids of `<think>` and `</think>`. If a tokenizer has no such ids, the parser searches the
  text for the first `<think>`.

The template gets the thoughts of earlier assistant turns, and keeps or drops them. The default template keeps all
thoughts, so the sampled tokens stay a prefix of the next prompt. Qwen3's template keeps only the last thought.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from schoolhouse.data.chat_template import DEFAULT_TEMPLATE, PLAIN_TEMPLATE, compile_template
from schoolhouse.data.tokenizer import END_THINK, THINK, TURN_END, TURN_START, Tokenizer
from schoolhouse.types import NAN, Completion, Demonstration, Key, Message, Problem, Rollout, SchoolError

_ANSWER, _THOUGHT = "\ue0a0", "\ue0a1"  # placeholders while a template is inspected


class ThoughtFormat(NamedTuple):
    """How a template and a tokenizer write a thought.

    start_id, end_id       ids of `<think>` and `</think>`; None if the tokenizer has no such token
    opened_by_prompt       whether the generation prompt itself ends with `<think>`
    before, after, between white space after `<think>`, before `</think>`, and between `</think>` and the answer
    """

    start_id: int | None
    end_id: int | None
    opened_by_prompt: bool = False
    before: str = ""
    after: str = ""
    between: str = ""


class Conversation:
    """A tokenizer with a chat template: `template`, else the tokenizer's own template, else the default template.

    tokenizer       converts text to ids
    template        jinja2 text
    stop_ids        ids that end the assistant's turn
    thought_format  how a thought is written
    Raises SchoolError if the template has no assistant turn, no generation prompt, or no end of turn.
    """

    def __init__(self, tokenizer: Tokenizer, template: str | None = None) -> None:
        special_tokens = tokenizer.special_tokens
        default = DEFAULT_TEMPLATE if {TURN_START, TURN_END} <= special_tokens.keys() else PLAIN_TEMPLATE
        self.tokenizer = tokenizer
        self.template = template or tokenizer.chat_template or default
        self._compiled = compile_template(self.template)
        names = ("bos_token", "eos_token", "unk_token", "pad_token")
        self._template_variables = {name: tokenizer.special_token(name) or "" for name in names}
        longest_first = sorted(special_tokens, key=len, reverse=True)
        self._special_pattern = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        self.thought_format = ThoughtFormat(special_tokens.get(THINK), special_tokens.get(END_THINK))
        self._thought_place = ""  # "field": the template writes thoughts; "content": we do; "": it drops them
        self._inspect_template()
        self.prompt = lru_cache(4096)(self._prompt)

    @classmethod
    def load(cls, folder: Path | str) -> Conversation:
        """Tokenizer and chat template of a model folder."""
        return cls(Tokenizer.load(folder))

    def save(self, folder: Path | str) -> None:
        """Write tokenizer and chat template in Hugging Face format."""
        self.tokenizer.save(folder, self.template)
        (Path(folder) / "generation_config.json").write_text(
            json.dumps({"eos_token_id": list(self.stop_ids), "pad_token_id": self.tokenizer.pad_id}, indent=2) + "\n"
        )

    # --- from messages to ids

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> str:
        """The text of a conversation. With `add_generation_prompt` it ends at the start of the assistant's turn."""
        stand_ins = self._stand_ins(messages)
        return _unmask(self._render(messages, add_generation_prompt, stand_ins), stand_ins)

    def _prompt(self, messages: tuple[Message, ...]) -> tuple[int, ...]:
        """Ids of a conversation, up to the start of the assistant's turn."""
        stand_ins = self._stand_ins(messages)
        return tuple(self._encode_rendered([(self._render(messages, True, stand_ins), stand_ins)])[0])

    def prompt_rollout(self, problem: Problem, key: Key) -> Rollout:
        """The prompt of a problem as a rollout. The loss mask is False everywhere."""
        prompt = self.prompt(problem.messages)
        return Rollout(problem, key, prompt, (False,) * len(prompt), (NAN,) * len(prompt))

    def demonstration_rollout(self, demonstration: Demonstration, key: Key) -> Rollout:
        """A demonstration as a rollout. The loss mask covers the completion with its end-of-turn id, not the prompt."""
        return self.demonstration_rollouts([demonstration], [key])[0]

    def demonstration_rollouts(self, demonstrations: Sequence[Demonstration], keys: Sequence[Key]) -> list[Rollout]:
        """`demonstration_rollout` for many demonstrations. If a thought is None, it is written like an empty thought.

        Raises SchoolError if the template does not continue its own prompt, drops the thought or never ends the turn,
        or if the loss mask would be empty or full.
        """
        texts = [self._render_demonstration(demonstration) for demonstration in demonstrations]
        prompts = self._encode_rendered([(prompt, stand_ins) for prompt, _, stand_ins in texts])
        completions = self._encode_rendered([(completion, stand_ins) for _, completion, stand_ins in texts])
        parts = zip(demonstrations, keys, prompts, completions, strict=True)
        return [self._join_demonstration(*part) for part in parts]

    def _render_demonstration(self, demonstration: Demonstration) -> tuple[str, str, dict[str, str]]:
        """The text of the prompt, the text of the completion, and the stand-ins of both."""
        problem = demonstration.problem
        if demonstration.thought and not self._thought_place:
            raise SchoolError(f"problem {problem.id}: the chat template drops thoughts; use a template that keeps them")
        messages = (*problem.messages, Message("assistant", demonstration.answer, demonstration.thought))
        stand_ins = self._stand_ins(messages)
        prompt, whole = self._render(messages[:-1], True, stand_ins), self._render(messages, False, stand_ins)
        if not whole.startswith(prompt):
            pairs = enumerate(zip(prompt, whole, strict=False))
            at = next((i for i, (left, right) in pairs if left != right), len(whole))
            raise SchoolError(
                f"problem {problem.id}: the chat template does not continue its own generation prompt: the prompt has "
                f"{prompt[at:][:60]!r} where a demonstration has {whole[at:][:60]!r} (after {prompt[:at][-40:]!r})"
            )
        return prompt, whole[len(prompt) :], stand_ins

    def _join_demonstration(
        self, demonstration: Demonstration, key: Key, prompt: list[int], completion: list[int]
    ) -> Rollout:
        problem = demonstration.problem
        end = next((i + 1 for i, token in enumerate(completion) if token in self.stop_ids), 0)
        if not end:
            raise SchoolError(f"problem {problem.id}: the chat template does not end the assistant's turn")
        if end == 1 or not prompt:
            raise SchoolError(
                f"problem {problem.id}: the loss mask would be {'empty' if prompt else 'full'}: {len(prompt)} tokens "
                f"of prompt and {end - 1} of completion before the end of the turn"
            )
        return Rollout(
            problem,
            key,
            (*prompt, *completion[:end]),
            (False,) * len(prompt) + (True,) * end,
            (NAN,) * (len(prompt) + end),
            turns=(len(prompt),),
            finish_reason="context",
        )

    def append_messages(self, rollout: Rollout, messages: Sequence[Message]) -> Rollout:
        """The rollout with more messages of the user or a tool, up to the start of the assistant's next turn.

        If the last turn was cut off, it is ended first.
        """
        placeholders = [Message("user", ""), Message("assistant", _ANSWER), *messages]
        stand_ins = self._stand_ins(messages)
        text = self._render(placeholders, True, stand_ins).rpartition(_ANSWER)[2]
        ids = self._encode_rendered([(text, stand_ins)])[0]
        if rollout.tokens[-1] in self.stop_ids:
            ids = ids[1 + next(i for i, token in enumerate(ids) if token in self.stop_ids) :]
        return rollout.append_context(ids)

    def close_thought(self, rollout: Rollout) -> Rollout:
        """The rollout with `</think>` added if its last turn is inside a thought; else the rollout as it is."""
        end_id = self.thought_format.end_id
        end = self.tokenizer.encode(END_THINK) if end_id is None else [end_id]
        return rollout.prefill(end) if self.is_thinking(rollout) else rollout

    def is_thinking(self, rollout: Rollout) -> bool:
        """Whether the last turn is inside a thought: the thought was opened but not closed, and the turn goes on."""
        ids, complete = self._last_turn(rollout)
        if self._needs_text_search:
            _, opened, rest = self._split_at_think(ids)
            return bool(opened) and END_THINK not in rest and not complete
        start, end = self._thought_bounds(ids)
        return start is not None and end == len(ids) and not complete

    def stop_matcher(self, texts: Sequence[str]) -> tuple[list[bool], Callable[[Sequence[int]], bool]]:
        """For each id, whether it can complete a stop text; and a function that checks if ids end in a stop text."""
        if not all(texts):
            raise SchoolError("a stop string is empty: give at least one character")
        last = {text[-1] for text in texts}
        words = [self.tokenizer.decode([token]) for token in range(self.tokenizer.vocab_size)]
        maybe = [not last.isdisjoint(word) or "\ufffd" in word for word in words]  # incomplete characters count too
        return maybe, lambda ids: self.ends_with_any(ids, texts)

    def ends_with_any(self, ids: Sequence[int], texts: Sequence[str]) -> bool:
        """Whether the last of these ids completes one of the texts."""
        tail = self.tokenizer.decode(ids[-1 - max(len(text.encode()) for text in texts) :])
        return any(text in tail for text in texts)

    # --- from ids to a completion

    def parse_completion(self, rollout: Rollout) -> Completion:
        """The last turn as thought and answer.

        The thought is between the first `<think>` and the first `</think>` after it. Later tags are part of the answer.
        Text before `<think>` is dropped. If the thought is never closed, the answer is empty.
        """
        ids, complete = self._last_turn(rollout)
        if self._needs_text_search:
            text, opened, rest = self._split_at_think(ids)
            if not opened:
                return Completion(None, text, complete)
            thought, closed, answer = rest.partition(END_THINK)
        else:
            start, end = self._thought_bounds(ids)
            if start is None:
                return Completion(None, self.tokenizer.decode(ids), complete)
            closed = end < len(ids)
            thought, answer = self.tokenizer.decode(ids[start:end]), self.tokenizer.decode(ids[end + 1 :])
        if closed:
            thought = thought.removesuffix(self.thought_format.after)
        thought = thought.removeprefix(self.thought_format.before)
        return Completion(thought, answer.removeprefix(self.thought_format.between), complete)

    def thought_length(self, rollout: Rollout) -> int:
        """Number of tokens in the last turn's thought. Open thought: all tokens after `<think>`. No thought: 0."""
        start, end, _ = self.thought_span(rollout)
        return end - start

    def thought_span(self, rollout: Rollout) -> tuple[int, int, bool]:
        """Start and end of the last turn's thought among the rollout's tokens, and whether it was closed."""
        ids, _ = self._last_turn(rollout)
        offset = rollout.turns[-1] if rollout.turns else len(rollout)
        if not self._needs_text_search:
            start, end = self._thought_bounds(ids)
            return (offset, offset, False) if start is None else (offset + start, offset + end, end < len(ids))
        start = 0 if self.thought_format.opened_by_prompt else self._tokens_until(THINK, ids)
        rest = ids[start:]
        closed = END_THINK in self.tokenizer.decode(rest)
        end = self._tokens_until(END_THINK, rest) - len(self.tokenizer.encode(END_THINK)) if closed else len(rest)
        return offset + start, offset + start + max(0, end), closed

    def prefill_thought(self, rollout: Rollout, text: str) -> Rollout:
        """The rollout with text added to its thought. If the turn has not started, the thought is opened first."""
        if rollout.finish_reason not in ("open", "context"):
            return rollout.prefill(self.tokenizer.encode(text))
        if self.thought_format.opened_by_prompt:
            return rollout.prefill(self.tokenizer.encode(text))
        start_id = self.thought_format.start_id
        opening = self.tokenizer.encode(THINK) if start_id is None else [start_id]
        return rollout.prefill([*opening, *self.tokenizer.encode(self.thought_format.before + text)])

    def prefill_answer(self, rollout: Rollout, text: str) -> Rollout:
        """The rollout with its thought closed, then an answer, then the end of the turn."""
        ids = self.tokenizer.encode(self.thought_format.between + text)
        return self.close_thought(rollout).prefill([*ids, self.stop_ids[0]])

    @property
    def _needs_text_search(self) -> bool:
        """Whether the tokenizer has no ids for `<think>` and `</think>`."""
        return self.thought_format.start_id is None or self.thought_format.end_id is None

    def _tokens_until(self, tag: str, ids: tuple[int, ...]) -> int:
        """Number of tokens up to the token that completes `tag`. Number of all tokens if the text has no `tag`."""
        return bisect_left(range(len(ids)), True, key=lambda n: tag in self.tokenizer.decode(ids[:n]))

    def _split_at_think(self, ids: tuple[int, ...]) -> tuple[str, str, str]:
        """Text before the first `<think>`, the tag, and the text after it. The tag is empty if the text has none."""
        text = self.tokenizer.decode(ids)
        return ("", THINK, text) if self.thought_format.opened_by_prompt else text.partition(THINK)

    def _last_turn(self, rollout: Rollout) -> tuple[tuple[int, ...], bool]:
        """The last turn without its end-of-turn id, and whether the turn had this id."""
        turn = rollout.last_turn()
        complete = bool(turn) and turn[-1] in self.stop_ids
        return (turn[:-1] if complete else turn), complete

    def _thought_bounds(self, ids: tuple[int, ...]) -> tuple[int | None, int]:
        """Start of the first thought (None: no thought) and index of its end tag (len(ids): never closed)."""
        start_id, end_id, opened_by_prompt, *_ = self.thought_format
        assert start_id is not None
        assert end_id is not None
        if opened_by_prompt:
            start = 0
        elif start_id in ids:
            start = ids.index(start_id) + 1
        else:
            return None, len(ids)
        return start, ids.index(end_id, start) if end_id in ids[start:] else len(ids)

    # --- the template

    def _inspect_template(self) -> None:
        """Render one exchange to see what the template does. Raises SchoolError if the template cannot be used."""
        question = [{"role": "user", "content": _THOUGHT}]
        reply = {"role": "assistant", "content": _ANSWER, "reasoning_content": _THOUGHT * 2}
        prompt, whole = self._render_jinja(question, True), self._render_jinja([*question, reply], False)
        if _ANSWER not in whole:
            raise SchoolError("the chat template has no assistant turn: it leaves out what an assistant writes")
        continues = whole.startswith(prompt) and prompt.rpartition(_THOUGHT)[2] != whole.rpartition(_ANSWER)[2]
        if prompt == self._render_jinja(question, False) and not continues:  # [/INST] needs no generation prompt
            raise SchoolError(
                "the chat template has no generation prompt: `add_generation_prompt` changes nothing in it"
            )
        tail = self.tokenizer.encode(whole.rpartition(_ANSWER)[2], parse_special=True)
        end = next((token for token in tail if token in self.tokenizer.added_tokens), None)
        if end is None:
            raise SchoolError("the chat template does not end the assistant's turn with a special token")
        self.stop_ids: tuple[int, ...] = tuple(dict.fromkeys((end, self.tokenizer.eos_id)))
        generation_prompt = prompt.rpartition(_THOUGHT)[2]
        opened_by_prompt = generation_prompt.rfind(THINK) > generation_prompt.rfind(END_THINK)
        if _THOUGHT * 2 in whole:
            self._thought_place = "field"
        else:
            content = f"{THINK}{_THOUGHT * 2}{END_THINK}{_ANSWER}"
            whole = self._render_jinja([*question, {"role": "assistant", "content": content}], False)
            self._thought_place = "content" if _THOUGHT * 2 in whole and _ANSWER in whole else ""
        blanks = re.search(rf"{THINK}(\s*){_THOUGHT * 2}(\s*){END_THINK}(\s*){_ANSWER}", whole)
        start_id, end_id, *_ = self.thought_format
        self.thought_format = ThoughtFormat(start_id, end_id, opened_by_prompt, *(blanks.groups() if blanks else ()))

    def _render(self, messages: Sequence[Message], add_generation_prompt: bool, stand_ins: Mapping[str, str]) -> str:
        return self._render_jinja([self._as_dict(message, stand_ins) for message in messages], add_generation_prompt)

    def _as_dict(self, message: Message, stand_ins: Mapping[str, str]) -> dict[str, str]:
        """A message as templates take it, with stand-ins for special tokens in it."""
        role, content, thought = message
        if stand_ins:
            role, content = _mask(role, stand_ins), _mask(content, stand_ins)
            thought = None if thought is None else _mask(thought, stand_ins)
        if thought is None or role != "assistant":
            return {"role": role, "content": content}
        if self._thought_place == "content":
            return {"role": role, "content": f"{THINK}{thought}{END_THINK}{content}" if thought else content}
        return {"role": role, "content": content, "reasoning_content": thought}

    def _render_jinja(self, messages: list[dict[str, str]], add_generation_prompt: bool) -> str:
        try:
            return self._compiled.render(
                messages=messages, add_generation_prompt=add_generation_prompt, **self._template_variables
            )
        except Exception as error:  # a template is code, and may raise anything
            raise SchoolError(f"the chat template refuses the conversation: {error}") from error

    def _stand_ins(self, messages: Sequence[Message]) -> dict[str, str]:
        """A private character for each special token, if the messages contain a special token; else {}."""
        text = "\0".join(part for message in messages for part in message if part)
        if not self._special_pattern.search(text):
            return {}
        longest_first = sorted(self.tokenizer.special_tokens, key=len, reverse=True)
        used = set(text)
        free = (chr(code) for code in range(0xF0000, 0x10FFFE) if chr(code) not in used)
        return dict(zip(longest_first, free, strict=False))

    def _encode_rendered(self, texts: Sequence[tuple[str, Mapping[str, str]]]) -> list[list[int]]:
        """Ids of rendered texts with their stand-ins. All special tokens in these texts come from the template."""
        unmasked = [text for text, stand_ins in texts if not stand_ins]
        batch = iter(self.tokenizer.encode_batch(unmasked, parse_special=True))
        return [self._encode_masked(text, stand_ins) if stand_ins else next(batch) for text, stand_ins in texts]

    def _encode_masked(self, text: str, stand_ins: Mapping[str, str]) -> list[int]:
        """Ids of a text with stand-ins, piece by piece between its special tokens."""
        ids: list[int] = []
        start, strip = 0, False
        for found in self._special_pattern.finditer(text):
            token = self.tokenizer.special_tokens[found.group()]
            piece = text[start : found.start()]
            piece = piece.rstrip() if self.tokenizer.added_tokens[token].lstrip else piece
            ids += [*self._encode_piece(piece, strip, stand_ins), token]
            start, strip = found.end(), self.tokenizer.added_tokens[token].rstrip
        return ids + self._encode_piece(text[start:], strip, stand_ins)

    def _encode_piece(self, text: str, strip: bool, stand_ins: Mapping[str, str]) -> list[int]:
        return self.tokenizer.encode(_unmask(text.lstrip() if strip else text, stand_ins))


def _mask(text: str, stand_ins: Mapping[str, str]) -> str:
    for special, stand_in in stand_ins.items():
        text = text.replace(special, stand_in)
    return text


def _unmask(text: str, stand_ins: Mapping[str, str]) -> str:
    for special, stand_in in stand_ins.items():
        text = text.replace(stand_in, special)
    return text
