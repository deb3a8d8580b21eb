"""Where requests wait, are extended together, and are heard: a thread that samples, and tickets that others hold.

The sampler's door (policy/sampler.py) lets a rollout in whenever a slot is free. What was drawn is handed
over together, twenty times a second at most, to the event loop that the ticket came from: a message for every token of
every stream costs more than the tokens.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from schoolhouse.policy.policy import Policy
from schoolhouse.policy.sampling import SamplingParams
from schoolhouse.policy.slots import Request
from schoolhouse.types import Rollout, SchoolError

CORES = torch.get_num_threads()
PAUSE = 0.05  # seconds between two deliveries, while there is work


class Piece(NamedTuple):
    """A token as it was drawn, its log-probability, and the likeliest ones (id, log-probability)."""

    token: int
    logprob: float
    top_logprobs: tuple[tuple[int, float], ...] = ()


class Full(SchoolError):
    """Too many wait already."""


class Closed(SchoolError):
    """Nobody is let in any more."""


@dataclass(eq=False)
class Ticket:
    """One rollout that is asked for.

    think  tokens after which an open thought is closed by force
    stop   texts that end it; top  how many of the likeliest tokens are told
    """

    rollout: Rollout
    length: int
    drawing: SamplingParams
    think: int | None = None
    stop: tuple[str, ...] = ()
    top: int = 0
    left: bool = False
    """Whoever asked has left: it ends with its next token."""
    said: list[int] = field(default_factory=list)
    told: deque[Piece | Rollout | Exception] = field(default_factory=deque)
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)

    async def pieces(self) -> AsyncIterator[list[Piece | Rollout]]:
        """What came since the last look, as it comes; the rollout itself is the last. Raises what it died of."""
        while True:
            await self.ready.wait()
            self.ready.clear()
            some: list[Piece | Rollout] = []
            while self.told:
                one = self.told.popleft()
                if isinstance(one, Exception):
                    raise one
                some.append(one)
            if some:
                yield some
            if some and isinstance(some[-1], Rollout):
                return


class Desk:
    """Extends whatever is asked for, up to `slots` at once; up to `queue` more may wait.

    `load` makes the policy in the thread that samples, and no other thread computes with more than one core: where two
    threads had teams of OpenMP, sampling took twice as long (docs/lab.md).

    context  tokens that a request may have, its prompt included

    Raises what `load` raises.
    """

    def __init__(
        self, load: Callable[[], Policy], slots: int = 64, queue: int = 256, context: int | None = None
    ) -> None:
        self.slots, self.queue = slots, queue
        self.tokens = self.served = 0
        self.broken: Exception | None = None
        self._changed = threading.Condition()
        self._waiting: deque[Ticket] = deque()
        self._inside: dict[int, Ticket] = {}
        self._names: dict[str, Ticket] = {}
        self._news: list[tuple[Ticket, Piece | Rollout | Exception]] = []
        self._tops: dict[int, tuple[tuple[int, float], ...]] = {}
        self._count, self._closing, self._told = 0, False, 0.0
        self.policy: Policy
        self.context = context or sys.maxsize
        loaded: Future[None] = Future()
        self._thread = threading.Thread(target=self._work, args=(load, loaded), name="sampler", daemon=True)
        self._thread.start()
        loaded.result()

    @property
    def running(self) -> int:
        return min(self.slots, len(self._inside))

    @property
    def waiting(self) -> int:
        return len(self._waiting) + max(0, len(self._inside) - self.slots)

    def ask(self, tickets: Sequence[Ticket]) -> None:
        """All of them, or none. Raises Full, Closed, or SchoolError for more than can ever be let in."""
        with self._changed:
            if self.broken:
                raise Closed(f"the sampler has stopped: {self.broken}")
            if self._closing:
                raise Closed("the server is about to end: ask again later, or another one")
            if len(tickets) > self.slots + self.queue:
                raise SchoolError(f"a request may ask for {self.slots + self.queue} answers here, not {len(tickets)}")
            if self.running + self.waiting + len(tickets) > self.slots + self.queue:
                raise Full(f"{self.waiting} wait already, of {self.queue} that may: ask again later")
            self._waiting += tickets
            self._changed.notify()

    def close(self) -> None:
        """Let nobody in, finish what runs, end the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    # --- the sampler's door

    def new_requests(self, busy: bool) -> Sequence[Request] | None:
        if not busy or time.monotonic() - self._told >= PAUSE:
            self._hand_over()
        with self._changed:
            while not busy and not self._waiting and not self._closing:
                self._changed.wait()
            if not self._waiting and self._closing:
                return None
            new = []
            while self._waiting:
                ticket = self._waiting.popleft()
                if ticket.left:
                    continue
                self._inside[self._count] = self._names[ticket.rollout.problem.id] = ticket
                self._count += 1
                first = ticket.length if ticket.think is None else min(ticket.think, ticket.length)
                new.append(Request(ticket.rollout, max(1, first), ticket.drawing))
            return new

    def on_logits(self, owners: np.ndarray, logits_SV: Tensor) -> None:
        self._tops.clear()
        if not any(ticket.top for ticket in self._inside.values()):
            return
        for row, owner in enumerate(owners.tolist()):
            if top := self._inside[owner].top:
                best = logits_SV[row].float().log_softmax(-1).topk(min(top, logits_SV.shape[1]))
                pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
                self._tops[owner] = tuple(pairs)

    def on_token(self, owner: int, token: int, logprob: float) -> bool:
        ticket = self._inside[owner]
        ticket.said.append(token)
        self.tokens += 1
        self._news.append((ticket, Piece(token, logprob, self._tops.get(owner, ()))))
        try:
            return ticket.left or (
                bool(ticket.stop) and self.policy.conversation.ends_with_any(ticket.said, ticket.stop)
            )
        except Exception as error:  # what is wrong with one must not end what others are told
            self._news.append((ticket, SchoolError(f"this answer cannot be told: {error}")))
            return True

    def on_finished(self, number: int, rollout: Rollout) -> None:
        ticket = self._inside.pop(number)
        del self._names[ticket.rollout.problem.id]
        self.served += 1
        self._news.append((ticket, rollout))

    def go_on(self, ended: Rollout) -> tuple[Rollout, int] | None:
        """A thought that has outgrown its budget is closed, and what is left of the length goes to the answer."""
        ticket = self._names[ended.problem.id]
        begun = len(ticket.rollout)
        if ticket.think is None or ticket.left or ended.finish_reason != "length" or len(ended) - begun != ticket.think:
            return None
        longer = self.policy.conversation.close_thought(ended)
        for token in longer.tokens[len(ended) :]:
            self._news.append((ticket, Piece(token, 0.0)))
        return longer, ticket.length - (len(longer) - begun)

    # --- the thread

    def _work(self, load: Callable[[], Policy], loaded: Future[None]) -> None:
        torch.set_num_threads(CORES)
        try:
            self.policy = load()
            self.context = min(self.context, self.policy.max_seq_len)
        except BaseException as error:
            loaded.set_exception(error)
            return
        loaded.set_result(None)
        try:
            self.policy.serve(self, self.slots, self.context, self.go_on, self.on_token)
        except Exception as error:  # every ticket has to hear of it, whatever it is
            with self._changed:
                self.broken = error
                lost = [*self._inside.values(), *self._waiting]
                self._waiting.clear()
                self._inside.clear()
            self._news += [(ticket, Closed(f"the sampler has stopped: {error}")) for ticket in lost]
        self._hand_over()

    def _hand_over(self) -> None:
        """What came since the last time, to each event loop at once."""
        news, self._news, self._told = self._news, [], time.monotonic()
        loops: dict[asyncio.AbstractEventLoop, list[tuple[Ticket, Piece | Rollout | Exception]]] = {}
        for ticket, what in news:
            loops.setdefault(ticket.loop, []).append((ticket, what))
        for loop, some in loops.items():
            if not loop.is_closed():
                loop.call_soon_threadsafe(_tell, some)


def _tell(news: Sequence[tuple[Ticket, Piece | Rollout | Exception]]) -> None:
    for ticket, what in news:
        ticket.told.append(what)
        ticket.ready.set()


class Listened:
    """A policy for as long as somebody listens: then what it says ends with the next token, and nothing more begins."""

    def __init__(self, policy: Policy) -> None:
        self._policy, self._left = policy, threading.Event()
        self.conversation, self.longest = policy.conversation, policy.max_seq_len

    def leave(self) -> None:
        self._left.set()

    def extend(self, *given: Any, **named: Any) -> list[Rollout]:
        """`Policy.extend`. Raises Closed where nobody listens."""
        if self._left.is_set():
            raise Closed("nobody waits for the answer any more")
        return self._policy.extend(*given, **named, on_token=lambda *_: self._left.is_set())


def aside() -> ThreadPoolExecutor:
    """A thread for what is computed beside the desks, on one core: it does not take their teams apart."""
    return ThreadPoolExecutor(1, "aside", initializer=torch.set_num_threads, initargs=(1,))
