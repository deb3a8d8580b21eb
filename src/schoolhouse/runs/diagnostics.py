"""What the numbers of a run mean for whoever looks at it: a sentence where something keeps it from learning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

WINDOW = 10
"""Steps that advice is drawn from: one bad step means little."""


def diagnose(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Sentences, by the name of what they are about, from the newest lines of metrics.jsonl.

    Nothing before `WINDOW` steps of practice have been recorded. Shares are over the whole window.
    """
    rows = [row for row in rows if row.get("groups")][-WINDOW:]
    if len(rows) < WINDOW:
        return {}
    total = {name: sum(row.get(name) or 0 for row in rows) for name in _COUNTED}
    groups, rollouts = total["groups"], total["rollouts"]
    said = {}
    if total["groups_ungraded"] == groups:
        said["ungraded"] = (
            "not one answer could be judged: nothing is learned. The reasons are in rollouts/; "
            "`school task NAME --check` tries the verifier on its own references"
        )
    elif total["ungraded"] > 0.01 * rollouts:
        said["ungraded"] = (
            f"{_share(total['ungraded'], rollouts)} of the answers could not be judged (their reasons are in "
            "rollouts/): they teach nothing; mend the verifier, or give it more time"
        )
    if not total["groups_with_signal"]:
        said["no_signal"] = (
            f"no problem of the last {WINDOW} steps had answers of different reward: the weights do not move. "
            "Look at the text in rollouts/ first"
        )
    if total["all_correct"] > 0.5 * groups:
        said["all_correct"] = (
            f"every sample of {_share(total['all_correct'], groups)} of the problems was right: raise the difficulty, "
            "or set dynamic_sampling to 1 to go on asking until groups are mixed"
        )
    if total["all_incorrect"] > 0.5 * groups:
        said["all_incorrect"] = (
            f"every sample of {_share(total['all_incorrect'], groups)} of the problems was wrong: take easier ones, "
            "raise `samples`, or show more worked examples (sft) first"
        )
    if total["truncated"] > 0.2 * rollouts:
        said["truncated"] = (
            f"{_share(total['truncated'], rollouts)} of the answers were cut off at `length`: raise it. With "
            "mask_truncated true they teach nothing, so that being cut off is not taken for being wrong (and nothing "
            "teaches to come to an end); with false they count as wrong"
        )
    if total["no_answer"] - total["truncated"] > 0.2 * rollouts:
        said["no_answer"] = (
            f"{_share(total['no_answer'], rollouts)} of the answers are empty although most came to an end: the model "
            "thinks and then says nothing; look at rollouts/, and show worked examples (sft) with an answer"
        )
    gaps = [row["logprob_gap"] for row in rows if row.get("logprob_gap") is not None]
    if gaps and sum(gaps) / len(gaps) > 0.02:
        said["logprob_gap"] = (
            f"sampled and learned log-probabilities lie {sum(gaps) / len(gaps):.3f} apart (0.02 is much): "
            "set precision to float32 or exact, or correction to token"
        )
    return said


_COUNTED = (
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
