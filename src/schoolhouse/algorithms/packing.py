"""Pack rollouts and their rows into batches: sequences end to end, without padding; each number is at its own token.

The loss of an update is the sum of weight x loss over all tokens of all batches. The denominator is computed over the
whole step *before* rollouts are split or left out. The denominator is part of the weight of each token, so
micro-batches and ranks only have to sum.

T tokens of a rollout, N tokens of a batch, S sequences of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from schoolhouse.types import Rollout, SchoolError

MIN_SHARED = 16
"""Prompts with fewer tokens are not shared."""

Row = Sequence[float] | np.ndarray
"""Numbers of one rollout, [T]."""

TokenWeight = Callable[[Rollout], float]
"""The weight of one trained token of a rollout in the loss of the whole update."""


@dataclass(frozen=True)
class Batch:
    """Whole sequences end to end. `to` copies the batch to a device.

    tokens    [N] int64
    positions [N] int64, starting at 0 in each sequence
    sequence  [N] int64, the sequence of each token, 0 to S-1
    loss_mask [N] bool, True if the token can be learned: the policy (or the imitated teacher) wrote the token, and the
                  token is not the first of its sequence
    weight    [N] float32, 0 outside the loss mask
    lengths   [S] number of tokens of each sequence
    columns   named numbers [N] float32; `batch["advantage"]` gives one column
    """

    tokens: Tensor
    positions: Tensor
    sequence: Tensor
    loss_mask: Tensor
    weight: Tensor
    lengths: tuple[int, ...]
    columns: Mapping[str, Tensor] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Tensor:
        """A column, [N]. Raises SchoolError if it was not packed; the message names it and the packed columns."""
        if name not in self.columns:
            packed = ", ".join(self.columns) or "none"
            raise SchoolError(
                f'the loss needs the column "{name}", which was not packed (packed: {packed}); '
                f"pass pack(..., {name}=rows), one row per rollout"
            )
        return self.columns[name]

    def to(self, device: torch.device | str) -> Batch:
        return replace(
            self,
            tokens=self.tokens.to(device),
            positions=self.positions.to(device),
            sequence=self.sequence.to(device),
            loss_mask=self.loss_mask.to(device),
            weight=self.weight.to(device),
            columns={name: column.to(device) for name, column in self.columns.items()},
        )


@dataclass(frozen=True)
class Scores:
    """Log-probabilities and entropies of a batch. The numbers outside the loss mask have no meaning.

    logprob  [N] log-probability of each token, given the tokens before it
    entropy  [N] entropy of the distribution over this token (without gradient)
    """

    logprob: Tensor
    entropy: Tensor


# --- the weight of a token: denominators over `scope`, which is all rollouts of the step, also those left out later


def num_targets(rollout: Rollout) -> int:
    """Number of tokens that can be learned: tokens in the loss mask, without the first token of the rollout."""
    return sum(rollout.loss_mask[1:])


def token_mean(scope: Sequence[Rollout]) -> TokenWeight:
    """All trained tokens of the step have the same weight (DAPO, Yu et al. 2025, arXiv 2503.14476)."""
    weight = 1.0 / max(sum(map(num_targets, scope)), 1)
    return lambda rollout: weight


def sequence_mean(scope: Sequence[Rollout]) -> TokenWeight:
    """All rollouts have the same weight, split evenly over their tokens: 1/|o| in GRPO (arXiv 2402.03300, eq. 3)."""
    count = max(len(scope), 1)
    return lambda rollout: 1.0 / (count * max(num_targets(rollout), 1))


def sequence_sum(scope: Sequence[Rollout]) -> TokenWeight:
    """A rollout is one action: its log-probability is the sum over tokens. REINFORCE, RLOO (arXiv 2402.14740)."""
    weight = 1.0 / max(len(scope), 1)
    return lambda rollout: weight


def constant(scope: Sequence[Rollout], length: int) -> TokenWeight:
    """`sequence_sum` divided by the generation budget `length` in tokens: Dr. GRPO (arXiv 2503.20783)."""
    weight = 1.0 / (max(len(scope), 1) * length)
    return lambda rollout: weight


LossAggregation = Literal["token_mean", "sequence_mean", "sequence_sum", "constant"]


def loss_aggregation(name: LossAggregation, scope: Sequence[Rollout], length: int) -> TokenWeight:
    """The token weights for the name in a config. `constant` divides by `length`, the generation budget in tokens."""
    if name == "constant":
        return constant(scope, length)
    return {"token_mean": token_mean, "sequence_mean": sequence_mean, "sequence_sum": sequence_sum}[name](scope)


def without(token_weight: TokenWeight, excluded: Collection[Rollout]) -> TokenWeight:
    """The same weights, but 0 for the excluded rollouts. `pack` leaves these out. Rollouts are identified by keys."""
    keys = {rollout.key for rollout in excluded}
    return lambda rollout: 0.0 if rollout.key in keys else token_weight(rollout)


# --- packing


def pack(
    rollouts: Sequence[Rollout],
    token_weight: TokenWeight,
    microbatch_tokens: int = 4_096,
    *,
    prompts: bool = True,
    share_prompts: bool = False,
    **rows: Sequence[Row],
) -> list[Batch]:
    """Pack rollouts and their rows (one row [T] per rollout, in the same order) into batches for `Policy.update`.

    Sequences are sorted by length, so that attention needs little padding. Sequences are never cut. Rollouts of
    weight 0 are left out.

    microbatch_tokens  maximum number of tokens in a batch, with the padding inside attention; a longer rollout gets its
                       own batch
    prompts            False if the rollouts have no prompts (pretraining): every token may be in the loss mask
    share_prompts      True for a policy that reads a prompt once for all its rollouts (`Policy.shares_prompts`): these
                       rollouts stay side by side, and the tokens of the prompt count once

    Raises SchoolError if a row does not fit its rollout, if no token can be learned, or if every token of every rollout
    would be learned although there should be prompts.
    """
    _check_rows(rollouts, rows)
    if not any(map(num_targets, rollouts)):
        raise SchoolError(
            f"nothing to learn from: in {len(rollouts)} rollouts ({sum(map(len, rollouts))} tokens) "
            "no token is in a loss mask; look at how prompts and completions were put together"
        )
    if prompts and all(all(rollout.loss_mask) for rollout in rollouts):
        raise SchoolError(
            f"every token of all {len(rollouts)} rollouts is in the loss mask, prompts included; "
            "mark prompts with loss_mask=False, or pass prompts=False where there are none (pretraining)"
        )
    weights = [token_weight(rollout) for rollout in rollouts]
    kept = [i for i, rollout in enumerate(rollouts) if weights[i] and num_targets(rollout)]
    if not kept:
        raise SchoolError(
            f"nothing to learn from: all {len(rollouts)} rollouts were left out (weight 0); "
            "if they were cut off or ungraded, allow longer completions or look at the reasons of the verdicts"
        )
    split = _split_by_prompt if share_prompts else _split_by_length
    return [_make_batch(rollouts, weights, rows, part) for part in split(rollouts, kept, microbatch_tokens)]


def pack_for_scoring(rollouts: Sequence[Rollout], microbatch_tokens: int = 4_096) -> Iterator[tuple[list[int], Batch]]:
    """Batches for *scoring* (all weights are 0), each with the indices of its sequences in `rollouts`.

    Raises SchoolError for a rollout without tokens.
    """
    for rollout in rollouts:
        if not len(rollout):
            raise SchoolError(f"a rollout of problem {rollout.problem.id} has no tokens; give it a prompt")
    weights = [0.0] * len(rollouts)
    for part in _split_by_length(rollouts, range(len(rollouts)), microbatch_tokens):
        yield part, _make_batch(rollouts, weights, {}, part)


def _check_rows(rollouts: Sequence[Rollout], rows: Mapping[str, Sequence[Row]]) -> None:
    for name, column in rows.items():
        if len(column) != len(rollouts):
            raise SchoolError(f'"{name}" has {len(column)} rows for {len(rollouts)} rollouts; give one row each')
        for i, (row, rollout) in enumerate(zip(column, rollouts, strict=True)):
            if len(row) != len(rollout):
                raise SchoolError(
                    f'row {i} of "{name}" has {len(row)} numbers, its rollout {len(rollout)} tokens '
                    f"(problem {rollout.problem.id}, sample {rollout.key.sample}); give one number per token"
                )


def _split_by_length(rollouts: Sequence[Rollout], kept: Sequence[int], token_budget: int) -> Iterator[list[int]]:
    """Indices of rollouts in parts, shortest first. In a part, sequences x longest sequence is within the budget."""
    part: list[int] = []
    for i in sorted(kept, key=lambda i: len(rollouts[i])):
        if part and (len(part) + 1) * len(rollouts[i]) > token_budget:
            yield part
            part = []
        part.append(i)
    if part:
        yield part


def _split_by_prompt(rollouts: Sequence[Rollout], kept: Sequence[int], token_budget: int) -> Iterator[list[int]]:
    """Indices of rollouts in parts, with equal prompts side by side. In a part, all tokens are within the budget."""
    prompt = {i: rollouts[i].tokens[: rollouts[i].loss_mask.index(True)] for i in kept}
    part: list[int] = []
    used = 0
    for i in sorted(kept, key=lambda i: prompt[i]):
        shared = part and prompt[part[-1]] == prompt[i] and len(prompt[i]) >= MIN_SHARED
        more = len(rollouts[i]) - (len(prompt[i]) if shared else 0)
        if part and used + more > token_budget:
            yield part
            part, used, more = [], 0, len(rollouts[i])
        part.append(i)
        used += more
    if part:
        yield part


def _make_batch(
    rollouts: Sequence[Rollout], weights: Sequence[float], rows: Mapping[str, Sequence[Row]], part: list[int]
) -> Batch:
    lengths = np.array([len(rollouts[i]) for i in part])
    sequence_N = np.repeat(np.arange(len(part)), lengths)
    start_S = np.cumsum(lengths) - lengths
    positions_N = np.arange(len(sequence_N)) - start_S[sequence_N]
    mask_N = _concatenate([rollouts[i].loss_mask for i in part], np.bool_)
    mask_N[start_S] = False
    weight_N = np.where(mask_N, np.array([weights[i] for i in part])[sequence_N], 0.0)
    return Batch(
        tokens=torch.from_numpy(_concatenate([rollouts[i].tokens for i in part], np.int64)),
        positions=torch.from_numpy(positions_N),
        sequence=torch.from_numpy(sequence_N),
        loss_mask=torch.from_numpy(mask_N),
        weight=torch.from_numpy(weight_N.astype(np.float32)),
        lengths=tuple(lengths.tolist()),
        columns={
            name: torch.from_numpy(_concatenate([column[i] for i in part], np.float32)) for name, column in rows.items()
        },
    )


def _concatenate(rows: Sequence[Row], dtype: type[np.generic]) -> np.ndarray:
    """Join rows end to end. One pass over plain numbers is several times faster than one array per row."""
    if isinstance(rows[0], np.ndarray):
        return np.concatenate(rows).astype(dtype)
    return np.fromiter(chain.from_iterable(rows), dtype, count=sum(map(len, rows)))
