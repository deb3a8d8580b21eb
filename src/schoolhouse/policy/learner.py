"""The learner makes optimizer steps on packed batches, and computes the metrics of each step."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from schoolhouse.algorithms.losses import Loss
from schoolhouse.algorithms.packing import Batch, Scores
from schoolhouse.algorithms.settings import Optimizer
from schoolhouse.runs.progress import tracked
from schoolhouse.types import SchoolError

MetricsFn = Callable[[Batch, Scores], dict[str, float]]
"""A function that computes more metrics of a batch: means over the trained tokens of the batch, and the number of these
tokens under the name "tokens"."""


class Learner:
    """Trains a model with AdamW (Loshchilov and Hutter 2017, arXiv 1711.05101).

    Weight decay applies to weight matrices, but not to vectors such as biases.

    `step`: the number of updates so far.
    """

    def __init__(self, model: nn.Module, config: Optimizer) -> None:
        self.model, self.config, self.step = model, config, 0
        self.reset()

    def reset(self) -> None:
        """Create a new optimizer, so that AdamW's averages of past gradients start again from zero."""
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in parameters if p.dim() > 1], "weight_decay": self.config.weight_decay},
            {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
        ]
        betas = (self.config.adam_beta1, self.config.adam_beta2)
        self.optimizer = torch.optim.AdamW(groups, lr=0.0, betas=betas, eps=self.config.adam_eps, fused=True)

    def update(
        self,
        batches: Sequence[Batch],
        loss_fn: Loss,
        score_fn: Callable[[Batch], Scores],
        learning_rate: float,
        max_grad_norm: float = 1.0,
        max_logprob_gap: float = math.inf,
        metrics_fn: MetricsFn | None = None,
    ) -> dict[str, Any]:
        """Make one optimizer step on sum(weight x loss) over all batches.

        The result has the metrics of the optimizer step.

        Gradients are accumulated over the batches. The split of the rollouts into batches affects memory and speed, but
        not the result.

        `score_fn`: computes the log-probabilities of a batch, with the autograd graph for the backward pass.

        Raises SchoolError if the gradient is not finite, or if the log-probabilities of sampler and learner differ by
        more than `max_logprob_gap` on average. If `update` raises an error, the weights are not changed.
        """
        self.optimizer.zero_grad(set_to_none=True)
        totals = dict.fromkeys(("loss", "tokens", "entropy", "gap", "gap_tokens", "kl_to_reference"), 0.0)
        batch_metrics: list[dict[str, float]] = []
        num_tokens = sum(len(batch.tokens) for batch in batches)
        for batch in tracked("learning", batches, num_tokens, "token", lambda batch: len(batch.tokens)):
            scores = score_fn(batch)
            on_device = batch.to(scores.logprob.device)
            loss = (on_device.weight * loss_fn(on_device, scores)).sum()
            loss.backward()
            totals["loss"] += float(loss.detach())
            batch_metrics.append(metrics_fn(on_device, scores) if metrics_fn else {})
            _add_token_stats(totals, on_device, scores)
        grad_norm = float(torch.nn.utils.clip_grad_norm_(self.model.parameters(), max_grad_norm))
        if not math.isfinite(grad_norm):
            raise SchoolError(
                f"the gradient norm of update {self.step} is {grad_norm}; this update was not applied to the weights. "
                "Lower the learning rate, or look at the rollouts and advantages of this step"
            )
        gap = totals["gap"] / max(totals["gap_tokens"], 1.0)
        if gap > max_logprob_gap:
            raise SchoolError(
                f"log-probabilities of sampler and learner differ by {gap:.3g} on average before update {self.step}, "
                f"but `max_logprob_gap` is {max_logprob_gap:g}: the rollouts were not sampled by these weights. This "
                "update was not applied to the weights. Set precision to float32 or exact, and check that no code "
                "changes the weights between sampling and learning"
            )
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()
        self.step += 1
        tokens = max(totals["tokens"], 1.0)
        metrics = {"loss": totals["loss"], "grad_norm": grad_norm, "entropy": totals["entropy"] / tokens}
        metrics["trained_tokens"] = tokens
        if totals["gap_tokens"]:
            metrics["logprob_gap"] = gap
        if any(_has_kl(batch) for batch in batches):
            metrics["kl_to_reference"] = totals["kl_to_reference"] / tokens
        names = batch_metrics[0].keys() - {"tokens"} if batch_metrics else ()
        means = {name: sum(row[name] * row["tokens"] for row in batch_metrics) / tokens for name in sorted(names)}
        return metrics | means

    def state_dict(self) -> dict[str, Any]:
        return {"optimizer": self.optimizer.state_dict(), "policy_version": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["policy_version"]


def _has_kl(batch: Batch) -> bool:
    """Return True if KL(pi || reference) can be estimated for a batch.

    The estimate needs tokens that the policy pi has sampled. Tokens of labelled examples cannot be used for the
    estimate of the KL divergence.
    """
    return {"reference", "sampled"} <= batch.columns.keys()


def _add_token_stats(totals: dict[str, float], batch: Batch, scores: Scores) -> None:
    """Compute sums over the trained tokens of a batch, and add the sums to `totals`.

    The sums are the entropy, the absolute difference between the log-probabilities of sampler and learner, and the k3
    estimate of KL(pi || reference).
    """
    trained = batch.weight > 0
    totals["tokens"] += float(trained.sum())
    totals["entropy"] += float(scores.entropy[trained].sum())
    if "sampled" in batch.columns:
        difference = (scores.logprob.detach() - batch["sampled"])[trained].abs()
        known = torch.isfinite(difference)
        totals["gap"] += float(difference[known].sum())
        totals["gap_tokens"] += float(known.sum())
    if _has_kl(batch):
        d = (batch["reference"] - scores.logprob.detach())[trained]
        totals["kl_to_reference"] += float((d.exp() - d - 1).sum())
