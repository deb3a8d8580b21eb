"""Plots for the figures of claims. Thin lines and dots show single seeds. Thick lines and bars show means."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Literal

from schoolhouse.claims.harness.claim import Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_accuracy(
    axes: Axes,
    results: Results,
    arms: Sequence[str],
    start: str = "start",
    against: Literal["tokens", "seconds"] = "tokens",
) -> None:
    """Plot pass@1 during and after training against sampled tokens or seconds."""
    unit = 1e3 if against == "tokens" else 1.0
    for name in arms:
        if name not in results.arms:
            continue
        curves = results.eval_curves(name, start)
        points = range(min(map(len, curves)))
        x = [[getattr(point, against) / unit for point in curve] for curve in curves]
        mean_x = [fmean(row[i] for row in x) for i in points]
        (line,) = axes.plot(
            mean_x, [fmean(curve[i].value for curve in curves) for i in points], linewidth=2, label=name
        )
        for row, curve in zip(x, curves, strict=True):
            axes.plot(row, [point.value for point in curve], color=line.get_color(), linewidth=0.5)
    axes.set(xlabel="thousand tokens sampled" if against == "tokens" else "seconds", ylabel="pass@1", ylim=(0, 1))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)


def plot_metric(axes: Axes, results: Results, arms: Sequence[str], metric: str, label: str) -> None:
    """Plot a training metric against steps."""
    for name in arms:
        if name not in results.arms:
            continue
        curves = results.curves(name, metric)
        points = min(map(len, curves))
        (line,) = axes.plot([fmean(curve[i] for curve in curves) for i in range(points)], linewidth=2, label=name)
        for curve in curves:
            axes.plot(curve, color=line.get_color(), linewidth=0.4)
    axes.set(xlabel="step", ylabel=label)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)


def plot_bars(
    axes: Axes, results: Results, arms: Sequence[str], metric: str = "pass_at_1", measure: str = "eval"
) -> None:
    """Plot a metric of each arm as a bar (the mean over seeds), with a dot for each seed."""
    shown = [name for name in arms if name in results.arms]
    axes.bar(shown, [results.mean(name, metric, measure) for name in shown], color="0.8")
    for at, name in enumerate(shown):
        values = results.by_seed(name, metric, measure)
        axes.plot([at] * len(values), values, "k.", markersize=5)
    axes.set(ylabel=metric.replace("pass_at_", "pass@").replace("_", " "))
    axes.set_xticks(range(len(shown)), shown, rotation=45, ha="right", rotation_mode="anchor")
    axes.grid(alpha=0.3, axis="y")
