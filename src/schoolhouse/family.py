"""The GRPO family: every switch of it, those that papers leave silent included, and the settings of each relative.

`like: dapo` sets what that paper sets; keys that are given besides it win. docs/recipes/grpo.md has the table.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from schoolhouse.config import Frozen, nearest
from schoolhouse.controls import Control
from schoolhouse.credit import Baseline, Scale, compares
from schoolhouse.objectives import Estimator, Level
from schoolhouse.packing import Aggregate
from schoolhouse.types import SCRIPTS, Precision

Correction = Literal["none", "token", "product"]

_SYMMETRIC = {"clip_low": 0.2, "clip_high": 0.2}

FAMILY: Mapping[str, Mapping[str, Any]] = {
    "ours": {},
    "reinforce": {"baseline": "none", "scale": "none", "aggregate": "sequence_sum"},  # Williams 1992
    "grpo": {"scale": "group_std", "aggregate": "sequence_mean", "kl": 0.04, **_SYMMETRIC},  # arXiv 2402.03300
    "dr_grpo": {"scale": "none", "aggregate": "constant", **_SYMMETRIC},  # arXiv 2503.20783
    "dapo": {  # arXiv 2503.14476
        "scale": "group_std",
        "aggregate": "token_mean",
        "clip_low": 0.2,
        "clip_high": 0.28,
        "dynamic_sampling": 3,
        "mask_truncated": True,
    },
    "rloo": {  # arXiv 2402.14740
        "baseline": "leave_one_out",
        "scale": "none",
        "aggregate": "sequence_sum",
        "kl_in_reward": 0.03,
    },
    "reinforce_pp": {  # arXiv 2501.03262
        "baseline": "batch_mean",
        "scale": "batch_std",
        "aggregate": "sequence_mean",
        "kl_in_reward": 0.001,
        **_SYMMETRIC,
    },
    "gspo": {  # arXiv 2507.18071
        "scale": "group_std",
        "aggregate": "sequence_mean",
        "level": "sequence",
        "clip_low": 3e-4,
        "clip_high": 4e-4,
    },
    "cispo": {"scale": "group_std", "aggregate": "token_mean", "loss": "cispo", "clip_high": 4.0},  # arXiv 2506.13585
    "lite_ppo": {"scale": "batch_std", "aggregate": "token_mean", **_SYMMETRIC},  # arXiv 2508.08221
}
"""What each relative sets; all else is as in `Config`."""


class Config(Frozen):
    model: str
    """Folder of the model to start from (Hugging Face format), or of a run: its newest checkpoint."""
    task: str = "school"
    """Practice problems: school[:families], gym:NAME, jsonl:PATH, python:PATH."""
    seed: int = 0
    like: str = "ours"
    """The relative whose settings to begin with: grpo, dr_grpo, dapo, rloo, reinforce_pp, gspo, cispo, lite_ppo, ..."""
    steps: int = Field(100, gt=0)
    problems: int = Field(32, gt=0)
    """P: problems of one step."""
    samples: int = Field(16, gt=1)
    """G: rollouts of one problem. At least 2, or nothing can be compared."""
    length: int = Field(128, gt=0)
    """Tokens a rollout may say."""
    temperature: float = Field(1.0, gt=0)

    baseline: Baseline = "mean"
    """What a score is compared with: its group's mean, that of its siblings, the whole step's mean, or nothing."""
    scale: Scale = "none"
    """What centred scores are divided by: GRPO and DAPO group_std, Dr. GRPO and RLOO none."""
    scale_guard: float = Field(1e-4, gt=0)
    """Added to that deviation (papers are silent; TRL 1e-4, verl 1e-6, Dr. GRPO 1e-8)."""
    scale_ddof: Literal[0, 1] = 1
    """1: sample deviation, as in all published code; 0: that of the population."""
    scale_each: bool = False
    """Centre each reward (right, form, language) in its group and divide it by its deviation there, before they are
    added: with scale batch_std GDPO. Otherwise they are added first, and different mixtures can come to one sum."""
    negative: float = Field(1.0, ge=0)
    """What advantages below zero are multiplied by; 0 learns from successes alone."""
    loss: Literal["clip", "cispo"] = "clip"
    level: Level = "token"
    """Where the importance ratio lives: each token (GRPO), the sequence's mean (GSPO) or product."""
    clip_low: float = Field(0.2, gt=0, lt=1)
    clip_high: float = Field(0.28, gt=0)
    """Counted from 1: a ratio is cut at 1 + this. `cispo` too, where others give the cap itself (5.0 is 4.0 here)."""
    clip_dual: float | None = Field(None, gt=1)
    """Bound the loss of a bad token that became likelier by this times its advantage (dual-clip PPO)."""
    aggregate: Aggregate = "token_mean"
    """GRPO sequence_mean (1/|o|), DAPO token_mean, Dr. GRPO constant (1/length), RLOO sequence_sum."""
    constant: int = Field(0, ge=0)
    """What `aggregate: constant` divides by; 0: `length`. A change of `length` is then a change of the rate too."""
    kl: float = Field(0.0, ge=0)
    """Coefficient of the KL penalty towards the reference, in the loss; 0 does without a second model."""
    kl_estimator: Estimator = "k3"
    """Of the KL penalty in the loss: k3 as in GRPO, k2, whose gradient is that of the KL; `kl_in_reward` is k1."""
    kl_in_reward: float = Field(0.0, ge=0)
    """Take this much of a reply's KL from its score instead (RLOO, REINFORCE++)."""
    renew_reference: int = Field(0, ge=0)
    """Every so many steps the policy becomes what KL is measured against (R1-Zero 400); 0: the starting model stays."""
    form: float = Field(0.0, ge=0)
    """Reward for one thought, opened first of all and closed, and an answer behind it (R1's format reward)."""
    language: str = ""
    """Script that thoughts should be written in, such as latin or cjk; `consistency` rewards it."""
    consistency: float = Field(0.0, ge=0)
    """Reward for the share of a thought's words in `language` (R1's language consistency); none for no thought."""
    brevity: float = Field(0.0, ge=0)
    """Among answers to one problem, prefer the shorter by this much of a score (Kimi k1.5); 0 leaves length alone."""
    overlong: int = Field(0, ge=0)
    """DAPO's soft penalty for length: begins this many tokens before `length`, reaches -1 there; 0 is off."""
    mask_truncated: bool = False
    """Leave rollouts that were cut off out of the loss (they still count in the baseline, and in what a mean is over).
    Nothing then teaches to come to an end: watch `truncated`."""
    dynamic_sampling: int = Field(0, ge=0)
    """DAPO: ask up to this many further times in a step, until `problems` groups are mixed."""
    updates: int = Field(1, gt=0)
    """Optimizer steps on the rollouts of one step. 1 is on-policy: clipping then has nothing to clip."""
    lag: int = Field(0, ge=0)
    """Updates between sampling and training. 0 is on-policy."""

    correction: Correction = "none"
    """Weigh by how likely the learner finds what was sampled (truncated importance sampling), by token or sequence."""
    correction_cap: float = Field(2.0, gt=1)
    correction_mask: bool = False
    """Weigh what lies above the cap by 0, not by the cap (masked importance sampling)."""
    gap_limit: float = Field(0.1, gt=0)
    """Stop when sampled and learned log-probabilities of fresh rollouts lie further apart in the mean."""
    sampler_noise: float = Field(0.0, ge=0)
    """Deviation of a fixed noise on the sampler's logits, as a sampler in coarse numbers has it. For experiments."""
    control: Control = "none"
    """Put nonsense in the place of verdicts, to see that nothing is learned from it: random, shuffled, flipped."""

    learning_rate: float = Field(2e-4, ge=0)
    warmup: int = Field(5, ge=0)
    decay: float = Field(0.0, ge=0, le=1)
    clip_norm: float = Field(1.0, gt=0)
    adam_eps: float = Field(1e-8, gt=0)
    """Adam divides by gradient size + this. As large as the noise in a weight's gradient, noise makes small steps."""
    token_budget: int = Field(4_096, gt=0)
    """Tokens of one micro-batch: memory, never the result."""
    precision: Precision = "auto"
    recompute: bool = False
    """Activation checkpointing: a second forward pass for less memory, the same result."""
    save_every: int = Field(20, gt=0)
    exam_every: int = Field(0, ge=0)
    """Sit the exam every so many steps (0: never)."""
    exam_problems: int = Field(100, gt=0)
    exam_samples: int = Field(4, gt=0)

    @property
    def guard_each(self) -> float:
        """Added to the deviation of each reward; 0 where rewards are not scaled by themselves."""
        return self.scale_guard if self.scale_each else 0.0

    @model_validator(mode="before")
    @classmethod
    def _like(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        like = given.get("like", "ours")
        if not isinstance(like, str) or like not in FAMILY:
            raise ValueError(f"there is no relative `{like}` to be like{nearest(str(like), [*FAMILY])}")
        return {**FAMILY[like], **given}

    @classmethod
    def contradictions(cls, file: Mapping[str, Any], words: Mapping[str, Any]) -> list[str]:
        """`--like` changes the relative of a file that has other settings written out: which of the two is meant?"""
        like = str(words.get("like", ""))
        if like not in FAMILY or like == file.get("like", "ours"):
            return []
        switches = dict.fromkeys(key for relative in FAMILY.values() for key in relative)
        meant = {key: FAMILY[like].get(key, cls.model_fields[key].default) for key in switches}
        return [
            f"`{key}` is {file[key]} here, but {value} in `--like {like}`: say which with --{key}, or delete the line"
            for key, value in meant.items()
            if key in file and key not in words and file[key] != value
        ]

    @model_validator(mode="after")
    def _possible(self) -> Config:
        if self.lag and self.dynamic_sampling:
            raise ValueError("dynamic_sampling asks again after the verdicts, which lag > 0 forbids: set one to 0")
        if self.dynamic_sampling and not compares(self.baseline):
            raise ValueError(
                "dynamic_sampling keeps the groups that disagree: set baseline to `mean` or `leave_one_out`, or it to 0"
            )
        if self.baseline == "none" and self.scale != "none":
            raise ValueError(f"scale `{self.scale}` needs a baseline: set baseline to `mean`, or scale to `none`")
        if self.baseline == "batch_mean" and self.scale == "group_std":
            raise ValueError("baseline `batch_mean` goes with scale `batch_std` or `none`")
        if self.level != "token" and self.aggregate != "sequence_mean":
            raise ValueError(f"level `{self.level}` gives one ratio a sequence: set aggregate to `sequence_mean`")
        if self.level != "token" and self.loss == "cispo":
            raise ValueError("cispo weighs each token by its own ratio: set level to `token`")
        if self.correction != "none" and self.precision == "exact" and not (self.sampler_noise or self.lag):
            raise ValueError("with precision `exact` there is nothing to correct: set correction to `none`")
        if self.kl and self.kl_estimator == "k1":
            raise ValueError("as a loss k1 does nothing in the mean: set kl_estimator to k2 or k3, or use kl_in_reward")
        if self.renew_reference and not (self.kl or self.kl_in_reward):
            raise ValueError("renew_reference renews what KL is measured against: set kl or kl_in_reward, or it to 0")
        if self.scale_each and not (self.form or self.consistency):
            raise ValueError("scale_each is for several rewards: set form or consistency, or it to false")
        if self.scale_each and (self.baseline == "none" or self.scale == "group_std" or self.brevity or self.overlong):
            raise ValueError(
                "scale_each compares within the group, in deviations: set baseline to `mean`, scale to `batch_std` or "
                "`none`, and leave out brevity and overlong, which are parts of a score"
            )
        if self.loss == "cispo" and self.clip_dual:
            raise ValueError("clip_dual bounds the clipped loss: cispo has none; leave it out")
        if self.language and self.language not in SCRIPTS:
            raise ValueError(f"there is no script `{self.language}`{nearest(self.language, SCRIPTS)}")
        if bool(self.language) != bool(self.consistency):
            raise ValueError("`language` and `consistency` go together: give both, or neither")
        if self.overlong >= self.length:
            raise ValueError(f"overlong {self.overlong} must be less than length {self.length}")
        return self
