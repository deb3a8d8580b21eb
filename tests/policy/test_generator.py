"""Sampled tokens follow the distribution and depend on the key alone. Log-probabilities are those of the sampling."""

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
    packed = PackedAttention([len(ids)])
    with torch.no_grad():
        return decoder.project(decoder(torch.tensor(ids), packed.positions, packed))


# --- the distribution


def kept_tokens(logits, **filters):
    return torch.isfinite(filter_logits(torch.tensor([logits]), **filters))[0].tolist()


LOGITS = torch.tensor([0.1, 0.4, 0.2, 0.05, 0.25]).log().tolist()


@pytest.mark.parametrize(
    "filters, expected",
    [
        ({}, [1, 1, 1, 1, 1]),
        ({"top_k": 1}, [0, 1, 0, 0, 0]),
        ({"top_k": 3}, [0, 1, 1, 0, 1]),
        ({"top_k": 9}, [1, 1, 1, 1, 1]),
        ({"top_p": 0.0}, [0, 1, 0, 0, 0]),
        ({"top_p": 0.01}, [0, 1, 0, 0, 0]),  # the likeliest token is always kept
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
def test_filters_keep_exactly_the_expected_tokens(filters, expected):
    assert kept_tokens(LOGITS, **filters) == [bool(x) for x in expected]


def test_a_filter_treats_each_row_alone():
    filtered = filter_logits(torch.tensor([[0.0, 1.0, 2.0], [2.0, 1.0, 0.0]]), top_k=1)
    assert torch.isfinite(filtered).tolist() == [[False, False, True], [True, False, False]]


def sample_counts(logits, uniform, temperature=1.0, **filters):
    logits_SV = torch.tensor([logits]).expand(len(uniform), -1)
    token, logprob = sample(logits_SV, torch.from_numpy(uniform), temperature, **filters)
    return torch.bincount(token, minlength=len(logits)).double(), token, logprob


@pytest.mark.parametrize("source", ["many tokens of one key", "the first token of many keys"])
@pytest.mark.parametrize(
    "temperature, filters", [(1.0, {}), (0.7, {}), (2.0, {"top_k": 4}), (1.0, {"top_p": 0.9}), (1.3, {"min_p": 0.2})]
)
def test_frequencies_follow_the_distribution(source, temperature, filters):
    n = 20_000
    if source == "many tokens of one key":
        uniform = uniforms(np.full(n, digest(Key(3, "chi")), np.uint64), np.arange(n))
    else:
        digests = np.array([digest(Key(3, "chi", sample=i)) for i in range(n)], np.uint64)
        uniform = uniforms(digests, np.zeros(n, np.int64))
    observed, token, logprob = sample_counts(LOGITS, uniform, temperature, **filters)
    expected = filter_logits(torch.tensor([LOGITS]) / temperature, **filters).softmax(-1)[0].double()
    assert observed[expected == 0].sum() == 0
    possible = expected > 0
    chi_square = ((observed - n * expected)[possible] ** 2 / (n * expected)[possible]).sum()
    assert chi_square < 20  # at most 4 degrees of freedom: one in two thousand
    assert torch.allclose(logprob.double(), expected.log()[token], atol=1e-6)


def test_the_ends_of_the_unit_interval_sample_possible_tokens():
    uniform = np.array([0.0, 1 - 2.0**-53])
    _, token, _ = sample_counts([-1e9, 1.0, 2.0, -1e9], uniform)
    assert token.tolist() == [1, 2]
    _, token, logprob = sample_counts([0.0, 1.0, 2.0, 0.0], uniform, top_k=2)
    assert token.tolist() == [1, 2]
    assert torch.isfinite(logprob).all()


def test_temperature_0_takes_the_likeliest_token_with_its_log_probability_at_temperature_1():
    token, logprob = sample(torch.tensor([LOGITS]), torch.tensor([0.999]), 0.0, top_k=2)
    assert token.tolist() == [1]
    assert logprob.exp().tolist() == pytest.approx([0.4])


# --- extending


@pytest.mark.parametrize("heads, kv_heads", [(4, 4), (4, 2), (4, 1)])
@pytest.mark.parametrize("num_slots", [1, 2, 3, 64])  # with fewer than rollouts, slots are refilled and moved
@pytest.mark.fault("slow sampling")
def test_greedy_decoding_equals_full_forward_passes(tiny_decoder, make_prompts, heads, kv_heads, num_slots):
    decoder = tiny_decoder(num_attention_heads=heads, num_key_value_heads=kv_heads)
    stop_ids = (4, 17, 33)
    greedy = SamplingParams(0.0)
    rollouts = extend(decoder, make_prompts(PROMPTS), 12, stop_ids, 0, params=greedy, num_slots=num_slots)
    for prompt, rollout in zip(PROMPTS, rollouts, strict=True):
        ids = list(prompt)
        while len(ids) < len(prompt) + 12 and not (len(ids) > len(prompt) and ids[-1] in stop_ids):
            ids.append(int(logits_of(decoder, ids)[-1].argmax()))
        assert rollout.tokens == tuple(ids)


def test_many_more_rollouts_than_slots_come_back_in_order_and_as_if_alone(tiny_decoder, make_prompts):
    decoder = tiny_decoder()
    stop_ids = range(12)  # about a fifth of the sampled tokens: turns end at many lengths
    prompts = make_prompts([[1 + i % 60] * (1 + i % 7) for i in range(40)])
    together = extend(decoder, prompts, 16, stop_ids, 0, num_slots=6)
    assert [r.key for r in together] == [prompt.key for prompt in prompts]
    assert len({len(r.last_turn()) for r in together}) > 5
    alone = [extend(decoder, [prompt], 16, stop_ids, 0)[0] for prompt in prompts]
    assert [r.tokens for r in together] == [r.tokens for r in alone]


@pytest.mark.parametrize("seed", range(4))
def test_a_rollout_is_the_same_alone_and_among_31_others(tiny_decoder, make_prompts, seed):
    decoder = tiny_decoder()
    prompts = make_prompts([PROMPTS[i % 4] for i in range(32)], seed)
    together = extend(decoder, prompts, 20, (4,), 0)
    assert len({r.tokens for r in together}) == 32
    for prompt, rollout in zip(prompts, together, strict=True):
        (alone,) = extend(decoder, [prompt], 20, (4,), 0)
        assert alone.tokens == rollout.tokens
        assert alone.logprob == pytest.approx(rollout.logprob, abs=1e-5, nan_ok=True)


def test_the_order_of_the_rollouts_changes_nothing(tiny_decoder, make_prompts):
    decoder, prompts = tiny_decoder(), make_prompts([PROMPTS[i % 4] for i in range(12)])
    rollouts = extend(decoder, prompts, 10, (4,), 0, num_slots=5)
    reversed_rollouts = extend(decoder, prompts[::-1], 10, (4,), 0, num_slots=5)
    assert [r.tokens for r in rollouts] == [r.tokens for r in reversed_rollouts[::-1]]


def test_another_seed_and_another_turn_sample_other_tokens(tiny_decoder, make_prompts):
    decoder = tiny_decoder()
    (prompt,), (other_seed,) = make_prompts([[5]]), make_prompts([[5]], seed=1)
    prefixes = [prompt, other_seed, prompt.append_context(())]
    rollouts = [extend(decoder, [prefix], 20, (), 0)[0] for prefix in prefixes]
    assert len({rollout.tokens for rollout in rollouts}) == 3


@pytest.mark.parametrize(
    "params",
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
def test_log_probabilities_are_those_of_the_filtered_distribution(tiny_decoder, make_prompts, params):
    decoder = tiny_decoder()
    filters = {key: value for key, value in params.items() if key != "temperature"}
    for rollout in extend(decoder, make_prompts(PROMPTS), 15, (4,), 0, num_slots=3, params=SamplingParams(**params)):
        logits = logits_of(decoder, list(rollout.tokens))[:-1] / params.get("temperature", 1.0)
        next_tokens = torch.tensor(rollout.tokens[1:])[:, None]
        expected = filter_logits(logits, **filters).log_softmax(-1).gather(1, next_tokens)[:, 0]
        start = rollout.turns[0]
        assert torch.tensor(rollout.logprob[start:]) == pytest.approx(expected[start - 1 :], abs=1e-5)
        assert np.isnan(rollout.logprob[:start]).all()


def test_a_turn_ends_after_a_stop_id_or_at_the_length(tiny_decoder, make_prompts):
    stop_ids = {4, 9, 17, 33, 50}
    rollouts = extend(tiny_decoder(), make_prompts(PROMPTS * 6), 10, sorted(stop_ids), policy_version=7)
    assert {r.finish_reason for r in rollouts} == {"stop", "length"}
    for prompt, rollout in zip(PROMPTS * 6, rollouts, strict=True):
        turn = rollout.last_turn()
        assert rollout.tokens == (*prompt, *turn)
        assert rollout.turns == (len(prompt),)
        assert rollout.loss_mask == (False,) * len(prompt) + (True,) * len(turn)
        assert rollout.policy_version == 7
        assert not stop_ids & set(turn[:-1])
        assert rollout.finish_reason == ("stop" if turn[-1] in stop_ids else "length")
        assert rollout.finish_reason == "stop" or len(turn) == 10


def test_a_prompt_that_is_too_long_is_an_error_with_the_numbers(tiny_decoder, make_prompts):
    decoder = tiny_decoder(max_position_embeddings=20)
    assert len(extend(decoder, make_prompts([[5] * 12]), 8, (), 0)[0]) == 20
    with pytest.raises(
        SchoolError, match=r"prompt has 13 tokens and `max_new_tokens` is 8, together 21 tokens.*at most 20"
    ):
        extend(decoder, make_prompts([[5], [5] * 13]), 8, (), 0)


def test_an_empty_list_gives_an_empty_list(tiny_decoder):
    assert extend(tiny_decoder(), [], 5, (), 0) == []


def test_an_empty_prompt_is_an_error(tiny_decoder, make_prompts):
    with pytest.raises(SchoolError, match="no tokens"):
        extend(tiny_decoder(), make_prompts([[5], []]), 5, (), 0)


def test_a_length_of_0_is_an_error(tiny_decoder, make_prompts):
    with pytest.raises(SchoolError, match="max_new_tokens"):
        extend(tiny_decoder(), make_prompts([[5]]), 0, (), 0)


def test_a_negative_temperature_is_an_error(tiny_decoder, make_prompts):
    with pytest.raises(SchoolError, match="temperature"):
        extend(tiny_decoder(), make_prompts([[5]]), 3, (), 0, params=SamplingParams(-1.0))


def test_on_token_gets_every_token_in_order(tiny_decoder, make_prompts):
    calls = []

    def on_token(*call):
        calls.append(call)

    rollouts = extend(tiny_decoder(), make_prompts(PROMPTS), 9, range(8), 0, num_slots=2, on_token=on_token)
    for number, rollout in enumerate(rollouts):
        own_calls = [call for call in calls if call[0] == number]
        assert tuple(token for _, token, _ in own_calls) == rollout.last_turn()
        assert tuple(logprob for _, _, logprob in own_calls) == rollout.logprob[rollout.turns[0] :]


def test_on_token_gets_a_token_before_the_next_is_sampled(tiny_decoder, make_prompts):
    numbers = []
    extend(tiny_decoder(), make_prompts([[5], [6]]), 3, (), 0, on_token=lambda number, *_: numbers.append(number))
    assert numbers == [0, 1, 0, 1, 0, 1]


def test_progress_counts_each_rollout_once(tiny_decoder, make_prompts):
    counts = []
    extend(tiny_decoder(), make_prompts(PROMPTS), 9, range(8), 0, num_slots=2, progress=counts.append)
    assert sum(counts) == len(PROMPTS)
    assert 0 not in counts


@pytest.mark.fault("weights not finite")
@pytest.mark.parametrize("bad_value", [float("nan"), float("inf")])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_weights_that_are_not_finite_are_an_error(tiny_decoder, make_prompts, bad_value, temperature):
    decoder = tiny_decoder()
    with torch.no_grad():
        decoder.model.layers[0].mlp.down_proj.weight[3, 2] = bad_value
    with pytest.raises(SchoolError, match="not finite"):
        extend(decoder, make_prompts(PROMPTS), 9, range(8), 0, params=SamplingParams(temperature))


# --- the most likely tokens at each sampled token


@pytest.mark.parametrize(("temperature", "count", "num_slots"), [(1.0, 5, 512), (0.7, 61, 2), (1.0, 1_000, 512)])
def test_each_sampled_token_has_the_most_likely_tokens_at_its_place(
    tiny_decoder, make_prompts, temperature, count, num_slots
):
    decoder = tiny_decoder()
    params = SamplingParams(temperature)
    rollouts = extend(
        decoder,
        make_prompts(PROMPTS),
        [3, 1, 6, 4, 2],
        [7],
        0,
        params=params,
        num_slots=num_slots,
        num_candidates=count,
    )
    for rollout in rollouts:
        logits = logits_of(decoder, rollout.tokens)[np.flatnonzero(rollout.loss_mask) - 1]
        expected = (logits / temperature).log_softmax(-1)
        assert rollout.candidates is not None
        assert rollout.candidates.ids.shape == rollout.candidates.logprob.shape == (len(logits), min(count, 61))
        found = torch.from_numpy(rollout.candidates.logprob)
        at_ids = expected.gather(1, torch.from_numpy(rollout.candidates.ids).long())
        assert torch.allclose(found, at_ids, atol=1e-4)
        assert torch.allclose(found, expected.topk(min(count, 61)).values, atol=1e-4)


def test_candidates_do_not_change_what_is_sampled(tiny_decoder, make_prompts):
    plain, recorded = (
        extend(tiny_decoder(), make_prompts(PROMPTS), 6, [7], 0, num_candidates=count) for count in (0, 4)
    )
    assert all(rollout.candidates is None for rollout in plain)
    assert [rollout.tokens for rollout in plain] == [rollout.tokens for rollout in recorded]
    assert repr(plain) == repr(recorded)


@pytest.mark.parametrize("params", [SamplingParams(1.0, top_k=3), SamplingParams(1.0, top_p=0.9), SamplingParams(0.0)])
def test_candidates_of_a_filtered_distribution_are_refused(tiny_decoder, make_prompts, params):
    with pytest.raises(SchoolError, match="`num_candidates` records log-probabilities of the whole vocabulary: leave"):
        extend(tiny_decoder(), make_prompts(PROMPTS), 6, [7], 0, params=params, num_candidates=4)
