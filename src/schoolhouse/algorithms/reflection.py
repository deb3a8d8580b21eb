"""Measure how often thoughts check themselves, separately for correct and for incorrect answers.

One measure counts words such as "wait"; another counts repeated calculations. Longer thoughts do not prove that the
model reflects. Words such as "wait" do not prove reflection either, because base models also write them (Liu et al.
2025, arXiv 2503.20783).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from statistics import fmean

from schoolhouse.types import Completion, Group

WORDS = ("wait", "hmm", "again", "check", "recheck", "verify", "no", "actually", "mistake", "instead", "however")
"""Whole words, in any case."""

_WORDS = re.compile(rf"\b(?:{'|'.join(WORDS)})\b", re.IGNORECASE)
_STEP = re.compile(r"([^\s=]+)=")


def reflects(thought: str) -> bool:
    """Return True if the thought contains one of the words in `WORDS`."""
    return bool(_WORDS.search(thought))


def rechecks(thought: str) -> bool:
    """Return True if the thought computes something twice, so that the same text stands on the left side of `=` more
    than once."""
    sides = _STEP.findall(thought)
    return len(sides) != len(set(sides))


def reflection_stats(groups: Sequence[Group], completions: Sequence[Completion]) -> dict[str, float]:
    """Compute three means for correct and for incorrect answers.

    The three means are the number of completion tokens, the fraction of thoughts that reflect, and the fraction of
    thoughts that recheck. The list `completions` has the same order as the rollouts of the groups. Ungraded rollouts
    are not counted. If there are no correct (or no incorrect) answers, the result has no numbers for this kind of
    answer.
    """
    values: dict[str, list[float]] = {}
    texts = iter(completions)
    for group in groups:
        for rollout, verdict in zip(group.rollouts, group.verdicts, strict=True):
            thought = next(texts).thought or ""
            if verdict.reward is None:
                continue
            kind = "correct" if verdict.reward >= 1.0 else "incorrect"
            values.setdefault(f"completion_tokens_{kind}", []).append(sum(rollout.loss_mask))
            values.setdefault(f"reflection_rate_{kind}", []).append(reflects(thought))
            values.setdefault(f"recheck_rate_{kind}", []).append(rechecks(thought))
    return {name: fmean(found) for name, found in sorted(values.items())}
