"""Configs are frozen pydantic models. The values of a config come from a YAML file and from command-line arguments.

Values in the file replace defaults, and command-line values replace values in the file. Each value is stored with its
location. The merged values are checked together. So a mistake has the same message in a file and on the command line,
and command-line arguments can add required keys that a file lacks. Every error message gives the location of the
mistake. For a misspelt key, the message also gives the most similar key.
"""

from __future__ import annotations

import re
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from schoolhouse.types import SchoolError

KeyPath = tuple[str | int, ...]
"""The path of a value in nested mappings and lists: the keys and list indices from the root to the value."""


class BaseConfig(BaseModel):
    """The base class of every config. A config is immutable and refuses unknown keys.

    The docstring of a field is also the help text of this field.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
    keys_are_names: ClassVar[bool] = False
    """Whether the user chooses the keys of this group freely. Such keys can have hyphens and dots."""

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, data: Any) -> Any:
        """Expand dotted keys such as `a.b` into groups of keys.

        If a key of a group is not given, the key keeps its default.
        """
        if not isinstance(data, Mapping) or cls.keys_are_names:
            return data
        values = cls.preset_values(expand_dotted(data))
        for name, field in cls.model_fields.items():
            if isinstance(field.default, BaseConfig) and isinstance(values.get(name), Mapping):
                values[name] = merge(field.default.model_dump(), values[name])
        return values

    @classmethod
    def of(cls, **values: Any) -> Self:
        """Make a config from plain values. Dotted keys such as `**{"optimizer.learning_rate": 1e-4}` are allowed too.

        Raises SchoolError if a value is wrong. The message names every mistake.
        """
        paths = [tuple(key.split(".")) for key, _ in leaf_fields(cls)]
        locations: dict[KeyPath, str] = {path[:n]: config_name(cls) for path in paths for n in range(1, len(path) + 1)}
        return build(cls, Source(expand_dotted(values), locations))

    @classmethod
    def preset_values(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Return the values of the preset that `values` names. The other keys in `values` replace values of the preset.

        Raises ValueError if the preset is unknown.
        """
        return values

    @classmethod
    def conflicts(cls, file: Mapping[str, Any], overrides: Mapping[str, Any]) -> list[str]:
        """Return one error message for each value in the file that contradicts the preset on the command line."""
        return []


C = TypeVar("C", bound=BaseConfig)


@dataclass(frozen=True)
class Source:
    """Plain values and the location of each value. A location is written as `FILE:LINE` or `--option`."""

    values: Any
    locations: Mapping[KeyPath, str]

    def at(self, *path: str | int) -> Source:
        """Return the values below a path, with their locations. Raises KeyError or IndexError for an unknown path."""
        values = self.values
        for step in path:
            values = values[step]
        below = {at[len(path) :]: location for at, location in self.locations.items() if at[: len(path)] == path}
        return Source(values, below)

    def merged_over(self, base: Source) -> Source:
        """Return `base` with the values of this source in place of its own values. Mappings are merged key by key.

        Values that are not mappings are replaced.
        """
        kept = {path: location for path, location in base.locations.items() if not self._replaces(path)}
        return Source(merge(base.values, self.values), kept | dict(self.locations))

    def _replaces(self, path: KeyPath) -> bool:
        """Return True if this source (values with their locations) replaces the value at `path` in another source."""
        found = self.values
        for step in path:
            if not isinstance(found, Mapping):
                return True
            if step not in found:
                return False
            found = found[step]
        return not isinstance(found, Mapping)


def expand_dotted(values: Mapping[str, Any]) -> dict[str, Any]:
    """Expand dotted keys into nested mappings. Keys without a dot do not change.

    An example is `{"optimizer.learning_rate": 1e-4}` -> `{"optimizer": {"learning_rate": 1e-4}}`.
    """
    expanded: dict[Any, Any] = {}
    for key, value in values.items():
        name, *parts = key.split(".") if isinstance(key, str) else [key]
        for part in reversed(parts):
            value = {part: value}
        expanded[name] = merge(expanded[name], value) if name in expanded else value
    return expanded


def lookup(values: Mapping[str, Any], key: str) -> Any:
    """Return the value of a dotted key in nested mappings, or None if the mappings do not have this key."""
    found: Any = values
    for part in key.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


def merge(base: Any, override: Any) -> Any:
    """Return `base` with the values of `override` in place of its own values. Mappings are merged key by key.

    Values that are not mappings are replaced.
    """
    if not (isinstance(base, Mapping) and isinstance(override, Mapping)):
        return override
    merged = {key: merge(base[key], value) if key in base else value for key, value in override.items()}
    return {**base, **merged}


def load(
    cls: type[C],
    path: Path | None,
    overrides: Sequence[str] = (),
    positional: Sequence[str] = (),
    defaults: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None,
) -> C:
    """Make a config from a YAML file and from command-line arguments such as ["--learning_rate", "1e-4"].

    If `path` is None, no file is read. Command-line arguments replace values of the file. `positional` names the
    fields that are set by arguments without `--`. `defaults` is a function of the given values that returns values for
    keys that are not given. Raises SchoolError, and the message names every mistake.
    """
    file = read_yaml(path) if path else Source({}, {})
    arguments = parse_args(cls, overrides, positional)
    if conflicts := cls.conflicts(file.values, arguments.values):
        raise SchoolError("\n".join(f"{path}: {conflict}" for conflict in conflicts))
    source = arguments.merged_over(file)
    if defaults and isinstance(source.values, Mapping):
        source = source.merged_over(Source(expand_dotted(defaults(source.values)), {}))
    return build(cls, source)


def dump(config: BaseConfig) -> str:
    """Return the config as YAML text with every field. `load` reads the same config from the YAML text."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def build(cls: type[C], source: Source) -> C:
    """Make a config from a source, which contains values and the location of each value.

    Raises SchoolError if values are wrong. The message names every mistake and its location.
    """
    if not isinstance(source.values, Mapping):
        location = source.locations.get((), config_name(cls))
        raise SchoolError(f"{location}: expected `key: value` lines, found {source.values!r}")
    try:
        return cls.model_validate(source.values)
    except ValidationError as error:
        raise SchoolError("\n".join(_complaints(cls, source, error))) from None


def suggest(word: str, known: Sequence[str]) -> str:
    """Return the text `; did you mean ...?` with the most similar known name.

    If no known name is similar, return the list of known names. If there are no known names, return an empty text. The
    last part of a dotted name is enough for a suggestion, so the word `learning_rate` gives the suggestion
    `optimizer.learning_rate`.
    """
    if not known:
        return ""
    spellings: dict[str, list[str]] = {}
    for name in known:
        dashes = "--" if name.startswith("--") else ""
        for spelling in {name, dashes + name.removeprefix("--").rpartition(".")[2]}:
            spellings.setdefault(spelling, []).append(name)
    if close := get_close_matches(word, spellings, n=1):
        return f"; did you mean {' or '.join(f'`{name}`' for name in spellings[close[0]])}?"
    shown = dict.fromkeys(f"{name.partition('.')[0]}.*" if "." in name else name for name in known)
    return f"; known: {', '.join(name for name in shown if f'{name}.*' not in shown)}"


def config_name(cls: type[BaseModel]) -> str:
    """Return the name of a config class for messages.

    A class called `Config` belongs to a recipe and gets the name of the recipe's file. All other config
    classes get the name of the class.
    """
    return cls.__module__.rpartition(".")[2] if cls.__name__ == "Config" else cls.__name__.lower()


# ---- the file


class _Loader(yaml.SafeLoader):
    """A YAML loader that reads `1e-4` as a number. Standard YAML 1.1 would read `1e-4` as text."""


_Loader.yaml_implicit_resolvers = {key: list(found) for key, found in yaml.SafeLoader.yaml_implicit_resolvers.items()}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def read_yaml(path: Path) -> Source:
    """Read a YAML file with the line number of every value.

    An empty file gives an empty mapping. A key that occurs twice is an error.
    """
    try:
        loader = _Loader(path.read_text(encoding="utf-8"))
        node = loader.get_single_node()
        if node is None:
            return Source({}, {(): str(path)})
        if not isinstance(node, yaml.MappingNode):
            raise SchoolError(f"{path}: expected `key: value` lines, found a list or a single value")
        locations: dict[KeyPath, str] = {}
        for key_path, location in _locations(node, path, ()):
            if key_path in locations:
                key = ".".join(map(str, key_path))
                raise SchoolError(
                    f"{location}: duplicate key `{key}` (first at {locations[key_path]}); delete one of the two"
                )
            locations[key_path] = location
        return Source(_expand_nested(loader.construct_document(node)), locations | {(): str(path)})
    except OSError as error:
        raise SchoolError(f"cannot read {path}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise SchoolError(f"{path} is not UTF-8 text (byte {error.start}): give a YAML file in UTF-8") from None
    except ValueError as error:  # such as an impossible date
        raise SchoolError(
            f"{path}: a value cannot be read ({error}): if text looks like a date or a number, put it in quotes"
        ) from None
    except RecursionError:
        raise SchoolError(f"{path}: a value refers to itself by a YAML alias (`*name`); remove this alias") from None
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise SchoolError(f"{path}{line}: the file is not valid YAML: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise SchoolError(f"{path}: the file is not valid YAML: {error}") from None


def _expand_nested(value: Any) -> Any:
    """Expand dotted keys such as `a.b` of a YAML document into groups of keys, at every level of the document."""
    if isinstance(value, Mapping):
        return expand_dotted({key: _expand_nested(inner) for key, inner in value.items()})
    return [_expand_nested(inner) for inner in value] if isinstance(value, list) else value


def _locations(node: yaml.Node, path: Path, parent: KeyPath) -> Iterator[tuple[KeyPath, str]]:
    """Yield the key path and the location (`FILE:LINE`) of each value in a YAML document.

    The location of a value gives the line of its key.
    """
    if isinstance(node, yaml.SequenceNode):
        children = list(enumerate(node.value))
        marks = {index: child.start_mark for index, child in children}
    elif isinstance(node, yaml.MappingNode):
        children, marks = [], {}
        for key, child in node.value:
            location = f"{path}:{key.start_mark.line + 1}"
            if not isinstance(key, yaml.ScalarNode):
                raise SchoolError(f"{location}: a key must be a plain word, found a list or a mapping as a key")
            if key.value in marks:
                first = marks[key.value].line + 1
                raise SchoolError(
                    f"{location}: duplicate key `{key.value}` (first on line {first}); delete one of the two"
                )
            marks[key.value] = key.start_mark
            children.append((key.value, child))
    else:
        return
    for name, child in children:
        key_path = (*parent, *(name.split(".") if isinstance(name, str) else [name]))
        yield key_path, f"{path}:{marks[name].line + 1}"
        yield from _locations(child, path, key_path)


# ---- the command line


def parse_args(cls: type[BaseConfig], args: Sequence[str], positional: Sequence[str] = ()) -> Source:
    """Convert command-line arguments to a source (values with their locations).

    Allowed forms are `--key value`, `--key=value`, `--group.key value`, `--flag`, `--no-flag` and `--list a b c`.
    Keys can have hyphens or underscores. Values stay text until pydantic converts each value to the type of its field.
    """
    known = dict(leaf_fields(cls))
    values: dict[str, Any] = {}
    locations: dict[KeyPath, str] = {}
    rest = list(args)
    leading = []
    while rest and not rest[0].startswith("--"):
        leading.append(rest.pop(0))
    if len(leading) > len(positional):
        wanted = f"expected {' '.join(name.upper() for name in positional)}" if positional else "options begin with --"
        raise SchoolError(f"unexpected argument `{leading[len(positional)]}`; {wanted}")
    rest = [f"--{name}={value}" for name, value in zip(positional, leading, strict=False)] + rest
    while rest:
        option, equals, text = rest.pop(0).partition("=")
        texts = [text] if equals else []
        while not equals and rest and not rest[0].startswith("--"):
            texts.append(rest.pop(0))
        key, value = _parse_option(cls, option, texts, known)
        *groups, last = _split_key(cls, key)
        locations[(*groups, last)] = option
        group = values
        for name in groups:
            group = group.setdefault(name, {})
        group[last] = value
    return Source(values, locations)


def _parse_option(cls: type[BaseConfig], option: str, texts: list[str], known: Mapping[str, Any]) -> tuple[str, Any]:
    """Return the key of an option, and the value of the option as text."""
    written = option.removeprefix("--")
    *outer, name = _split_key(cls, written)
    if outer and any(getattr(model, "keys_are_names", False) for model in _models_at(cls, outer)):
        if len(texts) != 1 or not texts[0]:
            raise SchoolError(f"{option} needs one value, found {texts or 'none'}")
        return ".".join((*outer, name)), texts[0]
    key = written.replace("-", "_")
    *groups, last = key.split(".")
    positive = ".".join((*groups, last.removeprefix("no_")))
    if key not in known and not texts and known.get(positive) is bool:
        return positive, "false"
    if key not in known and not any(model.model_config.get("extra") == "allow" for model in _models_at(cls, groups)):
        raise SchoolError(f"unknown option {option}{suggest(f'--{key}', [f'--{name}' for name in known])}")
    annotation = known.get(key, bool if not texts else str)
    if not texts and annotation is bool:
        return key, "true"
    if _is_sequence(annotation):
        return key, texts
    if len(texts) != 1:
        raise SchoolError(f"{option} needs one value, found {f'{len(texts)}: {texts}' if texts else 'none'}")
    members = union_members(annotation)
    exact = {str(value): value for member in members if get_origin(member) is Literal for value in get_args(member)}
    if types.NoneType in members:
        exact |= {"none": None, "None": None, "null": None}
    return key, exact.get(texts[0], texts[0])  # pydantic converts text to types, but not to these values


def _split_key(cls: type[BaseConfig], key: str) -> list[str]:
    """Split a dotted key at its dots. A name that the user has chosen freely is not split."""
    parts = key.split(".")
    for n in range(1, len(parts)):
        if any(getattr(model, "keys_are_names", False) for model in _models_at(cls, parts[:n])):
            return [*parts[:n], ".".join(parts[n:])]
    return parts


def leaf_fields(cls: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield a pair (dotted key, annotation) for every field. A group of keys gives one pair for each of its fields."""
    for name, field in cls.model_fields.items():
        groups = [member for member in union_members(field.annotation) if is_model(member)]
        if not groups:
            yield prefix + name, field.annotation
        for group in groups:
            yield from leaf_fields(group, f"{prefix}{name}.")


def union_members(annotation: Any) -> tuple[Any, ...]:
    """Return the member types of a union, or the type itself if it is not a union. `Annotated` types are unwrapped."""
    if get_origin(annotation) is Annotated:
        return union_members(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return tuple(inner for member in get_args(annotation) for inner in union_members(member))
    return (annotation,)


def is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _is_sequence(annotation: Any) -> bool:
    kinds = (tuple, list, set, frozenset, Sequence)
    return any((get_origin(member) or member) in kinds for member in union_members(annotation))


# ---- messages


def _complaints(cls: type[BaseModel], source: Source, error: ValidationError) -> list[str]:
    """Return one line for each mistake: the location, the mistake, and the allowed values."""
    lines: dict[str, list[str]] = {}
    for item in error.errors(include_url=False):
        path: KeyPath = item["loc"]
        key, message = ".".join(map(str, path)), item["msg"]
        while path and path not in source.locations:  # the deepest part that was written somewhere
            path = path[:-1]
        location = source.locations.get(path) or source.locations.get(()) or config_name(cls)
        if item["type"] == "extra_forbidden":
            lines.setdefault(f"{location}: {_unknown_key(cls, item['loc'])}", [])
        elif item["type"] == "missing" and isinstance(item["loc"][-1], str):
            remedy = f"write `{item['loc'][-1]}: ...` or give --{key}" if () in source.locations else f"give --{key}"
            lines.setdefault(f"{location}: `{key}` is missing: {remedy}", [])
        else:
            subject = location if location.startswith("--") else f"{location}: `{'.'.join(map(str, path))}`"
            subject = f"{subject} is {source.at(*path).values!r}" if path else location
            lines.setdefault(subject, []).append(_requirement(item["type"], message))
    return [subject + (f": {' / '.join(dict.fromkeys(wanted))}" if wanted else "") for subject, wanted in lines.items()]


def _unknown_key(cls: type[BaseModel], path: KeyPath) -> str:
    """Return the error message for an unknown key.

    If another group has a key of this name, the message suggests the dotted name of that key.
    """
    *outer, last = path
    name = ".".join((config_name(cls), *map(str, outer)))
    models = _models_at(cls, outer)
    known = sorted({key for model in models for key in (*model.model_fields, *dict(leaf_fields(model)))})
    elsewhere = [key for key, _ in leaf_fields(cls) if key.rpartition(".")[2] == last]
    return f"unknown key `{last}` in {name}{suggest(str(last), elsewhere or known)}"


def _requirement(kind: str, message: str) -> str:
    """Return pydantic's error message, changed for readers who do not know pydantic."""
    if kind in ("value_error", "assertion_error"):  # our own validators: "Value error, ..."
        return message.partition(", ")[2]
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        return "it should hold `key: value` lines"
    return "it has too few values" if kind == "missing" else requirement(message)


def requirement(message: str) -> str:
    """Return one of pydantic's messages about a wrong value in plain words, such as `it should be a valid integer`."""
    return message.partition(", unable to parse")[0].replace("Input", "it", 1)


def _models_at(cls: type[BaseModel], path: Sequence[str | int]) -> list[type[BaseModel]]:
    """Return the config classes that can be at a key path."""
    models: list[Any] = [cls]
    for step in path:
        annotations = [model.model_fields[step].annotation for model in models if step in model.model_fields]
        models = [member for kind in annotations for member in union_members(kind) if is_model(member)] or models
    return models


def parse_query(subject: str, query: str) -> dict[str, str]:
    """Read options in the form `NAME=VALUE&NAME=VALUE`, which follow the `?` in the text of a task or a search.

    Raises SchoolError if an option is wrong. The message names `subject` and the wrong option.
    """
    options: dict[str, str] = {}
    for part in query.split("&") if query else ():
        name, equals, value = part.partition("=")
        if not name or not equals:
            raise SchoolError(f"{subject}: `{part}` is not an option; write NAME=VALUE, and join options with &")
        if name in options:
            raise SchoolError(f"{subject}: duplicate option `{name}`; give this option only once")
        options[name] = value
    return options
