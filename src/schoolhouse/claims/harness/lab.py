"""Run the arms of a claim. A step or a measure that was done before with the same config is not done again.

FOLDER/steps/grpo-1f00…      run folder of one step
FOLDER/measures/1f00….json   what was measured of its model
"""

from __future__ import annotations

import hashlib
import json
import pkgutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from math import inf
from pathlib import Path
from types import ModuleType
from typing import Any

from schoolhouse import __version__, claims, recipes
from schoolhouse.claims.harness.claim import Arm, Claim, Measure, Outcome, Results, Scale, Step
from schoolhouse.config import Source, build, nearest
from schoolhouse.durable import checksum, model_in, read_lines, read_object, to_json, write_whole
from schoolhouse.policy.policy import Policy
from schoolhouse.records import spent
from schoolhouse.run import Run, read_metrics
from schoolhouse.types import SchoolError


def known() -> list[str]:
    """Names of all claims."""
    return sorted(module.name for module in pkgutil.iter_modules(claims.__path__) if not module.ispkg)


def find(name: str) -> Claim:
    """A claim by its name. Raises SchoolError with the nearest."""
    if name not in known():
        raise SchoolError(f"there is no claim `{name}`{nearest(name, known())}")
    return import_module(f"schoolhouse.claims.{name}").CLAIM


def run_arms(
    claim: Claim,
    seeds: int,
    scale: Scale,
    folder: Path,
    chosen: Sequence[str] = (),
    tell: Callable[[str], None] = print,
) -> Results:
    """Train and measure every arm with seeds 0, 1, ...; `chosen` arms only, if any. Raises SchoolError for unknown."""
    arms: dict[str, dict[int, Outcome]] = {}
    for seed in range(seeds):
        planned = claim.arms(scale, seed)
        for name in chosen:
            if name not in planned:
                raise SchoolError(f"{claim.id} has no arm `{name}`{nearest(name, [*planned])}")
        for name, arm in planned.items():
            if not chosen or name in chosen:
                tell(f"{claim.id}, seed {seed}: {name}")
                arms.setdefault(name, {})[seed] = run_arm(arm, seed, folder)
    return Results(arms)


def run_arm(arm: Arm, seed: int, folder: Path) -> Outcome:
    """Train one arm and ask its model what is to be asked."""
    if isinstance(arm.step, Path):
        return Outcome(_all_measured(arm, seed, arm.step, fingerprint(arm.step), folder), [], [], 0, 0.0)
    run = do(arm.step, folder)
    metrics = read_metrics(run)
    return Outcome(
        _all_measured(arm, seed, run, name_of(arm.step), folder),
        metrics,
        read_lines(run / "times.jsonl"),
        spent(run)[0],
        float(read_object(run / "manifest.json")["seconds"]),
    )


def do(step: Step, folder: Path) -> Path:
    """The run folder of a step, trained if it has not been. What it starts from is trained first."""
    module, config = _resolved(step, folder, lambda inner: do(inner, folder))
    place = folder / "steps" / name_of(step)
    with Run.open(place, config, step.recipe) as run:
        if not run.finished:
            print(f"  {place.name}", file=sys.stderr)
            run.limit(step.tokens, step.seconds)
            getattr(module, step.recipe)(config, run)
    return place


def name_of(step: Step) -> str:
    """Recipe and a digest of everything the step is made from: its whole config, and what it starts from."""
    _, config = _resolved(step, Path(), lambda inner: Path(name_of(inner)))
    told = [__version__, step.recipe, config.model_dump(mode="json")]
    told += [more for more in (step.tokens, step.seconds, step.made_from) if more not in (inf, "")]
    return f"{step.recipe}-{_digest(json.dumps(told, sort_keys=True))}"


def fingerprint(model: Path) -> str:
    """Tells the weights of a model folder, or of a run's newest checkpoint, from others."""
    folder = model_in(model)
    return _digest(json.dumps([checksum(path) for path in sorted(folder.glob("*.safetensors"))]))


def _resolved(step: Step, folder: Path, place: Callable[[Step], Path]) -> tuple[ModuleType, Any]:
    module = import_module(f"{recipes.__name__}.{step.recipe}")
    return module, build(module.Config, Source(_placed(step.config, place), {}))


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
    path = folder / "measures" / f"{_digest(json.dumps(asked, sort_keys=True))}.json"
    if not path.exists():
        others = {what: Policy.load(do(step, folder)) for what, step in beside.items()}
        began = time.monotonic()
        found = measure.take(Policy.load(model), seed, **others)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, to_json({**found, "asked": asked, "seconds": round(time.monotonic() - began, 3)}) + "\n")
    return read_object(path)


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
