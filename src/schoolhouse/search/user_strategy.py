"""A search strategy can come from the user's own file: `--search my_search.py[:NAME][?OPTION=VALUE&...]`.

A strategy is a generator function. The first parameter of a strategy is the tree, and its other parameters are options.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import FunctionType
from typing import Any

from pydantic import TypeAdapter, ValidationError

from schoolhouse.config import requirement, suggest
from schoolhouse.search.tree import Node, Request, Strategy, Tree, outcome
from schoolhouse.tasks.user_file import definition, describe_error, load_module
from schoolhouse.types import SchoolError


def is_strategy_file(name: str) -> bool:
    """Return True if a search name has the form `PATH.py` or `PATH.py:NAME`."""
    return name.endswith(".py") or ".py:" in name


@cache
def load_strategy(name: str) -> tuple[Path, FunctionType]:
    """Load the generator function that `PATH.py[:NAME]` names. Returns the path of the file and the function.

    If the file has an error, a SchoolError names the file and the line.
    """
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
            raise SchoolError(f"{path} has no search strategy `{function_name}`{suggest(function_name, [*strategies])}")
        return path, strategies[function_name]
    if not strategies:
        raise SchoolError(
            f"{path} has no strategy: write a generator function that takes a tree and yields requests (a strategy)"
        )
    if len(strategies) > 1:
        names = ", ".join(strategies)
        raise SchoolError(f"{path} has several search strategies ({names}): choose one with --search {path}:NAME")
    return path, next(iter(strategies.values()))


def option_names(name: str) -> list[str]:
    """The names of a strategy's options: all parameters after the first parameter (the tree)."""
    return [*inspect.signature(load_strategy(name)[1]).parameters][1:]


def strategy_options(name: str, given: Mapping[str, str]) -> dict[str, Any]:
    """Select the given options that are parameters of the strategy.

    Each value is converted to the type of the parameter's default value.
    """
    _, function = load_strategy(name)
    place = f"{definition(function)}: {function.__name__}"
    options = {}
    for option in option_names(name):
        default = inspect.signature(function).parameters[option].default
        if option not in given:
            if default is inspect.Parameter.empty:
                raise SchoolError(f"{place} needs the option `{option}`: write --search {name}?{option}=VALUE")
            continue
        kind = type(default) if isinstance(default, bool | int | float) else str
        try:
            options[option] = TypeAdapter(kind).validate_python(given[option])
        except ValidationError as error:
            message = requirement(error.errors()[0]["msg"])
            raise SchoolError(f"{place}: the option `{option}` is `{given[option]}`: {message}") from None
    return options


def run_user_strategy(name: str, tree: Tree, options: Mapping[str, Any]) -> Strategy:
    """Run the user's strategy on one tree. If the strategy fails, the error message names the user's file.

    If a request could exceed the token budget, the strategy ends before this request. If the remaining budget is too
    small to compute the value of an answer, the answer gets the value nan, but still counts as an answer.
    """
    path, function = load_strategy(name)
    results: list[Any] | None = None
    try:
        strategy = function(tree, **options)
        while True:
            request = strategy.send(results)
            if not _is_request(request):
                raise SchoolError(
                    f"{path}:{strategy.gi_frame.f_lineno}: the strategy `{function.__name__}` yields "
                    f"{str(request)[:60]!r}, which is not a request: yield "
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
