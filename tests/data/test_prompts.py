"""Prompts of a step, and the keys of their random numbers."""

from schoolhouse.data.chat import Conversation
from schoolhouse.data.prompts import prompt_groups
from schoolhouse.types import Key, Message, Problem

PROBLEMS = [Problem(f"p{i}", (Message("user", f"What is {i} + {i}?"),), str(2 * i)) for i in range(3)]


def test_each_problem_has_group_size_prompts_side_by_side(conversation: Conversation):
    prompts = prompt_groups(conversation, PROBLEMS, 2, seed=0, purpose="t")
    assert [prompt.problem for prompt in prompts] == [problem for problem in PROBLEMS for _ in range(2)]
    assert [prompt.tokens for prompt in prompts] == [
        tuple(conversation.prompt(problem.messages)) for problem in PROBLEMS for _ in range(2)
    ]
    assert not any(any(prompt.loss_mask) for prompt in prompts)


def test_keys_hold_seed_purpose_and_step_and_count_problems_and_samples(conversation: Conversation):
    prompts = prompt_groups(conversation, PROBLEMS, 2, seed=5, purpose="t", step=7)
    assert [prompt.key for prompt in prompts] == [Key(5, "t", 7, problem, g) for problem in range(3) for g in range(2)]


def test_the_number_of_the_first_problem_goes_on_counting(conversation: Conversation):
    whole = prompt_groups(conversation, PROBLEMS, 2, seed=5, purpose="t", step=7)
    parts = [
        *prompt_groups(conversation, PROBLEMS[:1], 2, seed=5, purpose="t", step=7),
        *prompt_groups(conversation, PROBLEMS[1:], 2, seed=5, purpose="t", step=7, first_problem=1),
    ]
    assert parts == whole
    assert len({prompt.key for prompt in whole}) == 6


def test_no_problems_are_no_prompts(conversation: Conversation):
    assert prompt_groups(conversation, [], 2, seed=0, purpose="t") == []
