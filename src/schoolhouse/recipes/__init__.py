"""Recipes: one file for each paper, with its config. `load_recipe` finds a packaged recipe by its name, and a user's
own recipe by its file.

A recipe file contains a class `Config(BaseConfig)` and a function `name(config, run)` with the name of the file.
"""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

from schoolhouse.config import BaseConfig, suggest
from schoolhouse.tasks.user_file import load_module
from schoolhouse.types import SchoolError

if TYPE_CHECKING:
    from schoolhouse.runs.run import Run


class Recipe(NamedTuple):
    """A recipe, ready to run.

    name    the name as the user gave it: `grpo`, `path/of/my_recipe.py`, or a dotted module
    config  class of its config
    train   function that is called with a config and an open run
    about   first paragraph of the docstring of its file
    file    path of a user's own recipe; None for others
    """

    name: str
    config: type[BaseConfig]
    train: Callable[[Any, Run], None]
    about: str
    file: Path | None = None


def recipe_names() -> list[str]:
    """Names of the packaged recipes."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def load_recipe(name: str) -> Recipe:
    """A recipe by its name, the path of its file (`my_recipe.py`) or its dotted module.

    Raises SchoolError for an unknown name (the message suggests the nearest name), and for a file that is not a recipe
    (the message names the file).
    """
    if name.endswith(".py"):
        path = Path(name)
        if not path.stem.isidentifier():
            raise SchoolError(f"{path}: a recipe file needs a name that Python can use, such as my_recipe.py")
        return _from_module(name, load_module(path, "school train FILE.py"), path)
    if "." in name:
        try:
            return _from_module(name, import_module(name), None)
        except ModuleNotFoundError as error:
            raise SchoolError(f"unknown recipe module `{name}`: {error}; a recipe file is given as FILE.py") from error
    if name not in recipe_names():
        raise SchoolError(f"unknown recipe `{name}`{suggest(name, recipe_names())} (or give your own file: FILE.py)")
    return _from_module(name, import_module(f"schoolhouse.recipes.{name}"), None)


def _from_module(name: str, module: ModuleType, file: Path | None) -> Recipe:
    where, stem = str(file or name), file.stem if file else name.rpartition(".")[2]
    config, train = getattr(module, "Config", None), getattr(module, stem, None)
    if not (isinstance(config, type) and issubclass(config, BaseConfig)):
        raise SchoolError(f"{where}: a recipe needs a class Config(BaseConfig) with its keys")
    if not callable(train):
        raise SchoolError(f"{where}: a recipe needs a function `{stem}(config, run)`, named like its file")
    parameters = inspect.signature(train).parameters.values()
    required = [p for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    if len(required) != 2:
        line = inspect.getsourcelines(train)[1]
        raise SchoolError(f"{where}:{line}: `{stem}` must take (config, run), but it needs {len(required)} arguments")
    return Recipe(name, config, train, (module.__doc__ or "").partition("\n\n")[0], file)
