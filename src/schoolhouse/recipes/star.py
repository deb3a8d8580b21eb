"""STaR: in each loop, sample thoughts, keep the thoughts that lead to a right answer, and learn from them.

Zelikman et al. 2022, arXiv 2203.14465. For a failed problem, the model samples once more with the answer as a hint
(rationalization). The policy learns the new thought without the hint in the prompt. Every loop starts from the same
base model, so that errors do not accumulate. With samples_per_prompt > 1, temperature 0.7 and no rationalization, this
recipe is ReST-EM (Singh et al. 2023, arXiv 2312.06585).

In the paper of STaR, the prompt contains a few demonstrations. A small model cannot learn from its prompt, so this
recipe adds the demonstrations to the training data of each loop. With `rationalize`, the training data also contain the
demonstrations with a hint. Loop 0 learns only from the demonstrations.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

from pydantic import Field

from schoolhouse.algorithms.groups import rollouts_of, sampled_tokens
from schoolhouse.algorithms.settings import Lora, Optimizer, Sampling
from schoolhouse.algorithms.worker_settings import WorkerSettings
from schoolhouse.data.chat_settings import ChatConfig
from schoolhouse.data.prompts import prompt_groups
from schoolhouse.policy.policy import Policy
from schoolhouse.policy.supervised import supervised_update
from schoolhouse.policy.training import load_policy
from schoolhouse.randomness import python_random
from schoolhouse.runs.run import Run
from schoolhouse.tasks.grading import grade_rollouts, open_graded_task
from schoolhouse.tasks.registry import open_task
from schoolhouse.types import Demonstration, Group, Key, Precision, Problem, Rollout, SchoolError


class Config(ChatConfig):
    model: str
    """Folder of the base model (Hugging Face format), or of a run. Every loop starts from this model."""
    task: str = "school:addition?digits=1-5"
    """Task that gives problems with answers. The recipe must find the thoughts."""
    demos_task: str = "school:addition?digits=1-2&styles=full=100"
    """Task that gives the few demonstrations."""
    num_demos: int = Field(200, ge=0)
    seed: int = 0
    loops: int = Field(12, gt=0)
    prompts_per_loop: int = Field(512, gt=0)
    samples_per_prompt: int = Field(1, gt=0)
    """Number of completions per problem. STaR: 1, sampled greedily. ReST-EM: 32 or 64, at temperature 0.7."""
    sampling: Sampling = Sampling(temperature=0.0)
    rationalize: bool = True
    """Sample failed problems again, with the answer as a hint."""
    max_kept_per_problem: int = Field(10, gt=0)
    """Maximum number of right answers that are kept per problem, so that easy problems do not dominate."""
    restart_from_base: bool = True
    """Start each loop from the base model, and not from the model of the last loop."""
    keep: str = Field("right", pattern="^(right|all)$")
    """`right` or `all`. With `all` the policy also learns from wrong answers: an ablation, which must fail."""
    keep_hint: bool = False
    """Keep the hint in the training data: an ablation, which must fail."""
    updates_per_loop: int = Field(100, gt=0)
    """Number of updates. This number grows by the factor `updates_growth` per loop (in the paper by a fifth)."""
    updates_growth: float = Field(1.1, ge=1)
    batch_size: int = Field(64, gt=0)
    rewards: WorkerSettings = WorkerSettings()
    optimizer: Optimizer = Optimizer(learning_rate=2e-3, warmup_steps=10)
    lora: Lora = Lora()
    microbatch_tokens: int = Field(4_096, gt=0)
    """Maximum number of tokens in one micro-batch. This number changes the memory, but not the result."""
    precision: Precision = "auto"
    activation_checkpointing: bool = False
    """Save memory with a second forward pass in each update. The result of the training does not change."""


def star(c: Config, run: Run) -> None:
    if c.samples_per_prompt > 1 and not c.sampling.temperature:
        raise SchoolError(
            "at temperature 0 all samples are identical: set sampling.temperature above 0 (ReST-EM uses 0.7)"
        )
    policy = run.restore(load_policy(c, run))
    task, conversation = open_graded_task(c.task, c.seed, c.rewards), policy.conversation
    demos_task = open_task(c.demos_task, c.seed)
    run.track_files(*task.files, *demos_task.files)
    demos = demos_task.demonstrations(0, c.num_demos)
    hinted_demos = [replace(demo, problem=with_hint(demo.problem)) for demo in demos] if c.rationalize else []
    primer = _demo_rollouts(c, policy, [*demos, *hinted_demos])

    def sample(loop: int, problems: Sequence[Problem], purpose: str) -> list[Group]:
        prompts = prompt_groups(conversation, problems, c.samples_per_prompt, seed=c.seed, purpose=purpose, step=loop)
        rollouts = policy.extend(prompts, c.sampling.max_new_tokens, temperature=c.sampling.temperature)
        return grade_rollouts(rollouts, task, conversation.parse_completion)

    for loop in run.steps(range(run.step, 1 + c.loops), save=policy, every=1, total=1 + c.loops):
        kept, groups, stats = list[Rollout](), list[Group](), dict[str, Any]()
        if loop:
            groups = sample(loop, task.train_problems(loop, c.prompts_per_loop), "star")
            kept = keep(groups, c.max_kept_per_problem, c.keep == "all")
            stats |= {"kept": len(kept)}
            failed = [group.problem for group in groups if group.rewards and max(group.rewards) < 1.0]
            if c.rationalize and failed:
                hinted = sample(loop, [with_hint(problem) for problem in failed], "star hint")
                rationalized = keep(hinted, c.max_kept_per_problem)
                tokens = sampled_tokens(rollouts_of([*groups, *hinted]))
                stats |= {"failed": len(failed), "rationalized": len(rationalized), "sampled_tokens": tokens}
                kept += rationalized if c.keep_hint else [_without_hint(policy, rollout) for rollout in rationalized]
        if primer or kept:
            policy.reset(c.model if c.restart_from_base else None)
            stats |= fine_tune(c, policy, [*primer, *kept], loop)
        run.record(loop, groups or None, conversation.parse_completion, **stats)


def keep(groups: Sequence[Group], max_per_problem: int, everything: bool = False) -> list[Rollout]:
    """Keep up to `max_per_problem` right rollouts of each problem, without duplicates.

    With `everything`, wrong rollouts are kept too. Truncated rollouts are never kept.
    """
    kept, count = [], Counter()
    for group in groups:
        seen = set()
        for rollout, verdict in zip(group.rollouts, group.verdicts, strict=True):
            wanted = rollout.finish_reason == "stop" and (everything or (verdict.reward or 0.0) >= 1.0)
            if wanted and rollout.last_turn() not in seen and count[group.problem.id] < max_per_problem:
                seen.add(rollout.last_turn())
                count[group.problem.id] += 1
                kept.append(rollout)
    return kept


def fine_tune(c: Config, policy: Policy, rollouts: Sequence[Rollout], loop: int) -> dict[str, float]:
    """Fine-tune the policy on rollouts. Each pass over the rollouts has a new random order."""
    updates = round(c.updates_per_loop * c.updates_growth**loop)
    random, order, losses = python_random(Key(c.seed, "star study", loop)), [], []
    for update in range(updates):
        while len(order) < c.batch_size:
            order += random.sample(range(len(rollouts)), len(rollouts))
        batch, order = [rollouts[i] for i in order[: c.batch_size]], order[c.batch_size :]
        losses.append(supervised_update(policy, batch, c.optimizer, update, updates, c.microbatch_tokens)["loss"])
    return {"loss": fmean(losses), "updates": updates, "trained_rollouts": len(rollouts)}


def with_hint(problem: Problem) -> Problem:
    """A copy of the problem with its answer as a hint at the end of the question."""
    *before, last = problem.messages
    return replace(problem, messages=(*before, last._replace(content=f"{last.content} ({problem.reference})")))


def _without_hint(policy: Policy, rollout: Rollout) -> Rollout:
    """A copy of the rollout in which the question has no hint. The completion stays the same."""
    *before, last = rollout.problem.messages
    question = last.content.removesuffix(f" ({rollout.problem.reference})")
    problem = replace(rollout.problem, messages=(*before, last._replace(content=question)))
    return replace(rollout.with_prompt(policy.conversation.prompt(problem.messages)), problem=problem)


def _demo_rollouts(c: Config, policy: Policy, demos: Sequence[Demonstration]) -> list[Rollout]:
    keys = [Key(c.seed, "star example", 0, i) for i in range(len(demos))]
    return policy.conversation.demonstration_rollouts(demos, keys) if demos else []
