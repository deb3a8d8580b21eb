"""A check of whether an estimator returns the exact policy gradient. The policy is small, so all completions can be
listed.

The vocabulary has 4 tokens, and one of these tokens ends a completion. A completion has at most 3 tokens. The policy is
a table of 16 numbers: the logits of the next token, given the previous token or the start. Estimators use the package's
own advantages, packing and losses on 200,000 samples. For an exact estimator, the mean of each parameter lies within a
few standard errors of the exact gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import torch
from torch import Tensor

from schoolhouse.algorithms.advantages import group_advantage
from schoolhouse.algorithms.groups import rollouts_of
from schoolhouse.algorithms.losses import Loss
from schoolhouse.algorithms.packing import Batch, Scores, TokenWeight, pack
from schoolhouse.randomness import numpy_random
from schoolhouse.types import NAN, Candidates, Group, Key, Problem, Rollout, Verdict

VOCAB_SIZE, MAX_TOKENS = 4, 3
END = START = 3  # the token before a completion is the end of another
GROUP_SIZE, NUM_GROUPS = 4, 50_000
PROBLEM = Problem("toy", (), "")

COMPLETIONS = [
    completion
    for length in range(1, MAX_TOKENS + 1)
    for completion in product(range(VOCAB_SIZE), repeat=length)
    if END not in completion[:-1] and (completion[-1] == END or length == MAX_TOKENS)
]
"""All possible completions."""

_random = numpy_random(Key(0, "toy"))
LOGITS = torch.tensor(_random.normal(size=(VOCAB_SIZE, VOCAB_SIZE)))
LOGIT_NOISE = torch.tensor(0.3 * _random.normal(size=(VOCAB_SIZE, VOCAB_SIZE)))
REWARDS = [float(r) for r in (_random.random(len(COMPLETIONS)) < 0.3) + 0.2 * _random.random(len(COMPLETIONS))]
"""The reward of each completion."""


def token_logprob(logits: Tensor, completion: tuple[int, ...]) -> Tensor:
    """The log-probability of each token of a completion [T]."""
    return logits.log_softmax(-1)[[START, *completion[:-1]], list(completion)]


def exact_gradient() -> Tensor:
    """The gradient [16] of the expected reward with respect to the logits.

    The expected reward is the sum of probability x reward over all completions.
    """
    logits = LOGITS.clone().requires_grad_()
    probabilities = torch.stack([token_logprob(logits, completion).sum() for completion in COMPLETIONS]).exp()
    expected_reward = (probabilities * torch.tensor(REWARDS)).sum()
    return torch.autograd.grad(expected_reward, logits)[0].flatten()


def sample_groups(sampler_logits: Tensor, seed: int, num_candidates: int = 0) -> list[Group]:
    """Draw NUM_GROUPS groups of rollouts from the sampler's exact distribution over completions.

    `num_candidates`: the number of the sampler's most likely tokens that each rollout records for each token.
    """
    top = sampler_logits.log_softmax(-1).topk(num_candidates)
    ids, values = top.indices.int().numpy(), top.values.numpy()
    logprobs = [token_logprob(sampler_logits, completion) for completion in COMPLETIONS]
    probabilities = torch.stack([row.sum() for row in logprobs]).exp().numpy()
    rollouts = [
        Rollout(
            PROBLEM,
            Key(0, "toy", 0, 0, i),
            (START, *completion),
            (False, *(True for _ in completion)),
            (NAN, *logprob.tolist()),
            candidates=Candidates(*(rows[[START, *completion[:-1]]] for rows in (ids, values)))
            if num_candidates
            else None,
        )
        for i, (completion, logprob) in enumerate(zip(COMPLETIONS, logprobs, strict=True))
    ]
    verdicts = [Verdict(reward) for reward in REWARDS]
    size, shares = (NUM_GROUPS, GROUP_SIZE), probabilities / probabilities.sum()
    drawn = numpy_random(Key(seed, "sample")).choice(len(COMPLETIONS), size=size, p=shares)
    return [
        Group(PROBLEM, tuple(rollouts[i] for i in members), tuple(verdicts[i] for i in members))
        for members in drawn.tolist()
    ]


def gradient_estimates(
    groups: list[Group], loss: Loss, token_weight: Callable[[list[Rollout]], TokenWeight], **advantage_options: Any
) -> Tensor:
    """The gradient that each group estimates [NUM_GROUPS, 16]."""
    return gradient_of_rows(groups, loss, token_weight, advantage=group_advantage(groups, **advantage_options))


def gradient_of_rows(
    groups: Sequence[Group],
    loss: Loss,
    token_weight: Callable[[list[Rollout]], TokenWeight],
    **rows: Any,
) -> Tensor:
    """Return the gradient estimate of each group, [NUM_GROUPS, 16]. `rows` has the columns of the loss, such as
    `advantage`."""
    rollouts = rollouts_of(groups)
    sampled = [rollout.logprob for rollout in rollouts]
    group = [[i // GROUP_SIZE] * len(rollout) for i, rollout in enumerate(rollouts)]
    (batch,) = pack(rollouts, token_weight(rollouts), 10**9, sampled=sampled, group=group, **rows)
    previous = torch.where(batch.loss_mask, batch.tokens.roll(1), START)
    coefficient_NV = _gradient_coefficient(batch, loss, previous)
    gradient_NV = coefficient_NV - coefficient_NV.sum(-1, keepdim=True) * LOGITS.softmax(-1)[previous]
    index = (batch["group"].long()[:, None] * VOCAB_SIZE + previous[:, None]) * VOCAB_SIZE + torch.arange(VOCAB_SIZE)
    sums = torch.zeros(NUM_GROUPS * VOCAB_SIZE**2, dtype=torch.float64)
    sums.index_add_(0, index.flatten(), gradient_NV.flatten())
    return sums.view(NUM_GROUPS, -1) * NUM_GROUPS  # weights are global: its own estimate is NUM_GROUPS times its share


def _gradient_coefficient(batch: Batch, loss: Loss, previous: Tensor) -> Tensor:
    """The factor that multiplies the gradient of log pi of each token of the vocabulary, at each token [N, V].

    Autograd computes the factor from the package's own loss.
    """
    logprob_NV = LOGITS.log_softmax(-1)[previous].requires_grad_()
    logprob = logprob_NV.gather(1, batch.tokens[:, None] % VOCAB_SIZE)[:, 0]
    candidates = logprob_NV[batch.loss_mask].gather(1, batch.candidates[0]) if batch.candidates else None
    total = (batch.weight * loss(batch, Scores(logprob, logprob.detach(), candidates))).sum()
    return -torch.autograd.grad(total, logprob_NV)[0]


def max_standard_errors(estimates: Tensor, exact: Tensor) -> float:
    """The distance between the mean estimate and the exact gradient, in standard errors, for the worst parameter."""
    standard_error = estimates.std(0) / math.sqrt(len(estimates))
    return float(((estimates.mean(0) - exact).abs() / standard_error).max())
