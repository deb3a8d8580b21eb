"""RL with LoRA learns as much as RL that trains all weights, even at rank 1, if all linear layers have adapters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from schoolhouse.claims.harness.claim import Arm, Check, Claim, Evaluation, Results, Scale, Step, format_values
from schoolhouse.claims.harness.figures import plot_accuracy, plot_bars
from schoolhouse.claims.harness.models import STYLES, require_scale, signal_check
from schoolhouse.claims.real_model import WORDS, cold_start

CHAINS = Evaluation(task="school:chain?steps=4", problems=200, samples=4, max_new_tokens=64)
MODEL_3M = {
    "hidden_size": 256,
    "num_layers": 4,
    "num_heads": 4,
    "num_kv_heads": 4,
    "head_dim": 64,
    "intermediate_size": 704,
    "max_seq_len": 256,
}
FULL_RATE: Mapping[Scale, float] = {"tiny": 1e-4, "small": 1e-5}
"""The learning rate of the arm `full`, which trains all weights. The scale `tiny` is a 3M model, and the scale `small`
is SmolLM2-135M."""

RANKS = (1, 8, 32)
MARGIN = 0.05


def start_model(scale: Scale, seed: int) -> Step:
    """The starting model of all arms (variants of the experiment) with one seed."""
    if scale == "small":
        return cold_start(seed)
    common = {"task": f"school:chain+facts?steps=2-4&styles={STYLES}", "seed": 0}
    pretrained = Step(
        "pretrain",
        {**common, "model": MODEL_3M, "vocab_size": 384, "steps": 200, "optimizer.learning_rate": 2e-3},
    )
    return Step("sft", {**common, "model": pretrained, "steps": 500, "optimizer.learning_rate": 1e-3})


def arms(scale: Scale, seed: int) -> Mapping[str, Arm]:
    require_scale(scale, "tiny", "small")
    start, measures = start_model(scale, seed), {"eval": WORDS if scale == "small" else CHAINS}
    common: dict[str, Any] = {
        "model": start,
        "task": WORDS.task if scale == "small" else CHAINS.task,
        "seed": seed,
        "steps": 40 if scale == "small" else 45,
        "prompts_per_step": 16,
        "group_size": 8 if scale == "small" else 16,
        "sampling.max_new_tokens": 64,
        "eval.every": 10 if scale == "small" else 9,
        "eval.problems": 100,
        "eval.samples": 2,
    }
    rate = FULL_RATE[scale]

    def practised(learning_rate: float, **changes: Any) -> Step:
        return Step("grpo", {**common, "optimizer.learning_rate": learning_rate, **changes})

    return {
        "start": Arm(start, measures, "the start model"),
        "full": Arm(practised(rate), measures, f"all weights are trained, learning rate {rate:g}"),
        **{
            f"rank_{rank}": Arm(
                practised(10 * rate, **{"lora.rank": rank}),
                measures,
                f"LoRA of rank {rank}, learning rate {10 * rate:g}",
            )
            for rank in RANKS
        },
        "attention_only": Arm(
            practised(10 * rate, **{"lora.rank": 8, "lora.targets": "attention"}),
            measures,
            f"LoRA of rank 8 on the attention layers alone, learning rate {10 * rate:g}",
        ),
        "low_rate": Arm(
            practised(rate, **{"lora.rank": 8}), measures, f"LoRA of rank 8 with the learning rate of `full`, {rate:g}"
        ),
    }


def check(results: Results) -> Sequence[Check]:
    full = results.mean("full")
    gains = results.gains("start", "full")
    checks = [
        Check("premise", "`full` gains at least .15 in each seed", format_values(gains, sign=True), min(gains) >= 0.15),
        signal_check(results, "full"),
    ]
    for rank in RANKS:
        mean = results.mean(f"rank_{rank}")
        checks.append(
            Check(
                "must hold",
                f"pass@1 of rank {rank} is at most {MARGIN} below pass@1 of `full`, as a mean over seeds",
                f"{mean:.3f} ({format_values(results.by_seed(f'rank_{rank}'))}), full {full:.3f}",
                mean >= full - MARGIN,
            )
        )
    best = results.mean("rank_8")
    for name, about in (("attention_only", "LoRA on the attention layers alone"), ("low_rate", "a tenth of the rate")):
        mean = results.mean(name)
        checks.append(
            Check(
                "must fail",
                f"with {about}, pass@1 is below pass@1 of rank 8, as a mean over seeds",
                f"{mean:.3f} ({format_values(results.by_seed(name))}), rank 8 {best:.3f}",
                mean < best,
            )
        )
    return checks


def draw(results: Results, picture: Any) -> None:
    left, right = picture.subplots(1, 2)
    plot_accuracy(left, results, [name for name in results.arms if name != "start"])
    plot_bars(right, results, [*results.arms])


CLAIM = Claim(
    id="lora",
    paper='Schulman et al. 2025, "LoRA Without Regret"; Hu et al. 2021, arXiv 2106.09685',
    sentence="RL with LoRA learns as much as RL with all weights, even at rank 1, if all linear layers have adapters "
    "and the learning rate is ten times as high",
    budget="every arm has 45 steps of 16 problems x 16 rollouts of at most 64 tokens, with a model of 3M parameters",
    premise="full training gains at least .15 in each seed, and groups have mixed rewards (correct and wrong rollouts)",
    rule=f"the mean pass@1 of the ranks 1, 8 and 32 is at most {MARGIN} below the mean pass@1 of full training. LoRA "
    "of rank 8 on the attention layers alone, and LoRA of rank 8 with a tenth of the learning rate, end below rank 8.",
    budget_by_scale={
        "small": "every arm has 40 steps of 16 problems x 8 rollouts of at most 64 tokens, with SmolLM2-135M-Instruct"
    },
    arms=arms,
    check=check,
    draw=draw,
)
