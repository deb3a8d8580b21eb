"""Groups of config keys that several recipes use, such as `--sampling.temperature 0.7`.

A recipe names the groups that it needs, and gives its own defaults. `PRESETS` holds the settings of published variants
of GRPO; for example, `--preset dapo` selects the settings of DAPO.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from schoolhouse.algorithms.advantages import Baseline, ScaleRewards, uses_group_baseline
from schoolhouse.algorithms.losses import Divergence, ImportanceLevel, KLEstimator
from schoolhouse.algorithms.lr_schedule import warmup_hold_decay
from schoolhouse.algorithms.packing import LossAggregation
from schoolhouse.algorithms.reward_controls import RewardControl
from schoolhouse.algorithms.worker_settings import WorkerSettings
from schoolhouse.config import BaseConfig, expand_dotted, lookup, merge, suggest
from schoolhouse.types import SCRIPTS

ImportanceCorrection = Literal["none", "token", "product"]


class Sampling(BaseConfig):
    """Settings for sampling completions."""

    max_new_tokens: int = Field(128, gt=0)
    """Maximum number of tokens in one completion."""
    temperature: float = Field(1.0, ge=0)
    """Logits are divided by this number; with 0 the most likely token is chosen."""
    weights: Literal["auto", "float32", "bfloat16", "int8"] = "auto"
    """Number type of the sampler's weights, also in evaluations during the run. auto: the learner's number type.
    bfloat16 and int8 make sampling faster if few completions are sampled at a time; watch the metric `logprob_gap`."""


class RolloutSampling(Sampling):
    """Settings for sampling the rollouts of a training run. Greedy sampling is not allowed for training rollouts."""

    temperature: float = Field(1.0, gt=0)
    """Logits are divided by this number, while sampling and while learning."""


class Optimizer(BaseConfig):
    """Settings of the optimizer AdamW and of the learning rate, which warms up, stays constant, and decays to zero."""

    learning_rate: float = Field(1e-3, ge=0)
    """The learning rate at its peak."""
    warmup_steps: int = Field(20, ge=0)
    """The number of updates in which the learning rate rises to its peak."""
    lr_decay_fraction: float = Field(0.5, ge=0, le=1)
    """The learning rate falls to zero over this last fraction of the run."""
    weight_decay: float = Field(0.0, ge=0)
    """Weight decay of matrices. Vectors (such as the weights of norms) do not decay."""
    max_grad_norm: float = Field(1.0, gt=0)
    """A gradient with a larger norm is scaled down to this norm."""
    adam_beta1: float = Field(0.9, ge=0, lt=1)
    adam_beta2: float = Field(0.95, ge=0, lt=1)
    adam_eps: float = Field(1e-8, gt=0)
    """Adam divides by the gradient size + `adam_eps`. If it is as large as gradient noise, noise makes small steps."""

    def rate(self, step: int, steps: int) -> float:
        """Return the learning rate of update `step` in a run of `steps` updates."""
        return warmup_hold_decay(step, steps, self.learning_rate, self.warmup_steps, self.lr_decay_fraction)


class Lora(BaseConfig):
    """Settings of LoRA (Hu et al. 2021): the model is frozen, and small matrices in its linear layers are trained."""

    rank: int = Field(0, ge=0)
    """Rank of the trained matrices. With rank 0, there is no adapter, and the whole model is trained."""
    alpha: float = Field(32.0, gt=0)
    """The output of the trained matrices is multiplied by alpha / rank, so one learning rate fits many ranks."""
    targets: Literal["all", "attention", "mlp"] = "all"
    """Linear layers that get a new adapter: all of them, or only those of attention or of the MLP (both learn less). If
    `model` is an adapter, `all` trains the layers that the adapter has."""
    base_dtype: Literal["float32", "bfloat16"] = "float32"
    """Number type in which the frozen matrices are stored. bfloat16 halves the memory, and rounds the weights."""


class Eval(BaseConfig):
    """Settings for evaluation during a training run."""

    every: int = Field(0, ge=0)
    """Number of steps between two evaluations (0: never evaluate)."""
    problems: int = Field(100, gt=0)
    """Number of held-out problems in one evaluation."""
    samples: int = Field(4, gt=0)
    """Number of completions for each problem."""


class Advantage(BaseConfig):
    """Settings for computing advantages from rewards."""

    baseline: Baseline = "mean"
    """The mean that is subtracted from a reward: of its group, of the group's other rollouts, of the step, or none."""
    scale_rewards: ScaleRewards = "none"
    """The divisor of centred rewards: group_std in GRPO and DAPO, group_mean in MaxRL, none in Dr. GRPO and RLOO."""
    std_eps: float = Field(1e-4, gt=0)
    """A small number added to the standard deviation. The papers give none; TRL: 1e-4, verl: 1e-6, Dr. GRPO: 1e-8."""
    std_ddof: Literal[0, 1] = 1
    """1 gives the standard deviation of a sample, as in all published code; 0 gives that of a population."""
    normalize_each_reward: bool = False
    """Normalise each reward (correctness, format, language) within its group before the rewards are added: subtract the
    mean and divide by the standard deviation. Without this key, different combinations of rewards can have the same
    sum. Together with scale_rewards batch_std, this key gives GDPO."""
    negative_scale: float = Field(1.0, ge=0)
    """Factor for advantages below zero. With 0 the policy learns only from successes."""


class PolicyLoss(BaseConfig):
    """Settings for the loss of each token and for its weight."""

    type: Literal["clip", "cispo", "dppo", "policy_gradient"] = "clip"
    """With clip, the loss is PPO's clipped surrogate. With cispo, the clipped ratio is a constant weight. With dppo, a
    limit on the divergence from the sampler replaces the clip. With policy_gradient (REINFORCE), nothing is clipped."""
    score_centering: int = Field(0, ge=0)
    """Number of most likely tokens of the sampler from which the drift of the gradient is computed and removed, if
    sampler and learner differ (128 in the paper). With 0, the drift stays. Needs `loss.type` policy_gradient."""
    divergence: Divergence = "tv"
    """The divergence that `dppo` limits: total variation (tv), or KL divergence (kl), of the sampled token."""
    importance_sampling_level: ImportanceLevel = "token"
    """Compute the importance ratio per token (GRPO), or per sequence as the mean (GSPO) or the product over tokens."""
    clip_low: float = Field(0.2, gt=0, lt=1)
    """The lower limit of the importance ratio is 1 - clip_low. With dppo, clip_low is the largest divergence of a token
    with an advantage below 0."""
    clip_high: float = Field(0.28, gt=0)
    """The upper limit of the importance ratio is 1 + clip_high, also for `cispo`. The limit 5.0 of TRL is clip_high
    4.0. With dppo, clip_high is the largest divergence of a token with an advantage above 0."""
    clip_ratio_c: float | None = Field(None, gt=1)
    """Dual-clip PPO: if the advantage is negative, the loss is at most this number x |advantage|."""
    aggregation: LossAggregation = "token_mean"
    """How token losses are combined. GRPO: sequence_mean, DAPO: token_mean, Dr. GRPO: constant, RLOO: sequence_sum."""
    divisor: int = Field(0, ge=0)
    """Divisor for `aggregation: constant`. With 0 it is sampling.max_new_tokens, which then changes the update size."""
    mask_truncated: bool = False
    """Leave truncated rollouts out of the loss. Truncated rollouts still count in the baseline and in means.
    The policy then gets no signal to end its completions, so watch the metric `truncated`."""
    kl_coef: float = Field(0.0, ge=0)
    """Coefficient of the KL penalty against the reference model, in the loss. With 0, no second model is needed."""
    kl_estimator: KLEstimator = "k3"
    """Estimator of the KL penalty in the loss: k3 as in GRPO, or k2, whose mean gradient is the gradient of the KL."""
    ref_model_sync_steps: int = Field(0, ge=0)
    """The number of steps after which the KL reference is replaced by the policy (R1-Zero: 400). With 0, never."""
    importance_correction: ImportanceCorrection = "none"
    """Multiply the loss by learner probability / sampler probability (truncated importance sampling), per token or per
    sequence."""
    importance_correction_cap: float = Field(2.0, gt=1)
    """The upper limit of the weight of `importance_correction`."""
    importance_correction_mask: bool = False
    """Replace a weight above `importance_correction_cap` by 0 instead of the cap (masked importance sampling)."""


class Rewards(WorkerSettings):
    """Settings for the worker processes that grade, and for rewards in addition to the reward of the task."""

    format: float = Field(0.0, ge=0)
    """Reward for the right format (R1's format reward): one closed thought at the very start, then an answer."""
    script: str = ""
    """Script in which thoughts should be written, such as latin or cjk. The key `language` sets the reward for it."""
    language: float = Field(0.0, ge=0)
    """Coefficient of the fraction of a thought's words in `script` (R1's language consistency). No thought gets 0."""
    length: float = Field(0.0, ge=0)
    """Coefficient of a reward for the shorter answers to the same problem (Kimi k1.5). With 0, length has no effect."""
    overlong_buffer: int = Field(0, ge=0)
    """DAPO's penalty for long completions starts this many tokens before max_new_tokens. With 0, it is off."""
    kl_coef: float = Field(0.0, ge=0)
    """Subtract this number x the KL of a completion to the reference model from its reward (RLOO, REINFORCE++)."""
    kl_to_go: bool = False
    """Subtract from a token's reward only the KL of this token and of later tokens (REINFORCE++), not the KL of all
    tokens."""
    control: RewardControl = "none"
    """Negative control: random, shuffled or flipped rewards, from which the policy must learn nothing. With `constant`,
    the task gives no reward, so only the other rewards of the config group `rewards` are left."""


_SYMMETRIC = {"loss.clip_low": 0.2, "loss.clip_high": 0.2}

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "default": {},
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
        "rewards.kl_to_go": True,
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
    "dppo": {  # arXiv 2602.04879, the variant Binary-TV, with the settings of the example in verl
        "advantage.scale_rewards": "none",
        "loss.aggregation": "constant",
        "loss.type": "dppo",
        "loss.clip_low": 0.15,
        "loss.clip_high": 0.15,
    },
    "score_centering": {  # arXiv 2609.20807
        "advantage.scale_rewards": "none",
        "loss.aggregation": "token_mean",
        "loss.type": "policy_gradient",
        "loss.score_centering": 128,
    },
    "maxrl": {  # arXiv 2602.02710
        "advantage.scale_rewards": "group_mean",
        "loss.aggregation": "token_mean",
    },
    "lite_ppo": {  # arXiv 2508.08221
        "advantage.scale_rewards": "batch_std",
        "loss.aggregation": "token_mean",
        **_SYMMETRIC,
    },
}
"""The keys that each variant sets. All other keys keep the defaults of `recipes.grpo.Config`."""


def with_preset(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of the chosen preset, overwritten by the given values.

    Raises ValueError if the preset is unknown.
    """
    name = given.get("preset", "default")
    if not isinstance(name, str) or name not in PRESETS:
        raise ValueError(f"unknown preset `{name}`{suggest(str(name), [*PRESETS])}")
    return merge(expand_dotted(PRESETS[name]), given)


def preset_conflicts(cls: type[BaseConfig], file: Mapping[str, Any], words: Mapping[str, Any]) -> list[str]:
    """Return a message for each key whose value in the config file differs from the `--preset` of the command line."""
    name = str(words.get("preset", ""))
    if name not in PRESETS or name == file.get("preset", "default"):
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
    """Raise ValueError if two settings of `recipes.grpo.Config` contradict each other."""
    if c.max_policy_lag and c.dynamic_sampling:
        raise ValueError("`dynamic_sampling` and `max_policy_lag` cannot both be above 0; set one of them to 0")
    if c.dynamic_sampling and not uses_group_baseline(c.advantage.baseline):
        raise ValueError(
            "`dynamic_sampling` needs a baseline within the group; set `advantage.baseline` to mean or leave_one_out, "
            "or set `dynamic_sampling` to 0"
        )
    _check_advantage(c.advantage, c.rewards)
    _check_loss(c)
    if c.rewards.script and c.rewards.script not in SCRIPTS:
        raise ValueError(f"unknown script `{c.rewards.script}`{suggest(c.rewards.script, SCRIPTS)}")
    if bool(c.rewards.script) != bool(c.rewards.language):
        raise ValueError("only one of `rewards.script` and `rewards.language` is set; set both or none of them")
    if c.rewards.overlong_buffer >= c.sampling.max_new_tokens:
        raise ValueError(
            f"`rewards.overlong_buffer` is {c.rewards.overlong_buffer}; set it below `sampling.max_new_tokens`, which "
            f"is {c.sampling.max_new_tokens}"
        )


def _check_advantage(a: Advantage, rewards: Rewards) -> None:
    if a.baseline == "none" and a.scale_rewards != "none":
        raise ValueError(
            f"`advantage.scale_rewards` is {a.scale_rewards}, but `advantage.baseline` is none; set "
            "`advantage.baseline` to mean, or set `advantage.scale_rewards` to none"
        )
    of_group = a.scale_rewards in ("group_std", "group_mean")
    if a.baseline == "batch_mean" and of_group:
        raise ValueError(
            f"`advantage.baseline` is batch_mean, but `advantage.scale_rewards` is {a.scale_rewards}; set "
            "`advantage.scale_rewards` to batch_std or none"
        )
    if rewards.kl_to_go and not rewards.kl_coef:
        raise ValueError("`rewards.kl_to_go` is true, but there is no KL in the reward; set `rewards.kl_coef`")
    if rewards.kl_to_go and of_group:
        raise ValueError(
            f"`rewards.kl_to_go` is true, but `advantage.scale_rewards` is {a.scale_rewards}; set "
            "`advantage.scale_rewards` to batch_std or none"
        )
    if a.normalize_each_reward and not (rewards.format or rewards.language):
        raise ValueError(
            "`advantage.normalize_each_reward` is true, but there is only one reward; set `rewards.format` or "
            "`rewards.language`, or set `advantage.normalize_each_reward` to false"
        )
    whole = a.baseline == "none" or of_group or rewards.length or rewards.overlong_buffer
    if a.normalize_each_reward and whole:
        raise ValueError(
            "`advantage.normalize_each_reward` is true, but other settings do not fit; set `advantage.baseline` to "
            "mean and `advantage.scale_rewards` to batch_std or none, and leave out `rewards.length` and "
            "`rewards.overlong_buffer`"
        )


def _check_loss(c: Any) -> None:
    loss, rewards = c.loss, c.rewards
    level = loss.importance_sampling_level
    if level != "token" and loss.aggregation != "sequence_mean":
        raise ValueError(
            f"`loss.importance_sampling_level` is {level}, which gives one ratio per sequence; set `loss.aggregation` "
            "to sequence_mean"
        )
    if level != "token" and loss.type != "clip":
        raise ValueError(
            f"`loss.type` {loss.type} needs one ratio per token; set `loss.importance_sampling_level` to token"
        )
    if loss.type == "dppo" and loss.importance_correction != "none":
        raise ValueError(
            "`loss.type` dppo already divides by the probability of the sampler; set `loss.importance_correction` to "
            "none"
        )
    if loss.kl_coef and loss.kl_estimator == "k1":
        raise ValueError(
            "`loss.kl_estimator` is k1, which has a mean gradient of 0 as a loss; set `loss.kl_estimator` to k2 or k3, "
            "or use `rewards.kl_coef` instead of `loss.kl_coef`"
        )
    if loss.ref_model_sync_steps and not (loss.kl_coef or rewards.kl_coef):
        raise ValueError(
            "`loss.ref_model_sync_steps` is set, but there is no KL penalty; set `loss.kl_coef` or `rewards.kl_coef`, "
            "or set `loss.ref_model_sync_steps` to 0"
        )
    if loss.type != "clip" and loss.clip_ratio_c:
        raise ValueError(f"`loss.clip_ratio_c` has no effect on `loss.type` {loss.type}; leave `loss.clip_ratio_c` out")
    if loss.type != "dppo" and loss.divergence != "tv":
        raise ValueError(
            f"`loss.divergence` has no effect on `loss.type` {loss.type}; leave `loss.divergence` out, or set "
            "`loss.type` to dppo"
        )
    _check_score_centering(c)
    fresh = not c.max_policy_lag if loss.type != "policy_gradient" else c.on_policy
    if loss.importance_correction != "none" and c.precision == "exact" and fresh:
        raise ValueError(
            "`precision` is exact, so sampler and learner have equal probabilities; set `loss.importance_correction` "
            "to none"
        )


def _check_score_centering(c: Any) -> None:
    loss = c.loss
    if not loss.score_centering:
        return
    if loss.type != "policy_gradient":
        raise ValueError(
            f"`loss.score_centering` does not fit `loss.type` {loss.type}; set `loss.type` to policy_gradient, or "
            "`loss.score_centering` to 0"
        )
    if loss.importance_correction == "product":
        raise ValueError(
            "`loss.score_centering` needs one weight per token, but `loss.importance_correction` is product; set "
            "`loss.importance_correction` to token or none"
        )
    if c.precision == "exact" and c.on_policy:
        raise ValueError(
            "`precision` is exact, so sampler and learner have equal probabilities and there is no drift; set "
            "`loss.score_centering` to 0"
        )
