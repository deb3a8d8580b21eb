"""The report of a pipeline: report.json, report.md and a figure like figure 2 of DeepSeek-R1.

In this file an evaluation is plain data that `Evaluation.to_json` returns. The files evaluation.json and metrics.jsonl
contain evaluations in the same form.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from schoolhouse.eval.statistics import Estimate, paired_difference
from schoolhouse.runs.atomic_io import atomic_write, to_json
from schoolhouse.runs.progress import duration
from schoolhouse.types import Key

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from rich.table import Table

Json = dict[str, Any]

_REPORTED = ("pass_at_1", "pass_at_1_interval", "pass_at_8", "thought_tokens")


@dataclass(frozen=True)
class Stage:
    """A finished stage: its metrics for each step, the evaluation after the stage, and the duration in seconds."""

    name: str
    metrics: Sequence[Mapping[str, Any]]
    evaluation: Json
    seconds: float


@dataclass(frozen=True)
class Curve:
    """The curves of one stage of reinforcement learning.

    `reward`: the training reward of each step.
    `evaluations`: the evaluations during training. The key of an evaluation is the number of steps that were done
        before it.
    """

    name: str
    reward: Mapping[int, float]
    evaluations: Mapping[int, Json]


def report_json(stages: Sequence[Stage], seconds: float, peak_memory_bytes: int, seed: int) -> Json:
    """Make the content of report.json: pass@1, pass@8 and thought length after each stage.

    The content also has the metrics of each family (kind of problems) after each stage.
    """
    return {
        "stages": _rows(stages),
        "seconds": seconds,
        "peak_memory_bytes": peak_memory_bytes,
        "seed": seed,
    }


def report_markdown(stages: Sequence[Stage], report: Json, figure: str | None, chat: str) -> str:
    """Make the content of report.md.

    `figure`: the file name of the figure.
    `chat`: the command that starts a chat with the final model.
    """
    evaluation = stages[-1].evaluation
    lines = [
        "# Report",
        "",
        f"The run with seed {report['seed']} took {duration(report['seconds'])} and used at most "
        f"{report['peak_memory_bytes'] / 1e9:.2f} GB of memory. The evaluation after each stage has "
        f"{evaluation['problems']} held-out problems of the task {evaluation['task']}, with {evaluation['samples']} "
        f"answers each at temperature {evaluation['temperature']:g}. Brackets are 95 % confidence intervals over "
        "problems.",
        "",
        "| stage | pass@1 | gain, paired by problem | pass@8 | thought tokens | time |",
        "|---|---|---|---|---|---|",
        *(
            f"| {row['name']} | {_interval(row)} | {_signed(gain)} | {_number(row['pass_at_8'])} "
            f"| {_number(row['thought_tokens'], 1)} | {duration(row['seconds'])} |"
            for row, gain in zip(report["stages"], _gains(stages), strict=True)
        ),
        "",
        "## Families",
        "",
        "| family | " + " | ".join(f"{stage.name}: pass@1 | thought" for stage in stages) + " |",
        "|---|" + "---|---|" * len(stages),
    ]
    for family in evaluation["families"]:
        cells = [row["families"].get(family, {}) for row in report["stages"]]
        numbers = " | ".join(f"{_interval(cell)} | {_number(cell.get('thought_tokens'), 1)}" for cell in cells)
        lines.append(f"| {family or '(none)'} | {numbers} |")
    if figure:
        lines += ["", f"![Accuracy (left) and thought length (right) at each training step]({figure})"]
    return "\n".join([*lines, "", f"The following command starts a chat with the model: `{chat}`", ""])


def paired_gain(before: Json, after: Json) -> Estimate | None:
    """Compute the gain in pass@1 between two evaluations, over the problems that are graded in both evaluations.

    Returns None if an evaluation has no records of single problems.
    """
    accuracy_before, accuracy_after = _accuracy_by_problem(before), _accuracy_by_problem(after)
    in_both = accuracy_before.keys() & accuracy_after.keys()
    if not in_both:
        return None
    return paired_difference(
        {problem: accuracy_before[problem] for problem in in_both},
        {problem: accuracy_after[problem] for problem in in_both},
        Key(0, "gain"),
    )


def training_curves(stages: Sequence[Stage]) -> list[Curve]:
    """Make the curves of all stages that trained on rewards.

    A curve begins with the evaluation before its stage and ends with the evaluation after its stage.
    """
    curves = []
    for i, stage in enumerate(stages):
        reward = {row["step"]: row["reward"] for row in stage.metrics if row.get("reward") is not None}
        if not reward:
            continue
        during = {row["step"]: row["eval"] for row in stage.metrics if "eval" in row}
        ends = {max(reward) + 1: stage.evaluation} | ({min(reward): stages[i - 1].evaluation} if i else {})
        tasks = {evaluation["task"] for evaluation in during.values()}  # results on other tasks cannot be compared
        ends = {step: evaluation for step, evaluation in ends.items() if not tasks or evaluation["task"] in tasks}
        curves.append(Curve(stage.name, reward, dict(sorted({**ends, **during}.items()))))
    return curves


def draw_figure(path: Path, curves: Sequence[Curve], dashed: Collection[str] = ()) -> None:
    """Draw a figure with one row for each stage. The x-axis is the training step.

    The left plot of a row shows the accuracy, and the right plot shows the thought length.

    `dashed`: the names of the families of problems where thinking does not help. The lines of the families in `dashed`
        are dashed.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    picture = Figure(figsize=(12, 4.5 * len(curves)), layout="constrained")
    FigureCanvasAgg(picture)
    rows = picture.subplots(len(curves), 2, squeeze=False)
    for curve, (left, right) in zip(curves, rows, strict=True):
        steps = sorted(curve.reward)
        smooth = _smooth([curve.reward[step] for step in steps])
        left.plot(steps, smooth, color="0.75", linewidth=1, label="training reward (mean of 10 steps)")
        _lines(left, curve, "pass_at_1", dashed)
        _lines(right, curve, "thought_tokens", dashed)
        left.set(title=f"{curve.name}: accuracy", xlabel="step", ylabel="pass@1 on held-out problems")
        left.set_ylim(min(0.0, *smooth), max(1.0, *smooth))
        right.set(title=f"{curve.name}: thought length", xlabel="step", ylabel="tokens of thought an answer")
        right.set_ylim(bottom=0)
        for axes in (left, right):
            axes.spines[["top", "right"]].set_visible(False)
            axes.grid(axis="y", alpha=0.3)
        right.legend(frameon=False, fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5))
        left.legend(*([item[:1] for item in left.get_legend_handles_labels()]), frameon=False, fontsize="small")
    picture.savefig(path, dpi=120)


def stage_table(stages: Sequence[Stage]) -> Table:
    """Make a table of the evaluations after each stage."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table("stage", title="evaluation after each stage", box=SIMPLE_HEAD, padding=0, pad_edge=False)
    for column in ("pass@1", "gain", "pass@8", "thought", "time"):
        table.add_column(column, justify="right", no_wrap=True)
    for row, gain in zip(_rows(stages), _gains(stages), strict=True):
        table.add_row(
            row["name"],
            _interval(row, 2),
            _signed(gain, 2),
            _number(row["pass_at_8"], 2),
            _number(row["thought_tokens"], 1),
            duration(row["seconds"]),
        )
    return table


def write_report(
    folder: Path, stages: Sequence[Stage], report: Json, chat: str, dashed: Collection[str] = ()
) -> Path | None:
    """Write report.json and report.md. If a stage trained on rewards, also write figure.png and return its path."""
    curves = training_curves(stages)
    figure = folder / "figure.png" if curves else None
    if figure:
        draw_figure(figure, curves, dashed)
    atomic_write(folder / "report.json", to_json(report, 2) + "\n")
    atomic_write(folder / "report.md", report_markdown(stages, report, figure.name if figure else None, chat))
    return figure


def _lines(axes: Axes, curve: Curve, metric: str, dashed: Collection[str]) -> None:
    """Draw a line for each family (kind of problems), and a thick line with a confidence interval for all problems."""
    evaluations = curve.evaluations.items()
    families = list(dict.fromkeys(name for _, evaluation in evaluations for name in evaluation["families"]))
    for number, name in enumerate(families if len(families) > 1 else []):
        points = [(step, evaluation["families"].get(name, {}).get(metric)) for step, evaluation in evaluations]
        measured = [(step, value) for step, value in points if value is not None]
        if not measured:
            continue
        style = "--" if name in dashed else "-"
        label = f"{name} (thinking does not pay)" if name in dashed else name
        axes.plot(*zip(*measured, strict=True), style, color=f"C{number}", marker=".", linewidth=1.2, label=label)
    overalls = [(step, evaluation["overall"]) for step, evaluation in evaluations]
    measured = [(step, overall) for step, overall in overalls if overall.get(metric) is not None]
    if not measured:
        return
    steps, values = [step for step, _ in measured], [overall[metric] for _, overall in measured]
    axes.plot(steps, values, color="black", marker="o", markersize=4, linewidth=2, label="all")
    low, high = zip(*(overall[f"{metric}_interval"] for _, overall in measured), strict=True)
    axes.fill_between(steps, low, high, color="black", alpha=0.12, linewidth=0)


def _smooth(values: Sequence[float], width: int = 10) -> list[float]:
    """Compute a moving average: for each value, the mean of this value and up to `width` - 1 values before it."""
    return [sum(values[max(0, i + 1 - width) : i + 1]) / min(width, i + 1) for i in range(len(values))]


def _accuracy_by_problem(evaluation: Json) -> dict[str, float]:
    graded = {
        record["problem"]: [reward for reward in record["rewards"] if reward is not None]
        for record in evaluation.get("records", ())
    }
    return {problem: sum(r >= 1.0 for r in rewards) / len(rewards) for problem, rewards in graded.items() if rewards}


def _rows(stages: Sequence[Stage]) -> list[Json]:
    return [
        {
            "name": stage.name,
            **_reported(stage.evaluation["overall"]),
            "seconds": stage.seconds,
            "families": {family: _reported(metrics) for family, metrics in stage.evaluation["families"].items()},
        }
        for stage in stages
    ]


def _gains(stages: Sequence[Stage]) -> list[Estimate | None]:
    """Compute how much pass@1 rises from each stage to the next stage. The gain of the first stage is None."""
    return [None, *(paired_gain(before.evaluation, after.evaluation) for before, after in pairwise(stages))]


def _reported(metrics: Mapping[str, Any]) -> Json:
    return {name: metrics.get(name) for name in _REPORTED}


def _interval(row: Mapping[str, Any], digits: int = 3) -> str:
    if row.get("pass_at_1") is None:
        return "-"
    value, low, high = (f"{number:.{digits}f}" for number in (row["pass_at_1"], *row["pass_at_1_interval"]))
    return f"{value} [{low}, {high}]"


def _signed(estimate: Estimate | None, digits: int = 3) -> str:
    if estimate is None:
        return ""
    value, low, high = (f"{number:+.{digits}f}" for number in estimate)
    return f"{value} [{low}, {high}]"


def _number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
