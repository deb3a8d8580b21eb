"""The start models of the arms of claims, and the evaluations and checks that claims share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from schoolhouse.claims.harness.claim import Check, Evaluation, Results, Scale, Step
from schoolhouse.types import SchoolError

CHAINS_OF_4 = Evaluation(task="school:chain?steps=4", problems=200, samples=8, max_new_tokens=64)
"""The evaluation on held-out chains of four operations (a chain is a chain of small sums)."""

CHAINS_OF_8 = Evaluation(task="school:chain?steps=8", problems=200, samples=8, max_new_tokens=80)
"""The evaluation on held-out chains of eight operations. A large model cannot solve such a chain without a thought."""

COUNTDOWNS = Evaluation(task="school:countdown?count=3", problems=200, samples=8, max_new_tokens=192)
"""The evaluation on held-out countdowns of three numbers. Many answers are correct, but no answer can be guessed."""


def require_tiny(scale: Scale) -> None:
    """Raise SchoolError for any scale other than tiny. Claims that are defined only for the scale `tiny` call this
    function."""
    require_scale(scale, "tiny")


def require_scale(scale: Scale, *known: Scale) -> None:
    """Raise SchoolError for a scale that the claim does not have."""
    if scale not in known:
        raise SchoolError(f"this claim has no scale `{scale}`; use {' or '.join(known)}")


TWO_LANGUAGES = "latin=25,cjk=25,mixed=50"
"""Half of the demonstrations mix two toy languages. Both languages are equally frequent."""

STYLES = "no_cot=55,partial=10,full=35"
"""Most demonstrations are guesses without a thought."""

SMALL_MODEL = {
    "hidden_size": 128,
    "num_layers": 3,
    "num_heads": 4,
    "num_kv_heads": 4,
    "head_dim": 32,
    "intermediate_size": 384,
    "max_seq_len": 256,
}
"""The model has 0.6 million parameters, plus the parameters of its vocabulary."""

HALF_WIDTH_MODEL = {
    "hidden_size": 64,
    "num_layers": 2,
    "num_heads": 2,
    "num_kv_heads": 2,
    "head_dim": 32,
    "intermediate_size": 192,
    "max_seq_len": 256,
}

LARGE_MODEL = {
    "hidden_size": 768,
    "num_layers": 14,
    "num_heads": 12,
    "num_kv_heads": 12,
    "head_dim": 64,
    "intermediate_size": 2048,
    "max_seq_len": 256,
}
"""The model has 99 million parameters."""

MICROBATCH_TOKENS = 16_384
"""The number of tokens in a micro-batch that fits into a GPU's memory."""


def chain_model(
    seed: int,
    steps: int = 1000,
    languages: str = "",
    small: bool = False,
    styles: str = STYLES,
    revision_percent: int = 0,
    lengths: str = "2-4",
    lines: bool = False,
) -> Step:
    """A small model, fine-tuned on demonstrations of chains (chains of small sums).

    With the default `styles` of demonstrations, the model solves a third of the chains.
    """
    task = f"school:chain+facts?steps={lengths}&styles={styles}"
    if languages:
        task += f"&languages={languages}"
    if revision_percent:
        task += f"&revision_percent={revision_percent}"
    if lines:
        task += "&lines=1"
    model = HALF_WIDTH_MODEL if small else SMALL_MODEL
    corpus = {"task": task, "seed": seed, "model": model, "vocab_size": 448 if languages else 384}
    pretrained = Step("pretrain", {**corpus, "steps": 200, "optimizer.learning_rate": 3e-3})
    if languages:
        steps = 4500 if small else 2200  # each language has to be learned
    return Step(
        "sft", {"model": pretrained, "task": task, "seed": seed, "steps": steps, "optimizer.learning_rate": 3e-3}
    )


def large_chain_model(seed: int) -> Step:
    """A large model, fine-tuned on demonstrations of chains of small sums. Most demonstrations have no thought.

    The large model is wider than the small models, so its learning rate is lower.
    """
    common = {
        "task": "school:chain+facts?steps=4-8&styles=no_cot=75,partial=5,full=20",
        "seed": seed,
        "microbatch_tokens": MICROBATCH_TOKENS,
        "optimizer.learning_rate": 4e-4,
        "optimizer.warmup_steps": 100,
        "save_every": 250,
    }
    pretrained = Step("pretrain", {**common, "model": LARGE_MODEL, "vocab_size": 384, "steps": 200})
    return Step("sft", {**common, "model": pretrained, "steps": 700, "batch_size": 128})


def countdown_model(seed: int) -> Step:
    """A small model, fine-tuned on demonstrations of countdowns (reach a goal from three numbers) by trial and error.

    The model solves 40 % of the countdowns.
    """
    common = {
        "task": "school:countdown+facts?count=3&styles=full=100",
        "seed": seed,
        "optimizer.learning_rate": 3e-3,
    }
    pretrained = Step("pretrain", {**common, "model": SMALL_MODEL, "vocab_size": 384, "steps": 300})
    return Step("sft", {**common, "model": pretrained, "steps": 2500, "save_every": 250})


def base_model(seed: int) -> Step:
    """A base model without fine-tuning. The pretraining text contains demonstrations of countdowns."""
    return Step(
        "pretrain",
        {
            "task": "school:countdown?count=3&styles=full=100",
            "seed": seed,
            "model": SMALL_MODEL,
            "vocab_size": 384,
            "steps": 1000,
            "batch_size": 8,
            "demos_per_batch": 48,
            "optimizer.learning_rate": 3e-3,
            "save_every": 500,
        },
    )


def signal_check(results: Results, arm: str, steps: int = 5, min_share: float = 0.3) -> Check:
    """A check of the premise that enough groups have mixed rewards (correct and wrong rollouts). A group with equal
    rewards gives no gradient."""
    rows = [row for outcome in results.arms[arm].values() for row in outcome.metrics[:steps]]
    share = sum(row["groups_with_signal"] for row in rows) / sum(row["groups"] for row in rows)
    text = f"in the first {steps} steps of {arm}, at least {min_share:.0%} of groups have mixed rewards"
    return Check("premise", text, f"{share:.0%}", share >= min_share)


def grpo_step(start: Step, seed: int, changes: Mapping[str, Any], recipe: str = "grpo") -> Step:
    """A GRPO run that starts from a model and uses chains of four operations. `changes` sets config keys of the run."""
    return Step(
        recipe,
        {
            "model": start,
            "task": CHAINS_OF_4.task,
            "seed": seed,
            "steps": 45,
            "sampling.max_new_tokens": CHAINS_OF_4.max_new_tokens,
            "optimizer.learning_rate": 1e-4,
            "eval.every": 9,
            "eval.problems": 100,
            "eval.samples": 4,
            "save_every": 45,
            **changes,
        },
    )
