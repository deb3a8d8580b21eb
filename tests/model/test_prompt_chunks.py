"""A prefill in groups and chunks gives the same keys, values and hidden states as one forward pass."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from schoolhouse.model import prompt_chunks
from schoolhouse.model.kv_cache import AttentionRule, PackedAttention
from schoolhouse.model.prompt_chunks import PREFILL_TOKENS, PromptChunk, group_prompts


def prompts_of(lengths):
    return [(number,) * length for number, length in enumerate(lengths)]


@given(st.lists(st.integers(1, 3 * PREFILL_TOKENS), max_size=40))
def test_groups_hold_every_prompt_once_within_the_bound(lengths):
    prompts = prompts_of(lengths)
    groups = list(group_prompts(prompts))
    assert sorted(prompt for group in groups for prompt in group) == sorted(prompts)
    assert all(len(group) == 1 or len(group) * max(map(len, group)) <= PREFILL_TOKENS for group in groups)


def test_prompts_that_fit_are_one_group_in_their_order():
    prompts = prompts_of([5, 2, 9])
    assert list(group_prompts(prompts)) == [prompts]


def test_one_long_prompt_does_not_pad_many_short_ones():
    groups = list(group_prompts(prompts_of([PREFILL_TOKENS] + [2] * 100)))
    assert [len(group) for group in groups] == [100, 1]


@pytest.mark.parametrize("rule", [None, AttentionRule(window=5), AttentionRule(softcap=2.0, sinks=torch.ones(4))])
def test_chunks_of_a_prompt_equal_the_whole_prompt(monkeypatch, rule):
    monkeypatch.setattr(prompt_chunks, "_QUERIES", 3)
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(17, heads, 8, generator=generator) for heads in (4, 2, 2))
    whole = PackedAttention([17], keep_kv=True)
    expected = whole.attend_by_rule(0, q, k, v, rule)
    chunk, outputs, positions = None, [], []
    for part in torch.arange(17).split(7):
        chunk = PromptChunk(len(part), earlier=chunk)
        positions.append(chunk.positions)
        outputs.append(chunk.attend_by_rule(0, q[part], k[part], v[part], rule))
    torch.testing.assert_close(torch.cat(outputs), expected)
    assert torch.cat(positions).tolist() == list(range(17))
    assert chunk is not None
    assert (chunk.lengths.tolist(), chunk.max_len, chunk.num_sequences) == ([17], 17, 1)
    assert chunk.kept_kv is not None
    assert whole.kept_kv is not None
    for kept, known in zip(chunk.kept_kv[0], whole.kept_kv[0], strict=True):
        assert torch.equal(kept, known)
