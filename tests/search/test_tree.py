"""Strategies on a scripted tree whose best answer, node counts and costs are known."""

from collections.abc import Sequence
from math import inf, nan

import pytest

from schoolhouse.search.tree import (
    Candidate,
    Costs,
    Expansion,
    Node,
    Tree,
    Valuation,
    breadth_first,
    depth_first,
    explore,
)

CHILDREN = {
    "": ["a", "b", "c"],
    "a": ["aa", "ab"],
    "b": ["ba", "bb"],
    "c": ["ca", "cb"],
    "aa": ["aa!"],
    "ab": ["ab!"],
    "ba": ["ba!"],
    "bb": ["bb!"],
    "ca": ["ca!"],
    "cb": ["cb!"],
}
VALUES = {"a": 0.9, "b": 0.5, "c": 0.1, "aa": 0.2, "ab": 0.3, "ba": 0.8, "bb": 0.1, "ca": 1.0, "cb": 0.0}
VALUES |= {"aa!": 0.2, "ab!": 0.3, "ba!": 0.8, "bb!": 0.1, "ca!": 1.0, "cb!": 0.0}
COSTS = Costs(expand=10, value=2, max_children=3)


class Script:
    """Expands and values by the tables above, and counts."""

    def __init__(self) -> None:
        self.expanded: list[str] = []
        self.valued: list[str] = []
        self.batches: list[int] = []

    def expand(self, nodes: Sequence[Node]) -> list[Expansion]:
        self.batches.append(len(nodes))
        self.expanded += [node.state for node in nodes]
        texts = [CHILDREN.get(node.state, ()) for node in nodes]
        return [Expansion([Candidate(s, s, s.endswith("!"), s) for s in children], 10) for children in texts]

    def value(self, nodes: Sequence[Node]) -> list[Valuation]:
        self.valued += [node.state for node in nodes]
        return [Valuation(VALUES[node.state], 2) for node in nodes]


def constant(value: float, tokens: int = 2):
    return lambda nodes: [Valuation(value, tokens) for _ in nodes]


def new_tree(budget: float = inf) -> Tree:
    return Tree(Node(""), budget, COSTS)


def states(tree: Tree, status: str) -> set[str]:
    return {node.state for node in tree.nodes if node.status == status}


def test_beam_width_1_is_greedy_and_misses_the_best():
    tree, script = new_tree(), Script()
    explore([tree], [breadth_first(tree, 1, 3)], script.expand, script.value)
    assert script.expanded == ["", "a", "ab"]
    assert [node.state for node in tree.answers] == ["ab!"]
    assert states(tree, "dropped") == {"b", "c", "aa"}


def test_beam_width_2_keeps_the_two_best_of_a_level():
    tree, script = new_tree(), Script()
    explore([tree], [breadth_first(tree, 2, 3)], script.expand, script.value)
    assert script.expanded == ["", "a", "b", "ba", "ab"]
    assert [node.state for node in tree.answers] == ["ba!", "ab!"]
    assert [node.state for node in tree.answers[0].path] == ["b", "ba", "ba!"]


def test_beam_width_3_finds_the_optimum_at_the_known_count_of_nodes_and_tokens():
    tree, script = new_tree(), Script()
    explore([tree], [breadth_first(tree, 3, 3)], script.expand, script.value)
    assert tree.answers[0].state == "ca!"
    assert (len(script.expanded), len(tree.nodes), tree.tokens) == (7, 12, 7 * 10 + 12 * 2)
    assert tree.stop_reason == "answered"


def test_independent_subtrees_keep_the_best_child_of_each():
    tree, script = new_tree(), Script()
    explore([tree], [breadth_first(tree, 3, 3, independent_subtrees=True)], script.expand, script.value)
    assert script.expanded == ["", "a", "b", "c", "ca", "ba", "ab"]
    assert {node.state for node in tree.answers} == {"ab!", "ba!", "ca!"}


def test_depth_first_goes_to_the_best_child_and_comes_back():
    tree, script = new_tree(), Script()
    explore([tree], [depth_first(tree, 0.4, 3)], script.expand, script.value)
    assert script.expanded == ["", "a", "b", "ba"]
    assert tree.answers[0].state == "ba!"
    assert tree.stop_reason == "answered"


def test_depth_first_takes_equal_children_in_order_of_creation():
    tree, script = new_tree(), Script()
    strategy = depth_first(tree, 0.0, 3, max_expansions=3, num_answers=99)
    explore([tree], [strategy], script.expand, constant(1.0))
    assert script.expanded == ["", "a", "aa"]


def test_depth_first_continues_past_an_answer_of_value_zero():
    """As the paper's DFS does: it continues where a value is above the threshold (0), not where it is equal to it."""
    tree, script = new_tree(), Script()
    explore([tree], [depth_first(tree, 0.0, 3)], script.expand, constant(0.0))
    assert (tree.stop_reason, tree.answers) == ("no thought is left to expand", [])


@pytest.mark.parametrize(
    ("depth", "reason"),
    [(2, "2 thoughts deep"), (3, "all its answers have value 0"), (9, "all its answers have value 0")],
)
def test_the_stop_reason_tells_that_all_answers_have_value_zero(depth: int, reason: str):
    tree, script = new_tree(), Script()
    explore([tree], [breadth_first(tree, 2, depth)], script.expand, constant(0.0))
    assert tree.stop_reason == reason


def test_an_unknown_value_is_not_zero():
    tree, script = new_tree(), Script()
    explore([tree], [breadth_first(tree, 2, 3)], script.expand, constant(nan))
    assert tree.stop_reason == "answered"


def test_depth_first_prunes_exactly_the_values_that_are_not_above_the_threshold():
    tree, script = new_tree(), Script()
    explore([tree], [depth_first(tree, 0.4, 3, num_answers=99)], script.expand, script.value)
    assert states(tree, "pruned") == {n.state for n in tree.nodes if n.value <= 0.4} == {"c", "aa", "ab", "bb"}


def test_the_stop_reason_tells_that_a_tree_died_out():
    tree, script = new_tree(), Script()
    explore([tree], [depth_first(tree, 2.0, 3)], script.expand, script.value)
    assert (tree.stop_reason, tree.answers) == ("no thought is left to expand", [])


def test_a_search_gives_up_after_its_most_expansions():
    tree, script = new_tree(), Script()
    explore([tree], [depth_first(tree, 0.0, 3, max_expansions=2, num_answers=99)], script.expand, script.value)
    assert len(script.expanded) == 2
    assert tree.stop_reason == "gave up after 2 thoughts"


@pytest.mark.parametrize("budget", [0, 15, 16, 40, 64, 80, 1000])
def test_no_strategy_exceeds_the_budget(budget: int):
    for make in (lambda tree: breadth_first(tree, 3, 3), lambda tree: depth_first(tree, 0.0, 3, num_answers=99)):
        tree, script = new_tree(budget), Script()
        explore([tree], [make(tree)], script.expand, script.value)
        assert tree.tokens <= budget


def test_the_stop_reason_tells_that_a_budget_is_too_small_for_one_thought():
    tree, script = new_tree(15), Script()
    explore([tree], [breadth_first(tree, 3, 3)], script.expand, script.value)
    assert tree.stop_reason == "the budget of 15 tokens is too small for one more thought"
    assert script.expanded == []


def test_a_budget_for_part_of_a_level_goes_to_its_best_nodes():
    tree, script = new_tree(16 + 16), Script()
    explore([tree], [breadth_first(tree, 3, 3)], script.expand, script.value)
    assert script.expanded == ["", "a"]


def test_a_thought_of_an_earlier_level_is_neither_valued_nor_kept_again():
    def expand(nodes: Sequence[Node]) -> list[Expansion]:
        return [Expansion([Candidate("x", "x", dedup_key="x"), Candidate("y", "y", dedup_key="x")], 1) for _ in nodes]

    tree = new_tree()
    explore([tree], [breadth_first(tree, 5, 2)], expand, constant(1.0, tokens=1))
    assert [node.status for node in tree.nodes] == ["expanded", "duplicate", "duplicate", "duplicate"]
    assert tree.tokens == 1 + 2 + 1
    assert tree.stop_reason == "no thought is left to expand"


@pytest.mark.parametrize("first", ["false", "true"])
def test_of_equal_thoughts_the_one_with_the_best_value_stays(first: str):
    """A false way to the same numbers must not hide the true one, whichever comes first."""
    lines = [first, "true" if first == "false" else "false"]

    def expand(nodes: Sequence[Node]) -> list[Expansion]:
        return [Expansion([Candidate(line, line, dedup_key="6 9 13") for line in lines], 1) for _ in nodes]

    def value(nodes: Sequence[Node]) -> list[Valuation]:
        return [Valuation(float(node.state == "true"), 0) for node in nodes]

    for make in (lambda tree: breadth_first(tree, 5, 1), lambda tree: depth_first(tree, 0.5, 1)):
        tree = new_tree()
        explore([tree], [make(tree)], expand, value)
        assert states(tree, "open") == {"true"}


def test_an_unknown_value_ranks_last():
    def value(nodes: Sequence[Node]) -> list[Valuation]:
        return [Valuation(nan if node.state == "a" else VALUES[node.state], 0) for node in nodes]

    tree, script = new_tree(), Script()
    explore([tree], [breadth_first(tree, 2, 1)], script.expand, value)
    assert states(tree, "open") == {"b", "c"}


def test_the_requests_of_all_problems_are_served_in_one_batch():
    trees, script = [new_tree(), new_tree(), new_tree()], Script()
    explore(trees, [breadth_first(tree, 2, 3) for tree in trees], script.expand, script.value)
    assert script.batches == [3, 6, 6]


def test_a_search_that_ends_early_does_not_stop_the_others():
    trees, script = [new_tree(), new_tree(20)], Script()
    explore(trees, [breadth_first(tree, 1, 3) for tree in trees], script.expand, script.value)
    assert [len(tree.nodes) for tree in trees] == [6, 3]
