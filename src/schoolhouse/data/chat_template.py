"""The built-in chat templates, and a compiler of Jinja templates with the conventions of transformers."""

from __future__ import annotations

import json
from datetime import date
from functools import lru_cache
from pathlib import Path

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from schoolhouse.config import suggest
from schoolhouse.data.tokenizer import TURN_END, TURN_START, Tokenizer
from schoolhouse.types import SchoolError

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
"""This template is short on purpose, because every token costs time in a small model. The policy writes `<think>`."""

PLAIN_TEMPLATE = DEFAULT_TEMPLATE.replace("<|im_start|>", "").replace("'<|im_end|>'", "eos_token")
"""For a tokenizer without chat template and ChatML tokens: the role has its own line, and eos ends each turn."""

R1_TEMPLATE = """\
{{- 'A conversation between User and Assistant. The user asks a question, and the Assistant solves it. The assistant \
first thinks about the reasoning process in the mind and then provides the user with the answer. The reasoning process \
and answer are enclosed within <think> </think> and <answer> </answer> tags, respectively, i.e., <think> reasoning \
process here </think> <answer> answer here </answer>.' }}
{%- for message in messages %}
{%- if message.role == 'assistant' %}
{{- ' Assistant: ' }}
{%- if message.reasoning_content %}{{- '<think>' + message.reasoning_content + '</think> ' }}{% endif %}
{{- message.content + eos_token }}
{%- else %}
{{- (' User: ' if message.role == 'user' else ' ') + message.content }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- ' Assistant:' }}{% endif %}
"""
"""The template of DeepSeek-R1-Zero for base models (Guo et al. 2025, arXiv 2501.12948, table 1)."""

BUILT_IN_TEMPLATES = {"chatml": DEFAULT_TEMPLATE, "plain": PLAIN_TEMPLATE, "r1": R1_TEMPLATE}

DEFAULT_DATE = "2024-07-26"
"""The date that a template gets. The date is fixed, so that a run gives the same bits on every day. Llama's templates
use the same default date."""


class _Generation(Extension):
    """`{% generation %}...{% endgeneration %}` marks the assistant's text in some templates. This mark has no effect in
    this package."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def select_template(tokenizer: Tokenizer, name: str = "") -> str:
    """Return a template by name: a template of the tokenizer, a built-in template, or a .jinja file. Without a name,
    the main template is returned.

    A model without a template gets a built-in template. The built-in template begins with the bos token if the
    tokenizer puts this token before a text. Raises SchoolError for a name that does not exist.
    """
    own = {"default": tokenizer.chat_template} if tokenizer.chat_template else {}
    own |= tokenizer.chat_templates
    if not name and own and not tokenizer.chat_template:
        raise SchoolError(
            f"the model has several chat templates ({', '.join(own)}), but no default template: choose a template, "
            f"such as --template.name {next(iter(own))}"
        )
    if name in own or (not name and own):
        return own[name or "default"]
    if name.endswith(".jinja"):
        try:
            return Path(name).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise SchoolError(f"cannot read the chat template {name} ({error}); check the path of the file") from None
    if name and name not in BUILT_IN_TEMPLATES:
        known = [*own, *BUILT_IN_TEMPLATES]
        raise SchoolError(f"there is no chat template `{name}`{suggest(name, known)}; or give a .jinja file")
    chatml = {TURN_START, TURN_END} <= tokenizer.special_tokens.keys()
    template = BUILT_IN_TEMPLATES[name or ("chatml" if chatml else "plain")]
    return ("{{- bos_token }}" if tokenizer.bos_ids else "") + template


@lru_cache(64)
def compile_template(template: str, today: str = DEFAULT_DATE) -> jinja2.Template:
    """Compile a chat template as transformers does. `strftime_now` formats the date `today` (YYYY-MM-DD).

    Raises SchoolError for a syntax error (the message names the line), and for a date that cannot be read.
    """
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    try:
        day = date.fromisoformat(today)
    except (ValueError, TypeError):
        raise SchoolError(f"the date `{today}` of a chat template cannot be read: write it as 2026-01-31") from None
    try:
        return environment.from_string(
            template, globals={"raise_exception": _raise_exception, "strftime_now": day.strftime}
        )
    except jinja2.TemplateSyntaxError as error:
        raise SchoolError(f"chat template, line {error.lineno}: {error.message}; correct the template") from error


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
