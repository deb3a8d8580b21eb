"""Sample one token for each row of logits, with a temperature, filters and one uniform random number per token.

In names of tensors, S stands for busy slots (rows of the KV cache in use) in a step, and V for the vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from schoolhouse.model.fused_ops import logprobs_and_entropy, sample_fused

_BLOCK_SIZE = 64

GREEDY_BELOW = 1e-4
"""Below this temperature the most likely token is chosen, because float32 is too coarse for logits that are divided by
such a small number."""


class SamplingParams(NamedTuple):
    """The parameters of sampling. The functions `sample` and `filter_logits` explain the sampling parameters."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0


def filter_logits(logits_SV: Tensor, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0) -> Tensor:
    """Set the logits of unlikely tokens to -inf.

    The filter `top_k` keeps the `top_k` most likely tokens. The filter `top_p` keeps the smallest set of the most
    likely tokens whose total probability is at least `top_p` (Holtzman et al. 2019, arXiv 1904.09751). The filter
    `min_p` keeps tokens whose probability is at least `min_p` times the largest probability (Nguyen et al. 2024, arXiv
    2407.01082). The filters are applied in the order `top_k`, `top_p`, `min_p`. The most likely token is always kept.
    """
    if top_k:
        smallest_kept = logits_SV.topk(min(top_k, logits_SV.shape[-1]), dim=-1).values[:, -1:]
        logits_SV = logits_SV.masked_fill(logits_SV < smallest_kept, float("-inf"))
    if top_p < 1.0:
        sorted_SV, order_SV = logits_SV.softmax(-1).sort(dim=-1, descending=True)
        removed_SV = sorted_SV.cumsum(-1) - sorted_SV >= top_p
        removed_SV[:, 0] = False
        logits_SV = logits_SV.masked_fill(removed_SV.scatter(1, order_SV, removed_SV), float("-inf"))
    if min_p > 0.0:
        probability_SV = logits_SV.softmax(-1)
        threshold_S1 = min_p * probability_SV.amax(-1, keepdim=True)
        logits_SV = logits_SV.masked_fill(probability_SV < threshold_S1, float("-inf"))
    return logits_SV


def sample(
    logits_SV: Tensor, uniform_S: Tensor, temperature: float, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Sample one token for each slot. Returns the tokens [S] and their log-probabilities [S].

    The log-probability of a token is computed under the distribution from which the token was sampled. A token is the
    value of the inverse cumulative distribution at a uniform random number. If the temperature is below `GREEDY_BELOW`,
    the most likely token is chosen, and its log-probability is computed at temperature 1.
    """
    if temperature < GREEDY_BELOW:
        token_S = logits_SV.argmax(-1)
        return token_S, logprobs_and_entropy(logits_SV, token_S, 1.0)[0]
    filtered = top_k > 0 or top_p < 1.0 or min_p > 0.0
    fused = None if filtered else sample_fused(logits_SV, uniform_S, temperature)
    if fused:
        return fused
    logits_SV = logits_SV.float() / temperature
    if filtered:
        logits_SV = filter_logits(logits_SV, top_k, top_p, min_p)
    return sample_with_torch(logits_SV, uniform_S)


def most_likely(
    logits_SV: Tensor, token_S: Tensor, logprob_S: Tensor, temperature: float, count: int
) -> tuple[Tensor, Tensor]:
    """Return the ids [S, K] and the log-probabilities [S, K] of the K = `count` most likely tokens of each slot.

    `token_S` and `logprob_S`: the sampled tokens, and their log-probabilities in the distribution without filters.
    """
    logit_SK, id_SK = logits_SV.topk(count, dim=-1)
    chosen_S1 = logits_SV.gather(1, token_S[:, None])
    return id_SK, (logit_SK - chosen_S1).float() / temperature + logprob_S[:, None]


def sample_with_torch(logits_SV: Tensor, uniform_S: Tensor) -> tuple[Tensor, Tensor]:
    """Sample one token for each row of float32 logits at temperature 1. Returns the tokens and their log-probabilities.

    First a block of tokens is sampled, and then a token in this block, because sums over blocks are faster than
    cumulative sums.
    """
    mass_SV = logits_SV.softmax(-1)
    mass_SBV = F.pad(mass_SV, (0, -mass_SV.shape[-1] % _BLOCK_SIZE)).unflatten(-1, (-1, _BLOCK_SIZE))
    mass_SB = mass_SBV.sum(-1).double()
    block_S, remaining_S = _invert_cdf(mass_SB, uniform_S * mass_SB.sum(-1))
    block_mass_SV = mass_SBV[torch.arange(len(block_S), device=block_S.device), block_S].double()
    place_S, _ = _invert_cdf(block_mass_SV, remaining_S)
    token_S = block_S * _BLOCK_SIZE + place_S
    return token_S, logprobs_and_entropy(logits_SV, token_S, 1.0)[0]


def _invert_cdf(mass_SX: Tensor, point_S: Tensor) -> tuple[Tensor, Tensor]:
    """Find the index at which the cumulative probability mass reaches a point, for each slot.

    Returns the index of each slot [S], and the mass between the start of the index and the point [S]. An index with
    mass 0 is never chosen, even if rounding moves the point outside the range of the masses.
    """
    cumulative_SX, point_S1 = mass_SX.cumsum(-1), point_S.clamp_min(0.0)[:, None]
    place_S1 = torch.searchsorted(cumulative_SX, point_S1, right=True)
    last_with_mass_S1 = (cumulative_SX < cumulative_SX[:, -1:]).sum(-1, keepdim=True)
    place_S1 = torch.minimum(place_S1, last_with_mass_S1)
    before_S1 = cumulative_SX.gather(1, place_S1) - mass_SX.gather(1, place_S1)
    return place_S1[:, 0], (point_S1 - before_S1)[:, 0]


def sample_each(logits_SV: Tensor, uniform_S: Tensor, params: Sequence[SamplingParams]) -> tuple[Tensor, Tensor]:
    """Call `sample` with one set of parameters for all slots, or with one set for each slot.

    If the list `params` has only one set of parameters, this set applies to all slots.
    """
    if len(set(params)) == 1:
        return sample(logits_SV, uniform_S, *params[0])
    token_S = torch.zeros(len(params), dtype=torch.long, device=logits_SV.device)
    logprob_S = torch.zeros(len(params), device=logits_SV.device)
    slots_by_params = sorted(range(len(params)), key=params.__getitem__)
    for shared_params, slots in groupby(slots_by_params, key=params.__getitem__):
        rows = torch.tensor(list(slots), device=logits_SV.device)
        token_S[rows], logprob_S[rows] = sample(logits_SV[rows], uniform_S[rows], *shared_params)
    return token_S, logprob_S
