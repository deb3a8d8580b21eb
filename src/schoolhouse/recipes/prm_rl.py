"""RL with rewards for steps (from a process reward model) and a reward for the answer.

With `reward_form` set to `progress` (PAV, Setlur et al. 2024, arXiv 2410.08146), the reward of a step is its progress.
Progress is the change of the probability that the answer will be right. Every token of step i learns from the advantage
A_outcome + alpha (v_i - v_{i-1}), where v_i is the value after step i. The sum of the progress of all steps depends
only on the first and the last value. Therefore a policy earns no reward by adding steps that only look good. With
`reward_form` set to `raw`, the reward is the sum of the step rewards, and a policy learns to write many steps
(DeepSeek-R1 stopped using rewards from a process reward model: arXiv 2501.12948, section 4.2).

`step_aggregation` sets how the grades of all steps so far give the value of a state. If the reward model grades steps,
set `step_aggregation` to `product` (all grades are multiplied). If the reward model grades states
(`school train prm --labels soft`), set `step_aggregation` to `last` (the last grade is used). Letters for sizes are P
(problems per step) and G (rollouts per problem).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import exp
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from pydantic import Field

from schoolhouse.algorithms.advantages import group_advantage, step_advantage, value_gains
from schoolhouse.algorithms.groups import drop_ungraded, rollouts_of, with_rewards
from schoolhouse.algorithms.losses import clipped_surrogate
from schoolhouse.algorithms.packing import pack, token_mean
from schoolhouse.algorithms.settings import Lora, Optimizer, RolloutSampling
from schoolhouse.algorithms.worker_settings import WorkerSettings
from schoolhouse.data.chat_settings import ChatConfig
from schoolhouse.data.prompts import prompt_groups
from schoolhouse.data.steps import graded_step_ends
from schoolhouse.policy.memory_check import check_peak_memory
from schoolhouse.policy.policy import Policy
from schoolhouse.policy.stream import RolloutStream
from schoolhouse.policy.training import load_policy
from schoolhouse.reward_models.prm import (
    OUTCOME_LABELS,
    RewardModel,
    StepAggregation,
    check_same_tokenizer,
    labels_of_run,
    running_values,
)
from schoolhouse.runs.run import Run
from schoolhouse.tasks.grading import grade_rollouts, open_graded_task
from schoolhouse.types import Group, Precision, Rollout, SchoolError


class Config(ChatConfig):
    model: str
    """Folder of the model to start from (Hugging Face format), or of a run."""
    reward_model: str
    """Folder of a process reward model, or of the run that trained it."""
    reward_form: Literal["progress", "raw"] = "progress"
    """progress: reward a step for the change of the value. raw: reward a rollout for the sum of its grades."""
    step_aggregation: StepAggregation = "product"
    """progress: how the grades so far give a value. For grades of steps: product or min. For grades of states: last."""
    alpha: float = Field(1.0, ge=0)
    """Weight of the process reward, next to the reward of the answer. 0: only the reward of the answer."""
    task: str = "school"
    seed: int = 0
    steps: int = Field(45, gt=0)
    prompts_per_step: int = Field(32, gt=0)
    group_size: int = Field(16, gt=1)
    sampling: RolloutSampling = RolloutSampling()
    rewards: WorkerSettings = WorkerSettings()
    optimizer: Optimizer = Optimizer(learning_rate=1e-4, warmup_steps=5, lr_decay_fraction=0.0)
    lora: Lora = Lora()
    max_logprob_gap: float = Field(0.1, gt=0)
    """Stop if the log-probabilities of sampler and learner differ by more than this number on average."""
    microbatch_tokens: int = Field(4_096, gt=0)
    """Maximum number of tokens in one micro-batch. This number changes the memory, but not the result."""
    precision: Precision = "auto"
    activation_checkpointing: bool = False
    """Save memory with a second forward pass in each update. The result of the training does not change."""
    save_every: int = Field(20, gt=0)


def prm_rl(c: Config, run: Run) -> None:
    policy = load_policy(c, run)
    task, conversation = open_graded_task(c.task, c.seed, c.rewards), policy.conversation
    run.track_files(*task.files)
    run.track_model(c.reward_model)
    if (labels := labels_of_run(Path(c.reward_model))) in OUTCOME_LABELS:
        raise SchoolError(
            f"{c.reward_model}: a reward model with labels `{labels}` does not grade steps: give a reward model with "
            "labels exact, strict or soft"
        )
    reward_model = RewardModel(Policy.load(c.reward_model, c.precision), task.delimiter)
    check_same_tokenizer(
        conversation, reward_model.policy.conversation, "the policy", f"the reward model {c.reward_model}"
    )

    def make_prompts(step: int) -> list[Rollout]:  # [P*G]
        problems = task.train_problems(step, c.prompts_per_step)
        return prompt_groups(conversation, problems, c.group_size, seed=c.seed, purpose="practice", step=step)

    def sample(policy: Policy, prompts: Sequence[Rollout]) -> list[Rollout]:  # [P*G]
        return policy.extend(prompts, c.sampling.max_new_tokens, temperature=c.sampling.temperature)

    prompts = make_prompts(run.step)
    check_peak_memory(policy, max(map(len, prompts)) + c.sampling.max_new_tokens, c.microbatch_tokens, prompts)
    stream = run.restore(RolloutStream(policy, make_prompts, sample))
    for step, sampled in run.steps(stream.iter_steps(range(run.step, c.steps)), save=stream, every=c.save_every):
        groups = grade_rollouts(sampled, task, conversation.parse_completion)
        rate = c.optimizer.rate(step, c.steps)
        with run.timed("learning"):
            stats = learn(c, policy, reward_model, drop_ungraded(groups), task.delimiter, rate)
        run.record(step, groups, conversation.parse_completion, learning_rate=rate, **stats)


def learn(
    c: Config, policy: Policy, reward_model: RewardModel, groups: Sequence[Group], delimiter: str, rate: float
) -> dict[str, Any]:
    """Make one update on the graded rollouts. Returns the metrics of the update, or {} if no rollout was graded."""
    rollouts = rollouts_of(groups)
    if not rollouts:
        return {}
    grades = reward_model.step_logprobs(rollouts)
    ends = [graded_step_ends(policy.conversation, rollout, delimiter) for rollout in rollouts]
    batches = pack(
        rollouts,
        token_mean(rollouts),
        c.microbatch_tokens,
        share_prompts=policy.shares_prompts,
        advantage=advantages(c, groups, ends, grades),
        sampled=[rollout.logprob for rollout in rollouts],
    )
    stats = {"num_steps": fmean(map(len, ends)), "step_reward": fmean(sum(map(exp, few)) for few in grades)}
    settings = (c.optimizer.max_grad_norm, c.sampling.temperature, c.max_logprob_gap)
    return stats | policy.update(batches, clipped_surrogate(on_policy=True), rate, *settings)


def advantages(
    c: Config, groups: Sequence[Group], ends: Sequence[Sequence[int]], grades: Sequence[Sequence[float]]
) -> list[list[float]]:
    """Compute the advantage of each token in each rollout.

    For each step whose last position is in `ends`, `grades` has one log-probability.
    """
    if c.reward_form == "raw":
        rewards = [verdict.reward for group in groups for verdict in group.verdicts]
        summed = [
            None if reward is None else reward + c.alpha * sum(map(exp, few))
            for reward, few in zip(rewards, grades, strict=True)
        ]
        return group_advantage(with_rewards(groups, summed), scale="none")
    start = [fmean(group.rewards) for group in groups for _ in group.rollouts]  # the value of the prompt
    values = [running_values(logs, c.step_aggregation) for logs in grades]
    gains = [[c.alpha * gain for gain in value_gains(few, at)] for few, at in zip(values, start, strict=True)]
    outcome: list[Any] = group_advantage(groups, scale="none")
    steps = step_advantage(rollouts_of(groups), ends, gains)
    return [[a + b for a, b in zip(*pair, strict=True)] for pair in zip(outcome, steps, strict=True)]
