"""What a pipeline reports: report.json, report.md and a figure in the manner of DeepSeek-R1's figure 2.

An exam here is the plain data that `Evaluation.to_json` gives, as it stands in evaluation.json and in metrics.jsonl.
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

_TOLD = ("pass_at_1", "pass_at_1_interval", "pass_at_8", "thought_tokens")


@dataclass(frozen=True)
class Stage:
    """A stage that has been done: what it recorded step by step, the exam after it, and how long it took."""

    name: str
    metrics: Sequence[Mapping[str, Any]]
    evaluation: Json
    seconds: float


@dataclass(frozen=True)
class Curve:
    """Reinforcement learning step by step: training reward, and exams by the number of steps done before them."""

    name: str
    reward: Mapping[int, float]
    evaluations: Mapping[int, Json]


def report_json(stages: Sequence[Stage], seconds: float, peak_memory_bytes: int, seed: int) -> Json:
    """The content of report.json: pass@1, pass@8 and thought length after each stage, per family too."""
    return {
        "stages": _rows(stages),
        "seconds": seconds,
        "peak_memory_bytes": peak_memory_bytes,
        "seed": seed,
    }


def report_markdown(stages: Sequence[Stage], report: Json, figure: str | None, chat: str) -> str:
    """The content of report.md. `figure` is the file name of the picture, `chat` the command to talk to the model."""
    exam = stages[-1].evaluation
    lines = [
        "# Report",
        "",
        f"Seed {report['seed']}, {duration(report['seconds'])}, at most {report['peak_memory_bytes'] / 1e9:.2f} GB of "
        f"memory. Exam after each stage: {exam['task']}, {exam['problems']} held-out problems, {exam['samples']} "
        f"answers each at temperature {exam['temperature']:g}. Brackets are 95 % intervals over problems.",
        "",
        "| stage | pass@1 | gain, paired by problem | pass@8 | thought tokens | time |",
        "|---|---|---|---|---|---|",
        *(
            f"| {row['name']} | {_interval(row)} | {_signed(gained)} | {_number(row['pass_at_8'])} "
            f"| {_number(row['thought_tokens'], 1)} | {duration(row['seconds'])} |"
            for row, gained in zip(report["stages"], _gains(stages), strict=True)
        ),
        "",
        "## Families",
        "",
        "| family | " + " | ".join(f"{stage.name}: pass@1 | thought" for stage in stages) + " |",
        "|---|" + "---|---|" * len(stages),
    ]
    for family in exam["families"]:
        cells = [row["families"].get(family, {}) for row in report["stages"]]
        told = " | ".join(f"{_interval(cell)} | {_number(cell.get('thought_tokens'), 1)}" for cell in cells)
        lines.append(f"| {family or '(none)'} | {told} |")
    if figure:
        lines += ["", f"![accuracy and thought length against steps]({figure})"]
    return "\n".join([*lines, "", f"Talk to the model: `{chat}`", ""])


def gain(before: Json, after: Json) -> Estimate | None:
    """How much pass@1 rose from one exam to another, over the problems that both could judge; None without records."""
    first, second = (_by_problem(exam) for exam in (before, after))
    both = first.keys() & second.keys()
    if not both:
        return None
    return paired_difference({p: first[p] for p in both}, {p: second[p] for p in both}, Key(0, "gain"))


def training_curves(stages: Sequence[Stage]) -> list[Curve]:
    """The stages that practised for reward. The exam before such a stage and the one after it are its ends."""
    found = []
    for i, stage in enumerate(stages):
        reward = {row["step"]: row["reward"] for row in stage.metrics if row.get("reward") is not None}
        if not reward:
            continue
        exams = {row["step"]: row["eval"] for row in stage.metrics if "eval" in row}
        ends = {max(reward) + 1: stage.evaluation} | ({min(reward): stages[i - 1].evaluation} if i else {})
        own = {exam["task"] for exam in exams.values()}
        ends = {step: exam for step, exam in ends.items() if not own or exam["task"] in own}  # others do not compare
        found.append(Curve(stage.name, reward, dict(sorted({**ends, **exams}.items()))))
    return found


def draw_figure(path: Path, curves: Sequence[Curve], dashed: Collection[str] = ()) -> None:
    """A picture with a row per curve: accuracy on the left, thought length on the right, against steps.

    `dashed` names the families where thinking does not pay.
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
    """The stages as a table."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table("stage", title="exam after each stage", box=SIMPLE_HEAD, padding=0, pad_edge=False)
    for column in ("pass@1", "gain", "pass@8", "thought", "time"):
        table.add_column(column, justify="right", no_wrap=True)
    for row, gained in zip(_rows(stages), _gains(stages), strict=True):
        table.add_row(
            row["name"],
            _interval(row, 2),
            _signed(gained, 2),
            _number(row["pass_at_8"], 2),
            _number(row["thought_tokens"], 1),
            duration(row["seconds"]),
        )
    return table


def write_report(
    folder: Path, stages: Sequence[Stage], report: Json, chat: str, dashed: Collection[str] = ()
) -> Path | None:
    """Write report.json, report.md and, where there was practice, figure.png; gives the path of the figure."""
    drawn = training_curves(stages)
    figure = folder / "figure.png" if drawn else None
    if figure:
        draw_figure(figure, drawn, dashed)
    atomic_write(folder / "report.json", to_json(report, 2) + "\n")
    atomic_write(folder / "report.md", report_markdown(stages, report, figure.name if figure else None, chat))
    return figure


def _lines(axes: Axes, curve: Curve, metric: str, dashed: Collection[str]) -> None:
    """One line per family, and a thick one for all with its interval."""
    families = list(dict.fromkeys(name for exam in curve.evaluations.values() for name in exam["families"]))
    for number, name in enumerate(families if len(families) > 1 else []):
        points = [(step, exam["families"].get(name, {}).get(metric)) for step, exam in curve.evaluations.items()]
        known = [(step, value) for step, value in points if value is not None]
        if not known:
            continue
        style = "--" if name in dashed else "-"
        label = f"{name} (thinking does not pay)" if name in dashed else name
        axes.plot(*zip(*known, strict=True), style, color=f"C{number}", marker=".", linewidth=1.2, label=label)
    known = [(step, exam["overall"]) for step, exam in curve.evaluations.items() if exam["overall"].get(metric) is not None]
    if not known:
        return
    steps, values = [step for step, _ in known], [overall[metric] for _, overall in known]
    axes.plot(steps, values, color="black", marker="o", markersize=4, linewidth=2, label="all")
    low, high = zip(*(overall[f"{metric}_interval"] for _, overall in known), strict=True)
    axes.fill_between(steps, low, high, color="black", alpha=0.12, linewidth=0)


def _smooth(values: Sequence[float], width: int = 10) -> list[float]:
    """Mean of each value and up to `width` - 1 before it."""
    return [sum(values[max(0, i + 1 - width) : i + 1]) / min(width, i + 1) for i in range(len(values))]


def _by_problem(exam: Json) -> dict[str, float]:
    judged = {r["problem"]: [s for s in r["scores"] if s is not None] for r in exam.get("records", ())}
    return {problem: sum(s >= 1.0 for s in scores) / len(scores) for problem, scores in judged.items() if scores}


def _rows(stages: Sequence[Stage]) -> list[Json]:
    return [
        {
            "name": stage.name,
            **_told(stage.evaluation["overall"]),
            "seconds": stage.seconds,
            "families": {family: _told(metrics) for family, metrics in stage.evaluation["families"].items()},
        }
        for stage in stages
    ]


def _gains(stages: Sequence[Stage]) -> list[Estimate | None]:
    """The gain of each stage over the one before; the first has none."""
    return [None, *(gain(before.evaluation, after.evaluation) for before, after in pairwise(stages))]


def _told(metrics: Mapping[str, Any]) -> Json:
    return {name: metrics.get(name) for name in _TOLD}


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
