"""An exam: held-out problems, several answers to each, and what can be said of them with a 95 % interval."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from schoolhouse.data.chat import Conversation
from schoolhouse.eval.statistics import Estimate, bootstrap, bootstrap_share, maj_at_k, pass_at_k
from schoolhouse.policy.interface import Generator
from schoolhouse.runs.progress import progress as show_progress
from schoolhouse.tasks.answer_match import normalized_answer
from schoolhouse.tasks.base import Task
from schoolhouse.tasks.grading import grade
from schoolhouse.types import Group, Key, SchoolError

if TYPE_CHECKING:
    from rich.table import Table

Metrics = Mapping[str, Estimate]
"""pass_at_1, pass_at_2, ... (powers of two), maj_at_K, score, thought_tokens, thought_tokens_right,
thought_tokens_wrong, entropy, no_answer, truncated, ungraded. Nan where there was nothing to measure."""


@dataclass(frozen=True, slots=True)
class Record:
    """One problem of an exam and its n answers.

    scores          [n] None where it could not be judged
    thought_tokens  [n]
    majority        accuracy of the most frequent answer
    no_answer, truncated  how many of the n
    tokens          sampled in all
    surprisal       sum of -logprob of the sampled tokens, in nats
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
        return sum(score is not None for score in self.rewards)

    @property
    def num_correct(self) -> int:
        """How many answers got full marks."""
        return sum(score is not None and score >= 1.0 for score in self.rewards)


@dataclass(frozen=True)
class Evaluation:
    """What an exam gave. `print` it for the table; `records` hold every problem, for paired comparison."""

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
        """Share of right answers of each problem that could be judged: for `paired_difference`."""
        return {record.problem: record.num_correct / record.num_graded for record in self.records if record.num_graded}

    def to_json(self, records: bool = False) -> dict[str, Any]:
        """Plain data: {"task": ..., "overall": {"pass_at_1": 0.5, "pass_at_1_interval": [0.4, 0.6], ...}, "families":
        {name: the same}}, with `records` the problems one by one too."""
        return {
            "task": self.task,
            "problems": len(self.records),
            "samples": self.samples,
            "length": self.max_new_tokens,
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
    """Sit an exam: `samples` answers of up to `length` tokens to each of `problems` held-out problems (None: all).

    Without a `length` an answer may take what the model can read behind the longest prompt, at most 512 tokens.
    The same problems and the same random numbers every time, so that two models can be compared pair by pair.
    `progress` is told how many answers have just ended; without it a bar is shown.
    Raises SchoolError where the task has no exam.
    """
    exam = task.eval_problems(problems)
    if not exam:
        raise SchoolError(f"task {task.name} has an empty exam; give it problems to hold out")
    asked = [
        policy.conversation.prompt_rollout(problem, Key(seed, "evaluate", 0, i, g))
        for i, problem in enumerate(exam)
        for g in range(samples)
    ]
    if max_new_tokens is None:
        max_new_tokens = max(1, min(512, policy.max_seq_len - max(map(len, asked))))
    with show_progress("exam", len(asked), unit="answer") as advance:
        rollouts = policy.extend(
            asked, max_new_tokens, temperature=temperature, progress=progress or (lambda more: advance(more, ""))
        )
    conversation = policy.conversation
    records = tuple(_record(group, conversation) for group in grade(rollouts, task, conversation.parse_completion))
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
    """The metrics of an exam with `samples` answers a problem. Problems are what chance drew: intervals are over them.

    Answers that could not be judged count in no score; `ungraded` is their share.
    """
    key = Key(seed, "bootstrap")
    judged = [record for record in records if record.num_graded]

    def per_sample(counts: Sequence[float]) -> Estimate:
        return bootstrap_share([count / samples for count in counts], key)

    def mean_thought(wanted: Callable[[float | None], bool]) -> Estimate:
        chosen = [
            [tokens for tokens, score in zip(record.thought_tokens, record.rewards, strict=True) if wanted(score)]
            for record in records
        ]
        return bootstrap([sum(few) / max(1, len(few)) for few in chosen], key, [len(few) for few in chosen])

    metrics: dict[str, Estimate] = {}
    k = 1
    while k <= samples:
        enough = [record for record in records if record.num_graded >= k]
        metrics[f"pass_at_{k}"] = bootstrap_share([pass_at_k(r.num_graded, r.num_correct, k) for r in enough], key)
        k *= 2
    metrics[f"maj_at_{samples}"] = bootstrap_share([record.majority_accuracy for record in judged], key)
    metrics["reward"] = bootstrap([math.fsum(filter(None, r.rewards)) / r.num_graded for r in judged], key)
    metrics["thought_tokens"] = mean_thought(lambda score: True)
    metrics["thought_tokens_right"] = mean_thought(lambda score: score is not None and score >= 1.0)
    metrics["thought_tokens_wrong"] = mean_thought(lambda score: score is not None and score < 1.0)
    metrics["entropy"] = bootstrap(
        [record.surprisal / max(1, record.sampled_tokens) for record in records], key, [record.sampled_tokens for record in records]
    )
    metrics["no_answer"] = per_sample([record.no_answer for record in records])
    metrics["truncated"] = per_sample([record.truncated for record in records])
    metrics["ungraded"] = per_sample([len(record.rewards) - record.num_graded for record in records])
    return metrics


def evaluation_table(evaluation: Evaluation) -> Table:
    """The exam as a table: a line per family and one for all."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    k = max(int(name.removeprefix("pass_at_")) for name in evaluation.overall if name.startswith("pass_at_"))
    columns = {
        "pass@1": "pass_at_1",
        **({f"pass@{k}": f"pass_at_{k}"} if k > 1 else {}),
        **({f"maj@{evaluation.samples}": f"maj_at_{evaluation.samples}"} if evaluation.samples > 1 else {}),
        "thought": "thought_tokens",
        "if right": "thought_tokens_right",
        "if wrong": "thought_tokens_wrong",
        "entropy": "entropy",
        "no answer": "no_answer",
        "cut off": "truncated",
        **({"not judged": "ungraded"} if evaluation.overall["ungraded"].value else {}),
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


def _record(group: Group, conversation: Conversation) -> Record:
    replies = [conversation.parse_completion(rollout) for rollout in group.rollouts]
    ballots = [normalized_answer(reply) for reply in replies]
    sampled = [p for r in group.rollouts for p, said in zip(r.logprob, r.loss_mask, strict=True) if said]
    return Record(
        group.problem.id,
        group.problem.family,
        tuple(verdict.reward for verdict in group.verdicts),
        tuple(conversation.thought_length(rollout) for rollout in group.rollouts),
        maj_at_k(
            [ballot for ballot, verdict in zip(ballots, group.verdicts, strict=True) if verdict.reward is not None],
            [score >= 1.0 for score in group.rewards],
        ),
        sum(ballot is None for ballot in ballots),
        sum(rollout.finish_reason == "length" for rollout in group.rollouts),
        len(sampled),
        -math.fsum(sampled),
    )


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
