"""The results of a claim: a JSON file, a page, a figure, and a row in the table of all claims."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from schoolhouse.claims.harness.claim import Arm, Check, Claim, Json, Results, Scale, Step, verdict
from schoolhouse.claims.harness.runner import claim_names, load_claim, step_name
from schoolhouse.config import BaseConfig
from schoolhouse.runs.atomic_io import atomic_write, read_json, to_json
from schoolhouse.runs.manifest import environment
from schoolhouse.runs.progress import duration
from schoolhouse.types import SchoolError

MIN_SEEDS = 3
"""Seeds that a verdict needs; one with fewer shows how many it has."""

PER_PROBLEM_KEYS = ("records", "inputs", "ease", "correct")
"""Parts of a measurement that are left out of the JSON file: they stay in the folder where the claim was run."""


def write_record(claim: Claim, results: Results, scale: Scale, folder: Path) -> Json:
    """Check the results and write ID.json, ID.md, ID.png and README.md in `folder`; gives the content of ID.json.

    At other scales than tiny the files are ID_SCALE.json and so on, beside those of tiny.
    """
    arms = claim.arms(scale, 0)
    checks = list(claim.check(results))
    record: Json = {
        "claim": claim.id,
        "verdict": verdict(checks),
        "paper": claim.paper,
        "sentence": claim.sentence,
        "scale": scale,
        "seeds": results.seeds,
        "budget": claim.budget_at(scale),
        "premise": claim.premise,
        "rule": claim.rule,
        "checks": [asdict(check) for check in checks],
        "arms": {name: _arm_to_json(arms[name], results, name) for name in results.arms},
        "design": design_digest({name: arms[name] for name in results.arms}),
        "machine": environment(),
        "seconds": round(sum(_seconds_by_step(claim, scale, results).values()), 1),
    }
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(folder / f"{file_stem(record)}.json", to_json(record, 2) + "\n")
    write_figure(claim, results, folder / f"{file_stem(record)}.png")
    write_pages(folder)
    return record


def _seconds_by_step(claim: Claim, scale: Scale, results: Results) -> dict[str, float]:
    """Seconds of each step of an arm. A step that several seeds or arms share counts once."""
    steps = {(name, seed): arm.step for seed in results.seeds for name, arm in claim.arms(scale, seed).items()}
    return {
        str(step if isinstance(step, Path) else step_name(step)): results.arms[name][seed].seconds
        for (name, seed), step in steps.items()
        if name in results.arms
    }


def file_stem(record: Json) -> str:
    """The name of its files, without the ending: ID, or ID_SCALE."""
    return record["claim"] if record["scale"] == "tiny" else f"{record['claim']}_{record['scale']}"


def verdict_label(record: Json) -> str:
    """PASS, FAIL or INVALID; and the number of seeds, where it is below MIN_SEEDS."""
    count = len(record["seeds"])
    return record["verdict"] + (f" ({count} of {MIN_SEEDS} seeds)" if count < MIN_SEEDS else "")


def check_overwrite(claim: Claim, seeds: int, scale: Scale, folder: Path) -> None:
    """Raises SchoolError where a verdict of more seeds would be overwritten."""
    path = folder / f"{file_stem({'claim': claim.id, 'scale': scale})}.json"
    stored = len(read_json(path)["seeds"]) if path.exists() else 0
    if stored > seeds:
        raise SchoolError(
            f"{path} holds a verdict of {stored} seeds, which {seeds} would overwrite: give --seeds {stored}, or "
            "another folder with --results"
        )


def _arm_to_json(arm: Arm, results: Results, name: str) -> Json:
    return {
        "about": arm.about,
        **({"recipe": arm.step.recipe, "config": plain_config(arm.step.config)} if isinstance(arm.step, Step) else {}),
        "by_seed": {
            str(seed): {
                "measured": {
                    measure: {key: value for key, value in result.items() if key not in PER_PROBLEM_KEYS}
                    for measure, result in outcome.measured.items()
                },
                "sampled_tokens": outcome.sampled_tokens,
                "seconds": outcome.seconds,
            }
            for seed, outcome in sorted(results.arms[name].items())
        },
    }


def plain_config(value: Any) -> Any:
    """A config with the names of steps in the place of steps."""
    if isinstance(value, Step):
        return step_name(value)
    if isinstance(value, Mapping):
        return {key: plain_config(inner) for key, inner in value.items()}
    return value


def design_digest(arms: Mapping[str, Arm]) -> str:
    """A digest of how arms are trained and measured, as the claim writes it: default values are not part of it."""

    def plain(value: Any) -> Any:
        if isinstance(value, Step):
            limits = [str(value.max_tokens), str(value.max_seconds), value.content_digest]
            return [value.recipe, plain(value.config), *limits]
        if isinstance(value, Mapping):
            return {key: plain(inner) for key, inner in value.items()}
        if isinstance(value, BaseConfig):
            return [type(value).__name__, value.model_dump(mode="json", exclude_unset=True)]
        return str(value) if isinstance(value, Path) else value

    design = {name: [plain(arm.step), plain(arm.measures), plain(arm.judged_models)] for name, arm in arms.items()}
    return hashlib.blake2b(to_json(design).encode(), digest_size=8).hexdigest()


def write_figure(claim: Claim, results: Results, path: Path) -> None:
    """Draw the figure of a claim."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    picture = Figure(figsize=(12, 4.5), layout="constrained")
    claim.draw(results, picture)
    FigureCanvasAgg(picture).print_png(path)


def render_page(record: Json, claim: Claim | None) -> str:
    """The page of a claim: claim, rule, result, figure, what did not hold, notes."""
    checks = [Check(**check) for check in record["checks"]]
    title, machine = file_stem(record), record["machine"].get("gpu") or f"{record['machine']['cores']} cores"
    command = f"school claim run {record['claim']} --seeds {len(record['seeds'])} --scale {record['scale']}"
    notes = claim.notes_at(record["scale"]) if claim else ()
    lines = [
        f"# {title}: {verdict_label(record)}",
        "",
        f"- Claim: {record['sentence']} ({record['paper']})",
        f"- Rule: {record['rule']}",
        f"- Premise: {record['premise']}",
        f"- Budget: {record['budget']}",
        f"- Run: `{command}`, {duration(record['seconds'])} of training in all, on {machine}",
        "",
        *_design_note(record, claim),
        "## Result",
        "",
        f"![{title}]({title}.png)",
        "",
        *([record["figure_note"], ""] if "figure_note" in record else []),
        "| | check | found | |",
        "|---|---|---|---|",
        *(f"| {c.kind} | {c.text} | {c.found} | {_mark(c)} |" for c in checks),
        "",
        *_eval_table(record),
        "## What did not hold",
        "",
        *_failures(record, checks, claim),
        "",
        *(["## Notes", "", *notes] if notes else []),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _failures(record: Json, checks: Sequence[Check], claim: Claim | None) -> Sequence[str]:
    """The claim's explanation of the lines that fail; without one, how to find them."""
    if all(check.holds for check in checks if check.kind != "reported"):
        return ["Every line passes."]
    return (claim.failures_at(record["scale"]) if claim else ()) or ["The lines that are marked FAILS."]


def _design_note(record: Json, claim: Claim | None) -> list[str]:
    changed = design_changes(record, claim) if claim else []
    if not changed:
        return []
    return [
        f"**Counted in an earlier design** ({', '.join(changed)} changed since): the command runs today's, which has "
        "not been counted.",
        "",
    ]


def design_changes(record: Json, claim: Claim) -> list[str]:
    """Parts of a claim that differ from its counted record: premise, rule, budget, or the training of its arms."""
    today = {"premise": claim.premise, "rule": claim.rule, "budget": claim.budget_at(record["scale"])}
    changed = [name for name, text in today.items() if record[name] != text]
    try:
        arms = claim.arms(record["scale"], 0)
    except SchoolError:  # such as a missing data file
        return changed
    same = [*record["arms"]] == [*arms] and record["design"] == design_digest(arms)
    return changed + ([] if same else ["arms"])


def _mark(check: Check) -> str:
    return "" if check.kind == "reported" else "passes" if check.holds else "FAILS"


def _eval_table(record: Json) -> list[str]:
    """Arms with an evaluation: pass@1 for each seed, other metrics as means over seeds."""
    rows = []
    for name, arm in record["arms"].items():
        evals = [seed["measured"]["eval"]["overall"] for seed in arm["by_seed"].values() if "eval" in seed["measured"]]
        if evals:
            accuracies = " ".join(f"{metrics['pass_at_1']:.3f}" for metrics in evals)
            cells = [f"{_mean(evals, 'thought_tokens'):.1f}", f"{_mean(evals, 'entropy'):.2f}"]
            tokens = sum(seed["sampled_tokens"] for seed in arm["by_seed"].values()) / len(evals)
            rows.append(f"| {name} | {arm['about']} | {accuracies} | {' | '.join(cells)} | {tokens / 1e3:,.0f} |")
    if not rows:
        return []
    return [
        "| arm | | pass@1 by seed | thought tokens | entropy | thousand tokens sampled in training |",
        "|---|---|---|---|---|---|",
        *rows,
        "",
    ]


def _mean(evals: Sequence[Json], metric: str) -> float:
    values = [metrics[metric] for metrics in evals if metrics[metric] is not None]
    return sum(values) / len(values) if values else float("nan")


def write_pages(folder: Path) -> None:
    """Write the page of each claim with results in the folder, and README.md, the table of all."""
    rows = []
    for path in sorted(folder.glob("*.json")):
        record = read_json(path)
        claim, name = load_claim(record["claim"]) if record["claim"] in claim_names() else None, file_stem(record)
        atomic_write(folder / f"{name}.md", render_page(record, claim))
        design = " (an earlier design)" if _design_note(record, claim) else ""
        rows.append(
            f"| [{name}]({name}.md) | {record['sentence']} ({record['paper']}) | {len(record['seeds'])} "
            f"| {record['seconds'] / 60:.0f} | {verdict_label(record)}{design} |"
        )
    lines = [
        "# Claims",
        "",
        "A claim is a published effect, put to the test: arms that show it, ablations that must not, and a verdict by "
        "a rule that was written before the counted run.",
        "",
        "- `premise`: a condition of the test. Where it is broken the verdict is INVALID: nothing is shown either way.",
        "- `must hold`: the effect.",
        "- `must fail`: an ablation or a control. The line passes when it shows no effect.",
        "- `reported`: numbers that the verdict does not depend on.",
        "",
        "PASS: every line passes. Designs were piloted with seed 0, which is counted too. Some were counted more than "
        "once with the same seeds: the notes of a page name each count, and what was changed. Intervals are over "
        "problems, not over seeds: the numbers of each seed stand beside them. The words of these pages were revised "
        "after the counts; rules, thresholds and numbers were not.",
        "",
        "Minutes are the sum over the arms and seeds of a page, also where they ran in parallel. They include the "
        "evaluations in training, but neither the final ones nor the training of the models that arms start from.",
        "",
        "| claim | what is claimed | seeds | minutes | verdict |",
        "|---|---|---|---|---|",
        *rows,
        "",
        "Each page holds its numbers, figure and command. `school claim list` also names claims without results here. "
        "[The lab notebook](../lab.md) has all other experiments, including those that failed.",
        "",
    ]
    atomic_write(folder / "README.md", "\n".join(lines))
