"""Being made to think longer helps a model that was shown how errors are mended, and no other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from schoolhouse.claims.harness.claim import Arm, Check, Claim, Evaluation, Json, Results, Scale, told
from schoolhouse.claims.harness.models import chains, only_tiny
from schoolhouse.policy.policy import Policy
from schoolhouse.search.budget_forcing import budget_force
from schoolhouse.tasks.grading import grade as verdicts_of
from schoolhouse.tasks.registry import open_task
from schoolhouse.types import Key

TASK = "school:chain?steps=6"
LEAST, MOST = (0, 20, 40, 60, 80), 140
WAIT = " check "
RISE, STILL = 0.03, 0.02


class Forced(Evaluation):
    """Answers with thoughts of at least so many tokens: share right, share of thoughts within bounds, their length."""

    least: tuple[int, ...] = LEAST
    most: int = MOST

    def take(self, policy: Policy, seed: int, **beside: Policy) -> Json:
        task, say = open_task(self.task, seed), policy.conversation
        exam = task.eval_problems(self.problems)
        overall: Json = {}
        for least in self.least:
            keys = [(p, Key(seed, "forced", 0, i, g)) for i, p in enumerate(exam) for g in range(self.samples)]
            asked = [say.prompt_rollout(problem, key) for problem, key in keys]
            spent = budget_force(policy, asked, least, self.most, self.max_new_tokens, WAIT, self.temperature)
            said = [one.rollout for one in spent]
            scores = [
                v.reward or 0.0 for group in verdicts_of(said, task, say.parse_completion) for v in group.verdicts
            ]
            thoughts = [say.thought_length(rollout) for rollout in said]
            overall[f"right_{least}"] = fmean(scores)
            overall[f"control_{least}"] = fmean(least <= thought <= self.most for thought in thoughts)
            overall[f"tokens_{least}"] = fmean(thoughts)
        return {"overall": overall}


def arms(scale: Scale, seed: int) -> Mapping[str, Arm]:
    only_tiny(scale)
    asked = {"forced": Forced(task=TASK, problems=100, samples=8, max_new_tokens=24)}
    return {
        "long": Arm(
            chains(seed, 1000, styles="full=60,self_check=20,self_correct=20", lengths="2-6"),
            asked,
            "two in five of its lessons look again, and half of those mend an error",
        ),
        "short": Arm(
            chains(seed, 500, styles="full=100", lengths="2-6"),
            asked,
            "never saw a thought that goes on (half of the updates, for about as many right)",
        ),
    }


def judge(results: Results) -> Sequence[Check]:
    def each(arm: str, metric: str) -> list[float]:
        return results.each(arm, metric, "forced")

    def gains(arm: str) -> list[float]:
        best = [max(each(arm, f"right_{least}")[i] for least in LEAST[1:]) for i in range(len(results.seeds))]
        return [b - a for a, b in zip(each(arm, "right_0"), best, strict=True)]

    control = [min(each(arm, f"control_{least}")) for arm in results.arms for least in LEAST]
    free = each("long", "right_0")
    checks = [
        Check("premise", "long: right .2 to .9 of the time unforced", told(free), 0.2 <= min(free) <= max(free) <= 0.9),
        Check("must hold", "control: all thoughts within their bounds", f"{min(control):.3f}", {*control} == {1.0}),
        Check(
            "must hold",
            f"long: forced to think, {RISE} better, each seed",
            told(gains("long"), sign=True),
            min(gains("long")) >= RISE,
        ),
        Check(
            "must fail",
            f"short: at most {STILL} better, mean of seeds",
            told(gains("short"), sign=True),
            fmean(gains("short")) <= STILL,
        ),
    ]
    for arm in results.arms:
        right = [fmean(each(arm, f"right_{least}")) for least in LEAST]
        text = f"{arm}: right at least {', '.join(map(str, LEAST))} tokens"
        checks.append(Check("reported", text, told(right), True))
    return checks


def draw(results: Results, picture: Any) -> None:
    axes = picture.subplots()
    for arm in results.arms:
        tokens = [results.mean(arm, f"tokens_{least}", "forced") for least in LEAST]
        axes.plot(tokens, [results.mean(arm, f"right_{least}", "forced") for least in LEAST], "o-", label=arm)
    axes.set(xlabel="tokens of a thought", ylabel="share right", ylim=(0, 1.02))
    axes.grid(alpha=0.3)
    axes.legend()


CLAIM = Claim(
    id="budget_forcing",
    paper="Muennighoff et al. 2025, arXiv 2501.19393",
    sentence="A thought that is not allowed to end mends its errors, if the model was shown such thoughts",
    budget="100 problems x 8 answers at each least length of a thought",
    premise="the model errs, and is right sometimes",
    rule=f"all thoughts are within their bounds; the best least length is {RISE} better than none in every seed for a "
    f"model that saw errors mended, and at most {STILL} in the mean for one that did not",
    arms=arms,
    judge=judge,
    draw=draw,
    notes=(
        "`short` was to be right about as often unforced, and its seeds differ widely: .968 .794 .217. Forced to 40 "
        "tokens all are at chance (ten answers). `least` 20 binds on nobody: thoughts are 35 tokens and more.",
        "",
        "A pilot with lessons half of which are worked straight and half mended gained .02 (.34 to .36): the mix was "
        "then chosen for the effect.",
    ),
)
