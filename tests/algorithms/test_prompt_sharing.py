"""Prompt sharing: a prompt stands once for neighbouring completions, and no token is lost."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from schoolhouse.algorithms.packing import pack, token_mean
from schoolhouse.algorithms.prompt_sharing import share_prompts
from schoolhouse.types import NAN, Key, Problem, Rollout


def completion_of(prompt: int, prompt_length: int, length: int, sample: int) -> Rollout:
    """A completion of prompt number `prompt`. Ids of prompts begin at 100 * prompt, those of completions are unique."""
    return Rollout(
        Problem("p1", (), "1"),
        Key(0, "test", 0, 0, sample),
        (*range(100 * prompt, 100 * prompt + prompt_length), *(1000 * (1 + sample) + t for t in range(length))),
        (False,) * prompt_length + (True,) * length,
        (NAN,) * prompt_length + (-0.5,) * length,
    )


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 9)), min_size=1, max_size=12), st.integers(1, 120))
def test_a_shared_prompt_stands_once_and_every_token_is_found(pairs: list[tuple[int, int]], budget: int):
    prompt_lengths = (16, 17, 30, 15)  # the last is too short to share
    rollouts = [completion_of(p, prompt_lengths[p], length, i) for i, (p, length) in enumerate(pairs)]
    batches = pack(rollouts, token_mean(rollouts), budget, share_prompts=True)
    assert sum(len(batch.lengths) for batch in batches) == len(rollouts)
    for batch in batches:
        shared = share_prompts(batch)
        assert torch.equal(batch.tokens[shared.kept][shared.place], batch.tokens)
        prompts = [int(first) // 100 for first in batch.tokens[batch.positions == 0]]
        prompt_tokens = sum(prompt_lengths[p] for p in set(prompts) - {3}) + 15 * prompts.count(3)
        assert len(shared.kept) == prompt_tokens + int(batch.loss_mask.sum()) == sum(shared.lengths)
        assert len(shared.kept) <= budget or len(batch.lengths) == 1
        starts = np.cumsum((0, *shared.lengths[:-1]))
        for (prefix, length), start in zip(shared.prefixes, starts, strict=True):
            assert length == 0 or prefix + length <= start


def test_neighbours_with_other_prompts_share_nothing():
    rollouts = [completion_of(0, 20, 2, 0), completion_of(1, 20, 2, 1)]
    (batch,) = pack(rollouts, token_mean(rollouts), share_prompts=True)
    assert share_prompts(batch).prefixes == ((0, 0), (0, 0))
    assert len(share_prompts(batch).kept) == 44
