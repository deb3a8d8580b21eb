"""Bookkeeping of the generator: which rollout has which slot, what was sampled there, and which requests wait.

S slots, the first `busy` of them taken.
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
from schoolhouse.types import FinishReason, Rollout, SchoolError

NextTurn = Callable[[Rollout], tuple[Rollout, int] | None]
"""Called with a rollout whose turn ended. Gives the prefix of its next turn (the same tokens, or more context behind
them) and the tokens that may be sampled next; None: the rollout is complete."""


class Request(NamedTuple):
    """A prefix to extend while others are being extended."""

    rollout: Rollout
    max_new_tokens: int
    params: SamplingParams


class SlotTable:
    """Rollouts are numbered as they come. What concerns a slot is a row of a table, moved with it.

    max_new_tokens    for each rollout's first turn
    default_params    of sampling, unless a request has its own
    version           of the policy, for what is sampled here
    max_total_tokens  that all turns of a rollout may take behind its first prefix
    max_seq_len       tokens that the model reads
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
        self.default_params, self.version = default_params, policy_version
        self.max_total_tokens, self.max_seq_len = max_total_tokens, max_seq_len
        self.waiting = deque(range(len(rollouts)))
        self.num_requests = len(rollouts)
        self._prefix = dict(enumerate(rollouts))  # what each rollout's present turn began with
        self._prompt_tokens = dict(enumerate(map(len, rollouts)))
        self._limits, self._params = dict(enumerate(max_new_tokens)), dict[int, SamplingParams]()
        self._unread: dict[int, deque[int]] = {}  # context ids that the model has not read yet
        self.tokens = torch.zeros(num_slots, max_total_tokens, dtype=torch.long, device=device)  # [S, max_total_tokens]
        self.logprobs = torch.zeros(num_slots, max_total_tokens, device=device)  # [S, max_total_tokens]
        self.count = torch.zeros(num_slots, dtype=torch.long, device=device)  # [S] tokens sampled
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
        """Give the free slots behind the busy ones to waiting rollouts, as far as they go. Gives their prefixes."""
        admitted = [self.waiting.popleft() for _ in range(min(free, len(self.waiting)))]
        at = slice(busy, busy + len(admitted))
        self.owner[at], self.count[at] = admitted, 0
        self.limit[at] = torch.tensor([self._limits.pop(i) for i in admitted], device=self.limit.device)
        self.key_digest[at] = [digest(self._prefix[i].key) for i in admitted]
        return [self._prefix[i].tokens for i in admitted]

    def uniforms(self, busy: int) -> Tensor:
        """The uniform number for each slot's next token: [S]. It depends on the rollout's key and the token's place."""
        drawn = uniforms(self.key_digest[:busy], self.count[:busy].cpu().numpy())
        return torch.from_numpy(drawn).to(self.tokens.device)

    def sampling_params(self, busy: int) -> list[SamplingParams]:
        """One set of parameters for all slots, or one for each."""
        if not self._params:
            return [self.default_params]
        return [self._params.get(i, self.default_params) for i in self.owner[:busy].tolist()]

    def append(self, token_S: Tensor, logprob_S: Tensor) -> Tensor:
        """Store sampled tokens: [S] each. Gives which slots sampled: [S].

        Where context is still unread, its next token takes the place of the sampled one, in token_S too.
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

    def finish_turn(self, slot: int, reason: FinishReason, next_turn: NextTurn | None) -> Rollout | None:
        """End the turn in a slot. Gives the rollout if it is complete; None where it goes on in its slot."""
        n, i = int(self.count[slot]), int(self.owner[slot])
        tokens, logprobs = self.tokens[slot, :n].tolist(), self.logprobs[slot, :n].tolist()
        ended = self._prefix[i].append_sampled(tokens, logprobs, reason, self.version)
        more = self._next_prefix(ended, self._prompt_tokens[i], next_turn)
        if more is None:
            del self._prefix[i], self._prompt_tokens[i]
            self._params.pop(i, None)
            return ended
        longer, max_new_tokens = more
        if len(longer) > len(ended):
            self._prefix[i], self._unread[i] = longer, deque(longer.tokens[len(ended) :])
            self.count[slot], self.key_digest[slot] = 0, digest(longer.key)
        self.limit[slot] = self.count[slot] + max_new_tokens
        return None

    def _next_prefix(
        self, ended: Rollout, prompt_tokens: int, next_turn: NextTurn | None
    ) -> tuple[Rollout, int] | None:
        """The prefix that `next_turn` gives, and how many tokens may follow it within the limits."""
        more = None if next_turn is None else next_turn(ended)
        if more is None:
            return None
        longer, max_new_tokens = more
        if longer.tokens[: len(ended)] != ended.tokens:
            raise SchoolError(
                f"a rollout of problem {ended.problem.id} goes on from other tokens than it had: tokens in a kept cache "
                "cannot be changed; add tokens behind them (Rollout.append_context), or extend the rollout anew"
            )
        limit = min(self.max_total_tokens, self.max_seq_len - prompt_tokens)
        max_new_tokens = min(max_new_tokens, limit - (len(longer) - prompt_tokens))
        return (longer, max_new_tokens) if max_new_tokens > 0 else None

    def compact(self, order: Tensor) -> None:
        """Keep the slots at these places, in this order: [S]."""
        places = order.cpu().numpy()
        for rows in (self.tokens, self.logprobs, self.count, self.limit):
            rows[: len(order)] = rows[order]
        self.owner[: len(order)], self.key_digest[: len(order)] = self.owner[places], self.key_digest[places]
