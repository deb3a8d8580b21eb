"""Numbers depend on every part of a key and on nothing else."""

import ast
from pathlib import Path
from typing import Any

import pytest

from schoolhouse.randomness import digest
from schoolhouse.types import Key

KEY = Key(1, "practice", 2, 3, 4, 5)
SOURCE = Path(__file__).parents[1] / "src" / "schoolhouse"


def test_a_digest_is_the_same_on_every_machine():
    assert (digest(KEY), digest(Key(0, "test"))) == (13350365314166261728, 8856886261768701541)


@pytest.mark.parametrize("field", Key._fields)
def test_every_part_of_a_key_counts(field: str):
    other: Any = "exam" if field == "purpose" else getattr(KEY, field) + 1
    assert digest(KEY._replace(**{field: other})) != digest(KEY)


def test_nothing_else_in_the_package_draws():
    """`random` and `np.random` are for randomness.py; elsewhere a generator made there is handed on."""
    found = []
    for path in SOURCE.rglob("*.py"):
        if path.name == "randomness.py" or "bench" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import) and any(alias.name == "random" for alias in node.names):
                found.append(f"{path.name}:{node.lineno} imports random")
            if isinstance(node, ast.Attribute) and ast.unparse(node) in ("np.random", "numpy.random"):
                found.append(f"{path.name}:{node.lineno} {ast.unparse(node)}")
            seeded = isinstance(node, ast.Call) and any(word.arg == "generator" for word in node.keywords)
            drawn = isinstance(node, ast.Call) and ast.unparse(node.func) in ("torch.rand", "torch.randn")
            if drawn and not seeded:
                found.append(f"{path.name}:{node.lineno} a draw without a generator")
    assert found == []
