"""This file reads the metrics of a run, and gives one piece of advice for each problem that prevents learning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

WINDOW = 10
"""The number of steps on which the advice is based. One bad step alone says little about the run."""


def diagnose(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return a mapping from the topic of a problem to advice. The advice is based on the newest lines of metrics.jsonl.

    Before `WINDOW` steps of reinforcement learning are done, there is no advice. Each percentage in the advice is
    computed over the last `WINDOW` steps together.
    """
    rows = [row for row in rows if row.get("groups")][-WINDOW:]
    if len(rows) < WINDOW:
        return {}
    total = {name: sum(row.get(name) or 0 for row in rows) for name in _COUNTS}
    groups, rollouts = total["groups"], total["rollouts"]
    advice = {}
    if total["groups_ungraded"] == groups:
        advice["ungraded"] = (
            "no completion could be graded, so nothing is learned: read the reasons in rollouts/, and try the verifier "
            "on the task's own references with `school task NAME --check`"
        )
    elif total["ungraded"] > 0.01 * rollouts:
        advice["ungraded"] = (
            f"{_share(total['ungraded'], rollouts)} of the completions could not be graded (reasons in rollouts/), so "
            "nothing is learned from them: correct the verifier, or give it more time"
        )
    if not total["groups_with_signal"]:
        advice["no_signal"] = (
            f"no group of the last {WINDOW} steps had different rewards, so the weights do not change: read the "
            "completions in rollouts/ first"
        )
    if total["all_correct"] > 0.5 * groups:
        advice["all_correct"] = (
            f"all samples were correct for {_share(total['all_correct'], groups)} of the problems: raise the "
            "difficulty, or set dynamic_sampling to 1 to sample until groups have mixed rewards"
        )
    if total["all_incorrect"] > 0.5 * groups:
        advice["all_incorrect"] = (
            f"all samples were incorrect for {_share(total['all_incorrect'], groups)} of the problems: take easier "
            "problems, raise group_size, or train on more demonstrations (sft) first"
        )
    if total["truncated"] > 0.2 * rollouts:
        advice["truncated"] = (
            f"{_share(total['truncated'], rollouts)} of the completions were cut off at sampling.max_new_tokens: raise "
            "this limit. If loss.mask_truncated is true, truncated completions are left out of the loss, and the "
            "policy does not learn to stop. If it is false, truncated completions count as incorrect"
        )
    if total["no_answer"] - total["truncated"] > 0.2 * rollouts:
        advice["no_answer"] = (
            f"{_share(total['no_answer'], rollouts)} of the completions have no answer although most of them ended: "
            "the policy thinks and then stops. Read rollouts/, and train on demonstrations with answers (sft) first"
        )
    gaps = [row["logprob_gap"] for row in rows if row.get("logprob_gap") is not None]
    if gaps and sum(gaps) / len(gaps) > 0.02:
        advice["logprob_gap"] = (
            f"log-probabilities of sampler and learner differ by {sum(gaps) / len(gaps):.3f} on average (0.02 is "
            "a lot): set precision to float32 or exact, or loss.importance_correction to token"
        )
    return advice


_COUNTS = (
    "groups",
    "groups_with_signal",
    "groups_ungraded",
    "all_correct",
    "all_incorrect",
    "rollouts",
    "ungraded",
    "truncated",
    "no_answer",
)


def _share(part: float, whole: float) -> str:
    return f"{100 * part / max(whole, 1):.0f} %"
