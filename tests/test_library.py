"""The public names of the library: complete, documented, quick to import."""

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import schoolhouse

FILE = Path(schoolhouse.__file__)


def names_for_type_checkers() -> set[str]:
    (block,) = [node for node in ast.parse(FILE.read_text()).body if isinstance(node, ast.If)]
    return {alias.name for line in block.body if isinstance(line, ast.ImportFrom) for alias in line.names}


def test_the_three_lists_of_public_names_are_the_same() -> None:
    assert set(schoolhouse.__all__) == schoolhouse._MODULE_OF.keys() == names_for_type_checkers()


@pytest.mark.parametrize("name", schoolhouse.__all__)
def test_every_public_name_is_documented(name: str) -> None:
    value = getattr(schoolhouse, name)
    if inspect.isclass(value) or inspect.isfunction(value):
        assert inspect.getdoc(value)
        return
    module = sys.modules[f"schoolhouse.{schoolhouse._MODULE_OF[name]}"]
    body = ast.parse(inspect.getsource(module)).body
    at = next(
        at for at, node in enumerate(body) if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name
    )
    assert isinstance(body[at + 1], ast.Expr), f"{name} needs a docstring below its definition"


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(AttributeError, match="no public name `Polciy`"):
        schoolhouse.Polciy  # noqa: B018


def test_the_import_loads_nothing_heavy() -> None:
    code = "import sys, schoolhouse; print({'torch', 'pydantic', 'numpy'} & sys.modules.keys())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
