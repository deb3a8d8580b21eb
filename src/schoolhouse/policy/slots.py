"""The slots of the generator (rows of the KV cache), and the requests that wait for a slot.

A slot holds a rollout and its sampled tokens.

In names of tensors, S stands for slots. The first `busy` slots are in use.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from schoolhouse.policy.sampling import SamplingParams
from schoolhouse.randomness import digest, uniforms
from schoolhouse.types import Candidates, FinishReason, Rollout, SchoolError

NextTurn = Callable[[Rollout], tuple[Rollout, int] | None]
"""A function that is called with a rollout whose turn has ended. The function returns the prefix of the next turn (the
same tokens, and possibly more context after them) and the maximum number of tokens to sample. If the rollout is
complete, the function returns None."""


class Request(NamedTuple):
    """A request to extend one prefix, with its own sampling parameters.

    Requests can arrive while other rollouts are extended.
    """

    rollout: Rollout
    max_new_tokens: int
    params: SamplingParams


class SlotTable:
    """A table with the rollouts of all slots. Each rollout gets a number, in the order in which rollouts are added.

    Each slot has one row of data. If a rollout moves to another slot, its row moves too.

    `max_new_tokens`: the limit of sampled tokens in the first turn of each rollout.
    `default_params`: the sampling parameters of rollouts that were not added as a `Request`.
    `policy_version`: the version of the policy, which is stored in each rollout.
    `max_total_tokens`: the limit of tokens in all turns of a rollout together, without its first prefix.
    `max_seq_len`: the length of the longest sequence that the model can read, in tokens.
    """

    def __init__(
        self,
        rollouts: Sequence[Rollout],
        max_new_tokens: Sequence[int],
        default_params: SamplingParams,
        policy_version: int,
        num_slots: int,
        max_total_tokens: int,
        max_seq_len: int,
        device: torch.device,
    ) -> None:
        self.default_params, self.policy_version = default_params, policy_version
        self.max_total_tokens, self.max_seq_len = max_total_tokens, max_seq_len
        self.waiting = deque(range(len(rollouts)))
        self.num_requests = len(rollouts)
        self._prefix = dict(enumerate(rollouts))  # of the current turn
        self._prompt_tokens = dict(enumerate(map(len, rollouts)))  # length of the first prefix
        self._limits, self._params = dict(enumerate(max_new_tokens)), dict[int, SamplingParams]()
        self._unread: dict[int, deque[int]] = {}  # ids of added context that the model has not read yet
        self._candidates: dict[int, list[tuple[np.ndarray, np.ndarray]]] = {}  # rows [K] of each sampled token
        self.tokens = torch.zeros(num_slots, max_total_tokens, dtype=torch.long, device=device)  # [S, max_total_tokens]
        self.logprobs = torch.zeros(num_slots, max_total_tokens, device=device)  # [S, max_total_tokens]
        self.count = torch.zeros(num_slots, dtype=torch.long, device=device)  # [S] tokens sampled so far
        self.limit = torch.zeros(num_slots, dtype=torch.long, device=device)  # [S] tokens that may be sampled
        self.owner = np.zeros(num_slots, dtype=np.int64)  # [S] number of the rollout in this slot
        self.key_digest = np.zeros(num_slots, dtype=np.uint64)  # [S] digest of its key

    def add(self, requests: Sequence[Request]) -> None:
        """Queue more requests."""
        for request in requests:
            number = self.num_requests
            self._prefix[number], self._prompt_tokens[number] = request.rollout, len(request.rollout)
            self._limits[number], self._params[number] = request.max_new_tokens, request.params
            self.waiting.append(number)
            self.num_requests += 1

    def admit(self, busy: int, free: int) -> list[tuple[int, ...]]:
        """Move as many waiting rollouts as possible into the free slots.

        Returns the prefix tokens of the rollouts that were moved.
        """
        admitted = [self.waiting.popleft() for _ in range(min(free, len(self.waiting)))]
        slots = slice(busy, busy + len(admitted))
        self.owner[slots], self.count[slots] = admitted, 0
        self.limit[slots] = torch.tensor([self._limits.pop(number) for number in admitted], device=self.limit.device)
        self.key_digest[slots] = [digest(self._prefix[number].key) for number in admitted]
        return [self._prefix[number].tokens for number in admitted]

    def uniforms(self, busy: int) -> Tensor:
        """The uniform random numbers [S] for the next token of each slot.

        The random number of a slot depends only on the rollout's key and on the number of tokens that the rollout has
        sampled.
        """
        numbers = uniforms(self.key_digest[:busy], self.count[:busy].cpu().numpy())
        return torch.from_numpy(numbers).to(self.tokens.device)

    def sampling_params(self, busy: int) -> list[SamplingParams]:
        """The sampling parameters: one set for all slots, or one set for each slot."""
        if not self._params:
            return [self.default_params]
        return [self._params.get(number, self.default_params) for number in self.owner[:busy].tolist()]

    def append(self, token_S: Tensor, logprob_S: Tensor) -> Tensor:
        """Store the sampled tokens [S] and their log-probabilities [S].

        Returns for each slot whether its token was sampled.

        The result is False for a slot that still reads added context (text that the policy did not sample). For a slot
        that reads added context, `token_S` is changed to the next token of the context. The token count of a slot that
        reads added context does not change.
        """
        busy, capacity = len(token_S), self.tokens.shape[1]
        sampled_S = torch.ones(busy, dtype=torch.bool, device=token_S.device)
        for slot in [at for at in range(busy) if self.owner[at] in self._unread] if self._unread else ():
            unread = self._unread[self.owner[slot]]
            token_S[slot], sampled_S[slot] = unread.popleft(), False
            if not unread:
                del self._unread[self.owner[slot]]
        place_S1 = self.count[:busy, None].clamp_max(capacity - 1)
        self.tokens[:busy].scatter_(1, place_S1, token_S[:, None])
        self.logprobs[:busy].scatter_(1, place_S1, logprob_S[:, None])
        self.count[:busy] += sampled_S
        return sampled_S

    def keep_candidates(self, sampled_S: Tensor, id_SK: Tensor, logprob_SK: Tensor) -> None:
        """Store the most likely tokens of the step for each slot that has sampled a token."""
        ids, logprobs = id_SK.int().cpu().numpy(), logprob_SK.cpu().numpy()
        for slot in sampled_S.nonzero()[:, 0].tolist():
            self._candidates.setdefault(int(self.owner[slot]), []).append((ids[slot], logprobs[slot]))

    def finish_turn(self, slot: int, reason: FinishReason, next_turn: NextTurn | None) -> Rollout | None:
        """End the turn in a slot. Returns the rollout if the rollout is complete, and None if its next turn begins."""
        count, number = int(self.count[slot]), int(self.owner[slot])
        tokens, logprobs = self.tokens[slot, :count].tolist(), self.logprobs[slot, :count].tolist()
        rows = self._candidates.pop(number, None)
        candidates = Candidates(*map(np.stack, zip(*rows, strict=True))) if rows else None
        rollout = self._prefix[number].append_sampled(tokens, logprobs, reason, self.policy_version, candidates)
        following = self._next_prefix(rollout, self._prompt_tokens[number], next_turn)
        if following is None:
            del self._prefix[number], self._prompt_tokens[number]
            self._params.pop(number, None)
            return rollout
        prefix, max_new_tokens = following
        if len(prefix) > len(rollout):
            self._prefix[number], self._unread[number] = prefix, deque(prefix.tokens[len(rollout) :])
            self.count[slot], self.key_digest[slot] = 0, digest(prefix.key)
        self.limit[slot] = self.count[slot] + max_new_tokens
        return None

    def _next_prefix(
        self, rollout: Rollout, prompt_tokens: int, next_turn: NextTurn | None
    ) -> tuple[Rollout, int] | None:
        """Call `next_turn`, and shorten its result to the token limits.

        Returns None if the limits leave no token for the next turn.
        """
        following = None if next_turn is None else next_turn(rollout)
        if following is None:
            return None
        prefix, max_new_tokens = following
        if prefix.tokens[: len(rollout)] != rollout.tokens:
            raise SchoolError(
                f"`next_turn` changed tokens of a rollout of problem {rollout.problem.id}, but these tokens are "
                "already in the KV cache: only add tokens after them (Rollout.append_context), or call `extend` again"
            )
        limit = min(self.max_total_tokens, self.max_seq_len - prompt_tokens)
        max_new_tokens = min(max_new_tokens, limit - (len(prefix) - prompt_tokens))
        return (prefix, max_new_tokens) if max_new_tokens > 0 else None

    def compact(self, order: Tensor) -> None:
        """Keep only the slots whose indices are in the tensor `order` [S], and reorder the slots as in `order`.

        All slots that are not in `order` are dropped.
        """
        places = order.cpu().numpy()
        for rows in (self.tokens, self.logprobs, self.count, self.limit):
            rows[: len(order)] = rows[order]
        self.owner[: len(order)], self.key_digest[: len(order)] = self.owner[places], self.key_digest[places]
