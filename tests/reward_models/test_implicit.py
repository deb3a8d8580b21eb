"""Implicit process rewards: a model against its reference, step by step."""

from math import exp, isnan, log
from pathlib import Path

import pytest

from schoolhouse.data.chat import Conversation
from schoolhouse.data.tokenizer import train_tokenizer
from schoolhouse.model.config import ModelConfig
from schoolhouse.policy.policy import Policy
from schoolhouse.reward_models.implicit import BETA, ImplicitRewardModel
from schoolhouse.types import Key, Message, Problem, Rollout

PROBLEM = Problem("p", (Message("user", "Start at 7."),), "3")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Policy, Policy]:
    folder: Path = tmp_path_factory.mktemp("model")
    Conversation(train_tokenizer(["Start at 7. 7+5=2 2-3=9 9*7=3"] * 4, 300)).save(folder)
    conversation = Conversation.load(folder)
    config = ModelConfig(conversation.tokenizer.vocab_size, 32, 48, 2, 2, 2, 16, max_position_embeddings=256)
    return Policy.create(config, conversation, 0, "float32"), Policy.create(config, conversation, 1, "float32")


def sampled(policy: Policy, text: str) -> Rollout:
    conversation = policy.conversation
    ids = conversation.tokenizer.encode(text, parse_special=True)
    finish = "stop" if ids[-1] in conversation.stop_ids else "length"
    return conversation.prompt_rollout(PROBLEM, Key(0, "t")).append_sampled(ids, [-0.1] * len(ids), finish, 0)


def test_a_model_with_itself_as_reference_is_indifferent(models: tuple[Policy, Policy]):
    policy, _ = models
    rollout = sampled(policy, "<think>7+5=2 2-3=9</think>\\boxed{9}<|im_end|>")
    (logprobs,) = ImplicitRewardModel(policy, policy, " ").step_logprobs([rollout])
    assert logprobs == pytest.approx([log(0.5)] * 3)  # two steps and the whole


def test_the_last_log_probability_is_about_the_whole_solution(models: tuple[Policy, Policy]):
    policy, reference = models
    rollout = sampled(policy, "<think>7+5=2 2-3=9</think>\\boxed{9}<|im_end|>")
    (score,), (reference_score,) = policy.score([rollout]), reference.score([rollout])
    turn = [i for i in range(len(rollout)) if rollout.loss_mask[i]]
    ratio = sum(float(score.logprob[i] - reference_score.logprob[i]) for i in turn)
    model = ImplicitRewardModel(policy, reference, " ")
    assert model([rollout])[0] == pytest.approx(1 / (1 + exp(-BETA * ratio)), rel=1e-4)
    first = sum(float(score.logprob[i] - reference_score.logprob[i]) for i in turn if i < rollout.turns[0] + 6)
    assert model.step_logprobs([rollout])[0][0] != pytest.approx(first)  # a probability's logarithm, not a sum


def test_an_open_thought_is_valued_up_to_its_last_complete_step(models: tuple[Policy, Policy]):
    policy, reference = models
    one_step, no_step = sampled(policy, "<think>7+5=2 2-3"), sampled(policy, "<think>7+")
    model = ImplicitRewardModel(policy, reference, " ")
    assert [len(logprobs) for logprobs in model.step_logprobs([one_step, no_step])] == [1, 0]
    assert isnan(model([no_step])[0])


def test_a_prefilled_thought_is_valued_as_a_sampled_one(models: tuple[Policy, Policy]):
    policy, reference = models
    conversation, model = policy.conversation, ImplicitRewardModel(policy, reference, " ")
    prefilled = conversation.prefill_thought(conversation.prompt_rollout(PROBLEM, Key(0, "t")), "7+5=2 2-3=9 ")
    rollout = sampled(policy, "<think>7+5=2 2-3=9 ")
    assert rollout.tokens == prefilled.tokens
    assert model.step_logprobs([prefilled]) == model.step_logprobs([rollout])
    assert model([prefilled])[0] != pytest.approx(0.5)
