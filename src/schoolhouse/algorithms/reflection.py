"""Does it look back? Words and structure of second thoughts, told apart by whether the answer was right.

Longer thoughts alone prove nothing, nor do words: base models say "wait" too (Liu et al. 2025, 2503.20783).
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
    """Whether a thought says one of `WORDS`."""
    return bool(_WORDS.search(thought))


def reworks(thought: str) -> bool:
    """Whether something is worked twice: the same left side of `=` more than once, to check it or to put it right."""
    sides = _STEP.findall(thought)
    return len(sides) != len(set(sides))


def reflection_stats(groups: Sequence[Group], replies: Sequence[Completion]) -> dict[str, float]:
    """For right and for wrong answers: tokens said, and shares of thoughts that reflect and that rework.

    `replies` in the order of the groups' rollouts. What could not be judged, and what there is none of, is left out.
    """
    told: dict[str, list[float]] = {}
    reply = iter(replies)
    for group in groups:
        for rollout, verdict in zip(group.rollouts, group.verdicts, strict=True):
            thought = next(reply).thought or ""
            if verdict.reward is None:
                continue
            kind = "correct" if verdict.reward >= 1.0 else "incorrect"
            told.setdefault(f"completion_tokens_{kind}", []).append(sum(rollout.loss_mask))
            told.setdefault(f"reflection_rate_{kind}", []).append(reflects(thought))
            told.setdefault(f"recheck_rate_{kind}", []).append(reworks(thought))
    return {name: fmean(values) for name, values in sorted(told.items())}
