"""Values of thoughts on a scripted policy: what they are, what they cost, and when they are unknown."""

from collections.abc import Callable, Sequence
from math import isnan
from typing import Any

import pytest

from game24_solver import SOLUTION, prompt, solver, thought
from schoolhouse.data.steps import steps
from schoolhouse.search.thoughts import ThoughtSampler
from schoolhouse.search.tree import Node, Valuation
from schoolhouse.search.values import ExactValue, LookaheadValue, PromptedValue, RandomValue, VoteValue
from schoolhouse.tasks.game24 import Game24
from schoolhouse.types import Key

Make = Callable[..., Any]


def values(valuations: Sequence[Valuation]) -> list[float]:
    return [valuation.value for valuation in valuations]


def test_a_prompted_value_sums_several_answers(scripted: Make, game: Game24):
    policy = scripted(solver)
    value_fn = PromptedValue(policy, game, samples=3)
    good, bad = thought(policy, game, "13-9=4 (4 4 10)"), thought(policy, game, "13+9=22 (4 10 22)")
    valuations = value_fn([good, bad])
    assert values(valuations) == pytest.approx([60.0, 0.003])
    assert all(valuation.tokens > 3 for valuation in valuations)


def test_the_same_question_is_paid_for_once(scripted: Make, game: Game24):
    policy = scripted(solver)
    value_fn, node = PromptedValue(policy, game), thought(policy, game, "13-9=4 (4 4 10)")
    first, second = value_fn([node, node])
    (third,) = value_fn([node])
    assert values([first, second, third]) == [60.0, 60.0, 60.0]
    assert first.tokens > 0
    assert (second.tokens, third.tokens) == (0, 0)


def test_an_answer_that_is_no_known_word_counts_nothing(scripted: Make, game: Game24):
    policy = scripted(lambda question, begun, key: "1e9<|im_end|>")
    assert values(PromptedValue(policy, game)([thought(policy, game, SOLUTION[0])])) == [0.0]


def test_the_value_of_an_answer_is_that_of_the_thought_before_it(scripted: Make, game: Game24):
    policy = scripted(solver)
    before = thought(policy, game, SOLUTION[0])
    answer = Node(before.state.prefill([5]), "24", before, is_answer=True)
    value_fn = PromptedValue(policy, game)
    (of_thought,), (of_answer,) = value_fn([before]), value_fn([answer])
    assert of_answer == Valuation(of_thought.value, 0)
    root = Node(prompt(policy, game))
    (without_thought,) = PromptedValue(policy, game)([Node(before.state, "24", root, is_answer=True)])
    assert isnan(without_thought.value)


def test_votes_are_shares_among_the_thoughts_about_one_problem(scripted: Make, game: Game24):
    questions = []

    def vote(question: str, begun: str, key: Key) -> str:
        questions.append(question)
        return f"{(1, 2, 2, 9)[key.sample % 4]}<|im_end|>"

    policy = scripted(vote)
    lines = (SOLUTION[0], "13+9=22 (4 10 22)", "10-4=6 (6 9 13)", "10*4=40 (9 13 40)")
    nodes = [thought(policy, game, line) for line in lines]
    repeated = thought(policy, game, SOLUTION[0])
    valuations = VoteValue(policy, game, samples=4, ballot_size=2)([*nodes, repeated])
    assert values(valuations) == [0.25, 0.25, 0.5, 0.5, 0.25]
    assert questions[0] == "Which of these can make 24?\n1: 4 4 10\n2: 6 9 13"
    assert questions[4] == "Which of these can make 24?\n1: 4 10 22\n2: 9 13 40"
    assert [valuation.tokens > 0 for valuation in valuations] == [True, True, False, False, False]
    answer = Node(nodes[0].state.prefill([5]), "24", nodes[0], is_answer=True)
    assert values(VoteValue(policy, game, samples=4)([answer, nodes[1]])) == [0.25, 0.5]


def test_the_rules_of_the_task_are_exact(scripted: Make, game: Game24):
    policy = scripted(solver)
    nodes = [thought(policy, game, *SOLUTION[:2]), thought(policy, game, SOLUTION[0], "10+4=14 (4 14)")]
    assert values(ExactValue(policy.conversation, game)(nodes)) == [1.0, 0.0]


@pytest.mark.parametrize(("answer", "value"), [("(10-4)*(13-9)", 1.0), ("(10-4)+(13-9)", 0.0)])
def test_an_answer_behind_correct_thoughts_is_graded_by_itself(scripted: Make, game: Game24, answer: str, value: float):
    policy = scripted(solver)
    conversation = policy.conversation
    last = conversation.close_thought(thought(policy, game, *SOLUTION).state)
    ids = [*conversation.tokenizer.encode(f"\\boxed{{{answer}}}"), min(conversation.stop_ids)]
    rollout = last.append_sampled(ids, [0.0] * len(ids), "stop", 0)
    node = Node(rollout, parent=Node(last), is_answer=True)
    assert values(ExactValue(conversation, game)([node])) == [value]


@pytest.mark.parametrize(
    ("text", "answer", "value"),
    [("\n".join(SOLUTION), "(10-4)*(13-9)", 1.0), (SOLUTION[0], "4+9", 0.0), ("1+1=2 (2)", "(10-4)*(13-9)", 0.0)],
)
def test_a_whole_completion_needs_correct_thoughts_and_a_correct_answer(
    scripted: Make, game: Game24, text: str, answer: str, value: float
):
    policy = scripted(lambda q, b, k: f"<think>{text}</think>\\boxed{{{answer}}}<|im_end|>")
    (rollout,) = policy.extend([prompt(policy, game)], 200)
    assert values(ExactValue(policy.conversation, game)([Node(rollout)])) == [value]


def test_random_values_are_always_the_same_for_the_same_thought(scripted: Make, game: Game24):
    policy = scripted(solver)
    nodes = [Node(prompt(policy, game, sample)) for sample in range(3)]
    assert RandomValue()(nodes) == RandomValue()(nodes)
    assert len(set(values(RandomValue()(nodes)))) == 3


def test_lookahead_values_the_state_some_likely_steps_later_and_counts_them(scripted: Make, game: Game24):
    policy = scripted(lambda q, b, k: solver(q, b, k._replace(sample=0)))
    node = thought(policy, game, SOLUTION[0])
    seen: list[Node] = []

    class Constant:
        max_tokens = 7

        def __call__(self, nodes: Sequence[Node]) -> list[Valuation]:
            seen.extend(nodes)
            return [Valuation(0.5, 7) for _ in nodes]

    value_fn = LookaheadValue(ThoughtSampler(policy, game, 1, 40, 40, 0.0), Constant(), steps=2)
    (valuation,) = value_fn([node])
    (later,) = seen
    assert steps(policy.conversation, later.state, "\n")[:2] == SOLUTION[:2]
    assert valuation == Valuation(0.5, len(later.state) - len(node.state) + 7)
    assert value_fn.max_tokens == 2 * (2 * 40 + 40) + 7


def test_lookahead_to_an_answer_values_the_thought_before_it(scripted: Make, game: Game24):
    policy = scripted(lambda q, b, k: solver(q, b, k._replace(sample=0)))
    sampler = ThoughtSampler(policy, game, 1, 40, 40, 0.0)
    value_fn = LookaheadValue(sampler, ExactValue(policy.conversation, game), steps=3)
    assert values(value_fn([thought(policy, game, *SOLUTION[:2])])) == [1.0]
