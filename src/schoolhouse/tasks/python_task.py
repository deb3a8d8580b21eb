"""Tasks from a user's own Python file (`python:PATH.py[:NAME]`).

The file defines a subclass of Task, or a reward function (reward_function.py).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from schoolhouse.config import suggest
from schoolhouse.tasks.base import Task
from schoolhouse.tasks.reward_function import (
    SINGLE_SIGNATURE,
    TRL_SIGNATURE,
    VERL_SIGNATURE,
    missing_arguments,
    open_reward,
    signature_style,
)
from schoolhouse.tasks.user_file import UserCodeError, definition, describe_error, load_module, raised_at
from schoolhouse.types import Problem, SchoolError


def open_python(rest: str, seed: int = 0, **options: str) -> Task:
    """Open the Task or the reward function of a Python file. The file is run in the main process and in each worker
    process.

    The part `:NAME` is optional if the file has only one Task or only one reward function. A reward function needs
    problems from the option `data=PATH`, and accepts the options of a data file (docs/data.md). The options of a Task
    are passed as arguments to its class. Raises SchoolError if the file has a mistake; the message names the file, the
    line and the mistake.
    """
    file, separator, name = rest.partition(".py:")
    path = Path(file + ".py" if separator else rest)
    module = load_module(path, "python:PATH.py or python:PATH.py:NAME")
    chosen = _choose(module, path, name)
    if isinstance(chosen, type):
        return _open_class(chosen, path, seed, options)
    return open_reward(chosen, path, seed, options)


def _choose(module: ModuleType, path: Path, name: str) -> Any:
    """Find the Task or reward function with this name.

    If no name is given, the file must contain only one Task or only one reward function.
    """
    own = {key: value for key, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__}
    tasks = {key: value for key, value in own.items() if isinstance(value, type) and issubclass(value, Task)}
    functions = {key: value for key, value in own.items() if isinstance(value, FunctionType)}
    rewards = {key: value for key, value in functions.items() if signature_style(value)}
    known = tasks | rewards
    advice = f"write one of them, such as {TRL_SIGNATURE}, {VERL_SIGNATURE}, or {SINGLE_SIGNATURE}"
    if name:
        if name in known:
            return known[name]
        if name in own:
            raise SchoolError(
                f"{definition(own[name])}: `{name}` is neither a subclass of Task nor a reward function; {advice}"
            )
        raise SchoolError(f"{path} has no task or reward function `{name}`{suggest(name, list(known))}")
    helped = {key: value for key, value in rewards.items() if signature_style(value) != "single"}
    candidates = tasks or helped or rewards  # a function for one completion may only help another function
    if len(candidates) == 1:
        return next(iter(candidates.values()))
    if candidates:
        raise SchoolError(
            f"{path} defines {', '.join(candidates)}; choose one, for example python:{path}:{next(iter(candidates))}"
        )
    others = [f"`{key}{inspect.signature(value)}` ({definition(value)})" for key, value in functions.items()]
    if others:
        raise SchoolError(f"{path} has no subclass of Task and no reward function, only {', '.join(others)}; {advice}")
    raise SchoolError(f"{path} has no subclass of Task and no reward function; {advice}")


# ---- tasks


def _open_class(cls: type[Task], path: Path, seed: int, options: Mapping[str, str]) -> Task:
    parameters = inspect.signature(cls).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    for option in options:
        if option not in parameters and not takes_any:
            known = [name for name in parameters if name != "seed"]
            raise SchoolError(f"{definition(cls)}: {cls.__name__} has no option `{option}`{suggest(option, known)}")
    arguments = {**({"seed": seed} if "seed" in parameters else {}), **options}
    for name in missing_arguments(cls, arguments):
        spec = f"python:{path}:{cls.__name__}?{name}=VALUE"
        raise SchoolError(f"{definition(cls)}: {cls.__name__} needs the option `{name}`; write {spec}")
    try:
        task = cls(**arguments)
    except SchoolError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise SchoolError(f"{raised_at(error)}: {cls.__name__} cannot be created: {reason}") from error
    _check_methods(task)
    _name_lines_of_errors(task)
    return task


def _check_methods(task: Task) -> None:
    """Raise SchoolError if a method of the task does not accept the arguments of the Task method that it overrides."""
    cls = type(task)
    for name, original in vars(Task).items():
        if name.startswith("_") or not isinstance(original, FunctionType) or getattr(cls, name) is original:
            continue
        expected = [*inspect.signature(original).parameters.values()][1:]
        required = [parameter for parameter in expected if parameter.default is parameter.empty]
        method = getattr(task, name)
        try:
            for arguments in (required, expected):
                inspect.signature(method).bind(*arguments)
        except TypeError:
            signature = ", ".join(str(parameter.replace(annotation=parameter.empty)) for parameter in expected)
            raise SchoolError(
                f"{definition(method)}: {cls.__name__}.{name}{inspect.signature(method)} must accept "
                f"the call {name}({signature}); give the method these parameters"
            ) from None


def _name_lines_of_errors(task: Task) -> None:
    """Add the file and the line to exceptions of the user's methods. Exceptions in `grade` become verdicts instead."""
    for name, original in vars(Task).items():
        own = isinstance(original, FunctionType) and getattr(type(task), name) is not original
        if own and not name.startswith("_") and name not in ("grade", "grade_batch", "warm_up"):
            task.__dict__[name] = _with_line(getattr(task, name), name)  # a task may be a frozen dataclass


def _with_line(method: Callable[..., Any], name: str) -> Callable[..., Any]:
    cls, place = type(method.__self__).__name__, definition(method)  # ty: ignore

    @wraps(method)
    def call(*arguments: Any, **named: Any) -> Any:
        try:
            result = method(*arguments, **named)
        except SchoolError:
            raise
        except Exception as error:
            raise UserCodeError(f"{describe_error(error)} (in {cls}.{name})") from error
        if name in ("train_problems", "eval_problems"):
            _check_problems(result, f"{place}: {cls}.{name}()")
        return result

    return call


def _check_problems(problems: Any, place: str) -> None:
    if not isinstance(problems, (list, tuple)):
        raise UserCodeError(f"{place} returned a {type(problems).__name__}; return a list of Problem")
    for at, problem in enumerate(problems):
        if not isinstance(problem, Problem):
            kind = type(problem).__name__
            raise UserCodeError(f"{place} returned a list whose element {at} is a {kind}; return a list of Problem")
