"""The sampler prefills each distinct prompt once.

After the prefill, each decoding step adds one token to every running rollout. The sampled tokens of a rollout depend
only on the key of its random numbers and on the weights. The other rollouts of the batch do not change the sampled
tokens of a rollout.

In names of tensors, S stands for busy slots (rows of the KV cache in use) in a step, P for prompts, N for tokens of a
batch, C for the width of the model, and V for the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from schoolhouse.model.cuda_graph import GraphedStep, StaticSlotKVCache
from schoolhouse.model.decoder import Decoder
from schoolhouse.model.kv_cache import PackedAttention, SlotKVCache
from schoolhouse.model.native_attention import NativePackedAttention
from schoolhouse.model.packed_decoder import PackedDecoder
from schoolhouse.model.prompt_chunks import PREFILL_TOKENS, PromptChunk, group_prompts
from schoolhouse.policy.sampling import GREEDY_BELOW, SamplingParams, most_likely, sample_each
from schoolhouse.policy.sampling_memory import CANDIDATE_BYTES, choose_num_slots, sampling_need
from schoolhouse.policy.sampling_progress import SamplingProgress
from schoolhouse.policy.slots import NextTurn, Request, SlotTable
from schoolhouse.policy.unused_ids import mask_unused
from schoolhouse.types import Rollout, SchoolError

if TYPE_CHECKING:
    from schoolhouse.model.hf_adapter import HFAdapter

OnToken = Callable[[int, int, float], bool | None]
"""A callback for each sampled token. Its arguments: number of the rollout, token id, log-probability. The result True
ends the turn."""


class StopMatcher(NamedTuple):
    """A stop matcher decides from the token ids of a turn whether the turn ends.

    The generator calls `matches` only if the newest token is marked True in the mask `candidates` [V].
    """

    candidates: Tensor
    matches: Callable[[Sequence[int]], bool]


class RequestSource(Protocol):
    """A source gives new requests while earlier requests are being served.

    The requests of a source are numbered from 0, in the order in which the source gives them.
    """

    def new_requests(self, busy: bool) -> Sequence[Request] | None:
        """Return the requests that arrived after the last step, or None if the source is closed.

        If no slot is `busy`, `new_requests` may wait until a request arrives.
        """
        ...

    def on_logits(self, owners: np.ndarray, logits_SV: Tensor) -> None:
        """The generator calls `on_logits` in each step before sampling, with the logits of the step.

        `owners` [S] holds the number of the rollout in each slot.
        """
        ...

    def on_finished(self, number: int, rollout: Rollout) -> None:
        """The generator calls `on_finished` with each rollout that is complete."""
        ...


@torch.no_grad()
def extend(
    decoder: Decoder | HFAdapter | PackedDecoder,
    rollouts: Sequence[Rollout],
    max_new_tokens: int | Sequence[int],
    stop_ids: Sequence[int],
    policy_version: int,
    *,
    params: SamplingParams = SamplingParams(),  # noqa: B008 (a plain tuple)
    num_slots: int = 512,
    max_total_tokens: int | None = None,
    next_turn: NextTurn | None = None,
    stop_matcher: StopMatcher | None = None,
    logit_bias: Tensor | None = None,
    num_candidates: int = 0,
    unused_ids: Tensor | None = None,
    attention: tuple[type[PackedAttention], type[SlotKVCache]] = (PackedAttention, SlotKVCache),
    source: RequestSource | None = None,
    on_token: OnToken | None = None,
    progress: Callable[[int], None] | None = None,
    meter: SamplingProgress | None = None,
) -> list[Rollout]:
    """Sample up to `max_new_tokens` tokens after each prefix. Returns the rollouts in the order of their prefixes.

    `max_new_tokens`: limit of sampled tokens per turn; give one number for all rollouts, or one number for each
        rollout.
    `stop_ids`: token ids that end a turn.
    `policy_version`: the version of the policy, which is stored in each rollout.
    `num_slots`: maximum number of rollouts that are sampled at the same time. If the free memory is too small for so
        many slots, fewer rollouts are sampled at the same time.
    `max_total_tokens`: limit for the tokens of all turns together, without the first prefix. With a `source`,
        `max_total_tokens` includes the first prefix.
    `next_turn`: a function that is called when a turn ends and that gives the prefix of the next turn. A rollout stays
        in its slot (a row of the KV cache) between its turns. The model reads the added context token by token, while
        other slots sample. Sampling all turns in one call gives the same tokens as a separate call for each turn.
    `stop_matcher`: decides from the text of a turn whether the turn ends.
    `logit_bias`: a number for each token of the vocabulary [V], which is added to the logit of this token.
    `num_candidates`: the number of most likely tokens that each rollout records for each sampled token.
    `unused_ids`: the ids without a token, which are never sampled.
    `attention`: the two classes that compute attention, one class for the prefill and one class (with the KV cache) for
        decoding.
    `source`: gives more requests, each with its own sampling parameters, until the source closes. The rollouts of a
        `source` go to `source.on_finished` and are not returned.
    `on_token`: a function that is called for each sampled token. If `on_token` returns True, the turn ends.
    `progress`: a function that is called with the number of rollouts that have just finished.
    `meter`: an object that counts tokens and rollouts for the progress display.
    """
    config, device = decoder.config, next(decoder.parameters()).device
    limits = [max_new_tokens] * len(rollouts) if isinstance(max_new_tokens, int) else list(max_new_tokens)
    _check(rollouts, limits, config.max_seq_len, params.temperature)
    num_candidates = min(num_candidates, config.vocab_size)
    if num_candidates and (params.temperature < GREEDY_BELOW or params != SamplingParams(params.temperature)):
        raise SchoolError(
            "`num_candidates` records log-probabilities of the whole vocabulary: leave out `top_k`, `top_p` and "
            f"`min_p`, and set `temperature` to {GREEDY_BELOW} or more"
        )
    longest_prompt = max_total_tokens or config.max_seq_len if source else max(map(len, rollouts), default=0)
    capacity = max(max(limits, default=0), max_total_tokens or 0, longest_prompt if source else 0)
    packed_attention, slot_cache = attention
    num_prompts = num_slots if source else len({r.tokens for r in rollouts})
    if not source:
        sizes = (len(rollouts), num_prompts, longest_prompt, capacity)
        recorded = len(rollouts) * capacity * num_candidates * CANDIDATE_BYTES
        need = sampling_need(config, slot_cache, *sizes)
        num_slots = choose_num_slots(need, num_slots, device, recorded) if rollouts else 0
    cache = slot_cache(
        config.num_hidden_layers,
        num_slots,
        config.num_key_value_heads,
        config.head_dim,
        prompt_capacity=longest_prompt,
        capacity=capacity,
        max_prompts=num_prompts,
        device=device,
    )

    def decode(token_S: Tensor) -> Tensor:  # [S] -> [S, V]
        return decoder.project(decoder(token_S, cache.begin_step(), cache))

    decode_step = GraphedStep(decode, cache) if isinstance(cache, StaticSlotKVCache) else decode
    table = SlotTable(rollouts, limits, params, policy_version, num_slots, capacity, config.max_seq_len, device)
    stop_V = torch.zeros(config.vocab_size, dtype=torch.bool, device=device)
    stop_V[[token for token in stop_ids if token < config.vocab_size]] = True
    candidate_V = None if stop_matcher is None else stop_matcher.candidates.to(device)
    finished: dict[int, Rollout] = {}
    logits_SV: Tensor | None = None
    last_hidden: dict[tuple[int, ...], Tensor] = {}

    while table.waiting or cache.busy or source:
        requests = source.new_requests(bool(table.waiting or cache.busy)) if source else ()
        table.add(requests or ())
        if not table.waiting and not cache.busy:
            if requests is None:
                break
            continue
        # Prefill of several prompts together is faster, so prompts wait for free slots. Requests of a source do not.
        if table.waiting and cache.free >= (1 if source else max(1, num_slots // 4)):
            prompts = table.admit(cache.busy, cache.free)
            new_logits_SV = _prefill(decoder, packed_attention, cache, prompts, last_hidden)
            logits_SV = new_logits_SV if logits_SV is None else torch.cat((logits_SV, new_logits_SV))
        assert logits_SV is not None
        busy = cache.busy
        logits_SV = mask_unused(logits_SV, unused_ids)
        if logit_bias is not None:
            logits_SV = logits_SV + logit_bias
        if source:
            source.on_logits(table.owner[:busy], logits_SV)
        token_S, logprob_S = sample_each(logits_SV, table.uniforms(busy), table.sampling_params(busy))
        if not bool(torch.isfinite(logprob_S).all()):
            raise SchoolError(
                "the model computes log-probabilities that are not finite: its weights contain NaN or infinity, or its "
                "computation overflows. Go back to an earlier checkpoint, or set precision to float32"
            )
        sampled_S = table.append(token_S, logprob_S)  # False if the slot reads a token of added context instead
        if num_candidates:
            likely = most_likely(logits_SV, token_S, logprob_S, params.temperature, num_candidates)
            table.keep_candidates(sampled_S, *likely)
        stopped_S = stop_V[token_S] & sampled_S
        if on_token:
            columns = (table.owner[:busy], token_S.tolist(), logprob_S.tolist(), sampled_S.tolist())
            ends = [
                sampled and on_token(int(owner), token, logprob)
                for owner, token, logprob, sampled in zip(*columns, strict=True)
            ]
            stopped_S |= torch.tensor([bool(end) for end in ends], device=device)
        if stop_matcher is not None and candidate_V is not None:
            for slot in (candidate_V[token_S] & sampled_S & ~stopped_S).nonzero()[:, 0].tolist():
                stopped_S[slot] = stop_matcher.matches(table.tokens[slot, : int(table.count[slot])].tolist())
        finished_S = stopped_S | (sampled_S & (table.count[:busy] == table.limit[:busy]))
        for slot in finished_S.nonzero()[:, 0].tolist():
            rollout = table.finish_turn(slot, "stop" if bool(stopped_S[slot]) else "length", next_turn)
            if rollout is None:
                finished_S[slot] = False
            elif source:
                source.on_finished(int(table.owner[slot]), rollout)
            else:
                finished[int(table.owner[slot])] = rollout
        if meter:
            meter.after_step(busy)
        if bool(finished_S.any()):
            if meter:
                ended = stopped_S & finished_S
                meter.after_finished(table.count[:busy][finished_S].tolist(), int(ended.sum()))
            if progress:
                progress(int(finished_S.sum()))
            order = cache.release(finished_S)
            table.compact(order)
            token_S = token_S[order]
        if cache.busy:
            logits_SV = decode_step(token_S)
            cache.end_step()
        else:
            logits_SV = None
    return [finished[number] for number in sorted(finished)]


def _check(rollouts: Sequence[Rollout], limits: Sequence[int], max_seq_len: int, temperature: float) -> None:
    if len(limits) != len(rollouts):
        raise SchoolError(
            f"`max_new_tokens` has {len(limits)} values, but there are {len(rollouts)} rollouts: give one number for "
            "all rollouts, or one number for each rollout"
        )
    for rollout, limit in zip(rollouts, limits, strict=True):
        if not len(rollout):
            raise SchoolError(f"a rollout of problem {rollout.problem.id} has no tokens: begin it with a prompt")
        if limit < 1:
            raise SchoolError(f"`max_new_tokens` is {limit}: set it to 1 or more")
        if len(rollout) + limit > max_seq_len:
            raise SchoolError(
                f"a prompt has {len(rollout)} tokens and `max_new_tokens` is {limit}, together {len(rollout) + limit} "
                f"tokens, but the model can read at most {max_seq_len} tokens: lower `max_new_tokens`, or train a "
                "model with a larger max_position_embeddings"
            )
    if temperature < 0:
        raise SchoolError(f"`temperature` is {temperature}: set it to 0 (always the most likely token) or more")


def _prefill(
    decoder: Decoder | HFAdapter | PackedDecoder,
    packed_attention: type[PackedAttention],
    cache: SlotKVCache,
    prompts: Sequence[tuple[int, ...]],
    last_hidden: dict[tuple[int, ...], Tensor],
) -> Tensor:
    """Put each prompt into a free slot. Returns the logits [S, V] after the last token of each prompt.

    Prompts that are already in the KV cache are not prefilled again.

    `last_hidden`: the hidden state [C] of the last token of each prompt in the KV cache.
    """
    for dropped in last_hidden.keys() - set(cache.prompt_names):
        del last_hidden[dropped]
    new_prompts = [prompt for prompt in dict.fromkeys(prompts) if prompt not in last_hidden]
    for group in group_prompts(new_prompts):
        packed, hidden_PC = _read_prompts(decoder, packed_attention, group, cache.lengths.device)
        cache.store_prompts(packed, group)
        last_hidden.update(zip(group, hidden_PC, strict=True))
    cache.admit(prompts)
    place = {prompt: at for at, prompt in enumerate(dict.fromkeys(prompts))}
    logits_PV = decoder.project(torch.stack([last_hidden[prompt] for prompt in place]))
    return logits_PV[torch.tensor([place[prompt] for prompt in prompts], device=logits_PV.device)]


def _read_prompts(
    decoder: Decoder | HFAdapter | PackedDecoder,
    packed_attention: type[PackedAttention],
    prompts: Sequence[tuple[int, ...]],
    device: torch.device,
) -> tuple[PackedAttention, Tensor]:
    """Compute the keys and values of prompts, and the hidden state [P, C] of the last token of each prompt.

    A prompt that is too long for one forward pass is read in chunks. With the precision `exact` there are no chunks.
    """
    tokens_N = torch.tensor([token for prompt in prompts for token in prompt], device=device)
    if len(tokens_N) > PREFILL_TOKENS and packed_attention in (PackedAttention, NativePackedAttention):
        chunk, hidden_NC = None, tokens_N
        for part_N in tokens_N.split(PREFILL_TOKENS):
            chunk = PromptChunk(len(part_N), device, chunk)
            hidden_NC = decoder(part_N, chunk.positions, chunk)
        assert chunk is not None
        return chunk, hidden_NC[-1:]
    packed = packed_attention([len(prompt) for prompt in prompts], device=device, keep_kv=True)
    hidden_NC = decoder(tokens_N, packed.positions, packed)
    return packed, hidden_NC[torch.cumsum(packed.lengths, 0) - 1]
