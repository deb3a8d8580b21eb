"""Searches on a scripted policy: the answer each finds, the tokens it counts, the reason it ends with."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from game24_solver import TREE, player, reward, search
from schoolhouse.eval.evaluate import evaluate
from schoolhouse.search.solve import Search, SearchGenerator, parse, solve
from schoolhouse.search.tree import Node, Valuation
from schoolhouse.tasks.game24 import Game24
from schoolhouse.tasks.registry import open_task
from schoolhouse.types import Key, SchoolError

Make = Callable[..., Any]


class PrefersSampleOne:
    """Values the answer of sample 1 at .9, all others at .4."""

    max_tokens = 1

    def __call__(self, nodes: Sequence[Node]) -> list[Valuation]:
        return [Valuation(0.9 if node.state.key.sample == 1 else 0.4, 1) for node in nodes]


# --- trees


@pytest.mark.parametrize("changes", [{}, {"beam_width": 5}, {"kind": "dfs", "threshold": 1.0}, {"values": "exact"}])
def test_a_tree_of_thoughts_finds_the_answer(scripted: Make, game: Game24, changes: dict[str, Any]):
    policy = scripted(player)
    result = search(policy, game, **changes)
    assert reward(policy, game, result) == 1.0
    assert result.stop_reason == "answered"
    assert result.tree is not None
    path = [node.text for node in result.tree.answers[0].path]
    assert path[:3] == ["13-9=4 (4 4 10)", "10-4=6 (4 6)", "6*4=24 (24)"]


def test_the_tokens_of_all_lists_values_and_answers_are_counted(scripted: Make, game: Game24):
    policy = scripted(player)
    counts = []
    extend = policy.extend

    def counting_extend(rollouts: Any, *args: Any, **options: Any) -> Any:
        extended = extend(rollouts, *args, **options)
        counts.append(sum(len(after) - len(before) for before, after in zip(rollouts, extended, strict=True)))
        return extended

    policy.extend = counting_extend
    assert search(policy, game).tokens == sum(counts) > 0


def test_without_a_readable_value_the_first_proposals_are_followed(scripted: Make, game: Game24):
    policy = scripted(lambda q, b, k: "who knows<|im_end|>" if q.startswith("Can") else player(q, b, k))
    assert reward(policy, game, search(policy, game)) == 0.0


def test_a_tree_without_readable_thoughts_dies_out_and_says_so(scripted: Make, game: Game24):
    result = search(scripted(lambda q, b, k: "no idea<|im_end|>"), game)
    assert (result.rollout, result.stop_reason) == (None, "no thought is left to expand")


def test_a_budget_too_small_for_a_thought_says_so(scripted: Make, game: Game24):
    result = search(scripted(player), game, budget=100)
    assert (result.rollout, result.tokens) == (None, 0)
    assert result.stop_reason == "the budget of 100 tokens is too small for one more thought"


@pytest.mark.parametrize("kind", ["beam", "dvts"])
def test_steps_may_be_sampled_instead_of_proposed(scripted: Make, game: Game24, kind: str):
    steps = ["13-9=4 (4 4 10)", "10-4=6 (4 6)", "6*4=24 (24)"]

    def next_step(question: str, begun: str, key: Key) -> str:
        if question.startswith("Can"):
            return player(question, begun, key)
        done = begun.count("\n")
        if done == 3:
            return "</think>\\boxed{(13-9)*(10-4)}<|im_end|>"
        line = steps[done] if key.sample % 2 else f"{done}+1={done + 1} ({done + 1} 1)"
        return "<think>" * (not begun) + line + "\n"

    policy = scripted(next_step)
    result = search(policy, game, kind=kind, thoughts="sample", beam_width=2, samples=4)
    assert reward(policy, game, result) == 1.0


def test_more_subtrees_than_first_thoughts_are_refused(scripted: Make, game: Game24):
    with pytest.raises(SchoolError, match="`beam_width` asks for 5 separate subtrees: set `samples`"):
        search(scripted(player), game, kind="dvts", thoughts="sample", beam_width=5, samples=4)


def test_a_task_that_proposes_nothing_says_what_to_use_instead(scripted: Make):
    task, policy = open_task("school:chain"), scripted(player)
    prompts = [policy.conversation.prompt_rollout(task.eval_problems(1)[0], Key(0, "t"))]
    with pytest.raises(SchoolError, match="set `thoughts` to sample"):
        solve(policy, task, prompts, Search(**TREE))


def test_a_reward_model_in_no_folder_is_an_error(scripted: Make, game: Game24):
    with pytest.raises(SchoolError, match="no/such/model is not a folder"):
        search(scripted(player), game, values="no/such/model")


# --- whole answers


def test_a_vote_samples_as_many_answers_as_the_budget_pays_for(scripted: Make, game: Game24):
    policy = scripted(player)
    result = search(policy, game, kind="vote", samples=9, max_new_tokens=50, budget=160)
    assert policy.calls == [3]
    assert result.stop_reason == "3 answers; the budget paid for 3 of 9"
    assert result.votes == (("4+9", 3),)


def test_a_budget_without_one_answer_is_refused(scripted: Make, game: Game24):
    with pytest.raises(SchoolError, match="budget of 10 tokens is too small, because one answer can cost 48 tokens"):
        search(scripted(player), game, kind="sample", budget=10)


@pytest.mark.parametrize("kind, answer", [("best_of_n", "3*8"), ("weighted_vote", "4+9"), ("vote", "4+9")])
def test_the_best_answer_need_not_be_the_most_frequent(scripted: Make, game: Game24, kind: str, answer: str):
    policy = scripted(lambda q, b, k: f"<think></think>\\boxed{{{'3*8' if k.sample == 1 else '4+9'}}}<|im_end|>")
    result = search(policy, game, PrefersSampleOne(), kind=kind, samples=4)
    assert result.rollout is not None
    assert policy.conversation.parse_completion(result.rollout).answer == f"\\boxed{{{answer}}}"
    assert result.votes == (("4+9", 3), ("3*8", 1))


def test_a_truncated_answer_is_never_the_best_while_others_are_complete(scripted: Make, game: Game24):
    """It has fewer steps, and the product of fewer step rewards is larger."""

    def endless_sample_one(question: str, begun: str, key: Key) -> str:
        return "<think>" + "1+1=2 " * 60 if key.sample == 1 else "<think></think>\\boxed{3*8}<|im_end|>"

    policy = scripted(endless_sample_one)
    result = search(policy, game, PrefersSampleOne(), kind="best_of_n", samples=4)
    assert result.rollout is not None
    assert policy.conversation.parse_completion(result.rollout).answer == "\\boxed{3*8}"


def test_a_thought_may_be_forced_to_a_length_and_attempts_revised(scripted: Make, game: Game24):
    def reply(question: str, begun: str, key: Key) -> str:
        if "</think>" in begun:
            return "\\boxed{1}<|im_end|>"
        return "<think>" * (not begun) + "1+1=2</think>\\boxed{2}<|im_end|>"

    policy = scripted(reply)
    forced = search(policy, game, kind="budget_force", min_think=12, max_think=30, wait_text="W")
    assert forced.rollout is not None
    assert 12 <= policy.conversation.thought_length(forced.rollout) <= 30
    assert forced.tokens <= 30 + 31 + 48
    revised = search(policy, game, kind="revise", samples=3)
    assert (revised.stop_reason, revised.votes) == ("3 attempts", (("2", 3),))


@pytest.mark.parametrize("kind", ["budget_force", "revise"])
def test_a_search_that_may_exceed_the_budget_is_refused(scripted: Make, game: Game24, kind: str):
    with pytest.raises(SchoolError, match=f"{kind}` can need .* tokens, but the budget is 60 tokens: raise the budget"):
        search(scripted(player), game, kind=kind, budget=60)


# --- a search in the place of a policy, and its spec


def test_a_search_can_be_evaluated_in_the_place_of_a_policy(scripted: Make, game: Game24):
    generator = SearchGenerator(scripted(player), game, Search(**TREE))
    evaluation = evaluate(generator, game, problems=None, samples=1, max_new_tokens=48)
    assert evaluation.overall["pass_at_1"].value == 1.0
    assert generator.results[0].tokens > 0


def test_a_search_without_an_answer_gives_an_empty_completion(scripted: Make, game: Game24):
    generator = SearchGenerator(scripted(lambda q, b, k: "no idea<|im_end|>"), game, Search(**TREE))
    evaluation = evaluate(generator, game, problems=None, samples=1, max_new_tokens=48)
    assert (evaluation.overall["pass_at_1"].value, evaluation.overall["no_answer"].value) == (0.0, 1.0)


def test_a_spec_names_a_search_and_its_options():
    search = Search(kind="tot", beam_width=1, values="random", budget=4096)
    assert parse("tot?beam_width=1&values=random", 4096) == search


@pytest.mark.parametrize(
    "spec, message",
    [
        ("tott", "unknown search `tott`; did you mean `tot`"),
        ("python", "unknown search `python`"),
        ("tot?beam_widht=1", "unknown option `beam_widht`; did you mean `beam_width`"),
        ("tot?file=my.py", "unknown option `file`"),
        ("tot?beam_width=0", "`beam_width` is `0`: it should be greater than 0"),
        ("tot?step_aggregation=sum", "`step_aggregation` is `sum`: it should be 'product', 'min', 'last' or 'mean'"),
    ],
)
def test_a_wrong_spec_is_refused(spec: str, message: str):
    with pytest.raises(SchoolError, match=message):
        parse(spec)
