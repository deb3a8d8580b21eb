"""Implicit process rewards: a model against the one it was trained from, step by step."""

from math import exp, log
from pathlib import Path

import pytest

from schoolhouse.data.chat import Conversation
from schoolhouse.data.tokenizer import train_tokenizer
from schoolhouse.model.decoder import ModelConfig
from schoolhouse.policy.policy import Policy
from schoolhouse.reward_models.implicit import BETA, ImplicitRewardModel
from schoolhouse.types import Key, Message, Problem, Rollout

PROBLEM = Problem("p", (Message("user", "Start at 7."),), "3")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Policy, Policy]:
    folder: Path = tmp_path_factory.mktemp("judge")
    Conversation(train_tokenizer(["Start at 7. 7+5=2 2-3=9 9*7=3"] * 4, 300)).save(folder)
    say = Conversation.load(folder)
    shape = ModelConfig(say.tokenizer.vocab_size, 32, 48, 2, 2, 2, 16, max_position_embeddings=256)
    return Policy.create(shape, say, 0, "float32"), Policy.create(shape, say, 1, "float32")


def said(policy: Policy, text: str) -> Rollout:
    say = policy.conversation
    ids = say.tokenizer.encode(text, parse_special=True)
    finish = "stop" if ids[-1] in say.stop_ids else "length"
    return say.prompt_rollout(PROBLEM, Key(0, "t")).append_sampled(ids, [-0.1] * len(ids), finish, 0)


def test_a_model_is_indifferent_against_itself(models: tuple[Policy, Policy]):
    policy, _ = models
    rollout = said(policy, "<think>7+5=2 2-3=9</think>\\boxed{9}<|im_end|>")
    (grades,) = ImplicitRewardModel(policy, policy, " ").step_logprobs([rollout])
    assert grades == pytest.approx([log(0.5)] * 3)  # two steps and the whole


def test_the_last_grade_is_about_the_whole_solution(models: tuple[Policy, Policy]):
    policy, reference = models
    rollout = said(policy, "<think>7+5=2 2-3=9</think>\\boxed{9}<|im_end|>")
    (ours,), (theirs,) = policy.score([rollout]), reference.score([rollout])
    mine = [w for w in range(len(rollout)) if rollout.loss_mask[w]]
    ratio = sum(float(ours.logprob[i] - theirs.logprob[i]) for i in mine)
    judge = ImplicitRewardModel(policy, reference, " ")
    assert judge([rollout])[0] == pytest.approx(1 / (1 + exp(-BETA * ratio)), rel=1e-4)
    first = sum(float(ours.logprob[i] - theirs.logprob[i]) for i in mine if i < rollout.turns[0] + 6)
    assert judge.step_logprobs([rollout])[0][0] != pytest.approx(first)  # a probability's logarithm, not a sum


def test_an_open_thought_is_graded_up_to_its_last_complete_step(models: tuple[Policy, Policy]):
    policy, reference = models
    open_, nothing = said(policy, "<think>7+5=2 2-3"), said(policy, "<think>7+")
    grades = ImplicitRewardModel(policy, reference, " ").step_logprobs([open_, nothing])
    assert [len(few) for few in grades] == [1, 0]
    assert (
        ImplicitRewardModel(policy, reference, " ")([nothing])[0]
        != ImplicitRewardModel(policy, reference, " ")([nothing])[0]
    )  # nan


def test_a_thought_that_was_proposed_is_graded_as_one_that_was_said(models: tuple[Policy, Policy]):
    policy, reference = models
    say, judge = policy.conversation, ImplicitRewardModel(policy, reference, " ")
    proposed = say.prefill_thought(say.prompt_rollout(PROBLEM, Key(0, "t")), "7+5=2 2-3=9 ")
    sampled = said(policy, "<think>7+5=2 2-3=9 ")
    assert sampled.tokens == proposed.tokens
    assert judge.step_logprobs([proposed]) == judge.step_logprobs([sampled])
    assert judge([proposed])[0] != pytest.approx(0.5)
