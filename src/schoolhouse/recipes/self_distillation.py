"""Self-distillation: a model is its own teacher. The teacher has a worked answer in its prompt.

The student sees only a problem, and answers. The teacher sees the same problem with a demonstration, and scores the
student's answer. The advantage of a token is log pi_teacher - log pi_student, as in on-policy distillation. The student
does not learn the words of the demonstration. The student learns how the model itself answers after reading the
demonstration. Therefore the model forgets less than with supervised fine-tuning on the demonstrations (SDFT, Shenfeld
et al. 2026, arXiv 2601.19897). A model that cannot use an example in its prompt cannot be a teacher. As in the paper,
the weights of the teacher are a moving average of the student's weights. Letters for sizes are P (problems per step),
G (rollouts per problem) and T (tokens of a rollout).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from pydantic import Field, model_validator

from schoolhouse.algorithms.advantages import distillation_advantage, masked_mean
from schoolhouse.algorithms.losses import policy_gradient
from schoolhouse.algorithms.packing import pack, token_mean
from schoolhouse.algorithms.settings import Lora, Optimizer, RolloutSampling
from schoolhouse.data.chat import Conversation
from schoolhouse.data.chat_settings import ChatConfig
from schoolhouse.data.prompts import prompt_groups
from schoolhouse.policy.memory_check import check_peak_memory
from schoolhouse.policy.policy import Policy
from schoolhouse.policy.stream import RolloutStream
from schoolhouse.policy.training import Reference, load_policy, reference_policy
from schoolhouse.runs.run import Run
from schoolhouse.tasks.registry import open_task
from schoolhouse.types import Demonstration, Precision, Problem, Rollout

CONTEXT = "{question}\n\nA worked answer to this problem:\n{demonstration}\n\nNow answer the problem yourself."


class Config(ChatConfig):
    model: str
    """Folder of the starting model (Hugging Face format), or of a run, whose newest checkpoint is used."""
    task: str = "school"
    """Task with the demonstrations: school[:families], jsonl:PATH, ... The student answers the problems of the
    demonstrations."""
    teacher: Literal["average", "policy", "start"] = "average"
    """The weights of the teacher: a moving average of the policy's weights (average), the current weights of the policy
    (policy), or the weights of the starting model (start). Without LoRA, `average` and `start` need a second model in
    memory."""
    teacher_update_rate: float = Field(0.01, gt=0, le=1)
    """After each update, the teacher `average` is (1 - rate) x its old weights + rate x the weights of the policy."""
    context: str = CONTEXT
    """The last user message of the teacher's prompt. The text must contain {question} and {demonstration}."""
    seed: int = 0
    steps: int = Field(100, gt=0)
    prompts_per_step: int = Field(32, gt=0)
    group_size: int = Field(1, gt=0)
    """Number of rollouts per problem."""
    sampling: RolloutSampling = RolloutSampling()
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

    @model_validator(mode="after")
    def _check(self) -> Config:
        if missing := [place for place in ("{question}", "{demonstration}") if place not in self.context]:
            raise ValueError(f"`context` does not contain {' and '.join(missing)}; add the missing text to `context`")
        if self.teacher != "average" and self.teacher_update_rate != 0.01:
            raise ValueError(
                f"`teacher_update_rate` has no effect on `teacher` {self.teacher}; leave `teacher_update_rate` out, or "
                "set `teacher` to average"
            )
        return self


def self_distillation(c: Config, run: Run) -> None:
    policy = load_policy(c, run)
    own = None if c.teacher == "policy" else reference_policy(c, policy)
    average = own if c.teacher == "average" else None
    if average:
        average.copy_from(policy)  # a resumed run replaces this copy by the average of its checkpoint
    teacher = own or policy
    task, conversation = open_task(c.task, c.seed), policy.conversation
    run.track_files(*task.files)

    def make_prompts(step: int) -> list[Rollout]:  # [P*G]
        problems = [demonstration.problem for demonstration in task.demonstrations(step, c.prompts_per_step)]
        return prompt_groups(conversation, problems, c.group_size, seed=c.seed, purpose="practice", step=step)

    def sample(policy: Policy, prompts: Sequence[Rollout]) -> list[Rollout]:  # [P*G]
        return policy.extend(prompts, c.sampling.max_new_tokens, temperature=c.sampling.temperature)

    prompts = make_prompts(run.step)
    check_peak_memory(policy, max(map(len, prompts)) + c.sampling.max_new_tokens, c.microbatch_tokens, prompts)
    stream = run.restore(RolloutStream(policy, make_prompts, sample, reference=average))
    for step, rollouts in run.steps(stream.iter_steps(range(run.step, c.steps)), save=stream, every=c.save_every):
        demonstrations = [d for d in task.demonstrations(step, c.prompts_per_step) for _ in range(c.group_size)]
        rate, temperature = c.optimizer.rate(step, c.steps), c.sampling.temperature
        with run.timed("learning"):
            advantage = distillation_advantage(
                rollouts, teacher_logprobs(c, teacher, conversation, rollouts, demonstrations)
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
            if average:
                average.move_towards(policy, c.teacher_update_rate)
        run.record(step, learning_rate=rate, reverse_kl=-masked_mean(rollouts, advantage), **stats)


def teacher_logprobs(
    c: Config,
    teacher: Reference,
    conversation: Conversation,
    rollouts: Sequence[Rollout],
    demonstrations: Sequence[Demonstration],
) -> list[list[float]]:
    """Return the teacher's log-probability of each token of each rollout [T]. The demonstration is in the teacher's
    prompt."""
    informed = []
    for rollout, demonstration in zip(rollouts, demonstrations, strict=True):
        problem = add_demonstration(demonstration, c.context)
        informed.append(rollout.with_prompt(conversation.prompt_rollout(problem, rollout.key).tokens))
    rows = []
    for rollout, longer, scores in zip(
        rollouts, informed, teacher.score(informed, c.sampling.temperature), strict=True
    ):
        start = rollout.turns[0]
        rows.append([*(0.0 for _ in range(start)), *scores.logprob[longer.turns[0] :].tolist()])
    return rows


def add_demonstration(demonstration: Demonstration, context: str) -> Problem:
    """Return the problem of a demonstration, with the demonstration in its last user message."""
    *before, last = demonstration.problem.messages
    answer = "\n".join(text for text in (demonstration.thought, demonstration.answer) if text)
    texts = {"{question}": last.content, "{demonstration}": answer}
    content = re.sub("|".join(map(re.escape, texts)), lambda place: texts[place[0]], context)
    return replace(demonstration.problem, messages=(*before, last._replace(content=content)))
