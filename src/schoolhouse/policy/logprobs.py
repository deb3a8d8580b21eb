"""How likely a policy finds each token of a text, and what it would rather have said."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from schoolhouse.policy.policy import Policy

_ROWS = 512  # tokens whose logits are held at once


class TokenLogprob(NamedTuple):
    """One token: its log-probability (None for the first, which follows nothing) and the likeliest in its place."""

    token: int
    logprob: float | None
    top_logprobs: tuple[tuple[int, float], ...]


@torch.no_grad()
def token_logprobs(policy: Policy, tokens: Sequence[int], num_top: int = 1) -> list[TokenLogprob]:
    """Log-probabilities of all tokens of one text, each after those before it."""
    ids = torch.tensor(list(tokens), device=policy.device)
    with policy.autocast():
        memory = policy.packed_attention([len(ids)], policy.device)
        hidden_NC = policy.decoder(ids, memory.positions, memory)
        found = [TokenLogprob(int(ids[0]), None, ())]
        for start in range(0, len(ids) - 1, _ROWS):
            after = ids[start + 1 : start + 1 + _ROWS]
            logits_NV = policy.decoder.project(hidden_NC[start : start + len(after)]).float().log_softmax(-1)
            said = logits_NV.gather(1, after[:, None])[:, 0].tolist()
            best = logits_NV.topk(min(num_top, logits_NV.shape[1])) if num_top else None
            for at, (token, logprob) in enumerate(zip(after.tolist(), said, strict=True)):
                likely = () if best is None else zip(best.indices[at].tolist(), best.values[at].tolist(), strict=True)
                found.append(TokenLogprob(token, logprob, tuple(likely)))
    return found
