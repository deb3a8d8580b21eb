"""Pack rollouts and their rows of numbers into batches. A batch holds sequences end to end, without padding.

The loss of an update is the sum of weight x loss over all tokens of all batches. The denominator of the loss is
computed over the whole step *before* rollouts are split into batches or left out. The weight of each token is already
divided by the denominator, so micro-batches and ranks only have to sum their losses.

In the shapes of tensors, T is the number of tokens of a rollout, N the number of tokens of a batch, and S the number of
sequences of a batch.
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
    """A batch of whole sequences, stored end to end. The method `to` copies the batch to a device.

    `tokens` has the token ids, int64 [N].
    `positions` has the position of each token in its sequence, starting at 0, int64 [N].
    `sequence` has the index of the sequence of each token, from 0 to S-1, int64 [N].
    `loss_mask` is True for tokens that can be learned, bool [N]. The policy (or the imitated teacher) wrote the tokens
    in the loss mask. The first token of a sequence is never in the loss mask.
    `weight` has the weight of each token in the loss, float32 [N]. The weight of a token outside the loss mask is 0.
    `lengths` has the number of tokens of each sequence, [S].
    `columns` maps names to other numbers of each token, float32 [N]. For example, `batch["advantage"]` is one
    column.
    `candidates` is None, or has the candidates of the M tokens in the loss mask, in their order: token ids, int64
    [M, K], and log-probabilities of the sampler, float32 [M, K].
    """

    tokens: Tensor
    positions: Tensor
    sequence: Tensor
    loss_mask: Tensor
    weight: Tensor
    lengths: tuple[int, ...]
    columns: Mapping[str, Tensor] = field(default_factory=dict)
    candidates: tuple[Tensor, Tensor] | None = None

    def __getitem__(self, name: str) -> Tensor:
        """Return the column `name`, [N]. Raises SchoolError if the batch was packed without this column."""
        if name not in self.columns:
            packed = ", ".join(self.columns) or "none"
            raise SchoolError(
                f'the loss needs the column "{name}", but the batch does not have it (its columns: {packed}); '
                f"call pack(..., {name}=rows) with one row per rollout"
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
            candidates=self.candidates and (self.candidates[0].to(device), self.candidates[1].to(device)),
        )


@dataclass(frozen=True)
class Scores:
    """The log-probabilities and entropies of a batch. The log-probabilities and entropies outside the loss mask have no
    meaning.

    `logprob` has the log-probability of each token, given the earlier tokens of its sequence, [N].
    `entropy` has the entropy of the distribution from which each token was drawn, without gradient, [N].
    `candidates` has the log-probabilities of the batch's candidates, with gradient, [M, K], or None without candidates.
    """

    logprob: Tensor
    entropy: Tensor
    candidates: Tensor | None = None


# --- the weight of a token: denominators over `scope`, which is all rollouts of the step, also those left out later


def num_targets(rollout: Rollout) -> int:
    """Count the tokens of a rollout that can be learned. The first token of a rollout cannot be learned."""
    return sum(rollout.loss_mask[1:])


def token_mean(scope: Sequence[Rollout]) -> TokenWeight:
    """Give all trained tokens of the step the same weight (DAPO, Yu et al. 2025, arXiv 2503.14476)."""
    weight = 1.0 / max(sum(map(num_targets, scope)), 1)
    return lambda rollout: weight


def sequence_mean(scope: Sequence[Rollout]) -> TokenWeight:
    """Give all rollouts the same weight. The weight of a rollout is divided equally among its trained tokens.

    In GRPO, the factor 1/|o| is this division (arXiv 2402.03300, eq. 3).
    """
    count = max(len(scope), 1)
    return lambda rollout: 1.0 / (count * max(num_targets(rollout), 1))


def sequence_sum(scope: Sequence[Rollout]) -> TokenWeight:
    """Treat each rollout as one action: its log-probability is the sum over its tokens.

    REINFORCE and RLOO (arXiv 2402.14740) use the weights of `sequence_sum`.
    """
    weight = 1.0 / max(len(scope), 1)
    return lambda rollout: weight


def constant(scope: Sequence[Rollout], length: int) -> TokenWeight:
    """The weights of `sequence_sum`, divided by the maximum completion length `length` in tokens.

    Dr. GRPO (arXiv 2503.20783) uses these weights.
    """
    weight = 1.0 / (max(len(scope), 1) * length)
    return lambda rollout: weight


LossAggregation = Literal["token_mean", "sequence_mean", "sequence_sum", "constant"]


def loss_aggregation(name: LossAggregation, scope: Sequence[Rollout], length: int) -> TokenWeight:
    """Return the token weights that a name in the config selects.

    With the name `constant`, the weights are divided by `length`, the maximum completion length in tokens.
    """
    if name == "constant":
        return constant(scope, length)
    return {"token_mean": token_mean, "sequence_mean": sequence_mean, "sequence_sum": sequence_sum}[name](scope)


def without(token_weight: TokenWeight, excluded: Collection[Rollout]) -> TokenWeight:
    """Return the given token weights, but with weight 0 for the excluded rollouts. The function `pack` leaves out
    rollouts with weight 0.

    Two rollouts count as the same rollout if they have the same key.
    """
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

    Sequences are sorted by length, so that attention needs little padding. Sequences are never cut. Rollouts with
    weight 0 are left out.

    `microbatch_tokens` is the maximum number of tokens in a batch, including the padding inside attention. A rollout
    that is longer than `microbatch_tokens` gets its own batch.
    `prompts` must be False if the rollouts have no prompts (pretraining). With prompts=False, all tokens can be in the
    loss mask.
    `share_prompts` must be True if the policy reads a prompt once for all its rollouts (`Policy.shares_prompts`). With
    share_prompts=True, the rollouts of a prompt stay side by side, and the tokens of the prompt count once.

    Raises SchoolError if a row does not fit its rollout, or if no token can be learned. Also raises SchoolError if
    `prompts` is True, but every token of every rollout is in the loss mask.
    """
    _check_rows(rollouts, rows)
    if not any(map(num_targets, rollouts)):
        raise SchoolError(
            f"nothing to learn from: {len(rollouts)} rollouts with {sum(map(len, rollouts))} tokens "
            "have no token in their loss masks; check how prompts and completions are joined"
        )
    if prompts and all(all(rollout.loss_mask) for rollout in rollouts):
        raise SchoolError(
            f"every token of all {len(rollouts)} rollouts is in the loss mask, also the prompts; "
            "set loss_mask=False for prompt tokens, or pass prompts=False if there are no prompts (pretraining)"
        )
    weights = [token_weight(rollout) for rollout in rollouts]
    kept = [i for i, rollout in enumerate(rollouts) if weights[i] and num_targets(rollout)]
    if not kept:
        raise SchoolError(
            f"nothing to learn from: all {len(rollouts)} rollouts have weight 0; if they were truncated, allow longer "
            "completions; if they were ungraded, read the reasons in their verdicts"
        )
    split = _split_by_prompt if share_prompts else _split_by_length
    return [
        replace(_make_batch(rollouts, weights, rows, part), candidates=_candidates([rollouts[i] for i in part]))
        for part in split(rollouts, kept, microbatch_tokens)
    ]


def pack_for_scoring(rollouts: Sequence[Rollout], microbatch_tokens: int = 4_096) -> Iterator[tuple[list[int], Batch]]:
    """Pack rollouts into batches for *scoring*, where all weights are 0.

    Each batch is returned with the indices of its sequences in `rollouts`. Raises SchoolError if a rollout has no
    tokens.
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
            raise SchoolError(f'"{name}" has {len(column)} rows for {len(rollouts)} rollouts; give one row per rollout')
        for i, (row, rollout) in enumerate(zip(column, rollouts, strict=True)):
            if len(row) != len(rollout):
                raise SchoolError(
                    f'row {i} of "{name}" has {len(row)} numbers, but its rollout has {len(rollout)} tokens '
                    f"(problem {rollout.problem.id}, sample {rollout.key.sample}); give one number per token"
                )


def _split_by_length(rollouts: Sequence[Rollout], kept: Sequence[int], token_budget: int) -> Iterator[list[int]]:
    """Split the indices of the rollouts into parts, the shortest rollouts first.

    In each part, the number of sequences times the length of the longest sequence is at most `token_budget`.
    """
    part: list[int] = []
    for i in sorted(kept, key=lambda i: len(rollouts[i])):
        if part and (len(part) + 1) * len(rollouts[i]) > token_budget:
            yield part
            part = []
        part.append(i)
    if part:
        yield part


def _split_by_prompt(rollouts: Sequence[Rollout], kept: Sequence[int], token_budget: int) -> Iterator[list[int]]:
    """Split the indices of the rollouts into parts, so that rollouts with equal prompts are side by side.

    Each part has at most `token_budget` tokens; the tokens of a shared prompt count once.
    """
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


def _candidates(rollouts: Sequence[Rollout]) -> tuple[Tensor, Tensor] | None:
    """Join the candidates of rollouts end to end: ids [M, K] and log-probabilities [M, K].

    Returns None if a rollout has no candidates.
    """
    rows = [rollout.candidates for rollout in rollouts if rollout.candidates]
    if len(rows) < len(rollouts):
        return None
    ids, logprob = (torch.from_numpy(np.concatenate(column)) for column in zip(*rows, strict=True))
    return ids.long(), logprob


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
    """Join rows end to end. Lists are read in one pass, which is several times faster than making one array per row."""
    if isinstance(rows[0], np.ndarray):
        return np.concatenate(rows).astype(dtype)
    return np.fromiter(chain.from_iterable(rows), dtype, count=sum(map(len, rows)))
