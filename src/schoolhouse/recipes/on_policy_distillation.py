"""On-policy distillation: a student model answers, and a teacher model gives the probability of each token of the
answer.

The advantage of a token is log pi_teacher - log pi_student. For this reason, each token has its own feedback, even in
answers that no program can grade. The mean gradient is the gradient of KL(student || teacher) at each token (the
reverse KL), on texts that the student writes. Agarwal et al. 2023 (GKD with lambda 1, arXiv 2306.13649), Gu et al. 2023
(MiniLLM, arXiv 2306.08543) and Thinking Machines ("On-Policy Distillation", 2025) use this method. Letters for sizes
are P (problems per step), G (rollouts per problem) and T (tokens of a rollout).
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from schoolhouse.algorithms.advantages import distillation_advantage, masked_mean
from schoolhouse.algorithms.losses import policy_gradient
from schoolhouse.algorithms.packing import pack, token_mean
from schoolhouse.algorithms.settings import Lora, Optimizer, RolloutSampling
from schoolhouse.algorithms.worker_settings import WorkerSettings
from schoolhouse.data.chat_settings import ChatConfig
from schoolhouse.data.prompts import prompt_groups
from schoolhouse.policy.memory_check import check_peak_memory
from schoolhouse.policy.policy import Policy
from schoolhouse.policy.stream import RolloutStream
from schoolhouse.policy.training import load_policy
from schoolhouse.runs.run import Run
from schoolhouse.tasks.grading import grade_rollouts, open_graded_task
from schoolhouse.types import Precision, Rollout, SchoolError


class Config(ChatConfig):
    model: str
    """Folder of the student (Hugging Face format), or of a run, whose newest checkpoint is used."""
    teacher: str
    """Folder of the teacher, or of a run. The teacher is not trained, and must have the same tokenizer as the
    student."""
    task: str = "school"
    """Training problems. The rewards of the task are recorded, but the student does not learn from them."""
    seed: int = 0
    steps: int = Field(100, gt=0)
    prompts_per_step: int = Field(32, gt=0)
    group_size: int = Field(4, gt=0)
    """Number of rollouts per problem. One rollout is enough, because rollouts are not compared."""
    sampling: RolloutSampling = RolloutSampling()
    rewards: WorkerSettings = WorkerSettings()
    optimizer: Optimizer = Optimizer(learning_rate=2e-4, warmup_steps=5, lr_decay_fraction=0.0)
    lora: Lora = Lora()
    max_logprob_gap: float = Field(0.1, gt=0)
    """Stop if the log-probabilities of sampler and learner differ by more than this number on average."""
    microbatch_tokens: int = Field(4_096, gt=0)
    """Maximum number of tokens in one micro-batch. This number changes the memory, but not the result."""
    precision: Precision = "auto"
    activation_checkpointing: bool = False
    """Save memory with a second forward pass in each update. The result of the training does not change."""
    save_every: int = Field(20, gt=0)


def on_policy_distillation(c: Config, run: Run) -> None:
    policy = load_policy(c, run)
    teacher = Policy.load(c.teacher, c.precision, chat=c)
    task, conversation = open_graded_task(c.task, c.seed, c.rewards), policy.conversation
    run.track_files(*task.files)
    run.track_model(c.teacher)
    if conversation.tokenizer.vocab != teacher.conversation.tokenizer.vocab:
        raise SchoolError(
            f"{c.teacher}: the teacher and the student have different tokenizers, so the teacher cannot score the "
            "tokens of the student: use a teacher with the same tokenizer, or the recipe rejection_sampling"
        )

    def make_prompts(step: int) -> list[Rollout]:  # [P*G]
        problems = task.train_problems(step, c.prompts_per_step)
        return prompt_groups(conversation, problems, c.group_size, seed=c.seed, purpose="practice", step=step)

    def sample(policy: Policy, prompts: Sequence[Rollout]) -> list[Rollout]:  # [P*G]
        return policy.extend(prompts, c.sampling.max_new_tokens, temperature=c.sampling.temperature)

    prompts = make_prompts(run.step)
    check_peak_memory(policy, max(map(len, prompts)) + c.sampling.max_new_tokens, c.microbatch_tokens, prompts)
    stream = run.restore(RolloutStream(policy, make_prompts, sample))
    for step, rollouts in run.steps(stream.iter_steps(range(run.step, c.steps)), save=stream, every=c.save_every):
        groups = grade_rollouts(rollouts, task, conversation.parse_completion)
        rate, temperature = c.optimizer.rate(step, c.steps), c.sampling.temperature
        with run.timed("learning"):
            advantage = distillation_advantage(
                rollouts, [scores.logprob.tolist() for scores in teacher.score(rollouts, temperature)]
            )
            batches = pack(
                rollouts,
                token_mean(rollouts),
                c.microbatch_tokens,
                share_prompts=policy.shares_prompts,
                advantage=advantage,
                sampled=[rollout.logprob for rollout in rollouts],
            )
            settings = (rate, c.optimizer.max_grad_norm, temperature, c.max_logprob_gap)
            stats = policy.update(batches, policy_gradient(), *settings)
        reverse_kl = -masked_mean(rollouts, advantage)
        run.record(step, groups, conversation.parse_completion, learning_rate=rate, reverse_kl=reverse_kl, **stats)
