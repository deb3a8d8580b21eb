"""Log-probabilities and entropies of recorded samples under a checkpoint of their run, computed on request.

Under the checkpoint that sampled a rollout, the entropy shows where the policy was uncertain. Under a later checkpoint,
the log-probabilities show what the policy has learned since then.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any

from schoolhouse.policy.policy import Policy
from schoolhouse.runs.atomic_io import list_checkpoints
from schoolhouse.runs.manifest import read_config, recorded_mask
from schoolhouse.types import Key, Problem, Rollout, SchoolError

TokenScore = list[float] | None
"""[log-probability, entropy in nats] of a sampled token; None for a token that was not sampled."""

_rescoring = Lock()


def checkpoint_steps(run: Path) -> list[int]:
    """The steps of all checkpoints that the run still has, in ascending order."""
    return [int(folder.name) for folder in list_checkpoints(run / "checkpoints")]


def nearest_checkpoint(steps: Sequence[int], policy_version: int) -> int:
    """The step of the last checkpoint up to `policy_version`, or of the first checkpoint if all are later.

    steps  the steps of at least one checkpoint, in ascending order.
    """
    return steps[max(0, bisect_right(steps, policy_version) - 1)]


def rescore(run: Path, checkpoint: int, rows: Sequence[dict[str, Any]]) -> list[list[TokenScore]]:
    """The log-probability and entropy of each token of each rollout, at the run's temperature.

    Raises SchoolError for a missing checkpoint.
    """
    folder = next((one for one in list_checkpoints(run / "checkpoints") if int(one.name) == checkpoint), None)
    if folder is None:
        kept = ", ".join(map(str, checkpoint_steps(run))) or "none"
        raise SchoolError(f"{run.name} has no checkpoint of step {checkpoint}; choose one of the kept steps: {kept}")
    rollouts = [_rollout(row) for row in rows]
    with _rescoring:
        policy = _load(str(folder), folder.stat().st_mtime)
        scored = policy.score(rollouts, _temperature(run))
    return [
        [
            [round(float(logprob), 4), round(float(entropy), 4)] if sampled else None
            for logprob, entropy, sampled in zip(scores.logprob, scores.entropy, rollout.loss_mask, strict=True)
        ]
        for scores, rollout in zip(scored, rollouts, strict=True)
    ]


def _temperature(run: Path) -> float:
    """The sampling temperature of the run; 1 for greedy sampling or a recipe without a sampling temperature."""
    sampling = read_config(run / "config.yaml").get("sampling") or {}
    return float(sampling.get("temperature", 1.0)) or 1.0


@lru_cache(1)
def _load(folder: str, changed: float) -> Policy:
    return Policy.load(folder)


def _rollout(row: dict[str, Any]) -> Rollout:
    tokens = row["tokens"]
    problem = Problem(row["problem"], (), "", "", "")
    return Rollout(problem, Key(0, "weigh"), tuple(tokens), tuple(recorded_mask(row)), (float("nan"),) * len(tokens))
