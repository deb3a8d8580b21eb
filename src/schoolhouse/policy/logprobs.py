"""Log-probabilities of the tokens of a text, and the most likely tokens at each position.

In names of tensors, N stands for the tokens in a part of the text, C for the width of the model, and V for the
vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from schoolhouse.policy.policy import Policy
from schoolhouse.policy.unused_ids import mask_unused

_CHUNK_TOKENS = 512  # number of tokens whose logits are in memory at the same time


class TokenLogprob(NamedTuple):
    """One token of a text.

    `logprob`: the log-probability of the token; None for the first token of the text, because no token comes before it.
    `top_logprobs`: the most likely tokens at the token's position, as pairs (id, log-probability).
    """

    token: int
    logprob: float | None
    top_logprobs: tuple[tuple[int, float], ...]


@torch.no_grad()
def token_logprobs(policy: Policy, tokens: Sequence[int], num_top: int = 1) -> list[TokenLogprob]:
    """Compute the log-probability of each token of a text, given the tokens before it.

    For each position, the result also has the `num_top` most likely tokens.
    """
    ids = torch.tensor(list(tokens), device=policy.device)
    with policy.autocast():
        packed = policy.packed_attention([len(ids)], policy.device)
        hidden_NC = policy.decoder(ids, packed.positions, packed)
        results = [TokenLogprob(int(ids[0]), None, ())]
        for start in range(0, len(ids) - 1, _CHUNK_TOKENS):
            next_N = ids[start + 1 : start + 1 + _CHUNK_TOKENS]
            logits_NV = policy.decoder.project(hidden_NC[start : start + len(next_N)])
            logits_NV = mask_unused(logits_NV, policy.unused_ids)
            logprob_NV = logits_NV.float().log_softmax(-1)
            logprobs = logprob_NV.gather(1, next_N[:, None])[:, 0].tolist()
            top = logprob_NV.topk(min(num_top, logprob_NV.shape[1]))
            top_ids, top_values = top.indices.tolist(), top.values.tolist()
            for at, (token, logprob) in enumerate(zip(next_N.tolist(), logprobs, strict=True)):
                top_logprobs = tuple(zip(top_ids[at], top_values[at], strict=True))
                results.append(TokenLogprob(token, logprob, top_logprobs))
    return results
