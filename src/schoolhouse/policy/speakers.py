"""Who speaks in which slot of the sampler, what has been said there, and who waits for one.

S slots, the first `busy` of them taken.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from schoolhouse.randomness import digest, uniforms
from schoolhouse.types import Finish, Rollout, SchoolError

Then = Callable[[Rollout], tuple[Rollout, int] | None]
"""Called with a rollout whose turn ended. Gives what it goes on from (the same, or longer by what others say now) and
how many tokens it may say next; None: it is done."""


class Drawing(NamedTuple):
    """How a token is drawn: see `sampler.choose`."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0


class Arrival(NamedTuple):
    """A prefix that comes while others are being extended."""

    rollout: Rollout
    length: int
    drawing: Drawing


class Speakers:
    """Rollouts are known by numbers, counted as they come. What concerns a slot is a row of a table, moved with it.

    room     tokens that all turns of a rollout may take behind its first prefix; `longest` what the model reads
    usual    how tokens are drawn, unless a rollout came with a way of its own
    version  of the policy, for what it says here
    """

    def __init__(
        self,
        rollouts: Sequence[Rollout],
        lengths: Sequence[int],
        usual: Drawing,
        version: int,
        slots: int,
        room: int,
        longest: int,
        device: torch.device,
    ) -> None:
        self.usual, self.version, self.room, self.longest = usual, version, room, longest
        self.waiting = deque(range(len(rollouts)))
        self.came = len(rollouts)
        self._begun = dict(enumerate(rollouts))  # what each rollout's present turn began with
        self._start = dict(enumerate(map(len, rollouts)))
        self._limits, self._drawings = dict(enumerate(lengths)), dict[int, Drawing]()
        self._unread: dict[int, deque[int]] = {}  # ids that others said and the model has not read yet
        self.said = torch.zeros(slots, room, dtype=torch.long, device=device)  # [S, room]
        self.sure = torch.zeros(slots, room, device=device)  # [S, room] log-probability of each
        self.count = torch.zeros(slots, dtype=torch.long, device=device)  # [S] tokens said
        self.limit = torch.zeros(slots, dtype=torch.long, device=device)  # [S] tokens it may say
        self.owner = np.zeros(slots, dtype=np.int64)  # [S] number of the rollout in this slot
        self.stream = np.zeros(slots, dtype=np.uint64)  # [S] digest of its key

    def come(self, arrivals: Sequence[Arrival]) -> None:
        """Others wait for a slot too."""
        for arrival in arrivals:
            self._begun[self.came], self._start[self.came] = arrival.rollout, len(arrival.rollout)
            self._limits[self.came], self._drawings[self.came] = arrival.length, arrival.drawing
            self.waiting.append(self.came)
            self.came += 1

    def enter(self, busy: int, free: int) -> list[tuple[int, ...]]:
        """Who waits takes the free slots behind the busy ones, as far as they go. Gives their prefixes."""
        enter = [self.waiting.popleft() for _ in range(min(free, len(self.waiting)))]
        at = slice(busy, busy + len(enter))
        self.owner[at], self.count[at] = enter, 0
        self.limit[at] = torch.tensor([self._limits.pop(i) for i in enter], device=self.limit.device)
        self.stream[at] = [digest(self._begun[i].key) for i in enter]
        return [self._begun[i].tokens for i in enter]

    def uniforms(self, busy: int) -> Tensor:
        """The uniform number for each slot's next token: [S]. It depends on the rollout's key and the token's place."""
        drawn = uniforms(self.stream[:busy], self.count[:busy].cpu().numpy())
        return torch.from_numpy(drawn).to(self.said.device)

    def ways(self, busy: int) -> list[Drawing]:
        """How tokens are drawn: one way for all slots, or one for each."""
        if not self._drawings:
            return [self.usual]
        return [self._drawings.get(i, self.usual) for i in self.owner[:busy].tolist()]

    def hear(self, token_S: Tensor, logprob_S: Tensor) -> Tensor:
        """Write down what was drawn: [S] each. Gives whether a slot spoke: [S].

        Where others' words are still unread, the next of them takes the place of what was drawn, in token_S too.
        """
        busy, room = len(token_S), self.said.shape[1]
        speaks_S = torch.ones(busy, dtype=torch.bool, device=token_S.device)
        for slot in [at for at in range(busy) if self.owner[at] in self._unread] if self._unread else ():
            unread = self._unread[self.owner[slot]]
            token_S[slot], speaks_S[slot] = unread.popleft(), False
            if not unread:
                del self._unread[self.owner[slot]]
        place_S1 = self.count[:busy, None].clamp_max(room - 1)
        self.said[:busy].scatter_(1, place_S1, token_S[:, None])
        self.sure[:busy].scatter_(1, place_S1, logprob_S[:, None])
        self.count[:busy] += speaks_S
        return speaks_S

    def end(self, slot: int, finish: Finish, then: Then | None) -> Rollout | None:
        """A turn has ended. The rollout, if that was its last one; None where it goes on in its slot."""
        n, i = int(self.count[slot]), int(self.owner[slot])
        said, sure = self.said[slot, :n].tolist(), self.sure[slot, :n].tolist()
        ended = self._begun[i].said(said, sure, finish, self.version)
        more = self._goes_on(ended, self._start[i], then)
        if more is None:
            del self._begun[i], self._start[i]
            self._drawings.pop(i, None)
            return ended
        longer, length = more
        if len(longer) > len(ended):
            self._begun[i], self._unread[i] = longer, deque(longer.tokens[len(ended) :])
            self.count[slot], self.stream[slot] = 0, digest(longer.key)
        self.limit[slot] = self.count[slot] + length
        return None

    def _goes_on(self, ended: Rollout, start: int, then: Then | None) -> tuple[Rollout, int] | None:
        """What `then` says, as far as there is room behind the `start` tokens of the first prefix."""
        more = None if then is None else then(ended)
        if more is None:
            return None
        longer, length = more
        if longer.tokens[: len(ended)] != ended.tokens:
            raise SchoolError(
                f"a rollout of problem {ended.problem.id} goes on from other tokens than it had: what was said cannot "
                "be changed on a kept cache; add tokens behind it (Rollout.given), or extend it anew"
            )
        length = min(length, min(self.room, self.longest - start) - (len(longer) - start))
        return (longer, length) if length > 0 else None

    def stay(self, order: Tensor) -> None:
        """The slots that are kept, in their new order: [S]."""
        places = order.cpu().numpy()
        for rows in (self.said, self.sure, self.count, self.limit):
            rows[: len(order)] = rows[order]
        self.owner[: len(order)], self.stream[: len(order)] = self.owner[places], self.stream[places]
