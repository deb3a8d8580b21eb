"""One function for a supervised update.

Pretraining, fine-tuning, STaR and the training of reward models use the function `supervised_update`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from schoolhouse.algorithms.losses import Loss, negative_log_likelihood
from schoolhouse.algorithms.packing import TokenWeight, pack, token_mean
from schoolhouse.algorithms.settings import Optimizer
from schoolhouse.policy.memory_check import check_learning_memory
from schoolhouse.policy.policy import Policy
from schoolhouse.types import Rollout


def supervised_update(
    policy: Policy,
    rollouts: Sequence[Rollout],
    optimizer: Optimizer,
    step: int,
    steps: int,
    microbatch_tokens: int,
    *,
    loss_fn: Loss | None = None,
    aggregation: Callable[[Sequence[Rollout]], TokenWeight] = token_mean,
    prompts: bool = True,
    **columns: Any,
) -> dict[str, Any]:
    """Make update number `step` of `steps` updates, on the tokens in the loss masks.

    Returns its metrics. The metric `largest_microbatch` is the number of tokens of the largest micro-batch.
    Raises SchoolError if the memory is too small for the first update.

    `loss_fn`: the loss; by default the negative log-likelihood.
    `aggregation`: a function that gives the weight of each token in the loss.
    `prompts`: whether the rollouts have prompts. In pretraining there are no prompts, and every token may be in the
        loss mask.
    `columns`: more data that the loss needs for each token. Each entry of `columns` is a list that has one array [T]
        for each rollout.
    """
    batches = pack(rollouts, aggregation(rollouts), microbatch_tokens, prompts=prompts, **columns)
    largest = max(len(batch.tokens) for batch in batches)
    if not policy.learner.optimizer.state:  # before the first update
        check_learning_memory(policy, largest)
    learning_rate = optimizer.rate(step, steps)
    metrics = policy.update(batches, loss_fn or negative_log_likelihood(), learning_rate, optimizer.max_grad_norm)
    return {**metrics, "learning_rate": learning_rate, "largest_microbatch": largest}
