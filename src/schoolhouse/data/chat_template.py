"""The default chat templates, and a compiler of Jinja templates with the conventions of transformers."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

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


class _Generation(Extension):
    """`{% generation %}...{% endgeneration %}` marks the assistant's text in some templates. It has no effect here."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


@lru_cache(64)
def compile_template(template: str) -> jinja2.Template:
    """A chat template with the conventions of transformers, but without the date: equal messages give equal text.

    Raises SchoolError for a syntax error; the message names the line.
    """
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    try:
        return environment.from_string(template, globals={"raise_exception": _raise_exception})
    except jinja2.TemplateSyntaxError as error:
        raise SchoolError(f"chat template, line {error.lineno}: {error.message}") from error


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _tojson(value: object, indent: int | None = None, **_: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)
