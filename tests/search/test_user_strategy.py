"""A strategy from a user's file: the documented example runs, keeps the budget, and errors name file and line."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import schoolhouse.search.solve
from game24_solver import player, prompt, reward
from schoolhouse.search.solve import parse, solve
from schoolhouse.tasks.game24 import Game24
from schoolhouse.types import SchoolError

Make = Callable[..., Any]

OPTIONS = "thoughts=propose&samples=8&max_new_tokens=48"
IMPORTS = "from schoolhouse.search.tree import Node, Request, Tree, grow, rank\n"


def code_blocks(text: str) -> list[str]:
    """The indented blocks of a text that define a generator over a tree."""
    blocks = re.findall(r"(?:^(?: {4}.*)?\n)+", text, re.MULTILINE)
    return [re.sub("^    ", "", block, flags=re.MULTILINE) for block in blocks if "yield from grow(" in block]


def example() -> str:
    (code,) = code_blocks(schoolhouse.search.solve.__doc__ or "")
    return code


def write(folder: Path, code: str) -> Path:
    path = folder / "my_search.py"
    path.write_text(code)
    return path


def run(policy: Any, game: Game24, spec: str, budget: float = float("inf")) -> Any:
    (result,) = solve(policy, game, [prompt(policy, game)], parse(spec, budget))
    return result


def test_the_documented_example_finds_the_answer(scripted: Make, game: Game24, tmp_path: Path):
    policy, path = scripted(player), write(tmp_path, example())
    result = run(policy, game, f"{path}?{OPTIONS}")
    assert reward(policy, game, result) == 1.0
    assert result.stop_reason == "answered"
    assert result.tokens > 0


def test_the_docs_and_the_docstring_give_the_same_example():
    docs = Path(__file__).parents[2] / "docs" / "search.md"
    (code,) = code_blocks(docs.read_text())
    assert code.strip() == example().strip()


def test_options_of_the_strategy_take_the_types_of_their_defaults(scripted: Make, game: Game24, tmp_path: Path):
    path = write(tmp_path, example())
    assert parse(f"{path}?{OPTIONS}&max_expansions=2").options == {"max_expansions": 2}
    result = run(scripted(player), game, f"{path}?{OPTIONS}&max_expansions=2")
    assert sum(node.status == "expanded" for node in result.tree.nodes) == 1  # and the root
    assert (result.rollout, result.stop_reason) == (None, "no thought is left to expand")


def test_one_of_several_strategies_is_named_behind_the_file(scripted: Make, game: Game24, tmp_path: Path):
    path = write(tmp_path, example() + "\n\ndef idle(tree):\n    yield from ()\n")
    with pytest.raises(SchoolError, match="my_search.py has several search strategies .best_first, idle.: choose one"):
        parse(str(path))
    assert run(scripted(player), game, f"{path}:idle").stop_reason == "no thought is left to expand"
    with pytest.raises(
        SchoolError, match="my_search.py has no search strategy `best_frist`; did you mean `best_first`"
    ):
        parse(f"{path}:best_frist")


@pytest.mark.parametrize("budget", [100, 300, 400])
def test_a_strategy_ends_before_a_request_that_may_exceed_the_budget(
    scripted: Make, game: Game24, tmp_path: Path, budget: int
):
    result = run(scripted(player), game, f"{write(tmp_path, example())}?{OPTIONS}", budget)
    assert result.tokens <= budget
    assert result.stop_reason.startswith(f"the budget of {budget} tokens is too small for one more ")


def test_a_strategy_may_have_values_of_its_own(scripted: Make, game: Game24, tmp_path: Path):
    policy = scripted(player)
    path = write(tmp_path, example().replace("[frontier.pop(0)])", "[frontier.pop(0)], value=lambda node: node.depth)"))
    result = run(policy, game, f"{path}?{OPTIONS}")
    assert [node.value for node in result.tree.answers[0].path] == [1, 2, 3, 4]
    requested = run(policy, game, f"{write(tmp_path / 'model', example())}?{OPTIONS}")
    assert result.tokens < requested.tokens


def test_a_strategy_may_plan_with_the_budget(scripted: Make, game: Game24, tmp_path: Path):
    code = IMPORTS + "def all_of(tree):\n    tree.stop_reason = f'can grow {len(tree.affordable([tree.root] * 9))}'\n"
    path = write(tmp_path, code + "    yield from grow(tree, tree.affordable([tree.root]))\n")
    result = run(scripted(player), game, f"{path}?{OPTIONS}", budget=2000)
    assert re.fullmatch("can grow [1-8]", result.stop_reason)
    assert result.tree.nodes


@pytest.mark.parametrize(
    "body, message",
    [
        ("yield Request('expand', [tree.root])\n    raise KeyError('worth')", ":4: KeyError: 'worth'"),
        ("yield from grow(tree, [tree.root])\n    helper()", ":6: ZeroDivisionError"),
        ("yield tree.root", ":3: the strategy `mine` yields .*: yield Request"),
        ("yield Request('grow', [tree.root])", ":3: the strategy `mine` yields .*: yield Request"),
        ("yield Request('value', ['a'])", ":3: the strategy `mine` yields .*: yield Request"),
    ],
)
def test_an_error_in_a_strategy_names_file_and_line(
    scripted: Make, game: Game24, tmp_path: Path, body: str, message: str
):
    path = write(tmp_path, f"{IMPORTS}def mine(tree):\n    {body}\ndef helper():\n    1 / 0\n")
    with pytest.raises(SchoolError, match=f"my_search.py{message}"):
        run(scripted(player), game, f"{path}?{OPTIONS}")


@pytest.mark.parametrize(
    "code, options, message",
    [
        ("import math\nmath.nothing\n", "", "my_search.py:2 cannot be run: AttributeError"),
        ("def f(tree):\n    yield (\n", "", "my_search.py:2 cannot be run: SyntaxError"),
        ("def f(tree):\n    return tree\n", "", "my_search.py has no strategy: write a generator function"),
        (
            "\ndef f(tree, width=3):\n    yield\n",
            "?width=many",
            ":2: f: the option `width` is `many`: it should be a valid integer",
        ),
        (
            "\ndef f(tree, width):\n    yield\n",
            "",
            ":2: f needs the option `width`: write --search .*my_search.py.width=VALUE",
        ),
        ("def f(tree, width=3):\n    yield\n", "?widht=3", "unknown option `widht`; did you mean `width`"),
    ],
)
def test_a_wrong_file_or_option_is_refused(tmp_path: Path, code: str, options: str, message: str):
    path = write(tmp_path, code)
    with pytest.raises(SchoolError, match=message):
        parse(f"{path}{options}")


def test_a_missing_file_is_refused(tmp_path: Path):
    with pytest.raises(SchoolError, match="the file .*absent.py does not exist; write --search PATH.py"):
        parse(str(tmp_path / "absent.py"))


def test_a_file_is_not_run_where_specs_come_from_strangers(tmp_path: Path):
    path = write(tmp_path, f"from pathlib import Path\nPath({str(tmp_path / 'ran')!r}).touch()\n{example()}")
    with pytest.raises(SchoolError, match="Python files are not allowed here"):
        parse(str(path), allow_files=False)
    assert not (tmp_path / "ran").exists()
    assert parse(str(path)).files == (path,)
    assert (tmp_path / "ran").exists()
