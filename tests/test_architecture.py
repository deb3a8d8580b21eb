"""The shape of the package: who may import whom, how long a file may be, what must stay light."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src" / "schoolhouse"
FILES = sorted(SOURCE.rglob("*.py"))
NAMES = [str(path.relative_to(SOURCE)) for path in FILES]

LAYERS = [
    {"web", "types", "config", "randomness", "schedule", "durable", "progress", "records", "interrupts"},
    {"objectives", "credit", "controls", "packing", "family", "reflection", "run", "advice"},
    {"text"},
    {"tasks", "tools", "policy"},
    {"judges"},
    {"search", "measure"},
    {"recipes"},
    {"claims", "bench"},
    {"pipeline", "serve", "estimate", "runs", "doctor"},
    {"board"},
    {"commands"},
    {"keeping", "trials", "thinking", "serving", "release", "tracking"},
    {"cli"},
    {"__main__"},
]
"""Imports go downward only. A new part of the package needs a place here."""

OPEN = {0, 1}
"""Layers whose files may import one another; in the others the parts are blind to one another."""

LIGHT = LAYERS[0] | {"run", "text", "tasks", "measure", "pipeline", "commands", "cli"}
HEAVY = {"torch", "transformers", "math_verify", "reasoning_gym", "matplotlib", "pandas", "trl"}

LONGEST, LONGEST_RECIPE = 400, 150
LONG_FILES: dict[str, str] = {}
"""File -> why it may be longer."""


def layer_of(part: str) -> int:
    for number, parts in enumerate(LAYERS):
        if part in parts:
            return number
    raise AssertionError(f"schoolhouse.{part} has no layer: give it one in LAYERS, and in ARCHITECTURE.md")


def imported(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything imported, wherever it stands; what it imports from a package by its name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: write the whole name instead of a relative import"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def breaches(name: str, text: str) -> list[str]:
    """The imports in a file of the package (its path below src/schoolhouse) that go upward or across."""
    own = Path(name).with_suffix("").parts
    layer, found = layer_of(own[0]), []
    for line, target in imported(ast.parse(text)):
        package, *parts = target.split(".")
        inside = package == "schoolhouse" and parts and not parts[0].startswith("__version")
        if not inside or (parts[0] == own[0] and own[0] != "recipes"):
            continue
        below = layer_of(parts[0])
        if not (below < layer or (below == layer and layer in OPEN)):
            found.append(f"{name}:{line} imports {target}: {own[0]} must not know {parts[0]}")
    return found


@pytest.mark.parametrize("name", [name for name in NAMES if name != "__init__.py"])
def test_imports_go_downward_only(name: str) -> None:
    assert not breaches(name, (SOURCE / name).read_text())


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("tasks/verify.py", "from schoolhouse.policy.policy import Policy"),
        ("policy/policy.py", "from schoolhouse.tasks import task"),
        ("recipes/grpo.py", "from schoolhouse.recipes.sft import sft"),
        ("recipes/grpo.py", "def f():\n    import schoolhouse.cli"),
        ("types.py", "from schoolhouse import credit"),
        ("measure/evaluate.py", "from schoolhouse.search import vote"),
        ("serve/chat.py", "from schoolhouse.pipeline import run_pipeline"),
    ],
)
def test_the_import_rule_sees_a_breach(name: str, text: str) -> None:
    assert breaches(name, text)


@pytest.mark.parametrize("name", NAMES)
def test_no_file_is_too_long(name: str) -> None:
    bound = LONGEST_RECIPE if name.startswith("recipes/") else LONGEST
    lines = len((SOURCE / name).read_text().splitlines())
    if name in LONG_FILES:
        assert lines > bound, f"{name} is short enough now: take it off LONG_FILES"
    else:
        assert lines <= bound, f"{name} has {lines} lines, {bound} are allowed"


def modules_after(code: str) -> set[str]:
    """Top-level modules that a fresh interpreter holds after it has run some code."""
    code += "\nimport sys; print('\\n'.join({name.partition('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_help_imports_nothing_heavy() -> None:
    loaded = modules_after("from schoolhouse.cli import main\nassert main(['--help']) == 0")
    assert "schoolhouse" in loaded
    assert not loaded & (HEAVY | {"numpy", "pydantic", "tyro", "yaml", "rich", "tokenizers", "jinja2"})


@pytest.mark.fault("heavy imports")
def test_light_parts_import_nothing_heavy() -> None:
    light = [
        "schoolhouse." + ".".join(path.relative_to(SOURCE).with_suffix("").parts)
        for path in FILES
        if path.relative_to(SOURCE).with_suffix("").parts[0] in LIGHT and path.name != "__init__.py"
    ]
    loaded = modules_after("\n".join(f"import {module}" for module in light))
    assert "pydantic" in loaded
    assert not loaded & HEAVY
