"""Recipes: one file for each paper, with its config. `load_recipe` finds a packaged recipe by its name, and a user's
own recipe by its file.

A recipe file contains a class `Config(BaseConfig)` and a function `name(config, run)` with the name of the file.
"""

from __future__ import annotations

import inspect
import pkgutil
import sys
from collections.abc import Callable
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

from schoolhouse.config import BaseConfig, suggest
from schoolhouse.runs.user_code import user_errors
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
        return _from_module(name, _load_file(Path(name)), Path(name))
    if "." in name:
        try:
            return _from_module(name, import_module(name), None)
        except ModuleNotFoundError as error:
            raise SchoolError(f"unknown recipe module `{name}`: {error}; a recipe file is given as FILE.py") from error
    if name not in recipe_names():
        raise SchoolError(f"unknown recipe `{name}`{suggest(name, recipe_names())} (or give your own file: FILE.py)")
    return _from_module(name, import_module(f"schoolhouse.recipes.{name}"), None)


_recipe_files: set[str] = set()
"""Names of modules that are recipe files: another file of that name replaces them."""


def _load_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise SchoolError(f"there is no recipe file {path}")
    spec = spec_from_file_location(path.stem, path)
    if not path.stem.isidentifier() or spec is None or spec.loader is None:
        raise SchoolError(f"{path}: a recipe file needs a name that Python can use, such as my_recipe.py")
    if path.stem in sys.modules.keys() - _recipe_files:
        raise SchoolError(f"{path}: a Python module is named `{path.stem}` already; give the recipe file another name")
    module = module_from_spec(spec)
    _recipe_files.add(path.stem)
    sys.modules[path.stem] = module  # classes of the file can be pickled, and their annotations resolved
    with user_errors(path):
        spec.loader.exec_module(module)
    return module


def _from_module(name: str, module: ModuleType, file: Path | None) -> Recipe:
    where, stem = str(file or name), module.__name__.rpartition(".")[2]
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
