"""Masks token ids without a token: a model can compute more logits than its tokenizer has tokens.

For each position, Qwen2.5 computes 151,936 logits, but its tokenizer has only 151,665 tokens. An id without a token has
no text, so it is never sampled. For an id without a token, the sampler, the learner and the scores all use the
probability 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

NEVER = -1e9
"""The logit of an id that is never sampled. It is finite, so that entropies and gradients stay finite."""


def find_unused_ids(missing_ids: list[int], device: torch.device) -> Tensor | None:
    """Return the ids without a token as a tensor [U]. Returns None if every id has a token."""
    return torch.tensor(missing_ids, device=device) if missing_ids else None


def mask_unused(logits_SV: Tensor, unused_ids: Tensor | None) -> Tensor:
    """Return the logits [S, V], with the value `NEVER` for the ids without a token.

    If gradients are switched off, the function changes `logits_SV` itself.
    """
    if unused_ids is None:
        return logits_SV
    if torch.is_grad_enabled():
        return logits_SV.index_fill(1, unused_ids, NEVER)
    return logits_SV.index_fill_(1, unused_ids, NEVER)
