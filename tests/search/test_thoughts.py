"""Candidates from a scripted policy: what they are, what they cost, and that unreadable text makes none."""

from collections.abc import Callable
from typing import Any

import pytest

from game24_solver import ANSWER, SOLUTION, prompt, solver, thought
from schoolhouse.data.steps import steps
from schoolhouse.search.thoughts import ThoughtProposer, ThoughtSampler
from schoolhouse.search.tree import Expansion, Node
from schoolhouse.tasks.game24 import Game24
from schoolhouse.types import Key, SchoolError

Make = Callable[..., Any]


# --- sampled


def test_a_sampled_thought_is_one_step_of_the_policys_own_turn(scripted: Make, game: Game24):
    policy = scripted(solver)
    ((candidates, tokens),) = ThoughtSampler(policy, game, samples=1)([Node(prompt(policy, game))])
    (candidate,) = candidates
    assert (candidate.text, candidate.is_answer) == ("13-9=4 (4 4 10)", False)
    assert tokens == len(candidate.state) - len(prompt(policy, game))
    assert steps(policy.conversation, candidate.state, "\n") == SOLUTION[:1]


def test_steps_continue_one_turn_until_the_answer(scripted: Make, game: Game24):
    policy = scripted(solver)
    expand, node, texts = ThoughtSampler(policy, game, samples=1), Node(prompt(policy, game)), []
    while not node.is_answer:
        (((candidate,), _),) = expand([node])
        node = Node(candidate.state, candidate.text, node, candidate.is_answer)
        texts.append(candidate.text)
    assert texts[:2] == SOLUTION[:2]
    assert len(node.state.turns) == 1
    completion = policy.conversation.parse_completion(node.state)
    assert (completion.thought, completion.answer) == ("\n".join(SOLUTION), "\\boxed{(13-9)*(10-4)}")
    assert game.grade(node.state.problem, completion).reward == 1.0


def test_a_step_that_never_ends_is_dropped_and_counted(scripted: Make, game: Game24):
    policy = scripted(solver)
    ((candidates, tokens),) = ThoughtSampler(policy, game, samples=2, step_tokens=20)([Node(prompt(policy, game))])
    assert [candidate.text for candidate in candidates] == [SOLUTION[0]]
    assert tokens > 20


def test_without_room_in_the_model_there_is_no_candidate_and_none_at_all_is_an_error(scripted: Make, game: Game24):
    policy, deep = scripted(solver), thought(scripted(solver), game, SOLUTION[0], SOLUTION[1])
    policy.max_seq_len = len(prompt(policy, game)) + 10
    assert ThoughtSampler(policy, game, samples=2)([deep]) == [Expansion([], 0)]
    with pytest.raises(SchoolError, match="no room for a step of 32 tokens and an answer: lower `step_tokens`"):
        ThoughtSampler(policy, game, samples=2)([Node(prompt(policy, game))])
    assert policy.calls == []


def test_an_answer_takes_the_room_that_is_left(scripted: Make, game: Game24):
    policy = scripted(solver)
    last = thought(policy, game, *SOLUTION[:2])
    policy.max_seq_len = len(last.state) + 32 + 20
    ((candidates, _),) = ThoughtSampler(policy, game, samples=1, answer_tokens=128)([last])
    assert len(candidates) == 1


def test_every_path_has_random_numbers_of_its_own(scripted: Make, game: Game24):
    keys = []

    def record_key(question: str, begun: str, key: Key) -> str:
        keys.append(key)
        return solver(question, begun, key._replace(sample=0))

    policy = scripted(record_key)
    expand, level = ThoughtSampler(policy, game, samples=3), [Node(prompt(policy, game))]
    for _ in range(2):
        expansions = zip(level, expand(level), strict=True)
        level = [Node(c.state, c.text, node) for node, expansion in expansions for c in expansion.candidates]
    assert len(keys) == len(set(keys)) == 3 + 9


def test_blanks_in_front_of_a_thought_are_no_thought(scripted: Make, game: Game24):
    policy = scripted(lambda q, b, k: "<think>\n" if not b else "13-9=4 (4 4 10)\n")
    ((candidates, _),) = ThoughtSampler(policy, game, samples=1)([Node(prompt(policy, game))])
    assert [candidate.text for candidate in candidates] == ["13-9=4 (4 4 10)"]
    assert steps(policy.conversation, candidates[0].state, "\n") == ["13-9=4 (4 4 10)"]
    only_blanks = scripted(lambda q, b, k: "<think>" * (not b) + "\n")
    ((candidates, _),) = ThoughtSampler(only_blanks, game, samples=1)([Node(prompt(only_blanks, game))])
    assert candidates == []


# --- proposed


def test_each_line_of_a_list_becomes_a_prefilled_thought(scripted: Make, game: Game24):
    policy = scripted(solver)
    ((candidates, tokens),) = ThoughtProposer(policy, game)([Node(prompt(policy, game))])
    assert [candidate.text for candidate in candidates] == ["13-9=4 (4 4 10)", "13+9=22 (4 10 22)"]
    assert [steps(policy.conversation, c.state, "\n") for c in candidates] == [[c.text] for c in candidates]
    assert not any(any(candidate.state.loss_mask) for candidate in candidates)
    list_ids = policy.conversation.tokenizer.encode("13-9=4 (4 4 10)\nwhatever\n13+9=22 (4 10 22)")
    assert tokens == len(list_ids) + 1


def test_where_the_task_has_nothing_to_ask_the_policy_answers(scripted: Make, game: Game24):
    policy = scripted(lambda question, begun, key: ANSWER)
    (((candidate,), _),) = ThoughtProposer(policy, game)([thought(policy, game, *SOLUTION)])
    assert candidate.is_answer
    assert policy.conversation.parse_completion(candidate.state).answer == "\\boxed{(13-9)*(10-4)}"


def test_the_last_proposal_ends_the_thought_as_demonstrations_do(scripted: Make, game: Game24):
    """Else the model would continue with one more step, as after every new line of its demonstrations."""
    policy = scripted(lambda question, begun, key: f"{SOLUTION[-1]}<|im_end|>")
    ((candidates, _),) = ThoughtProposer(policy, game)([thought(policy, game, *SOLUTION[:-1])])
    text = policy.conversation.tokenizer.decode(candidates[0].state.tokens)
    assert text.endswith(f"{SOLUTION[-2]}\n{SOLUTION[-1]}</think>")
    assert steps(policy.conversation, candidates[0].state, "\n") == SOLUTION


def test_several_lists_are_one_list_without_repeats(scripted: Make, game: Game24):
    lists = ["13-9=4 (4 4 10)\n13+9=22 (4 10 22)", "13+9=22 (4 10 22)\n10-4=6 (6 9 13)"]
    policy = scripted(lambda question, begun, key: lists[key.sample % 2] + "<|im_end|>")
    expand = ThoughtProposer(policy, game, num_proposals=2)
    ((candidates, tokens),) = expand([Node(prompt(policy, game))])
    assert [candidate.text for candidate in candidates] == ["13-9=4 (4 4 10)", "13+9=22 (4 10 22)", "10-4=6 (6 9 13)"]
    assert len({candidate.state.key for candidate in candidates}) == 3
    assert tokens == sum(len(policy.conversation.tokenizer.encode(text)) + 1 for text in lists)
    assert expand.max_tokens == 2 * expand.proposal_tokens


def test_proposals_that_lead_to_the_same_question_are_one_thought(scripted: Make, game: Game24):
    policy = scripted(lambda question, begun, key: "4*6=24 (10 24)\n6*4=24 (10 24)<|im_end|>")
    ((candidates, _),) = ThoughtProposer(policy, game)([thought(policy, game, "10-4=6 (4 6 10)")])
    assert candidates[0].dedup_key == candidates[1].dedup_key
