"""Continuous batching: one thread samples for all requests together, and sends the tokens to the event loops.

The generator (policy/generator.py) starts a request when a slot is free. New tokens are sent in batches, at most 20
times per second. A message for each single token would take more time than the sampling of the tokens.

The KV cache of the generator has a number of slots and a slot length (kv_room.py). If the next request of the queue
needs a longer slot, the engine first finishes the running requests and starts no new requests. The engine then makes a
new cache with longer slots. After the long requests, the engine makes a cache with slots of the usual length again.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from schoolhouse.data.chat import Conversation
from schoolhouse.policy.logprobs import TokenLogprob
from schoolhouse.policy.policy import Policy
from schoolhouse.policy.sampling import SamplingParams
from schoolhouse.policy.slots import Request
from schoolhouse.policy.thinking_budget import close_thought_at_budget
from schoolhouse.serve.kv_room import CacheShape, KVRoom, plan_room
from schoolhouse.types import Rollout, SchoolError

NUM_THREADS = torch.get_num_threads()
DELIVERY_SECONDS = 0.05  # between two deliveries, while sequences are being sampled


class QueueFull(SchoolError):
    """The error that is raised if the queue has no room for a request."""


class EngineClosed(SchoolError):
    """The error that is raised if the engine accepts no more requests."""


@dataclass(eq=False)
class PendingRequest:
    """A request to extend one rollout, and the output of the request so far.

    `thinking_budget`: the number of tokens after which a thought that has not ended is closed.
    `stop_texts`: the texts that end the completion.
    `top_logprobs`: the number of most likely tokens that are returned for each position.
    `conversation`: the chat template of the request, or None for the chat template of the policy.
    """

    rollout: Rollout
    max_new_tokens: int
    sampling_params: SamplingParams
    thinking_budget: int | None = None
    stop_texts: tuple[str, ...] = ()
    top_logprobs: int = 0
    conversation: Conversation | None = None
    cancelled: bool = False
    """True if the client has disconnected. Then sampling ends with the next token."""
    sampled_ids: list[int] = field(default_factory=list)
    output: deque[TokenLogprob | Rollout | Exception] = field(default_factory=deque)
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)

    @property
    def max_len(self) -> int:
        """The maximum number of tokens of the request, including its prompt."""
        return len(self.rollout) + self.max_new_tokens

    async def stream(self) -> AsyncIterator[list[TokenLogprob | Rollout]]:
        """Yield lists of new output while tokens are sampled. The last item of the output is the finished rollout.

        If the request ended with an error, `stream` raises the error.
        """
        while True:
            await self.ready.wait()
            self.ready.clear()
            items: list[TokenLogprob | Rollout] = []
            while self.output:
                item = self.output.popleft()
                if isinstance(item, Exception):
                    raise item
                items.append(item)
            if items:
                yield items
            if items and isinstance(items[-1], Rollout):
                return


Output = tuple[PendingRequest, TokenLogprob | Rollout | Exception]


class BatchEngine:
    """Samples up to `max_num_seqs` sequences at the same time.

    Up to `max_queued_seqs` more sequences can wait in a queue.

    `load` makes the policy in the sampling thread. All other threads compute on one core, because sampling took twice
    as long when two OpenMP teams (groups of threads) ran in one process (docs/lab.md). If `load` raises an exception,
    `BatchEngine` raises the same exception.

    `max_model_len`: the maximum number of tokens of a sequence, including its prompt. If the model itself has a lower
        limit, the limit of the model applies. If the memory is too small for the context of the model, the engine uses
        a lower limit.
    `reserved`: the number of bytes of memory that the KV caches of other engines can use.
    """

    def __init__(
        self,
        load: Callable[[], Policy],
        max_num_seqs: int = 64,
        max_queued_seqs: int = 256,
        max_model_len: int | None = None,
        reserved: int = 0,
    ) -> None:
        self.max_num_seqs, self.max_queued_seqs = max_num_seqs, max_queued_seqs
        self.sampled_tokens = self.finished = 0
        self.error: Exception | None = None
        self._changed = threading.Condition()
        self._queue: deque[PendingRequest] = deque()
        self._admitted: dict[int, PendingRequest] = {}
        self._by_problem: dict[str, PendingRequest] = {}
        self._undelivered: list[Output] = []
        self._top_logprobs: dict[int, tuple[tuple[int, float], ...]] = {}
        self._num_admitted, self._closing, self._last_delivery = 0, False, 0.0
        self.policy: Policy
        self.room: KVRoom
        self._shape: CacheShape
        loaded: Future[None] = Future()
        args = (load, loaded, max_model_len, reserved)
        self._thread = threading.Thread(target=self._run, args=args, name="sampler", daemon=True)
        self._thread.start()
        loaded.result()

    @property
    def max_model_len(self) -> int:
        """The maximum number of tokens of a sequence, including its prompt."""
        return self.room.max_model_len

    @property
    def running(self) -> int:
        return min(self.max_num_seqs, len(self._admitted))

    @property
    def waiting(self) -> int:
        return len(self._queue) + max(0, len(self._admitted) - self.max_num_seqs)

    def submit(self, requests: Sequence[PendingRequest]) -> None:
        """Put all requests into the queue, or raise an error and queue no request.

        Raises QueueFull if the queue has no room, and EngineClosed if the engine has stopped. Raises SchoolError if
        a request is too long, or if `requests` has more requests than the slots and the queue of the engine can hold.
        """
        if (longest := max((request.max_len for request in requests), default=0)) > self.max_model_len:
            raise SchoolError(
                f"a request needs {longest} tokens, but the limit is {self.max_model_len} tokens; ask for fewer tokens"
            )
        capacity = self.max_num_seqs + self.max_queued_seqs
        with self._changed:
            if self.error:
                raise EngineClosed(f"the sampler of this server has stopped with an error: {self.error}")
            if self._closing:
                raise EngineClosed("the server is shutting down; send the request again later")
            if len(requests) > capacity:
                raise SchoolError(
                    f"the request asks for {len(requests)} completions, but the limit is {capacity}; ask for fewer"
                )
            if self.running + self.waiting + len(requests) > capacity:
                state = f"{self.waiting} of {self.max_queued_seqs} places are taken, {len(requests)} needed"
                raise QueueFull(f"the queue is full ({state}); send the request again later")
            self._queue += requests
            self._changed.notify()

    def close(self) -> None:
        """Accept no more requests, finish all queued and running requests, and end the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    # --- callbacks of the generator, in the sampling thread

    def new_requests(self, busy: bool) -> Sequence[Request] | None:
        if not busy or time.monotonic() - self._last_delivery >= DELIVERY_SECONDS:
            self._deliver()
        with self._changed:
            while not busy and not self._queue and not self._closing:
                self._changed.wait()
            admitted = []
            while self._queue and (self._queue[0].cancelled or self._fits(self._queue[0])):
                pending = self._queue.popleft()
                if pending.cancelled:
                    continue
                self._admitted[self._num_admitted] = self._by_problem[pending.rollout.problem.id] = pending
                self._num_admitted += 1
                first_turn = pending.max_new_tokens
                if pending.thinking_budget is not None:
                    first_turn = min(pending.thinking_budget, pending.max_new_tokens)
                admitted.append(Request(pending.rollout, max(1, first_turn), pending.sampling_params))
            if admitted or self._admitted:
                return admitted
            return None if self._queue or self._closing or self._shape != self.room.usual else admitted

    def _fits(self, pending: PendingRequest) -> bool:
        """Return whether a request can start in the present KV cache.

        A cache with longer slots has fewer slots. The engine keeps a cache with long slots only while a request needs
        long slots.
        """
        if len(self._admitted) >= self._shape.num_seqs or pending.max_len > self._shape.max_len:
            return False
        needed = (pending, *self._admitted.values())
        return self._shape == self.room.usual or any(self.room.shape_for(one.max_len) == self._shape for one in needed)

    def on_logits(self, owners: np.ndarray, logits_SV: Tensor) -> None:
        self._top_logprobs.clear()
        if not any(pending.top_logprobs for pending in self._admitted.values()):
            return
        for row, owner in enumerate(owners.tolist()):
            if count := self._admitted[owner].top_logprobs:
                best = logits_SV[row].float().log_softmax(-1).topk(min(count, logits_SV.shape[1]))
                pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
                self._top_logprobs[owner] = tuple(pairs)

    def on_token(self, owner: int, token: int, logprob: float) -> bool:
        pending = self._admitted[owner]
        pending.sampled_ids.append(token)
        self.sampled_tokens += 1
        self._undelivered.append((pending, TokenLogprob(token, logprob, self._top_logprobs.get(owner, ()))))
        try:
            return pending.cancelled or (
                bool(pending.stop_texts)
                and self.policy.conversation.ends_with_any(pending.sampled_ids, pending.stop_texts)
            )
        except Exception as error:  # an error in one request must not end the others
            self._undelivered.append((pending, SchoolError(f"this completion failed: {error}")))
            return True

    def on_finished(self, number: int, rollout: Rollout) -> None:
        pending = self._admitted.pop(number)
        del self._by_problem[pending.rollout.problem.id]
        self.finished += 1
        self._undelivered.append((pending, rollout))

    def next_turn(self, ended: Rollout) -> tuple[Rollout, int] | None:
        """Close a thought that has reached its token budget.

        The remaining tokens of the completion are for the answer.
        """
        pending = self._by_problem[ended.problem.id]
        if pending.thinking_budget is None or pending.cancelled:
            return None
        prompt_tokens, budget = len(pending.rollout), pending.thinking_budget
        conversation = pending.conversation or self.policy.conversation
        turn = close_thought_at_budget(conversation, ended, prompt_tokens, budget, pending.max_new_tokens)
        if turn is not None:
            closing_ids = turn[0].tokens[len(ended) :]
            self._undelivered += [(pending, TokenLogprob(token, 0.0, ())) for token in closing_ids]
        return turn

    # --- the sampling thread

    def _run(self, load: Callable[[], Policy], loaded: Future[None], max_model_len: int | None, reserved: int) -> None:
        torch.set_num_threads(NUM_THREADS)
        try:
            self.policy = load()
            self.room = plan_room(self.policy, self.max_num_seqs, max_model_len, reserved)
            self._shape = self.room.usual
        except BaseException as error:
            loaded.set_exception(error)
            return
        loaded.set_result(None)
        try:
            while not self._finished():
                self._num_admitted = 0  # the generator numbers the requests of each call from 0
                self.policy.serve(self, *self._shape, self.next_turn, self.on_token)
        except Exception as error:  # any error here must end every pending request
            with self._changed:
                self.error = error
                unfinished = [*self._admitted.values(), *self._queue]
                self._queue.clear()
                self._admitted.clear()
            self._undelivered += [(one, EngineClosed(f"the sampler has stopped: {error}")) for one in unfinished]
        self._deliver()

    def _finished(self) -> bool:
        """Choose the shape of the next KV cache. Returns True if the engine is closed and has no requests left."""
        with self._changed:
            self._shape = self.room.shape_for(self._queue[0].max_len) if self._queue else self.room.usual
            return self._closing and not self._queue

    def _deliver(self) -> None:
        """Send new output to the requests, with one call for each event loop."""
        undelivered, self._undelivered, self._last_delivery = self._undelivered, [], time.monotonic()
        by_loop: dict[asyncio.AbstractEventLoop, list[Output]] = {}
        for pending, item in undelivered:
            by_loop.setdefault(pending.loop, []).append((pending, item))
        for loop, outputs in by_loop.items():
            if not loop.is_closed():
                loop.call_soon_threadsafe(_append_output, outputs)


def _append_output(outputs: Sequence[Output]) -> None:
    for pending, item in outputs:
        pending.output.append(item)
        pending.ready.set()


class CancellablePolicy:
    """A policy whose calls can be cancelled. A cancelled call ends with its next token, and later calls raise
    EngineClosed.

    `room`: the memory for the KV cache of the policy's engine. The KV cache of one call to the cancellable policy uses
        at most a fifth of `room`, unless one sequence needs more.
    """

    def __init__(self, policy: Policy, room: KVRoom) -> None:
        self._policy, self._room, self._cancelled = policy, room, threading.Event()
        self.conversation = policy.conversation

    @property
    def max_seq_len(self) -> int:
        return self._room.max_model_len

    def cancel(self) -> None:
        self._cancelled.set()

    def check(self) -> None:
        """Raise EngineClosed if the policy has been cancelled."""
        if self._cancelled.is_set():
            raise EngineClosed("the request was cancelled: its client has disconnected")

    def extend(self, rollouts: Sequence[Rollout], max_new_tokens: int | Sequence[int], **options: Any) -> list[Rollout]:
        """Call `Policy.extend` with a limited number of slots."""
        self.check()
        most = max_new_tokens if isinstance(max_new_tokens, int) else max(max_new_tokens, default=1)
        most = max(most, options.get("max_total_tokens") or 0)
        longest = max(map(len, rollouts), default=1) + most
        num_slots = max(1, min(512, self._room.budget // 5 // (self._room.bytes_per_token * longest)))
        on_token = self._stops
        return self._policy.extend(rollouts, max_new_tokens, **options, num_slots=num_slots, on_token=on_token)

    def _stops(self, *_: Any) -> bool:
        """Raise EngineClosed at the first token after `cancel`, so that the call stops."""
        self.check()
        return False


def one_core_executor() -> ThreadPoolExecutor:
    """Make an executor with one thread on one core, so that its work does not slow down the threads of the engines."""
    return ThreadPoolExecutor(1, "background", initializer=torch.set_num_threads, initargs=(1,))
