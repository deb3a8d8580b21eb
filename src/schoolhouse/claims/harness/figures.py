"""What the figures of claims are drawn with."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Literal

from schoolhouse.claims.harness.claim import Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def learning(
    axes: Axes,
    results: Results,
    arms: Sequence[str],
    start: str = "start",
    against: Literal["tokens", "seconds"] = "tokens",
) -> None:
    """pass@1 against tokens sampled or seconds, in training and at its end: thin lines are seeds, thick ones means."""
    scale = 1e3 if against == "tokens" else 1.0
    for name in arms:
        if name not in results.arms:
            continue
        rows = results.exams(name, start)
        points = range(min(map(len, rows)))
        x = [[getattr(point, against) / scale for point in row] for row in rows]
        middle = [fmean(row[i] for row in x) for i in points]
        (line,) = axes.plot(middle, [fmean(row[i].value for row in rows) for i in points], linewidth=2, label=name)
        for place, row in zip(x, rows, strict=True):
            axes.plot(place, [point.value for point in row], color=line.get_color(), linewidth=0.5)
    axes.set(xlabel="thousand tokens sampled" if against == "tokens" else "seconds", ylabel="pass@1", ylim=(0, 1))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)


def course(axes: Axes, results: Results, arms: Sequence[str], metric: str, label: str) -> None:
    """A metric of training against steps: a thin line a seed, a thick one their mean."""
    for name in arms:
        if name not in results.arms:
            continue
        rows = results.course(name, metric)
        points = min(map(len, rows))
        (line,) = axes.plot([fmean(row[i] for row in rows) for i in range(points)], linewidth=2, label=name)
        for row in rows:
            axes.plot(row, color=line.get_color(), linewidth=0.4)
    axes.set(xlabel="step", ylabel=label)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)


def bars(axes: Axes, results: Results, arms: Sequence[str], metric: str = "pass_at_1", measure: str = "exam") -> None:
    """Means over seeds, with a dot for each seed."""
    there = [name for name in arms if name in results.arms]
    axes.bar(there, [results.mean(name, metric, measure) for name in there], color="0.8")
    for at, name in enumerate(there):
        values = results.each(name, metric, measure)
        axes.plot([at] * len(values), values, "k.", markersize=5)
    axes.set(ylabel=metric.replace("pass_at_", "pass@").replace("_", " "))
    axes.set_xticks(range(len(there)), there, rotation=45, ha="right", rotation_mode="anchor")
    axes.grid(alpha=0.3, axis="y")
