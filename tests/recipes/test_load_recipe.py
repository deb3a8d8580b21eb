"""Recipes are found by name, by file and by module. A file that is no recipe is refused with its line."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from schoolhouse.recipes import grpo, load_recipe, recipe_names
from schoolhouse.runs.run import Run
from schoolhouse.types import SchoolError

MY_RECIPE = '''"""Count to `steps`.

More about it.
"""

from pydantic import Field

from schoolhouse.config import BaseConfig


class Config(BaseConfig):
    steps: int = Field(3, gt=0)


def {name}(config, run):
    (run.folder / "count.txt").write_text(str(config.steps))
'''


@pytest.fixture
def recipe_file(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Writes a recipe file with this text."""
    modules = set(sys.modules)

    def write(text: str = MY_RECIPE.replace("{name}", "my_recipe"), name: str = "my_recipe.py") -> Path:
        path = tmp_path / name
        path.write_text(text)
        return path

    yield write
    for module in set(sys.modules) - modules:
        del sys.modules[module]


def refusal(name: str | Path) -> str:
    with pytest.raises(SchoolError) as refused:
        load_recipe(str(name))
    return str(refused.value)


# --- what is found


@pytest.mark.parametrize("name", recipe_names())
def test_every_packaged_recipe_is_found_by_its_name(name: str):
    recipe = load_recipe(name)
    assert (recipe.name, recipe.file) == (name, None)
    assert recipe.config.__module__ == recipe.train.__module__ == f"schoolhouse.recipes.{name}"
    assert recipe.about


def test_a_recipe_is_found_by_its_module():
    recipe = load_recipe("schoolhouse.recipes.grpo")
    assert (recipe.config, recipe.train) == (grpo.Config, grpo.grpo)


def test_a_recipe_of_a_file_has_its_config_its_function_and_the_first_paragraph_of_its_docstring(
    recipe_file: Callable[..., Path],
):
    path = recipe_file()
    recipe = load_recipe(str(path))
    assert (recipe.name, recipe.file, recipe.about) == (str(path), path, "Count to `steps`.")
    assert recipe.config().model_dump() == {"steps": 3}


def test_a_recipe_of_a_file_runs(recipe_file: Callable[..., Path], tmp_path: Path):
    recipe = load_recipe(str(recipe_file()))
    c = recipe.config.of(steps=7)
    with Run.open(tmp_path / "run", c, "my_recipe") as run:
        recipe.train(c, run)
    assert (tmp_path / "run" / "count.txt").read_text() == "7"


def test_further_parameters_of_the_function_need_defaults(recipe_file: Callable[..., Path]):
    text = MY_RECIPE.replace("{name}(config, run)", "my_recipe(config, run, sampler=None, **options)")
    recipe = load_recipe(str(recipe_file(text)))
    assert recipe.train.__module__ == recipe.config.__module__


# --- what is refused


def test_an_unknown_name_is_refused_with_the_nearest():
    message = "unknown recipe `grop`; did you mean `grpo`? (for your own recipe, give the path of its file)"
    assert refusal("grop") == message


def test_an_unknown_name_like_no_other_lists_the_recipes():
    assert all(name in refusal("zzzzzz") for name in recipe_names())


def test_a_missing_file_is_named(tmp_path: Path):
    path = tmp_path / "nothing.py"
    assert refusal(path) == f"the file {path} does not exist; write school train FILE.py"


def test_a_file_name_that_is_no_python_name_is_refused(recipe_file: Callable[..., Path]):
    path = recipe_file(name="my-recipe.py")
    assert (
        refusal(path)
        == f"{path}: Python cannot import a file with this name: rename the file, for example to my_recipe.py"
    )


@pytest.mark.parametrize(
    "text",
    ["def my_recipe(config, run): ...\n", "class Config: ...\n\n\ndef my_recipe(config, run): ...\n"],
    ids=["no Config", "Config without BaseConfig"],
)
def test_a_file_without_a_config_is_refused(recipe_file: Callable[..., Path], text: str):
    path = recipe_file(text)
    assert refusal(path) == f"{path}: a recipe needs a class `Config(BaseConfig)` with its config keys: add this class"


def test_a_file_without_its_function_is_refused(recipe_file: Callable[..., Path]):
    path = recipe_file(MY_RECIPE.replace("{name}", "train"))
    assert refusal(path) == f"{path}: a recipe needs a function with the name of its file: add `my_recipe(config, run)`"


@pytest.mark.parametrize(("parameters", "needed"), [("config", 1), ("config, run, extra", 3), ("", 0)])
def test_a_function_of_another_signature_is_refused_with_its_line(
    recipe_file: Callable[..., Path], parameters: str, needed: int
):
    path = recipe_file(MY_RECIPE.replace("{name}(config, run)", f"my_recipe({parameters})"))
    line = next(i for i, text in enumerate(path.read_text().splitlines(), 1) if text.startswith("def "))
    assert refusal(path) == f"{path}:{line}: `my_recipe` must take 2 arguments (config, run), but it needs {needed}"


@pytest.mark.parametrize(
    ("text", "place", "error"),
    [
        ("x = 1\n\nx += None\n", "3", "TypeError"),
        ("x = 1\ndef f(:\n", "2", "SyntaxError"),
        ("import nothing_of_this_name\n", "1", "ModuleNotFoundError"),
        ("def f():\n    raise OSError('full')\n\n\nf()\n", "2", "OSError"),
    ],
)
def test_a_file_that_raises_is_refused_with_the_place(
    recipe_file: Callable[..., Path], text: str, place: str, error: str
):
    path = recipe_file(text)
    assert refusal(path).startswith(f"{path}:{place} cannot be run: {error}: ")


def test_a_school_error_of_a_file_keeps_its_message_behind_the_place(recipe_file: Callable[..., Path]):
    text = "from schoolhouse.types import SchoolError\n\nraise SchoolError('set MY_DATA first')\n"
    path = recipe_file(text)
    assert refusal(path) == f"{path}:3 cannot be run: set MY_DATA first"


def test_the_place_is_named_for_a_relative_path_too(recipe_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(recipe_file("x = 1\n\nx += None\n").parent)
    assert refusal("my_recipe.py").startswith("my_recipe.py:3 cannot be run: TypeError: ")


def test_an_unknown_module_is_refused_with_its_name():
    assert "unknown recipe module `no.such`" in refusal("no.such")


def test_a_file_named_like_a_standard_module_leaves_the_module_alone(recipe_file: Callable[..., Path]):
    import random

    assert (
        load_recipe(str(recipe_file(MY_RECIPE.replace("{name}", "random"), "random.py"))).about == "Count to `steps`."
    )
    assert sys.modules["random"] is random


def test_a_recipe_function_may_take_further_arguments(recipe_file: Callable[..., Path]):
    text = MY_RECIPE.replace("{name}(config, run)", "my_recipe(config, run, *more, **options)")
    recipe = load_recipe(str(recipe_file(text)))
    assert recipe.train.__module__ == recipe.config.__module__


def test_another_recipe_file_of_the_same_name_is_loaded(recipe_file: Callable[..., Path]):
    text = MY_RECIPE.replace("{name}", "my_recipe")
    load_recipe(str(recipe_file(text)))
    assert load_recipe(str(recipe_file(text.replace("Count", "Add up")))).about == "Add up to `steps`."
