"""The shape of the package: who may import whom, how long a file may be, what must stay light."""

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src" / "schoolhouse"
FILES = sorted(SOURCE.rglob("*.py"))
NAMES = [str(path.relative_to(SOURCE)) for path in FILES]

LAYERS = [
    {"types", "config", "randomness", "web", "runs.progress_display"},
    {
        "runs.atomic_io",
        "runs.adapter_folder",
        "runs.hub_cache",
        "runs.progress",
        "runs.signals",
        "runs.manifest",
        "runs.diagnostics",
        "runs.memory",
    },
    {"data"},
    {"algorithms"},
    {"runs.run"},
    {"model"},
    {"tasks", "policy"},
    {"reward_models"},
    {"search", "eval"},
    {"recipes"},
    {"runs"},
    {"claims", "bench", "export"},
    {"hub"},
    {"serve"},
    {"board"},
    {"cli"},
    {"__main__"},
]
"""Imports go downward only. An entry is a folder or a file; the longest entry that matches a file decides."""

FORBIDDEN = {("tasks", "model")}
"""Downward imports that are refused all the same: a verifier cannot reach a weight."""

BLIND = {"recipes"}
"""Folders whose files do not import one another."""

LIGHT = {"types", "config", "randomness", "runs", "data", "tasks", "eval", "cli"}
HEAVY = {"torch", "transformers", "math_verify", "reasoning_gym", "matplotlib", "pandas", "trl"}

LONGEST, LONGEST_RECIPE = 400, 200
LONG_FILES = {
    "config.py": "a third of it is the documentation of its functions; YAML, options and their errors are one subject",
    "recipes/grpo.py": "one step, and the settings of ten published variants, which share every line of it",
    "runs/run.py": "a third of it is the documentation of its public methods",
    "search/solve.py": "a third of it is the documentation of the search options, which `--search` shows",
}
"""File -> why it may be longer."""


def module_of(name: str) -> str:
    """`recipes/grpo.py` -> `recipes.grpo`."""
    return ".".join(Path(name).with_suffix("").parts).removesuffix(".__init__")


def entry_of(module: str) -> tuple[int, str]:
    """Layer and entry of a module. Modules below it, such as `types.Rollout`, belong to it."""
    places = [(entry, number) for number, entries in enumerate(LAYERS) for entry in entries]
    matching = [(len(entry), number, entry) for entry, number in places if f"{module}.".startswith(f"{entry}.")]
    assert matching, f"schoolhouse.{module} has no layer: give it one in LAYERS, and in ARCHITECTURE.md"
    _, number, entry = max(matching)
    return number, entry


def imported(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything imported, wherever it stands; what it imports from a package by its name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: write the whole name instead of a relative import"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def inner_imports(text: str) -> Iterator[tuple[int, str]]:
    """Line and name below the package of each import from the package itself."""
    for line, target in imported(ast.parse(text)):
        package, _, rest = target.partition(".")
        if package == "schoolhouse" and rest and not rest.startswith("__version"):
            yield line, rest


def breaches(name: str, text: str) -> list[str]:
    """The imports in a file of the package (its path below src/schoolhouse) that go upward or across."""
    layer, entry = entry_of(module_of(name))
    found = []
    for line, target in inner_imports(text):
        below, target_entry = entry_of(target)
        same_room = layer == below and target_entry.partition(".")[0] == entry.partition(".")[0]
        own_room = same_room and entry not in BLIND
        foundation = layer == below and layer in (0, 1)
        downward = below < layer and (entry, target_entry) not in FORBIDDEN
        if not (downward or own_room or foundation):
            found.append(f"{name}:{line} imports {target}: {entry} must not know {target_entry}")
    return found


@pytest.mark.parametrize("name", [name for name in NAMES if name != "__init__.py"])
def test_imports_go_downward_only(name: str) -> None:
    assert not breaches(name, (SOURCE / name).read_text())


def circles(imports: Mapping[str, set[str]]) -> list[str]:
    """The modules that are left when modules which import nothing that is left are taken away, again and again."""
    left = dict(imports)
    while free := [module for module, targets in left.items() if not targets & left.keys() - {module}]:
        for module in free:
            del left[module]
    return sorted(left)


def test_no_file_is_part_of_an_import_circle() -> None:
    modules = {module_of(name): SOURCE / name for name in NAMES}
    imports = {}
    for module, path in modules.items():
        targets = {target for _, target in inner_imports(path.read_text())}
        known = {target if target in modules else target.rpartition(".")[0] for target in targets}
        imports[module] = known & modules.keys() - {module}
    assert not circles(imports)


def test_the_circle_rule_sees_a_circle() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == ["a", "b", "c"]


@pytest.mark.parametrize("entry", sorted(set().union(*LAYERS)))
def test_every_layer_names_what_exists(entry: str) -> None:
    path = SOURCE.joinpath(*entry.split("."))
    assert path.is_dir() or path.with_suffix(".py").is_file()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("tasks/answer_match.py", "from schoolhouse.policy.policy import Policy"),
        ("policy/policy.py", "from schoolhouse.tasks import base"),
        ("tasks/base.py", "from schoolhouse.model import decoder"),
        ("recipes/grpo.py", "from schoolhouse.recipes.sft import sft"),
        ("recipes/grpo.py", "def f():\n    import schoolhouse.cli.main"),
        ("types.py", "from schoolhouse.algorithms import losses"),
        ("eval/evaluate.py", "from schoolhouse.search import vote"),
        ("serve/chat.py", "from schoolhouse.board.app import build_app"),
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
    loaded = modules_after("from schoolhouse.cli.main import main\nassert main(['--help']) == 0")
    assert "schoolhouse" in loaded
    assert not loaded & (HEAVY | {"numpy", "pydantic", "yaml", "rich", "tokenizers", "jinja2"})


@pytest.mark.fault("heavy imports")
def test_light_parts_import_nothing_heavy() -> None:
    light = [
        "schoolhouse." + ".".join(path.relative_to(SOURCE).with_suffix("").parts)
        for path in FILES
        if path.relative_to(SOURCE).parts[0].removesuffix(".py") in LIGHT and path.name != "__init__.py"
    ]
    loaded = modules_after("\n".join(f"import {module}" for module in light))
    assert "pydantic" in loaded
    assert not loaded & HEAVY
