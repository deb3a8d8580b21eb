"""A search strategy from the user's own file: `--search my_search.py[:NAME][?OPTION=VALUE&...]`.

The strategy is a generator function whose first parameter is the tree; its other parameters are options.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import FunctionType
from typing import Any

from pydantic import TypeAdapter, ValidationError

from schoolhouse.config import suggest
from schoolhouse.search.tree import Node, Request, Strategy, Tree, outcome
from schoolhouse.tasks.user_file import definition, describe_error, load_module
from schoolhouse.types import SchoolError


def is_strategy_file(name: str) -> bool:
    """Whether a search name has the form `PATH.py` or `PATH.py:NAME`."""
    return name.endswith(".py") or ".py:" in name


@cache
def load_strategy(name: str) -> tuple[Path, FunctionType]:
    """The file and the generator function that `PATH.py[:NAME]` names. A SchoolError names the file and the line."""
    file, separator, function_name = name.partition(".py:")
    path = Path(file + ".py" if separator else name)
    module = load_module(path, "--search PATH.py or --search PATH.py:NAME")
    strategies: dict[str, FunctionType] = {
        key: value
        for key, value in vars(module).items()
        if isinstance(value, FunctionType)
        and inspect.isgeneratorfunction(value)
        and value.__module__ == module.__name__
        and not key.startswith("_")
    }
    if function_name:
        if function_name not in strategies:
            raise SchoolError(f"{path} has no strategy `{function_name}`{suggest(function_name, [*strategies])}")
        return path, strategies[function_name]
    if len(strategies) != 1:
        found = f"has {', '.join(strategies)}; choose one: --search {path}:NAME" if strategies else "has no strategy"
        raise SchoolError(f"{path} {found}: a strategy is a function that takes a tree and yields requests")
    return path, next(iter(strategies.values()))


def option_names(name: str) -> list[str]:
    """The parameters of a strategy after the first one (the tree)."""
    return [*inspect.signature(load_strategy(name)[1]).parameters][1:]


def strategy_options(name: str, given: Mapping[str, str]) -> dict[str, Any]:
    """The given options that are parameters of the strategy. Each value gets the type of the parameter's default."""
    _, function = load_strategy(name)
    place = f"{definition(function)}: {function.__name__}"
    options = {}
    for option in option_names(name):
        default = inspect.signature(function).parameters[option].default
        if option not in given:
            if default is inspect.Parameter.empty:
                raise SchoolError(f"{place} needs `{option}`: write --search {name}?{option}=VALUE")
            continue
        kind = type(default) if isinstance(default, bool | int | float) else str
        try:
            options[option] = TypeAdapter(kind).validate_python(given[option])
        except ValidationError as error:
            message = error.errors()[0]["msg"].lower()
            raise SchoolError(f"{place}: `{option}={given[option]}`: {message}") from None
    return options


def run_user_strategy(name: str, tree: Tree, options: Mapping[str, Any]) -> Strategy:
    """Run the user's strategy on one tree. Errors name the user's file.

    The strategy ends before a request that could exceed the budget. If the budget is too small to value an answer, the
    answer has the value nan. This answer still counts as an answer.
    """
    path, function = load_strategy(name)
    results: list[Any] | None = None
    try:
        strategy = function(tree, **options)
        while True:
            request = strategy.send(results)
            if not _is_request(request):
                raise SchoolError(
                    f"{path}:{strategy.gi_frame.f_lineno}: `{function.__name__}` yields {str(request)[:60]!r}: yield "
                    'Request("expand", nodes) or Request("value", nodes)'
                )
            cost = tree.costs.expand if request.action == "expand" else tree.costs.value
            if tree.tokens + cost * len(request.nodes) > tree.budget:
                action = "thought" if request.action == "expand" else "value"
                tree.stop_reason = f"the budget of {tree.budget:g} tokens is too small for one more {action}"
                return
            results = yield request
    except StopIteration:
        tree.stop_reason = tree.stop_reason or outcome(tree)
    except SchoolError:
        raise
    except Exception as error:
        raise SchoolError(describe_error(error)) from error


def _is_request(value: object) -> bool:
    return (
        isinstance(value, Request)
        and value.action in ("expand", "value")
        and all(isinstance(node, Node) for node in value.nodes)
    )
