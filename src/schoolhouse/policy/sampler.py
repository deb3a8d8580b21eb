"""Extend prefixes: each distinct prefix is read once, then all rollouts grow together, one token a step.

S slots busy in this step, V vocabulary. What a rollout draws depends on its key and the weights, not on its neighbours.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from schoolhouse.policy.decoder import Decoder
from schoolhouse.policy.memory import Packed, Slots
from schoolhouse.randomness import digest, uniforms
from schoolhouse.types import Rollout, SchoolError

if TYPE_CHECKING:
    from schoolhouse.policy.huggingface import Adapter
    from schoolhouse.policy.policy import Policy

OnToken = Callable[[int, int, float], None]
"""Called with (index of the rollout, token id, its log-probability) as soon as a token is sampled."""


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
        return token_S, logits_SV.log_softmax(-1).gather(1, token_S[:, None])[:, 0]
    logprob_SV = narrow(logits_SV / temperature, top_k, top_p, min_p).log_softmax(-1)
    mass_SV = logprob_SV.double().exp().cumsum(-1)
    token_S = torch.searchsorted(mass_SV, uniform_S[:, None] * mass_SV[:, -1:], right=True)[:, 0]
    # a uniform at the very top can fall behind the last token with any mass
    token_S = torch.minimum(token_S, (mass_SV < mass_SV[:, -1:]).sum(-1))
    return token_S, logprob_SV.gather(1, token_S[:, None])[:, 0]


@torch.no_grad()
def extend(
    decoder: Decoder | Adapter,
    rollouts: Sequence[Rollout],
    length: int,
    stop: Sequence[int],
    version: int,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    slots: int = 512,
    on_token: OnToken | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[Rollout]:
    """Let the policy say up to `length` tokens after each prefix; a turn ends after an id in `stop`.

    Rollouts come back in the order given. `progress` is told the number of rollouts that just ended.
    """
    shape, device = decoder.shape, next(decoder.parameters()).device
    longest = max((len(r) for r in rollouts), default=0) + length
    _check(rollouts, length, longest, shape.longest, temperature)
    slots = min(slots, len(rollouts))
    memory = Slots(shape.num_hidden_layers, slots, shape.num_key_value_heads, longest, shape.head_dim, device)
    stop_V = torch.zeros(shape.vocab_size, dtype=torch.bool, device=device)
    stop_V[list(stop)] = True
    queue = deque(range(len(rollouts)))
    done: list[Rollout | None] = [None] * len(rollouts)

    said = torch.zeros(slots, length, dtype=torch.long, device=device)  # [S, length]
    sure = torch.zeros(slots, length, device=device)  # [S, length] log-probability of each
    count = torch.zeros(slots, dtype=torch.long, device=device)  # [S] tokens said
    owner = np.zeros(slots, dtype=np.int64)  # [S] index of the rollout in this slot
    stream = np.zeros(slots, dtype=np.uint64)  # [S] digest of its key
    logits_SV = torch.empty(0, shape.vocab_size, device=device)

    while queue or memory.busy:
        if queue and memory.free >= max(1, slots // 4):  # read several prompts at once: prefill pays in batches
            new = [queue.popleft() for _ in range(min(memory.free, len(queue)))]
            at = slice(memory.busy, memory.busy + len(new))
            owner[at], count[at] = new, 0
            stream[at] = [digest(rollouts[i].key) for i in new]
            logits_SV = torch.cat((logits_SV, _prefill(decoder, memory, [rollouts[i].tokens for i in new])))
        busy = memory.busy
        uniform = uniforms(stream[:busy], count[:busy].cpu().numpy())
        token_S, logprob_S = choose(
            logits_SV, torch.from_numpy(uniform).to(device), temperature, top_k=top_k, top_p=top_p, min_p=min_p
        )
        said[:busy].scatter_(1, count[:busy, None], token_S[:, None])
        sure[:busy].scatter_(1, count[:busy, None], logprob_S[:, None])
        count[:busy] += 1
        if on_token:
            for i, token, logprob in zip(owner[:busy], token_S.tolist(), logprob_S.tolist(), strict=True):
                on_token(int(i), token, logprob)
        stopped_S = stop_V[token_S]
        over_S = stopped_S | (count[:busy] == length)
        if bool(over_S.any()):
            for slot in over_S.nonzero()[:, 0].tolist():
                n, i = int(count[slot]), int(owner[slot])
                finish = "stop" if bool(stopped_S[slot]) else "length"
                done[i] = rollouts[i].said(said[slot, :n].tolist(), sure[slot, :n].tolist(), finish, version)
            if progress:
                progress(int(over_S.sum()))
            order = memory.release(over_S)
            stay = len(order)
            places = order.cpu().numpy()
            for rows in (said, sure, count):
                rows[:stay] = rows[order]
            owner[:stay], stream[:stay], token_S = owner[places], stream[places], token_S[order]
        if memory.busy:
            hidden_SC = decoder(token_S, memory.begin_step(), memory)
            memory.end_step()
            logits_SV = decoder.project(hidden_SC).float()
        else:
            logits_SV = logits_SV[:0]
    return [r for r in done if r is not None]


def _check(rollouts: Sequence[Rollout], length: int, longest: int, limit: int, temperature: float) -> None:
    for rollout in rollouts:
        if not len(rollout):
            raise SchoolError(
                f"a rollout of problem {rollout.problem.id} has no tokens to go on from; give it a prompt"
            )
    if length < 1:
        raise SchoolError(f"`length` is {length}: a turn has at least 1 token")
    if temperature < 0:
        raise SchoolError(f"`temperature` is {temperature}: give 0 (the likeliest token) or more")
    if longest > limit:
        raise SchoolError(
            f"a prompt of {longest - length} tokens and {length} new ones make {longest}, but the model reads at most "
            f"{limit}; lower `length` or train a model with a larger max_position_embeddings"
        )


def _prefill(decoder: Decoder | Adapter, memory: Slots, prompts: Sequence[tuple[int, ...]]) -> Tensor:
    """Read each distinct prompt once into as many slots as want it; logits [n, V] after each."""
    distinct = {prompt: index for index, prompt in enumerate(dict.fromkeys(prompts))}
    device = memory.length.device
    packed = Packed([len(prompt) for prompt in distinct], device=device, keep=True)
    tokens_N = torch.tensor([token for prompt in distinct for token in prompt], device=device)
    hidden_NC = decoder(tokens_N, packed.positions, packed)
    last = torch.cumsum(packed.lengths, 0) - 1
    source = torch.tensor([distinct[prompt] for prompt in prompts], device=device)
    memory.admit(packed, source)
    return decoder.project(hidden_NC[last]).float()[source]


def stream(
    policy: Policy,
    ask: Callable[[int], Sequence[Rollout]],
    act: Callable[[Policy, Sequence[Rollout]], list[Rollout]],
    steps: Iterable[int],
    lag: int = 0,
) -> Iterator[tuple[int, list[Rollout]]]:
    """(step, rollouts) for each step; with lag n they were sampled n updates before they are handed out.

    Lag 0 is on-policy: sample, hand out, wait until the caller has updated.
    """
    waiting: deque[tuple[int, list[Rollout]]] = deque()
    for step in steps:
        waiting.append((step, act(policy, ask(step))))
        if len(waiting) > lag:
            yield waiting.popleft()
    yield from waiting
