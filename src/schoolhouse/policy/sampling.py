"""Sample one token from logits: filters, temperature, one uniform number a token.

S slots busy in this step, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from schoolhouse.model.fused_ops import logprobs_and_entropy, sample_fused

_BLOCK = 64

GREEDY_BELOW = 1e-4  # float32 keeps five digits of a logit divided by it


class SamplingParams(NamedTuple):
    """How a token is sampled: see `sample`."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0


def filter_logits(logits_SV: Tensor, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0) -> Tensor:
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


def sample(
    logits_SV: Tensor, uniform_S: Tensor, temperature: float, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
) -> tuple[Tensor, Tensor]:
    """One token for each slot and its log-probability under exactly the distribution it was drawn from: [S], [S].

    By inverting the cumulative distribution: one uniform number a token. Temperature 0, or one so low that logits
    divided by it say no more, takes the likeliest token, and reports its log-probability at temperature 1.
    """
    if temperature < GREEDY_BELOW:
        token_S = logits_SV.argmax(-1)
        return token_S, logprobs_and_entropy(logits_SV, token_S, 1.0)[0]
    narrowed = top_k > 0 or top_p < 1.0 or min_p > 0.0
    drawn = None if narrowed else sample_fused(logits_SV, uniform_S, temperature)
    if drawn:
        return drawn
    logits_SV = logits_SV.float() / temperature
    if narrowed:
        logits_SV = filter_logits(logits_SV, top_k, top_p, min_p)
    mass_SV = logits_SV.softmax(-1)
    # In two steps, the block of tokens and the token in it: sums over blocks are quick, running sums are not.
    mass_SBV = F.pad(mass_SV, (0, -mass_SV.shape[-1] % _BLOCK)).unflatten(-1, (-1, _BLOCK))
    mass_SB = mass_SBV.sum(-1).double()
    block_S, rest_S = _fall(mass_SB, uniform_S * mass_SB.sum(-1))
    place_S, _ = _fall(mass_SBV[torch.arange(len(block_S), device=block_S.device), block_S].double(), rest_S)
    token_S = block_S * _BLOCK + place_S
    return token_S, logprobs_and_entropy(logits_SV, token_S, 1.0)[0]


def _fall(mass_SX: Tensor, point_S: Tensor) -> tuple[Tensor, Tensor]:
    """Where a point falls when masses lie end to end, and how far into that mass: [S], [S].

    Never in a place without mass, even where rounding puts the point before or behind everything.
    """
    until_SX, point_SX = mass_SX.cumsum(-1), point_S.clamp_min(0.0)[:, None]
    place_SX = torch.searchsorted(until_SX, point_SX, right=True)
    place_SX = torch.minimum(place_SX, (until_SX < until_SX[:, -1:]).sum(-1, keepdim=True))
    before_SX = until_SX.gather(1, place_SX) - mass_SX.gather(1, place_SX)
    return place_SX[:, 0], (point_SX - before_SX)[:, 0]


def sample_each(logits_SV: Tensor, uniform_S: Tensor, params: Sequence[SamplingParams]) -> tuple[Tensor, Tensor]:
    """`sample`, with the same parameters for all slots (one of them) or with those of each slot."""
    if len(set(params)) == 1:
        return sample(logits_SV, uniform_S, *params[0])
    token_S = torch.zeros(len(params), dtype=torch.long, device=logits_SV.device)
    logprob_S = torch.zeros(len(params), device=logits_SV.device)
    for shared_params, alike in groupby(sorted(range(len(params)), key=params.__getitem__), key=params.__getitem__):
        rows = torch.tensor(list(alike), device=logits_SV.device)
        token_S[rows], logprob_S[rows] = sample(logits_SV[rows], uniform_S[rows], *shared_params)
    return token_S, logprob_S
