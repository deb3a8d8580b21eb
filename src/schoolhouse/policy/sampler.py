"""Extend prefixes: each distinct prefix is read once, then all rollouts grow together, one token a step.

S slots busy in this step, V vocabulary. What a rollout draws depends on its key and the weights, not on its neighbours.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from schoolhouse.policy.decoder import Decoder
from schoolhouse.policy.memory import Packed, Slots
from schoolhouse.policy.replay import Replay, StaticSlots
from schoolhouse.policy.rows import draw, log_probabilities
from schoolhouse.randomness import digest, uniforms
from schoolhouse.types import Rollout, SchoolError

if TYPE_CHECKING:
    from schoolhouse.policy.huggingface import Adapter

_BLOCK = 64

OnToken = Callable[[int, int, float], bool | None]
"""Called with (index of the rollout, token id, its log-probability) as soon as a token is sampled. True ends the turn
there."""

Then = Callable[[Rollout], tuple[Rollout, int] | None]
"""Called with a rollout whose turn ended. Gives what it goes on from (the same, or longer by what others say now) and
how many tokens it may say next; None: it is done."""

Ends = Callable[[Sequence[int]], bool]
"""Whether a turn ends with the last of the ids it has so far."""


class Drawing(NamedTuple):
    """How a token is drawn: see `choose`."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0


class Arrival(NamedTuple):
    """A prefix that comes while others are being extended."""

    rollout: Rollout
    length: int
    drawing: Drawing


class Door(Protocol):
    """Where rollouts come in, and go out, while others are being extended. They are counted as they come, from 0."""

    def arrivals(self, busy: bool) -> Sequence[Arrival] | None:
        """Who has come since, asked before each step; where nobody is `busy` it may wait. None: nobody comes again."""
        ...

    def look(self, owners: np.ndarray, logits_SV: Tensor) -> None:
        """The logits of a step, before it is drawn, and whose they are."""
        ...

    def leave(self, number: int, rollout: Rollout) -> None:
        """A rollout is done."""
        ...


def narrow(logits_SV: Tensor, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0) -> Tensor:
    """Logits with the unlikely set to -inf: the top_k likeliest, the smallest set of mass top_p, at least min_p x max.

    top_p: Holtzman et al. 2019, arXiv 1904.09751; min_p: Nguyen et al. 2024, arXiv 2407.01082. The likeliest token
    always stays. Each filter sees what the one before it left, in the order of the arguments.
    """
    if top_k:
        least = logits_SV.topk(min(top_k, logits_SV.shape[-1]), dim=-1).values[:, -1:]
        logits_SV = logits_SV.masked_fill(logits_SV < least, float("-inf"))
    if top_p < 1.0:
        ranked, order = logits_SV.softmax(-1).sort(dim=-1, descending=True)
        beyond = ranked.cumsum(-1) - ranked >= top_p
        beyond[:, 0] = False
        logits_SV = logits_SV.masked_fill(beyond.scatter(1, order, beyond), float("-inf"))
    if min_p > 0.0:
        likely = logits_SV.softmax(-1)
        logits_SV = logits_SV.masked_fill(likely < min_p * likely.amax(-1, keepdim=True), float("-inf"))
    return logits_SV


def choose(
    logits_SV: Tensor, uniform_S: Tensor, temperature: float, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
) -> tuple[Tensor, Tensor]:
    """One token for each slot and its log-probability under exactly the distribution it was drawn from: [S], [S].

    By inverting the cumulative distribution: one uniform number a token. Temperature 0 takes the likeliest token, and
    reports its log-probability at temperature 1.
    """
    if temperature == 0.0:
        token_S = logits_SV.argmax(-1)
        return token_S, log_probabilities(logits_SV, token_S, 1.0)[0]
    narrowed = top_k > 0 or top_p < 1.0 or min_p > 0.0
    drawn = None if narrowed else draw(logits_SV, uniform_S, temperature)
    if drawn:
        return drawn
    logits_SV = logits_SV.float() / temperature
    if narrowed:
        logits_SV = narrow(logits_SV, top_k, top_p, min_p)
    mass_SV = logits_SV.softmax(-1)
    # In two steps, the block of tokens and the token in it: sums over blocks are quick, running sums are not.
    mass_SBV = F.pad(mass_SV, (0, -mass_SV.shape[-1] % _BLOCK)).unflatten(-1, (-1, _BLOCK))
    mass_SB = mass_SBV.sum(-1).double()
    block_S, rest_S = _fall(mass_SB, uniform_S * mass_SB.sum(-1))
    place_S, _ = _fall(mass_SBV[torch.arange(len(block_S), device=block_S.device), block_S].double(), rest_S)
    token_S = block_S * _BLOCK + place_S
    return token_S, log_probabilities(logits_SV, token_S, 1.0)[0]


def _fall(mass_SX: Tensor, point_S: Tensor) -> tuple[Tensor, Tensor]:
    """Where a point falls when masses lie end to end, and how far into that mass: [S], [S].

    Never in a place without mass, even where rounding puts the point before or behind everything.
    """
    until_SX, point_SX = mass_SX.cumsum(-1), point_S.clamp_min(0.0)[:, None]
    place_SX = torch.searchsorted(until_SX, point_SX, right=True)
    place_SX = torch.minimum(place_SX, (until_SX < until_SX[:, -1:]).sum(-1, keepdim=True))
    before_SX = until_SX.gather(1, place_SX) - mass_SX.gather(1, place_SX)
    return place_SX[:, 0], (point_SX - before_SX)[:, 0]


@torch.no_grad()
def extend(
    decoder: Decoder | Adapter,
    rollouts: Sequence[Rollout],
    length: int | Sequence[int],
    stop: Sequence[int],
    version: int,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    slots: int = 512,
    room: int | None = None,
    then: Then | None = None,
    ends: tuple[Tensor, Ends] | None = None,
    tilt: Tensor | None = None,
    memories: tuple[type[Packed], type[Slots]] = (Packed, Slots),
    door: Door | None = None,
    on_token: OnToken | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[Rollout]:
    """Let the policy say up to `length` tokens after each prefix; a turn ends after an id in `stop`.

    `length` may be a number for each rollout. Rollouts come back in the order given. `progress` is told the number of
    rollouts that just ended. With `then` a rollout goes on in its slot, and comes out as if it had been extended again
    from the start: what others said is read token by token beside the slots that speak, nothing is read twice. `room`
    is what all turns behind the first prefix may take together. `ends` is the ids [V] that may end a turn, and who
    knows whether one does. `tilt` [V] is added to all logits: a policy that is not quite this one. Through a `door`
    more rollouts may come as long as it is open, each with its own way of drawing; they leave through it too, and
    `room` is what each of them may have, its prefix included.
    """
    shape, device = decoder.shape, next(decoder.parameters()).device
    lengths = [length] * len(rollouts) if isinstance(length, int) else list(length)
    _check(rollouts, lengths, shape.longest, temperature)
    slots = slots if door else min(slots, len(rollouts))
    longest = room or shape.longest if door else max(map(len, rollouts), default=0)
    room = max(max(lengths, default=0), room or 0, longest if door else 0)
    read, grow = memories
    memory = grow(
        shape.num_hidden_layers,
        slots,
        shape.num_key_value_heads,
        shape.head_dim,
        prompt_room=longest,
        room=room,
        prompts=slots if door else len({r.tokens for r in rollouts}),
        device=device,
    )

    def step(token_S: Tensor) -> Tensor:  # [S] -> [S, V]
        return decoder.project(decoder(token_S, memory.begin_step(), memory))

    advance = Replay(step, memory) if isinstance(memory, StaticSlots) else step
    stop_V = torch.zeros(shape.vocab_size, dtype=torch.bool, device=device)
    stop_V[list(stop)] = True
    maybe_V = None if ends is None else ends[0].to(device)
    queue = deque(range(len(rollouts)))
    begun = dict(enumerate(rollouts))  # what each rollout's present turn began with
    start = dict(enumerate(map(len, rollouts)))
    limits, drawings = dict(enumerate(lengths)), dict[int, Drawing]()
    usual, came = Drawing(temperature, top_k, top_p, min_p), len(rollouts)
    done: dict[int, Rollout] = {}
    given: dict[int, deque[int]] = {}  # ids that others said and the model has not read yet

    said = torch.zeros(slots, room, dtype=torch.long, device=device)  # [S, room]
    sure = torch.zeros(slots, room, device=device)  # [S, room] log-probability of each
    count = torch.zeros(slots, dtype=torch.long, device=device)  # [S] tokens said
    limit = torch.zeros(slots, dtype=torch.long, device=device)  # [S] tokens it may say
    owner = np.zeros(slots, dtype=np.int64)  # [S] index of the rollout in this slot
    stream = np.zeros(slots, dtype=np.uint64)  # [S] digest of its key
    logits_SV: Tensor | None = None
    last: dict[tuple[int, ...], Tensor] = {}

    while queue or memory.busy or door:
        new = door.arrivals(bool(queue or memory.busy)) if door else ()
        for arrival in new or ():
            begun[came], start[came], limits[came] = arrival.rollout, len(arrival.rollout), arrival.length
            drawings[came] = arrival.drawing
            queue.append(came)
            came += 1
        if not queue and not memory.busy:
            if new is None:
                break
            continue
        # Read several prompts at once, since prefill pays in batches; who stands at a door does not wait for that.
        if queue and memory.free >= (1 if door else max(1, slots // 4)):
            enter = [queue.popleft() for _ in range(min(memory.free, len(queue)))]
            at = slice(memory.busy, memory.busy + len(enter))
            owner[at], count[at] = enter, 0
            limit[at] = torch.tensor([limits.pop(i) for i in enter], device=device)
            stream[at] = [digest(begun[i].key) for i in enter]
            logits_nV = _prefill(decoder, read, memory, [begun[i].tokens for i in enter], last)
            logits_SV = logits_nV if logits_SV is None else torch.cat((logits_SV, logits_nV))
        assert logits_SV is not None
        busy = memory.busy
        if tilt is not None:
            logits_SV = logits_SV + tilt
        if door:
            door.look(owner[:busy], logits_SV)
        uniform_S = torch.from_numpy(uniforms(stream[:busy], count[:busy].cpu().numpy())).to(device)
        ways = [drawings.get(i, usual) for i in owner[:busy].tolist()] if drawings else [usual]
        token_S, logprob_S = _choose(logits_SV, uniform_S, ways)
        if not bool(torch.isfinite(logprob_S).all()):
            raise SchoolError(
                "the model's log-probabilities are not finite: there is NaN or infinity in its weights, or its "
                "computation overflows; go back to an earlier checkpoint, or try precision float32"
            )
        speaks_S = torch.ones(busy, dtype=torch.bool, device=device)
        for slot in [at for at in range(busy) if owner[at] in given] if given else ():
            unread = given[owner[slot]]
            token_S[slot], speaks_S[slot] = unread.popleft(), False
            if not unread:
                del given[owner[slot]]
        said[:busy].scatter_(1, count[:busy, None].clamp_max(room - 1), token_S[:, None])
        sure[:busy].scatter_(1, count[:busy, None].clamp_max(room - 1), logprob_S[:, None])
        count[:busy] += speaks_S
        stopped_S = stop_V[token_S] & speaks_S
        if on_token:
            heard = zip(owner[:busy].tolist(), token_S.tolist(), logprob_S.tolist(), speaks_S.tolist(), strict=True)
            enough = [speaks and on_token(i, token, logprob) for i, token, logprob, speaks in heard]
            for slot, ended in enumerate(enough):
                if ended:
                    stopped_S[slot] = True
        if ends is not None and maybe_V is not None:
            for slot in (maybe_V[token_S] & speaks_S & ~stopped_S).nonzero()[:, 0].tolist():
                stopped_S[slot] = ends[1](said[slot, : int(count[slot])].tolist())
        over_S = stopped_S | (speaks_S & (count[:busy] == limit[:busy]))
        if bool(over_S.any()):
            for slot in over_S.nonzero()[:, 0].tolist():
                n, i = int(count[slot]), int(owner[slot])
                finish = "stop" if bool(stopped_S[slot]) else "length"
                ended = begun[i].said(said[slot, :n].tolist(), sure[slot, :n].tolist(), finish, version)
                more = _goes_on(then, ended, start[i], min(room, shape.longest - start[i]))
                if more is None:
                    del begun[i], start[i]
                    drawings.pop(i, None)
                    if door:
                        door.leave(i, ended)
                    else:
                        done[i] = ended
                    continue
                over_S[slot] = False
                if len(more[0]) > len(ended):
                    begun[i], given[i] = more[0], deque(more[0].tokens[len(ended) :])
                    count[slot], stream[slot] = 0, digest(more[0].key)
                limit[slot] = count[slot] + more[1]
        if bool(over_S.any()):
            if progress:
                progress(int(over_S.sum()))
            order = memory.release(over_S)
            stay = len(order)
            places = order.cpu().numpy()
            for rows in (said, sure, count, limit):
                rows[:stay] = rows[order]
            owner[:stay], stream[:stay], token_S = owner[places], stream[places], token_S[order]
        if memory.busy:
            logits_SV = advance(token_S)
            memory.end_step()
        else:
            logits_SV = None
    return [done[i] for i in sorted(done)]


def _choose(logits_SV: Tensor, uniform_S: Tensor, ways: Sequence[Drawing]) -> tuple[Tensor, Tensor]:
    """`choose`, with one way of drawing for all slots or one for each."""
    if len(set(ways)) == 1:
        return choose(logits_SV, uniform_S, *ways[0])
    token_S = torch.zeros(len(ways), dtype=torch.long, device=logits_SV.device)
    logprob_S = torch.zeros(len(ways), device=logits_SV.device)
    for way, alike in groupby(sorted(range(len(ways)), key=ways.__getitem__), key=ways.__getitem__):
        rows = torch.tensor(list(alike), device=logits_SV.device)
        token_S[rows], logprob_S[rows] = choose(logits_SV[rows], uniform_S[rows], *way)
    return token_S, logprob_S


def _goes_on(then: Then | None, ended: Rollout, start: int, room: int) -> tuple[Rollout, int] | None:
    """What `then` says, as far as there is room behind the `start` tokens of the first prefix."""
    more = None if then is None else then(ended)
    if more is None:
        return None
    longer, length = more
    if longer.tokens[: len(ended)] != ended.tokens:
        raise SchoolError(
            f"a rollout of problem {ended.problem.id} goes on from other tokens than it had: what was said cannot be "
            "changed on a kept cache; add tokens behind it (Rollout.given), or extend it anew"
        )
    length = min(length, room - (len(longer) - start))
    return (longer, length) if length > 0 else None


def _check(rollouts: Sequence[Rollout], lengths: Sequence[int], limit: int, temperature: float) -> None:
    if len(lengths) != len(rollouts):
        raise SchoolError(f"{len(lengths)} lengths for {len(rollouts)} rollouts: give one number, or one for each")
    for rollout, length in zip(rollouts, lengths, strict=True):
        if not len(rollout):
            raise SchoolError(
                f"a rollout of problem {rollout.problem.id} has no tokens to go on from; give it a prompt"
            )
        if length < 1:
            raise SchoolError(f"`length` is {length}: a turn has at least 1 token")
        if len(rollout) + length > limit:
            raise SchoolError(
                f"a prompt of {len(rollout)} tokens and {length} new ones make {len(rollout) + length}, but the model "
                f"reads at most {limit}; lower `length` or train a model with a larger max_position_embeddings"
            )
    if temperature < 0:
        raise SchoolError(f"`temperature` is {temperature}: give 0 (the likeliest token) or more")


def _prefill(
    decoder: Decoder | Adapter,
    read: type[Packed],
    memory: Slots,
    prompts: Sequence[tuple[int, ...]],
    last: dict[tuple[int, ...], Tensor],
) -> Tensor:
    """A slot for each prompt, and the logits [n, V] after it. A prompt that is in memory is not read again.

    `last` holds what the decoder makes of the last token of each prompt in memory, [C].
    """
    for forgotten in last.keys() - set(memory.names):
        del last[forgotten]
    fresh = [prompt for prompt in dict.fromkeys(prompts) if prompt not in last]
    if fresh:
        packed = read([len(prompt) for prompt in fresh], device=memory.said.device, keep=True)
        tokens_N = torch.tensor([token for prompt in fresh for token in prompt], device=memory.said.device)
        hidden_NC = decoder(tokens_N, packed.positions, packed)
        memory.remember(packed, fresh)
        last.update(zip(fresh, hidden_NC[torch.cumsum(packed.lengths, 0) - 1], strict=True))
    memory.admit(prompts)
    asked = {prompt: at for at, prompt in enumerate(dict.fromkeys(prompts))}
    logits_PV = decoder.project(torch.stack([last[prompt] for prompt in asked]))
    return logits_PV[torch.tensor([asked[prompt] for prompt in prompts], device=logits_PV.device)]
