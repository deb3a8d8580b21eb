"""GRPO teaches chains to a model that was shown few, so do its relatives; nonsense in the place of rewards does not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from schoolhouse.claims.harness.claim import Arm, Check, Claim, Results, Scale, told
from schoolhouse.claims.harness.figures import bars, learning
from schoolhouse.claims.harness.models import CHAINS, EIGHTS, ROOM, chains, long_chains, mixed_share, only, practice

MEMBERS = ("grpo", "dr_grpo", "dapo", "rloo", "reinforce_pp", "gspo", "cispo")
CONTROLS = ("random", "shuffled", "flipped")
LARGE_MEMBERS = ("grpo", "dr_grpo", "rloo")  # fewer: each costs more
QUICK = {"steps": 20, "eval.every": 5, "save_every": 5, "optimizer.learning_rate": 5e-5, "microbatch_tokens": ROOM}
"""How a large model practises."""
RISE, GOAL, SPREAD, STILL = 0.30, 0.80, 0.08, 0.05


def arms(scale: Scale, seed: int) -> Mapping[str, Arm]:
    only(scale, "tiny", "gpu")
    large = scale == "gpu"
    start, exam = (long_chains(seed), EIGHTS) if large else (chains(seed), CHAINS)
    more = {"task": exam.task, "sampling.max_new_tokens": exam.max_new_tokens, **QUICK} if large else {}
    ways: dict[str, tuple[Mapping[str, Any], str]] = {
        name: ({"preset": name}, f"like: {name}") for name in (LARGE_MEMBERS if large else MEMBERS)
    }
    for name in CONTROLS:
        ways[name] = ({"preset": "grpo", "rewards.control": name, "eval.every": 0}, f"control: {name}")
    return {
        "start": Arm(start, {"exam": exam}, "fine-tuned on worked chains"),
        **{
            name: Arm(practice(start, seed, **{**more, **way}), {"exam": exam}, about)
            for name, (way, about) in ways.items()
        },
    }


def judge(results: Results) -> Sequence[Check]:
    members = [name for name in MEMBERS if name in results.arms]
    start = results.each("start")
    checks = [
        Check(
            "premise",
            "pass@1 of the start within .2 and .4, each seed",
            told(start),
            all(0.2 <= s <= 0.4 for s in start),
        ),
        mixed_share(results, "grpo"),
    ]
    for name in members:
        gains, ends = results.gains("start", name), results.each(name)
        checks += [
            Check(
                "must hold",
                f"{name}: pass@1 {RISE:+.2f} or more, each seed",
                told(gains, sign=True),
                min(gains) >= RISE,
            ),
            Check("must hold", f"{name}: pass@1 {GOAL:.2f} or more, each seed", told(ends), min(ends) >= GOAL),
        ]
    means = {name: results.mean(name) for name in members}
    spread = max(means.values()) - min(means.values())
    least, most = min(means, key=means.__getitem__), max(means, key=means.__getitem__)
    checks.append(
        Check(
            "must hold",
            f"mean over seeds of all members within {SPREAD}",
            f"{spread:.3f} ({least} to {most})",
            all(abs(a - b) <= SPREAD for a in means.values() for b in means.values()),
        )
    )
    for name in ("random", "shuffled"):
        gains = results.gains("start", name)
        still = max(map(abs, gains)) <= STILL
        checks.append(
            Check("must fail", f"{name} rewards: within {STILL} of the start, each seed", told(gains, sign=True), still)
        )
    falls = results.gains("start", "flipped")
    checks.append(
        Check(
            "must fail",
            f"flipped rewards: more than {STILL} below the start",
            told(falls, sign=True),
            max(falls) < -STILL,
        )
    )
    return checks


def draw(results: Results, picture: Any) -> None:
    left, right = picture.subplots(1, 2)
    learning(left, results, [name for name in MEMBERS if name in results.arms])
    bars(right, results, [*results.arms])


CLAIM = Claim(
    id="grpo",
    paper="Shao et al. 2024, arXiv 2402.03300, and the papers of its relatives",
    sentence="Comparing siblings is enough: without a value network, practice with a verifier teaches reasoning",
    budget="45 steps of 32 problems x 16 rollouts of at most 64 tokens in every arm (dapo may ask up to fourfold)",
    premise="the start is right 20 to 40 % of the time, and groups disagree",
    rule="in every seed each member of the family rises by .30 to .80 or more, their means within .08; "
    "random and shuffled rewards change nothing (.05), flipped ones do harm",
    budgets={"gpu": "20 steps of 32 problems x 16 rollouts of at most 80 tokens in every arm, 99M parameters"},
    arms=arms,
    judge=judge,
    draw=draw,
    notes=(
        "The controls are `like: grpo`, with its KL penalty, which most members do not have: what nonsense does "
        "without one is not shown here. `reinforce_pp` compares with the whole step, not with siblings alone; no arm "
        "has a value network, and on fresh rollouts the members are nearly one algorithm: their spread says that they "
        "are built alike.",
        "",
        "With one update on fresh rollouts the ratio is 1: nothing is clipped; gspo is grpo without its KL penalty. "
        "What differs here is how scores are centred and scaled, what a mean is taken over, and the KL penalty.",
        "",
        "Counted a second time, with the same seeds, after groups that agree had been found to lose their KL penalty "
        "(like: grpo, coefficient .04). Those arms changed by .008 at most; the others came out the same to the last "
        "digit, five days and many commits later.",
    ),
    elsewhere={
        "gpu": (
            "Two controls fail: random rewards end .237 above start 1 (and .052 below start 0), shuffled ones .168 "
            "above. What rose there is the share of answers that work at all: of 512 in a step 108 had a thought at "
            "first and 259 (209) in the last; with a thought .81 were right at first and .87 (.90) then. That one "
            "decision moves pass@1 between .1 and 1, and Adam with its usual eps of 1e-8 takes as long a step on "
            "noise as on a signal (the gradient of random rewards measures .14 where the true one has .39), so a "
            "control is a random walk. Of four more draws of random rewards from start 1 two ended at .278 and .249 "
            "in the exam; two were cut off one and two steps before the end, right .20 and .27 of the time in "
            "practice. What a verifier teaches (.73 and more) is three times the longest of these walks. Next: "
            "`adam_eps` of the noise's size.",
            "",
            "Arms ran five or six side by side on one device; six were too many for its 80 GB, and those that ran out "
            "of memory began again from their start.",
        )
    },
)
