"""`school grade` compares candidates (answers) with their references, and shows each grade that is not as expected."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from schoolhouse.algorithms.worker_settings import WorkerSettings
from schoolhouse.cli.options import parse_options, progress_bar
from schoolhouse.config import BaseConfig

EXIT_DISAGREES = 1


class Grade(BaseConfig):
    pairs: Path
    """Data file, such as JSON lines. Keys: reference (text or list), candidate; optional: question, expected."""
    extract: Literal["auto", "boxed", "hash", "answer_colon", "last_number", "whole"] = "auto"
    """Where a candidate's answer is (docs/grading.md). auto: \\boxed{}, ####, `Answer:`, or the whole text."""
    units: Literal["optional", "strict", "lenient"] = "optional"
    """optional: an answer can omit the unit. strict: the unit is required. lenient: a unit can be omitted or added."""
    grader: Literal["ours", "hf", "verl", "minerva"] = "ours"
    """ours: the rules of schoolhouse; or the name of another package whose rules are used (it must be installed)."""
    rewards: WorkerSettings = WorkerSettings()
    all: bool = False
    """Print every grade, not only the grades that differ from `expected`."""


def grade(args: Sequence[str]) -> int:
    """Run the command `school grade PAIRS.jsonl`."""
    c = parse_options(Grade, args, "school grade PAIRS.jsonl [--extract auto] [--units optional] [--all]", ("pairs",))
    if c is None:
        return 0
    from schoolhouse.tasks.answers.options import pop_grading
    from schoolhouse.tasks.grade_reply import grade_pairs, read_pairs

    pairs = read_pairs(c.pairs)
    grading = pop_grading({"extract": c.extract, "units": c.units, "grader": c.grader}, "grade")
    with progress_bar(f"grading {c.pairs}") as report:
        verdicts = grade_pairs(pairs, grading, report, c.rewards)
    wrong = 0
    for pair, verdict in zip(pairs, verdicts, strict=True):
        disagrees = pair.expected is not None and verdict.reward != pair.expected
        wrong += disagrees
        if disagrees or c.all:
            reward = "could not be graded" if verdict.reward is None else f"reward {verdict.reward:g}"
            reason = f" ({verdict.reason})" if verdict.reason else ""
            expected = f", expected {pair.expected:g}" if disagrees else ""
            shown = f"candidate {pair.candidate!r}, reference {pair.reference!r}"
            print(f"{pair.place}: {reward}{reason}{expected}: {shown}")
    known = sum(pair.expected is not None for pair in pairs)
    right = sum(verdict.reward == 1.0 for verdict in verdicts)
    print(f"{len(pairs):,} pairs: {right:,} right; {known - wrong:,} of {known:,} as expected")
    return EXIT_DISAGREES if wrong else 0
