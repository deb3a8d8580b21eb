"""Converts messages to token ids, and token ids to messages. Only this file renders conversations with chat templates.

Three rules hold for every template:

* Ids are appended. Ids are never decoded and encoded again. Prompt and completion are encoded separately, each once.
* Only the text of the template itself becomes special tokens. `<|im_end|>` inside a message stays ordinary text: a
  private character replaces `<|im_end|>` while the template is rendered. A template that trims or searches its
  contents cannot break this rule.
* A completion is split at the ids of the marks around its thought (`<think>` and `</think>`). Marks with several
  tokens are searched in the text.

The template gets the thoughts of earlier assistant turns, and decides whether to keep them. The default template keeps
all thoughts, so the sampled tokens stay a prefix of the next prompt. Qwen3's template keeps only the last thought.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from schoolhouse.data.chat_settings import ChatConfig
from schoolhouse.data.chat_template import compile_template, select_template
from schoolhouse.data.generation_config import (
    FILE_NAME,
    eos_token_ids,
    merged_generation_config,
    read_generation_config,
)
from schoolhouse.data.template_probe import ANSWER, probe_template
from schoolhouse.data.thought import split_turn, thought_bounds
from schoolhouse.data.tokenizer import Tokenizer
from schoolhouse.runs.atomic_io import resolve_model
from schoolhouse.types import NAN, Completion, Demonstration, Key, Message, Problem, Rollout, SchoolError


class Conversation:
    """A tokenizer with a chat template: `template`, else the tokenizer's template, else a built-in template.

    tokenizer       converts text to ids
    template        jinja2 text
    stop_ids        ids that end the assistant's turn: the template's end, and every eos id of the model
    thought_format  how a thought is written
    facts           what else the template does
    Raises SchoolError if the template has no assistant turn or no generation prompt.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: str | None = None,
        chat: ChatConfig | None = None,
        generation_config: Mapping[str, Any] | None = None,
    ) -> None:
        special_tokens = tokenizer.special_tokens
        self.tokenizer = tokenizer
        self.chat = chat or ChatConfig()
        self.generation_config = dict(generation_config or {})
        self.template = template or select_template(tokenizer, self.chat.template.name)
        self._compiled = compile_template(self.template, self.chat.template.date)
        names = ("bos_token", "eos_token", "unk_token", "pad_token")
        self._template_variables = {name: tokenizer.special_token(name) or "" for name in names}
        self._template_variables |= self.chat.template.arguments
        longest_first = sorted(special_tokens, key=len, reverse=True)
        self._special_pattern = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        self.facts = probe_template(self._render_jinja, tokenizer, self.template)
        self.thought_format = self.facts.thought_format
        eos_ids = [token for token in eos_token_ids(self.generation_config) if tokenizer.id_to_token(token)]
        self.stop_ids: tuple[int, ...] = tuple(dict.fromkeys((self.facts.end_id, tokenizer.eos_id, *eos_ids)))
        self.prompt = lru_cache(4096)(self.encode_prompt)
        self._variant = lru_cache(16)(self._with_arguments)
        self._stop_candidates = lru_cache(16)(self._find_stop_candidates)

    @classmethod
    def load(cls, folder: Path | str, chat: ChatConfig | None = None) -> Conversation:
        """Load tokenizer, chat template and generation settings of a model folder."""
        folder = resolve_model(folder)
        return cls(Tokenizer.load(folder), None, chat, read_generation_config(folder))

    def with_arguments(self, arguments: Mapping[str, Any]) -> Conversation:
        """Return the same conversation with more arguments for its template, such as `enable_thinking`."""
        return self._variant(json.dumps(arguments, sort_keys=True))

    def _with_arguments(self, arguments: str) -> Conversation:
        template = self.chat.template.model_copy(update=json.loads(arguments))
        chat = self.chat.model_copy(update={"template": template})
        return Conversation(self.tokenizer, self.template, chat, self.generation_config)

    def save(self, folder: Path | str) -> None:
        """Write tokenizer, chat template and generation settings in Hugging Face format."""
        self.tokenizer.save(folder, self.template)
        config = merged_generation_config(self.generation_config, self.stop_ids, self.tokenizer.pad_id)
        (Path(folder) / FILE_NAME).write_text(json.dumps(config, indent=2) + "\n")

    # --- from messages to ids

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> str:
        """Render a conversation as text. With `add_generation_prompt`, the text ends at the start of the next reply."""
        messages = self._with_system(messages)
        stand_ins = self._stand_ins(messages)
        return _unmask(self._render(messages, add_generation_prompt, stand_ins), stand_ins)

    def encode_prompt(self, messages: tuple[Message, ...]) -> tuple[int, ...]:
        """Return the ids of a conversation up to the start of the next assistant turn.

        The method `prompt` returns the same ids, and keeps the ids of the last 4,096 conversations in a cache.
        """
        messages = self._with_system(messages)
        stand_ins = self._stand_ins(messages)
        return tuple(self._encode_rendered([(self._render(messages, True, stand_ins), stand_ins)])[0])

    def _with_system(self, messages: Sequence[Message]) -> tuple[Message, ...]:
        """Return the messages, and add a system message if necessary. Messages without a system message get the system
        message of the settings.

        If the template has no system turns, the system message stands in the first user turn, before the question.
        """
        messages = tuple(messages)
        if self.chat.system and not any(message.role == "system" for message in messages):
            messages = (Message("system", self.chat.system), *messages)
        if self.facts.knows_system or len(messages) < 2 or messages[0].role != "system" or messages[1].role != "user":
            return messages
        system, question, *rest = messages
        return (question._replace(content=f"{system.content}\n\n{question.content}"), *rest)

    def prompt_rollout(self, problem: Problem, key: Key) -> Rollout:
        """Return the prompt of a problem as a rollout. The loss mask is False at every token."""
        prompt = self.prompt(problem.messages)
        return Rollout(problem, key, prompt, (False,) * len(prompt), (NAN,) * len(prompt))

    def demonstration_rollout(self, demonstration: Demonstration, key: Key) -> Rollout:
        """Return a demonstration as a rollout. Only the completion and its end-of-turn id are in the loss mask."""
        return self.demonstration_rollouts([demonstration], [key])[0]

    def demonstration_rollouts(self, demonstrations: Sequence[Demonstration], keys: Sequence[Key]) -> list[Rollout]:
        """Return many demonstrations as rollouts. If the thought of a demonstration is None, an empty thought is
        written.

        Some templates cannot write the completion: the template does not continue its own prompt, drops the thought, or
        never ends the turn. For these templates, `ThoughtFormat.wrap` writes the completion with the marks of the
        template.
        Raises SchoolError if the prompt closes the thought of a demonstration with a thought, or if the loss mask would
        be empty or full.
        """
        texts = [self._render_demonstration(demonstration) for demonstration in demonstrations]
        prompts = self._encode_rendered([(prompt, stand_ins) for prompt, _, stand_ins in texts])
        completions = self._encode_rendered(
            [(completion, stand_ins) for _, completion, stand_ins in texts], list(map(self._continues, prompts))
        )
        parts = zip(demonstrations, keys, prompts, completions, strict=True)
        return [self._join_demonstration(*part) for part in parts]

    def _render_demonstration(self, demonstration: Demonstration) -> tuple[str, str, dict[str, str]]:
        """Return the text of the prompt, the text of the completion, and the private characters for special tokens."""
        problem, thought = demonstration.problem, demonstration.thought
        messages = (*self._with_system(problem.messages), Message("assistant", demonstration.answer, thought))
        stand_ins = self._stand_ins(messages)
        prompt = self._render(messages[:-1], True, stand_ins)
        if self.facts.renders_thought if thought else self.facts.renders_answer:
            whole = self._render(messages, False, stand_ins)
            if whole.startswith(prompt):
                return prompt, whole[len(prompt) :], stand_ins
        if thought and self.thought_format.closed_by(prompt):
            switch = self.thought_format.switch
            raise SchoolError(
                f"problem {problem.id}: the generation prompt closes the thought itself ({prompt[-40:]!r}), but the "
                f"demonstration has a thought; {f'give --template.{switch} true, or ' if switch else ''}leave the "
                "thoughts out"
            )
        thought = None if thought is None else _mask(thought, stand_ins)
        completion = self.thought_format.wrap(thought, _mask(demonstration.answer, stand_ins))
        return prompt, completion + self.tokenizer.added_token_text(self.facts.end_id), stand_ins

    def _continues(self, ids: Sequence[int]) -> bool:
        """Return True if the next text continues the text of these ids, so that the tokenizer must not put a
        blank between the two texts."""
        return not (self.tokenizer.puts_blank_after_special and ids[-1:] and ids[-1] in self.tokenizer.added_tokens)

    def _join_demonstration(
        self, demonstration: Demonstration, key: Key, prompt: list[int], completion: list[int]
    ) -> Rollout:
        problem, end_id = demonstration.problem, self.facts.end_id
        end = completion.index(end_id) + 1 if end_id in completion else 0
        if end <= 1 or not prompt:
            raise SchoolError(
                f"problem {problem.id}: the loss mask would be {'empty' if prompt else 'full'}: the prompt has "
                f"{len(prompt)} tokens, and the completion has {max(end - 1, 0)} tokens before the end of the turn"
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
        """Return the rollout with more messages of the user or a tool, up to the start of the next assistant turn.

        If the last turn was cut off, the end of this turn is added first.
        """
        system = [Message("system", "-")] if self.facts.needs_system else []
        placeholders = [*system, Message("user", "-"), Message("assistant", ANSWER), *messages]
        stand_ins = self._stand_ins(messages)
        text = self._render(placeholders, True, stand_ins).rpartition(ANSWER)[2]
        ids = self._encode_rendered([(text, stand_ins)], [True])[0]
        last = rollout.tokens[-1]
        ends = {self.facts.next_end_id} if self.facts.ends_itself else {self.facts.next_end_id} & {last}
        if last in self.stop_ids and (ended := next((i + 1 for i, token in enumerate(ids) if token in ends), 0)):
            ids = ids[ended:]
        return rollout.append_context(ids)

    def close_thought(self, rollout: Rollout) -> Rollout:
        """Add `</think>` to a rollout if its last turn is inside a thought. Any other rollout is returned unchanged."""
        return rollout.prefill(self.end_thought_ids) if self.is_thinking(rollout) else rollout

    @property
    def end_thought_ids(self) -> list[int]:
        """The ids of the mark that closes a thought (`</think>`)."""
        end_id = self.thought_format.end_id
        if end_id is not None:
            return [end_id]
        return self.tokenizer.encode(self.thought_format.end, parse_special=True, continues=True)

    def is_thinking(self, rollout: Rollout) -> bool:
        """Return True if the last turn is inside a thought: the thought is open, and the turn has not ended."""
        ids, complete = self._last_turn(rollout)
        start, _, closed = thought_bounds(self.thought_format, self.tokenizer, ids)
        return start is not None and not closed and not complete

    def stop_matcher(self, texts: Sequence[str]) -> tuple[np.ndarray, Callable[[Sequence[int]], bool]]:
        """Return for each id whether it can complete a stop text, and a function that checks whether ids end with a
        stop text.

        The array [vocab_size] is kept for later calls with the same last characters, so the caller must not change the
        array.
        """
        if not all(texts):
            raise SchoolError("a stop string is empty: give at least one character")
        candidates = self._stop_candidates(frozenset(text[-1] for text in texts))
        return candidates, lambda ids: self.ends_with_any(ids, texts)

    def _find_stop_candidates(self, last_characters: frozenset[str]) -> np.ndarray:
        words = self.tokenizer.token_texts
        wanted = last_characters | {"\ufffd"}  # incomplete characters count too
        return np.array([not wanted.isdisjoint(word) for word in words])

    def ends_with_any(self, ids: Sequence[int], texts: Sequence[str]) -> bool:
        """Return True if the last of these ids completes one of the texts."""
        tail = self.tokenizer.decode(ids[-1 - max(len(text.encode()) for text in texts) :])
        return any(text in tail for text in texts)

    # --- from ids to a completion

    def parse_completion(self, rollout: Rollout) -> Completion:
        """Split the last turn into thought and answer.

        The thought is between the first `<think>` and the first `</think>` after it. Later tags are part of the answer.
        Text before `<think>` is dropped. If the thought is never closed, the answer is empty.
        """
        ids, complete = self._last_turn(rollout)
        return Completion(*split_turn(self.thought_format, self.tokenizer, ids, complete), complete)

    def thought_length(self, rollout: Rollout) -> int:
        """Count the tokens in the thought of the last turn. If the thought is open, all tokens after `<think>`
        count."""
        start, end, _ = self.thought_span(rollout)
        return end - start

    def thought_span(self, rollout: Rollout) -> tuple[int, int, bool]:
        """Return start and end of the last turn's thought in the rollout's tokens, and whether it was closed."""
        ids, _ = self._last_turn(rollout)
        offset = rollout.turns[-1] if rollout.turns else len(rollout)
        start, end, closed = thought_bounds(self.thought_format, self.tokenizer, ids)
        return (offset, offset, False) if start is None else (offset + start, offset + end, closed)

    def prefill_thought(self, rollout: Rollout, text: str) -> Rollout:
        """Add a text to the thought of a rollout. If the turn has not started, the thought is opened first."""
        style = self.thought_format
        if rollout.finish_reason not in ("open", "context") or style.opened_by_prompt:
            return rollout.prefill(self.tokenizer.encode(text, continues=True))
        if style.start_id is None:
            opening = self.tokenizer.encode(style.prefix + style.start, parse_special=True, continues=True)
        else:
            opening = [*self.tokenizer.encode(style.prefix, continues=True), style.start_id]
        ids = self.tokenizer.encode(style.before + text, continues=self._continues(opening))
        return rollout.prefill([*opening, *ids])

    def prefill_answer(self, rollout: Rollout, text: str) -> Rollout:
        """Close the thought of a rollout, then add an answer and the end of the turn."""
        thinking = self.is_thinking(rollout) or rollout.finish_reason == "prefill"
        style = self.thought_format
        ids = self.tokenizer.encode((style.between if thinking else style.lead) + text + style.ending, continues=True)
        return self.close_thought(rollout).prefill([*ids, self.stop_ids[0]])

    def _last_turn(self, rollout: Rollout) -> tuple[tuple[int, ...], bool]:
        """Return the last turn without its end-of-turn id, and whether the turn had this id."""
        turn = rollout.last_turn()
        complete = bool(turn) and turn[-1] in self.stop_ids
        return (turn[:-1] if complete else turn), complete

    # --- the template

    def _render(self, messages: Sequence[Message], add_generation_prompt: bool, stand_ins: Mapping[str, str]) -> str:
        dicts = [self._as_dict(message, stand_ins) for message in messages]
        return self._render_jinja(dicts, add_generation_prompt, self.facts.variables)

    def _as_dict(self, message: Message, stand_ins: Mapping[str, str]) -> dict[str, Any]:
        """Convert a message to a dict for templates, with private characters for the special tokens in its text."""
        role, content, thought = message
        if stand_ins:
            role, content = _mask(role, stand_ins), _mask(content, stand_ins)
            thought = None if thought is None else _mask(thought, stand_ins)
        facts, style = self.facts, self.thought_format
        keys: dict[str, Any] = {}
        if thought is not None and role == "assistant":
            if facts.thought_in_content:
                content = f"{style.start}{thought}{style.end}{content}" if thought else content
            else:
                keys[facts.thought_key or "reasoning_content"] = thought
        parts = [{"type": "text", "text": content}] if facts.parts else content
        return {"role": role, "content": parts, **keys}

    def _render_jinja(
        self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool, variables: Mapping[str, Any]
    ) -> str:
        try:
            return self._compiled.render(
                messages=messages,
                add_generation_prompt=add_generation_prompt,
                **{**variables, **self._template_variables},
            )
        except Exception as error:  # a template is code, and may raise anything
            raise SchoolError(f"the chat template refuses the conversation: {error}") from error

    def _stand_ins(self, messages: Sequence[Message]) -> dict[str, str]:
        """Return {special token: private character}. The dict is empty if no message contains a special token."""
        text = "\0".join(part for message in messages for part in message if part)
        if not self._special_pattern.search(text):
            return {}
        longest_first = sorted(self.tokenizer.special_tokens, key=len, reverse=True)
        used = set(text)
        free = (chr(code) for code in range(0xF0000, 0x10FFFE) if chr(code) not in used)
        return dict(zip(longest_first, free, strict=False))

    def _encode_rendered(
        self, texts: Sequence[tuple[str, Mapping[str, str]]], continues: Sequence[bool] = ()
    ) -> list[list[int]]:
        """Encode rendered texts with their private characters. All special tokens in the texts come from the template.

        continues  for each text, whether it continues another text
        """
        rows = [
            (text, stand_ins, self.tokenizer.puts_blank and continued)
            for (text, stand_ins), continued in zip(texts, continues or [False] * len(texts), strict=True)
        ]
        whole = [text for text, stand_ins, continued in rows if not (stand_ins or continued)]
        batch = iter(self.tokenizer.encode_batch(whole, parse_special=True))
        return [self._encode_pieces(*row) if row[1] or row[2] else next(batch) for row in rows]

    def _encode_pieces(self, text: str, stand_ins: Mapping[str, str], continues: bool) -> list[int]:
        """Encode a text piece by piece. The special tokens are between the pieces."""
        ids: list[int] = []
        start, strip = 0, False
        for found in self._special_pattern.finditer(text):
            token = self.tokenizer.special_tokens[found.group()]
            piece = text[start : found.start()]
            piece = piece.rstrip() if self.tokenizer.added_tokens[token].lstrip else piece
            ids += [*self._encode_piece(piece, strip, stand_ins, continues), token]
            start, strip = found.end(), self.tokenizer.added_tokens[token].rstrip
            continues = not self.tokenizer.puts_blank_after_special
        return ids + self._encode_piece(text[start:], strip, stand_ins, continues)

    def _encode_piece(self, text: str, strip: bool, stand_ins: Mapping[str, str], continues: bool) -> list[int]:
        return self.tokenizer.encode(_unmask(text.lstrip() if strip else text, stand_ins), continues=continues)


def _mask(text: str, stand_ins: Mapping[str, str]) -> str:
    for special, stand_in in stand_ins.items():
        text = text.replace(special, stand_in)
    return text


def _unmask(text: str, stand_ins: Mapping[str, str]) -> str:
    for special, stand_in in stand_ins.items():
        text = text.replace(stand_in, special)
    return text
