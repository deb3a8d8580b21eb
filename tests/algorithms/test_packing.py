"""Packing: every number stands at its token, denominators are global, and empty or full masks are refused."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from schoolhouse.algorithms.packing import (
    constant,
    num_targets,
    pack,
    pack_for_scoring,
    sequence_mean,
    sequence_sum,
    token_mean,
    without,
)
from schoolhouse.types import NAN, Key, Problem, Rollout, SchoolError

PROBLEM = Problem("p1", (), "1")


def rollout(prompt: int, completion: int, sample: int = 0) -> Rollout:
    """A rollout whose ids name it and the index of each token: 1000 * sample + index."""
    return Rollout(
        PROBLEM,
        Key(0, "test", 0, 0, sample),
        tuple(1000 * sample + t for t in range(prompt + completion)),
        (False,) * prompt + (True,) * completion,
        (NAN,) * prompt + (-0.5,) * completion,
    )


THREE = [rollout(2, 3, 0), rollout(1, 1, 1), rollout(4, 2, 2)]
shapes = st.lists(st.tuples(st.integers(1, 6), st.integers(0, 9)), min_size=1, max_size=12).filter(
    lambda pairs: any(completion for _, completion in pairs)
)


def test_a_batch_holds_sequences_end_to_end_shortest_first():
    (batch,) = pack(THREE, sequence_mean(THREE), advantage=[[0, 0, 7, 7, 7], [0, 8], [0, 0, 0, 0, 9, 9]])
    assert batch.tokens.tolist() == [1000, 1001, 0, 1, 2, 3, 4, 2000, 2001, 2002, 2003, 2004, 2005]
    assert batch.positions.tolist() == [0, 1, 0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 5]
    assert batch.sequence.tolist() == [0, 0, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2]
    assert batch.loss_mask.tolist() == [False, True, False, False, True, True, True] + [False] * 4 + [True] * 2
    assert batch["advantage"].tolist() == [0, 8, 0, 0, 7, 7, 7, 0, 0, 0, 0, 9, 9]
    ninth = 1 / 9
    assert batch.weight.tolist() == pytest.approx([0, 3 * ninth, 0, 0] + [ninth] * 3 + [0] * 4 + [1.5 * ninth] * 2)
    assert batch.lengths == (2, 5, 6)


def test_weights_of_lengths_2_and_8():
    two, eight = rollout(1, 2, 0), rollout(1, 8, 1)
    scope = [two, eight]
    assert (sequence_mean(scope)(two), sequence_mean(scope)(eight)) == (0.25, 0.0625)
    assert (token_mean(scope)(two), token_mean(scope)(eight)) == (0.1, 0.1)
    assert (constant(scope, 16)(two), constant(scope, 16)(eight)) == (1 / 32, 1 / 32)
    assert (sequence_sum(scope)(two), sequence_sum(scope)(eight)) == (0.5, 0.5)


@given(shapes, st.integers(1, 40))
@pytest.mark.fault("accumulation changes the loss")
def test_cutting_keeps_every_token_once_and_the_weights(pairs: list[tuple[int, int]], budget: int):
    rollouts = [rollout(p, r, i) for i, (p, r) in enumerate(pairs)]
    rows = [[float(t) for t in r.tokens] for r in rollouts]
    batches = pack(rollouts, token_mean(rollouts), budget, same=rows)
    assert sum(float(b.weight.sum()) for b in batches) == pytest.approx(1.0, abs=1e-5)
    trained = [t for b in batches for t in b.tokens[b.loss_mask].tolist()]
    assert sorted(trained) == sorted(t for r in rollouts for t, w in zip(r.tokens, r.loss_mask, strict=True) if w)
    for batch in batches:
        assert torch.equal(batch["same"], batch.tokens.float())
        assert torch.equal(batch.tokens % 1000, batch.positions)
        assert len(batch.lengths) == 1 or len(batch.lengths) * max(batch.lengths) <= budget


@given(shapes, st.integers(1, 40))
def test_pack_for_scoring_gives_the_index_of_each_sequence(pairs: list[tuple[int, int]], budget: int):
    rollouts = [rollout(p, r, i) for i, (p, r) in enumerate(pairs)]
    found = {}
    for members, batch in pack_for_scoring(rollouts, budget):
        for i, tokens in zip(members, batch.tokens.split(batch.lengths), strict=True):
            found[i] = tuple(tokens.tolist())
        assert float(batch.weight.sum()) == 0.0
    assert found == {i: r.tokens for i, r in enumerate(rollouts)}


def test_denominators_stay_when_rollouts_are_left_out_before_packing():
    (batch,) = pack(THREE[:1], token_mean(THREE))
    assert float(batch.weight.sum()) == pytest.approx(3 / 6)


def test_the_first_token_is_never_trained_because_nothing_predicts_it():
    whole = Rollout(PROBLEM, Key(0, "test"), (5, 6, 7), (True,) * 3, (NAN,) * 3)
    (batch,) = pack([whole], token_mean([whole]), prompts=False)
    assert num_targets(whole) == 2
    assert batch.loss_mask.tolist() == [False, True, True]
    assert batch.weight.tolist() == [0, 0.5, 0.5]


def test_without_leaves_out_a_rollout_altogether():
    index = [[i] * len(r) for i, r in enumerate(THREE)]
    (batch,) = pack(THREE, without(token_mean(THREE), [THREE[0]]), index=index)
    assert batch.lengths == (2, 6)
    assert set(batch["index"].tolist()) == {1, 2}
    assert float(batch.weight.max()) == pytest.approx(1 / 6)


def test_rows_may_be_arrays():
    rows = [np.arange(len(r), dtype=np.float64) for r in THREE]
    (batch,) = pack(THREE, token_mean(THREE), index=rows)
    assert torch.equal(batch["index"], batch.positions.float())
    assert batch["index"].dtype == torch.float32


def test_a_long_rollout_is_a_batch_of_its_own():
    rollouts = [rollout(2, 50, 0), rollout(2, 2, 1), rollout(2, 2, 2)]
    assert [b.lengths for b in pack(rollouts, token_mean(rollouts), microbatch_tokens=10)] == [(4, 4), (52,)]


def test_to_moves_all_tensors_and_columns():
    (batch,) = pack(THREE, token_mean(THREE), advantage=[[0.0] * len(r) for r in THREE])
    moved = batch.to("meta")
    tensors = (moved.tokens, moved.positions, moved.sequence, moved.loss_mask, moved.weight, moved["advantage"])
    assert {t.device.type for t in tensors} == {"meta"}


def test_a_missing_column_is_named_with_those_packed():
    (batch,) = pack(THREE, token_mean(THREE), advantage=[[0.0] * len(r) for r in THREE])
    with pytest.raises(SchoolError, match='"reference".*its columns: advantage'):
        batch["reference"]


@pytest.mark.fault("mask all zero")
def test_rollouts_without_a_token_to_learn_are_refused():
    with pytest.raises(SchoolError, match="nothing to learn from: 2 rollouts"):
        pack([rollout(3, 0), rollout(2, 0)], lambda r: 1.0)


def test_no_rollouts_at_all_are_refused():
    with pytest.raises(SchoolError, match="nothing to learn from"):
        pack([], token_mean([]))


@pytest.mark.fault("mask all zero")
def test_rollouts_that_are_all_left_out_are_refused():
    with pytest.raises(SchoolError, match="all 3 rollouts have weight 0"):
        pack(THREE, without(token_mean(THREE), THREE))


@pytest.mark.fault("mask all one")
def test_a_loss_mask_that_covers_the_prompts_is_refused():
    with pytest.raises(SchoolError, match="also the prompts"):
        pack([rollout(0, 3)], lambda r: 1.0)


def test_a_rollout_without_tokens_cannot_be_scored():
    with pytest.raises(SchoolError, match="p1 has no tokens"):
        list(pack_for_scoring([*THREE, rollout(0, 0)]))


def test_a_rollout_without_tokens_is_left_out_of_updates():
    (batch,) = pack([rollout(0, 0), *THREE], token_mean(THREE))
    assert batch.lengths == (2, 5, 6)


def test_a_row_of_the_wrong_length_is_named():
    rows = [[0.0] * 5, [0.0] * 3, [0.0] * 6]
    with pytest.raises(
        SchoolError, match='row 1 of "advantage" has 3 numbers, but its rollout has 2 tokens .problem p1, sample 1'
    ):
        pack(THREE, token_mean(THREE), advantage=rows)


def test_a_missing_row_is_refused():
    with pytest.raises(SchoolError, match='"advantage" has 2 rows for 3 rollouts'):
        pack(THREE, token_mean(THREE), advantage=[[0.0] * 5, [0.0] * 2])
