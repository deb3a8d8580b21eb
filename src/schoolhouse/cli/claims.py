"""`school claim` tests effects that papers report. `school compare` compares recipes on a task that the user names."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast, get_args

from pydantic import Field

from schoolhouse.cli.options import parse_options
from schoolhouse.config import BaseConfig, suggest
from schoolhouse.types import SchoolError

if TYPE_CHECKING:
    from schoolhouse.claims.harness.claim import Scale

_USAGE = """usage: school claim list
       school claim run NAME [--seeds 3] [--scale tiny|small|gpu] [--arms a,b] [--dir FOLDER] [--results FOLDER]
       school claim report [--results FOLDER]"""


class RunClaim(BaseConfig):
    name: str
    """Name of the claim. `school claim list` shows all names."""
    seeds: int = Field(3, gt=0)
    """Number of seeds (0, 1, ...). Every arm is trained with each seed."""
    scale: str = "tiny"
    """tiny: takes minutes on two cores; small and gpu: only some claims have these scales."""
    arms: str = ""
    """Run only these arms, joined by commas, and print their numbers without a verdict."""
    jobs: int = Field(1, gt=0)
    """Seeds that run in parallel, each in its own process. For small models this is faster than more threads."""
    dir: Path = Path("runs/claims")
    """Folder of the runs. Finished runs in this folder are reused, also by other claims."""
    results: Path = Path("runs/claims/results")
    """Folder for ID.json, ID.md, ID.png (ID_SCALE for other scales than tiny) and the table of all claims."""


class Report(BaseConfig):
    results: Path = Path("runs/claims/results")
    """Folder of the results."""


def claim(args: Sequence[str]) -> None:
    """Run one of the commands `school claim list`, `school claim run NAME` and `school claim report`."""
    subcommand, rest = (args[0], list(args[1:])) if args else ("--help", [])
    if subcommand == "list":
        _list()
    elif subcommand == "run":
        _run(rest)
    elif subcommand == "report":
        c = parse_options(Report, rest, "school claim report [--results FOLDER]", ())
        if c is not None:
            from schoolhouse.claims.harness.page import write_pages

            if not any(c.results.glob("*.json")):
                raise SchoolError(f"no results in {c.results}: run `school claim run NAME --results {c.results}` first")
            write_pages(c.results)
            print((c.results / "README.md").read_text(encoding="utf-8"))
    elif subcommand in ("-h", "--help"):
        print(_USAGE)
    else:
        from schoolhouse.claims.harness.runner import load_claim

        name = load_claim(subcommand).id
        raise SchoolError(f"unknown subcommand `{subcommand}`; did you mean `school claim run {name}`?\n{_USAGE}")


def _list() -> None:
    from schoolhouse.claims.harness.runner import claim_names, load_claim

    for name in claim_names():
        listed = load_claim(name)
        try:
            arms = f"arms: {', '.join(listed.arms('tiny', 0))}"
        except SchoolError as error:  # such as a missing data file
            arms = str(error)
        print(f"{name}: {listed.sentence} ({listed.paper})\n    {arms}")


def _numbers(overall: Mapping[str, object]) -> str:
    """Return pass@1 as text if pass@1 was measured. Otherwise return all numbers as text."""
    chosen = {"pass_at_1": overall["pass_at_1"]} if "pass_at_1" in overall else overall
    return ", ".join(f"{name} {value:.3f}" for name, value in chosen.items() if isinstance(value, int | float))


def _run(args: Sequence[str]) -> None:
    c = parse_options(RunClaim, args, "school claim run NAME [--seeds 3] [--scale tiny] [--arms a,b]", ("name",))
    if c is None:
        return
    from schoolhouse.claims.harness.page import check_overwrite, file_stem, verdict_label, write_record
    from schoolhouse.claims.harness.runner import load_claim, run_arms
    from schoolhouse.policy.policy import pick_device

    claim, scale = load_claim(c.name), _scale(c.scale)
    claim.arms(scale, 0)  # before the first print: raises if the claim does not have this scale
    chosen = [arm for arm in c.arms.split(",") if arm]
    if not chosen:
        check_overwrite(claim, c.seeds, scale, c.results)
    if scale == "gpu" and pick_device().type == "cpu":
        print("school: no GPU was found; large models will be trained on the CPU", file=sys.stderr)
    results = run_arms(claim, c.seeds, scale, c.dir, chosen, c.jobs)
    if chosen:
        for name, outcomes in results.arms.items():
            for seed, outcome in outcomes.items():
                numbers = "; ".join(
                    f"{measure}: {_numbers(result.get('overall', {}))}" for measure, result in outcome.measured.items()
                )
                cost = f"{outcome.sampled_tokens:,} tokens sampled, {outcome.seconds:.0f} s"
                print(f"{name}, seed {seed}: {numbers}; {cost}")
        return
    record = write_record(claim, results, scale, c.results)
    print((c.results / f"{file_stem(record)}.md").read_text(encoding="utf-8"))
    print(f"{file_stem(record)}: {verdict_label(record)}")


def _scale(name: str) -> Scale:
    from schoolhouse.claims.harness.claim import Scale  # imports torch; imported here to keep `--help` fast

    if name not in get_args(Scale):
        raise SchoolError(f"unknown scale `{name}`{suggest(name, get_args(Scale))}")
    return cast("Scale", name)


class Compare(BaseConfig):
    recipes: str
    """Recipes and presets, joined by commas:
    grpo, dr_grpo, dapo, rloo, reinforce_pp, gspo, cispo, lite_ppo, reinforce, default, star."""
    model: Path
    """Folder of a model, or of a run. All arms start from this model."""
    task: str = "school"
    """school[:families], gym:NAME, jsonl:PATH, python:PATH.py[:name]."""
    budget: str = "10m"
    """Budget of each arm and seed: a time (90s, 20m, 1h), or a number of sampled tokens (500k, 2M)."""
    seeds: int = Field(3, gt=0)
    max_new_tokens: int = Field(128, gt=0)
    """Limit of the tokens of a completion."""
    problems: int = Field(200, gt=0)
    """Held-out problems of the evaluation."""
    samples: int = Field(8, gt=0)
    """Completions for each held-out problem."""
    dir: Path = Path("runs/compare")


def compare(args: Sequence[str]) -> None:
    """Run the command `school compare --recipes a,b --model MODEL --task TASK --budget 20m`."""
    c = parse_options(Compare, args, "school compare --recipes grpo,rloo --model MODEL --task TASK --budget 20m", ())
    if c is None:
        return
    from schoolhouse.claims.harness import comparison
    from schoolhouse.claims.harness.claim import Evaluation, Outcome, Results
    from schoolhouse.claims.harness.runner import run_arm

    evaluation = Evaluation(task=c.task, problems=c.problems, samples=c.samples, max_new_tokens=c.max_new_tokens)
    names = [name for name in c.recipes.split(",") if name]
    outcomes: dict[str, dict[int, Outcome]] = {}
    planned = {seed: comparison.arms(names, c.model, evaluation, c.budget, seed) for seed in range(c.seeds)}
    for seed, arms in planned.items():
        for name, arm in arms.items():
            print(f"seed {seed}: {name}")
            outcomes.setdefault(name, {})[seed] = run_arm(arm, seed, c.dir.resolve())
    print(comparison.write(Results(outcomes), evaluation, c.budget, c.dir))
