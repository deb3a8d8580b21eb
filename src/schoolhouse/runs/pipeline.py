"""The commands `school run` and `school quickstart` run the stages of a pipeline one after another.

After each stage the model is evaluated, and after the last stage a report is written. An example of a pipeline file:

    seed: 0
    eval: {task: school, problems: 200, samples: 8, max_new_tokens: 128}
    stages:
      - {name: base, recipe: pretrain, config: {steps: 500}}
      - {name: tuned, recipe: sft, config: {model: "stage:base"}}

Each stage has its own run folder. In a config, the text `stage:NAME` means the final model of the stage NAME. Stages
that are already finished are skipped.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from schoolhouse import recipes
from schoolhouse.config import BaseConfig, KeyPath, Source, build, expand_dotted, merge, read_yaml, suggest
from schoolhouse.recipes import Recipe, load_recipe
from schoolhouse.runs.atomic_io import atomic_write, read_json, to_json
from schoolhouse.runs.manifest import peak_memory_bytes, read_manifest
from schoolhouse.runs.progress import is_quiet
from schoolhouse.runs.run import Run, read_metrics
from schoolhouse.runs.size_defaults import size_defaults
from schoolhouse.tasks.user_file import user_errors
from schoolhouse.types import SchoolError

if TYPE_CHECKING:
    from schoolhouse.eval.report import Stage as StageResult

STAGE_PREFIX = "stage:"
_PACKAGED = Path(recipes.__file__).parents[1] / "pipelines"


class EvalSettings(BaseConfig):
    task: str = "school"
    """school[:families], gym:NAME, jsonl:PATH, python:PATH.py[:name]."""
    problems: int | None = Field(200, gt=0)
    """The number of held-out problems; null: all held-out problems."""
    samples: int = Field(8, gt=0)
    """The number of completions for each problem."""
    max_new_tokens: int = Field(128, gt=0)
    """The maximum number of tokens of a completion, including its thought."""
    temperature: float = Field(1.0, ge=0)


class Stage(BaseConfig):
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")
    """The name of the stage. Its folder has the same name, and `stage:NAME` refers to the stage by this name."""
    recipe: str
    """Name of a recipe, or the path of a recipe file."""
    config: dict[str, Any] = Field(default_factory=dict)
    """Config keys of the recipe."""


class Pipeline(BaseConfig):
    seed: int = 0
    """The seed of every stage that does not set its own seed."""
    eval: EvalSettings = EvalSettings()
    stages: tuple[Stage, ...] = Field(min_length=1)


def run_pipeline(path: Path | str, seed: int | None = None, folder: Path | str = "runs/pipeline") -> dict[str, Any]:
    """Run the stages of a pipeline in `folder`, and return the content of report.json.

    `path` is a YAML file or the name of a pipeline that is part of the package. If `run_pipeline` is called again with
    the same folder, finished stages are skipped and an unfinished stage resumes. Every key of every stage is checked
    before the first stage runs. If a key is wrong, a SchoolError names the file, the line and the key.
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
    """Repeat a run in another folder. Raises SchoolError if the run is not repeatable."""
    manifest = read_manifest(run / "manifest.json")
    name, budget = str(manifest.get("recipe")), manifest.get("budget", {})
    if name == "pipeline":
        run_pipeline(run / "config.yaml", None, folder)
        return
    if "seconds" in budget:
        raise SchoolError(
            f"the run {run} ended after a time budget of {budget['seconds']:g} s, so its number of steps is not "
            "repeatable: repeat a run with a token budget, or a run without a budget"
        )
    recipe = load_recipe(next((file for file in manifest.get("files", ()) if Path(file).name == name), name))
    with open_run(folder, build(recipe.config, read_yaml(run / "config.yaml")), recipe) as repeated:
        if not repeated.finished:
            repeated.set_budget(**budget)
            train_recipe(repeated, recipe)


def open_run(folder: Path, config: BaseConfig, recipe: Recipe) -> Run:
    """Open the run of a recipe in a folder.

    If the recipe is a user's own file, the run records the name of the file, but not the folder of the file.
    """
    return Run.open(folder, config, recipe.file.name if recipe.file else recipe.name)


def train_recipe(run: Run, recipe: Recipe) -> None:
    """Train an open run.

    A user's own recipe file must not change until the run ends. If the code in a user's recipe file fails, the error
    message names the line.
    """
    run.track_files(recipe.file and recipe.file.resolve())
    with user_errors(recipe.file):
        recipe.train(run.config, run)


def find_pipeline(path: Path | str) -> Path:
    """Find the file of a pipeline, from its path or from the name of a pipeline that is part of the package.

    If the name is unknown, a SchoolError suggests the most similar name.
    """
    packaged = {found.stem: found for found in _PACKAGED.glob("*.yaml")}
    path = Path(path)
    if path.is_file():
        return path
    if str(path) in packaged:
        return packaged[str(path)]
    raise SchoolError(
        f"unknown pipeline `{path}`: give the path of a file or a known name{suggest(str(path), [*packaged])}"
    )


# ---- one stage


def _run_stage(i: int, pipeline: Pipeline, source: Source, folder: Path, models: Mapping[str, Path]) -> Path:
    """Run a stage and its evaluation, unless they are already done. Returns the folder of the stage's final model."""
    stage = pipeline.stages[i]
    config, recipe = _config(i, pipeline, source, models), load_recipe(stage.recipe)
    with open_run(folder / stage.name, config, recipe) as run:
        progress = "already finished" if run.finished else f"from step {run.step}" if run.step else stage.recipe
        if not is_quiet():
            print(f"stage {i + 1} of {len(pipeline.stages)}: {stage.name} ({progress})", file=sys.stderr)
        if not run.finished:
            train_recipe(run, recipe)
            run.finish()
        model = run.model
    if not (folder / stage.name / "evaluation.json").exists():
        _evaluate(pipeline, model, folder / stage.name / "evaluation.json")
    return model


def _evaluate(pipeline: Pipeline, model: Path, path: Path) -> None:
    """Evaluate a model, and save the result, the duration of the evaluation, and the peak memory of this process."""
    from schoolhouse.eval.evaluate import evaluate
    from schoolhouse.policy.policy import Policy
    from schoolhouse.tasks.registry import open_task

    start, settings = time.monotonic(), pipeline.eval
    task = open_task(settings.task, pipeline.seed)
    evaluation = evaluate(
        Policy.load(model),
        task,
        settings.problems,
        settings.samples,
        settings.max_new_tokens,
        settings.temperature,
        pipeline.seed,
    )
    cost = {"seconds": round(time.monotonic() - start, 3), "peak_memory_bytes": peak_memory_bytes()}
    atomic_write(path, to_json({**evaluation.to_json(records=True), **cost}) + "\n")


def _config(i: int, pipeline: Pipeline, source: Source, models: Mapping[str, Path]) -> BaseConfig:
    """Return the config of a stage, with each `stage:NAME` replaced by the folder of that stage's model.

    Raises SchoolError for an unknown key, and for a value that is out of range.
    """
    cls = load_recipe(pipeline.stages[i].recipe).config
    path: KeyPath = ("stages", i, "config")
    written = source.at(*path) if path in source.locations else source.at("stages", i)
    values = _replaced(pipeline.stages[i].config, models)
    if "seed" in cls.model_fields:
        values = {"seed": pipeline.seed, **values}
    chosen = expand_dotted(size_defaults(cls, expand_dotted(values)))
    return build(cls, Source(merge(chosen, expand_dotted(values)), written.locations))


def _replaced(value: Any, models: Mapping[str, Path]) -> Any:
    """Return a copy of `value` in which every `stage:NAME` is replaced by the folder of that stage's model."""
    if isinstance(value, Mapping):
        return {key: _replaced(inner, models) for key, inner in value.items()}
    if isinstance(value, list):
        return [_replaced(inner, models) for inner in value]
    if isinstance(value, str) and value.startswith(STAGE_PREFIX):
        return str(models[value.removeprefix(STAGE_PREFIX)])
    return value


# ---- checks before the first stage runs


def _check(pipeline: Pipeline, source: Source, folder: Path) -> None:
    """Check all stages before the first stage runs. Raises SchoolError for a mistake that would stop any stage."""
    from schoolhouse.tasks.registry import open_task

    earlier: dict[str, Path] = {}
    for i, stage in enumerate(pipeline.stages):
        location = source.locations["stages", i, "name"]
        if stage.name in earlier:
            raise SchoolError(f"{location}: two stages have the name `{stage.name}`; give each stage its own name")
        try:
            load_recipe(stage.recipe)
        except SchoolError as error:
            raise SchoolError(f"{source.locations['stages', i, 'recipe']}: {error}") from None
        for path, name in _references(stage.config, ("stages", i, "config")):
            if name not in earlier:
                raise SchoolError(
                    f"{source.locations[path]}: `{STAGE_PREFIX}{name}` {_unknown(name, pipeline, earlier)}"
                )
        config = _config(i, pipeline, source, earlier)
        for key in ("task", "demos_task", "fresh_task"):
            spec = getattr(config, key, None)
            if spec and str(folder) not in spec:  # files that an earlier stage writes do not exist yet
                _check_task(spec, pipeline.seed, source.locations.get(("stages", i, "config", key), location))
        earlier[stage.name] = folder / stage.name
    open_task(pipeline.eval.task, pipeline.seed)


def _check_task(spec: str, seed: int, location: str) -> None:
    """Open a task to check that it can be opened.

    If the task cannot be opened, a SchoolError names the location of the task in the file.
    """
    from schoolhouse.tasks.registry import open_task

    try:
        open_task(spec, seed)
    except SchoolError as error:
        raise SchoolError(f"{location}: {error}") from None


def _references(value: Any, path: KeyPath) -> Iterator[tuple[KeyPath, str]]:
    """Find every `stage:NAME` (the final model of the stage NAME) in a config. Yields pairs (path of the key, NAME)."""
    if isinstance(value, str) and value.startswith(STAGE_PREFIX):
        yield path, value.removeprefix(STAGE_PREFIX)
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from _references(inner, (*path, key))


def _unknown(name: str, pipeline: Pipeline, earlier: Collection[str]) -> str:
    if any(stage.name == name for stage in pipeline.stages):
        return "is not an earlier stage; move it to a place before this stage"
    return "names an unknown stage" + (suggest(name, [*earlier]) if earlier else "; no stage comes before this stage")


# ---- the report


def _report(pipeline: Pipeline, folder: Path, run: Run) -> dict[str, Any]:
    """Write the report, show it and finish the run."""
    from rich.console import Console

    from schoolhouse.eval.report import report_json, stage_table, write_report
    from schoolhouse.tasks.school.task import FAMILIES

    stages = [_result(folder, stage.name) for stage in pipeline.stages]
    run.finish()
    report = report_json(
        stages,
        round(max(run.seconds, sum(stage.seconds + stage.evaluation["seconds"] for stage in stages)), 3),
        max(stage.evaluation["peak_memory_bytes"] for stage in stages),
        pipeline.seed,
    )
    chat = f"school chat {folder / pipeline.stages[-1].name}"
    figure = write_report(
        folder, stages, report, chat, [name for name, family in FAMILIES.items() if not family.thinking_helps]
    )
    Console().print(stage_table(stages))
    print(
        f"report: {folder / 'report.md'}" + (f"\nfigure: {figure}" if figure else "") + f"\nchat with the model: {chat}"
    )
    return report


def _result(folder: Path, name: str) -> StageResult:
    from schoolhouse.eval.report import Stage as StageResult

    seconds = float(read_json(folder / name / "manifest.json")["seconds"])
    return StageResult(name, read_metrics(folder / name), read_json(folder / name / "evaluation.json"), seconds)
