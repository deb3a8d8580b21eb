"""SCoRe: learn self-correction by reinforcement learning over two attempts at the same problem.

Kumar et al. 2024, arXiv 2409.12917. A rollout is a first attempt, a fixed request to look again (without a hint), and a
second attempt. Stage I rewards only the second attempt, and a strong KL penalty keeps the first attempt close to the
starting model. If both attempts were rewarded from the start, the two attempts would become the same. Stage II rewards
both attempts. In stage II, the reward of the second attempt is r2 + alpha (r2 - r1), where r1 and r2 are the rewards of
the first and the second answer. With `stage1_steps` 0 and `alpha` 0, this recipe is plain reinforcement learning over
two turns.

Letters for sizes are P (problems per step), G (rollouts per problem) and T (tokens of a rollout).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import Field

from schoolhouse.algorithms.advantages import group_advantage
from schoolhouse.algorithms.groups import drop_ungraded, rollouts_of, with_rewards
from schoolhouse.algorithms.losses import Loss, kl_penalty, policy_gradient
from schoolhouse.algorithms.packing import Batch, Scores, pack, token_mean
from schoolhouse.algorithms.settings import Lora, Optimizer, RolloutSampling
from schoolhouse.algorithms.worker_settings import WorkerSettings
from schoolhouse.data.chat_settings import ChatConfig
from schoolhouse.data.prompts import prompt_groups
from schoolhouse.eval.two_attempts import Attempts, first_attempts, tokens_of_two_attempts, two_attempts
from schoolhouse.policy.memory_check import check_peak_memory
from schoolhouse.policy.policy import Policy
from schoolhouse.policy.stream import RolloutStream
from schoolhouse.policy.training import Reference, load_policy, reference_policy
from schoolhouse.runs.run import Run
from schoolhouse.tasks.grading import grade_rollouts, open_graded_task
from schoolhouse.types import REVISION_REQUEST, Group, Precision, Rollout


class Config(ChatConfig):
    model: str
    """Folder of the model to start from (Hugging Face format), or of a run. It should already know second attempts."""
    task: str = "school"
    seed: int = 0
    steps: int = Field(80, gt=0)
    stage1_steps: int = Field(40, ge=0)
    """Number of steps of stage I. The other steps are stage II."""
    prompts_per_step: int = Field(32, gt=0)
    group_size: int = Field(16, gt=1)
    sampling: RolloutSampling = RolloutSampling()
    """How one attempt is sampled."""
    instruction: str = REVISION_REQUEST
    """The request between the two attempts. It does not say whether the first attempt was right."""
    alpha: float = Field(10.0, ge=0)
    """Weight of a change from wrong to right, or from right to wrong, in stage II."""
    kl_coef: float = Field(0.01, ge=0)
    """beta1: coefficient of the KL penalty for all attempts."""
    stage1_kl_coef: float = Field(0.1, ge=0)
    """beta2: coefficient of the KL penalty for the first attempt in stage I."""
    future_reward_weight: float = Field(0.0, ge=0, le=1)
    """Fraction of the second attempt's reward that is added to the reward of the first attempt in stage II (in stage I,
    first attempts get no reward). The paper does not give a value. Above 0, a first attempt with an error pays off."""
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


def self_correction(c: Config, run: Run) -> None:
    policy = load_policy(c, run)
    reference = reference_policy(c, policy)
    task, conversation = open_graded_task(c.task, c.seed, c.rewards), policy.conversation
    run.track_files(*task.files)

    def make_prompts(step: int) -> list[Rollout]:  # [P*G]
        problems = task.train_problems(step, c.prompts_per_step)
        return prompt_groups(conversation, problems, c.group_size, seed=c.seed, purpose="practice", step=step)

    def sample(policy: Policy, prompts: Sequence[Rollout]) -> list[Rollout]:  # [P*G] rollouts of two turns
        return two_attempts(policy, prompts, c.sampling.max_new_tokens, c.sampling.temperature, c.instruction)

    prompts = make_prompts(run.step)
    new_tokens = tokens_of_two_attempts(conversation, c.sampling.max_new_tokens, c.instruction)
    check_peak_memory(policy, max(map(len, prompts)) + new_tokens, c.microbatch_tokens, prompts)
    stream = run.restore(RolloutStream(policy, make_prompts, sample))
    for step, rollouts in run.steps(stream.iter_steps(range(run.step, c.steps)), save=stream, every=c.save_every):
        second = grade_rollouts(rollouts, task, conversation.parse_completion)
        first = grade_rollouts(first_attempts(rollouts), task, conversation.parse_completion)
        attempts = Attempts.of(first, second, conversation.parse_completion)
        run.record(step, second, conversation.parse_completion, **attempts.to_json())
        rate = c.optimizer.rate(step, c.steps)
        with run.timed("learning"):
            stats = learn(c, policy, reference, first, second, step < c.stage1_steps, rate)
        run.record(step, learning_rate=rate, **stats)


def learn(
    c: Config,
    policy: Policy,
    reference: Reference,
    first: list[Group],
    second: list[Group],
    stage_one: bool,
    rate: float,
) -> dict[str, Any]:
    """Make one update.

    The advantage of a token compares the reward of its attempt with the rewards of all rollouts of the same problem.
    """
    early, late = map(
        drop_ungraded, shape_rewards(first, second, 0.0 if stage_one else c.alpha, c.future_reward_weight)
    )
    rollouts = rollouts_of(late)
    if not rollouts:
        return {}
    second_start = [len(rollout) for rollout in rollouts_of(early)]
    advantage = [
        [*(0.0 if stage_one else a for a in before), *after[at:]]
        for before, after, at in zip(
            group_advantage(early, scale="none"), group_advantage(late, scale="none"), second_start, strict=True
        )
    ]
    kl_coef = [
        [c.stage1_kl_coef if stage_one and t < at else c.kl_coef for t in range(len(rollout))]
        for rollout, at in zip(rollouts, second_start, strict=True)
    ]
    temperature = c.sampling.temperature
    batches = pack(
        rollouts,
        token_mean(rollouts),
        c.microbatch_tokens,
        share_prompts=policy.shares_prompts,
        advantage=advantage,
        kl_coef=kl_coef,
        sampled=[rollout.logprob for rollout in rollouts],
        reference=[scores.logprob for scores in reference.score(rollouts, temperature)],
    )
    return policy.update(batches, score_loss(), rate, c.optimizer.max_grad_norm, temperature, c.max_logprob_gap)


def shape_rewards(
    first: Sequence[Group], second: Sequence[Group], alpha: float, future_reward_weight: float = 0.0
) -> tuple[list[Group], list[Group]]:
    """Shape the rewards r1 and r2 of the first and the second attempts.

    The second attempt gets r2' = r2 + alpha (r2 - r1). The first attempt gets r1 + future_reward_weight * r2'. For
    example, with alpha 10 the reward r2' is 11 for wrong to right, 1 for right to right, 0 for wrong to wrong, and -10
    for right to wrong. Both rewards are None if the first or the second attempt could not be graded.
    """
    pairs = [
        (a.reward, b.reward)
        for one, other in zip(first, second, strict=True)
        for a, b in zip(one.verdicts, other.verdicts, strict=True)
    ]
    late = [None if a is None or b is None else b + alpha * (b - a) for a, b in pairs]
    early = [
        None if a is None or after is None else a + future_reward_weight * after
        for (a, _), after in zip(pairs, late, strict=True)
    ]
    return with_rewards(first, early), with_rewards(second, late)


def score_loss() -> Loss:
    """The REINFORCE loss with a KL penalty. The column "kl_coef" has the coefficient of the penalty for each token.

    The mean gradient of the penalty is the gradient of KL(pi || reference), as in equations 3 and 4 of the paper. The
    mean gradient of the estimator k3 would be the gradient of KL(reference || pi).
    """
    gradient, kl = policy_gradient(), kl_penalty("k2")

    def loss(batch: Batch, scores: Scores) -> Any:
        return gradient(batch, scores) + batch["kl_coef"] * kl(batch, scores)

    return loss
