"""Reward models: a process reward model scores each step, and an outcome reward model scores a whole solution.

Process supervision: Lightman et al. 2023, arXiv 2305.20050. The key `labels` sets where labels come from. With `exact`
and `strict`, labels come from the rules of the task. With `hard` and `soft`, labels come from the answers of sampled
continuations (Math-Shepherd, Wang et al. 2023, arXiv 2312.08935). With `outcome`, a whole solution gets one label,
which says whether its answer is right (Cobbe et al. 2021, arXiv 2110.14168). With `implicit`, a whole solution gets the
same label, but the reward comes from the likelihood of the solution (Yuan et al. 2024, arXiv 2412.01981). Labels can
also come from a file in PRM800K's format (key `data`).

The solutions of the generator are labelled once, before the first update. A resumed run creates the same solutions and
labels again. The run writes the labelled solutions to labels.jsonl in the run folder, in PRM800K's format.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from schoolhouse.algorithms.groups import sampled_tokens
from schoolhouse.algorithms.losses import implicit_prm, token_bce
from schoolhouse.algorithms.packing import sequence_mean, token_mean
from schoolhouse.algorithms.settings import Lora, Optimizer, RolloutSampling
from schoolhouse.algorithms.worker_settings import WorkerSettings
from schoolhouse.data.chat_settings import ChatConfig
from schoolhouse.data.prompts import prompt_groups
from schoolhouse.policy.policy import Policy
from schoolhouse.policy.supervised import supervised_update
from schoolhouse.policy.training import load_policy, reference_policy
from schoolhouse.randomness import python_random
from schoolhouse.reward_models.examples import (
    Example,
    outcome_label,
    read_examples,
    sequence_example,
    shuffle_labels,
    step_example,
)
from schoolhouse.reward_models.implicit import BETA
from schoolhouse.reward_models.prm import LabelPlaces, check_same_tokenizer
from schoolhouse.reward_models.step_labels import (
    LabelledSolution,
    label_by_continuations,
    label_by_rules,
    write_prm800k,
)
from schoolhouse.runs.run import Run
from schoolhouse.tasks.base import Task
from schoolhouse.tasks.grading import grade_rollouts, open_graded_task
from schoolhouse.types import Key, Precision, SchoolError


class Config(ChatConfig):
    model: str
    """Folder of the model that becomes the reward model (Hugging Face format), or of a run."""
    generator: str = ""
    """Folder of the model whose solutions are labelled. If empty: labels come from `data`."""
    data: Path | None = None
    """File with labelled solutions: JSON lines in PRM800K's format."""
    labels: Literal["exact", "strict", "hard", "soft", "outcome", "implicit"] = "exact"
    """Source of the labels. exact: the rules of the task; idle words are right, as in PRM800K. strict: the same, but
    idle words are wrong. hard: 1 if any continuation has a right answer. soft: the fraction of continuations with a
    right answer. outcome: the answer, learned by a label token. implicit: the answer, learned by the likelihood of the
    solution itself."""
    task: str = "school:chain"
    seed: int = 0
    num_prompts: int = Field(500, gt=0)
    samples_per_prompt: int = Field(4, gt=0)
    """Number of solutions per problem."""
    sampling: RolloutSampling = RolloutSampling()
    continuations: int = Field(8, gt=0)
    """Number of continuations after each step, for `hard` and `soft`."""
    delimiter: str = Field("\n", min_length=1)
    """Text that ends a step of `data`. For other labels the task defines this text."""
    shuffle_labels: bool = False
    """Control: shuffle the labels between steps. The reward model must then learn nothing."""
    steps: int = Field(500, gt=0)
    batch_size: int = Field(64, gt=0)
    """Number of solutions per update."""
    rewards: WorkerSettings = WorkerSettings()
    optimizer: Optimizer = Optimizer(weight_decay=0.01)
    lora: Lora = Lora()
    microbatch_tokens: int = Field(4_096, gt=0)
    """Maximum number of tokens in one micro-batch. This number changes the memory, but not the result."""
    precision: Precision = "auto"
    activation_checkpointing: bool = False
    """Save memory with a second forward pass in each update. The result of the training does not change."""
    save_every: int = Field(500, gt=0)

    @model_validator(mode="after")
    def _one_source(self) -> Config:
        if (self.data is None) == (not self.generator):
            raise ValueError(
                "set exactly one of the keys `generator` (a model whose solutions are labelled) and `data` (a file)"
            )
        if self.labels == "implicit" and self.data:
            raise ValueError(
                "labels: implicit needs a `generator` instead of `data`, because it learns from whole solutions"
            )
        return self


def prm(c: Config, run: Run) -> None:
    policy = run.restore(load_policy(c, run))
    task, conversation, tokens = open_graded_task(c.task, c.seed, c.rewards), policy.conversation, 0
    run.track_files(*task.files, c.data)
    if c.data:
        labelled = read_examples(c.data, conversation, c.delimiter)
    else:
        labelled, tokens = label_solutions(c, task, policy)
    write_prm800k(run.folder / "labels.jsonl", [solution for solution, _ in labelled])
    examples = [example for _, example in labelled if any(example.rollout.loss_mask)]
    if not examples:
        ends = f"use solutions that have thoughts with steps that end with {task.delimiter!r}"
        raise SchoolError(f"none of the {len(labelled)} solutions has a labelled step: {ends}")
    if c.shuffle_labels:
        examples = shuffle_labels(examples, c.seed)
    targets = [target for example in examples for target in example.target if target == target]
    counts = {"solutions": len(examples), "labels": len(targets), "labels_right": sum(targets) / len(targets)}
    counts["sampled_tokens"] = tokens

    implicit = c.labels == "implicit"
    loss_fn, aggregation = (implicit_prm(BETA), sequence_mean) if implicit else (token_bce(), token_mean)
    for step in run.steps(range(run.step, c.steps), save=policy, every=c.save_every):
        batch = python_random(Key(c.seed, "process reward", step)).choices(examples, k=c.batch_size)
        stats = supervised_update(
            policy,
            [example.rollout for example in batch],
            c.optimizer,
            step,
            c.steps,
            c.microbatch_tokens,
            loss_fn=loss_fn,
            aggregation=aggregation,
            target=[example.target for example in batch],
            reference=[example.reference for example in batch],
        )
        run.record(step, **stats, **(counts if step == 0 else {}))


def label_solutions(c: Config, task: Task, policy: Policy) -> tuple[list[tuple[LabelledSolution, Example]], int]:
    """Sample solutions from the generator and label the solutions.

    Returns the labelled solutions and the number of sampled tokens.

    Truncated solutions are left out. `policy` is the model that becomes the reward model.
    """
    generator = Policy.load(c.generator, c.precision, chat=c)
    generator.sampling_weights = c.sampling.weights
    conversation, problems = generator.conversation, task.train_problems(0, c.num_prompts)
    check_same_tokenizer(conversation, policy.conversation, "the generator", "the reward model")
    prompts = prompt_groups(conversation, problems, c.samples_per_prompt, seed=c.seed, purpose="solution")
    max_new_tokens = c.sampling.max_new_tokens
    rollouts = generator.extend(prompts, max_new_tokens, temperature=c.sampling.temperature)
    tokens = sampled_tokens(rollouts)
    solutions = [rollout for rollout in rollouts if rollout.finish_reason == "stop"]
    places: LabelPlaces = "end" if c.labels == "outcome" else "steps"
    if c.labels in ("exact", "strict"):
        checked = label_by_rules(task, conversation, solutions)
        labelled = [(one.strict() if c.labels == "strict" else one).truncate_at_first_error() for one in checked]
    elif c.labels in ("outcome", "implicit"):
        groups = grade_rollouts(solutions, task, conversation.parse_completion)
        verdicts = [verdict for group in groups for verdict in group.verdicts]
        labelled = [outcome_label(conversation, r, v.reward) for r, v in zip(solutions, verdicts, strict=True)]
    else:
        labelled, more = label_by_continuations(
            generator, task, solutions, c.continuations, max_new_tokens, c.labels == "hard"
        )
        tokens += more
    if c.labels == "implicit":
        scores = reference_policy(c, policy).score(solutions)
        rows = zip(labelled, solutions, scores, strict=True)
        return [(one, sequence_example(rollout, one, score.logprob.tolist())) for one, rollout, score in rows], tokens
    pairs = zip(labelled, solutions, strict=True)
    return [(one, step_example(conversation, r, one, task.delimiter, places)) for one, r in pairs], tokens
