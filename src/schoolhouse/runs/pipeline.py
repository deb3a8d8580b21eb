"""Stages one after another, an exam after each, and a report: what `school run` and `school quickstart` do.

    seed: 0
    exam: {task: school, problems: 200, samples: 8, length: 128}
    stages:
      - {name: textbook, recipe: pretrain, config: {steps: 500}}
      - {name: lessons, recipe: sft, config: {model: "stage:textbook"}}

A stage is a run folder of its own; `stage:NAME` stands for the model that stage ended with. What is done is skipped.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from schoolhouse import recipes
from schoolhouse.config import BaseConfig, KeyPath, Source, build, read_yaml, suggest
from schoolhouse.recipes import load_recipe
from schoolhouse.runs.atomic_io import atomic_write, read_json, to_json
from schoolhouse.runs.manifest import peak_memory_bytes
from schoolhouse.runs.run import Run, read_metrics
from schoolhouse.types import SchoolError

if TYPE_CHECKING:
    from schoolhouse.eval.report import Stage as Done

STAGE_PREFIX = "stage:"
_PACKAGED = Path(recipes.__file__).parents[1] / "pipelines"


class EvalSettings(BaseConfig):
    task: str = "school"
    """school[:families], gym:NAME, jsonl:PATH, python:PATH.py[:name]."""
    problems: int | None = Field(200, gt=0)
    """Held-out problems to answer; null: all of them."""
    samples: int = Field(8, gt=0)
    """Answers to each problem."""
    max_new_tokens: int = Field(128, gt=0)
    """Tokens an answer may take, thinking included."""
    temperature: float = Field(1.0, ge=0)


class Stage(BaseConfig):
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")
    """Folder of the stage, and what `stage:NAME` calls it."""
    recipe: str
    """Name of a recipe, or the path of a file with one."""
    config: dict[str, Any] = Field(default_factory=dict)
    """Keys of the recipe's own config."""


class Pipeline(BaseConfig):
    seed: int = 0
    """Handed to every stage that does not set its own."""
    eval: EvalSettings = EvalSettings()
    stages: tuple[Stage, ...] = Field(min_length=1)


def run_pipeline(path: Path | str, seed: int | None = None, folder: Path | str = "runs/pipeline") -> dict[str, Any]:
    """Run the stages of a file (or of a packaged one, by its name) in `folder`; gives the content of report.json.

    The same call again skips what is done and goes on with the rest. Every key of every stage is checked before
    anything runs. Raises SchoolError naming the file, the line and the key.
    """
    source = read_yaml(find_pipeline(path))
    if seed is not None:
        source = Source({"seed": seed}, {("seed",): "--seed"}).merged_over(source)
    pipeline = build(Pipeline, source)
    folder = Path(folder)
    _check(pipeline, source, folder)
    with Run.open(folder, pipeline, "pipeline") as run:
        models: dict[str, Path] = {}
        for i, stage in enumerate(pipeline.stages):
            models[stage.name] = _run_stage(i, pipeline, source, folder, models)
            run.save_manifest()
        return _report(pipeline, folder, run)


def repeat_run(run: Path, folder: Path) -> None:
    """Run again what a run folder says it is, in another folder. Raises SchoolError where that cannot be found out."""
    recipe = read_json(run / "manifest.json").get("recipe")
    if recipe == "pipeline":
        run_pipeline(run / "config.yaml", None, folder)
        return
    loaded, limit = load_recipe(str(recipe)), read_json(run / "manifest.json").get("limit", {})
    if "seconds" in limit:
        raise SchoolError(f"{run} was ended by a clock ({limit['seconds']:g} s): nobody can say after which step again")
    with Run.open(folder, build(loaded.config, read_yaml(run / "config.yaml")), str(recipe)) as again:
        if not again.finished:
            again.set_budget(**limit)
            loaded.train(again.config, again)


def find_pipeline(path: Path | str) -> Path:
    """The file of a pipeline: a path, or the name of a packaged one. Raises SchoolError with the nearest name."""
    packaged = {found.stem: found for found in _PACKAGED.glob("*.yaml")}
    path = Path(path)
    if path.is_file():
        return path
    if str(path) in packaged:
        return packaged[str(path)]
    raise SchoolError(f"there is no file {path}, nor a packaged pipeline of this name{suggest(str(path), [*packaged])}")


# ---- one stage


def _run_stage(i: int, pipeline: Pipeline, source: Source, folder: Path, models: Mapping[str, Path]) -> Path:
    """Run a stage and its exam unless that is done; gives the folder of the model it ended with."""
    stage = pipeline.stages[i]
    config = _config(i, pipeline, source, models)
    with Run.open(folder / stage.name, config, stage.recipe) as run:
        done = "done already" if run.finished else f"from step {run.step}" if run.step else stage.recipe
        print(f"stage {i + 1} of {len(pipeline.stages)}: {stage.name} ({done})", file=sys.stderr)
        if not run.finished:
            load_recipe(stage.recipe).train(config, run)
            run.finish()
        model = run.model
    if not (folder / stage.name / "evaluation.json").exists():
        _evaluate(pipeline, model, folder / stage.name / "evaluation.json")
    return model


def _evaluate(pipeline: Pipeline, model: Path, path: Path) -> None:
    """The exam of a model, saved with how long it took and how much memory this process has used so far."""
    from schoolhouse.eval.evaluate import evaluate
    from schoolhouse.policy.policy import Policy
    from schoolhouse.tasks.registry import open_task

    began, exam = time.monotonic(), pipeline.eval
    task = open_task(exam.task, pipeline.seed)
    evaluation = evaluate(
        Policy.load(model), task, exam.problems, exam.samples, exam.max_new_tokens, exam.temperature, pipeline.seed
    )
    cost = {"seconds": round(time.monotonic() - began, 3), "peak_memory_bytes": peak_memory_bytes()}
    atomic_write(path, to_json({**evaluation.to_json(records=True), **cost}) + "\n")


def _config(i: int, pipeline: Pipeline, source: Source, models: Mapping[str, Path]) -> BaseConfig:
    """The config of a stage with `stage:NAME` replaced. Raises SchoolError for unknown keys and values out of range."""
    cls = load_recipe(pipeline.stages[i].recipe).config
    place: KeyPath = ("stages", i, "config")
    given = source.at(*place) if place in source.locations else source.at("stages", i)
    values = _replaced(pipeline.stages[i].config, models)
    if "seed" in cls.model_fields:
        values = {"seed": pipeline.seed, **values}
    return build(cls, Source(values, given.locations))


def _replaced(value: Any, models: Mapping[str, Path]) -> Any:
    """`value` with every `stage:NAME` in it replaced by the folder of that model."""
    if isinstance(value, Mapping):
        return {key: _replaced(inner, models) for key, inner in value.items()}
    if isinstance(value, list):
        return [_replaced(inner, models) for inner in value]
    if isinstance(value, str) and value.startswith(STAGE_PREFIX):
        return str(models[value.removeprefix(STAGE_PREFIX)])
    return value


# ---- before anything runs


def _check(pipeline: Pipeline, source: Source, folder: Path) -> None:
    """Raises SchoolError for anything that would stop a later stage."""
    from schoolhouse.tasks.registry import open_task

    earlier: dict[str, Path] = {}
    for i, stage in enumerate(pipeline.stages):
        at = source.locations["stages", i, "name"]
        if stage.name in earlier:
            raise SchoolError(f"{at}: there are two stages `{stage.name}`; give each a name of its own")
        try:
            load_recipe(stage.recipe)
        except SchoolError as error:
            raise SchoolError(f"{source.locations['stages', i, 'recipe']}: {error}") from None
        for place, name in _references(stage.config, ("stages", i, "config")):
            if name not in earlier:
                raise SchoolError(f"{source.locations[place]}: `{STAGE_PREFIX}{name}` {_unknown(name, pipeline, earlier)}")
        config = _config(i, pipeline, source, earlier)
        for key in ("task", "demos_task", "fresh_task"):
            spec = getattr(config, key, None)
            if spec and str(folder) not in spec:  # what an earlier stage makes is not there yet
                _open(spec, pipeline.seed, source.locations.get(("stages", i, "config", key), at))
        earlier[stage.name] = folder / stage.name
    open_task(pipeline.eval.task, pipeline.seed)


def _open(spec: str, seed: int, where: str) -> None:
    """Raises SchoolError, with the line, for a task that cannot be opened."""
    from schoolhouse.tasks.registry import open_task

    try:
        open_task(spec, seed)
    except SchoolError as error:
        raise SchoolError(f"{where}: {error}") from None


def _references(value: Any, place: KeyPath) -> Iterator[tuple[KeyPath, str]]:
    """Where stages are referred to, and by which name."""
    if isinstance(value, str) and value.startswith(STAGE_PREFIX):
        yield place, value.removeprefix(STAGE_PREFIX)
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from _references(inner, (*place, key))


def _unknown(name: str, pipeline: Pipeline, earlier: Collection[str]) -> str:
    if any(stage.name == name for stage in pipeline.stages):
        return "is no earlier stage; move it up"
    return "names no stage" + (suggest(name, [*earlier]) if earlier else "; no stage comes before this one")


# ---- the report


def _report(pipeline: Pipeline, folder: Path, run: Run) -> dict[str, Any]:
    """Write the report, show it and finish the run."""
    from rich.console import Console

    from schoolhouse.eval.report import report_json, stage_table, write_report
    from schoolhouse.tasks.school.task import FAMILIES

    stages = [_done(folder, stage.name) for stage in pipeline.stages]
    run.finish()
    report = report_json(
        stages,
        round(max(run.seconds, sum(stage.seconds + stage.evaluation["seconds"] for stage in stages)), 3),
        max(stage.evaluation["peak_memory_bytes"] for stage in stages),
        pipeline.seed,
    )
    chat = f"school chat {folder / pipeline.stages[-1].name}"
    figure = write_report(folder, stages, report, chat, [name for name, family in FAMILIES.items() if not family.pays])
    Console().print(stage_table(stages))
    print(f"report: {folder / 'report.md'}" + (f"\nfigure: {figure}" if figure else "") + f"\ntalk to it: {chat}")
    return report


def _done(folder: Path, name: str) -> Done:
    from schoolhouse.eval.report import Stage as Done

    seconds = float(read_json(folder / name / "manifest.json")["seconds"])
    return Done(name, read_metrics(folder / name), read_json(folder / name / "evaluation.json"), seconds)
