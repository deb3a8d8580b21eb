"""RL with rewards for progress needs fewer samples than RL with a reward for the answer alone.

If the reward is a sum of step rewards, the model learns to exploit this sum (reward hacking).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf
from statistics import fmean
from typing import Any

from schoolhouse.claims.harness.claim import Arm, Check, Claim, Evaluation, Results, Scale, Step, format_values
from schoolhouse.claims.harness.figures import plot_metric
from schoolhouse.claims.harness.models import chain_model, require_tiny, signal_check

CHAINS_OF_6 = Evaluation(task="school:chain?steps=6&lines=1", problems=200, samples=8, max_new_tokens=96)
STYLES = "systematic_error=70,filler=30"
"""The start model makes systematic errors, which a reward model can detect. The start model also writes filler words,
which a sum of step rewards can reward."""
REWARD_MODEL: Mapping[str, Any] = {
    "num_prompts": 1000,
    "samples_per_prompt": 4,
    "sampling.temperature": 1.3,
    "steps": 500,
}
STEPS, WINDOW = 45, 5
MAX_TOKEN_RATIO, MIN_STEP_RATIO = 0.9, 1.3
ARMS: Mapping[str, tuple[str, str, dict[str, Any]]] = {
    "outcome": ("rewards only the answer", "strict", {"alpha": 0.0}),
    "progress": ("rewards the answer and each step's change of value", "strict", {"reward_form": "progress"}),
    "raw": (
        "rewards the answer and the sum of step rewards; the step rewards count filler words as correct",
        "exact",
        {"reward_form": "raw"},
    ),
}
"""Maps an arm to a description of its reward, the labels of its reward model, and its config."""


def arms(scale: Scale, seed: int) -> Mapping[str, Arm]:
    require_tiny(scale)
    start = chain_model(seed, 1500, styles=STYLES, lengths="2-6", lines=True)
    measures = {"eval": CHAINS_OF_6}
    common = {
        "model": start,
        "task": CHAINS_OF_6.task,
        "sampling.max_new_tokens": CHAINS_OF_6.max_new_tokens,
        "seed": seed,
    }
    reward_models = {
        labels: Step("prm", {**common, "generator": start, "labels": labels, **REWARD_MODEL})
        for labels in ("strict", "exact")
    }
    config = {**common, "steps": STEPS, "save_every": STEPS}
    return {
        "start": Arm(start, measures, "fine-tuned on demonstrations of chains"),
        "reward_model": Arm(reward_models["strict"], {}, "the reward model that gives the values for `progress`"),
        **{
            name: Arm(Step("prm_rl", {**config, "reward_model": reward_models[labels], **changes}), measures, about)
            for name, (about, labels, changes) in ARMS.items()
        },
    }


def moving_average(values: Sequence[float]) -> list[float]:
    """The mean of the values in each window of WINDOW steps."""
    return [fmean(values[at : at + WINDOW]) for at in range(len(values) - WINDOW + 1)]


def tokens_until(results: Results, arm: str, goals: Sequence[float]) -> list[float]:
    """For each seed, the number of sampled tokens until the reward reaches its goal; infinity if it never does."""
    tokens = []
    curves = zip(results.curves(arm, "reward"), results.curves(arm, "sampled_tokens"), goals, strict=True)
    for rewards, sampled_tokens, goal in curves:
        reached = next((at for at, value in enumerate(moving_average(rewards)) if value >= goal), None)
        tokens.append(inf if reached is None else sum(sampled_tokens[: reached + WINDOW]))
    return tokens


def check(results: Results) -> Sequence[Check]:
    goals = [moving_average(rewards)[-1] for rewards in results.curves("outcome", "reward")]
    outcome, progress = (tokens_until(results, arm, goals) for arm in ("outcome", "progress"))
    ratios = [a / b for a, b in zip(progress, outcome, strict=True)]
    extra = [results.arms["reward_model"][seed].sampled_tokens for seed in results.seeds]
    total_ratios = [(a + more) / b for a, b, more in zip(progress, outcome, extra, strict=True)]
    num_steps = {arm: [fmean(curve[-WINDOW:]) for curve in results.curves(arm, "num_steps")] for arm in ARMS}
    step_ratios = [a / b for a, b in zip(num_steps["raw"], num_steps["outcome"], strict=True)]
    gains = results.gains("outcome", "raw")
    step_rewards = [[fmean(curve[:WINDOW]), fmean(curve[-WINDOW:])] for curve in results.curves("raw", "step_reward")]
    return [
        signal_check(results, "outcome"),
        Check(
            "must hold",
            f"the arm `progress` reaches the final reward of the arm `outcome` with at most {MAX_TOKEN_RATIO} "
            "times as many tokens as `outcome`, in the mean of seeds",
            format_values(ratios, 2),
            fmean(ratios) <= MAX_TOKEN_RATIO,
        ),
        Check(
            "must fail",
            f"in the arm `raw`, an answer at the end of training has at least {MIN_STEP_RATIO} times as many steps "
            "as in the arm `outcome`, and pass@1 is lower, in the mean of seeds",
            f"ratio of steps {format_values(step_ratios, 2)}; change of pass@1 {format_values(gains, sign=True)}",
            fmean(step_ratios) >= MIN_STEP_RATIO and fmean(gains) < 0,
        ),
        Check(
            "reported",
            "the same ratio of tokens (`progress` to `outcome`), if the tokens of the reward model's training "
            "data are added to `progress`",
            format_values(total_ratios, 2),
            True,
        ),
        Check(
            "reported",
            "sum of step rewards in the arm `raw`: first and last steps of training, for each seed",
            "; ".join(f"seed {at}: first {a:.2f}, last {b:.2f}" for at, (a, b) in enumerate(step_rewards)),
            True,
        ),
    ]


def draw(results: Results, picture: Any) -> None:
    left, middle, right = picture.subplots(1, 3)
    plot_metric(left, results, [*ARMS], "reward", "accuracy in training")
    plot_metric(middle, results, [*ARMS], "num_steps", "steps in an answer")
    plot_metric(right, results, [*ARMS], "step_reward", "sum of step rewards")


CLAIM = Claim(
    id="prm_rl",
    paper="Setlur et al. 2024, arXiv 2410.08146",
    sentence="RL that rewards progress (measured by a process reward model) needs fewer samples than RL that "
    "rewards only the answer; RL that rewards sums of step rewards leads to reward hacking",
    budget=f"every arm has {STEPS} steps of 32 problems x 16 rollouts. The tokens of the reward model's training "
    "data (4,000 solutions, with steps labelled by the task's rules) are reported separately.",
    premise="groups have mixed rewards (correct and wrong rollouts)",
    rule="in the mean of seeds, the arm `progress` reaches the final reward of the arm `outcome` with at most "
    f"{MAX_TOKEN_RATIO} times as many tokens as `outcome`. With the sum of step rewards (the arm `raw`), an answer "
    f"has at least {MIN_STEP_RATIO} times as many steps and is correct less often than with the outcome reward "
    "alone.",
    arms=arms,
    check=check,
    draw=draw,
    notes=(
        "In an earlier official run, the reward of a step was used as the value of the state after the step, and "
        "the steps were separated by blanks. The verdict of the earlier run was FAIL, because sums of step "
        "rewards did not lead to longer answers. In the earlier run, the arm `progress` needed .86, .93 and .83 "
        "times as many tokens as the arm `outcome` in seeds 0, 1 and 2. If the tokens of the reward model's "
        "training data are included, `progress` needed 1.00, 1.07 and .99 times as many tokens as `outcome` in "
        "seeds 0, 1 and 2. In seeds 0, 1 and 2 of the earlier run, an answer had 1.01, 1.00 and 1.00 times as "
        "many steps with sums of step rewards as with the outcome reward alone. A process reward model grades "
        "the step after an error as if the error had not happened (for example, a grade of .95 after a grade of "
        ".02). Therefore the product of the step rewards is now the value of a state. In the earlier run, filler "
        "words contained no step that could be graded, because a word and the blank before it are one token. "
        "Therefore each step is now written on a separate line. The start model now has 1,500 updates; after 900 "
        "updates, its accuracy was only .145.",
        "",
        "For the reward model of the arm `progress`, filler words are labelled as incorrect (`labels: strict`). "
        "With the labels `strict`, the predicted probability that no error has occurred is close to the value of "
        "the state (the chance of a correct answer). For the reward model of the arm `raw`, filler words have a "
        "neutral label, as in PRM800K, and count as correct.",
        "",
        "Pilots with seed 0 were used to choose the settings of the reward models and of the start model. In one "
        "pilot, the values of states were estimated from continuations, which are sampled ends of a solution "
        "(2,000 solutions, 8 continuations after each step). In the pilot with continuations, training with "
        "progress rewards was not faster than with the outcome reward alone. In the last five training steps of "
        "the pilot with continuations, the accuracy was .66 with the outcome reward alone and .63 with progress "
        "rewards.",
    ),
)
