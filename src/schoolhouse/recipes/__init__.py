"""Recipes: each file implements one paper and defines the config for it.

`load_recipe` finds a packaged recipe by its name, and a user's own recipe by the path of its file. A recipe file
contains a class `Config(BaseConfig)` and a function `name(config, run)`, where `name` is the name of the file.
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
    """A recipe that is ready to run.

    `name`    The name that the user gave, such as grpo, path/of/my_recipe.py, or the dotted name of a module.
    `config`  The config class of the recipe.
    `train`   The function that trains. A call of `train` needs a config and an open run.
    `about`   The first paragraph of the docstring in the recipe file.
    `file`    The path of a user's own recipe file, or None for a packaged recipe.
    """

    name: str
    config: type[BaseConfig]
    train: Callable[[Any, Run], None]
    about: str
    file: Path | None = None


def recipe_names() -> list[str]:
    """The sorted names of the packaged recipes."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def load_recipe(name: str) -> Recipe:
    """Load a recipe by its name, by the path of its file (`my_recipe.py`), or by its dotted module name.

    Raises SchoolError for an unknown name, and suggests the nearest name. Also raises SchoolError for a file that is
    not a recipe, and names the file.
    """
    if name.endswith(".py"):
        path = Path(name)
        if not path.stem.isidentifier():
            raise SchoolError(
                f"{path}: Python cannot import a file with this name: rename the file, for example to my_recipe.py"
            )
        return _from_module(name, load_module(path, "school train FILE.py"), path)
    if "." in name:
        try:
            return _from_module(name, import_module(name), None)
        except ModuleNotFoundError as error:
            raise SchoolError(
                f"unknown recipe module `{name}`: {error}; if your recipe is a file, give its path: FILE.py"
            ) from error
    if name not in recipe_names():
        raise SchoolError(
            f"unknown recipe `{name}`{suggest(name, recipe_names())} (for your own recipe, give the path of its file)"
        )
    return _from_module(name, import_module(f"schoolhouse.recipes.{name}"), None)


def _from_module(name: str, module: ModuleType, file: Path | None) -> Recipe:
    where, stem = str(file or name), file.stem if file else name.rpartition(".")[2]
    config, train = getattr(module, "Config", None), getattr(module, stem, None)
    if not (isinstance(config, type) and issubclass(config, BaseConfig)):
        raise SchoolError(f"{where}: a recipe needs a class `Config(BaseConfig)` with its config keys: add this class")
    if not callable(train):
        raise SchoolError(f"{where}: a recipe needs a function with the name of its file: add `{stem}(config, run)`")
    parameters = inspect.signature(train).parameters.values()
    required = [p for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    if len(required) != 2:
        line = inspect.getsourcelines(train)[1]
        raise SchoolError(f"{where}:{line}: `{stem}` must take 2 arguments (config, run), but it needs {len(required)}")
    return Recipe(name, config, train, (module.__doc__ or "").partition("\n\n")[0], file)
