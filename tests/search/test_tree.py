"""Ways through trees, on a scripted tree whose best answer, node counts and costs are known."""

from collections.abc import Sequence
from math import inf, nan

import pytest

from schoolhouse.search.tree import Answered, Candidate, Costs, Node, Tree, breadth_first, depth_first, explore

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
WORTH = {"a": 0.9, "b": 0.5, "c": 0.1, "aa": 0.2, "ab": 0.3, "ba": 0.8, "bb": 0.1, "ca": 1.0, "cb": 0.0}
WORTH |= {"aa!": 0.2, "ab!": 0.3, "ba!": 0.8, "bb!": 0.1, "ca!": 1.0, "cb!": 0.0}
COSTS = Costs(expand=10, value=2, max_children=3)


class Script:
    """Expands and values by the tables above, and counts."""

    def __init__(self) -> None:
        self.expanded: list[str] = []
        self.valued: list[str] = []
        self.batches: list[int] = []

    def expand(self, nodes: Sequence[Node]) -> list[Answered]:
        self.batches.append(len(nodes))
        self.expanded += [node.state for node in nodes]
        offers = [[Candidate(s, s, s.endswith("!"), s) for s in CHILDREN.get(node.state, ())] for node in nodes]
        return [Answered(offered, 10) for offered in offers]

    def value(self, nodes: Sequence[Node]) -> list[Answered]:
        self.valued += [node.state for node in nodes]
        return [Answered(WORTH[node.state], 2) for node in nodes]


def tree(budget: float = inf) -> Tree:
    return Tree(Node(""), budget)


def fates(found: Tree, fate: str) -> set[str]:
    return {node.state for node in found.nodes if node.status == fate}


def test_breadth_1_is_greedy_and_misses_the_best():
    found, script = tree(), Script()
    explore([found], [breadth_first(found, 1, 3, COSTS)], script.expand, script.value)
    assert script.expanded == ["", "a", "ab"]
    assert [node.state for node in found.answers] == ["ab!"]
    assert fates(found, "dropped") == {"b", "c", "aa"}


def test_breadth_2_keeps_the_two_best_of_a_level():
    found, script = tree(), Script()
    explore([found], [breadth_first(found, 2, 3, COSTS)], script.expand, script.value)
    assert script.expanded == ["", "a", "b", "ba", "ab"]
    assert [node.state for node in found.answers] == ["ba!", "ab!"]
    assert [node.state for node in found.answers[0].path] == ["b", "ba", "ba!"]


def test_breadth_3_finds_the_optimum_at_the_known_count_of_nodes_and_tokens():
    found, script = tree(), Script()
    explore([found], [breadth_first(found, 3, 3, COSTS)], script.expand, script.value)
    assert found.answers[0].state == "ca!"
    assert (len(script.expanded), len(found.nodes), found.tokens) == (7, 12, 7 * 10 + 12 * 2)
    assert found.stop_reason == "answered"


def test_apart_every_subtree_keeps_its_own_best():
    found, script = tree(), Script()
    explore([found], [breadth_first(found, 3, 3, COSTS, independent_subtrees=True)], script.expand, script.value)
    assert script.expanded == ["", "a", "b", "c", "ca", "ba", "ab"]
    assert {node.state for node in found.answers} == {"ab!", "ba!", "ca!"}


def test_depth_first_goes_to_the_best_child_and_comes_back():
    found, script = tree(), Script()
    explore([found], [depth_first(found, 0.4, 3, COSTS)], script.expand, script.value)
    assert script.expanded == ["", "a", "b", "ba"]
    assert found.answers[0].state == "ba!"
    assert found.stop_reason == "answered"


def test_depth_first_takes_equals_in_the_order_they_came():
    found, script = tree(), Script()
    alike = [depth_first(found, 0.0, 3, COSTS, max_expansions=3, num_answers=99)]
    explore([found], alike, script.expand, lambda nodes: [Answered(1.0, 2) for _ in nodes])
    assert script.expanded == ["", "a", "aa"]


def test_depth_first_goes_past_an_answer_that_is_worth_nothing():
    """As the paper's DFS does: it goes on where a value is above the threshold (0), not where it is at it."""
    found, script = tree(), Script()
    explore(
        [found], [depth_first(found, 0.0, 3, COSTS)], script.expand, lambda nodes: [Answered(0.0, 2) for _ in nodes]
    )
    assert (found.stop_reason, found.answers) == ("the tree died out", [])


@pytest.mark.parametrize(
    ("depth", "end"),
    [(2, "2 thoughts deep"), (3, "its answers are worth nothing"), (9, "its answers are worth nothing")],
)
def test_answers_that_are_all_worth_nothing_are_called_so(depth: int, end: str):
    found, script = tree(), Script()
    worthless = breadth_first(found, 2, depth, COSTS)
    explore([found], [worthless], script.expand, lambda nodes: [Answered(0.0, 2) for _ in nodes])
    assert found.stop_reason == end


def test_what_nobody_has_an_opinion_of_is_not_worth_nothing():
    found, script = tree(), Script()
    explore(
        [found], [breadth_first(found, 2, 3, COSTS)], script.expand, lambda nodes: [Answered(nan, 2) for _ in nodes]
    )
    assert found.stop_reason == "answered"


def test_depth_first_prunes_exactly_what_is_not_above_the_threshold():
    found, script = tree(), Script()
    explore([found], [depth_first(found, 0.4, 3, COSTS, num_answers=99)], script.expand, script.value)
    assert fates(found, "pruned") == {n.state for n in found.nodes if n.value <= 0.4} == {"c", "aa", "ab", "bb"}


def test_a_tree_that_dies_out_says_so():
    found, script = tree(), Script()
    explore([found], [depth_first(found, 2.0, 3, COSTS)], script.expand, script.value)
    assert (found.stop_reason, found.answers) == ("the tree died out", [])


def test_a_search_gives_up_after_the_most_thoughts_it_may_expand():
    found, script = tree(), Script()
    explore([found], [depth_first(found, 0.0, 3, COSTS, max_expansions=2, num_answers=99)], script.expand, script.value)
    assert len(script.expanded) == 2
    assert found.stop_reason == "gave up after 2 thoughts"


@pytest.mark.parametrize("budget", [0, 15, 16, 40, 64, 80, 1000])
def test_no_budget_is_overrun(budget: int):
    for way in (breadth_first, depth_first):
        found, script = tree(budget), Script()
        steps = way(found, 3, 3, COSTS) if way is breadth_first else way(found, 0.0, 3, COSTS, num_answers=99)
        explore([found], [steps], script.expand, script.value)
        assert found.tokens <= budget


def test_a_budget_too_small_for_one_thought_says_so():
    found, script = tree(15), Script()
    explore([found], [breadth_first(found, 3, 3, COSTS)], script.expand, script.value)
    assert found.stop_reason == "the budget of 15 tokens does not pay for one more thought"
    assert script.expanded == []


def test_a_budget_that_pays_for_some_keeps_the_best_of_them():
    found, script = tree(16 + 16), Script()
    explore([found], [breadth_first(found, 3, 3, COSTS)], script.expand, script.value)
    assert script.expanded == ["", "a"]


def test_what_went_on_before_is_neither_valued_nor_kept_again():
    def expand(nodes: Sequence[Node]) -> list[Answered]:
        return [Answered([Candidate("x", "x", dedup_key="x"), Candidate("y", "y", dedup_key="x")], 1) for _ in nodes]

    def value(nodes: Sequence[Node]) -> list[Answered]:
        return [Answered(1.0, 1) for _ in nodes]

    found = tree()
    explore([found], [breadth_first(found, 5, 2, COSTS)], expand, value)
    assert [node.status for node in found.nodes] == ["expanded", "repeat", "repeat", "repeat"]
    assert found.tokens == 1 + 2 + 1
    assert found.stop_reason == "the tree died out"


@pytest.mark.parametrize("first", ["false", "true"])
def test_of_thoughts_that_are_one_the_best_stays(first: str):
    """A false way to the same numbers must not hide the true one, whichever was thought first."""
    lines = [first, "true" if first == "false" else "false"]

    def expand(nodes: Sequence[Node]) -> list[Answered]:
        return [Answered([Candidate(line, line, dedup_key="6 9 13") for line in lines], 1) for _ in nodes]

    def value(nodes: Sequence[Node]) -> list[Answered]:
        return [Answered(float(node.state == "true"), 0) for node in nodes]

    for way in (breadth_first, depth_first):
        found = tree()
        steps = way(found, 5, 1, COSTS) if way is breadth_first else way(found, 0.5, 1, COSTS)
        explore([found], [steps], expand, value)
        assert fates(found, "open") == {"true"}


def test_a_value_that_nobody_can_tell_ranks_last():
    def value(nodes: Sequence[Node]) -> list[Answered]:
        return [Answered(nan if node.state == "a" else WORTH[node.state], 0) for node in nodes]

    found, script = tree(), Script()
    explore([found], [breadth_first(found, 2, 1, COSTS)], script.expand, value)
    assert fates(found, "open") == {"b", "c"}


def test_all_problems_wishes_are_answered_in_one_batch():
    forest, script = [tree(), tree(), tree()], Script()
    explore(forest, [breadth_first(one, 2, 3, COSTS) for one in forest], script.expand, script.value)
    assert script.batches == [3, 6, 6]


def test_searches_that_end_at_different_times_do_not_wait_for_each_other():
    forest, script = [tree(), tree(20)], Script()
    explore(forest, [breadth_first(one, 1, 3, COSTS) for one in forest], script.expand, script.value)
    assert [len(one.nodes) for one in forest] == [6, 3]
