"""What a checkpoint of a run thinks of samples of the run: computed when somebody asks, so no run need record it.

At the checkpoint that sampled them it says where the policy was undecided; at a later one, what it has learned to say
and to leave.
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
from schoolhouse.runs.manifest import read_config
from schoolhouse.types import Key, Problem, Rollout, SchoolError

Weight = list[float] | None
"""[log-probability, entropy in nats] of a token that the policy wrote."""

_one_at_a_time = Lock()


def nearest(checkpoints: Sequence[int], version: int) -> int:
    """The newest checkpoint that is no later than a version of the policy; the first where all are later.

    checkpoints  in rising order, at least one
    """
    return checkpoints[max(0, bisect_right(checkpoints, version) - 1)]


def checkpoints(run: Path) -> list[int]:
    """Steps whose models a run has kept, in rising order."""
    return [int(folder.name) for folder in list_checkpoints(run / "checkpoints")]


def weigh(run: Path, checkpoint: int, rows: Sequence[dict[str, Any]]) -> list[list[Weight]]:
    """For each rollout a pair for each token, at the run's temperature. Raises SchoolError without such a model."""
    folder = next((one for one in list_checkpoints(run / "checkpoints") if int(one.name) == checkpoint), None)
    if folder is None:
        raise SchoolError(f"{run.name} has kept no checkpoint {checkpoint}")
    temperature = read_config(run / "config.yaml").get("temperature", 1.0)
    rollouts = [_rollout(row) for row in rows]
    with _one_at_a_time:
        policy = _load(str(folder), folder.stat().st_mtime)
        scored = policy.score(rollouts, float(temperature) or 1.0)
    return [
        [
            [round(float(p), 4), round(float(entropy), 4)] if written else None
            for p, entropy, written in zip(scores.logprob, scores.entropy, rollout.loss_mask, strict=True)
        ]
        for scores, rollout in zip(scored, rollouts, strict=True)
    ]


@lru_cache(1)
def _load(folder: str, changed: float) -> Policy:
    return Policy.load(folder)


def _rollout(row: dict[str, Any]) -> Rollout:
    tokens, written = row["tokens"], [False] * len(row["tokens"])
    for start, end in row["sampled_spans"]:
        written[start:end] = [True] * (end - start)
    nowhere = Problem(row["problem"], (), "", "", "")
    return Rollout(nowhere, Key(0, "weigh"), tuple(tokens), tuple(written), (float("nan"),) * len(tokens))
