"""`school compare` trains recipes on the same task, from the same model, with the same budget and the same seeds."""

from __future__ import annotations

import re
from collections.abc import Sequence
from math import inf
from pathlib import Path

from schoolhouse.algorithms.settings import PRESETS
from schoolhouse.claims.harness.claim import Arm, Evaluation, Json, Results, Step, format_values
from schoolhouse.claims.harness.figures import plot_accuracy
from schoolhouse.claims.harness.runner import fingerprint
from schoolhouse.config import suggest
from schoolhouse.runs.atomic_io import atomic_write, resolve_model, to_json
from schoolhouse.runs.progress import duration
from schoolhouse.types import SchoolError

_ENDLESS = 100_000  # steps: the budget ends a run
_BUDGET = re.compile(r"(\d+(?:\.\d+)?)\s*(s|m|h|k|M)")


def parse_budget(text: str) -> tuple[float, float]:
    """Parse a time such as `90s`, `20m` or `1h`, or a number of tokens such as `500k` or `2M`.

    Returns (tokens, seconds). If the text gives only one limit, the other limit is infinite. Raises SchoolError if the
    text cannot be parsed.
    """
    match = _BUDGET.fullmatch(text)
    if not match or not float(match[1]):
        raise SchoolError(
            f"the budget `{text}` is not valid; give a time (90s, 20m, 1h) or a number of sampled tokens (500k, 2M)"
        )
    amount, unit = float(match[1]), match[2]
    if unit in "kM":
        return amount * {"k": 1e3, "M": 1e6}[unit], inf
    return inf, amount * {"s": 1, "m": 60, "h": 3600}[unit]


def arms(names: Sequence[str], model: Path, evaluation: Evaluation, budget: str, seed: int) -> dict[str, Arm]:
    """The arm `start` (the model without training) and one arm for each name. A name is a preset of GRPO, or `star`.

    Raises SchoolError for an unknown name.
    """
    if not resolve_model(model).is_dir():
        raise SchoolError(f"the model {model} is not a folder; give a local folder in Hugging Face format")
    max_tokens, max_seconds = parse_budget(budget)
    common = {
        "model": str(model),
        "task": evaluation.task,
        "seed": seed,
        "sampling.max_new_tokens": evaluation.max_new_tokens,
    }
    planned = {"start": Arm(model, {"eval": evaluation}, "without training")}
    for name in names:
        if name not in (*PRESETS, "star"):
            raise SchoolError(f"unknown recipe `{name}`{suggest(name, [*PRESETS, 'star'])}")
        if name == "star":
            recipe, config = "star", {**common, "loops": _ENDLESS, "num_demos": 0, "updates_growth": 1.0}
        else:
            recipe, config = "grpo", {**common, "preset": name, "steps": _ENDLESS, "eval.every": 10}
        step = Step(recipe, config, max_tokens, max_seconds, fingerprint(model))
        planned[name] = Arm(step, {"eval": evaluation}, recipe)
    return planned


def write(results: Results, evaluation: Evaluation, budget: str, folder: Path) -> str:
    """Write compare.json, compare.md and compare.png in `folder`. Returns the text of the page."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = [_row(results, name) for name in results.arms]
    trained = [name for name in results.arms if name != "start"]
    picture = Figure(figsize=(12, 4.5), layout="constrained")
    left, right = picture.subplots(1, 2)
    plot_accuracy(left, results, trained)
    plot_accuracy(right, results, trained, against="seconds")
    folder.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(picture).print_png(folder / "compare.png")
    record = {"eval": evaluation.model_dump(mode="json"), "budget": budget, "arms": rows}
    atomic_write(folder / "compare.json", to_json(record, 2))
    text = _page(rows, evaluation, budget, len(results.seeds))
    atomic_write(folder / "compare.md", text)
    return text


def _row(results: Results, name: str) -> Json:
    accuracy, outcomes = results.interval(name), results.arms[name].values()
    return {
        "arm": name,
        "pass_at_1": accuracy.value,
        "interval": [accuracy.low, accuracy.high],
        "by_seed": results.by_seed(name),
        "gain": None if name == "start" else list(results.difference("start", name)),
        "tokens": sum(outcome.sampled_tokens for outcome in outcomes) // len(outcomes),
        "seconds": sum(outcome.seconds for outcome in outcomes) / len(outcomes),
    }


def _page(rows: Sequence[Json], evaluation: Evaluation, budget: str, seeds: int) -> str:
    lines = [
        "# Comparison",
        "",
        f"The evaluation uses {evaluation.problems} held-out problems of the task {evaluation.task}, with "
        f"{evaluation.samples} answers each. Each recipe has {seeds} seeds and a budget of {budget} per seed, without "
        "the time of evaluations. Two numbers in brackets are a 95 % confidence interval over problems. A gain is "
        "pass@1 of an arm minus pass@1 of the start model, paired by problem.",
        "",
        "| | pass@1 | gain | by seed | thousand tokens | time |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        low, high = row["interval"]
        gain = "" if row["gain"] is None else "{:+.3f} [{:+.3f}, {:+.3f}]".format(*row["gain"])
        lines.append(
            f"| {row['arm']} | {row['pass_at_1']:.3f} [{low:.3f}, {high:.3f}] | {gain} | "
            f"{format_values(row['by_seed'])} | {row['tokens'] / 1e3:,.0f} | {duration(row['seconds'])} |"
        )
    return "\n".join([*lines, "", "![accuracy against tokens and against seconds](compare.png)", ""])
