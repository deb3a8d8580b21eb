"""A user's own comparison: recipes on one task from one model with one budget, several seeds each."""

from __future__ import annotations

import re
from collections.abc import Sequence
from math import inf
from pathlib import Path

from schoolhouse.algorithms.settings import PRESETS
from schoolhouse.claims.harness.claim import Arm, Evaluation, Json, Results, Step, told
from schoolhouse.claims.harness.figures import learning
from schoolhouse.claims.harness.runner import fingerprint
from schoolhouse.config import suggest
from schoolhouse.runs.atomic_io import atomic_write, resolve_model, to_json
from schoolhouse.runs.progress import duration
from schoolhouse.types import SchoolError

_ENDLESS = 100_000  # steps: the budget ends a run
_BUDGET = re.compile(r"(\d+(?:\.\d+)?)\s*(s|m|h|k|M)")


def budget(text: str) -> tuple[float, float]:
    """(tokens, seconds) of `90s`, `20m`, `1h`, or of `500k`, `2M` tokens. Raises SchoolError for anything else."""
    found = _BUDGET.fullmatch(text)
    if not found or not float(found[1]):
        raise SchoolError(f"budget `{text}`: write a time such as 90s, 20m, 1h, or tokens to sample such as 500k, 2M")
    amount, unit = float(found[1]), found[2]
    if unit in "kM":
        return amount * {"k": 1e3, "M": 1e6}[unit], inf
    return inf, amount * {"s": 1, "m": 60, "h": 3600}[unit]


def arms(names: Sequence[str], model: Path, exam: Evaluation, limit: str, seed: int) -> dict[str, Arm]:
    """`start`, the model as it is, and an arm for each relative of GRPO or `star`. Raises SchoolError for others."""
    if not resolve_model(model).is_dir():
        raise SchoolError(f"{model} is not a folder; a model is a local folder in Hugging Face format")
    tokens, seconds = budget(limit)
    made = {"start": Arm(model, {"exam": exam}, "as it is")}
    common = {"model": str(model), "task": exam.task, "seed": seed, "sampling.max_new_tokens": exam.max_new_tokens}
    for name in names:
        if name not in (*PRESETS, "star"):
            raise SchoolError(f"there is no recipe `{name}` to compare{suggest(name, [*PRESETS, 'star'])}")
        if name == "star":
            recipe, config = "star", {**common, "loops": _ENDLESS, "examples": 0, "growth": 1.0}
        else:
            recipe, config = "grpo", {**common, "preset": name, "steps": _ENDLESS, "eval.every": 10}
        made[name] = Arm(Step(recipe, config, tokens, seconds, fingerprint(model)), {"exam": exam}, recipe)
    return made


def write(results: Results, exam: Evaluation, limit: str, folder: Path) -> str:
    """compare.json, compare.md and compare.png in `folder`; gives the page."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = [name for name in results.arms if name != "start"]
    rows: list[Json] = []
    for name in results.arms:
        whole, outcomes = results.interval(name), results.arms[name]
        rows.append(
            {
                "arm": name,
                "pass_at_1": whole.value,
                "interval": [whole.low, whole.high],
                "by_seed": results.each(name),
                "gain": None if name == "start" else list(results.difference("start", name)),
                "tokens": sum(o.tokens for o in outcomes.values()) // len(outcomes),
                "seconds": sum(o.seconds for o in outcomes.values()) / len(outcomes),
            }
        )
    picture = Figure(figsize=(12, 4.5), layout="constrained")
    left, right = picture.subplots(1, 2)
    learning(left, results, names)
    learning(right, results, names, against="seconds")
    folder.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(picture).print_png(folder / "compare.png")
    atomic_write(
        folder / "compare.json", to_json({"exam": exam.model_dump(mode="json"), "budget": limit, "arms": rows}, 2)
    )
    text = _page(rows, exam, limit, len(results.seeds))
    atomic_write(folder / "compare.md", text)
    return text


def _page(rows: Sequence[Json], exam: Evaluation, limit: str, seeds: int) -> str:
    lines = [
        "# Comparison",
        "",
        f"{exam.task}: {exam.problems} held-out problems, {exam.samples} answers each; {seeds} seeds; budget {limit} "
        "each (exams aside). Intervals are 95 %, over problems; gains are paired by problem with the model as it was.",
        "",
        "| | pass@1 | gain | by seed | thousand tokens | time |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        low, high = row["interval"]
        gain = "" if row["gain"] is None else "{:+.3f} [{:+.3f}, {:+.3f}]".format(*row["gain"])
        lines.append(
            f"| {row['arm']} | {row['pass_at_1']:.3f} [{low:.3f}, {high:.3f}] | {gain} | {told(row['by_seed'])} "
            f"| {row['tokens'] / 1e3:,.0f} | {duration(row['seconds'])} |"
        )
    return "\n".join([*lines, "", "![accuracy against tokens and against seconds](compare.png)", ""])
