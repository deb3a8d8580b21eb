"""Turns in a kept cache: tools and users in between, thinking budgets, texts that end a turn."""

import pytest
import torch

from schoolhouse.data.tokenizer import END_THINK
from schoolhouse.policy.policy import Policy
from schoolhouse.types import SchoolError

PROMPTS = [[20, 21, 22], [30, 31], [20, 21, 22], [40, 41, 42, 43, 44], [50]]


@pytest.fixture(params=["float32", "exact"])
def talker(request, conversation, tiny_shape):
    shape = tiny_shape(vocab_size=conversation.tokenizer.size, head_dim=32)
    made = Policy.create(shape, conversation, precision=request.param)
    with torch.no_grad():
        made.decoder.get_parameter("model.embed_tokens.weight").mul_(20)
    return made


def tool(rollout):
    """Two rounds of a tool that says more to longer prompts; then it has nothing to say."""
    if rollout.key.turn == 2:
        return None
    return rollout.append_context([60 + rollout.key.turn] * (1 + len(rollout) % 4)), 6


def in_separate_calls(policy, rollouts):
    out = policy.extend(rollouts, 7)
    while (more := [tool(rollout) for rollout in out]) != [None] * len(out):
        out = policy.extend([longer for longer, _ in more], 6)
    return out


@pytest.mark.parametrize("slots", [2, 512])
def test_turns_in_a_kept_cache_are_those_of_separate_calls(talker, asked, slots):
    kept = talker.extend(asked(PROMPTS), 7, next_turn=tool, max_total_tokens=40, slots=slots)
    for ours, theirs in zip(kept, in_separate_calls(talker, asked(PROMPTS)), strict=True):
        assert (ours.tokens, ours.loss_mask, ours.turns) == (theirs.tokens, theirs.loss_mask, theirs.turns)
        assert (ours.key, ours.finish_reason, len(ours.turns)) == (theirs.key, theirs.finish_reason, 3)
        tolerance = 0.0 if talker.packed.__name__ == "ExactPacked" else 1e-4
        assert ours.logprob == pytest.approx(theirs.logprob, abs=tolerance, nan_ok=True)


def test_nothing_is_read_twice(talker, asked, monkeypatch):
    read = []
    forward = talker.decoder.forward
    monkeypatch.setattr(
        talker.decoder, "forward", lambda tokens, *rest: read.append(len(tokens)) or forward(tokens, *rest)
    )
    out = talker.extend(asked(PROMPTS), 7, next_turn=tool, max_total_tokens=40)
    prompts = sum(map(len, {tuple(prompt) for prompt in PROMPTS}))
    behind = sum(len(rollout) - len(prompt) - 1 for rollout, prompt in zip(out, PROMPTS, strict=True))
    assert sum(read) == prompts + behind


def test_a_turn_without_room_is_not_begun(talker, asked):
    for rollout, prompt in zip(
        talker.extend(asked(PROMPTS), 7, next_turn=tool, max_total_tokens=9), PROMPTS, strict=True
    ):
        assert len(rollout) - len(prompt) <= 9
        assert rollout.loss_mask[-1]


@pytest.mark.fault("ids change on the way")
def test_what_was_said_cannot_be_changed_on_a_kept_cache(talker, asked):
    other = asked([[1, 2, 3, 4]])[0]
    with pytest.raises(SchoolError, match="goes on from other tokens than it had"):
        talker.extend(asked(PROMPTS), 4, next_turn=lambda rollout: (other, 3), max_total_tokens=20)


def test_a_thought_that_outgrows_its_budget_is_closed(talker, asked):
    think, end = (talker.conversation.tokenizer.markup[mark] for mark in ("<think>", END_THINK))
    prompts = [rollout.append_sampled([think], [0.0], "length", 0).prefill(()) for rollout in asked(PROMPTS)]
    free = talker.extend(prompts, 12, stop=())
    held = talker.extend(prompts, 12, stop=(), thinking_budget=5)
    outgrown = 0
    for rollout, before, prompt in zip(held, free, prompts, strict=True):
        start = len(prompt)
        assert rollout.tokens[: start + 5] == before.tokens[: start + 5]
        assert (len(rollout), rollout.turns, rollout.finish_reason) == (start + 12, prompt.turns, "length")
        assert rollout.last_turn() == rollout.tokens[start - 1 :]
        if end not in before.tokens[start : start + 5]:
            outgrown += 1
            assert rollout.tokens[start + 5] == end
            assert not rollout.loss_mask[start + 5]
            assert talker.conversation.parse_completion(rollout).thought is not None
            assert talker.conversation.thought_length(rollout) == 5
        else:
            assert rollout.tokens == before.tokens
    assert outgrown >= 4


def test_a_thinking_budget_has_one_length(talker, asked):
    with pytest.raises(SchoolError, match="one `max_new_tokens` for all"):
        talker.extend(asked(PROMPTS), [4] * 5, thinking_budget=2)


def test_a_text_ends_a_turn_however_it_is_cut(talker, asked):
    decode = talker.conversation.tokenizer.decode
    free = talker.extend(asked(PROMPTS), 30, stop=())
    words = decode(free[0].tokens[3:])
    wanted = next(words[i : i + 3] for i in range(8, 40) if words[i : i + 3].isascii())
    held = talker.extend(asked(PROMPTS), 30, stop=(), stop_texts=[wanted])
    assert held[0].finish_reason == "stop"
    for rollout, before, prompt in zip(held, free, PROMPTS, strict=True):
        said = rollout.tokens[len(prompt) :]
        assert said == before.tokens[len(prompt) : len(rollout)]
        assert (wanted in decode(said)) == (rollout.finish_reason == "stop")
        assert wanted not in decode(said[:-1])
    with pytest.raises(SchoolError, match="an empty text"):
        talker.extend(asked(PROMPTS), 3, stop_texts=[""])
