"""What the arms of claims start from."""

from __future__ import annotations

from schoolhouse.claims.harness.claim import Check, Evaluation, Results, Scale, Step
from schoolhouse.types import SchoolError

CHAINS = Evaluation(task="school:chain?steps=4", problems=200, samples=8, max_new_tokens=64)
"""Held-out chains of four operations."""

EIGHTS = Evaluation(task="school:chain?steps=8", problems=200, samples=8, max_new_tokens=80)
"""Held-out chains of eight operations: more than a large model does without a thought."""

GOALS = Evaluation(task="school:countdown?count=3", problems=200, samples=8, max_new_tokens=192)
"""Held-out countdowns of three numbers: many ways to be right, and no answer can be guessed."""


def only_tiny(scale: Scale) -> None:
    """What a claim says that has no other scale."""
    only(scale, "tiny")


def only(scale: Scale, *known: Scale) -> None:
    """Raises SchoolError for the scales that a claim does not have."""
    if scale not in known:
        raise SchoolError(f"this claim has no scale `{scale}` yet: use {' or '.join(known)}")


TONGUES = "latin=25,cjk=25,mixed=50"
"""Half of the worked examples mix two toy languages, and neither of the two is better known than the other."""


STYLES = "no_cot=55,partial=10,full=35"


def chains(
    seed: int,
    steps: int = 1000,
    languages: str = "",
    small: bool = False,
    styles: str = STYLES,
    revision_percent: int = 0,
    lengths: str = "2-4",
    lines: bool = False,
) -> Step:
    """A small model that was shown worked chains, most of them bare guesses: it is right about one time in three."""
    task = f"school:chain+facts?steps={lengths}&styles={styles}"
    if languages:
        task += f"&languages={languages}"
    if revision_percent:
        task += f"&revision_percent={revision_percent}"
    if lines:
        task += "&lines=1"
    width, layers = (64, 2) if small else (128, 3)
    heads = width // 32
    model = {
        "hidden_size": width,
        "num_layers": layers,
        "num_heads": heads,
        "num_kv_heads": heads,
        "head_dim": 32,
        "intermediate_size": 3 * width,
    }
    book = {"task": task, "seed": seed, "model": {**model, "max_seq_len": 256}, "vocab_size": 448 if languages else 384}
    text = Step("pretrain", {**book, "steps": 200, "optimizer.learning_rate": 3e-3})
    if languages:
        steps = 4500 if small else 2200  # each language has to be learned
    return Step("sft", {"model": text, "task": task, "seed": seed, "steps": steps, "optimizer.learning_rate": 3e-3})


SMALL = {
    "hidden_size": 128,
    "num_layers": 3,
    "num_heads": 4,
    "num_kv_heads": 4,
    "head_dim": 32,
    "intermediate_size": 384,
    "max_seq_len": 256,
}


LARGE = {
    "hidden_size": 768,
    "num_layers": 14,
    "num_heads": 12,
    "num_kv_heads": 12,
    "head_dim": 64,
    "intermediate_size": 2048,
    "max_seq_len": 256,
}
"""99 million parameters."""

ROOM = 16_384
"""Tokens of a micro-batch, where there is a GPU's memory for them."""


def long_chains(seed: int) -> Step:
    """A large model that was shown worked chains, most of them bare guesses. Learning rates shrink with the width."""
    task = "school:chain+facts?steps=4-8&styles=no_cot=75,partial=5,full=20"
    slow = {
        "task": task,
        "seed": seed,
        "microbatch_tokens": ROOM,
        "optimizer.learning_rate": 4e-4,
        "optimizer.warmup_steps": 100,
        "save_every": 250,
    }
    text = Step("pretrain", {**slow, "model": LARGE, "vocab_size": 384, "steps": 200})
    return Step("sft", {**slow, "model": text, "steps": 700, "batch_size": 128})


def countdowns(seed: int) -> Step:
    """A small model that was shown how countdowns are tried out, try after try: right about two times in five."""
    task = "school:countdown+facts?count=3&styles=full=100"
    book = {
        "task": task,
        "seed": seed,
        "model": SMALL,
        "vocab_size": 384,
        "steps": 300,
        "optimizer.learning_rate": 3e-3,
    }
    taught = {"task": task, "seed": seed, "steps": 2500, "optimizer.learning_rate": 3e-3, "save_every": 250}
    return Step("sft", {"model": Step("pretrain", book), **taught})


def reader(seed: int) -> Step:
    """A base model: it has read the textbook with worked countdowns between its pages, and was never fine-tuned."""
    book = {"task": "school:countdown?count=3&styles=full=100", "seed": seed, "model": SMALL, "vocab_size": 384}
    return Step(
        "pretrain",
        {
            **book,
            "steps": 1000,
            "batch_size": 8,
            "demos_per_batch": 48,
            "optimizer.learning_rate": 3e-3,
            "save_every": 500,
        },
    )


def mixed_share(results: Results, arm: str, steps: int = 5, least: float = 0.3) -> Check:
    """A premise: groups must disagree, or there is nothing to learn from."""
    rows = [row for outcome in results.arms[arm].values() for row in outcome.metrics[:steps]]
    share = sum(row["groups_with_signal"] for row in rows) / sum(row["groups"] for row in rows)
    text = f"{arm}: at least {least:.0%} of groups mixed in the first {steps} steps"
    return Check("premise", text, f"{share:.0%}", share >= least)


def practice(start: Step, seed: int, **changes: object) -> Step:
    """GRPO from there on chains of four."""
    return Step(
        "grpo",
        {
            "model": start,
            "task": CHAINS.task,
            "seed": seed,
            "steps": 45,
            "sampling.max_new_tokens": CHAINS.max_new_tokens,
            "optimizer.learning_rate": 1e-4,
            "eval.every": 9,
            "eval.problems": 100,
            "eval.samples": 4,
            "save_every": 45,
            **changes,
        },
    )
