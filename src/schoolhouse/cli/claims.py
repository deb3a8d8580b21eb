"""`school claim`: published effects put to the test. `school compare`: recipes side by side on a task of your own."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import Field

from schoolhouse.claims.harness.claim import Scale
from schoolhouse.cli.options import parse_options
from schoolhouse.config import BaseConfig
from schoolhouse.types import SchoolError

_USAGE = """usage: school claim list
       school claim run NAME [--seeds 3] [--scale tiny|small|gpu] [--arms a,b] [--dir FOLDER] [--results FOLDER]
       school claim report [--results FOLDER]"""


class RunClaim(BaseConfig):
    name: str
    """Which; `school claim list` names them."""
    seeds: int = Field(3, gt=0)
    """0, 1, ...: every arm is trained anew with each."""
    scale: Scale = "tiny"
    """tiny: minutes on two cores; small, gpu: where a claim has them."""
    arms: str = ""
    """Only these, joined by commas: to look at, without a verdict."""
    jobs: int = Field(1, gt=0)
    """Seeds side by side, each in a process of its own; small models get more done so than with more threads."""
    dir: Path = Path("runs/claims")
    """Folder of the runs; what is done there is not done again, whichever claim it was for."""
    results: Path = Path("runs/claims/results")
    """Folder for ID.json, ID.md, ID.png (ID_SCALE at other scales than tiny) and the table of all."""


class Report(BaseConfig):
    results: Path = Path("runs/claims/results")
    """Folder of the results."""


def claim(words: Sequence[str]) -> None:
    """school claim list | run NAME | report"""
    what, rest = (words[0], list(words[1:])) if words else ("--help", [])
    if what == "list":
        _list()
    elif what == "run":
        _run(rest)
    elif what == "report":
        c = parse_options(Report, rest, "school claim report [--results FOLDER]", ())
        if c is not None:
            from schoolhouse.claims.harness.page import write_pages

            if not any(c.results.glob("*.json")):
                raise SchoolError(f"{c.results} holds no results; `school claim run NAME` makes them")
            write_pages(c.results)
            print((c.results / "README.md").read_text(encoding="utf-8"))
    elif what in ("-h", "--help"):
        print(_USAGE)
    else:
        from schoolhouse.claims.harness.runner import find

        raise SchoolError(f"did you mean `school claim run {find(what).id}`?\n{_USAGE}")


def _list() -> None:
    from schoolhouse.claims.harness.runner import find, known

    for name in known():
        found = find(name)
        try:
            arms = f"arms: {', '.join(found.arms('tiny', 0))}"
        except SchoolError as error:  # it needs a file that is not here, say
            arms = str(error)
        print(f"{name}: {found.sentence} ({found.paper})\n    {arms}")


def _numbers(overall: Mapping[str, object]) -> str:
    """pass@1 where there is one, else all numbers."""
    chosen = {"pass_at_1": overall["pass_at_1"]} if "pass_at_1" in overall else overall
    return ", ".join(f"{name} {value:.3f}" for name, value in chosen.items() if isinstance(value, int | float))


def _run(words: Sequence[str]) -> None:
    c = parse_options(RunClaim, words, "school claim run NAME [--seeds 3] [--scale tiny] [--arms a,b]", ("name",))
    if c is None:
        return
    from schoolhouse.claims.harness.page import guard, stem, told_verdict, write
    from schoolhouse.claims.harness.runner import find, run_arms
    from schoolhouse.policy.policy import pick_device

    found = find(c.name)
    found.arms(c.scale, 0)  # raises where there is no such scale, before anything is said
    chosen = [arm for arm in c.arms.split(",") if arm]
    if not chosen:
        guard(found, c.seeds, c.scale, c.results)
    if c.scale == "gpu" and pick_device().type == "cpu":
        print("school: no GPU was found: large models will be trained on the processor", file=sys.stderr)
    results = run_arms(found, c.seeds, c.scale, c.dir, chosen, c.jobs)
    if chosen:
        for name, outcomes in results.arms.items():
            for seed, outcome in outcomes.items():
                found_ = "; ".join(f"{what}: {_numbers(m.get('overall', {}))}" for what, m in outcome.measured.items())
                print(f"{name}, seed {seed}: {found_}; {outcome.tokens:,} tokens sampled, {outcome.seconds:.0f} s")
        return
    record = write(found, results, c.scale, c.results)
    print((c.results / f"{stem(record)}.md").read_text(encoding="utf-8"))
    print(f"{stem(record)}: {told_verdict(record)}")


class Compare(BaseConfig):
    recipes: str
    """Joined by commas: grpo, dr_grpo, dapo, rloo, reinforce_pp, gspo, cispo, lite_ppo, reinforce, ours, star."""
    model: Path
    """Folder of the model that all start from, or of a run."""
    task: str = "school"
    """school[:families], gym:NAME, jsonl:PATH, python:PATH.py[:name]."""
    budget: str = "10m"
    """Of each arm and seed: a time (90s, 20m, 1h), or tokens to sample (500k, 2M)."""
    seeds: int = Field(3, gt=0)
    length: int = Field(128, gt=0)
    """Tokens an answer may take."""
    problems: int = Field(200, gt=0)
    """Held-out problems of the exam."""
    samples: int = Field(8, gt=0)
    """Answers to each of them."""
    dir: Path = Path("runs/compare")


def compare(words: Sequence[str]) -> None:
    """school compare --recipes a,b --model MODEL --task TASK --budget 20m"""
    c = parse_options(Compare, words, "school compare --recipes grpo,rloo --model MODEL --task TASK --budget 20m", ())
    if c is None:
        return
    from schoolhouse.claims.harness import comparison
    from schoolhouse.claims.harness.claim import Evaluation, Outcome, Results
    from schoolhouse.claims.harness.runner import run_arm

    exam = Evaluation(task=c.task, problems=c.problems, samples=c.samples, max_new_tokens=c.length)
    names = [name for name in c.recipes.split(",") if name]
    found: dict[str, dict[int, Outcome]] = {}
    planned = {seed: comparison.arms(names, c.model, exam, c.budget, seed) for seed in range(c.seeds)}
    for seed, arms in planned.items():
        for name, arm in arms.items():
            print(f"seed {seed}: {name}")
            found.setdefault(name, {})[seed] = run_arm(arm, seed, c.dir.resolve())
    print(comparison.write(Results(found), exam, c.budget, c.dir))
