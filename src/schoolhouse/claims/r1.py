"""The R1 pipeline's later stages: what is kept is right and in one language, and a small model learns more from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from schoolhouse.claims.harness.bases import CHAINS, TONGUES, chains, only_tiny
from schoolhouse.claims.harness.claim import Arm, Check, Claim, Results, Scale, Step, told
from schoolhouse.claims.harness.figures import bars
from schoolhouse.claims.language import TARGET, Tongues, consistent

STEPS, ROLLOUTS = 60, 32 * 16
TEACHER = 0.9
SMALL = ("small_distilled", "small_practised")


def arms(scale: Scale, seed: int) -> Mapping[str, Arm]:
    only_tiny(scale)
    start, little = chains(seed, tongues=TONGUES), chains(seed, tongues=TONGUES, small=True)
    base = start.config["model"]
    teacher = consistent(start, seed, STEPS)
    tongues = Tongues(task=CHAINS.task, problems=100, samples=8, length=CHAINS.length)
    asked = {"exam": CHAINS, "tongues": tongues}
    harvest: dict[str, Any] = {
        "teacher": teacher,
        "task": CHAINS.task,
        "language": TARGET,
        "length": CHAINS.length,
        "seed": seed,
    }
    harvest |= {"samples": 4, "problems": STEPS * ROLLOUTS // 4, "steps": 500, "learning_rate": 3e-3}
    return {
        "start": Arm(start, asked, "cold start: fine-tuned on worked chains in two languages"),
        "teacher": Arm(teacher, asked, "practised with rewards for right answers and one language"),
        "rejection": Arm(Step("distill", {**harvest, "model": base}), asked, "the base, on what was kept"),
        "small_start": Arm(little, asked, "a model of half the width, fine-tuned the same way"),
        "small_distilled": Arm(Step("distill", {**harvest, "model": little}), asked, "and on what was kept"),
        "small_practised": Arm(consistent(little, seed, STEPS), asked, "and practised itself"),
    }


def judge(results: Results) -> Sequence[Check]:
    harvests = [results.arms["rejection"][seed].metrics[0] for seed in results.seeds]
    faults = [row["kept_wrong"] + row["kept_mixed"] for row in harvests]
    dropped = [row.get("dropped_mixed", 0) + row.get("dropped_wrong", 0) for row in harvests]
    taught, teacher, start = (results.each(arm) for arm in ("rejection", "teacher", "start"))
    better = results.difference("small_practised", "small_distilled")
    gains = results.gains("small_practised", "small_distilled")
    asked = [sum(row.get("rollouts", 0) for row in results.arms[arm][0].metrics) for arm in SMALL]
    return [
        Check("premise", "the small models had the same number of samples", told(asked, 0), asked[0] == asked[1]),
        Check("must hold", "rejection keeps nothing wrong and nothing mixed", told(faults, 0), not any(faults)),
        Check("reported", "answers it dropped as wrong or mixed", told(dropped, 0), True),
        Check(
            "must hold",
            "rejection: the base taught by it is .15 above the cold start, each seed",
            f"{told(taught)} against {told(start)}",
            all(a >= b + 0.15 for a, b in zip(taught, start, strict=True)),
        ),
        Check(
            "must hold",
            f"rejection: at least {TEACHER} of the teacher, mean of seeds",
            f"{told(taught)} against {told(teacher)}",
            fmean(taught) >= TEACHER * fmean(teacher),
        ),
        Check("must hold", "small: distilled above practised, each seed", told(gains, sign=True), min(gains) > 0),
        Check(
            "must hold",
            "small: distilled above practised, interval of the mean above 0",
            f"{better.value:+.3f} [{better.low:+.3f}, {better.high:+.3f}]",
            better.low > 0,
        ),
    ]


def draw(results: Results, picture: Any) -> None:
    left, right = picture.subplots(1, 2)
    names = ["start", "teacher", "rejection", "small_start", "small_distilled", "small_practised"]
    bars(left, results, names)
    bars(right, results, names, "target", "tongues")
    right.set(ylabel=f"share of words in {TARGET}")


CLAIM = Claim(
    id="r1",
    paper="DeepSeek-R1, Guo et al. 2025, arXiv 2501.12948, sections 2.3 and 2.4",
    sentence="What a practised model says, sifted, teaches a small model better than its own practice does",
    budget="30,720 answers sampled for each student, by the teacher or by itself",
    premise="the number of samples is the same",
    rule="rejection keeps nothing wrong and nothing mixed; the base taught by it is .15 above the cold start and has "
    ".9 of the teacher; the distilled small model is above the practised one in every seed, with the interval of the "
    "mean above 0",
    arms=arms,
    judge=judge,
    draw=draw,
    notes=(
        "How much better distillation is depends on where the small model begins: +.08 where its start is right .30 of "
        "the time, +.27 at .21, +.73 at .11: that is chance (ten possible answers), and practice finds nothing to make "
        "likelier. The interval is over problems, not over seeds. Samples are equal in number; the teacher's are "
        "longer, so they are 1.7 times as many tokens.",
        "",
        "The taught base comes out a little above its teacher: what it learned from was sifted.",
    ),
)
