"""Write the results of a claim: a JSON file, a page, a figure, and a row in the table of all claims."""

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
"""The number of seeds that a verdict needs. A verdict with fewer seeds shows the number of its seeds."""

PER_PROBLEM_KEYS = ("records", "inputs", "ease", "correct")
"""The keys of a measurement that the JSON file omits. Their values stay in the folder where the claim was run."""


def write_record(claim: Claim, results: Results, scale: Scale, folder: Path) -> Json:
    """Check the results and write ID.json, ID.md, ID.png and README.md in `folder`. Returns the content of ID.json.

    At scales other than tiny, the files have names such as ID_SCALE.json in the same folder.
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
    """The seconds of each step of an arm. If several seeds or arms share a step, the step counts once."""
    steps = {(name, seed): arm.step for seed in results.seeds for name, arm in claim.arms(scale, seed).items()}
    return {
        str(step if isinstance(step, Path) else step_name(step)): results.arms[name][seed].seconds
        for (name, seed), step in steps.items()
        if name in results.arms
    }


def file_stem(record: Json) -> str:
    """The name of a claim's files without the ending, such as ID (scale tiny) or ID_SCALE (other scales)."""
    return record["claim"] if record["scale"] == "tiny" else f"{record['claim']}_{record['scale']}"


def verdict_label(record: Json) -> str:
    """The verdict PASS, FAIL or INVALID. The text also has the number of seeds if there are fewer than MIN_SEEDS
    seeds."""
    count = len(record["seeds"])
    return record["verdict"] + (f" ({count} of {MIN_SEEDS} seeds)" if count < MIN_SEEDS else "")


def check_overwrite(claim: Claim, seeds: int, scale: Scale, folder: Path) -> None:
    """Raise SchoolError if the new results would overwrite a verdict with more seeds."""
    path = folder / f"{file_stem({'claim': claim.id, 'scale': scale})}.json"
    stored = len(read_json(path)["seeds"]) if path.exists() else 0
    if stored > seeds:
        raise SchoolError(
            f"{path} has a verdict with {stored} seeds, and a run with {seeds} would overwrite it; give --seeds "
            f"{stored}, or choose another folder with --results"
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
    """The config, with every step replaced by its name."""
    if isinstance(value, Step):
        return step_name(value)
    if isinstance(value, Mapping):
        return {key: plain_config(inner) for key, inner in value.items()}
    return value


def design_digest(arms: Mapping[str, Arm]) -> str:
    """A digest of how the claim trains and measures its arms. Default values of a config do not change the digest."""

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
    """Draw the figure of a claim and write it to a PNG file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    picture = Figure(figsize=(12, 4.5), layout="constrained")
    claim.draw(results, picture)
    FigureCanvasAgg(picture).print_png(path)


def render_page(record: Json, claim: Claim | None) -> str:
    """The text of a claim's page: the claim, the rule, the result, the figure, failed checks, and notes."""
    checks = [Check(**check) for check in record["checks"]]
    title, machine = file_stem(record), record["machine"].get("gpu") or f"{record['machine']['cores']} cores"
    command = f"school claim run {record['claim']} --seeds {len(record['seeds'])} --scale {record['scale']}"
    notes = claim.notes_at(record["scale"]) if claim else ()
    failures = _failures(record, checks, claim)
    lines = [
        f"# {title}: {verdict_label(record)}",
        "",
        f"Claim: {record['sentence']} ({record['paper']}).",
        "",
        f"Rule: {_end(record['rule'])}",
        "",
        f"Premise: {_end(record['premise'])}",
        "",
        f"Budget: {_end(record['budget'])}",
        "",
        f"The command `{command}` repeats the experiment. Training took {duration(record['seconds'])} in total "
        f"on {machine}.",
        "",
        *_design_note(record, claim),
        "## Result",
        "",
        *([] if failures else ["Every check passes.", ""]),
        f"![{title}]({title}.png)",
        "",
        *([record["figure_note"], ""] if "figure_note" in record else []),
        f"In a row with {len(record['seeds'])} numbers for an arm, the numbers are the results of the seeds "
        f"{', '.join(map(str, record['seeds']))}, in this order."
        + (
            " Two numbers in brackets are a 95 % confidence interval."
            if any("[" in check.found for check in checks)
            else ""
        ),
        "",
        "| kind | check | found | result |",
        "|---|---|---|---|",
        *(f"| {c.kind} | {c.text} | {c.found} | {_mark(c)} |" for c in checks),
        "",
        *_eval_table(record),
        *(["## What did not hold", "", *failures, ""] if failures else []),
        *(["## Notes", "", *notes] if notes else []),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _end(text: str) -> str:
    """The text with a period at its end."""
    return text if text.endswith(".") else f"{text}."


def _failures(record: Json, checks: Sequence[Check], claim: Claim | None) -> Sequence[str]:
    """The claim's explanation of its failed checks. The result is empty if every check passes."""
    if all(check.holds for check in checks if check.kind != "reported"):
        return []
    return (claim.failures_at(record["scale"]) if claim else ()) or ["See the checks that are marked FAILS."]


def _design_note(record: Json, claim: Claim | None) -> list[str]:
    changed = design_changes(record, claim) if claim else []
    if not changed:
        return []
    return [
        f"**These results belong to an earlier design.** Changed since the official run: {', '.join(changed)}. The "
        "command runs the present design, which has no official run.",
        "",
    ]


def design_changes(record: Json, claim: Claim) -> list[str]:
    """The parts of a claim that changed since its official run: premise, rule, budget, or the training of its arms."""
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
    """The table of all arms with an evaluation: pass@1 for each seed, and the means of other metrics over seeds."""
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
        "| arm | training | pass@1 by seed | tokens of a thought | entropy | thousand tokens sampled in training |",
        "|---|---|---|---|---|---|",
        *rows,
        "",
    ]


def _mean(evals: Sequence[Json], metric: str) -> float:
    values = [metrics[metric] for metrics in evals if metrics[metric] is not None]
    return sum(values) / len(values) if values else float("nan")


def write_pages(folder: Path) -> None:
    """Write the page of each claim that has results in the folder, and README.md with the table of all claims."""
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
        "A claim is an experiment that tests a published effect. An arm is one way to train or use a model. Some arms "
        "should show the effect, and ablations should not show the effect. The official run of a claim is the run "
        "whose numbers are on the page. The rule for the verdict was written before the official run.",
        "",
        "A check is one row in the table of a page. There are four kinds of checks.",
        "",
        "A `premise` check is a condition of the test. If a premise does not hold, the verdict is INVALID, and the "
        "test shows nothing.",
        "",
        "A `must hold` check passes if the effect is there.",
        "",
        "A `must fail` check tests an ablation or a control. A `must fail` check passes if the effect is not there.",
        "",
        "A `reported` check only gives numbers. The verdict does not depend on `reported` checks.",
        "",
        "The verdict is PASS if every check passes. Pilot runs used seed 0, which is also a seed of the official runs. "
        "Some claims had several official runs with the same seeds. The notes of a page name each official run and "
        "what was changed for it. Confidence intervals measure the variation between problems, not between seeds, so "
        "each page also shows the numbers of every seed. The words of the claim pages were revised after the official "
        "runs. The thresholds, the numbers and the meaning of the rules were not changed.",
        "",
        "The column `minutes` is the sum of the training times of all arms and seeds of a page, even if several arms "
        "ran in parallel. The minutes include the evaluations during training. The minutes do not include the final "
        "evaluations or the training of the start models.",
        "",
        "| claim | what is claimed | seeds | minutes | verdict |",
        "|---|---|---|---|---|",
        *rows,
        "",
        "Each page shows the numbers, the figure and the command of its claim. The command `school claim list` also "
        "lists claims that have no results in this folder. [The lab notebook](../lab.md) describes all other "
        "experiments, including failed experiments.",
        "",
    ]
    atomic_write(folder / "README.md", "\n".join(lines))
