"""A toy small enough to enumerate: is it the policy gradient? 4 tokens, at most 3 of them, one ends a sequence.

Estimators run through the real credit, packing and objectives on 200,000 samples; the mean of an exact one lies within
a few standard errors of the exact gradient, parameter by parameter. The policy is a table: logits of the next token
given the one before (or the start), 16 numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from schoolhouse.algorithms.advantages import group_advantage
from schoolhouse.algorithms.groups import rollouts_of
from schoolhouse.algorithms.losses import Loss
from schoolhouse.algorithms.packing import Batch, Scores, TokenWeight, pack
from schoolhouse.randomness import numpy_random
from schoolhouse.types import NAN, Group, Key, Problem, Rollout, Verdict

VOCABULARY, LONGEST = 4, 3
END = START = 3  # a sequence starts behind the end of another
G, GROUPS = 4, 50_000
PROBLEM = Problem("toy", (), "")

REPLIES = [
    reply
    for length in range(1, LONGEST + 1)
    for reply in product(range(VOCABULARY), repeat=length)
    if END not in reply[:-1] and (reply[-1] == END or length == LONGEST)
]
_draw = numpy_random(Key(0, "toy"))
TABLE = torch.tensor(_draw.normal(size=(VOCABULARY, VOCABULARY)))
NOISE = torch.tensor(0.3 * _draw.normal(size=(VOCABULARY, VOCABULARY)))
REWARDS = [float(r) for r in (_draw.random(len(REPLIES)) < 0.3) + 0.2 * _draw.random(len(REPLIES))]


def token_logprob(table: Tensor, reply: tuple[int, ...]) -> Tensor:
    return table.log_softmax(-1)[[START, *reply[:-1]], list(reply)]


def exact_gradient() -> Tensor:
    """d/d(table) of the sum over all replies of pi(reply) x reward. [16]"""
    table = TABLE.clone().requires_grad_()
    chances = torch.stack([token_logprob(table, reply).sum() for reply in REPLIES]).exp()
    value = (chances * torch.tensor(REWARDS)).sum()
    return torch.autograd.grad(value, table)[0].flatten()


def sample(sampler: Tensor, seed: int) -> list[Group]:
    """GROUPS groups of G rollouts, drawn from the sampler's exact distribution over whole replies."""
    logprob = [token_logprob(sampler, reply) for reply in REPLIES]
    chances = torch.stack([row.sum() for row in logprob]).exp().numpy()
    rollouts = [
        Rollout(PROBLEM, Key(0, "toy", 0, 0, i), (START, *reply), (False, *(True for _ in reply)), (NAN, *row.tolist()))
        for i, (reply, row) in enumerate(zip(REPLIES, logprob, strict=True))
    ]
    verdicts = [Verdict(r) for r in REWARDS]
    drawn = numpy_random(Key(seed, "sample")).choice(len(REPLIES), size=(GROUPS, G), p=chances / chances.sum())
    return [
        Group(PROBLEM, tuple(rollouts[i] for i in four), tuple(verdicts[i] for i in four)) for four in drawn.tolist()
    ]


def estimate(
    groups: list[Group], objective: Loss, weigh: Callable[[list[Rollout]], TokenWeight], **credit: Any
) -> Tensor:
    """The gradient (ascent) that an update would follow, one estimate per group. [GROUPS, 16]"""
    rollouts = rollouts_of(groups)
    advantage = group_advantage(groups, **credit)
    sampled = [rollout.logprob for rollout in rollouts]
    group = [[i // G] * len(rollout) for i, rollout in enumerate(rollouts)]
    (batch,) = pack(rollouts, weigh(rollouts), 10**9, advantage=advantage, sampled=sampled, group=group)
    before = torch.where(batch.loss_mask, batch.tokens.roll(1), START)
    coefficient = _coefficient(batch, objective, before)
    softmax = TABLE.softmax(-1)[before]
    direction = F.one_hot(batch.tokens % VOCABULARY, VOCABULARY) - softmax  # d log pi / d logits
    place = (batch["group"].long()[:, None] * VOCABULARY + before[:, None]) * VOCABULARY + torch.arange(VOCABULARY)
    flat = torch.zeros(GROUPS * VOCABULARY**2, dtype=torch.float64)
    flat.index_add_(0, place.flatten(), (coefficient[:, None] * direction).flatten())
    return flat.view(GROUPS, -1) * GROUPS  # weights are global: a group's own estimate is GROUPS times its share


def _coefficient(batch: Batch, objective: Loss, before: Tensor) -> Tensor:
    """What the objective multiplies grad log pi with, at each token (by autograd through the real thing). [N]"""
    logprob = TABLE.log_softmax(-1)[before, batch.tokens % VOCABULARY].requires_grad_()
    loss = (batch.weight * objective(batch, Scores(logprob, logprob.detach()))).sum()
    return -torch.autograd.grad(loss, logprob)[0]


def furthest(estimates: Tensor, truth: Tensor) -> float:
    """The largest distance of the mean from the truth over the parameters, in standard errors."""
    error = estimates.std(0) / math.sqrt(len(estimates))
    return float(((estimates.mean(0) - truth).abs() / error).max())
