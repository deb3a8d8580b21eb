"""Run the arms of a claim. A step or a measure that was done before with the same config is not done again.

FOLDER/steps/grpo-1f00…      run folder of one step
FOLDER/measures/1f00….json   what was measured of its model
"""

from __future__ import annotations

import hashlib
import json
import os
import pkgutil
import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from importlib import import_module
from math import inf
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from schoolhouse import __version__, claims
from schoolhouse.claims.harness.claim import Arm, Claim, Measure, Outcome, Results, Scale, Step
from schoolhouse.config import BaseConfig, Source, build, suggest
from schoolhouse.policy.policy import Policy
from schoolhouse.recipes import Recipe, load_recipe
from schoolhouse.runs.atomic_io import (
    FolderInUse,
    atomic_write,
    checksum,
    read_json,
    read_jsonl,
    resolve_model,
    to_json,
)
from schoolhouse.runs.manifest import budget_spent, source_digest, weights_digest
from schoolhouse.runs.run import Run, read_metrics
from schoolhouse.tasks.registry import open_task
from schoolhouse.types import SchoolError

PATIENCE = 5.0
"""Seconds between looks at a step that another process trains."""


def known() -> list[str]:
    """Names of all claims."""
    return sorted(module.name for module in pkgutil.iter_modules(claims.__path__) if not module.ispkg)


def find(name: str) -> Claim:
    """A claim by its name. Raises SchoolError with the nearest."""
    if name not in known():
        raise SchoolError(f"there is no claim `{name}`{suggest(name, known())}")
    return import_module(f"schoolhouse.claims.{name}").CLAIM


def run_arms(
    claim: Claim,
    seeds: int,
    scale: Scale,
    folder: Path,
    chosen: Sequence[str] = (),
    jobs: int = 1,
) -> Results:
    """Train and measure every arm with seeds 0, 1, ...; `chosen` arms only, if any. Raises SchoolError for unknown.

    jobs  seeds side by side, each in a process of its own with its share of the cores
    """
    folder = folder.resolve()  # configs name it: the same folder has one name
    for name in chosen:
        if name not in (planned := claim.arms(scale, 0)):
            raise SchoolError(f"{claim.id} has no arm `{name}`{suggest(name, [*planned])}")
    asked = [(claim, seed, scale, folder, chosen) for seed in range(seeds)]
    if jobs == 1:
        found = [_seed(*one) for one in asked]
    else:
        with _shared_cores(jobs), ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
            found = _side_by_side(pool, jobs, asked)
    return Results({name: {seed: outcomes[name] for seed, outcomes in enumerate(found)} for name in found[0]})


def _side_by_side(pool: Executor, jobs: int, asked: Sequence[tuple[Any, ...]]) -> list[dict[str, Outcome]]:
    """`_seed` of each, in order. Nothing is handed over before somebody is free: what waits ends with an interrupt."""
    found: dict[int, dict[str, Outcome]] = {}
    waiting, running = deque(enumerate(asked)), dict[Future[dict[str, Outcome]], int]()
    while waiting or running:
        while waiting and len(running) < jobs:
            at, one = waiting.popleft()
            running[pool.submit(_seed, *one)] = at
        for done in wait(running, return_when=FIRST_COMPLETED).done:
            found[running.pop(done)] = done.result()
    return [found[at] for at in range(len(asked))]


def _seed(claim: Claim, seed: int, scale: Scale, folder: Path, chosen: Sequence[str]) -> dict[str, Outcome]:
    """Every arm of one seed."""
    outcomes = {}
    for name, arm in claim.arms(scale, seed).items():
        if not chosen or name in chosen:
            print(f"{claim.id}, seed {seed}: {name}", flush=True)
            outcomes[name] = run_arm(arm, seed, folder)
    return outcomes


@contextmanager
def _shared_cores(jobs: int) -> Generator[None]:
    """Processes begun within take so many threads that all have cores: threads that wait for one another spin."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // jobs))
    try:
        yield
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before


def run_arm(arm: Arm, seed: int, folder: Path) -> Outcome:
    """Train one arm and ask its model what is to be asked."""
    if isinstance(arm.step, Path):
        return Outcome(_all_measured(arm, seed, arm.step, fingerprint(arm.step), folder), [], [], 0, 0.0)
    run = do(arm.step, folder)
    metrics = read_metrics(run)
    return Outcome(
        _all_measured(arm, seed, run, name_of(arm.step), folder),
        metrics,
        read_jsonl(run / "times.jsonl"),
        budget_spent(run)[0],
        float(read_json(run / "manifest.json")["seconds"]),
    )


def do(step: Step, folder: Path) -> Path:
    """The run folder of a step, trained if it has not been. What it starts from is trained first."""
    manifest = folder / "steps" / name_of(step) / "manifest.json"
    made = read_json(manifest) if manifest.is_file() else {}
    if made.get("state") == "finished":  # its name is all that it is made from, but for our own code
        if {one.get("code") for one in (made, *made.get("resumed_with", ()))} != {source_digest()}:
            print(f"  {manifest.parent}: made by other code than this; delete it to make it anew", file=sys.stderr)
        for model, then in made.get("models", {}).items():
            if Path(model).is_dir() and weights_digest(model) != then:
                told = f"{manifest.parent} began from other weights than {model} has now"
                raise SchoolError(f"{told}: delete {manifest.parent.name} to make it anew, or put the old weights back")
        return manifest.parent
    recipe, config = _resolved(step, folder, lambda inner: do(inner, folder))
    place = folder / "steps" / name_of(step)
    with _opened(place, config, step.recipe) as run:
        if not run.finished:
            print(f"  {place.name}", file=sys.stderr)
            run.set_budget(step.tokens, step.seconds)
            recipe.train(config, run)
    return place


def _opened(place: Path, config: BaseConfig, recipe: str) -> Run:
    """The run of a step; where another process is at it, what that one leaves."""
    while True:
        try:
            return Run.open(place, config, recipe)
        except FolderInUse:
            time.sleep(PATIENCE)


def name_of(step: Step) -> str:
    """Recipe and a digest of everything the step is made from: its whole config, and what it starts from."""
    _, config = _resolved(step, Path(), lambda inner: Path(name_of(inner)))
    told = [__version__, step.recipe, config.model_dump(mode="json")]
    told += [more for more in (step.tokens, step.seconds, step.made_from) if more not in (inf, "")]
    told += [more for key in ("task", "demos_task") for more in _contents(getattr(config, key, None))]
    return f"{step.recipe}-{_digest(json.dumps(told, sort_keys=True))}"


def _contents(task: str | None) -> list[str]:
    """Tells the files that a task is made from, which may change under one name, from others."""
    return [checksum(path) for path in open_task(task).files] if task else []


def fingerprint(model: Path) -> str:
    """Tells the weights of a model folder, or of a run's newest checkpoint, from others."""
    folder = resolve_model(model)
    return _digest(json.dumps([checksum(path) for path in sorted(folder.glob("*.safetensors"))]))


def _resolved(step: Step, folder: Path, place: Callable[[Step], Path]) -> tuple[Recipe, Any]:
    recipe = load_recipe(step.recipe)
    return recipe, build(recipe.config, Source(_placed(step.config, place), {}))


def _placed(value: Any, place: Callable[[Step], Path]) -> Any:
    """`value` with every step in it replaced by a folder."""
    if isinstance(value, Step):
        return str(place(value))
    if isinstance(value, Mapping):
        return {key: _placed(inner, place) for key, inner in value.items()}
    return [_placed(inner, place) for inner in value] if isinstance(value, list | tuple) else value


def _all_measured(arm: Arm, seed: int, model: Path, name: str, folder: Path) -> dict[str, dict[str, Any]]:
    return {what: _measured(measure, seed, model, name, folder, arm.beside) for what, measure in arm.measures.items()}


def _measured(
    measure: Measure, seed: int, model: Path, name: str, folder: Path, beside: Mapping[str, Step]
) -> dict[str, Any]:
    asked: list[Any] = [name, type(measure).__name__, measure.model_dump(mode="json"), seed]
    asked += [{what: name_of(step) for what, step in beside.items()}] if beside else []
    asked += _contents(getattr(measure, "task", None))
    path = folder / "measures" / f"{_digest(json.dumps(asked, sort_keys=True))}.json"
    weights, taken = fingerprint(model), read_json(path) if path.exists() else {}
    if taken and taken.get("code") != source_digest():
        print(f"  {path}: measured by other code than this; delete it to measure anew", file=sys.stderr)
    if not taken or taken.get("weights", weights) != weights:  # a step that was made anew has its old name
        others = {what: Policy.load(do(step, folder)) for what, step in beside.items()}
        began = time.monotonic()
        found = measure.run(Policy.load(model), seed, **others)
        path.parent.mkdir(parents=True, exist_ok=True)
        seconds = round(time.monotonic() - began, 3)
        row = {**found, "asked": asked, "weights": weights, "code": source_digest(), "seconds": seconds}
        atomic_write(path, to_json(row) + "\n")
    return read_json(path)


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
