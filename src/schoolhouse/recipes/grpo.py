"""GRPO and its variants: each completion is compared with the other completions of the same problem (its group).

Shao et al. 2024, arXiv 2402.03300, eq. 3. `preset` chooses a published variant (docs/recipes/grpo.md has the table).
Letters for sizes are P (problems per step), G (rollouts per problem), T (tokens of a rollout), N (tokens of a batch).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import inf
from statistics import fmean
from typing import Any

from pydantic import Field, model_validator

from schoolhouse.algorithms.advantages import group_advantage, scale_negatives, subtract_to_go, uses_group_baseline
from schoolhouse.algorithms.format_rewards import has_format, language_consistency
from schoolhouse.algorithms.groups import (
    drop_constant_reward_groups,
    drop_ungraded,
    mean_reward_parts,
    rollouts_of,
    truncated,
)
from schoolhouse.algorithms.losses import (
    Loss,
    add_penalty,
    cispo,
    clipped_surrogate,
    dppo,
    importance_corrected,
    kl_penalty,
    policy_gradient,
    ratio_stats,
    score_centering,
)
from schoolhouse.algorithms.packing import TokenWeight, loss_aggregation, pack, without
from schoolhouse.algorithms.reward_controls import apply_reward_control
from schoolhouse.algorithms.reward_shaping import add_format_rewards, kl_in_reward, length_reward, overlong_penalty
from schoolhouse.algorithms.settings import (
    Advantage,
    Eval,
    Lora,
    Optimizer,
    PolicyLoss,
    Rewards,
    RolloutSampling,
    check_variant,
    preset_conflicts,
    with_preset,
)
from schoolhouse.data.chat_settings import ChatConfig
from schoolhouse.data.prompts import prompt_groups
from schoolhouse.eval.evaluate import evaluate
from schoolhouse.policy.memory_check import check_peak_memory
from schoolhouse.policy.policy import Policy
from schoolhouse.policy.stream import RolloutStream
from schoolhouse.policy.training import Reference, load_policy, reference_policy
from schoolhouse.runs.run import Run
from schoolhouse.tasks.grading import grade_rollouts, open_graded_task, timing
from schoolhouse.types import Group, Precision, Rollout

Columns = dict[str, Any]
"""Named rows [T], one for each rollout."""


class Config(ChatConfig):
    model: str
    """Folder of the model to start from (Hugging Face format), or of a run: its newest checkpoint."""
    task: str = "school"
    """Training problems: school[:families], gym:NAME, jsonl:PATH, python:PATH."""
    seed: int = 0
    preset: str = "default"
    """Start with the settings of this variant: grpo, dr_grpo, dapo, rloo, reinforce_pp, gspo, cispo, lite_ppo, ..."""
    steps: int = Field(100, gt=0)
    prompts_per_step: int = Field(32, gt=0)
    """P: number of problems per step."""
    group_size: int = Field(16, gt=1)
    """G: number of rollouts per problem. At least 2, because rollouts of a group are compared."""
    num_minibatches: int = Field(1, gt=0)
    """Optimizer updates per step; each update uses its part of the groups. 1 is on-policy: nothing is clipped."""
    num_epochs: int = Field(1, gt=0)
    """How many times the policy learns from the rollouts of one step."""
    max_policy_lag: int = Field(0, ge=0)
    """Number of updates between sampling and training. 0 is on-policy."""
    dynamic_sampling: int = Field(0, ge=0)
    """DAPO: sample again up to this many times in a step, until `prompts_per_step` groups have mixed rewards."""
    max_logprob_gap: float = Field(0.1, gt=0)
    """Stop if log-probabilities of sampler and learner differ by more than this number for fresh rollouts."""
    sampling: RolloutSampling = RolloutSampling()
    rewards: Rewards = Rewards()
    advantage: Advantage = Advantage()
    loss: PolicyLoss = PolicyLoss()
    optimizer: Optimizer = Optimizer(learning_rate=2e-4, warmup_steps=5, lr_decay_fraction=0.0)
    lora: Lora = Lora()
    eval: Eval = Eval()
    microbatch_tokens: int = Field(4_096, gt=0)
    """Maximum number of tokens in one micro-batch. This number changes the memory, but not the result."""
    precision: Precision = "auto"
    activation_checkpointing: bool = False
    """Save memory with a second forward pass in each update. The result of the training does not change."""
    save_every: int = Field(20, gt=0)

    @classmethod
    def preset_values(cls, values: dict[str, Any]) -> dict[str, Any]:
        return with_preset(values)

    @classmethod
    def conflicts(cls, file: Mapping[str, Any], overrides: Mapping[str, Any]) -> list[str]:
        return preset_conflicts(cls, file, overrides)

    @model_validator(mode="after")
    def _check(self) -> Config:
        check_variant(self)
        return self

    @property
    def on_policy(self) -> bool:
        """True if every update uses only rollouts that were sampled from the policy before this update."""
        return self.num_minibatches == 1 and self.num_epochs == 1 and self.max_policy_lag == 0


Sampler = Callable[[Policy, Sequence[Rollout], RolloutSampling, int], list[Rollout]]


def sample_rollouts(
    policy: Policy, prompts: Sequence[Rollout], sampling: RolloutSampling, num_candidates: int
) -> list[Rollout]:
    """Sample one rollout for each of the P*G prompts (P problems, G rollouts per problem).

    Each rollout records the `num_candidates` most likely tokens at each sampled token.
    """
    limit, temperature = sampling.max_new_tokens, sampling.temperature
    return policy.extend(prompts, limit, temperature=temperature, num_candidates=num_candidates)


def grpo(c: Config, run: Run, sample: Sampler = sample_rollouts) -> None:
    policy = load_policy(c, run)
    reference = reference_policy(c, policy) if c.loss.kl_coef or c.rewards.kl_coef else None
    task, conversation = open_graded_task(c.task, c.seed, c.rewards), policy.conversation
    run.track_files(*task.files)
    loss_fn = make_loss(c)

    def make_prompts(step: int, attempt: int = 0) -> list[Rollout]:  # [P*G]
        problems = task.train_problems(step * (1 + c.dynamic_sampling) + attempt, c.prompts_per_step)
        keys = {"seed": c.seed, "purpose": "practice", "step": step, "first_problem": attempt * c.prompts_per_step}
        return prompt_groups(conversation, problems, c.group_size, **keys)

    def rollout(policy: Policy, prompts: Sequence[Rollout]) -> list[Rollout]:  # [P*G]
        return sample(policy, prompts, c.sampling, c.loss.score_centering)

    prompts = make_prompts(run.step)
    longest, candidates = max(map(len, prompts)) + c.sampling.max_new_tokens, c.loss.score_centering
    check_peak_memory(policy, longest, c.microbatch_tokens, prompts, num_candidates=candidates)
    synced_reference = reference if c.loss.ref_model_sync_steps else None
    stream = run.restore(RolloutStream(policy, make_prompts, rollout, c.max_policy_lag, synced_reference))

    for step, rollouts in run.steps(stream.iter_steps(range(run.step, c.steps)), save=stream, every=c.save_every):
        if c.eval.every and step and step % c.eval.every == 0:  # evaluate the policy before this step
            settings = (c.eval.problems, c.eval.samples, c.sampling.max_new_tokens, c.sampling.temperature)
            with run.timed("eval"):
                run.record(step, eval=evaluate(policy, task, *settings, c.seed).to_json())
        groups = grade_rollouts(rollouts, task, conversation.parse_completion)
        for attempt in range(1, 1 + c.dynamic_sampling):
            if len(drop_constant_reward_groups(groups)) < c.prompts_per_step:
                more = rollout(policy, make_prompts(step, attempt))
                groups += grade_rollouts(more, task, conversation.parse_completion)
        run.log_timing(grading=timing(task))
        if synced_reference and step and step % c.loss.ref_model_sync_steps == 0:
            synced_reference.copy_from(policy)
        shaped = shape_rewards(c, policy, reference, groups, step)
        rate = c.optimizer.rate(step, c.steps)
        with run.timed("learning"):
            stats = learn(c, policy, reference, loss_fn, shaped, rate)
        if weights := format_weights(c):
            stats = {"shaped_reward_parts": mean_reward_parts(shaped, weights), **stats}
        run.record(step, groups, conversation.parse_completion, learning_rate=rate, **stats)


def make_loss(c: Config) -> Loss:
    """Build the loss function of one token from the config."""
    cap, mask = c.loss.importance_correction_cap, c.loss.importance_correction_mask
    if c.loss.type == "cispo":
        loss_fn = cispo(c.loss.clip_high, on_policy=c.on_policy)
    elif c.loss.type == "dppo":
        loss_fn = dppo(c.loss.clip_low, c.loss.clip_high, c.loss.divergence)
    elif c.loss.type == "policy_gradient":
        loss_fn = policy_gradient()
    else:
        level, dual = c.loss.importance_sampling_level, c.loss.clip_ratio_c
        loss_fn = clipped_surrogate(c.loss.clip_low, c.loss.clip_high, level, dual, on_policy=c.on_policy)
    if c.loss.importance_correction != "none":
        on_policy = c.on_policy or c.loss.type == "policy_gradient"  # its weight is pi / sampled: there is no pi_old
        loss_fn = importance_corrected(loss_fn, c.loss.importance_correction, cap, on_policy, mask)
    if c.loss.score_centering:
        loss_fn = add_penalty(
            loss_fn, 1.0, score_centering(None if c.loss.importance_correction == "none" else cap, mask)
        )
    return add_penalty(loss_fn, c.loss.kl_coef, kl_penalty(c.loss.kl_estimator)) if c.loss.kl_coef else loss_fn


def format_weights(c: Config) -> dict[str, float]:
    """Return the weights of the format reward and the language reward, without weights that are 0.

    Returns {} if both weights are 0.
    """
    weights = {"format": c.rewards.format, "language": c.rewards.language}
    return {name: weight for name, weight in weights.items() if weight}


def shape_rewards(
    c: Config, policy: Policy, reference: Reference | None, groups: Sequence[Group], step: int
) -> list[Group]:
    """Replace the task's rewards of graded rollouts by the training rewards, which can include penalties for length."""
    conversation, max_new_tokens = policy.conversation, c.sampling.max_new_tokens
    shaped = drop_ungraded(apply_reward_control(c.rewards.control, groups, c.seed, step))
    if c.dynamic_sampling:  # only groups with mixed rewards are in the batch and in its denominators
        shaped = drop_constant_reward_groups(shaped)[: c.prompts_per_step]

    def format_rewards(rollout: Rollout) -> dict[str, float]:
        thought = conversation.parse_completion(rollout).thought
        return {
            "format": float(has_format(conversation, rollout)),
            "language": language_consistency(thought, c.rewards.script),
        }

    shaped = length_reward(shaped, c.rewards.length)
    std_eps = c.advantage.std_eps if c.advantage.normalize_each_reward else 0.0
    shaped = add_format_rewards(shaped, format_rewards, format_weights(c), std_eps, c.advantage.std_ddof)
    shaped = overlong_penalty(shaped, max_new_tokens, c.rewards.overlong_buffer)
    if c.rewards.kl_coef and reference and not c.rewards.kl_to_go:
        rollouts = rollouts_of(shaped)
        now, then = (
            [scores.logprob.tolist() for scores in model.score(rollouts, c.sampling.temperature)]
            for model in (policy, reference)
        )
        shaped = kl_in_reward(shaped, now, then, c.rewards.kl_coef)
    return shaped


def learn(
    c: Config, policy: Policy, reference: Reference | None, loss_fn: Loss, groups: Sequence[Group], rate: float
) -> dict[str, Any]:
    """Update the policy, one minibatch at a time, on the groups (rollouts of one problem) that give a training signal.

    The loss is normalised over all groups of the step.
    """
    # if all rewards of a group are equal, only a KL penalty has a gradient
    skip_constant = uses_group_baseline(c.advantage.baseline) and not (c.loss.kl_coef or c.rewards.kl_to_go)
    signal = drop_constant_reward_groups(groups) if skip_constant else list(groups)
    divisor = c.loss.divisor or c.sampling.max_new_tokens
    weight = loss_aggregation(c.loss.aggregation, rollouts_of(groups), divisor)
    if c.loss.mask_truncated:
        weight = without(weight, truncated(signal))
    if not any(map(weight, rollouts_of(signal))):
        return {}
    columns = make_columns(c, policy, reference, signal, groups)
    drops_no_gradient = c.loss.type in ("cispo", "policy_gradient")
    clip = (inf, inf) if drops_no_gradient else (c.loss.clip_low, c.loss.clip_high)
    level = c.loss.importance_sampling_level
    divergence = c.loss.divergence if c.loss.type == "dppo" else None
    limits = {"low": clip[0], "high": clip[1], "level": level, "divergence": divergence}
    metrics_fn = partial(ratio_stats, **limits) if "old" in columns else None
    updates: list[dict[str, Any]] = []
    for _ in range(c.num_epochs):
        for rollouts, token_weight, columns_part in minibatches(signal, weight, columns, c.num_minibatches):
            batches = pack(
                rollouts, token_weight, c.microbatch_tokens, share_prompts=policy.shares_prompts, **columns_part
            )
            gap = inf if c.max_policy_lag or updates else c.max_logprob_gap  # after updates, learning causes the gap
            settings = (rate, c.optimizer.max_grad_norm, c.sampling.temperature, gap, metrics_fn)
            updates.append(policy.update(batches, loss_fn, *settings))
    means = {name: fmean(stats[name] for stats in updates) for name in updates[0]}
    return means | {"logprob_gap": updates[0]["logprob_gap"]}


def make_columns(
    c: Config, policy: Policy, reference: Reference | None, signal: Sequence[Group], groups: Sequence[Group]
) -> Columns:
    """Compute the inputs of the loss for each token: its advantage, and its log-probabilities under other policies."""
    a, rollouts, temperature = c.advantage, rollouts_of(signal), c.sampling.temperature
    columns: Columns = {"sampled": [rollout.logprob for rollout in rollouts]}
    if c.loss.type in ("dppo", "policy_gradient") or (c.max_policy_lag and c.loss.importance_correction == "none"):
        columns["old"] = columns["sampled"]
    elif not c.on_policy:
        columns["old"] = [scores.logprob for scores in policy.score(rollouts, temperature)]
    if reference and (c.loss.kl_coef or c.rewards.kl_to_go):
        columns["reference"] = [scores.logprob for scores in reference.score(rollouts, temperature)]
    if c.rewards.kl_to_go:
        scored = "old" in columns and columns["old"] is not columns["sampled"]
        now = columns["old"] if scored else [scores.logprob for scores in policy.score(rollouts, temperature)]
        kl = [c.rewards.kl_coef * (p - q) for p, q in zip(now, columns["reference"], strict=True)]
        advantage = subtract_to_go(signal, kl, a.baseline, a.scale_rewards, a.std_eps, a.std_ddof)
    else:
        advantage = group_advantage(signal, a.baseline, a.scale_rewards, a.std_eps, a.std_ddof, scope=groups)
    return columns | {"advantage": scale_negatives(advantage, a.negative_scale)}


def minibatches(
    groups: Sequence[Group], weight: TokenWeight, columns: Columns, count: int
) -> list[tuple[list[Rollout], TokenWeight, Columns]]:
    """Split the groups (rollouts of one problem) into `count` minibatches.

    All rollouts of a problem stay in the same minibatch.

    The token weights are multiplied by the number of minibatches, so that the loss of each minibatch is a mean.
    """
    rollouts = rollouts_of(groups)
    group_of = [at for at, group in enumerate(groups) for _ in group.rollouts]
    count = min(count, len(groups))
    parts = []
    for part in range(count):
        chosen = [i for i, group in enumerate(group_of) if group % count == part and weight(rollouts[i])]
        if chosen:
            part_columns = {name: [rows[i] for i in chosen] for name, rows in columns.items()}
            parts.append(([rollouts[i] for i in chosen], lambda rollout: weight(rollout) * count, part_columns))
    return parts
