"""Generate: each distinct prefix is read once, then all rollouts grow together, one token a step.

S slots busy in this step, V vocabulary. What a rollout samples depends on its key and the weights, not on the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor

from schoolhouse.model.cuda_graph import GraphedStep, StaticSlotKVCache
from schoolhouse.model.decoder import Decoder
from schoolhouse.model.kv_cache import PackedAttention, SlotKVCache
from schoolhouse.policy.sampling import SamplingParams, sample_each
from schoolhouse.policy.slots import NextTurn, Request, SlotTable
from schoolhouse.types import Rollout, SchoolError

if TYPE_CHECKING:
    from schoolhouse.model.hf_adapter import HFAdapter

OnToken = Callable[[int, int, float], bool | None]
"""Called with (number of the rollout, token id, its log-probability) for each sampled token. True ends the turn."""

StopMatcher = Callable[[Sequence[int]], bool]
"""Whether a turn ends with the last of the ids that it has so far."""


class RequestSource(Protocol):
    """Where requests come from while others are being extended. They are numbered as they come, from 0."""

    def new_requests(self, busy: bool) -> Sequence[Request] | None:
        """New requests since the last step; None once the source is closed. May wait where no slot is `busy`."""
        ...

    def on_logits(self, owners: np.ndarray, logits_SV: Tensor) -> None:
        """The logits of a step before it is sampled, and the number of the rollout in each slot."""
        ...

    def on_finished(self, number: int, rollout: Rollout) -> None:
        """A rollout is complete."""
        ...


@torch.no_grad()
def extend(
    decoder: Decoder | HFAdapter,
    rollouts: Sequence[Rollout],
    max_new_tokens: int | Sequence[int],
    stop_ids: Sequence[int],
    policy_version: int,
    *,
    params: SamplingParams = SamplingParams(),  # noqa: B008 (a plain tuple)
    slots: int = 512,
    max_total_tokens: int | None = None,
    next_turn: NextTurn | None = None,
    stop_matcher: tuple[Tensor, StopMatcher] | None = None,
    logit_bias: Tensor | None = None,
    attention: tuple[type[PackedAttention], type[SlotKVCache]] = (PackedAttention, SlotKVCache),
    source: RequestSource | None = None,
    on_token: OnToken | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[Rollout]:
    """Sample up to `max_new_tokens` after each prefix; a turn ends after an id in `stop`. Same order back.

    max_new_tokens    one number for all rollouts, or one for each
    version           of the policy, which each rollout remembers
    slots             rollouts that grow at once
    next_turn         what a rollout goes on from when its turn ends, in its slot. Tokens that it adds are read one by
                      one beside the slots that sample; the result is that of extending the rollout again
    max_total_tokens  tokens that all turns behind the first prefix may take; with a `source` what each request may
                      have, its prefix included
    stops_here        ids [V] that may end a turn, and a function that says whether one does
    logit_bias        [V] added to all logits
    source            more requests, each with its own sampling parameters, until it closes; results go back to it
    progress          called with the number of rollouts that just ended
    """
    config, device = decoder.config, next(decoder.parameters()).device
    limits = [max_new_tokens] * len(rollouts) if isinstance(max_new_tokens, int) else list(max_new_tokens)
    _check(rollouts, limits, config.max_seq_len, params.temperature)
    slots = slots if source else min(slots, len(rollouts))
    longest = max_total_tokens or config.max_seq_len if source else max(map(len, rollouts), default=0)
    capacity = max(max(limits, default=0), max_total_tokens or 0, longest if source else 0)
    packed, slot_cache = attention
    cache = slot_cache(
        config.num_hidden_layers,
        slots,
        config.num_key_value_heads,
        config.head_dim,
        prompt_capacity=longest,
        capacity=capacity,
        max_prompts=slots if source else len({r.tokens for r in rollouts}),
        device=device,
    )

    def decode(token_S: Tensor) -> Tensor:  # [S] -> [S, V]
        return decoder.project(decoder(token_S, cache.begin_step(), cache))

    decode_step = GraphedStep(decode, cache) if isinstance(cache, StaticSlotKVCache) else decode
    table = SlotTable(rollouts, limits, params, policy_version, slots, capacity, config.max_seq_len, device)
    stop_V = torch.zeros(config.vocab_size, dtype=torch.bool, device=device)
    stop_V[list(stop_ids)] = True
    maybe_V = None if stop_matcher is None else stop_matcher[0].to(device)
    done: dict[int, Rollout] = {}
    logits_SV: Tensor | None = None
    last: dict[tuple[int, ...], Tensor] = {}

    while table.waiting or cache.busy or source:
        requests = source.new_requests(bool(table.waiting or cache.busy)) if source else ()
        table.add(requests or ())
        if not table.waiting and not cache.busy:
            if requests is None:
                break
            continue
        # Several prompts are read at once, since prefill pays in batches; a request to a server does not wait for that.
        if table.waiting and cache.free >= (1 if source else max(1, slots // 4)):
            logits_nV = _prefill(decoder, packed, cache, table.admit(cache.busy, cache.free), last)
            logits_SV = logits_nV if logits_SV is None else torch.cat((logits_SV, logits_nV))
        assert logits_SV is not None
        busy = cache.busy
        if logit_bias is not None:
            logits_SV = logits_SV + logit_bias
        if source:
            source.on_logits(table.owner[:busy], logits_SV)
        token_S, logprob_S = sample_each(logits_SV, table.uniforms(busy), table.sampling_params(busy))
        if not bool(torch.isfinite(logprob_S).all()):
            raise SchoolError(
                "the model's log-probabilities are not finite: there is NaN or infinity in its weights, or its "
                "computation overflows; go back to an earlier checkpoint, or try precision float32"
            )
        sampled_S = table.append(token_S, logprob_S)  # False where a token of the context was read instead
        stopped_S = stop_V[token_S] & sampled_S
        if on_token:
            rows = zip(table.owner[:busy], token_S.tolist(), logprob_S.tolist(), sampled_S.tolist(), strict=True)
            ends = [sampled and on_token(int(owner), token, logprob) for owner, token, logprob, sampled in rows]
            stopped_S |= torch.tensor([bool(end) for end in ends], device=device)
        if stop_matcher is not None and maybe_V is not None:
            for slot in (maybe_V[token_S] & sampled_S & ~stopped_S).nonzero()[:, 0].tolist():
                stopped_S[slot] = stop_matcher[1](table.tokens[slot, : int(table.count[slot])].tolist())
        over_S = stopped_S | (sampled_S & (table.count[:busy] == table.limit[:busy]))
        for slot in over_S.nonzero()[:, 0].tolist():
            finished = table.finish_turn(slot, "stop" if bool(stopped_S[slot]) else "length", next_turn)
            if finished is None:
                over_S[slot] = False
            elif source:
                source.on_finished(int(table.owner[slot]), finished)
            else:
                done[int(table.owner[slot])] = finished
        if bool(over_S.any()):
            if progress:
                progress(int(over_S.sum()))
            order = cache.release(over_S)
            table.compact(order)
            token_S = token_S[order]
        if cache.busy:
            logits_SV = decode_step(token_S)
            cache.end_step()
        else:
            logits_SV = None
    return [done[i] for i in sorted(done)]


def _check(rollouts: Sequence[Rollout], limits: Sequence[int], max_seq_len: int, temperature: float) -> None:
    if len(limits) != len(rollouts):
        raise SchoolError(
            f"{len(limits)} values of `max_new_tokens` for {len(rollouts)} rollouts: give one number, or one for each"
        )
    for rollout, length in zip(rollouts, limits, strict=True):
        if not len(rollout):
            raise SchoolError(
                f"a rollout of problem {rollout.problem.id} has no tokens to go on from; give it a prompt"
            )
        if length < 1:
            raise SchoolError(f"`max_new_tokens` is {length}: give at least 1")
        if len(rollout) + length > max_seq_len:
            raise SchoolError(
                f"a prompt of {len(rollout)} tokens and {length} new ones make {len(rollout) + length}, but the model "
                f"reads at most {max_seq_len}; lower `max_new_tokens` or train a model with a larger max_position_embeddings"
            )
    if temperature < 0:
        raise SchoolError(f"`temperature` is {temperature}: give 0 (the likeliest token) or more")


def _prefill(
    decoder: Decoder | HFAdapter,
    attention: type[PackedAttention],
    cache: SlotKVCache,
    prompts: Sequence[tuple[int, ...]],
    last: dict[tuple[int, ...], Tensor],
) -> Tensor:
    """A slot for each prompt, and the logits [n, V] after it. A prompt in the cache is not read again.

    `last` holds what the decoder makes of the last token of each prompt in the cache, [C].
    """
    for dropped in last.keys() - set(cache.prompt_names):
        del last[dropped]
    fresh = [prompt for prompt in dict.fromkeys(prompts) if prompt not in last]
    if fresh:
        packed = attention([len(prompt) for prompt in fresh], device=cache.lengths.device, keep_kv=True)
        tokens_N = torch.tensor([token for prompt in fresh for token in prompt], device=cache.lengths.device)
        hidden_NC = decoder(tokens_N, packed.positions, packed)
        cache.store_prompts(packed, fresh)
        last.update(zip(fresh, hidden_NC[torch.cumsum(packed.lengths, 0) - 1], strict=True))
    cache.admit(prompts)
    places = {prompt: at for at, prompt in enumerate(dict.fromkeys(prompts))}
    logits_PV = decoder.project(torch.stack([last[prompt] for prompt in places]))
    return logits_PV[torch.tensor([places[prompt] for prompt in prompts], device=logits_PV.device)]
