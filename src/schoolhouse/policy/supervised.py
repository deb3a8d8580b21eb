"""One supervised step: the likelihood of rollouts, as fine-tuning, STaR and reward models learn it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from schoolhouse.algorithms.losses import Loss, negative_log_likelihood
from schoolhouse.algorithms.packing import TokenWeight, pack, token_mean
from schoolhouse.algorithms.settings import Optimizer
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
    """Update `step` of `steps` on the tokens of the loss masks. Gives the metrics of the update.

    loss_fn      the likelihood of the tokens unless given
    aggregation  how much a token counts
    prompts      False where every token may be learned (pretraining)
    columns      rows [T] for each rollout that the loss needs
    """
    batches = pack(rollouts, aggregation(rollouts), microbatch_tokens, prompts=prompts, **columns)
    rate = optimizer.rate(step, steps)
    stats = policy.update(batches, loss_fn or negative_log_likelihood(), rate, optimizer.max_grad_norm)
    return {**stats, "learning_rate": rate}
