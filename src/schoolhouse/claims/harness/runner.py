"""Run the arms of a claim. A step or a measurement does not run again if its result is stored for the same config.

FOLDER/steps/grpo-1f00…      the run folder of one step.
FOLDER/measures/1f00….json   one measurement of a step's model.
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
    to_json,
)
from schoolhouse.runs.hub_cache import is_on_disk
from schoolhouse.runs.manifest import budget_spent, source_digest, weight_files, weights_digest
from schoolhouse.runs.run import Run, read_metrics
from schoolhouse.tasks.registry import open_task
from schoolhouse.types import SchoolError

POLL_SECONDS = 5.0
"""The number of seconds between two attempts to open a step that another process trains."""


def claim_names() -> list[str]:
    """The names of all claims."""
    return sorted(module.name for module in pkgutil.iter_modules(claims.__path__) if not module.ispkg)


def load_claim(name: str) -> Claim:
    """Return the claim with this name. Raises SchoolError for an unknown name; the error suggests the nearest name."""
    if name not in claim_names():
        raise SchoolError(f"there is no claim `{name}`{suggest(name, claim_names())}")
    return import_module(f"schoolhouse.claims.{name}").CLAIM


def run_arms(
    claim: Claim,
    seeds: int,
    scale: Scale,
    folder: Path,
    arm_names: Sequence[str] = (),
    jobs: int = 1,
) -> Results:
    """Train and measure the arms of a claim with the seeds 0, 1, ... Raises SchoolError for an unknown arm.

    arm_names  the arms to run; all arms by default.
    jobs       the number of seeds that run in parallel, each in its own process with an equal share of the CPU cores.
    """
    folder = folder.resolve()  # configs hold its path: the same folder needs one name
    planned = claim.arms(scale, 0)
    for name in arm_names:
        if name not in planned:
            raise SchoolError(f"claim {claim.id} has no arm `{name}`{suggest(name, [*planned])}")
    seed_args = [(claim, seed, scale, folder, arm_names) for seed in range(seeds)]
    if jobs == 1:
        outcomes = [_run_seed(*args) for args in seed_args]
    else:
        with _share_cores(jobs), ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
            outcomes = _run_in_parallel(pool, jobs, seed_args)
    return Results({arm: {seed: by_arm[arm] for seed, by_arm in enumerate(outcomes)} for arm in outcomes[0]})


def _run_in_parallel(pool: Executor, jobs: int, seed_args: Sequence[tuple[Any, ...]]) -> list[dict[str, Outcome]]:
    """Return the result of `_run_seed` for each seed, in order.

    Only idle workers receive work, so that no queued work starts after an interrupt.
    """
    outcomes: dict[int, dict[str, Outcome]] = {}
    waiting, running = deque(enumerate(seed_args)), dict[Future[dict[str, Outcome]], int]()
    while waiting or running:
        while waiting and len(running) < jobs:
            seed, args = waiting.popleft()
            running[pool.submit(_run_seed, *args)] = seed
        for done in wait(running, return_when=FIRST_COMPLETED).done:
            outcomes[running.pop(done)] = done.result()
    return [outcomes[seed] for seed in range(len(seed_args))]


def _run_seed(claim: Claim, seed: int, scale: Scale, folder: Path, arm_names: Sequence[str]) -> dict[str, Outcome]:
    """Run the arms of one seed."""
    outcomes = {}
    for name, arm in claim.arms(scale, seed).items():
        if not arm_names or name in arm_names:
            print(f"{claim.id}, seed {seed}: {name}", flush=True)
            outcomes[name] = run_arm(arm, seed, folder)
    return outcomes


@contextmanager
def _share_cores(jobs: int) -> Generator[None]:
    """Inside the `with` block, give each new process an equal share of the CPU cores.

    With more threads than cores, waiting threads would waste time.
    """
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
    """Train one arm and measure its model."""
    if isinstance(arm.step, Path):
        return Outcome(_measure_all(arm, seed, arm.step, fingerprint(arm.step), folder), [], [], 0, 0.0)
    run = run_step(arm.step, folder)
    metrics = read_metrics(run)
    return Outcome(
        _measure_all(arm, seed, run, step_name(arm.step), folder),
        metrics,
        read_jsonl(run / "times.jsonl"),
        budget_spent(run)[0],
        float(read_json(run / "manifest.json")["seconds"]),
    )


def run_step(step: Step, folder: Path) -> Path:
    """Return the run folder of a step. If the step is not stored, the function first trains the earlier steps and then
    this step."""
    run_folder = folder / "steps" / step_name(step)
    path = run_folder / "manifest.json"
    manifest = read_json(path) if path.is_file() else {}
    if manifest.get("state") == "finished":
        _check_stored(run_folder, manifest)
        return run_folder
    recipe, config = _resolve(step, lambda inner: run_step(inner, folder))
    with _open_when_free(run_folder, config, step.recipe) as run:
        if not run.finished:
            print(f"  {run_folder.name}", file=sys.stderr)
            run.set_budget(step.max_tokens, step.max_seconds)
            recipe.train(config, run)
    return run_folder


def _check_stored(run_folder: Path, manifest: Mapping[str, Any]) -> None:
    """Check that a stored run still matches the code and the weights of its start models.

    The folder's name depends only on the config. The function prints a warning if the code changed, and raises
    SchoolError if the weights changed.
    """
    versions = {part.get("code") for part in (manifest, *manifest.get("resumed_with", ()))}
    if versions != {source_digest()}:
        print(
            f"  {run_folder} was made by a different version of the code; delete the folder to train the step again",
            file=sys.stderr,
        )
    for model, digest in manifest.get("models", {}).items():
        if is_on_disk(model) and weights_digest(model) != digest:
            raise SchoolError(
                f"the weights of {model} have changed since {run_folder} was trained from them; delete "
                f"{run_folder.name} to train this step again, or restore the old weights"
            )


def _open_when_free(run_folder: Path, config: BaseConfig, recipe: str) -> Run:
    """Open the run of a step. Waits while another process trains this step."""
    while True:
        try:
            return Run.open(run_folder, config, recipe)
        except FolderInUse:
            time.sleep(POLL_SECONDS)


def step_name(step: Step) -> str:
    """The name of a step: its recipe and a digest of its whole config, including the steps that it starts from."""
    _, config = _resolve(step, lambda inner: Path(step_name(inner)))
    parts = [__version__, step.recipe, config.model_dump(mode="json")]
    parts += [part for part in (step.max_tokens, step.max_seconds, step.content_digest) if part not in (inf, "")]
    parts += [digest for key in ("task", "demos_task") for digest in _task_digests(getattr(config, key, None))]
    return f"{step.recipe.rpartition('.')[2]}-{_digest(json.dumps(parts, sort_keys=True))}"


def _task_digests(task: str | None) -> list[str]:
    """The digests of the files of a task. The content of a file can change although the task's name does not change."""
    return [checksum(path) for path in open_task(task).files] if task else []


def fingerprint(model: Path) -> str:
    """A digest of the weights of a model folder, or of a run's newest checkpoint."""
    return _digest(json.dumps([checksum(path) for path in weight_files(model)]))


def _resolve(step: Step, place: Callable[[Step], Path]) -> tuple[Recipe, Any]:
    """The recipe and the config of a step. `place(step)` is the folder of a step in the config."""
    recipe = load_recipe(step.recipe)
    return recipe, build(recipe.config, Source(_replace_steps(step.config, place), {}))


def _replace_steps(value: Any, place: Callable[[Step], Path]) -> Any:
    """Return `value` with every step replaced by the step's folder."""
    if isinstance(value, Step):
        return str(place(value))
    if isinstance(value, Mapping):
        return {key: _replace_steps(inner, place) for key, inner in value.items()}
    return [_replace_steps(inner, place) for inner in value] if isinstance(value, list | tuple) else value


def _measure_all(arm: Arm, seed: int, model: Path, model_name: str, folder: Path) -> dict[str, dict[str, Any]]:
    return {
        name: _measure(measure, seed, model, model_name, folder, arm.judged_models)
        for name, measure in arm.measures.items()
    }


def _measure(
    measure: Measure, seed: int, model: Path, model_name: str, folder: Path, judged_models: Mapping[str, Step]
) -> dict[str, Any]:
    """Measure a model, or read the stored result. The file name is a digest of the inputs."""
    inputs: list[Any] = [model_name, type(measure).__name__, measure.model_dump(mode="json"), seed]
    inputs += [{name: step_name(step) for name, step in judged_models.items()}] if judged_models else []
    inputs += _task_digests(getattr(measure, "task", None))
    path = folder / "measures" / f"{_digest(json.dumps(inputs, sort_keys=True))}.json"
    weights, stored = fingerprint(model), read_json(path) if path.exists() else {}
    if stored and stored.get("code") != source_digest():
        print(
            f"  {path} was measured by a different version of the code; delete the file to measure again",
            file=sys.stderr,
        )
    if not stored or stored.get("weights", weights) != weights:  # a step that was trained again keeps its name
        models = {name: Policy.load(run_step(step, folder)) for name, step in judged_models.items()}
        began = time.monotonic()
        result = measure.run(Policy.load(model), seed, **models)
        path.parent.mkdir(parents=True, exist_ok=True)
        seconds = round(time.monotonic() - began, 3)
        row = {**result, "inputs": inputs, "weights": weights, "code": source_digest(), "seconds": seconds}
        atomic_write(path, to_json(row) + "\n")
    return read_json(path)


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
