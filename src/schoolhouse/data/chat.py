"""Messages to token ids and spans, and back: the only place that knows a chat template.

Three rules hold for every template, ours or a model's own:

* Ids are spliced, never decoded and encoded again. A prompt is encoded once, the reply on its own behind it.
* Only the template's own text becomes markup. `<|im_end|>` typed inside a message is ordinary text: while the template
  is rendered a private character stands in its place, so that even a template which trims or searches its contents
  cannot be fooled.
* What the policy said is read off by the ids of `<think>` and `</think>`, not by searching text; only where a tokenizer
  has no such ids does the first `<think>` of the text count.

Thoughts of earlier assistant turns are handed to the template, which keeps or drops them: ours keeps what it is given
(a conversation only ever grows, so what was sampled stays the prefix of what comes next); Qwen3's keeps the last.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from schoolhouse.data.tokenizer import END_THINK, THINK, TURN_END, TURN_START, Tokenizer
from schoolhouse.types import NAN, Completion, Demonstration, Key, Message, Problem, Rollout, SchoolError

DEFAULT_TEMPLATE = """\
{% for message in messages %}
<|im_start|>{{ message.role }}
{% if message.role == 'assistant' %}{{ '<think>' + (message.reasoning_content or '') + '</think>' }}{% endif %}
{{ message.content + '<|im_end|>' }}
{% endfor %}
{% if add_generation_prompt %}
<|im_start|>assistant
{% endif %}
"""
"""Ours: compact on purpose, since a small model pays for every token. The policy writes `<think>` itself."""

PLAIN_TEMPLATE = DEFAULT_TEMPLATE.replace("<|im_start|>", "").replace("'<|im_end|>'", "eos_token")
"""For a model that brings neither a chat template nor our markup: a role in a line of its own, eos after each turn."""

_A, _T = "\ue0a0", "\ue0a1"  # stand for an answer and a thought while a template is examined


class Conversation:
    """A tokenizer with a chat template (`template`, or the tokenizer's own, or ours).

    tokenizer   ids for text
    template    jinja2 text
    stop_ids    ids that end the assistant's turn
    Raises SchoolError for a template without an assistant turn, a generation prompt or an end of turn.
    """

    def __init__(self, tokenizer: Tokenizer, template: str | None = None) -> None:
        ours = DEFAULT_TEMPLATE if {TURN_START, TURN_END} <= tokenizer.special_tokens.keys() else PLAIN_TEMPLATE
        self.tokenizer = tokenizer
        self.template = template or tokenizer.chat_template or ours
        self._compiled = _compile(self.template)
        self._names = {
            name: tokenizer.special_token(name) or "" for name in ("bos_token", "eos_token", "unk_token", "pad_token")
        }
        self._marks = re.compile("|".join(map(re.escape, sorted(tokenizer.special_tokens, key=len, reverse=True))) or "(?!)")
        self._think, self._end_think = tokenizer.special_tokens.get(THINK), tokenizer.special_tokens.get(END_THINK)
        self._thought_in = ""  # "field": the template writes thoughts; "content": we do; "": it drops them
        self._examine()
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
        """The text of a conversation, as a person may read it; with `prompt`, up to where the assistant starts."""
        guards = self._guards(messages)
        return _unguard(self._render(messages, add_generation_prompt, guards), guards)

    def _prompt(self, messages: tuple[Message, ...]) -> tuple[int, ...]:
        """Ids of a conversation up to where the assistant starts."""
        guards = self._guards(messages)
        return tuple(self._ids([(self._render(messages, True, guards), guards)])[0])

    def prompt_rollout(self, problem: Problem, key: Key) -> Rollout:
        """The prefix that asks `problem`: nothing in it is the policy's."""
        prompt = self.prompt(problem.messages)
        return Rollout(problem, key, prompt, (False,) * len(prompt), (NAN,) * len(prompt))

    def demonstration_rollout(self, demonstration: Demonstration, key: Key) -> Rollout:
        """A worked example as a rollout: the reply is written, its end-of-turn id included, the prompt is not."""
        return self.demonstration_rollouts([demonstration], [key])[0]

    def demonstration_rollouts(self, demonstrations: Sequence[Demonstration], keys: Sequence[Key]) -> list[Rollout]:
        """`demonstrate` for many at once. A thought of None is written like an empty one.

        Raises SchoolError where the template does not continue its own prompt, drops the thought, never ends the turn,
        or where the mask would be empty or full.
        """
        texts = [self._asked_and_told(demonstration) for demonstration in demonstrations]
        prompts = self._ids([(asked, guards) for asked, _, guards in texts])
        replies = self._ids([(told, guards) for _, told, guards in texts])
        return [self._taught(*each) for each in zip(demonstrations, keys, prompts, replies, strict=True)]

    def _asked_and_told(self, d: Demonstration) -> tuple[str, str, dict[str, str]]:
        """The prompt, what the assistant writes behind it, and the guards of both."""
        if d.thought and not self._thought_in:
            raise SchoolError(
                f"problem {d.problem.id}: the chat template drops thoughts; give a template that keeps them"
            )
        whole = (*d.problem.messages, Message("assistant", d.answer, d.thought))
        guards = self._guards(whole)
        asked, told = self._render(whole[:-1], True, guards), self._render(whole, False, guards)
        if not told.startswith(asked):
            at = next((i for i, (a, b) in enumerate(zip(asked, told, strict=False)) if a != b), len(told))
            raise SchoolError(
                f"problem {d.problem.id}: the chat template does not continue its own generation prompt: it asks with "
                f"{asked[at:][:60]!r} where a worked example has {told[at:][:60]!r} (after {asked[:at][-40:]!r})"
            )
        return asked, told[len(asked) :], guards

    def _taught(self, d: Demonstration, key: Key, prompt: list[int], reply: list[int]) -> Rollout:
        end = next((i + 1 for i, token in enumerate(reply) if token in self.stop_ids), 0)
        if not end:
            raise SchoolError(f"problem {d.problem.id}: the chat template does not end the assistant's turn")
        if end == 1 or not prompt:
            raise SchoolError(
                f"problem {d.problem.id}: the mask would be {'empty' if prompt else 'full'}: "
                f"{len(prompt)} tokens are given and {end - 1} written before the end of the turn"
            )
        return Rollout(
            d.problem,
            key,
            (*prompt, *reply[:end]),
            (False,) * len(prompt) + (True,) * end,
            (NAN,) * (len(prompt) + end),
            turns=(len(prompt),),
            finish_reason="context",
        )

    def append_messages(self, rollout: Rollout, messages: Sequence[Message]) -> Rollout:
        """What others say after the policy's turn, up to where it may speak again; a turn cut off is closed first."""
        told = [Message("user", ""), Message("assistant", _A), *messages]
        guards = self._guards(messages)
        ids = self._ids([(self._render(told, True, guards).rpartition(_A)[2], guards)])[0]
        if rollout.tokens[-1] in self.stop_ids:
            ids = ids[1 + next(i for i, token in enumerate(ids) if token in self.stop_ids) :]
        return rollout.append_context(ids)

    @property
    def thought_marks(self) -> tuple[int | None, int | None, bool, tuple[str, ...]]:
        """Ids of `<think>` and `</think>`, whether a prompt opens the thought itself, blanks around a thought."""
        return self._think, self._end_think, self._thinking, self._blanks

    def close_thought(self, rollout: Rollout) -> Rollout:
        """The same rollout if it has stopped thinking in its last turn, or never began; else with `</think>` forced."""
        end = self.tokenizer.encode(END_THINK) if self._end_think is None else [self._end_think]
        return rollout.prefill(end) if self.is_thinking(rollout) else rollout

    def is_thinking(self, rollout: Rollout) -> bool:
        said, complete = self._body(rollout)
        if self._think is None or self._end_think is None:
            _, opened, inside = self._around_think(said)
            return bool(opened) and END_THINK not in inside and not complete
        start, end = self._span(said, self._think, self._end_think)
        return start is not None and end == len(said) and not complete

    def stop_matcher(self, texts: Sequence[str]) -> tuple[list[bool], Callable[[Sequence[int]], bool]]:
        """For each id whether it may complete one of these texts, and whether the last of some ids does."""
        if not all(texts):
            raise SchoolError("an empty text cannot end a turn: give at least one character")
        last = {text[-1] for text in texts}
        words = [self.tokenizer.decode([token]) for token in range(self.tokenizer.vocab_size)]
        maybe = [not last.isdisjoint(word) or "\ufffd" in word for word in words]  # half a character may complete one
        return maybe, lambda ids: self.ends_with_any(ids, texts)

    def ends_with_any(self, ids: Sequence[int], texts: Sequence[str]) -> bool:
        """Whether the last of these ids completes one of the texts."""
        tail = self.tokenizer.decode(ids[-1 - max(len(text.encode()) for text in texts) :])
        return any(text in tail for text in texts)

    # --- from ids to a reply

    def parse_completion(self, rollout: Rollout) -> Completion:
        """The policy's last turn. The first `<think>` and the first `</think>` after it count: tags typed later are
        part of the answer. What stands before `<think>` is dropped; thinking that never ends leaves the answer empty.
        """
        said, complete = self._body(rollout)
        if self._think is None or self._end_think is None:
            before, opened, inside = self._around_think(said)
            if not opened:
                return Completion(None, before, complete)
            thought, closed, answer = inside.partition(END_THINK)
        else:
            start, end = self._span(said, self._think, self._end_think)
            if start is None:
                return Completion(None, self.tokenizer.decode(said), complete)
            closed = end < len(said)
            thought, answer = self.tokenizer.decode(said[start:end]), self.tokenizer.decode(said[end + 1 :])
        before, after, between = self._blanks
        if closed:
            thought = thought.removesuffix(after)
        return Completion(thought.removeprefix(before), answer.removeprefix(between), complete)

    def thought_length(self, rollout: Rollout) -> int:
        """Tokens between `<think>` and `</think>` of the last turn: all that follow if never closed, 0 for none."""
        start, end, _ = self.thought_span(rollout)
        return end - start

    def thought_span(self, rollout: Rollout) -> tuple[int, int, bool]:
        """Where the thought of the last turn starts and ends among the rollout's tokens, and whether it was closed."""
        said, _ = self._body(rollout)
        at = rollout.turns[-1] if rollout.turns else len(rollout)
        if self._think is not None and self._end_think is not None:
            start, end = self._span(said, self._think, self._end_think)
            return (at, at, False) if start is None else (at + start, at + end, end < len(said))
        start = 0 if self._thinking else self._tokens_until(THINK, said)
        rest = said[start:]
        closed = END_THINK in self.tokenizer.decode(rest)
        end = self._tokens_until(END_THINK, rest) - len(self.tokenizer.encode(END_THINK)) if closed else len(rest)
        return at + start, at + start + max(0, end), closed

    def prefill_thought(self, rollout: Rollout, text: str) -> Rollout:
        """The rollout with words put into its thought, which is opened first where the policy's turn has not begun."""
        if rollout.finish_reason not in ("open", "context"):
            return rollout.prefill(self.tokenizer.encode(text))
        opening = [] if self._thinking else self.tokenizer.encode(THINK) if self._think is None else [self._think]
        blank = "" if self._thinking else self._blanks[0]
        return rollout.prefill([*opening, *self.tokenizer.encode(blank + text)])

    def prefill_answer(self, rollout: Rollout, text: str) -> Rollout:
        """The rollout with an answer put into its mouth, behind its thought, and the end of its turn."""
        ids = self.tokenizer.encode(self._blanks[2] + text)
        return self.close_thought(rollout).prefill([*ids, self.stop_ids[0]])

    def _tokens_until(self, mark: str, ids: tuple[int, ...]) -> int:
        """How many tokens it takes until the text holds `mark`; all when it never does."""
        return bisect_left(range(len(ids)), True, key=lambda n: mark in self.tokenizer.decode(ids[:n]))

    def _around_think(self, said: tuple[int, ...]) -> tuple[str, str, str]:
        text = self.tokenizer.decode(said)
        return ("", THINK, text) if self._thinking else text.partition(THINK)

    def _body(self, rollout: Rollout) -> tuple[tuple[int, ...], bool]:
        """The last turn without its end-of-turn id, and whether it had one."""
        turn = rollout.last_turn()
        complete = bool(turn) and turn[-1] in self.stop_ids
        return (turn[:-1] if complete else turn), complete

    def _span(self, said: tuple[int, ...], think: int, end_think: int) -> tuple[int | None, int]:
        """Where the first thought starts (None: nowhere) and where its end mark stands (len(said): never closed)."""
        if self._thinking:
            start = 0
        elif think in said:
            start = said.index(think) + 1
        else:
            return None, len(said)
        return start, said.index(end_think, start) if end_think in said[start:] else len(said)

    # --- the template

    def _examine(self) -> None:
        """Learn from one exchange what the template does. Raises SchoolError where it cannot serve."""
        asked = [{"role": "user", "content": _T}]
        answered = {"role": "assistant", "content": _A, "reasoning_content": _T * 2}
        prompt, told = self._fill(asked, True), self._fill([*asked, answered], False)
        if _A not in told:
            raise SchoolError("the chat template has no assistant turn: what an assistant says does not appear in it")
        follows = told.startswith(prompt) and prompt.rpartition(_T)[2] != told.rpartition(_A)[2]  # as behind [/INST]
        if prompt == self._fill(asked, False) and not follows:
            raise SchoolError(
                "the chat template has no generation prompt: `add_generation_prompt` changes nothing in it"
            )
        tail = self.tokenizer.encode(told.rpartition(_A)[2], parse_special=True)
        end = next((token for token in tail if token in self.tokenizer.added), None)
        if end is None:
            raise SchoolError("the chat template does not end the assistant's turn with a special token")
        self.stop_ids: tuple[int, ...] = tuple(dict.fromkeys((end, self.tokenizer.eos_id)))
        generation = prompt.rpartition(_T)[2]
        self._thinking = generation.rfind(THINK) > generation.rfind(END_THINK)  # the prompt itself opens the thought
        if _T * 2 in told:
            self._thought_in = "field"
        else:
            told = self._fill([*asked, {"role": "assistant", "content": f"{THINK}{_T * 2}{END_THINK}{_A}"}], False)
            self._thought_in = "content" if _T * 2 in told and _A in told else ""
        blanks = re.search(rf"{THINK}(\s*){_T * 2}(\s*){END_THINK}(\s*){_A}", told)
        self._blanks: tuple[str, ...] = blanks.groups() if blanks else ("", "", "")

    def _render(self, messages: Sequence[Message], prompt: bool, guards: Mapping[str, str]) -> str:
        return self._fill([self._plain(message, guards) for message in messages], prompt)

    def _plain(self, message: Message, guards: Mapping[str, str]) -> dict[str, str]:
        """A message as templates want it, its markup guarded."""
        role, content, thought = message
        if guards:
            role, content = _guard(role, guards), _guard(content, guards)
            thought = None if thought is None else _guard(thought, guards)
        if thought is None or role != "assistant":
            return {"role": role, "content": content}
        if self._thought_in == "content":
            return {"role": role, "content": f"{THINK}{thought}{END_THINK}{content}" if thought else content}
        return {"role": role, "content": content, "reasoning_content": thought}

    def _fill(self, messages: list[dict[str, str]], prompt: bool) -> str:
        try:
            return self._compiled.render(messages=messages, add_generation_prompt=prompt, **self._names)
        except Exception as error:  # a template is code, and may raise anything
            raise SchoolError(f"the chat template refuses the conversation: {error}") from error

    def _guards(self, messages: Sequence[Message]) -> dict[str, str]:
        """A private character for each markup text, where any stands in the messages; else nothing."""
        said = "\0".join(part for message in messages for part in message if part)
        if not self._marks.search(said):
            return {}
        marks = sorted(self.tokenizer.special_tokens, key=len, reverse=True)
        taken = set(said)
        free = (chr(code) for code in range(0xF0000, 0x10FFFE) if chr(code) not in taken)
        return dict(zip(marks, free, strict=False))

    def _ids(self, texts: Sequence[tuple[str, Mapping[str, str]]]) -> list[list[int]]:
        """Ids of rendered texts: what is markup in them is the template's, for the contents' own is guarded."""
        clean = iter(self.tokenizer.encode_batch([text for text, guards in texts if not guards], parse_special=True))
        return [self._spliced(text, guards) if guards else next(clean) for text, guards in texts]

    def _spliced(self, text: str, guards: Mapping[str, str]) -> list[int]:
        """Ids of a guarded text, piece by piece between its markup."""
        ids: list[int] = []
        start, strip = 0, False
        for mark in self._marks.finditer(text):
            token = self.tokenizer.special_tokens[mark.group()]
            piece = text[start : mark.start()]
            ids += self._piece(piece.rstrip() if self.tokenizer.added[token].lstrip else piece, strip, guards)
            ids.append(token)
            start, strip = mark.end(), self.tokenizer.added[token].rstrip
        return ids + self._piece(text[start:], strip, guards)

    def _piece(self, text: str, strip: bool, guards: Mapping[str, str]) -> list[int]:
        return self.tokenizer.encode(_unguard(text.lstrip() if strip else text, guards))


def _guard(text: str, guards: Mapping[str, str]) -> str:
    for mark, stand_in in guards.items():
        text = text.replace(mark, stand_in)
    return text


def _unguard(text: str, guards: Mapping[str, str]) -> str:
    for mark, stand_in in guards.items():
        text = text.replace(stand_in, mark)
    return text


class _Generation(Extension):
    """`{% generation %}...{% endgeneration %}`, which marks the assistant's words in some templates: passed over."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


@lru_cache(64)
def _compile(template: str) -> jinja2.Template:
    """A chat template under the conventions of transformers. There is no clock in it: the same messages give the same
    ids on every day.
    """
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    try:
        return environment.from_string(template, globals={"raise_exception": _refuse})
    except jinja2.TemplateSyntaxError as error:
        raise SchoolError(f"chat template, line {error.lineno}: {error.message}") from error


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)


def _tojson(value: object, indent: int | None = None, **_: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)
