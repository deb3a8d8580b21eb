"""The loss of conversations: on the last assistant turn or on all, always after the tokens that a model would see."""

from collections.abc import Sequence

import pytest

from schoolhouse.data.chat import Conversation
from schoolhouse.data.chat_rollouts import LossOn, demonstration_rollouts
from schoolhouse.data.chat_template import DEFAULT_TEMPLATE
from schoolhouse.data.tokenizer import Tokenizer
from schoolhouse.types import Demonstration, Key, Message, Problem, Rollout

TURNS = (
    Message("system", "Count the apples."),
    Message("user", "apples 2"),
    Message("assistant", "two apples", "think 2"),
    Message("user", "and 3"),
    Message("assistant", "three", None),
    Message("user", "total"),
)
DROPS_THOUGHTS = DEFAULT_TEMPLATE.replace(
    "(message.reasoning_content or '')", "(message.reasoning_content or '' if loop.last else '')"
)


def demonstration(untrained: tuple[int, ...] = ()) -> Demonstration:
    return Demonstration(Problem("p", TURNS, ""), "2 and 3", "5", "file", untrained)


def rollouts(conversation: Conversation, loss_on: LossOn, *demonstrations: Demonstration) -> list[Rollout]:
    keys = [Key(0, "test", sample=i) for i, _ in enumerate(demonstrations)]
    return demonstration_rollouts(conversation, demonstrations, keys, loss_on)


def trained(conversation: Conversation, rollout: Rollout) -> list[str]:
    """The texts with a loss, one for each run of tokens."""
    texts, before = [], False
    for token, mask in zip(rollout.tokens, rollout.loss_mask, strict=True):
        if mask and not before:
            texts.append([])
        if mask:
            texts[-1].append(token)
        before = mask
    return [conversation.tokenizer.decode(ids) for ids in texts]


def ends_with(texts: Sequence[str], answers: Sequence[str]) -> bool:
    return len(texts) == len(answers) and all(a in text for text, a in zip(texts, answers, strict=True))


def test_last_is_the_rollout_of_the_conversation(conversation: Conversation) -> None:
    (rollout,) = rollouts(conversation, "last", demonstration())
    assert rollout == conversation.demonstration_rollout(demonstration(), Key(0, "test"))
    assert ends_with(trained(conversation, rollout), ["5"])


def test_all_has_the_loss_of_every_turn_in_one_rollout(conversation: Conversation) -> None:
    (last,) = rollouts(conversation, "last", demonstration())
    (rollout,) = rollouts(conversation, "all", demonstration())
    assert rollout.tokens == last.tokens
    assert ends_with(trained(conversation, rollout), ["two apples", "three", "5"])
    assert len(rollout.turns) == 3
    ends = [at for at, mask in enumerate(rollout.loss_mask) if mask and not (*rollout.loss_mask, False)[at + 1]]
    assert [rollout.tokens[at] in conversation.stop_ids for at in ends] == [True] * 3


def test_a_turn_that_is_excluded_has_no_loss(conversation: Conversation) -> None:
    (rollout,) = rollouts(conversation, "all", demonstration(untrained=(2,)))
    assert ends_with(trained(conversation, rollout), ["three", "5"])


def test_a_template_that_changes_earlier_turns_gives_more_rollouts(tokenizer: Tokenizer) -> None:
    conversation = Conversation(tokenizer, DROPS_THOUGHTS)
    first, second = rollouts(conversation, "all", demonstration())
    assert ends_with(trained(conversation, first), ["two apples"])
    assert ends_with(trained(conversation, second), ["three", "5"])  # the second turn has no thought to drop
    assert "think 2" in conversation.tokenizer.decode(first.tokens)
    assert "think 2" not in conversation.tokenizer.decode(second.tokens)
    for part, at in ((first, 2), (second, 4)):
        prompt = conversation.prompt(TURNS[:at])
        assert part.tokens[: len(prompt)] == prompt
        assert not any(part.loss_mask[: len(prompt)])


def test_conversations_stay_apart(conversation: Conversation) -> None:
    first, second = rollouts(conversation, "all", demonstration(), demonstration())
    assert first.tokens == second.tokens
    assert (first.key.sample, second.key.sample) == (0, 1)


@pytest.mark.parametrize("loss_on", ["last", "all"])
def test_an_assistant_turn_before_any_user_has_no_loss(conversation: Conversation, loss_on: LossOn) -> None:
    problem = Problem("p", (Message("assistant", "hi"), Message("user", "apples")), "")
    (rollout,) = rollouts(conversation, loss_on, Demonstration(problem, None, "two"))
    assert ends_with(trained(conversation, rollout), ["two"])
