"""Finds out what a chat template does: renders short conversations with the template, and looks at the result.

The names of the variables in the template do not matter. The rendered texts show where the template writes thoughts and
answers, which marks surround them, and how a turn ends. The rendered texts also show whether the template supports
system messages, and contents that are lists of parts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

from schoolhouse.data.thought import KNOWN_MARKS, ThoughtFormat, guess_marks, split_closing, split_opening
from schoolhouse.data.tokenizer import Tokenizer
from schoolhouse.types import SchoolError

Json = dict[str, Any]
Render = Callable[[Sequence[Mapping[str, Any]], bool, Mapping[str, Any]], str]
"""A function that renders messages. Its arguments: messages, whether to add the generation prompt, more variables."""

QUESTION, ANSWER, THOUGHT, SYSTEM, SECOND = "\ue0a0", "\ue0a1", "\ue0a2", "\ue0a3", "\ue0a4"
"""Private characters that stand for the contents of a conversation."""

_SYSTEM_MESSAGE = {"role": "system", "content": SYSTEM}
THOUGHT_KEYS = ("reasoning_content", "reasoning", "thinking", "thought")


class TemplateFacts(NamedTuple):
    """The facts about a template.

    variables        variables that the template needs in addition to the usual variables
    parts            whether a content must be a list of parts, as in templates of vision models
    needs_system     whether the template refuses a conversation without a system message
    thought_key      key of a message from which the template takes the thought; empty if there is no such key
    thought_in_content  whether a thought can be written into the content, with its marks
    thought_format   marks of a thought, and the blanks around an answer
    keeps_thoughts   whether the thoughts of earlier turns stay
    renders_thought  whether the template can write a reply with a thought; if not, `ThoughtFormat.wrap` writes it
    renders_answer   whether the template can write a reply without a thought; if not, `ThoughtFormat.wrap` writes it
    knows_system     whether a system message appears in the text
    end_id           id that ends the assistant's turn
    ends_itself      whether the template writes this id after the last turn
    next_end_id      first special id after an earlier turn; None without a special token
    """

    variables: Mapping[str, Any]
    parts: bool
    needs_system: bool
    thought_key: str
    thought_in_content: bool
    thought_format: ThoughtFormat
    keeps_thoughts: bool
    renders_thought: bool
    renders_answer: bool
    knows_system: bool
    end_id: int
    ends_itself: bool
    next_end_id: int | None


def probe_template(render: Render, tokenizer: Tokenizer, template: str) -> TemplateFacts:
    """Find out what a template does. Raises SchoolError if the template has no assistant turn or no generation
    prompt."""
    variables, parts, needs_system = _find_variant(render)

    def show(messages: Sequence[Json], generation: bool = False) -> str:
        return render(_adapt(messages, parts, needs_system), generation, variables)

    question = {"role": "user", "content": QUESTION}
    reply = {"role": "assistant", "content": ANSWER}
    prompt, whole = show([question], True), show([question, reply])
    if ANSWER not in whole:
        raise SchoolError(
            "the chat template has no assistant turn, so it leaves out the replies; choose another template with "
            "--template.name"
        )
    tail = whole.rpartition(ANSWER)[2]
    generation = prompt.rpartition(QUESTION)[2]
    body, next_tail = whole.rpartition(QUESTION)[2].partition(ANSWER)[0], _next_tail(show, question, reply)
    always = generation != tail or (generation == body and generation != next_tail)  # as in [INST] ... [/INST]
    if prompt == show([question]) and not always:
        raise SchoolError(
            "the chat template has no generation prompt: `add_generation_prompt` does not change its text; choose "
            "another template with --template.name"
        )

    key, found = _find_thought(show, question, generation, tokenizer)
    style = found or _guess_thought(template, tokenizer, generation)
    in_content = False
    if not found:
        in_content, style = _try_content(show, question, prompt, style)
    at = _common(generation, body)
    lead = body[at:]
    if style.end in generation[at:]:  # the prompt closes an empty thought
        lead = lead.rpartition(style.end)[2]
    style = style._replace(lead="" if style.start.strip() in lead else lead, always=style.start.strip() in lead)
    if not (found or in_content) and style.lead.strip():  # a mark that begins each answer, as in Command R7B
        style = style._replace(between=style.lead)

    end_id, ending, ends_itself = _find_end(tokenizer, tail, next_tail, style)
    style = style._replace(
        ending=ending,
        switch=_find_switch(render, _adapt([question], parts, needs_system), variables, style)
        if style.closed_by(prompt)
        else "",
        start_id=tokenizer.special_tokens.get(style.start),
        end_id=tokenizer.special_tokens.get(style.end),
    )
    with_thought = {**reply, key or "reasoning_content": THOUGHT}
    if in_content:
        with_thought = {**reply, "content": style.start + THOUGHT + style.end + ANSWER}
    thinking = show([question, with_thought])
    completion = whole[len(prompt) :] if whole.startswith(prompt) else ""
    return TemplateFacts(
        variables=variables,
        parts=parts,
        needs_system=needs_system,
        thought_key=key,
        thought_in_content=in_content,
        thought_format=style,
        keeps_thoughts=THOUGHT in _try(show, [question, with_thought, {"role": "user", "content": SECOND}]),
        renders_thought=ends_itself and bool(key or in_content) and thinking.startswith(prompt),
        renders_answer=ends_itself and bool(completion) and (not style.opened_by_prompt or style.end in completion),
        knows_system=needs_system or SYSTEM in _try(show, [_SYSTEM_MESSAGE, question]),
        end_id=end_id,
        ends_itself=ends_itself,
        next_end_id=_first_special(tokenizer, next_tail),
    )


def _find_switch(render: Render, messages: Sequence[Json], variables: Mapping[str, Any], style: ThoughtFormat) -> str:
    """Return the name of the template's argument that prevents the prompt from closing the thought, or an empty
    text."""
    prompts = ((name, render(messages, True, {**variables, name: True})) for name in ("enable_thinking", "thinking"))
    return next((name for name, prompt in prompts if not style.closed_by(prompt)), "")


def _as_parts(message: Json) -> Json:
    content = message["content"]
    return {**message, "content": [{"type": "text", "text": content}]} if isinstance(content, str) else message


def _adapt(messages: Sequence[Json], parts: bool, needs_system: bool) -> Sequence[Json]:
    """Return the messages in the form that a template needs."""
    messages = [_SYSTEM_MESSAGE, *messages] if needs_system else messages
    return [_as_parts(message) for message in messages] if parts else messages


def _find_variant(render: Render) -> tuple[Mapping[str, Any], bool, bool]:
    """Find what the template needs: more variables, contents that are lists of parts, and a system message.

    A template for tool use can need a list of tools. A template of a vision model can need a list of parts.
    """
    question, reply = {"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}
    extra: tuple[Json, ...] = ({"tools": None}, {"tools": []}, {"tools": [], "functions": "", "datetime": ""})
    variants = list(product(extra, (False, True), (False, True)))
    errors = []
    for variables, parts, needs_system in variants:
        try:
            prompt = render(_adapt([question], parts, needs_system), True, variables)
            whole = render(_adapt([question, reply], parts, needs_system), False, variables)
        except SchoolError as error:
            errors.append(error)
            continue
        if QUESTION in prompt and ANSWER in whole:
            return variables, parts, needs_system
    if len(errors) == len(variants):
        raise errors[0]
    return variants[0]


def _try(show: Callable[[Sequence[Json]], str], messages: Sequence[Json]) -> str:
    """Return the rendered messages, or an empty text if the template refuses the messages."""
    try:
        return show(messages)
    except SchoolError:
        return ""


def _common(left: str, right: str) -> int:
    """Count the equal characters at the start of two texts. A tag at the end of the equal part counts only if the whole
    tag is equal."""
    pairs = enumerate(zip(left, right, strict=False))
    at = next((i for i, (a, b) in pairs if a != b), min(len(left), len(right)))
    partial = re.search(r"[<\[][^<>\[\]\s]*$", left[:at])
    return partial.start() if partial and at < len(left) else at


def _find_thought(
    show: Callable[[Sequence[Json]], str], question: Json, generation: str, tokenizer: Tokenizer
) -> tuple[str, ThoughtFormat | None]:
    """Return the key from which the template takes a thought, and the marks that the template puts around a thought."""
    for key in THOUGHT_KEYS:
        whole = _try(show, [question, {"role": "assistant", "content": ANSWER, key: THOUGHT}])
        body = whole.rpartition(QUESTION)[2]
        before_thought, _, rest = body.partition(THOUGHT)
        closing, _, tail = rest.partition(ANSWER)
        if THOUGHT not in body or ANSWER not in rest or not closing.strip() or THOUGHT in tail:
            continue
        after, end, between = split_closing(closing, tokenizer.special_tokens)
        at = _common(generation, before_thought)
        left, opening = generation[at:], before_thought[at:]
        known = next((start.strip() for start, known_end in KNOWN_MARKS if known_end == end), "")
        if opening.strip() and end not in left:
            prefix, start, before = split_opening(opening)
            return key, ThoughtFormat(start, end, None, None, False, before, after, between, prefix)
        if end in left:  # the prompt closes the thought itself
            blanks = before_thought[len(before_thought.rstrip()) :]
            return key, ThoughtFormat(
                known or before_thought.split()[-1], end, None, None, False, blanks, after, between
            )
        start = left.strip() or known or _last_mark(tokenizer, generation)
        return key, ThoughtFormat(start, end, None, None, True, "", after, between)
    return "", None


def _last_mark(tokenizer: Tokenizer, text: str) -> str:
    """Return the last special token of a text. If the text has no special tokens, its last line is returned."""
    ids = [token for token in tokenizer.encode(text, parse_special=True) if token in tokenizer.added_tokens]
    return tokenizer.added_tokens[ids[-1]].content if ids else text.strip().rpartition("\n")[2]


def _guess_thought(template: str, tokenizer: Tokenizer, generation: str) -> ThoughtFormat:
    """Guess the marks of a thought from the template and the tokenizer, if the template takes no thought from a
    message."""
    start, end, own = guess_marks(template, tokenizer.special_tokens)
    opened = generation.rfind(start) > generation.rfind(end)
    style = ThoughtFormat(start, end, opened_by_prompt=opened, own=own)
    if opened:  # as the models do that are prompted so: `<think>\n` ... `\n</think>\n\n`
        after = generation[generation.rfind(start) + len(start) :]
        style = style._replace(after=after, between=2 * after) if not after.strip() else style
    return style


def _try_content(
    show: Callable[[Sequence[Json]], str], question: Json, prompt: str, style: ThoughtFormat
) -> tuple[bool, ThoughtFormat]:
    """Find out whether the template keeps a thought in the content. Returns True or False, and the marks with their
    blanks."""
    content = f"{style.start}{THOUGHT}{style.end}{ANSWER}"
    whole = _try(show, [question, {"role": "assistant", "content": content}])
    completion = whole[len(prompt) :] if whole.startswith(prompt) else ""
    opening, has_thought, rest = completion.partition(THOUGHT)
    closing, has_answer, _ = rest.partition(ANSWER)
    once = completion.count(style.start) == (0 if style.opened_by_prompt else 1) and closing.count(style.end) == 1
    if not (has_thought and has_answer and once):
        return False, style
    after, _, between = closing.partition(style.end)
    prefix, _, before = ("", "", opening) if style.opened_by_prompt else opening.partition(style.start)
    if (prefix + before + after + between).strip():
        return False, style
    return True, style._replace(before=before, after=after, between=between, prefix=prefix)


def _next_tail(show: Callable[[Sequence[Json]], str], question: Json, reply: Json) -> str:
    """Return the text between an answer and the next question, or an empty text if the template refuses a second
    question."""
    whole = _try(show, [question, reply, {"role": "user", "content": SECOND}])
    return whole.partition(ANSWER)[2].partition(SECOND)[0]


def _first_special(tokenizer: Tokenizer, text: str) -> int | None:
    ids = tokenizer.encode(text, parse_special=True)
    return next((token for token in ids if token in tokenizer.added_tokens), None)


def _find_end(tokenizer: Tokenizer, tail: str, next_tail: str, style: ThoughtFormat) -> tuple[int, str, bool]:
    """Return the id that ends a turn, the text between answer and this id, and whether the template writes this id.

    Some templates end a turn only if another turn follows (Apriel), or with the token that starts the next turn (GLM).
    If no token ends the turn, or if this token also ends a thought (Solar), the end-of-text token ends the turn.
    """
    for text, itself in ((tail, True), (next_tail, False)):
        end = _first_special(tokenizer, text)
        if end is None:
            continue
        mark = tokenizer.added_tokens[end].content
        if mark == style.end:
            break
        return end, text.partition(mark)[0], itself
    return tokenizer.eos_id, "", False
