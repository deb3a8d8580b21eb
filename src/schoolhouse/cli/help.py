"""This module makes the help text of a config. The help text has one entry for each key.

The help of a large config lists only groups of keys. `--help GROUP` then shows the keys of one group.
"""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import NoneType
from typing import Any, Literal, NamedTuple, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from schoolhouse.config import BaseConfig, is_model, leaf_fields, suggest, union_members
from schoolhouse.types import SchoolError

ONE_SCREEN = 24
"""The largest number of keys that are shown together. A config with more keys shows the names of its groups."""

_INDENT = 32  # column where descriptions begin
_TYPE_NAMES = {str: "TEXT", Path: "PATH", int: "INT", float: "FLOAT", bool: "BOOL"}


class Entry(NamedTuple):
    """The help entry of one config key.

    An entry has the dotted name of the key, the name of its type, its default and its description. The default None
    means that the key is required.
    """

    key: str
    type_name: str
    default: str | None
    about: str


def wants_help(args: Sequence[str]) -> bool:
    return any(arg in ("-h", "--help") for arg in args)


def help_topic(args: Sequence[str]) -> str:
    """Return the word after `--help` (the name of a group, or `all`). Return an empty text if no word follows."""
    at = next(i for i, arg in enumerate(args) if arg in ("-h", "--help"))
    return args[at + 1] if at + 1 < len(args) and not args[at + 1].startswith("-") else ""


def print_help(cls: type[BaseConfig], command: str, usage: str, about: str, args: Sequence[str]) -> None:
    """Print the help text that `args` request. Raises SchoolError for an unknown group."""
    width = min(shutil.get_terminal_size((100, 24)).columns, 120)
    print(config_help(cls, command, usage, about, help_topic(args), width))


def config_help(
    cls: type[BaseConfig], command: str, usage: str, about: str = "", topic: str = "", width: int = 100
) -> str:
    """Return the help text with usage, description and keys of a config.

    `command` contains the words before `--help`. If `topic` is the name of a group, the text shows the keys of this
    group. If `topic` is `all`, the text shows all keys. If `topic` is empty, the text shows all keys of a small config,
    or the top level of a large config.
    """
    lines = [f"usage: {command} {usage}".rstrip(), "", *([textwrap.fill(about, width), ""] if about else [])]
    groups = {name: model for name, field in cls.model_fields.items() for model in _groups(field.annotation)}
    large = len(dict(leaf_fields(cls))) > ONE_SCREEN
    if topic and topic not in (*groups, "all"):
        raise SchoolError(f"unknown group `{topic}`{suggest(topic, [*groups, 'all'])}")
    for entry in entries(cls):
        group, dot, _ = entry.key.partition(".")
        if topic == group or topic == "all" or (not topic and not (large and dot)):
            lines.append(_format(f"--{entry.key} {entry.type_name}", _describe(entry), width))
    if large and not topic:
        lines += ["", "groups of keys:"]
        for name, model in groups.items():
            lines.append(
                _format(f"--{name}.*", f"{len(dict(leaf_fields(model)))} keys: {_first_paragraph(model)}", width)
            )
        lines += [
            "",
            f"`{command} --help {next(iter(groups))}` shows the keys of one group, `--help all` shows all keys.",
        ]
    return "\n".join(lines)


def entries(cls: type[BaseModel], defaults: BaseModel | None = None, prefix: str = "") -> Iterator[Entry]:
    """Yield an entry for every key of a config, with the default value of the key.

    A group of keys yields one entry per key.
    """
    for name, field in cls.model_fields.items():
        default = field.get_default(call_default_factory=True) if defaults is None else getattr(defaults, name)
        groups = _groups(field.annotation)
        for group in groups:
            yield from entries(group, default if isinstance(default, group) else None, f"{prefix}{name}.")
        if not groups:
            shown = None if default is PydanticUndefined else _value(default)
            about = " ".join((field.description or "").split())
            yield Entry(prefix + name, _type_name(field.annotation), shown, about)


def _groups(annotation: Any) -> list[type[BaseModel]]:
    return [member for member in union_members(annotation) if is_model(member)]


def _first_paragraph(model: type[BaseModel]) -> str:
    return " ".join((model.__doc__ or "").partition("\n\n")[0].split())


def _type_name(annotation: Any) -> str:
    """Return the name of a type for the help text, such as `INT`, `FLOAT FLOAT`, `TEXT ...`, `{a,b}` or `INT|none`."""
    members = union_members(annotation)
    names = [_member_name(member) for member in members if member is not NoneType]
    return "|".join([*dict.fromkeys(names), *(["none"] if NoneType in members else [])])


def _member_name(member: Any) -> str:
    if get_origin(member) is Literal:
        return f"{{{','.join(str(value) for value in get_args(member))}}}"
    if get_origin(member) is tuple:
        return " ".join("..." if inner is Ellipsis else _type_name(inner) for inner in get_args(member))
    return _TYPE_NAMES.get(member, "VALUE")


def _value(default: Any) -> str:
    """Return a default value in the form in which a user writes it on the command line."""
    if isinstance(default, tuple | list):
        return " ".join(map(_value, default)) or "empty"
    if isinstance(default, bool) or default is None:
        return str(default).lower()
    return "empty" if default == "" else str(default)


def _describe(entry: Entry) -> str:
    default = "required" if entry.default is None else f"default: {entry.default}"
    return f"{entry.about} ({default})".lstrip()


def _format(left: str, right: str, width: int) -> str:
    """Format two columns. A long text in the left column gets its own line."""
    margin = " " * _INDENT
    text = textwrap.fill(right, width, initial_indent=margin, subsequent_indent=margin, break_on_hyphens=False)
    head = f"  {left}"
    return head.ljust(_INDENT) + text[_INDENT:] if len(head) < _INDENT - 1 else f"{head}\n{text}"
