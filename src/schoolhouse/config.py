"""Configuration: frozen pydantic models, read from a YAML file and from command-line words, checked once.

Defaults < file < command line. Both sources become plain values that remember where they were written, and pydantic
checks the merged whole: a wrong line of the file and a wrong word get the same message, and words may mend a file that
is incomplete by itself. Every mistake that is found is named, with its place and, for a misspelt key, the nearest one.
"""

from __future__ import annotations

import contextlib
import re
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from schoolhouse.types import SchoolError

KeyPath = tuple[str | int, ...]
"""The way to a value: keys and list positions from the root."""


class BaseConfig(BaseModel):
    """Base of every config: cannot be changed, refuses unknown keys, the docstring under a field is its help."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, given: Any) -> Any:
        """Dotted keys become groups, and a group that is given in part keeps the other defaults of this config."""
        if not isinstance(given, Mapping):
            return given
        values = cls.preset_values(expand_dotted(given))
        for name, field in cls.model_fields.items():
            if isinstance(field.default, BaseConfig) and isinstance(values.get(name), Mapping):
                values[name] = merge(field.default.model_dump(), values[name])
        return values

    @classmethod
    def of(cls, **values: Any) -> Self:
        """A config from plain values; dotted keys name a part of a group: `**{"optimizer.learning_rate": 1e-4}`.

        Raises SchoolError naming every mistake.
        """
        return build(cls, Source(values, {}))

    @classmethod
    def preset_values(cls, values: dict[str, Any]) -> dict[str, Any]:
        """The given values with those of a preset under them. Raises ValueError for an unknown preset."""
        return values

    @classmethod
    def conflicts(cls, file: Mapping[str, Any], overrides: Mapping[str, Any]) -> list[str]:
        """Values of a file that a preset named on the command line would set otherwise."""
        return []


C = TypeVar("C", bound=BaseConfig)


@dataclass(frozen=True)
class Source:
    """Plain values and where each was written: `FILE:LINE`, or `--option`."""

    values: Any
    locations: Mapping[KeyPath, str]

    def at(self, *place: str | int) -> Source:
        """The part under a place, with its own places relative to it. Raises KeyError or IndexError where it is not."""
        values = self.values
        for step in place:
            values = values[step]
        return Source(values, {at[len(place) :]: text for at, text in self.locations.items() if at[: len(place)] == place})

    def merged_over(self, base: Source) -> Source:
        """These values laid over `base`: mappings are merged key by key, anything else is replaced."""
        where = {at: text for at, text in base.locations.items() if not self._replaces(at)}
        return Source(merge(base.values, self.values), where | dict(self.locations))

    def _replaces(self, place: KeyPath) -> bool:
        """Whether a value here stands at `place` of another source or above it."""
        found = self.values
        for step in place:
            if not isinstance(found, Mapping):
                return True
            if step not in found:
                return False
            found = found[step]
        return not isinstance(found, Mapping)


def expand_dotted(values: Mapping[str, Any]) -> dict[str, Any]:
    """`{"optimizer.learning_rate": 1e-4}` -> `{"optimizer": {"learning_rate": 1e-4}}`; other keys stay."""
    expanded: dict[Any, Any] = {}
    for key, value in values.items():
        name, *parts = key.split(".") if isinstance(key, str) else [key]
        for part in reversed(parts):
            value = {part: value}
        expanded[name] = merge(expanded[name], value) if name in expanded else value
    return expanded


def lookup(values: Mapping[str, Any], key: str) -> Any:
    """The value of a dotted key in nested mappings; None where there is none."""
    found: Any = values
    for part in key.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


def merge(base: Any, override: Any) -> Any:
    """`over` laid over `base`: mappings are merged key by key, anything else is replaced."""
    if not (isinstance(base, Mapping) and isinstance(override, Mapping)):
        return override
    return {**base, **{key: merge(base[key], value) if key in base else value for key, value in override.items()}}


def load(cls: type[C], path: Path | None, overrides: Sequence[str] = (), positional: Sequence[str] = ()) -> C:
    """A config from a YAML file (or None) with command-line words laid over it: ["--learning_rate", "1e-4", ...].

    `positional` names the fields that leading words without `--` go to. Raises SchoolError naming every mistake.
    """
    source, words = read_yaml(path) if path else Source({}, {}), parse_args(cls, overrides, positional)
    if found := cls.conflicts(source.values, words.values):
        raise SchoolError("\n".join(f"{path}: {line}" for line in found))
    return build(cls, words.merged_over(source))


def dump(config: BaseConfig) -> str:
    """The config as YAML, every field written out: `load` gives the same config back."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def build(cls: type[C], source: Source) -> C:
    """Check the values of a source and make the config. Raises SchoolError naming every mistake and its place."""
    if not isinstance(source.values, Mapping):
        raise SchoolError(f"{source.locations.get((), config_name(cls))}: expected `key: value` lines, found {source.values!r}")
    try:
        return cls.model_validate(source.values)
    except ValidationError as error:
        raise SchoolError("\n".join(_complaints(cls, source, error))) from None


def print_help(cls: type[BaseConfig], command: str, description: str) -> None:
    """Print what a config holds: names, types, defaults and the docstring of every field."""
    import tyro

    with contextlib.suppress(SystemExit):
        tyro.cli(cls, args=["--help"], prog=command, description=description, use_underscores=True)


def suggest(word: str, known: Sequence[str]) -> str:
    """`; did you mean ...?` with the nearest known name, else the list of them."""
    close = get_close_matches(word, known, n=1)
    return f"; did you mean `{close[0]}`?" if close else f"; known: {', '.join(known)}"


def config_name(cls: type[BaseModel]) -> str:
    """What to call a config in messages: a recipe's `Config` goes by its file, another class by its name."""
    return cls.__module__.rpartition(".")[2] if cls.__name__ == "Config" else cls.__name__.lower()


# ---- the file


class _Loader(yaml.SafeLoader):
    """YAML as people write it: 1e-4 is a number (YAML 1.1 wants 1.0e-4 and reads a string otherwise)."""


_Loader.yaml_implicit_resolvers = {key: list(found) for key, found in yaml.SafeLoader.yaml_implicit_resolvers.items()}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def read_yaml(path: Path) -> Source:
    """A YAML file with the line of every value. An empty file is an empty mapping; a key given twice is an error."""
    try:
        loader = _Loader(path.read_text(encoding="utf-8"))
        node = loader.get_single_node()
        if node is None:
            return Source({}, {(): str(path)})
        if not isinstance(node, yaml.MappingNode):
            raise SchoolError(f"{path}: expected `key: value` lines")
        where: dict[KeyPath, str] = {}
        for place, line in _lines(node, path, ()):
            if place in where:
                raise SchoolError(f"{line}: `{'.'.join(map(str, place))}` is given twice (first at {where[place]})")
            where[place] = line
        return Source(_expanded(loader.construct_document(node)), where | {(): str(path)})
    except OSError as error:
        raise SchoolError(f"cannot read {path}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise SchoolError(f"{path} is not UTF-8 text (byte {error.start}); is it a configuration file?") from None
    except ValueError as error:  # such as a date that is none
        raise SchoolError(
            f"{path}: a value cannot be read ({error}); text that looks like a date or a number needs quotes"
        ) from None
    except RecursionError:
        raise SchoolError(f"{path}: a value refers to itself; write it out") from None
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise SchoolError(f"{path}{line}: not valid YAML: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise SchoolError(f"{path}: not valid YAML: {error}") from None


def _expanded(value: Any) -> Any:
    """A document with dotted keys as groups, at any depth."""
    if isinstance(value, Mapping):
        return expand_dotted({key: _expanded(inner) for key, inner in value.items()})
    return [_expanded(inner) for inner in value] if isinstance(value, list) else value


def _lines(node: yaml.Node, path: Path, place: KeyPath) -> Iterator[tuple[KeyPath, str]]:
    """Where each value of a document stands. The line of a value is that of its key."""
    if isinstance(node, yaml.SequenceNode):
        children = list(enumerate(node.value))
        marks = {index: child.start_mark for index, child in children}
    elif isinstance(node, yaml.MappingNode):
        children, marks = [], {}
        for key, child in node.value:
            at = f"{path}:{key.start_mark.line + 1}"
            if not isinstance(key, yaml.ScalarNode):
                raise SchoolError(f"{at}: a key must be a plain word")
            if key.value in marks:
                raise SchoolError(f"{at}: `{key.value}` is given twice (first on line {marks[key.value].line + 1})")
            marks[key.value] = key.start_mark
            children.append((key.value, child))
    else:
        return
    for name, child in children:
        here = (*place, *(name.split(".") if isinstance(name, str) else [name]))
        yield here, f"{path}:{marks[name].line + 1}"
        yield from _lines(child, path, here)


# ---- the command line


def parse_args(cls: type[BaseConfig], args: Sequence[str], positional: Sequence[str] = ()) -> Source:
    """Command-line words as a source: `--key value`, `--key=value`, `--group.key value`, `--flag`, `--no-flag`,
    `--list a b c`; hyphens or underscores. Values stay text: pydantic turns text into what the field wants."""
    known = dict(_options(cls))
    values: dict[str, Any] = {}
    where: dict[KeyPath, str] = {}
    rest = list(args)
    loose = []
    while rest and not rest[0].startswith("--"):
        loose.append(rest.pop(0))
    if len(loose) > len(positional):
        wanted = f"it takes {' '.join(name.upper() for name in positional)}" if positional else "options begin with --"
        raise SchoolError(f"what is `{loose[len(positional)]}` for? {wanted}")
    rest = [f"--{name}={word}" for name, word in zip(positional, loose, strict=False)] + rest
    while rest:
        option, equals, value = rest.pop(0).partition("=")
        given = [value] if equals else []
        while not equals and rest and not rest[0].startswith("--"):
            given.append(rest.pop(0))
        key, read = _read_option(option, given, known)
        place = tuple(key.split("."))
        where[place] = option
        inner = values
        for part in place[:-1]:
            inner = inner.setdefault(part, {})
        inner[place[-1]] = read
    return Source(values, where)


def _read_option(option: str, given: list[str], known: Mapping[str, Any]) -> tuple[str, Any]:
    """The key an option names and its value, still as text."""
    key = option.removeprefix("--").replace("-", "_")
    *outer, last = key.split(".")
    positive = ".".join((*outer, last.removeprefix("no_")))
    if key not in known and not given and known.get(positive) is bool:
        return positive, "false"
    if key not in known:
        raise SchoolError(f"unknown option {option}{suggest(f'--{key}', [f'--{name}' for name in known])}")
    kind = known[key]
    if not given and kind is bool:
        return key, "true"
    if _is_many(kind):
        return key, given
    if len(given) != 1:
        raise SchoolError(f"{option} takes one value, {f'not {len(given)}: {given}' if given else 'none was given'}")
    return key, None if given[0].lower() in ("none", "null") and types.NoneType in get_args(kind) else given[0]


def _options(cls: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every field as (dotted key, type), fields of nested models included."""
    for name, field in cls.model_fields.items():
        nested = [kind for kind in _alternatives(field.annotation) if _is_model(kind)]
        if not nested:
            yield prefix + name, field.annotation
        for kind in nested:
            yield from _options(kind, f"{prefix}{name}.")


def _alternatives(kind: Any) -> tuple[Any, ...]:
    """The members of a union, or the type itself."""
    if get_origin(kind) is Annotated:
        return _alternatives(get_args(kind)[0])
    if get_origin(kind) in (Union, types.UnionType):
        return tuple(one for member in get_args(kind) for one in _alternatives(member))
    return (kind,)


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _is_many(kind: Any) -> bool:
    return any((get_origin(one) or one) in (tuple, list, set, frozenset, Sequence) for one in _alternatives(kind))


# ---- messages


def _complaints(cls: type[BaseModel], source: Source, error: ValidationError) -> list[str]:
    """One line per mistake: where, what, and what is allowed instead."""
    lines: dict[str, list[str]] = {}
    for item in error.errors(include_url=False):
        place: KeyPath = item["loc"]
        key, message = ".".join(map(str, place)), item["msg"]
        while place and place not in source.locations:  # the deepest part that was written somewhere
            place = place[:-1]
        at = source.locations.get(place) or source.locations.get(()) or config_name(cls)
        if item["type"] == "extra_forbidden":
            *outer, last = item["loc"]
            fields = sorted({name for model in _models_at(cls, outer) for name in model.model_fields})
            subject = f"{at}: unknown key `{last}` in {'.'.join((config_name(cls), *map(str, outer)))}"
            lines.setdefault(subject + suggest(str(last), fields), [])
        elif item["type"] == "missing" and isinstance(item["loc"][-1], str):
            mend = f"write `{item['loc'][-1]}: ...` or give --{key}" if () in source.locations else f"give --{key}"
            lines.setdefault(f"{at}: `{key}` is missing: {mend}", [])
        else:
            subject = at if at.startswith("--") else f"{at}: `{'.'.join(map(str, place))}`"
            subject = f"{subject} is {source.at(*place).values!r}" if place else at
            lines.setdefault(subject, []).append(_allowed(item["type"], message))
    return [
        ": ".join((subject, " / ".join(dict.fromkeys(said)))) if said else subject for subject, said in lines.items()
    ]


def _allowed(kind: str, message: str) -> str:
    """What pydantic wants, in words that need no knowledge of pydantic."""
    if kind in ("value_error", "assertion_error"):  # our own validators: "Value error, ..."
        return message.partition(", ")[2]
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        return "it should hold `key: value` lines"
    return "it has too few values" if kind == "missing" else message.replace("Input", "it", 1)


def _models_at(cls: type[BaseModel], place: Sequence[str | int]) -> list[type[BaseModel]]:
    """The models that a place may hold."""
    models: list[Any] = [cls]
    for step in place:
        inner = [m.model_fields[step].annotation for m in models if step in m.model_fields]
        models = [kind for annotation in inner for kind in _alternatives(annotation) if _is_model(kind)] or models
    return models


def parse_query(subject: str, query: str) -> dict[str, str]:
    """What stands behind a `?`: `NAME=VALUE&NAME=VALUE`. SchoolError names `what` and the wrong part."""
    options: dict[str, str] = {}
    for part in query.split("&") if query else ():
        name, equals, value = part.partition("=")
        if not name or not equals:
            raise SchoolError(f"{subject}: `{part}` is no option; write NAME=VALUE, joined by &")
        if name in options:
            raise SchoolError(f"{subject}: option `{name}` is given twice")
        options[name] = value
    return options
