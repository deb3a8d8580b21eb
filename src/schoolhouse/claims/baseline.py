"""Comparing with siblings is what teaches quickly: without a baseline, or from successes alone, less is learned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from schoolhouse.claims.harness.bases import CHAINS, chains, mixed_share, only_tiny, practice
from schoolhouse.claims.harness.claim import Arm, Check, Claim, Results, Scale, told
from schoolhouse.claims.harness.figures import course, learning

ARMS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "siblings": ("r - mean of the group", {}),
    "none": ("r itself", {"baseline": "none"}),
    "successes": ("max(r - mean, 0)", {"negative": 0.0}),
}


def arms(scale: Scale, seed: int) -> Mapping[str, Arm]:
    only_tiny(scale)
    start, exam = chains(seed), {"exam": CHAINS}
    return {
        "start": Arm(start, exam, "fine-tuned on worked chains"),
        **{name: Arm(practice(start, seed, **keys), exam, about) for name, (about, keys) in ARMS.items()},
    }


def judge(results: Results) -> Sequence[Check]:
    checks = [mixed_share(results, "siblings")]
    whole = results.areas("siblings")
    for name in ("none", "successes"):
        areas = results.areas(name)
        less = all(part < all_ for part, all_ in zip(areas, whole, strict=True))
        lost = results.difference("siblings", name)
        checks += [
            Check(
                "must hold",
                f"{name}: smaller area under pass@1, each seed",
                f"{told(areas)} against {told(whole)}",
                less,
            ),
            Check(
                "reported",
                f"{name}: pass@1 at the end, against siblings",
                f"{lost.value:+.3f} [{lost.low:+.3f}, {lost.high:+.3f}]",
                True,
            ),
            Check(
                "reported",
                f"{name}: entropy of the exam, against siblings",
                f"{told(results.each(name, 'entropy'))} against {told(results.each('siblings', 'entropy'))}",
                True,
            ),
        ]
    return checks


def draw(results: Results, picture: Any) -> None:
    left, right = picture.subplots(1, 2)
    learning(left, results, [*ARMS])
    course(right, results, [*ARMS], "entropy", "entropy of trained tokens, nats")


CLAIM = Claim(
    id="baseline",
    paper="Williams 1992; RGRA, arXiv 2603.18756",
    sentence="A baseline and negative feedback are what makes practice quick",
    budget="45 steps of 32 problems x 16 rollouts of at most 64 tokens in every arm",
    premise="at least 30 % of groups are mixed in the first five steps",
    rule="in every seed the area under pass@1 (mean of exams over training) is smaller without a baseline, and smaller "
    "where only advantages above zero count",
    arms=arms,
    judge=judge,
    draw=draw,
    notes=(
        "What did not hold: rewards are 0 and 1 here, so without a baseline every right answer is praised and no wrong "
        "one blamed, by a gradient whose size Adam takes out. Its noise does not matter with 512 rollouts a step, nor "
        "with 64: a pilot of 150 steps of 8 problems x 8 rollouts from the start of seed 0 gave .73 .92 .94 .96 "
        "without, .74 .87 .93 .95 with siblings (exams after 30, 60, 90, 120 steps). Negative feedback does matter.",
    ),
)
