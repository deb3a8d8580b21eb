"""Marks: where they stand, that a judge reads nothing else, and how grades become one number."""

from math import exp, isnan, log
from pathlib import Path

import pytest

from schoolhouse.data.chat import Conversation
from schoolhouse.data.tokenizer import train_tokenizer
from schoolhouse.model.decoder import ModelConfig
from schoolhouse.policy.policy import Policy
from schoolhouse.reward_models.prm import LABEL_TOKEN, STEP_AGGREGATIONS, RewardModel, insert_label_tokens
from schoolhouse.types import Key, Message, Problem, Rollout

PROBLEM = Problem("p", (Message("user", "Start at 7."),), "3")


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    folder = tmp_path_factory.mktemp("judge")
    Conversation(train_tokenizer(["Start at 7. 7+5=2 2-3=9 9*7=3"] * 4, 300)).save(folder)
    say = Conversation.load(folder)
    return Policy.create(
        ModelConfig(say.tokenizer.vocab_size, 32, 48, 2, 2, 2, 16, max_position_embeddings=256), say, 0, "float32"
    )


def said(policy: Policy, text: str) -> Rollout:
    say = policy.conversation
    ids = say.tokenizer.encode(text, parse_special=True)
    finish = "stop" if ids[-1] in say.stop_ids else "length"
    return say.prompt_rollout(PROBLEM, Key(0, "t")).append_sampled(ids, [-0.1] * len(ids), finish, 0)


def reading(policy: Policy, rollout: Rollout) -> str:
    return policy.conversation.tokenizer.decode(rollout.tokens)


def test_a_mark_stands_behind_each_step_and_nothing_else_is_learned(policy: Policy):
    spliced, marks = insert_label_tokens(
        policy.conversation, said(policy, "<think>7+5=2 2-3=9</think>\\boxed{9}<|im_end|>"), " "
    )
    assert "<think>7+5=2 +2-3=9+</think>\\boxed{9}<|im_end|>+" in reading(policy, spliced)
    assert [i for i, written in enumerate(spliced.loss_mask) if written] == list(marks)
    assert {policy.conversation.tokenizer.decode([spliced.tokens[i]]) for i in marks} == {LABEL_TOKEN}


def test_an_open_thought_is_marked_up_to_its_last_complete_step(policy: Policy):
    spliced, marks = insert_label_tokens(policy.conversation, said(policy, "<think>7+5=2 2-3"), " ")
    assert len(marks) == 1
    assert reading(policy, spliced).endswith("7+5=2 +2-3")


def test_an_outcome_is_marked_behind_the_whole_turn(policy: Policy):
    rollout = said(policy, "<think>7+5=2</think>\\boxed{2}<|im_end|>")
    spliced, marks = insert_label_tokens(policy.conversation, rollout, " ", "end")
    assert (spliced.tokens[:-1], marks) == (rollout.tokens, (len(rollout),))


def test_another_delimiter_finds_other_steps(policy: Policy):
    rollout = said(policy, "<think>7+5=2 2-3=9</think>\\boxed{9}<|im_end|>")
    assert len(insert_label_tokens(policy.conversation, rollout, "\n").positions) == 2  # the whole thought, and the answer


def test_grades_are_the_log_probabilities_of_the_marks(policy: Policy):
    rollouts = [said(policy, "<think>7+5=2 2-3=9 "), said(policy, "<think>"), said(policy, "<think>7+5=2 ")]
    grades = RewardModel(policy, " ").step_logprobs(rollouts)
    assert [len(few) for few in grades] == [2, 0, 1]
    assert grades[2] == pytest.approx(grades[0][:1], abs=1e-5)
    (alone,) = policy.score([insert_label_tokens(policy.conversation, rollouts[0], " ").rollout])
    assert grades[0] == pytest.approx([p for p in alone.logprob.tolist() if p != 0.0], abs=1e-6)


def test_what_has_no_step_yet_has_no_grade(policy: Policy):
    (nothing, something) = RewardModel(policy, " ")([said(policy, "<think>"), said(policy, "<think>7+5=2 ")])
    assert isnan(nothing)
    assert 0.0 < something < 1.0
    assert RewardModel(policy, " ")([]) == []


@pytest.mark.parametrize("name, value", [("product", 0.342), ("min", 0.5), ("last", 0.5), ("mean", 0.7875)])
def test_aggregates_of_a_known_solution(name: str, value: float):
    logs = [log(p) for p in (0.9, 0.8, 0.95, 0.5)]
    assert STEP_AGGREGATIONS[name](logs) == pytest.approx(value)  # ty: ignore[invalid-argument-type]
    assert STEP_AGGREGATIONS["last"](list(reversed(logs))) == pytest.approx(exp(logs[0]))


def test_a_judge_can_be_kept_in_a_folder(policy: Policy, tmp_path: Path):
    policy.save(tmp_path)
    rollout = [said(policy, "<think>7+5=2 ")]
    assert RewardModel(Policy.load(tmp_path, "float32"), " ")(rollout) == pytest.approx(
        RewardModel(policy, " ")(rollout), abs=1e-5
    )
