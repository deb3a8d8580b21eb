"""What a claim came to, as a file for machines, a page for people, a figure, and a line in the table of all."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from schoolhouse.claims.harness.claim import Arm, Check, Claim, Json, Results, Scale, Step, verdict
from schoolhouse.claims.harness.runner import find, known, name_of
from schoolhouse.config import BaseConfig
from schoolhouse.runs.atomic_io import atomic_write, read_json, to_json
from schoolhouse.runs.manifest import environment
from schoolhouse.runs.progress import duration
from schoolhouse.types import SchoolError

_STEP = re.compile(r"[a-z_]+-[0-9a-f]{16}")


def write(claim: Claim, results: Results, scale: Scale, folder: Path) -> Json:
    """Judge, and write ID.json, ID.md and ID.png in `folder`, and its README.md anew; gives what the file holds.

    At other scales than tiny they are ID_SCALE.json and so on: both stand side by side.
    """
    arms = claim.arms(scale, 0)
    checks = list(claim.judge(results))
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
        "arms": {name: _arm(arms[name], results, name) for name in results.arms},
        "design": _design({name: arms[name] for name in results.arms}),
        "machine": environment(),
        "seconds": round(sum(_seconds(claim, scale, results).values()), 1),
    }
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(folder / f"{stem(record)}.json", to_json(record, 2) + "\n")
    _figure(claim, results, folder / f"{stem(record)}.png")
    write_pages(folder)
    return record


def _seconds(claim: Claim, scale: Scale, results: Results) -> dict[str, float]:
    """What each step of an arm took: one that several seeds or arms share is one."""
    steps = {(name, seed): arm.step for seed in results.seeds for name, arm in claim.arms(scale, seed).items()}
    return {
        str(step if isinstance(step, Path) else name_of(step)): results.arms[name][seed].seconds
        for (name, seed), step in steps.items()
        if name in results.arms
    }


def stem(record: Json) -> str:
    """What its files are called: ID, or ID_SCALE."""
    return record["claim"] if record["scale"] == "tiny" else f"{record['claim']}_{record['scale']}"


SEEDS = 3
"""What a verdict is asked to rest on."""


def told_verdict(record: Json) -> str:
    """PASS, FAIL or INVALID, and of how many seeds where these are too few to count."""
    count = len(record["seeds"])
    return record["verdict"] + (f" ({count} of {SEEDS} seeds)" if count < SEEDS else "")


def guard(claim: Claim, seeds: int, scale: Scale, folder: Path) -> None:
    """Raises SchoolError where a verdict of more seeds would be overwritten."""
    path = folder / f"{stem({'claim': claim.id, 'scale': scale})}.json"
    there = len(read_json(path)["seeds"]) if path.exists() else 0
    if there > seeds:
        told = f"{path} holds a verdict of {there} seeds, which {seeds} would overwrite"
        raise SchoolError(f"{told}: give --seeds {there}, or another folder with --results")


LEFT_OUT = ("records", "asked", "ease", "right")
"""What a measure holds of each problem: it stays in the folder where the claim was run."""


def _arm(arm: Arm, results: Results, name: str) -> Json:
    return {
        "about": arm.about,
        **({"recipe": arm.step.recipe, "config": _plain(arm.step.config)} if isinstance(arm.step, Step) else {}),
        "by_seed": {
            str(seed): {
                "measured": {
                    measure: {key: value for key, value in found.items() if key not in LEFT_OUT}
                    for measure, found in outcome.measured.items()
                },
                "sampled_tokens": outcome.tokens,
                "seconds": outcome.seconds,
            }
            for seed, outcome in sorted(results.arms[name].items())
        },
    }


def _plain(value: Any) -> Any:
    if isinstance(value, Step):
        return name_of(value)
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    return value


def _design(arms: Mapping[str, Arm]) -> str:
    """A digest of how arms are trained and measured, as it is written in the claim: defaults are not part of it."""

    def whole(value: Any) -> Any:
        if isinstance(value, Step):
            return [value.recipe, whole(value.config), str(value.tokens), str(value.seconds), value.made_from]
        if isinstance(value, Mapping):
            return {key: whole(inner) for key, inner in value.items()}
        if isinstance(value, BaseConfig):
            return [type(value).__name__, value.model_dump(mode="json", exclude_unset=True)]
        return str(value) if isinstance(value, Path) else value

    told = {name: [whole(arm.step), whole(arm.measures), whole(arm.beside)] for name, arm in arms.items()}
    return hashlib.blake2b(to_json(told).encode(), digest_size=8).hexdigest()


def _figure(claim: Claim, results: Results, path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    picture = Figure(figsize=(12, 4.5), layout="constrained")
    claim.draw(results, picture)
    FigureCanvasAgg(picture).print_png(path)


def page(record: Json, notes: Sequence[str]) -> str:
    """The page of a claim, from its results."""
    name, checks = record["claim"], [Check(**check) for check in record["checks"]]
    title, machine = stem(record), record["machine"].get("gpu") or f"{record['machine']['cores']} cores"
    lines = [
        f"# {title}: {told_verdict(record)}",
        "",
        f"{record['sentence']} ({record['paper']})",
        "",
        f"`school claim run {name} --seeds {len(record['seeds'])} --scale {record['scale']}` · {record['budget']} · "
        f"{duration(record['seconds'])} of training in all, on {machine}.",
        "",
        f"- Premise: {record['premise']}",
        f"- Rule: {record['rule']}",
        "",
        f"![{title}]({title}.png)",
        "",
        "| | asked | found | |",
        "|---|---|---|---|",
        *(f"| {c.kind} | {c.text} | {c.found} | {_mark(c)} |" for c in checks),
        "",
        *_exam_table(record),
        *notes,
    ]
    return "\n".join(lines).rstrip() + "\n"


def redesigned(record: Json, claim: Claim) -> list[str]:
    """What a claim asks otherwise today than when it was counted: texts, and what its arms are trained with."""
    today = {"premise": claim.premise, "rule": claim.rule, "budget": claim.budget_at(record["scale"])}
    changed = [name for name, text in today.items() if record[name] != text]
    try:
        arms = claim.arms(record["scale"], 0)
    except SchoolError:  # it needs a file that is not here
        return changed
    if "design" in record:
        same = [*record["arms"]] == [*arms] and record["design"] == _design(arms)
        return changed + ([] if same else ["arms"])
    then = {name: _masked(arm.get("config", {})) for name, arm in record["arms"].items()}
    now = {name: _masked(_plain(arm.step.config) if isinstance(arm.step, Step) else {}) for name, arm in arms.items()}
    return changed + (["arms"] if json.loads(to_json(now)) != then else [])


def _masked(config: Json) -> Json:
    """Without the names of steps, which change with every default."""
    return {
        key: _masked(value) if isinstance(value, Mapping) else "a step" if _STEP.fullmatch(str(value)) else value
        for key, value in config.items()
    }


def _mark(check: Check) -> str:
    return "" if check.kind == "reported" else "holds" if check.holds else "DOES NOT HOLD"


def _exam_table(record: Json) -> list[str]:
    """Arms that sat the exam, their metrics as means over seeds."""
    rows = []
    for name, arm in record["arms"].items():
        exams = [seed["measured"]["exam"]["overall"] for seed in arm["by_seed"].values() if "exam" in seed["measured"]]
        if exams:
            shares = " ".join(f"{exam['pass_at_1']:.3f}" for exam in exams)
            cells = [f"{_mean(exams, 'thought_tokens'):.1f}", f"{_mean(exams, 'entropy'):.2f}"]
            tokens = sum(seed["sampled_tokens"] for seed in arm["by_seed"].values()) / len(exams)
            rows.append(f"| {name} | {arm['about']} | {shares} | {' | '.join(cells)} | {tokens / 1e3:,.0f} |")
    if not rows:
        return []
    return [
        "| arm | | pass@1 by seed | thought tokens | entropy | thousand tokens sampled in training |",
        "|---|---|---|---|---|---|",
        *rows,
        "",
    ]


def _mean(exams: Sequence[Json], metric: str) -> float:
    values = [exam[metric] for exam in exams if exam[metric] is not None]
    return sum(values) / len(values) if values else float("nan")


def write_pages(folder: Path) -> None:
    """The page of each claim whose results lie in the folder, and README.md, the table of all."""
    records = [read_json(path) for path in sorted(folder.glob("*.json"))]
    earlier = {}
    for record in records:
        claim = find(record["claim"]) if record["claim"] in known() else None
        earlier[stem(record)] = changed = redesigned(record, claim) if claim else []
        since = (
            f"**Counted in an earlier design** ({', '.join(changed)} changed since): the command runs today's, which "
        )
        told = [since + "has not been counted.", ""] if changed else []
        atomic_write(
            folder / f"{stem(record)}.md",
            page(record, [*told, *(claim.notes_at(record["scale"]) if claim else ())]),
        )
    lines = [
        "# Claims",
        "",
        "A published effect, the arms that show it, the ablations that must fail, and a verdict by a rule that was "
        "written before the counted run. INVALID: the premise was broken, so nothing is shown either way.",
        "",
        "On the pages a `premise` is what has to be so, or nothing is shown; what `must hold` is the effect; what "
        "`must fail` is an ablation or a control that must not show it, and it *holds* where that did fail; "
        "`reported` is not judged. PASS: every line holds. Designs were piloted with seed 0, which is counted too, "
        "and some were counted more than once with the same seeds: the notes of a page say so, and what was fixed. "
        "Intervals are over problems, not over seeds, whose values stand beside them.",
        "",
        "Minutes are the sum over the arms and seeds of a page, however many ran side by side, with the exams in their "
        "course, without the last ones and without what starts are made from.",
        "",
        "| claim | what is claimed | seeds | minutes | verdict |",
        "|---|---|---|---|---|",
        *(
            f"| [{stem(r)}]({stem(r)}.md) | {r['sentence']} ({r['paper']}) | {len(r['seeds'])} "
            f"| {r['seconds'] / 60:.0f} | {told_verdict(r)}"
            f"{' (an earlier design)' if earlier[stem(r)] else ''} |"
            for r in records
        ),
        "",
        "Each page holds its numbers, figure and command; `school claim list` names those not run here too. "
        "What was tried on the way, and what failed, is in [the lab notebook](../lab.md).",
        "",
    ]
    atomic_write(folder / "README.md", "\n".join(lines))
