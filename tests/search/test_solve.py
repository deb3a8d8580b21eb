"""Searches on a scripted policy: each finds what it should, at the cost it says, and ends with a reason."""

from collections.abc import Callable
from typing import Any

import pytest

from schoolhouse.eval.evaluate import evaluate
from schoolhouse.search.solve import Search, SearchGenerator, SearchResult, parse, solve
from schoolhouse.search.thoughts import RandomValue
from schoolhouse.search.tree import Answered
from schoolhouse.tasks.game24 import Game24
from schoolhouse.types import Key, SchoolError

Make = Callable[..., Any]
WAYS = {
    "4 9 10 13": "13-9=4 (4 4 10)\n13+9=22 (4 10 22)",
    "4 4 10": "10+4=14 (4 14)\n10-4=6 (4 6)",
    "4 10 22": "22+10=32 (4 32)",
    "4 6": "6-4=2 (2)\n6*4=24 (24)",
    "4 14": "14-4=10 (10)",
    "4 32": "32-4=28 (28)",
}
GOOD = {"4 4 10", "4 6", "24"}
TREE: dict[str, Any] = {"kind": "tot", "thoughts": "propose", "samples": 8, "breadth": 1, "length": 48}


def thinker(question: str, begun: str, key: Key) -> str:
    """Lists next moves, knows what they are worth, and ends its thought with the right answer if it led to 24."""
    if question.startswith("What may be done with"):
        return WAYS[question.removeprefix("What may be done with ").removesuffix("?")] + "<|im_end|>"
    if question.startswith("Can"):
        left = question.removeprefix("Can ").removesuffix(" make 24?")
        return ("sure" if left in GOOD else "impossible") + "<|im_end|>"
    answer = "(13-9)*(10-4)" if "(24)" in begun else "4+9"
    return "<think>" * (not begun) + f"</think>\\boxed{{{answer}}}<|im_end|>"


def found(policy: Any, game: Game24, **changes: Any) -> SearchResult:
    prefixes = [
        policy.conversation.prompt_rollout(problem, Key(0, "t", 0, i, 0))
        for i, problem in enumerate(game.eval_problems())
    ]
    (one,) = solve(policy, game, prefixes, Search(**{**TREE, **changes}))
    return one


def score(policy: Any, game: Game24, one: SearchResult) -> float | None:
    assert one.rollout is not None
    return game.grade(one.rollout.problem, policy.conversation.parse_completion(one.rollout)).reward


@pytest.mark.parametrize("changes", [{}, {"breadth": 5}, {"kind": "dfs", "threshold": 1.0}, {"values": "exact"}])
def test_a_tree_of_thoughts_finds_the_answer(scripted: Make, game: Game24, changes: dict[str, Any]):
    policy = scripted(thinker)
    one = found(policy, game, **changes)
    assert score(policy, game, one) == 1.0
    assert one.stop_reason == "answered"
    assert one.tree is not None
    assert [node.text for node in one.tree.answers[0].path[:3]] == ["13-9=4 (4 4 10)", "10-4=6 (4 6)", "6*4=24 (24)"]


def test_the_tokens_of_all_lists_values_and_answers_are_counted(scripted: Make, game: Game24):
    policy = scripted(thinker)
    spent = []
    extend = policy.extend

    def counting(rollouts: Any, *args: Any, **more: Any) -> Any:
        said = extend(rollouts, *args, **more)
        spent.append(sum(len(after) - len(before) for before, after in zip(rollouts, said, strict=True)))
        return said

    policy.extend = counting
    assert found(policy, game).tokens == sum(spent)


def test_without_a_value_the_first_proposals_are_followed(scripted: Make, game: Game24):
    policy = scripted(lambda q, b, k: "who knows<|im_end|>" if q.startswith("Can") else thinker(q, b, k))
    assert score(policy, game, found(policy, game)) == 0.0


def test_a_tree_whose_thoughts_cannot_be_read_dies_out_and_says_so(scripted: Make, game: Game24):
    one = found(scripted(lambda q, b, k: "no idea<|im_end|>"), game)
    assert (one.rollout, one.stop_reason) == (None, "the tree died out")


def test_a_budget_too_small_for_a_thought_says_so(scripted: Make, game: Game24):
    one = found(scripted(thinker), game, budget=100)
    assert (one.rollout, one.tokens) == (None, 0)
    assert one.stop_reason == "the budget of 100 tokens does not pay for one more thought"


def test_a_vote_asks_as_often_as_the_budget_pays_for(scripted: Make, game: Game24):
    policy = scripted(thinker)
    one = found(policy, game, kind="vote", samples=9, length=50, budget=160)
    assert policy.calls == [3]
    assert one.stop_reason == "3 answers; the budget paid for 3 of 9"
    assert one.votes == (("4+9", 3),)


def test_a_budget_without_one_answer_is_refused(scripted: Make, game: Game24):
    with pytest.raises(SchoolError, match="a budget of 10 tokens does not pay for one answer of 48"):
        found(scripted(thinker), game, kind="sample", budget=10)


@pytest.mark.parametrize("kind", ["beam", "dvts"])
def test_steps_may_be_sampled_instead_of_asked_for(scripted: Make, game: Game24, kind: str):
    steps = ["13-9=4 (4 4 10)", "10-4=6 (4 6)", "6*4=24 (24)"]

    def stepping(question: str, begun: str, key: Key) -> str:
        if question.startswith("Can"):
            return thinker(question, begun, key)
        said = begun.count("\n")
        if said == 3:
            return "</think>\\boxed{(13-9)*(10-4)}<|im_end|>"
        line = steps[said] if key.sample % 2 else f"{said}+1={said + 1} ({said + 1} 1)"
        return "<think>" * (not begun) + line + "\n"

    policy = scripted(stepping)
    one = found(policy, game, kind=kind, thoughts="sample", breadth=2, samples=4)
    assert score(policy, game, one) == 1.0


def test_subtrees_that_cannot_be_kept_apart_are_refused(scripted: Make, game: Game24):
    with pytest.raises(SchoolError, match="cannot keep 5 subtrees apart: set `samples`"):
        found(scripted(thinker), game, kind="dvts", thoughts="sample", breadth=5, samples=4)


def test_a_task_that_asks_nothing_says_what_to_use_instead(scripted: Make):
    from schoolhouse.tasks.registry import open_task

    task, policy = open_task("school:chain"), scripted(thinker)
    prefixes = [policy.conversation.prompt_rollout(task.eval_problems(1)[0], Key(0, "t"))]
    with pytest.raises(SchoolError, match="let them be sampled"):
        solve(policy, task, prefixes, Search(**TREE))


def test_a_searcher_sits_an_exam_in_the_place_of_a_policy(scripted: Make, game: Game24):
    searcher = SearchGenerator(scripted(thinker), game, Search(**TREE))
    sat = evaluate(searcher, game, problems=None, samples=1, max_new_tokens=48)
    assert sat.overall["pass_at_1"].value == 1.0
    assert searcher.results[0].tokens > 0


def test_what_was_not_found_is_an_empty_answer(scripted: Make, game: Game24):
    searcher = SearchGenerator(scripted(lambda q, b, k: "no idea<|im_end|>"), game, Search(**TREE))
    sat = evaluate(searcher, game, problems=None, samples=1, max_new_tokens=48)
    assert (sat.overall["pass_at_1"].value, sat.overall["no_answer"].value) == (0.0, 1.0)


def test_a_judge_in_no_folder_is_an_error(scripted: Make, game: Game24):
    with pytest.raises(SchoolError, match="no/such/judge is not a folder"):
        found(scripted(thinker), game, values="no/such/judge")


@pytest.mark.parametrize("kind, answer", [("best_of_n", "3*8"), ("weighted_vote", "4+9"), ("vote", "4+9")])
def test_the_best_answer_need_not_be_the_most_frequent(
    scripted: Make, game: Game24, monkeypatch: pytest.MonkeyPatch, kind: str, answer: str
):
    def speaking(question: str, begun: str, key: Key) -> str:
        return f"<think></think>\\boxed{{{'3*8' if key.sample == 1 else '4+9'}}}<|im_end|>"

    def worth(self: object, nodes: Any) -> list[Answered]:
        return [Answered(0.9 if node.state.key.sample == 1 else 0.4, 1) for node in nodes]

    monkeypatch.setattr(RandomValue, "__call__", worth)
    policy = scripted(speaking)
    one = found(policy, game, kind=kind, samples=4, values="random")
    assert one.rollout is not None
    assert policy.conversation.parse_completion(one.rollout).answer == f"\\boxed{{{answer}}}"
    assert one.votes == (("4+9", 3), ("3*8", 1))


def test_an_answer_that_was_cut_off_is_never_the_best_while_others_ended(
    scripted: Make, game: Game24, monkeypatch: pytest.MonkeyPatch
):
    """It has fewer steps to be graded, and a product of fewer grades is larger."""

    def speaking(question: str, begun: str, key: Key) -> str:
        return "<think>" + "1+1=2 " * 60 if key.sample == 1 else "<think></think>\\boxed{3*8}<|im_end|>"

    def worth(self: object, nodes: Any) -> list[Answered]:
        return [Answered(0.9 if node.state.key.sample == 1 else 0.4, 1) for node in nodes]

    monkeypatch.setattr(RandomValue, "__call__", worth)
    policy = scripted(speaking)
    one = found(policy, game, kind="best_of_n", samples=4, values="random")
    assert one.rollout is not None
    assert policy.conversation.parse_completion(one.rollout).answer == "\\boxed{3*8}"


def test_a_search_may_be_written_as_one_word_with_options():
    assert parse("tot?breadth=1&values=random", 4096) == Search(kind="tot", beam_width=1, values="random", budget=4096)


@pytest.mark.parametrize(
    "spec, message",
    [
        ("tott", "unknown search `tott`; did you mean `tot`"),
        ("tot?bredth=1", "unknown option `bredth`; did you mean `breadth`"),
        ("tot?breadth=0", "`breadth`: input should be greater than 0"),
        ("tot?aggregate=sum", "`aggregate`: input should be 'product', 'min', 'last' or 'mean'"),
    ],
)
def test_a_search_that_is_no_search_is_refused(spec: str, message: str):
    with pytest.raises(SchoolError, match=message):
        parse(spec)


def test_a_thought_may_be_forced_to_a_length_and_attempts_revised(scripted: Make, game: Game24):
    def speaking(question: str, begun: str, key: Key) -> str:
        if "</think>" in begun:
            return "\\boxed{1}<|im_end|>"
        return "<think>" * (not begun) + "1+1=2</think>\\boxed{2}<|im_end|>"

    policy = scripted(speaking)
    forced = found(policy, game, kind="force", least=12, most=30, wait="W")
    assert forced.rollout is not None
    assert 12 <= policy.conversation.thought_length(forced.rollout) <= 30
    assert forced.tokens <= 30 + 31 + 48
    revised = found(policy, game, kind="revise", samples=3)
    assert (revised.stop_reason, revised.votes) == ("3 attempts", (("2", 3),))


@pytest.mark.parametrize("kind", ["force", "revise"])
def test_what_the_budget_may_not_pay_for_is_refused(scripted: Make, game: Game24, kind: str):
    with pytest.raises(SchoolError, match=f"{kind} may take .* tokens, the budget is 60: lower its lengths"):
        found(scripted(thinker), game, kind=kind, budget=60)
