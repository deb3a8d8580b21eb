"""Config keys for chats: a system message, the chat template, and the arguments of the template.

Any other key of the group `template` is an argument of the chat template: `--template.enable_thinking false`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml
from pydantic import ConfigDict, model_validator

from schoolhouse.config import BaseConfig
from schoolhouse.data.chat_template import DEFAULT_DATE


class Template(BaseConfig):
    """The chat template, and its arguments. A key that is not a field of this class is passed to the template."""

    model_config = ConfigDict(extra="allow")

    name: str = ""
    """Name of a template of the model (such as `tool_use`), of a built-in template (chatml, plain, r1), or a .jinja
    file. Empty: the model's own template."""
    date: str = DEFAULT_DATE
    """Today's date for templates that write a date (YYYY-MM-DD). It is fixed, so that a run gives the same bits."""

    @model_validator(mode="before")
    @classmethod
    def _read_arguments(cls, data: Any) -> Any:
        """Read arguments of the command line (texts) as YAML, so that `1` is a number and `true` is a truth value."""
        if not isinstance(data, Mapping):
            return data
        own = cls.model_fields
        return {key: yaml.safe_load(v) if isinstance(v, str) and key not in own else v for key, v in data.items()}

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments of the chat template."""
        return dict(self.model_extra or {})


class ChatConfig(BaseConfig):
    """The base class for the config of each recipe and command that sends chats to a model."""

    system: str = ""
    """System message for problems without one. A template without system turns gets it before the first question."""
    template: Template = Template()
    add_think_tokens: bool = False
    """Add <think> and </think> to vocabulary and embedding, if the tokenizer does not have these tokens."""
