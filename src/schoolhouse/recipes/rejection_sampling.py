"""Rejection sampling: a teacher answers problems, and a student is fine-tuned on the teacher's right answers.

DeepSeek-R1 uses rejection sampling in its third stage and for distillation (Guo et al. 2025, arXiv 2501.12948, sections
2.3.3 and 2.4). A teacher answers each problem several times. The student learns from the answers that are right,
complete and in one language. The student can be a smaller model (distillation), or the base model of the teacher
(rejection sampling).

The run writes the kept answers to kept.jsonl in the run folder. A task `jsonl:PATH` can read the file kept.jsonl.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection
from typing import Any

from pydantic import Field, model_validator

from schoolhouse.algorithms.groups import rollouts_of, sampled_tokens
from schoolhouse.algorithms.settings import Lora, Optimizer, Sampling
from schoolhouse.algorithms.worker_settings import WorkerSettings
from schoolhouse.config import suggest
from schoolhouse.data.chat_settings import ChatConfig
from schoolhouse.data.prompts import prompt_groups
from schoolhouse.data.scripts import script_share
from schoolhouse.policy.policy import Policy
from schoolhouse.policy.supervised import supervised_update
from schoolhouse.policy.training import load_policy
from schoolhouse.randomness import python_random
from schoolhouse.runs.atomic_io import atomic_write, read_json, read_jsonl, to_json, write_jsonl
from schoolhouse.runs.progress import progress
from schoolhouse.runs.run import Run
from schoolhouse.tasks.grading import grade_all, grade_rollouts, open_graded_task
from schoolhouse.tasks.jsonl import demonstration_from_row, demonstration_to_row
from schoolhouse.types import SCRIPTS, Completion, Demonstration, Key, Precision, Problem, SchoolError


class Config(ChatConfig):
    teacher: str
    """Folder of the model that answers, or of a run: its newest checkpoint."""
    model: str
    """Folder of the model that learns from these answers (Hugging Face format), or of a run."""
    task: str = "school"
    seed: int = 0
    num_prompts: int = Field(1_000, gt=0)
    """Number of problems that the teacher answers. The teacher answers all problems before the first step."""
    samples_per_prompt: int = Field(4, gt=0)
    sampling: Sampling = Sampling()
    max_kept_per_problem: int = Field(4, gt=0)
    """Maximum number of answers that are kept per problem, so that easy problems do not dominate."""
    script: str = ""
    """Script (writing system) of all words in a kept thought, such as latin or cjk. If empty: any script is allowed."""
    steps: int = Field(500, gt=0)
    batch_size: int = Field(64, gt=0)
    rewards: WorkerSettings = WorkerSettings()
    optimizer: Optimizer = Optimizer(weight_decay=0.01)
    lora: Lora = Lora()
    microbatch_tokens: int = Field(4_096, gt=0)
    """Maximum number of tokens in one micro-batch. This number changes the memory, but not the result."""
    precision: Precision = "auto"
    activation_checkpointing: bool = False
    """Save memory with a second forward pass in each update. The result of the training does not change."""
    save_every: int = Field(200, gt=0)

    @model_validator(mode="after")
    def _known(self) -> Config:
        if self.script and self.script not in SCRIPTS:
            raise ValueError(f"unknown writing system (script) `{self.script}`{suggest(self.script, SCRIPTS)}")
        return self


def rejection_sampling(c: Config, run: Run) -> None:
    if not (run.folder / "harvest.json").exists():
        rows, counts = sample_teacher(c)
        write_jsonl(run.folder / "kept.jsonl", rows)
        atomic_write(run.folder / "harvest.json", to_json(counts) + "\n")
    counts = read_json(run.folder / "harvest.json")
    demonstrations = [demonstration_from_row(row) for row in read_jsonl(run.folder / "kept.jsonl")]
    if not demonstrations:
        raise SchoolError(
            f"none of {counts['rollouts']} completions was kept ({counts}): use a teacher that solves some problems"
        )
    run.track_files(run.folder / "kept.jsonl")
    policy = run.restore(load_policy(c, run))

    for step in run.steps(range(run.step, c.steps), save=policy, every=c.save_every):
        batch = python_random(Key(c.seed, "distill", step)).choices(demonstrations, k=c.batch_size)
        keys = [Key(c.seed, "distill", step, i) for i in range(c.batch_size)]
        rollouts = policy.conversation.demonstration_rollouts(batch, keys)
        stats = supervised_update(policy, rollouts, c.optimizer, step, c.steps, c.microbatch_tokens)
        run.record(step, **stats, **(counts if step == 0 else {}))


def sample_teacher(c: Config) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Sample completions from the teacher, and decide which completions are kept.

    Returns a row for each kept completion, and the number of dropped completions for each reason.
    """
    teacher, task = Policy.load(c.teacher, c.precision, chat=c), open_graded_task(c.task, c.seed, c.rewards)
    teacher.sampling_weights = c.sampling.weights
    conversation = teacher.conversation
    problems = task.train_problems(0, c.num_prompts)
    prompts = prompt_groups(conversation, problems, c.samples_per_prompt, seed=c.seed, purpose="harvest")
    with progress("answers of the teacher"):
        rollouts = teacher.extend(prompts, c.sampling.max_new_tokens, temperature=c.sampling.temperature)
        groups = grade_rollouts(rollouts, task, conversation.parse_completion)
    cases: list[tuple[Problem, Completion]] = []
    rows, counts = [], Counter(sampled_tokens=sampled_tokens(rollouts_of(groups)))
    kept: defaultdict[str, set[tuple[str, str]]] = defaultdict(set)
    for group in groups:
        known = kept[group.problem.id]  # a small file's problems come again
        for rollout, verdict in zip(group.rollouts, group.verdicts, strict=True):
            completion = conversation.parse_completion(rollout)
            texts = (completion.thought or "", completion.answer)
            reason = _drop_reason(c, verdict.reward, completion.complete, texts, known)
            if not reason:
                known.add(texts)
                rows.append(demonstration_to_row(Demonstration(group.problem, *texts, "teacher")))
                cases.append((group.problem, Completion(*texts)))
            counts["rollouts"] += 1
            counts[reason or "kept"] += 1
    rewards = [verdict.reward for verdict in grade_all(cases, task)]  # of what is kept, as it is written down
    counts["kept_wrong"] = sum(reward is None or reward < 1.0 for reward in rewards)
    counts["kept_mixed"] = sum(bool(c.script) and script_share(kept.thought or "", c.script) < 1.0 for _, kept in cases)
    return rows, dict(counts)


def _drop_reason(
    c: Config, reward: float | None, complete: bool, texts: tuple[str, str], known: Collection[tuple[str, str]]
) -> str:
    """The reason why a completion is dropped, or "" if the completion is kept.

    `known` contains the kept completions of the same problem.
    """
    thought = texts[0]
    if reward is None:
        return "dropped_ungraded"
    if reward < 1.0 or not complete:
        return "dropped_wrong"
    if "\ufffd" in "".join(texts):
        return "dropped_broken"  # half a character
    if c.script and not thought.strip():
        return "dropped_no_thought"  # an empty thought is in no script
    if c.script and script_share(thought, c.script) < 1.0:
        return "dropped_mixed"
    if texts in known:
        return "dropped_duplicate"
    return "dropped_over_cap" if len(known) >= c.max_kept_per_problem else ""
