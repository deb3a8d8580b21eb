"""Groups of config keys that recipes share: `--sampling.temperature 0.7`, `--optimizer.learning_rate 1e-5`.

A recipe names the groups that it needs and gives its own defaults. `PRESETS` holds the settings of published variants
of GRPO, as `--preset dapo` chooses them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from schoolhouse.algorithms.advantages import Baseline, ScaleRewards, uses_group_baseline
from schoolhouse.algorithms.losses import ImportanceLevel, KLEstimator
from schoolhouse.algorithms.lr_schedule import warmup_hold_decay
from schoolhouse.algorithms.packing import LossAggregation
from schoolhouse.algorithms.reward_controls import RewardControl
from schoolhouse.config import BaseConfig, expand_dotted, lookup, merge, suggest
from schoolhouse.types import SCRIPTS

ImportanceCorrection = Literal["none", "token", "product"]


class Sampling(BaseConfig):
    """How completions are sampled."""

    max_new_tokens: int = Field(128, gt=0)
    """Tokens that the policy may write in one completion."""
    temperature: float = Field(1.0, ge=0)
    """Logits are divided by this; 0 takes the likeliest token."""


class RolloutSampling(Sampling):
    """How rollouts are sampled that are learned from: never greedily."""

    temperature: float = Field(1.0, gt=0)
    """Logits are divided by this, while sampling and while learning."""


class Optimizer(BaseConfig):
    """AdamW, and the learning rate over a run: warm up, hold, decay to zero."""

    learning_rate: float = Field(1e-3, ge=0)
    """At its peak."""
    warmup_steps: int = Field(20, ge=0)
    """Updates until the learning rate has risen to its peak."""
    lr_decay_fraction: float = Field(0.5, ge=0, le=1)
    """Share of the run, at its end, over which the learning rate falls to zero."""
    weight_decay: float = Field(0.0, ge=0)
    """Decay of matrices; vectors such as norms are left alone."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Gradients of a larger norm are scaled down to this."""
    adam_beta1: float = Field(0.9, ge=0, lt=1)
    adam_beta2: float = Field(0.95, ge=0, lt=1)
    adam_eps: float = Field(1e-8, gt=0)
    """Adam divides by gradient size + this. As large as the noise in a weight's gradient, noise makes small steps."""

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of update `step` out of `steps`."""
        return warmup_hold_decay(step, steps, self.learning_rate, self.warmup_steps, self.lr_decay_fraction)


class Eval(BaseConfig):
    """Evaluation while a run trains."""

    every: int = Field(0, ge=0)
    """Evaluate every so many steps (0: never)."""
    problems: int = Field(100, gt=0)
    """Held-out problems of one evaluation."""
    samples: int = Field(4, gt=0)
    """Completions for each of them."""


class Advantage(BaseConfig):
    """From rewards to advantages."""

    baseline: Baseline = "mean"
    """What a reward is compared with: the mean of its group, of the other members, of the whole step, or nothing."""
    scale_rewards: ScaleRewards = "none"
    """What centred rewards are divided by: GRPO and DAPO group_std, Dr. GRPO and RLOO none."""
    std_eps: float = Field(1e-4, gt=0)
    """Added to that deviation (papers are silent; TRL 1e-4, verl 1e-6, Dr. GRPO 1e-8)."""
    std_ddof: Literal[0, 1] = 1
    """1: sample deviation, as in all published code; 0: that of the population."""
    normalize_each_reward: bool = False
    """Centre each reward (correctness, format, language) in its group and divide it by its deviation there, before they
    are added: with scale_rewards batch_std this is GDPO. Otherwise different mixtures can come to one sum."""
    negative_scale: float = Field(1.0, ge=0)
    """What advantages below zero are multiplied by; 0 learns from successes alone."""


class PolicyLoss(BaseConfig):
    """The loss of a token and how tokens are weighed."""

    type: Literal["clip", "cispo"] = "clip"
    """clip: PPO's clipped surrogate; cispo: the clipped ratio is a constant weight."""
    importance_sampling_level: ImportanceLevel = "token"
    """Where the importance ratio lives: each token (GRPO), the sequence's mean (GSPO) or product."""
    clip_low: float = Field(0.2, gt=0, lt=1)
    """A ratio is clipped at 1 - this."""
    clip_high: float = Field(0.28, gt=0)
    """A ratio is clipped at 1 + this; in `cispo` too, where others give the cap itself (5.0 is 4.0 here)."""
    clip_ratio_c: float | None = Field(None, gt=1)
    """Bound the loss of a bad token that became likelier by this times its advantage (dual-clip PPO)."""
    aggregation: LossAggregation = "token_mean"
    """GRPO sequence_mean (1/|o|), DAPO token_mean, Dr. GRPO constant (1/max_new_tokens), RLOO sequence_sum."""
    divisor: int = Field(0, ge=0)
    """What `aggregation: constant` divides by; 0: sampling.max_new_tokens, which then changes the effective rate."""
    mask_truncated: bool = False
    """Leave rollouts that were cut off out of the loss (they still count in the baseline and in means).
    Nothing then teaches to come to an end: watch `truncated`."""
    kl_coef: float = Field(0.0, ge=0)
    """Coefficient of the KL penalty towards the reference, in the loss; 0 needs no second model."""
    kl_estimator: KLEstimator = "k3"
    """Of the KL penalty in the loss: k3 as in GRPO, or k2, whose gradient is that of the KL."""
    ref_model_sync_steps: int = Field(0, ge=0)
    """Every so many steps the policy becomes the KL reference (R1-Zero 400); 0: the starting model stays."""
    importance_correction: ImportanceCorrection = "none"
    """Weigh by learner over sampler probability (truncated importance sampling), by token or sequence."""
    importance_correction_cap: float = Field(2.0, gt=1)
    """Upper bound of that weight."""
    importance_correction_mask: bool = False
    """Weigh what lies above the cap by 0, not by the cap (masked importance sampling)."""


class Rewards(BaseConfig):
    """Rewards beside the task's own."""

    format: float = Field(0.0, ge=0)
    """Reward for one thought, opened first of all and closed, and an answer behind it (R1's format reward)."""
    script: str = ""
    """Script that thoughts should be written in, such as latin or cjk; `language` rewards it."""
    language: float = Field(0.0, ge=0)
    """Reward for the share of a thought's words in `script` (R1's language consistency); none without a thought."""
    length: float = Field(0.0, ge=0)
    """Among answers to one problem, prefer the shorter by this much reward (Kimi k1.5); 0 leaves length alone."""
    overlong_buffer: int = Field(0, ge=0)
    """DAPO's soft penalty for length: begins this many tokens before max_new_tokens, reaches -1 there; 0 is off."""
    kl_coef: float = Field(0.0, ge=0)
    """Subtract this much of a completion's KL to the reference from its reward (RLOO, REINFORCE++)."""
    control: RewardControl = "none"
    """Negative control: random, shuffled or flipped rewards, from which nothing must be learned."""


_SYMMETRIC = {"loss.clip_low": 0.2, "loss.clip_high": 0.2}

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "ours": {},
    "reinforce": {"advantage.baseline": "none", "loss.aggregation": "sequence_sum"},  # Williams 1992
    "grpo": {  # arXiv 2402.03300
        "advantage.scale_rewards": "group_std",
        "loss.aggregation": "sequence_mean",
        "loss.kl_coef": 0.04,
        **_SYMMETRIC,
    },
    "dr_grpo": {"advantage.scale_rewards": "none", "loss.aggregation": "constant", **_SYMMETRIC},  # arXiv 2503.20783
    "dapo": {  # arXiv 2503.14476
        "advantage.scale_rewards": "group_std",
        "loss.aggregation": "token_mean",
        "loss.clip_low": 0.2,
        "loss.clip_high": 0.28,
        "dynamic_sampling": 3,
        "loss.mask_truncated": True,
    },
    "rloo": {  # arXiv 2402.14740
        "advantage.baseline": "leave_one_out",
        "advantage.scale_rewards": "none",
        "loss.aggregation": "sequence_sum",
        "rewards.kl_coef": 0.03,
    },
    "reinforce_pp": {  # arXiv 2501.03262
        "advantage.baseline": "batch_mean",
        "advantage.scale_rewards": "batch_std",
        "loss.aggregation": "sequence_mean",
        "rewards.kl_coef": 0.001,
        **_SYMMETRIC,
    },
    "gspo": {  # arXiv 2507.18071
        "advantage.scale_rewards": "group_std",
        "loss.aggregation": "sequence_mean",
        "loss.importance_sampling_level": "sequence",
        "loss.clip_low": 3e-4,
        "loss.clip_high": 4e-4,
    },
    "cispo": {  # arXiv 2506.13585
        "advantage.scale_rewards": "group_std",
        "loss.aggregation": "token_mean",
        "loss.type": "cispo",
        "loss.clip_high": 4.0,
    },
    "lite_ppo": {  # arXiv 2508.08221
        "advantage.scale_rewards": "batch_std",
        "loss.aggregation": "token_mean",
        **_SYMMETRIC,
    },
}
"""What each variant sets; all else is as in `recipes.grpo.Config`."""


def with_preset(given: Mapping[str, Any]) -> dict[str, Any]:
    """The given values (groups expanded) over those of their `preset`. Raises ValueError for an unknown preset."""
    name = given.get("preset", "ours")
    if not isinstance(name, str) or name not in PRESETS:
        raise ValueError(f"unknown preset `{name}`{suggest(str(name), [*PRESETS])}")
    return merge(expand_dotted(PRESETS[name]), given)


def preset_conflicts(cls: type[BaseConfig], file: Mapping[str, Any], words: Mapping[str, Any]) -> list[str]:
    """Where a file has settings written out that another `--preset` would set otherwise."""
    name = str(words.get("preset", ""))
    if name not in PRESETS or name == file.get("preset", "ours"):
        return []
    file, words = expand_dotted(file), expand_dotted(words)
    keys = dict.fromkeys(key for preset in PRESETS.values() for key in preset)
    lines = []
    for key in keys:
        wanted = PRESETS[name].get(key, lookup(cls.model_construct().model_dump(), key))
        written = lookup(file, key)
        if written is not None and lookup(words, key) is None and written != wanted:
            lines.append(
                f"`{key}` is {written} here, but {wanted} in `--preset {name}`: "
                f"choose one with --{key}, or delete the line"
            )
    return lines


def check_variant(c: Any) -> None:
    """Raises ValueError where settings of `recipes.grpo.Config` contradict one another."""
    if c.max_policy_lag and c.dynamic_sampling:
        raise ValueError("dynamic_sampling samples again after grading, which max_policy_lag > 0 forbids: set one to 0")
    if c.dynamic_sampling and not uses_group_baseline(c.advantage.baseline):
        raise ValueError(
            "dynamic_sampling keeps groups with mixed rewards: set advantage.baseline to `mean` or `leave_one_out`, or "
            "dynamic_sampling to 0"
        )
    _check_advantage(c.advantage, c.rewards)
    _check_loss(c)
    if c.rewards.script and c.rewards.script not in SCRIPTS:
        raise ValueError(f"unknown script `{c.rewards.script}`{suggest(c.rewards.script, SCRIPTS)}")
    if bool(c.rewards.script) != bool(c.rewards.language):
        raise ValueError("rewards.script and rewards.language need each other: give both, or neither")
    if c.rewards.overlong_buffer >= c.sampling.max_new_tokens:
        raise ValueError(
            f"rewards.overlong_buffer {c.rewards.overlong_buffer} must be less than sampling.max_new_tokens "
            f"{c.sampling.max_new_tokens}"
        )


def _check_advantage(a: Advantage, rewards: Rewards) -> None:
    if a.baseline == "none" and a.scale_rewards != "none":
        raise ValueError(
            f"advantage.scale_rewards `{a.scale_rewards}` needs a baseline: set advantage.baseline to `mean`, or "
            "scale_rewards to `none`"
        )
    if a.baseline == "batch_mean" and a.scale_rewards == "group_std":
        raise ValueError("advantage.baseline `batch_mean` goes with scale_rewards `batch_std` or `none`")
    if a.normalize_each_reward and not (rewards.format or rewards.language):
        raise ValueError(
            "advantage.normalize_each_reward is for several rewards: set rewards.format or rewards.language, or it to "
            "false"
        )
    whole = a.baseline == "none" or a.scale_rewards == "group_std" or rewards.length or rewards.overlong_buffer
    if a.normalize_each_reward and whole:
        raise ValueError(
            "advantage.normalize_each_reward compares within the group, in deviations: set advantage.baseline to "
            "`mean`, scale_rewards to `batch_std` or `none`, and leave out rewards.length and rewards.overlong_buffer"
        )


def _check_loss(c: Any) -> None:
    loss, rewards = c.loss, c.rewards
    level = loss.importance_sampling_level
    if level != "token" and loss.aggregation != "sequence_mean":
        raise ValueError(
            f"loss.importance_sampling_level `{level}` gives one ratio a sequence: set loss.aggregation to "
            "`sequence_mean`"
        )
    if level != "token" and loss.type == "cispo":
        raise ValueError("cispo weighs each token by its own ratio: set loss.importance_sampling_level to `token`")
    if loss.kl_coef and loss.kl_estimator == "k1":
        raise ValueError(
            "as a loss k1 does nothing in the mean: set loss.kl_estimator to k2 or k3, or use rewards.kl_coef"
        )
    if loss.ref_model_sync_steps and not (loss.kl_coef or rewards.kl_coef):
        raise ValueError(
            "loss.ref_model_sync_steps renews the KL reference: set loss.kl_coef or rewards.kl_coef, or it to 0"
        )
    if loss.type == "cispo" and loss.clip_ratio_c:
        raise ValueError("loss.clip_ratio_c bounds the clipped loss: cispo has none; leave it out")
    if loss.importance_correction != "none" and c.precision == "exact" and not c.max_policy_lag:
        raise ValueError("with precision `exact` there is nothing to correct: set loss.importance_correction to `none`")
