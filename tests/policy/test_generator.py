"""Sampling: what is drawn follows the distribution, depends on its key alone, and is reported as it was drawn."""

import numpy as np
import pytest
import torch

from schoolhouse.model.kv_cache import PackedAttention
from schoolhouse.policy.generator import extend
from schoolhouse.policy.sampling import SamplingParams, filter_logits, sample
from schoolhouse.randomness import digest, uniforms
from schoolhouse.types import Key, SchoolError

PROMPTS = [[5, 9, 13, 2], [60], [44, 3, 21, 8, 30, 7, 7], [1, 2], [5, 9, 13, 2]]


def logits_of(decoder, ids):
    memory = PackedAttention([len(ids)])
    with torch.no_grad():
        return decoder.project(decoder(torch.tensor(ids), memory.positions, memory))


# --- the distribution


def kept(logits, **filters):
    return torch.isfinite(filter_logits(torch.tensor([logits]), **filters))[0].tolist()


PROBABILITIES = torch.tensor([0.1, 0.4, 0.2, 0.05, 0.25]).log().tolist()


@pytest.mark.parametrize(
    "filters, expected",
    [
        ({}, [1, 1, 1, 1, 1]),
        ({"top_k": 1}, [0, 1, 0, 0, 0]),
        ({"top_k": 3}, [0, 1, 1, 0, 1]),
        ({"top_k": 9}, [1, 1, 1, 1, 1]),
        ({"top_p": 0.0}, [0, 1, 0, 0, 0]),
        ({"top_p": 0.01}, [0, 1, 0, 0, 0]),  # the likeliest always stays
        ({"top_p": 0.39}, [0, 1, 0, 0, 0]),
        ({"top_p": 0.41}, [0, 1, 0, 0, 1]),
        ({"top_p": 0.7}, [0, 1, 1, 0, 1]),
        ({"top_p": 0.9}, [1, 1, 1, 0, 1]),
        ({"min_p": 0.3}, [0, 1, 1, 0, 1]),  # at least 0.12
        ({"min_p": 0.2}, [1, 1, 1, 0, 1]),  # at least 0.08
        ({"min_p": 1.0}, [0, 1, 0, 0, 0]),
        ({"top_k": 3, "top_p": 0.7}, [0, 1, 0, 0, 1]),  # .4 and .25 of .85 are more than .7
        ({"top_p": 0.7, "min_p": 0.6}, [0, 1, 0, 0, 1]),
    ],
)
def test_filters_keep_exactly(filters, expected):
    assert kept(PROBABILITIES, **filters) == [bool(x) for x in expected]


def test_a_filter_looks_at_each_slot_by_itself():
    both = filter_logits(torch.tensor([[0.0, 1.0, 2.0], [2.0, 1.0, 0.0]]), top_k=1)
    assert torch.isfinite(both).tolist() == [[False, False, True], [True, False, False]]


def frequencies(logits, uniform, temperature=1.0, **filters):
    logits_SV = torch.tensor([logits]).expand(len(uniform), -1)
    token, logprob = sample(logits_SV, torch.from_numpy(uniform), temperature, **filters)
    return torch.bincount(token, minlength=len(logits)).double(), token, logprob


@pytest.mark.parametrize("source", ["one key, many tokens", "many keys, their first token"])
@pytest.mark.parametrize(
    "temperature, filters", [(1.0, {}), (0.7, {}), (2.0, {"top_k": 4}), (1.0, {"top_p": 0.9}), (1.3, {"min_p": 0.2})]
)
def test_frequencies_follow_the_distribution(source, temperature, filters):
    n = 20_000
    if source.startswith("one"):
        uniform = uniforms(np.full(n, digest(Key(3, "chi")), np.uint64), np.arange(n))
    else:
        digests = np.array([digest(Key(3, "chi", sample=i)) for i in range(n)], np.uint64)
        uniform = uniforms(digests, np.zeros(n, np.int64))
    observed, token, logprob = frequencies(PROBABILITIES, uniform, temperature, **filters)
    expected = filter_logits(torch.tensor([PROBABILITIES]) / temperature, **filters).softmax(-1)[0].double()
    assert observed[expected == 0].sum() == 0
    possible = expected > 0
    chi_square = ((observed - n * expected)[possible] ** 2 / (n * expected)[possible]).sum()
    assert chi_square < 20  # at most 4 degrees of freedom: one in two thousand
    assert torch.allclose(logprob.double(), expected.log()[token], atol=1e-6)


def test_the_ends_of_the_unit_interval_choose_possible_tokens():
    uniform = np.array([0.0, 1 - 2.0**-53])
    _, token, _ = frequencies([-1e9, 1.0, 2.0, -1e9], uniform)
    assert token.tolist() == [1, 2]
    _, token, logprob = frequencies([0.0, 1.0, 2.0, 0.0], uniform, top_k=2)
    assert token.tolist() == [1, 2]
    assert torch.isfinite(logprob).all()


def test_temperature_0_takes_the_likeliest_and_reports_it_at_temperature_1():
    token, logprob = sample(torch.tensor([PROBABILITIES]), torch.tensor([0.999]), 0.0, top_k=2)
    assert token.tolist() == [1]
    assert logprob.exp().tolist() == pytest.approx([0.4])


# --- extending


@pytest.mark.parametrize("heads, key_heads", [(4, 4), (4, 2), (4, 1)])
@pytest.mark.parametrize("slots", [1, 2, 3, 64])  # fewer than rollouts: slots are filled again, moved, given back
@pytest.mark.fault("slow sampling")
def test_greedy_through_slots_equals_reading_everything_again(tiny_decoder, asked, heads, key_heads, slots):
    decoder = tiny_decoder(num_attention_heads=heads, num_key_value_heads=key_heads)
    stop = (4, 17, 33)
    said = extend(decoder, asked(PROMPTS), 12, stop, 0, params=SamplingParams(0.0), slots=slots)
    for prompt, rollout in zip(PROMPTS, said, strict=True):
        ids = list(prompt)
        while len(ids) < len(prompt) + 12 and not (len(ids) > len(prompt) and ids[-1] in stop):
            ids.append(int(logits_of(decoder, ids)[-1].argmax()))
        assert rollout.tokens == tuple(ids)


def test_many_more_rollouts_than_slots_come_back_in_order_and_as_when_alone(tiny_decoder, asked):
    decoder = tiny_decoder()
    stop = range(12)  # about a fifth of what is said: turns end at all lengths
    rollouts = asked([[1 + i % 60] * (1 + i % 7) for i in range(40)])
    together = extend(decoder, rollouts, 16, stop, 0, slots=6)
    assert [r.key for r in together] == [r.key for r in rollouts]
    assert len({len(r.last_turn()) for r in together}) > 5
    alone = [extend(decoder, [r], 16, stop, 0)[0] for r in rollouts]
    assert [r.tokens for r in together] == [r.tokens for r in alone]


@pytest.mark.parametrize("seed", range(4))
def test_the_same_rollout_alone_or_among_31_others(tiny_decoder, asked, seed):
    decoder = tiny_decoder()
    prompts = [PROMPTS[i % 4] for i in range(32)]
    rollouts = asked(prompts, seed)
    together = extend(decoder, rollouts, 20, (4,), 0)
    assert len({r.tokens for r in together}) == 32
    for rollout, among in zip(rollouts, together, strict=True):
        (alone,) = extend(decoder, [rollout], 20, (4,), 0)
        assert alone.tokens == among.tokens
        assert alone.logprob == pytest.approx(among.logprob, abs=1e-5, nan_ok=True)


def test_the_order_of_the_rollouts_changes_nothing(tiny_decoder, asked):
    decoder, rollouts = tiny_decoder(), asked([PROMPTS[i % 4] for i in range(12)])
    forth = extend(decoder, rollouts, 10, (4,), 0, slots=5)
    back = extend(decoder, rollouts[::-1], 10, (4,), 0, slots=5)
    assert [r.tokens for r in forth] == [r.tokens for r in back[::-1]]


def test_another_seed_and_another_turn_say_something_else(tiny_decoder, asked):
    decoder = tiny_decoder()
    (one,) = extend(decoder, asked([[5]]), 20, (), 0)
    (other,) = extend(decoder, asked([[5]], seed=1), 20, (), 0)
    (prefix,) = asked([[5]])
    (turn,) = extend(decoder, [prefix.append_context(())], 20, (), 0)
    assert len({one.tokens, other.tokens, turn.tokens}) == 3


@pytest.mark.parametrize(
    "transform",
    [
        {},
        {"temperature": 0.6},
        {"temperature": 1.5, "top_k": 5},
        {"top_p": 0.8},
        {"temperature": 0.9, "min_p": 0.1},
        {"temperature": 1.2, "top_k": 20, "top_p": 0.9, "min_p": 0.05},
    ],
    ids=str,
)
def test_reported_log_probabilities_are_those_of_the_transform(tiny_decoder, asked, transform):
    decoder = tiny_decoder()
    filters = {key: value for key, value in transform.items() if key != "temperature"}
    for rollout in extend(decoder, asked(PROMPTS), 15, (4,), 0, slots=3, params=SamplingParams(**transform)):
        logits = logits_of(decoder, list(rollout.tokens))[:-1] / transform.get("temperature", 1.0)
        of_next = (
            filter_logits(logits, **filters).log_softmax(-1).gather(1, torch.tensor(rollout.tokens[1:])[:, None])[:, 0]
        )
        start = rollout.turns[0]
        assert torch.tensor(rollout.logprob[start:]) == pytest.approx(of_next[start - 1 :], abs=1e-5)
        assert np.isnan(rollout.logprob[:start]).all()


def test_a_turn_ends_after_a_stop_id_or_at_the_length(tiny_decoder, asked):
    stop = {4, 9, 17, 33, 50}
    said = extend(tiny_decoder(), asked(PROMPTS * 6), 10, sorted(stop), policy_version=7)
    assert {r.finish_reason for r in said} == {"stop", "length"}
    for prompt, rollout in zip(PROMPTS * 6, said, strict=True):
        turn = rollout.last_turn()
        assert rollout.tokens == (*prompt, *turn)
        assert rollout.turns == (len(prompt),)
        assert rollout.loss_mask == (False,) * len(prompt) + (True,) * len(turn)
        assert rollout.policy_version == 7
        assert not stop & set(turn[:-1])
        assert rollout.finish_reason == ("stop" if turn[-1] in stop else "length")
        assert rollout.finish_reason == "stop" or len(turn) == 10


def test_a_prompt_that_is_too_long_is_refused_with_the_numbers(tiny_decoder, asked):
    decoder = tiny_decoder(max_position_embeddings=20)
    assert len(extend(decoder, asked([[5] * 12]), 8, (), 0)[0]) == 20
    with pytest.raises(SchoolError, match=r"prompt of 13 tokens and 8 new ones make 21.*at most 20"):
        extend(decoder, asked([[5], [5] * 13]), 8, (), 0)


def test_nothing_asked_nothing_said(tiny_decoder):
    assert extend(tiny_decoder(), [], 5, (), 0) == []


def test_an_empty_prompt_is_refused(tiny_decoder, asked):
    with pytest.raises(SchoolError, match="no tokens"):
        extend(tiny_decoder(), asked([[5], []]), 5, (), 0)


def test_a_length_of_nothing_is_refused(tiny_decoder, asked):
    with pytest.raises(SchoolError, match="max_new_tokens"):
        extend(tiny_decoder(), asked([[5]]), 0, (), 0)


def test_a_negative_temperature_is_refused(tiny_decoder, asked):
    with pytest.raises(SchoolError, match="temperature"):
        extend(tiny_decoder(), asked([[5]]), 3, (), 0, params=SamplingParams(-1.0))


def test_on_token_hears_every_token_in_order(tiny_decoder, asked):
    heard = []
    said = extend(tiny_decoder(), asked(PROMPTS), 9, range(8), 0, slots=2, on_token=lambda *what: heard.append(what))
    for i, rollout in enumerate(said):
        mine = [(token, logprob) for j, token, logprob in heard if j == i]
        assert tuple(token for token, _ in mine) == rollout.last_turn()
        assert tuple(logprob for _, logprob in mine) == rollout.logprob[rollout.turns[0] :]


def test_on_token_hears_a_token_before_the_next_is_sampled(tiny_decoder, asked):
    heard = []
    extend(tiny_decoder(), asked([[5], [6]]), 3, (), 0, on_token=lambda i, *_: heard.append(i))
    assert heard == [0, 1, 0, 1, 0, 1]


def test_progress_counts_each_rollout_once(tiny_decoder, asked):
    counts = []
    extend(tiny_decoder(), asked(PROMPTS), 9, range(8), 0, slots=2, progress=counts.append)
    assert sum(counts) == len(PROMPTS)
    assert 0 not in counts


@pytest.mark.fault("weights not finite")
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_weights_that_are_not_finite_say_nothing(tiny_decoder, asked, poison, temperature):
    decoder = tiny_decoder()
    with torch.no_grad():
        decoder.model.layers[0].mlp.down_proj.weight[3, 2] = poison
    with pytest.raises(SchoolError, match="not finite"):
        extend(decoder, asked(PROMPTS), 9, range(8), 0, params=SamplingParams(temperature))
