"""Extend prefixes: each distinct prefix is read once, then all rollouts grow together, one token a step.

S slots busy in this step, V vocabulary. What a rollout draws depends on its key and the weights, not on its neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from schoolhouse.policy.decoder import Decoder
from schoolhouse.policy.memory import Packed, Slots
from schoolhouse.policy.replay import Replay, StaticSlots
from schoolhouse.policy.rows import draw, log_probabilities
from schoolhouse.policy.speakers import Arrival, Drawing, Speakers, Then
from schoolhouse.types import Rollout, SchoolError

if TYPE_CHECKING:
    from schoolhouse.policy.huggingface import Adapter

_BLOCK = 64

COLDEST = 1e-4  # float32 keeps five digits of a logit divided by it
OnToken = Callable[[int, int, float], bool | None]
"""Called with (index of the rollout, token id, its log-probability) as soon as a token is sampled. True ends the turn
there."""

Ends = Callable[[Sequence[int]], bool]
"""Whether a turn ends with the last of the ids it has so far."""


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

    By inverting the cumulative distribution: one uniform number a token. Temperature 0, or one so low that logits
    divided by it say no more, takes the likeliest token, and reports its log-probability at temperature 1.
    """
    if temperature < COLDEST:
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
    usual = Drawing(temperature, top_k, top_p, min_p)
    speakers = Speakers(rollouts, lengths, usual, version, slots, room, shape.longest, device)
    stop_V = torch.zeros(shape.vocab_size, dtype=torch.bool, device=device)
    stop_V[list(stop)] = True
    maybe_V = None if ends is None else ends[0].to(device)
    done: dict[int, Rollout] = {}
    logits_SV: Tensor | None = None
    last: dict[tuple[int, ...], Tensor] = {}

    while speakers.waiting or memory.busy or door:
        new = door.arrivals(bool(speakers.waiting or memory.busy)) if door else ()
        speakers.come(new or ())
        if not speakers.waiting and not memory.busy:
            if new is None:
                break
            continue
        # Read several prompts at once, since prefill pays in batches; who stands at a door does not wait for that.
        if speakers.waiting and memory.free >= (1 if door else max(1, slots // 4)):
            logits_nV = _prefill(decoder, read, memory, speakers.enter(memory.busy, memory.free), last)
            logits_SV = logits_nV if logits_SV is None else torch.cat((logits_SV, logits_nV))
        assert logits_SV is not None
        busy = memory.busy
        if tilt is not None:
            logits_SV = logits_SV + tilt
        if door:
            door.look(speakers.owner[:busy], logits_SV)
        token_S, logprob_S = _choose(logits_SV, speakers.uniforms(busy), speakers.ways(busy))
        if not bool(torch.isfinite(logprob_S).all()):
            raise SchoolError(
                "the model's log-probabilities are not finite: there is NaN or infinity in its weights, or its "
                "computation overflows; go back to an earlier checkpoint, or try precision float32"
            )
        speaks_S = speakers.hear(token_S, logprob_S)
        stopped_S = stop_V[token_S] & speaks_S
        if on_token:
            heard = zip(speakers.owner[:busy], token_S.tolist(), logprob_S.tolist(), speaks_S.tolist(), strict=True)
            told = [speaks and on_token(int(i), token, logprob) for i, token, logprob, speaks in heard]
            stopped_S |= torch.tensor([bool(one) for one in told], device=device)
        if ends is not None and maybe_V is not None:
            for slot in (maybe_V[token_S] & speaks_S & ~stopped_S).nonzero()[:, 0].tolist():
                stopped_S[slot] = ends[1](speakers.said[slot, : int(speakers.count[slot])].tolist())
        over_S = stopped_S | (speaks_S & (speakers.count[:busy] == speakers.limit[:busy]))
        for slot in over_S.nonzero()[:, 0].tolist():
            ended = speakers.end(slot, "stop" if bool(stopped_S[slot]) else "length", then)
            if ended is None:
                over_S[slot] = False
            elif door:
                door.leave(int(speakers.owner[slot]), ended)
            else:
                done[int(speakers.owner[slot])] = ended
        if bool(over_S.any()):
            if progress:
                progress(int(over_S.sum()))
            order = memory.release(over_S)
            speakers.stay(order)
            token_S = token_S[order]
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
