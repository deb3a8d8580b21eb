"""Expert iteration: the next model learns from answers that a search finds and plain sampling misses.

Anthony et al. 2017, arXiv 1705.08439. The expert can be any search of `school solve`. Each new model starts from the
base model. The new model learns from verified answers with their thoughts, and from fresh demonstrations. The fresh
demonstrations keep the outputs diverse (Shumailov et al. 2024, Nature 631). Each loop measures the accuracy of plain
sampling. Each loop also measures which fraction of all right answers the search finds, and the same fraction for rare
answers.

Each loop writes its kept answers to the run folder, for example to kept/000001.jsonl. A task `jsonl:PATH` can read a
file of kept answers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence, Set
from math import inf
from pathlib import Path
from statistics import fmean

from pydantic import Field

from schoolhouse.algorithms.groups import rollouts_of, sampled_tokens
from schoolhouse.algorithms.settings import Lora, Optimizer
from schoolhouse.algorithms.worker_settings import WorkerSettings
from schoolhouse.data.chat_settings import ChatConfig
from schoolhouse.data.prompts import prompt_groups
from schoolhouse.policy.policy import Policy
from schoolhouse.policy.supervised import supervised_update
from schoolhouse.policy.training import load_policy
from schoolhouse.randomness import python_random
from schoolhouse.runs.atomic_io import read_jsonl, write_jsonl
from schoolhouse.runs.run import Run
from schoolhouse.search.render import tree_rows
from schoolhouse.search.solve import SearchResult, parse, solve
from schoolhouse.tasks.base import Task
from schoolhouse.tasks.grading import grade_rollouts, open_graded_task
from schoolhouse.tasks.jsonl import demonstration_from_row, demonstration_to_row
from schoolhouse.tasks.registry import open_task
from schoolhouse.types import Demonstration, Group, Key, Precision, Problem, Rollout

Stats = dict[str, float]


class Config(ChatConfig):
    model: str
    """Folder of the base model (Hugging Face format), or of a run. Every loop starts from this model."""
    start_model: str = ""
    """Folder of the model for the search of the first loop. If empty: the base model."""
    task: str = "school"
    fresh_task: str = ""
    """Task that gives fresh demonstrations. If empty: there are no fresh demonstrations."""
    fresh_fraction: float = Field(0.2, ge=0, lt=1)
    """Fraction of fresh demonstrations in each update."""
    seed: int = 0
    loops: int = Field(4, gt=0)
    prompts_per_loop: int = Field(256, gt=0)
    """Number of problems in each loop. The search and plain sampling both try to solve these problems."""
    search: str = "vote?samples=16"
    """The search, written as for `school solve`; "sample" is plain sampling."""
    search_budget: float = Field(inf, gt=0)
    """Maximum number of tokens that a search can use for one problem."""
    verify: bool = True
    """Keep only right answers. If false, keep every answer that was found: an ablation, which must fail."""
    max_kept_per_loop: int | None = Field(None, gt=0)
    """Maximum number of answers kept per loop, chosen at random. Use the same number to compare searches."""
    accumulate: bool = True
    """Learn from the answers of all loops so far. If false, learn only from the newest loop (ReST-EM)."""
    max_new_tokens: int = Field(128, gt=0)
    """Maximum number of tokens of an answer from plain sampling."""
    updates_per_loop: int = Field(150, gt=0)
    batch_size: int = Field(64, gt=0)
    rewards: WorkerSettings = WorkerSettings()
    optimizer: Optimizer = Optimizer(warmup_steps=10, weight_decay=0.01)
    lora: Lora = Lora()
    microbatch_tokens: int = Field(4_096, gt=0)
    """Maximum number of tokens in one micro-batch. This number changes the memory, but not the result."""
    precision: Precision = "auto"
    activation_checkpointing: bool = False
    """Save memory with a second forward pass in each update. The result of the training does not change."""


def expert_iteration(c: Config, run: Run) -> None:
    policy = run.restore(load_policy(c, run, c.start_model))
    task, conversation = open_graded_task(c.task, c.seed, c.rewards), policy.conversation
    search = parse(c.search, c.search_budget)
    fresh = open_task(c.fresh_task, c.seed) if c.fresh_task else None
    run.track_files(*task.files, *search.files, *(fresh.files if fresh else ()))
    examples = [demonstration_from_row(row) for loop in range(run.step) for row in read_jsonl(_file(run, "kept", loop))]

    for loop in run.steps(range(run.step, c.loops), save=policy, every=1):
        problems = task.train_problems(loop, c.prompts_per_loop)
        plain_prompts, search_prompts = (
            prompt_groups(conversation, problems, 1, seed=c.seed, purpose=purpose, step=loop)
            for purpose in ("engine plain", "engine search")
        )
        plain = grade_rollouts(policy.extend(plain_prompts, c.max_new_tokens), task, conversation.parse_completion)
        found = solve(policy, task, search_prompts, search)
        graded = grade_rollouts([one.rollout for one in found if one.rollout], task, conversation.parse_completion)
        right = right_keys(graded)
        if trees := tree_rows(found, right):
            write_jsonl(_file(run, "trees", loop), trees)
        kept = [rollout for rollout in rollouts_of(graded) if rollout.key in right or not c.verify]
        most = min(len(kept), c.max_kept_per_loop or len(kept))
        kept = python_random(Key(c.seed, "engine most", loop)).sample(kept, most)
        stats: Stats = {"kept": len(kept), **search_stats(found, right, kept, problems)}
        stats["sampled_tokens"] = sampled_tokens(rollouts_of(plain)) + sum(one.tokens for one in found)
        completions = [(rollout.problem, conversation.parse_completion(rollout)) for rollout in kept]
        new = [Demonstration(problem, text.thought, text.answer, "search") for problem, text in completions]
        write_jsonl(_file(run, "kept", loop), map(demonstration_to_row, new))
        examples = [*(examples if c.accumulate else []), *new]
        if examples:
            policy.reset(c.model)
            stats |= fine_tune(c, policy, examples, fresh, loop)
        run.record(loop, plain, conversation.parse_completion, **stats)


def search_stats(
    found: Sequence[SearchResult], right: Set[Key], kept: Sequence[Rollout], problems: Sequence[Problem]
) -> Stats:
    """Compute the fraction of problems that the search solved, the tokens per problem, and the coverage.

    The coverage is the fraction of the distinct right answers that are among the kept answers. `rare_coverage` counts
    only right answers that are the answer of exactly one problem. `right` has the keys of the right answers.
    """
    references = Counter(problem.reference for problem in problems)
    covered = {rollout.problem.reference for rollout in kept if rollout.key in right}
    rare = [answer for answer, count in references.items() if count == 1]
    return {
        "search_solved": len(right) / len(problems),
        "search_tokens": fmean(one.tokens for one in found),
        "coverage": len(covered & references.keys()) / len(references),
        **({"rare_coverage": len(covered & set(rare)) / len(rare)} if rare else {}),
    }


def fine_tune(c: Config, policy: Policy, examples: Sequence[Demonstration], fresh: Task | None, loop: int) -> Stats:
    """Fine-tune the policy on the kept answers. A fraction of each batch consists of fresh demonstrations."""
    random, losses, updates = python_random(Key(c.seed, "engine study", loop)), [], c.updates_per_loop
    num_fresh = round(c.batch_size * c.fresh_fraction) if fresh else 0
    for update in range(updates):
        batch = random.choices(examples, k=c.batch_size - num_fresh)
        batch += fresh.demonstrations(loop * updates + update, num_fresh) if fresh else []
        keys = [Key(c.seed, "engine", loop * updates + update, i) for i in range(len(batch))]
        rollouts = policy.conversation.demonstration_rollouts(batch, keys)
        losses.append(supervised_update(policy, rollouts, c.optimizer, update, updates, c.microbatch_tokens)["loss"])
    return {"loss": fmean(losses), "fresh": num_fresh * updates, "trained_rollouts": len(examples)}


def right_keys(groups: Sequence[Group]) -> set[Key]:
    """Return the keys of all rollouts with a right answer."""
    verdicts = [verdict for group in groups for verdict in group.verdicts]
    pairs = zip(rollouts_of(groups), verdicts, strict=True)
    return {rollout.key for rollout, verdict in pairs if verdict.reward is not None and verdict.reward >= 1.0}


def _file(run: Run, folder: str, loop: int) -> Path:
    return run.folder / folder / f"{loop:06d}.jsonl"
