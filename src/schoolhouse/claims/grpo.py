"""GRPO and its variants teach a model to solve chains (chains of small sums). Control rewards teach nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from schoolhouse.claims.harness.claim import Arm, Check, Claim, Results, Scale, format_values
from schoolhouse.claims.harness.figures import plot_accuracy, plot_bars
from schoolhouse.claims.harness.models import (
    CHAINS_OF_4,
    CHAINS_OF_8,
    MICROBATCH_TOKENS,
    chain_model,
    grpo_step,
    large_chain_model,
    require_scale,
    signal_check,
)

VARIANTS = ("grpo", "dr_grpo", "dapo", "rloo", "reinforce_pp", "gspo", "cispo")
CONTROLS = ("random", "shuffled", "flipped")
GPU_VARIANTS = ("grpo", "dr_grpo", "rloo")
GPU_CONFIG: Mapping[str, Any] = {
    "task": CHAINS_OF_8.task,
    "sampling.max_new_tokens": CHAINS_OF_8.max_new_tokens,
    "steps": 20,
    "eval.every": 5,
    "save_every": 5,
    "optimizer.learning_rate": 5e-5,
    "microbatch_tokens": MICROBATCH_TOKENS,
}
MIN_GAIN, MIN_ACCURACY, MAX_SPREAD, MAX_CONTROL_CHANGE = 0.30, 0.80, 0.08, 0.05


def arms(scale: Scale, seed: int) -> Mapping[str, Arm]:
    require_scale(scale, "tiny", "gpu")
    if scale == "gpu":
        start, evaluation, common, variants = large_chain_model(seed), CHAINS_OF_8, GPU_CONFIG, GPU_VARIANTS
    else:
        start, evaluation, common, variants = chain_model(seed), CHAINS_OF_4, {}, VARIANTS
    changes: dict[str, tuple[Mapping[str, Any], str]] = {
        name: ({"preset": name}, f"preset: {name}") for name in variants
    }
    for name in CONTROLS:
        changes[name] = ({"preset": "grpo", "rewards.control": name, "eval.every": 0}, f"control: {name}")
    measures = {"eval": evaluation}
    return {
        "start": Arm(start, measures, "fine-tuned on demonstrations of chains"),
        **{
            name: Arm(grpo_step(start, seed, {**common, **change}), measures, about)
            for name, (change, about) in changes.items()
        },
    }


def check(results: Results) -> Sequence[Check]:
    variants = [name for name in VARIANTS if name in results.arms]
    start = results.by_seed("start")
    checks = [
        Check(
            "premise",
            "pass@1 of the start model is between .2 and .4 in each seed",
            format_values(start),
            all(0.2 <= s <= 0.4 for s in start),
        ),
        signal_check(results, "grpo"),
    ]
    for name in variants:
        gains, ends = results.gains("start", name), results.by_seed(name)
        checks += [
            Check(
                "must hold",
                f"pass@1 of {name} rises by {MIN_GAIN:+.2f} or more in each seed",
                format_values(gains, sign=True),
                min(gains) >= MIN_GAIN,
            ),
            Check(
                "must hold",
                f"pass@1 of {name} is {MIN_ACCURACY:.2f} or more in each seed",
                format_values(ends),
                min(ends) >= MIN_ACCURACY,
            ),
        ]
    means = {name: results.mean(name) for name in variants}
    spread = max(means.values()) - min(means.values())
    lowest, highest = min(means, key=means.__getitem__), max(means, key=means.__getitem__)
    checks.append(
        Check(
            "must hold",
            f"the mean pass@1 over seeds differs by at most {MAX_SPREAD} between all variants",
            f"{spread:.3f} ({lowest} to {highest})",
            all(abs(a - b) <= MAX_SPREAD for a in means.values() for b in means.values()),
        )
    )
    for name in ("random", "shuffled"):
        gains = results.gains("start", name)
        unchanged = max(map(abs, gains)) <= MAX_CONTROL_CHANGE
        text = f"with {name} rewards, pass@1 stays within {MAX_CONTROL_CHANGE} of the start in each seed"
        checks.append(Check("must fail", text, format_values(gains, sign=True), unchanged))
    gains = results.gains("start", "flipped")
    checks.append(
        Check(
            "must fail",
            f"with flipped rewards, pass@1 ends more than {MAX_CONTROL_CHANGE} below the start",
            format_values(gains, sign=True),
            max(gains) < -MAX_CONTROL_CHANGE,
        )
    )
    return checks


def draw(results: Results, picture: Any) -> None:
    left, right = picture.subplots(1, 2)
    plot_accuracy(left, results, [name for name in VARIANTS if name in results.arms])
    plot_bars(right, results, [*results.arms])


CLAIM = Claim(
    id="grpo",
    paper="Shao et al. 2024, arXiv 2402.03300, and the papers of its variants",
    sentence="RL with a verifier teaches reasoning without a value network: comparing the rollouts of one problem "
    "(a group) is enough",
    budget="every arm has 45 steps of 32 problems x 16 rollouts of at most 64 tokens; the arm dapo can sample up "
    "to four times as many rollouts",
    premise="the start model's pass@1 is between .2 and .4, and groups have mixed rewards (correct and wrong rollouts)",
    rule="in every seed, pass@1 of each variant rises by at least .30, to at least .80. The mean pass@1 of any "
    "two variants differs by at most .08. Random and shuffled rewards change pass@1 by at most .05, and flipped "
    "rewards (1 minus the reward) lower pass@1.",
    budget_by_scale={
        "gpu": "every arm has 20 steps of 32 problems x 16 rollouts of at most 80 tokens; the model has 99M parameters"
    },
    arms=arms,
    check=check,
    draw=draw,
    notes=(
        "The control arms use `preset: grpo`, which has a KL penalty. Most variants have no KL penalty, and this "
        "page shows no control arms without a KL penalty. The preset `reinforce_pp` compares the reward of a "
        "rollout with all rewards of the step, not only with the rewards of its group. No arm has a value "
        "network. On fresh rollouts, the variants are nearly the same algorithm. So the small difference between "
        "variants shows that their implementations agree.",
        "",
        "With one update on fresh rollouts, the probability ratio is 1 and nothing is clipped. On fresh rollouts, "
        "gspo computes the same update as grpo without the KL penalty. In this claim, the variants differ only in "
        "how they center and scale rewards, in the loss aggregation, and in the KL penalty.",
        "",
        "The official run was repeated with the same seeds after a bug was fixed. The bug removed the KL penalty "
        "of groups with equal rewards (`preset: grpo`, coefficient .04). After the fix, pass@1 of the arms with "
        "`preset: grpo` changed by at most .008. The repeated run was made five days and many commits later. All "
        "arms without the KL penalty of `preset: grpo` gave exactly the same results in both runs.",
    ),
    failures_by_scale={
        "gpu": (
            "Two control arms (random and shuffled rewards) fail their checks in seed 1. With random rewards, "
            "pass@1 ends .237 above the start model in seed 1 (and .052 below the start model in seed 0). With "
            "shuffled rewards, pass@1 ends .168 above the start model in seed 1. In both control arms (random "
            "and shuffled rewards), the share of answers with a thought rose during training. At the start, 108 "
            "of the 512 answers in a step had a thought. In the last step, 259 of 512 answers had a thought with "
            "random rewards, and 209 of 512 with shuffled rewards. At the start, .81 of the answers with a "
            "thought were correct. At the end, .87 of the answers with a thought were correct with random "
            "rewards, and .90 with shuffled rewards. If a model only changes how often it writes a thought, its "
            "pass@1 can already change between .1 and 1. With the usual eps of 1e-8, Adam's updates are as large "
            "for a gradient of pure noise as for a gradient with a signal. The gradient norm is .14 with random "
            "rewards and .39 with true rewards. So training with a control reward is a random walk. Four more "
            "runs with random rewards began from the start model of seed 1. Two of the four additional runs "
            "ended at .278 and .249 pass@1. The other two additional runs were stopped one and two steps before "
            "the end, when their training accuracy was .20 and .27. The gain from the verifier (.73 pass@1 or "
            "more) is three times as large as the largest change by random rewards. A next test should set "
            "`adam_eps` to about the size of the noise.",
        )
    },
    notes_by_scale={
        "gpu": (
            "Five or six arms ran in parallel on one GPU. Six arms needed more than the 80 GB of the GPU, and the "
            "arms that ran out of memory were trained again from the beginning.",
        )
    },
)
