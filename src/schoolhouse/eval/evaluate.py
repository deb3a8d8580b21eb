"""An evaluation samples answers to held-out problems, and computes metrics with 95 % confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from schoolhouse.data.chat import Conversation
from schoolhouse.eval.statistics import Estimate, bootstrap, bootstrap_share, maj_at_k, pass_at_k
from schoolhouse.policy.interface import Generator
from schoolhouse.runs.progress import progress as show_progress
from schoolhouse.tasks.answers.extraction import normalized_answer
from schoolhouse.tasks.base import Task
from schoolhouse.tasks.grading import grade_rollouts
from schoolhouse.types import Group, Key, SchoolError

if TYPE_CHECKING:
    from rich.table import Table

Metrics = Mapping[str, Estimate]
"""pass_at_1, pass_at_2, ... (powers of two), maj_at_K, reward, thought_tokens, thought_tokens_correct,
thought_tokens_incorrect, entropy, no_answer, truncated, ungraded. A metric without any data is nan."""


@dataclass(frozen=True, slots=True)
class Record:
    """One problem and its n sampled answers.

    `rewards`: the reward of each answer [n]; None if the answer is ungraded.
    `thought_tokens`: the length of each thought in tokens [n].
    `majority_accuracy`: the accuracy of the most frequent answer.
    `no_answer`: how many of the n completions have no answer.
    `truncated`: how many of the n completions were truncated.
    `sampled_tokens`: the number of sampled tokens of all n completions together.
    `surprisal`: the sum of -logprob over all sampled tokens, in nats.
    """

    problem: str
    family: str
    rewards: tuple[float | None, ...]
    thought_tokens: tuple[int, ...]
    majority_accuracy: float
    no_answer: int
    truncated: int
    sampled_tokens: int
    surprisal: float

    @property
    def num_graded(self) -> int:
        return sum(reward is not None for reward in self.rewards)

    @property
    def num_correct(self) -> int:
        """The number of answers with a reward of 1."""
        return sum(map(_is_correct, self.rewards))


@dataclass(frozen=True)
class Evaluation:
    """The result of an evaluation. Python's `print` shows the result as a table.

    The field `records` has an entry for every problem, so that two evaluations can be compared problem by problem.
    """

    task: str
    samples: int
    max_new_tokens: int
    temperature: float
    seed: int
    overall: Metrics
    families: Mapping[str, Metrics]
    records: tuple[Record, ...]

    def __str__(self) -> str:
        from rich.console import Console

        console = Console(width=120)
        with console.capture() as captured:
            console.print(evaluation_table(self))
        return captured.get().rstrip()

    def by_problem(self) -> dict[str, float]:
        """The accuracy on each problem that has a graded answer.

        The input of the function `paired_difference` is two mappings from problem ids to accuracies.
        """
        return {record.problem: record.num_correct / record.num_graded for record in self.records if record.num_graded}

    def to_json(self, records: bool = False) -> dict[str, Any]:
        """Convert the evaluation to plain data. If `records` is true, the data also has an entry for every problem.

        The data is {"task": ..., "overall": {"pass_at_1": 0.5, "pass_at_1_interval": [0.4, 0.6], ...}, "families":
        ...}. The value of "families" has, for each family of problems, the same metrics as "overall".
        """
        return {
            "task": self.task,
            "problems": len(self.records),
            "samples": self.samples,
            "max_new_tokens": self.max_new_tokens,
            "temperature": self.temperature,
            "seed": self.seed,
            "overall": _metrics_to_json(self.overall),
            "families": {name: _metrics_to_json(metrics) for name, metrics in self.families.items()},
            **({"records": [asdict(record) for record in self.records]} if records else {}),
        }


def evaluate(
    policy: Generator,
    task: Task,
    problems: int | None = 200,
    samples: int = 8,
    max_new_tokens: int | None = 128,
    temperature: float = 1.0,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Evaluation:
    """Sample and grade `samples` answers to each of `problems` held-out problems.

    If `problems` is None, all held-out problems are used. All evaluations use the same problems and the same random
    numbers, so that two models can be compared problem by problem. Raises SchoolError if the task has no held-out
    problems.

    `max_new_tokens`: the maximum number of tokens of one completion. If `max_new_tokens` is None, the limit is the
        context that is left after the longest prompt, but at most 512 tokens.
    `progress`: a function that is called with the number of answers that have just ended.
    """
    held_out = task.eval_problems(problems)
    if not held_out:
        raise SchoolError(
            f"cannot evaluate: task {task.name} has no held-out problems; set `problems` to 1 or more, or use a task "
            "with held-out problems"
        )
    conversation = policy.conversation
    prompts = [
        conversation.prompt_rollout(problem, Key(seed, "evaluate", 0, i, g))
        for i, problem in enumerate(held_out)
        for g in range(samples)
    ]
    if max_new_tokens is None:
        max_new_tokens = max(1, min(512, policy.max_seq_len - max(map(len, prompts))))
    with show_progress(f"evaluation of {len(held_out):,} problems"):
        rollouts = policy.extend(prompts, max_new_tokens, temperature=temperature, progress=progress)
        groups = grade_rollouts(rollouts, task, conversation.parse_completion)
        records = tuple(_record(group, conversation, task) for group in groups)
    return Evaluation(
        task.spec[0] if task.spec else task.name,
        samples,
        max_new_tokens,
        temperature,
        seed,
        summarise(records, samples, seed),
        {
            family: summarise([record for record in records if record.family == family], samples, seed)
            for family in dict.fromkeys(record.family for record in records)
        },
        records,
    )


def summarise(records: Sequence[Record], samples: int, seed: int = 0) -> dict[str, Estimate]:
    """Compute the metrics of an evaluation with `samples` answers per problem.

    The confidence intervals are computed over problems. The reward and all accuracies leave out answers that could not
    be graded. The metric `ungraded` is the fraction of answers that could not be graded.
    """
    key = Key(seed, "bootstrap")
    graded = [record for record in records if record.num_graded]

    def share_of_samples(counts: Sequence[float]) -> Estimate:
        return bootstrap_share([count / samples for count in counts], key)

    def mean_thought_tokens(counts_reward: Callable[[float | None], bool]) -> Estimate:
        chosen = [
            [
                tokens
                for tokens, reward in zip(record.thought_tokens, record.rewards, strict=True)
                if counts_reward(reward)
            ]
            for record in records
        ]
        return bootstrap([sum(lengths) / max(1, len(lengths)) for lengths in chosen], key, [*map(len, chosen)])

    metrics: dict[str, Estimate] = {}
    k = 1
    while k <= samples:
        enough = [record for record in records if record.num_graded >= k]
        metrics[f"pass_at_{k}"] = bootstrap_share([pass_at_k(r.num_graded, r.num_correct, k) for r in enough], key)
        k *= 2
    metrics[f"maj_at_{samples}"] = bootstrap_share([record.majority_accuracy for record in graded], key)
    metrics["reward"] = bootstrap([math.fsum(filter(None, r.rewards)) / r.num_graded for r in graded], key)
    metrics["thought_tokens"] = mean_thought_tokens(lambda reward: True)
    metrics["thought_tokens_correct"] = mean_thought_tokens(_is_correct)
    metrics["thought_tokens_incorrect"] = mean_thought_tokens(lambda reward: reward is not None and reward < 1.0)
    metrics["entropy"] = bootstrap(
        [record.surprisal / max(1, record.sampled_tokens) for record in records],
        key,
        [record.sampled_tokens for record in records],
    )
    metrics["no_answer"] = share_of_samples([record.no_answer for record in records])
    metrics["truncated"] = share_of_samples([record.truncated for record in records])
    metrics["ungraded"] = share_of_samples([len(record.rewards) - record.num_graded for record in records])
    return metrics


def evaluation_table(evaluation: Evaluation) -> Table:
    """Make a table of an evaluation, with one line for each family of problems and one line for all problems."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    k = max(int(name.removeprefix("pass_at_")) for name in evaluation.overall if name.startswith("pass_at_"))
    columns = {
        "pass@1": "pass_at_1",
        **({f"pass@{k}": f"pass_at_{k}"} if k > 1 else {}),
        **({f"maj@{evaluation.samples}": f"maj_at_{evaluation.samples}"} if evaluation.samples > 1 else {}),
        "thought": "thought_tokens",
        "if correct": "thought_tokens_correct",
        "if wrong": "thought_tokens_incorrect",
        "entropy": "entropy",
        "no answer": "no_answer",
        "truncated": "truncated",
        **({"ungraded": "ungraded"} if evaluation.overall["ungraded"].value else {}),
    }
    table = Table(
        title=f"{evaluation.task}: {len(evaluation.records)} problems, {evaluation.samples} answers each",
        caption="95 % intervals over problems; thought in tokens, entropy in nats a token",
        box=SIMPLE_HEAD,
        padding=0,
        pad_edge=False,
    )
    table.add_column("family", no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    rows = {**(evaluation.families if len(evaluation.families) > 1 else {}), "all": evaluation.overall}
    for name, metrics in rows.items():
        cells = [_cell(metrics[metric], metric) for metric in columns.values()]
        table.add_row(name or "(none)", *cells, style="bold" if name == "all" and len(rows) > 1 else None)
    return table


def _record(group: Group, conversation: Conversation, task: Task) -> Record:
    completions = [conversation.parse_completion(rollout) for rollout in group.rollouts]
    answers = [task.normalized_answer(completion) for completion in completions]
    if any(a is None and _is_correct(verdict.reward) for a, verdict in zip(answers, group.verdicts, strict=True)):
        answers = [normalized_answer(completion, "auto") for completion in completions]  # the task needs no mark
    logprobs = [
        logprob
        for rollout in group.rollouts
        for logprob, sampled in zip(rollout.logprob, rollout.loss_mask, strict=True)
        if sampled
    ]
    graded = [answer for answer, verdict in zip(answers, group.verdicts, strict=True) if verdict.reward is not None]
    return Record(
        problem=group.problem.id,
        family=group.problem.family,
        rewards=tuple(verdict.reward for verdict in group.verdicts),
        thought_tokens=tuple(conversation.thought_length(rollout) for rollout in group.rollouts),
        majority_accuracy=maj_at_k(graded, [_is_correct(reward) for reward in group.rewards]),
        no_answer=sum(answer is None for answer in answers),
        truncated=sum(rollout.finish_reason == "length" for rollout in group.rollouts),
        sampled_tokens=len(logprobs),
        surprisal=-math.fsum(logprobs),
    )


def _is_correct(reward: float | None) -> bool:
    return reward is not None and reward >= 1.0


def _cell(estimate: Estimate, metric: str) -> str:
    if math.isnan(estimate.value):
        return "-"
    if metric.startswith("thought"):
        return f"{estimate.value:.1f}"
    if metric == "pass_at_1":
        return f"{estimate.value:.3f} [{estimate.low:.2f}, {estimate.high:.2f}]"
    return f"{estimate.value:.2f}"


def _metrics_to_json(metrics: Metrics) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, estimate in metrics.items():
        missing = math.isnan(estimate.value)
        flat[name] = None if missing else estimate.value
        flat[f"{name}_interval"] = None if missing else [estimate.low, estimate.high]
    return flat
