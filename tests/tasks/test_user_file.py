"""Errors in a user's file name the last place in it."""

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

from schoolhouse.tasks.user_file import user_errors
from schoolhouse.types import SchoolError

SOURCE = """\
def call(function):
    return function()


def index(items):
    return items[7]
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(SOURCE)
    return path


def load(path: Path) -> ModuleType:
    spec = spec_from_file_location(path.stem, path)
    assert spec
    assert spec.loader
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def fail() -> None:
    raise ValueError("outside of the file")


def test_an_error_names_line_and_function(file: Path) -> None:
    module = load(file)
    with pytest.raises(SchoolError) as caught, user_errors(file):
        module.index([])
    assert str(caught.value) == f"{file}:6: in index: IndexError: list index out of range"
    assert isinstance(caught.value.__cause__, IndexError)


def test_an_error_below_the_file_names_the_call_in_it(file: Path) -> None:
    module = load(file)
    with pytest.raises(SchoolError) as caught, user_errors(file):
        module.call(fail)
    assert str(caught.value) == f"{file}:2: in call: ValueError: outside of the file"


def test_a_relative_path_is_the_same_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = load(file)
    monkeypatch.chdir(file.parent)
    with pytest.raises(SchoolError, match=r"^mine\.py:6: in index: IndexError"), user_errors(Path("mine.py")):
        module.index([])


@pytest.mark.parametrize(
    "text, message",
    [
        ("x = 1\ny = x / 0\n", ":2: ZeroDivisionError: division by zero"),
        ("x = 1\ny = = 2\n", ":2: SyntaxError: invalid syntax (mine.py, line 2)"),
    ],
)
def test_an_error_outside_of_functions_names_the_line(file: Path, text: str, message: str) -> None:
    file.write_text(text)
    with pytest.raises(SchoolError) as caught, user_errors(file):
        load(file)
    assert str(caught.value) == f"{file}{message}"


def test_other_errors_are_unchanged(file: Path) -> None:
    with pytest.raises(ValueError, match="outside of the file"), user_errors(file):
        fail()
    with pytest.raises(IndexError), user_errors(None):
        load(file).index([])


def test_a_message_for_users_is_kept_behind_the_place(file: Path) -> None:
    def refuse() -> None:
        raise SchoolError("give one number per token")

    with pytest.raises(SchoolError) as caught, user_errors(file):
        load(file).call(refuse)
    assert str(caught.value) == f"{file}:2: in call: give one number per token"


def test_the_innermost_file_names_the_place(file: Path) -> None:
    inner = file.with_name("inner.py")
    inner.write_text(SOURCE)

    def task() -> None:
        with user_errors(inner):
            load(inner).index([])

    with pytest.raises(SchoolError) as caught, user_errors(file):
        load(file).call(task)
    assert str(caught.value) == f"{inner}:6: in index: IndexError: list index out of range"
