"""Label tokens: where they stand, that they alone are trained on, and how their log-probabilities become a value."""

from math import exp, isnan, log
from pathlib import Path

import pytest

from schoolhouse.data.chat import Conversation
from schoolhouse.data.tokenizer import train_tokenizer
from schoolhouse.model.config import ModelConfig
from schoolhouse.policy.policy import Policy
from schoolhouse.reward_models.prm import LABEL_TOKEN, STEP_AGGREGATIONS, RewardModel, insert_label_tokens
from schoolhouse.types import Key, Message, Problem, Rollout

PROBLEM = Problem("p", (Message("user", "Start at 7."),), "3")


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    folder = tmp_path_factory.mktemp("model")
    Conversation(train_tokenizer(["Start at 7. 7+5=2 2-3=9 9*7=3"] * 4, 300)).save(folder)
    conversation = Conversation.load(folder)
    config = ModelConfig(conversation.tokenizer.vocab_size, 32, 48, 2, 2, 2, 16, max_position_embeddings=256)
    return Policy.create(config, conversation, 0, "float32")


def sampled(policy: Policy, text: str) -> Rollout:
    conversation = policy.conversation
    ids = conversation.tokenizer.encode(text, parse_special=True)
    finish = "stop" if ids[-1] in conversation.stop_ids else "length"
    return conversation.prompt_rollout(PROBLEM, Key(0, "t")).append_sampled(ids, [-0.1] * len(ids), finish, 0)


def decoded(policy: Policy, rollout: Rollout) -> str:
    return policy.conversation.tokenizer.decode(rollout.tokens)


def test_a_label_token_stands_behind_each_step_and_alone_is_trained_on(policy: Policy):
    rollout = sampled(policy, "<think>7+5=2 2-3=9</think>\\boxed{9}<|im_end|>")
    labelled, positions = insert_label_tokens(policy.conversation, rollout, " ")
    assert "<think>7+5=2 +2-3=9+</think>\\boxed{9}<|im_end|>+" in decoded(policy, labelled)
    assert [i for i, trained in enumerate(labelled.loss_mask) if trained] == list(positions)
    assert {policy.conversation.tokenizer.decode([labelled.tokens[i]]) for i in positions} == {LABEL_TOKEN}


def test_an_open_thought_has_labels_up_to_its_last_complete_step(policy: Policy):
    labelled, positions = insert_label_tokens(policy.conversation, sampled(policy, "<think>7+5=2 2-3"), " ")
    assert len(positions) == 1
    assert decoded(policy, labelled).endswith("7+5=2 +2-3")


def test_an_outcome_label_stands_behind_the_whole_turn(policy: Policy):
    rollout = sampled(policy, "<think>7+5=2</think>\\boxed{2}<|im_end|>")
    labelled, positions = insert_label_tokens(policy.conversation, rollout, " ", "end")
    assert (labelled.tokens[:-1], positions) == (rollout.tokens, (len(rollout),))


def test_another_delimiter_finds_other_steps(policy: Policy):
    rollout = sampled(policy, "<think>7+5=2 2-3=9</think>\\boxed{9}<|im_end|>")
    _, positions = insert_label_tokens(policy.conversation, rollout, "\n")
    assert len(positions) == 2  # the whole thought, and the answer


def test_step_log_probabilities_are_those_of_the_label_tokens(policy: Policy):
    rollouts = [sampled(policy, "<think>7+5=2 2-3=9 "), sampled(policy, "<think>"), sampled(policy, "<think>7+5=2 ")]
    logprobs = RewardModel(policy, " ").step_logprobs(rollouts)
    assert [len(own) for own in logprobs] == [2, 0, 1]
    assert logprobs[2] == pytest.approx(logprobs[0][:1], abs=1e-5)
    (alone,) = policy.score([insert_label_tokens(policy.conversation, rollouts[0], " ").rollout])
    assert logprobs[0] == pytest.approx([p for p in alone.logprob.tolist() if p != 0.0], abs=1e-6)


def test_a_solution_without_a_complete_step_has_no_value(policy: Policy):
    no_step, one_step = RewardModel(policy, " ")([sampled(policy, "<think>"), sampled(policy, "<think>7+5=2 ")])
    assert isnan(no_step)
    assert 0.0 < one_step < 1.0
    assert RewardModel(policy, " ")([]) == []


@pytest.mark.parametrize("name, value", [("product", 0.342), ("min", 0.5), ("last", 0.5), ("mean", 0.7875)])
def test_aggregations_of_a_known_solution(name: str, value: float):
    logprobs = [log(p) for p in (0.9, 0.8, 0.95, 0.5)]
    assert STEP_AGGREGATIONS[name](logprobs) == pytest.approx(value)  # ty: ignore[invalid-argument-type]
    assert STEP_AGGREGATIONS["last"](list(reversed(logprobs))) == pytest.approx(exp(logprobs[0]))


def test_a_saved_reward_model_gives_the_same_values(policy: Policy, tmp_path: Path):
    policy.save(tmp_path)
    rollouts = [sampled(policy, "<think>7+5=2 ")]
    saved = RewardModel(Policy.load(tmp_path, "float32"), " ")
    assert saved(rollouts) == pytest.approx(RewardModel(policy, " ")(rollouts), abs=1e-5)
